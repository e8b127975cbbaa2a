// The kernels. A block of threads goes through tiles of one or two blocks of math/block_sum.h, in the order that
// the header lays down: a thread has the four rows of a group for as many r as it loads at once, so its sums over j
// need no other thread; those over g go through shared memory.
#ifndef SIGMOID_CE_CUDA_KERNELS_CUH_
#define SIGMOID_CE_CUDA_KERNELS_CUH_

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "arguments.h"
#include "math/block_sum.h"
#include "math/element.h"
#include "math/exact_sum.h"
#include "math/half.h"
#include "math/targets.h"
#include "ops.cuh"
#include "tuning.h"

namespace sigmoid_ce {
namespace cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// ---- Elements: from and to memory ----

template <class X>
struct ComputeType {
  using Type = float;
};
template <>
struct ComputeType<double> {
  using Type = double;
};

SIGMOID_CE_DEVICE_INLINE void convert(math::Float16 v, float* result) {
#if defined(__CUDA_ARCH__)
  asm("cvt.f32.f16 %0, %1;" : "=f"(*result) : "h"(v.bits));
#else
  *result = math::widen(v);
#endif
}
SIGMOID_CE_DEVICE_INLINE void convert(float v, math::Float16* result) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result->bits) : "f"(v));
#else
  math::narrow(v, result);
#endif
}
SIGMOID_CE_DEVICE_INLINE void convert(math::Bfloat16 v, float* result) { *result = math::widen(v); }
SIGMOID_CE_DEVICE_INLINE void convert(float v, math::Bfloat16* result) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result->bits) : "f"(v));
#else
  math::narrow(v, result);
#endif
}
SIGMOID_CE_DEVICE_INLINE void convert(math::Float16 v, math::Float16* result) { *result = v; }
SIGMOID_CE_DEVICE_INLINE void convert(math::Bfloat16 v, math::Bfloat16* result) { *result = v; }
SIGMOID_CE_DEVICE_INLINE void convert(float v, float* result) { *result = v; }
SIGMOID_CE_DEVICE_INLINE void convert(double v, double* result) { *result = v; }
SIGMOID_CE_DEVICE_INLINE void convert(float v, double* result) { *result = v; }

// Integers are converted once, those of 64 bits saturated to 32 first.
template <class T>
SIGMOID_CE_DEVICE_INLINE void convert(std::int32_t v, T* result) {
  *result = Arithmetic<T>::from_int(v);
}
template <class T>
SIGMOID_CE_DEVICE_INLINE void convert(std::uint8_t v, T* result) {
  *result = Arithmetic<T>::from_int(v);
}
template <class T>
SIGMOID_CE_DEVICE_INLINE void convert(std::int8_t v, T* result) {
  *result = Arithmetic<T>::from_int(v);
}
template <class T>
SIGMOID_CE_DEVICE_INLINE void convert(math::Bool v, T* result) {
  *result = v.byte != 0 ? T(1) : T(0);
}
template <class T>
SIGMOID_CE_DEVICE_INLINE void convert(std::int64_t v, T* result) {
  const std::int64_t least = INT32_MIN, most = INT32_MAX;
  *result = Arithmetic<T>::from_int(static_cast<int>(v < least ? least : v > most ? most : v));
}

// Which targets are ignored: by their own type, since 64 bits are compared before they are saturated.
template <class S, class A>
SIGMOID_CE_DEVICE_INLINE bool is_ignored(S t, const A& args) {
  return t == args.ignore_label;
}
template <class A>
SIGMOID_CE_DEVICE_INLINE bool is_ignored(math::Bool t, const A& args) {
  return (t.byte != 0 ? 1 : 0) == args.ignore_label;
}
template <class S, class T, class A>
SIGMOID_CE_DEVICE_INLINE bool is_in_range(S t, T, const A& args) {
  T v;
  convert(t, &v);
  return v >= Arithmetic<T>::number(args.ignore_low) &&
         v <= Arithmetic<T>::number(args.ignore_high);
}
template <class A>
SIGMOID_CE_DEVICE_INLINE bool is_ignored(math::Float16 t, const A& args) {
  return is_in_range(t, 0.0f, args);
}
template <class A>
SIGMOID_CE_DEVICE_INLINE bool is_ignored(math::Bfloat16 t, const A& args) {
  return is_in_range(t, 0.0f, args);
}
template <class A>
SIGMOID_CE_DEVICE_INLINE bool is_ignored(float t, const A& args) {
  return is_in_range(t, 0.0f, args);
}
template <class A>
SIGMOID_CE_DEVICE_INLINE bool is_ignored(double t, const A& args) {
  return is_in_range(t, 0.0, args);
}

// The unit of a wide load or store of so many bytes.
template <int kBytes>
struct Chunk {
  using Type = uint4;
};
template <>
struct Chunk<1> {
  using Type = std::uint8_t;
};
template <>
struct Chunk<2> {
  using Type = std::uint16_t;
};
template <>
struct Chunk<4> {
  using Type = std::uint32_t;
};
template <>
struct Chunk<8> {
  using Type = uint2;
};

// N elements, at an address that is a multiple of their size, or of 16.
template <int N, class S>
SIGMOID_CE_DEVICE_INLINE void load_wide(const char* p, S (&values)[N]) {
  using C = typename Chunk<N * sizeof(S)>::Type;
  constexpr int kChunks = N * sizeof(S) / sizeof(C);
  C chunks[kChunks];
#pragma unroll
  for (int k = 0; k < kChunks; ++k) chunks[k] = reinterpret_cast<const C*>(p)[k];
  memcpy(values, chunks, sizeof values);
}
template <int N, class S>
SIGMOID_CE_DEVICE_INLINE void store_wide(char* p, const S (&values)[N]) {
  using C = typename Chunk<N * sizeof(S)>::Type;
  constexpr int kChunks = N * sizeof(S) / sizeof(C);
  C chunks[kChunks];
  memcpy(chunks, values, sizeof values);
#pragma unroll
  for (int k = 0; k < kChunks; ++k) reinterpret_cast<C*>(p)[k] = chunks[k];
}

// Where the element of an index is.
struct Place {
  std::int64_t offset;  // bytes
  std::int64_t step;    // to the next element, within the last axis
};

SIGMOID_CE_DEVICE_INLINE Place place_of(const DeviceView& view, std::int64_t itemsize,
                                        std::int64_t first, std::int64_t index) {
  Place place = {index * itemsize, itemsize};
  if (view.n_axes == 0) return place;
  place.offset = 0;
  place.step = view.axes[view.n_axes - 1].stride;
  std::uint64_t rest = static_cast<std::uint64_t>(first + index);
#pragma unroll 1
  for (int d = view.n_axes - 1; d > 0; --d) {
    const std::uint64_t quotient =
        (__umul64hi(rest, view.axes[d].magic) + rest) >> view.axes[d].shift;
    place.offset +=
        static_cast<std::int64_t>(rest - quotient * view.axes[d].extent) * view.axes[d].stride;
    rest = quotient;
  }
  place.offset += static_cast<std::int64_t>(rest) * view.axes[0].stride;
  return place;
}

// ---- The end of a pass that adds ----

// The words of all blocks are in `words`, in shared memory: carries, rounding, division. Every thread comes.
SIGMOID_CE_DEVICE_INLINE void finish(const Arguments& args, std::int64_t* words) {
  __shared__ std::int64_t carries[math::kLimbs + 1];
  __shared__ int lowest, top;
  const int k = threadIdx.x;
  if (k == 0) {
    words[math::kWordValid] += args.count;
    words[math::kWordTotal] = args.count;
    lowest = math::kLimbs;
    top = -1;
    carries[0] = 0;
  }
  // A carry of one limb seldom makes another, so all limbs pass theirs on at once.
  for (;;) {
    std::int64_t carry = 0;
    if (k < math::kLimbs - 1) carry = words[k] >> 32;  // floor
    if (!__syncthreads_or(carry != 0)) break;
    if (k < math::kLimbs - 1) {
      words[k] &= 0xffffffff;
      carries[k + 1] = carry;
    }
    __syncthreads();
    if (k < math::kLimbs) words[k] += carries[k];
    __syncthreads();
  }
  if (k < math::kLimbs && words[k] != 0) atomicMin(&lowest, k);
  __syncthreads();
  if (k < math::kLimbs && math::exact_digit(words, lowest, k) != 0) atomicMax(&top, k);
  __syncthreads();
  if (args.partial != nullptr && k < math::kWords) args.partial[k] = words[k];
  if (k != 0) return;
  const double sum = math::sum_of_words(words, math::exact_round(words, lowest, top));
  double divisor = args.sum_divisor;
  if (args.divide_by_valid) {
    divisor = words[math::kWordValid] > 1 ? static_cast<double>(words[math::kWordValid]) : 1.0;
  }
  if (args.loss_divisor != nullptr) *args.loss_divisor = divisor;
  if (args.loss == nullptr) return;
  const double loss = __ddiv_rn(sum, divisor);
  if (args.loss_is_float64) {
    *static_cast<double*>(args.loss) = loss;
  } else {
    *static_cast<float*>(args.loss) = __double2float_rn(loss);
  }
}

// True in the block that comes last, which then sees what all have written. Every thread comes.
SIGMOID_CE_DEVICE_INLINE bool is_last_block(std::uint32_t* done) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(done, 1u) == gridDim.x - 1;
  __syncthreads();
  __threadfence();
  return last;
}

SIGMOID_CE_DEVICE_INLINE void add_to(std::int64_t* total, std::int64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(total), static_cast<unsigned long long>(value));
}

// ---- Targets and weights of any type ----

// Stands for the integers, whose type is known when the kernel runs.
struct Integer {};

// Calls `f` with a null pointer of the type of the targets.
template <class S>
struct TargetType {
  template <class F>
  SIGMOID_CE_DEVICE_INLINE void dispatch(DType, const F& f) {
    f(static_cast<const S*>(nullptr));
  }
};
template <>
struct TargetType<Integer> {
  template <class F>
  SIGMOID_CE_DEVICE_INLINE void dispatch(DType dtype, const F& f) {
    switch (dtype) {
      case DType::kBool:
        return f(static_cast<const math::Bool*>(nullptr));
      case DType::kUint8:
        return f(static_cast<const std::uint8_t*>(nullptr));
      case DType::kInt8:
        return f(static_cast<const std::int8_t*>(nullptr));
      case DType::kInt32:
        return f(static_cast<const std::int32_t*>(nullptr));
      default:
        return f(static_cast<const std::int64_t*>(nullptr));
    }
  }
};

// Targets of some rows of a thread, by wide loads, and bit k of `ignored` for lane k of a single row.
// Kept as K: integers converted, others as they are, which takes fewer registers.
template <int kRows, int kLanes, class K>
struct LoadTargets {
  const Arguments& args;
  std::int64_t first;
  bool find_ignored;
  K (&targets)[kRows][kLanes];
  unsigned* ignored;

  template <class S>
  __device__ __forceinline__ void operator()(const S*) const {
    S t[kRows][kLanes];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      load_wide(args.targets.data + (first + i * math::kRow) * sizeof(S), t[i]);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int k = 0; k < kLanes; ++k) convert(t[i][k], &targets[i][k]);
    }
    if (!find_ignored) return;
#pragma unroll
    for (int k = 0; k < kLanes; ++k) *ignored |= is_ignored(t[0][k], args) ? 1u << k : 0u;
  }
};

// One target, wherever it is.
template <class T>
struct LoadTarget {
  const Arguments& args;
  std::int64_t index;
  T* target;
  bool* ignored;

  template <class S>
  __device__ __forceinline__ void operator()(const S*) const {
    const S t = *reinterpret_cast<const S*>(
        args.targets.data + place_of(args.targets, sizeof(S), args.first, index).offset);
    convert(t, target);
    *ignored = args.has_ignore_label && is_ignored(t, args);
  }
};

// One element weight; X is the type of the scores.
template <class X, class T>
SIGMOID_CE_DEVICE_INLINE T load_weight(const char* p, DType dtype) {
  T weight;
  switch (dtype) {
    case DType::kBool:
      convert(*reinterpret_cast<const math::Bool*>(p), &weight);
      break;
    case DType::kUint8:
      convert(*reinterpret_cast<const std::uint8_t*>(p), &weight);
      break;
    case DType::kInt8:
      convert(*reinterpret_cast<const std::int8_t*>(p), &weight);
      break;
    default:
      convert(*reinterpret_cast<const X*>(p), &weight);
  }
  return weight;
}

// ---- A pass over the elements ----

// X: scores; S: targets.
template <class X, class S, int kOperation, bool kGeneral>
struct Pass {
  using T = typename ComputeType<X>::Type;
  using O = Ops<T>;
  using Element = math::Element<O>;

  static constexpr bool kFinite = std::is_same<S, Integer>::value;
  using Kept = typename std::conditional<kFinite, T, S>::type;
  static constexpr bool kSums = kOperation == kForward || kOperation == kForwardBackward;
  static constexpr bool kGradient = kOperation == kBackward || kOperation == kForwardBackward;
  static constexpr bool kWrites = kOperation != kForward;
  static constexpr int kLanes = kVectorBytes / sizeof(X);  // r of one thread
  static constexpr int kThreadsPerRow = math::kRow / kLanes;
  static constexpr int kThreadsPerBlock = math::kBlock / (kLanes * math::kRowsPerGroup);
  // A tile is as many blocks as the threads hold, or one, in steps.
  static constexpr int kBlocks = kThreads > kThreadsPerBlock ? kThreads / kThreadsPerBlock : 1;
  static constexpr int kSteps = kBlocks * kThreadsPerBlock / kThreads;
  static constexpr int kTile = kBlocks * math::kBlock;
  static constexpr int kCells =
      kSteps * kThreads;  // of a tile: the four rows of a thread, kLanes wide
  static constexpr int kRowsAtOnce = rows_at_once(kLanes, kGeneral, kSums);

  // Two save a barrier per tile, but not where there would be no room for half of a multiprocessor's threads.
  static constexpr int kBuffers = kBlocks > 1 ? 1 : 2;

  // What a pass that adds keeps in shared memory.
  struct Shared {
    // S[h][g][r] of each cell: of this tile and, in the other buffer, of the one before. Lane by lane with a gap, so that neither those who
    // write one lane of all cells nor those who read all r of a group meet in a bank.
    double sums[kBuffers][kLanes][kCells + kThreadsPerRow];
    std::int64_t words[kBlocks][math::kWords];
  };

  // From the cell of a thread on.
  using CellSums = double (*)[kCells + kThreadsPerRow];

  // The factor on the gradient, the same for all.
  static __device__ __forceinline__ T scale_of(const Arguments& args) {
    if (args.divisor == nullptr) return Arithmetic<T>::number(args.scale);
    __shared__ T scale;
    if (threadIdx.x == 0) {
      scale = Arithmetic<T>::from_double(__ddiv_rn(args.loss_weight, *args.divisor));
    }
    __syncthreads();
    return scale;
  }

  // One element: its loss, and what goes into `out`.
  static __device__ __forceinline__ T element(const Arguments& args, T scale, X x, T t, T p, T w,
                                              bool ignored, X* out) {
    T score;
    convert(x, &score);
    Element e = Element::template plain<kFinite>(score, t);
    if (kGeneral && args.has_pos_weight) e.weigh(t, p);
    const bool zero = kGeneral && (w == 0 || ignored);
    T loss = 0;
    if (kOperation != kBackward) {
      loss = e.loss();
      if (kGeneral) loss = zero ? T(0) : O::mul(w, loss);
    }
    if (kOperation == kElementwise) convert(loss, out);
    if (kGradient) {
      T d = e.gradient();
      if (kGeneral) d = O::mul(d, w);
      d = O::mul(d, scale);
      if (kGeneral) d = zero ? T(0) : d;
      convert(d, out);
    }
    return loss;
  }

  // The four rows of a thread from element `begin` of the call on, by wide loads. sums[k][0]: over j of lane k.
  static __device__ __forceinline__ void fast(const Arguments& args, T scale, std::int64_t begin,
                                              CellSums sums, unsigned* n_ignored) {
    double sum[kLanes] = {};
#pragma unroll 1
    for (int j = 0; j < math::kRowsPerGroup; j += kRowsAtOnce) {
      const std::int64_t first = begin + j * math::kRow;
      X x[kRowsAtOnce][kLanes];
      Kept t[kRowsAtOnce][kLanes];
      unsigned ignored = 0;
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        load_wide(args.scores.data + (first + i * math::kRow) * sizeof(X), x[i]);
      }
      TargetType<S>::dispatch(args.target_dtype,
                              LoadTargets<kRowsAtOnce, kLanes, Kept>{
                                  args, first, kGeneral && args.has_ignore_label, t, &ignored});
      X weights[kLanes];
      const char* pos_weights = nullptr;
      int step = 0;
      if (kGeneral) {
        *n_ignored += __popc(ignored);
        if (args.has_weights) load_weights(args, first, weights);
        if (args.pos_weight_per_channel) {
          const Place place = place_of(args.pos_weights, sizeof(T), args.first, first);
          pos_weights = args.pos_weights.data + place.offset;
          step = static_cast<int>(place.step);  // of one value, or 0
        }
      }
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        X out[kLanes];
#pragma unroll
        for (int k = 0; k < kLanes; ++k) {
          T target, p = 1, w = 1;
          convert(t[i][k], &target);
          if (kGeneral) {
            p = Arithmetic<T>::number(args.pos_weight);
            w = Arithmetic<T>::number(args.weight);
            if (args.pos_weight_per_channel)
              p = *reinterpret_cast<const T*>(pos_weights + k * step);
            if (args.has_weights) convert(weights[k], &w);
          }
          const T loss = element(args, scale, x[i][k], target, p, w, ignored >> k & 1, &out[k]);
          if (kSums && !kGeneral) sum[k] = __dadd_rn(sum[k], loss);
          // Here the options need the registers. From +0 on, which changes no sum but one of -0.
          if (kSums && kGeneral) sums[k][0] = __dadd_rn(j == 0 ? 0.0 : sums[k][0], loss);
          // Instructions of one pair do not move to another, which would take more registers than there are.
          if (kGeneral && kLanes == 8 && k % 2 == 1) __syncwarp();
        }
        if (kWrites) store_wide(args.out.data + (first + i * math::kRow) * sizeof(X), out);
      }
    }
    if (kSums && !kGeneral) {
#pragma unroll
      for (int k = 0; k < kLanes; ++k) sums[k][0] = sum[k];
    }
  }

  // The weights of one row, which lies in one run of the array's last axis. Those of 8 bits are exact in any X.
  static __device__ __forceinline__ void load_weights(const Arguments& args, std::int64_t first,
                                                      X (&weights)[kLanes]) {
    const Place place = place_of(args.weights, args.weight_itemsize, args.first, first);
    const char* const data = args.weights.data + place.offset;
    if (args.wide_weights) return load_wide(data, weights);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      convert(load_weight<X, T>(data + k * place.step, args.weight_dtype), &weights[k]);
    }
  }

  // The same one by one: for addresses, strides and ends that wide loads cannot do.
  static __device__ __forceinline__ void slow(const Arguments& args, T scale, std::int64_t begin,
                                              CellSums sums, unsigned* n_ignored) {
#pragma unroll 1
    for (int k = 0; k < kLanes; ++k) {
      double sum = 0;
#pragma unroll 1
      for (int j = 0; j < math::kRowsPerGroup; ++j) {
        const std::int64_t at = begin + j * math::kRow + k;
        if (at >= args.count) break;  // missing elements are +0
        const X x = *reinterpret_cast<const X*>(args.scores.data +
                                                offset<sizeof(X)>(args, args.scores, at));
        T t, p = 1, w = 1;
        bool ignored = false;
        TargetType<S>::dispatch(args.target_dtype, LoadTarget<T>{args, at, &t, &ignored});
        if (kGeneral) {
          *n_ignored += ignored;
          p = Arithmetic<T>::number(args.pos_weight);
          w = Arithmetic<T>::number(args.weight);
          if (args.pos_weight_per_channel) {
            p = *reinterpret_cast<const T*>(args.pos_weights.data +
                                            offset<sizeof(T)>(args, args.pos_weights, at));
          }
          if (args.has_weights) {
            w = load_weight<X, T>(
                args.weights.data +
                    place_of(args.weights, args.weight_itemsize, args.first, at).offset,
                args.weight_dtype);
          }
        }
        X out;
        const T loss = element(args, scale, x, t, p, w, ignored, &out);
        if (kSums) sum = __dadd_rn(sum, loss);
        if (kWrites) {
          *reinterpret_cast<X*>(args.out.data + offset<sizeof(X)>(args, args.out, at)) = out;
        }
      }
      if (kSums) sums[k][0] = sum;
    }
  }

  template <int kItemsize>
  static __device__ __forceinline__ std::int64_t offset(const Arguments& args,
                                                        const DeviceView& view, std::int64_t at) {
    return kGeneral ? place_of(view, kItemsize, args.first, at).offset : at * kItemsize;
  }

  // The elements of this thread in a tile. Sums go to `sums`, one per cell and lane.
  static __device__ __forceinline__ void elements(const Arguments& args, T scale, unsigned tile,
                                                  CellSums sums, unsigned* n_ignored) {
    const std::int64_t start = static_cast<std::int64_t>(tile) * kTile;
    const bool wide = args.vector && start + kTile <= args.count;
#pragma unroll 1
    for (int cell = threadIdx.x; cell < kCells; cell += kThreads) {
      const std::int64_t begin =
          start + cell / kThreadsPerRow * math::kGroup + cell % kThreadsPerRow * kLanes;
      const CellSums own = kSums ? reinterpret_cast<CellSums>(&sums[0][cell]) : nullptr;
      if (wide) {
        fast(args, scale, begin, own, n_ignored);
      } else {
        slow(args, scale, begin, own, n_ignored);
      }
    }
  }

  // The sum of one block, by a warp: the g in order, then the halving. `sums` are those of the block's first cell.
  static __device__ __forceinline__ void reduce(const double (*sums)[kCells + kThreadsPerRow],
                                                std::int64_t* words) {
    constexpr int kGroups = math::kQuarter / math::kGroup;
    const int lane = threadIdx.x % kWarp;
    double acc[math::kAccumulators / kWarp];
#pragma unroll
    for (int i = 0; i < math::kAccumulators / kWarp; ++i) {
      const int a = lane + i * kWarp;  // 16 h + r
      const int h = a / math::kRow;
      const int r = a % math::kRow;
      const double* s = &sums[r % kLanes][h * kGroups * kThreadsPerRow + r / kLanes];
      acc[i] = 0;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) acc[i] = __dadd_rn(acc[i], s[g * kThreadsPerRow]);
    }
    double sum = __dadd_rn(acc[0], acc[1]);
#pragma unroll
    for (int k = kWarp / 2; k > 0; k /= 2) {
      sum = __dadd_rn(sum, __shfl_down_sync(kAllLanes, sum, k));
    }
    if (lane == 0) math::add_block_sum(words, sum);
  }

  static __device__ __forceinline__ void run(const Arguments& args) {
    const T scale = kGradient ? scale_of(args) : T(0);
    if (kSums) return add(args, scale);
    unsigned ignored = 0;
    for (unsigned tile = blockIdx.x; tile < args.tiles; tile += gridDim.x) {
      elements(args, scale, tile, nullptr, &ignored);
    }
  }

  static __device__ __forceinline__ void add(const Arguments& args, T scale) {
    __shared__ Shared shared;
    for (int b = 0; b < kBlocks; ++b) {
      for (int k = threadIdx.x; k < math::kWords; k += kThreads) shared.words[b][k] = 0;
    }
    unsigned ignored = 0;
    int buffer = 0;
    for (unsigned tile = blockIdx.x; tile < args.tiles; tile += gridDim.x) {
      elements(args, scale, tile, shared.sums[buffer], &ignored);
      __syncthreads();
      const int block = threadIdx.x / kWarp;
      if (block < kBlocks) {
        reduce(reinterpret_cast<CellSums>(&shared.sums[buffer][0][block * kThreadsPerBlock]),
               shared.words[block]);
      }
      // What is written next: the other buffer, while a warp that is behind still reads this one, or this one again.
      if (kBuffers == 2) {
        buffer ^= 1;
      } else {
        __syncthreads();
      }
    }
    __syncthreads();
    std::int64_t* const words = shared.words[0];
    if (kGeneral && ignored != 0)
      add_to(&words[math::kWordValid], -static_cast<std::int64_t>(ignored));
    __syncthreads();
    const int k = threadIdx.x;
    std::int64_t word = 0;
    if (k < math::kWords) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) word += shared.words[b][k];
    }
    if (gridDim.x > 1) {
      if (word != 0) add_to(&args.workspace->words[k], word);
      if (!is_last_block(&args.workspace->blocks_done)) return;
      if (k < math::kWords)
        word = __ldcg(reinterpret_cast<const long long*>(&args.workspace->words[k]));
    }
    if (k < math::kWords) words[k] = word;
    __syncthreads();
    finish(args, words);
  }
};

template <class X, class S, int kOperation, bool kGeneral>
__global__ void __launch_bounds__(kThreads, kMinBlocks) pass_kernel(const Arguments args) {
  Pass<X, S, kOperation, kGeneral>::run(args);
}

// ---- How many targets are not ignored ----

// An element-wise pass of S alone. Vector loads where `vector` says so.
template <class S>
__global__ void __launch_bounds__(kThreads, kMinBlocks) valid_targets(const Arguments args) {
  constexpr int kLanes = sizeof(S) < 4 ? 4 : kVectorBytes / sizeof(S);
  __shared__ unsigned long long total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  unsigned long long ignored = 0;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads * kLanes;
  std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kLanes;
#pragma unroll 1
  for (; at < args.count; at += step) {
    if (args.vector && at + kLanes <= args.count) {
      S t[kLanes];
      load_wide(args.targets.data + at * sizeof(S), t);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) ignored += is_ignored(t[k], args);
    } else {
#pragma unroll 1
      for (int k = 0; k < kLanes && at + k < args.count; ++k) {
        ignored += is_ignored(
            *reinterpret_cast<const S*>(
                args.targets.data + place_of(args.targets, sizeof(S), args.first, at + k).offset),
            args);
      }
    }
  }
  if (ignored != 0) atomicAdd(&total, ignored);
  __syncthreads();
  if (threadIdx.x == 0 && total != 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(&args.workspace->ignored), total);
  }
  if (!is_last_block(&args.workspace->count_blocks_done) || threadIdx.x != 0) return;
  const std::int64_t valid =
      args.count - static_cast<std::int64_t>(__ldcg(
                       reinterpret_cast<const unsigned long long*>(&args.workspace->ignored)));
  args.workspace->divisor = valid > 1 ? static_cast<double>(valid) : 1.0;
}

}  // namespace cuda
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CUDA_KERNELS_CUH_
