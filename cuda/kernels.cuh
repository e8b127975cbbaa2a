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
#include "math/semantics.h"
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

// The class of a target: 1, 0, or -1 for what lies between or beyond.
template <class S>
SIGMOID_CE_DEVICE_INLINE int class_of(S t) {
  return t == 1 ? 1 : t == 0 ? 0 : -1;
}
SIGMOID_CE_DEVICE_INLINE int class_of(math::Bool t) { return t.byte != 0 ? 1 : 0; }
SIGMOID_CE_DEVICE_INLINE int class_of(math::Float16 t) {
  float v;
  convert(t, &v);
  return class_of(v);
}
SIGMOID_CE_DEVICE_INLINE int class_of(math::Bfloat16 t) {
  float v;
  convert(t, &v);
  return class_of(v);
}

// By its label, or for being uncertain.
template <class S, class A>
SIGMOID_CE_DEVICE_INLINE bool is_left_out(S t, const A& args) {
  return (args.has_ignore_label && is_ignored(t, args)) ||
         (args.ignores_uncertain && class_of(t) < 0);
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

// n / extent, for n below 2^63.
SIGMOID_CE_DEVICE_INLINE std::uint64_t divided(std::uint64_t n, const Axis& axis) {
  return (__umul64hi(n, axis.magic) + n) >> axis.shift;
}

// Where the element of an index is.
struct Place {
  std::int64_t offset;  // bytes
  std::int64_t step;    // to the next element, within the last axis
};

SIGMOID_CE_DEVICE_INLINE Place place_of(const DeviceView& view, std::int64_t itemsize,
                                        std::int64_t first, std::int64_t index) {
  if (view.n_axes == 0) return {index * itemsize, itemsize};
  Place place = {0, view.axes[view.n_axes - 1].stride};
  std::uint64_t rest = static_cast<std::uint64_t>(first + index);
#pragma unroll 1
  for (int d = view.n_axes - 1; d > 0; --d) {
    const std::uint64_t quotient = divided(rest, view.axes[d]);
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
  double divisor = args.divide_by_foreground ? args.workspace->divisor : args.sum_divisor;
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

// Stand for the integers, and for every type, which is known when the kernel runs.
struct Integer {};
struct Any {};

// Calls `f` with a null pointer of the type of the targets, beside scores of X.
template <class S>
struct TargetType {
  template <class X, class F>
  SIGMOID_CE_DEVICE_INLINE void dispatch(DType, const F& f) {
    f(static_cast<const S*>(nullptr));
  }
};
template <>
struct TargetType<Integer> {
  template <class X, class F>
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
template <>
struct TargetType<Any> {
  template <class X, class F>
  SIGMOID_CE_DEVICE_INLINE void dispatch(DType dtype, const F& f) {
#if !defined(SIGMOID_CE_TARGETS_OF_SCORES_ONLY)
    if (dtype >= DType::kBool && dtype <= DType::kInt64) {
      return TargetType<Integer>::template dispatch<X>(dtype, f);
    }
    if (!std::is_same<X, float>::value && dtype == DType::kFloat32) {
      return f(static_cast<const float*>(nullptr));
    }
#endif
    f(static_cast<const X*>(nullptr));
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
    for (int k = 0; k < kLanes; ++k) *ignored |= is_left_out(t[0][k], args) ? 1u << k : 0u;
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
    *ignored = is_left_out(t, args);
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
template <class X, class S, int kOperation, int kKind>
struct Pass {
  using T = typename ComputeType<X>::Type;
  using O = Ops<T>;
  using Element = math::Element<O>;

  static constexpr bool kOptions = kKind != kPlain;
  static constexpr bool kFinite = std::is_same<S, Integer>::value;
  static constexpr bool kConverts = kFinite || std::is_same<S, Any>::value;
  using Kept = typename std::conditional<kConverts, T, S>::type;
  static constexpr bool kSums =
      kOperation == kForward || kOperation == kForwardBackward || kOperation == kHessian;
  static constexpr bool kGradient =
      kOperation == kBackward || kOperation == kForwardBackward || kOperation == kHessian;
  static constexpr bool kScales = kGradient || kOperation == kTargetBackward;
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
  static constexpr int kRowsAtOnce = rows_at_once(kLanes, kOptions, kSums);
  static constexpr int kAtOnce = elements_at_once(kLanes, kKind);

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

  // The factor on the derivatives, the same for all.
  static __device__ __forceinline__ T scale_of(const Arguments& args) {
    if (args.divisor == nullptr) return Arithmetic<T>::number(args.scale);
    __shared__ T scale;
    if (threadIdx.x == 0) {
      scale = Arithmetic<T>::from_double(__ddiv_rn(args.loss_weight, *args.divisor));
    }
    __syncthreads();
    return scale;
  }

  // The options of one element.
  struct Factors {
    T p, w;                // pos_weight, element weight
    T positive, negative;  // class weights
    bool ignored;
  };

  // Those that are the same for all.
  static __device__ __forceinline__ Factors uniform_factors(const Arguments& args) {
    return {Arithmetic<T>::number(args.pos_weight), Arithmetic<T>::number(args.weight),
            Arithmetic<T>::number(args.class_weight[0]),
            Arithmetic<T>::number(args.class_weight[1]), false};
  }

  // What goes into the outputs.
  struct Written {
    X out, hessian;
  };

  // One element: its loss, and what is written.
  static __device__ __forceinline__ T element(const Arguments& args, T scale, X x, T t,
                                              const Factors& f, Written* written) {
    T score, w = f.w, by_class = 1, negative = O::sub(1, t);
    convert(x, &score);
    bool zero = kOptions && (f.ignored || w == 0);
    if (kOptions && args.has_smoothing) {
      const T factor = Arithmetic<T>::number(args.smoothing_factor);
      const T term = Arithmetic<T>::number(args.smoothing_term);
      t = O::fma(t, factor, term);
      negative = O::fma(negative, factor, term);
    }
    if (kOptions && args.has_class_weights) {
      by_class = O::fma(t, f.positive, O::mul(negative, f.negative));
      if (kOperation != kTargetBackward) w = O::mul(w, by_class);
    }
    zero = zero || (kOptions && kOperation != kTargetBackward && w == 0);
    Element e = Element::template plain<kFinite>(score, t, negative);
    if (kOptions && args.has_pos_weight) e.weigh(t, negative, f.p);
    T loss = 0, d = 0, hessian = 0;
    if (kKind == kFocal && args.has_gamma) {
      const math::Focal<O> focal(e, t, negative, Arithmetic<T>::number(args.gamma));
      if (kOperation != kBackward) loss = focal.loss(e.loss());
      if (kGradient) d = focal.gradient();
      if (kOperation == kHessian) hessian = focal.hessian();
      if (kOperation == kTargetBackward) {
        d = focal.target_gradient(e.target_gradient(pos_weight_of(args, f)), e.loss());
      }
    } else {
      if (kOperation != kBackward) loss = e.loss();
      if (kGradient) d = e.gradient();
      if (kOperation == kHessian) hessian = e.hessian();
      if (kOperation == kTargetBackward) d = e.target_gradient(pos_weight_of(args, f));
    }
    if (kOperation == kTargetBackward) {
      if (args.has_class_weights) {
        const T step = O::sub(f.positive, f.negative);
        d = O::fma(step, O::zero_where_zero(step, loss),
                   O::mul(by_class, O::zero_where_zero(by_class, d)));
      }
      if (args.has_smoothing) d = O::mul(d, Arithmetic<T>::number(args.smoothing_factor));
    } else if (kOptions) {
      loss = zero ? T(0) : O::mul(w, loss);
    }
    if (kOperation == kElementwise) convert(loss, &written->out);
    if (kScales) convert(scaled(d, w, scale, zero), &written->out);
    if (kOperation == kHessian) convert(scaled(hessian, w, scale, zero), &written->hessian);
    return loss;
  }

  static __device__ __forceinline__ T pos_weight_of(const Arguments& args, const Factors& f) {
    return args.has_pos_weight ? f.p : T(1);
  }

  // A derivative with the weight and the factor of all.
  static __device__ __forceinline__ T scaled(T d, T w, T scale, bool zero) {
    if (kOptions) d = O::mul(d, w);
    d = O::mul(d, scale);
    return kOptions && zero ? T(0) : d;
  }

  // Where the options of a row of a thread are, and those of lane k. Bytes from the begin of small arrays, which take fewer
  // registers than addresses.
  struct RowFactors {
    unsigned pos_weight = 0, class_weight = 0;

    __device__ __forceinline__ RowFactors(const Arguments& args, std::int64_t first) {
      if (args.pos_weight_per_channel) {
        pos_weight = offset32(args, args.pos_weights, sizeof(T), first);
      }
      if (args.class_weights_by_group) {
        class_weight = offset32(args, args.class_weights, sizeof(ClassSlot), first);
      }
    }
    static __device__ __forceinline__ unsigned offset32(const Arguments& args,
                                                        const DeviceView& view, int itemsize,
                                                        std::int64_t first) {
      return static_cast<unsigned>(place_of(view, itemsize, args.first, first).offset);
    }
    __device__ __forceinline__ void get(const Arguments& args, int k, Factors* f) const {
      if (args.pos_weight_per_channel) {
        f->p = *reinterpret_cast<const T*>(args.pos_weights.data +
                                           (pos_weight + k * args.pos_weight_step));
      }
      if (args.class_weights_by_group) {
        get_class_weights(args.class_weights.data + (class_weight + k * args.class_weight_step), f);
      }
    }
  };

  static __device__ __forceinline__ void get_class_weights(const char* slot, Factors* f) {
    f->positive = reinterpret_cast<const T*>(slot)[0];
    f->negative = reinterpret_cast<const T*>(slot)[1];
  }

  // The four rows of a thread from element `begin` of the call on, by wide loads. sums[k][0]: over j of lane k.
  static __device__ __forceinline__ void fast(const Arguments& args, T scale, std::int64_t begin,
                                              CellSums sums, unsigned* n_ignored) {
    if (kOptions) return fast_with_options(args, scale, begin, sums, n_ignored);
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
      load_targets(args, first, t, &ignored);
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        X out[kLanes];
#pragma unroll
        for (int k = 0; k < kLanes; ++k) {
          T target;
          convert(t[i][k], &target);
          Written written = Written();
          const T loss = element(args, scale, x[i][k], target, Factors(), &written);
          out[k] = written.out;
          if (kSums) sum[k] = __dadd_rn(sum[k], loss);
        }
        if (kWrites) store_wide(args.out.data + (first + i * math::kRow) * sizeof(X), out);
      }
    }
    if (kSums) {
#pragma unroll
      for (int k = 0; k < kLanes; ++k) sums[k][0] = sum[k];
    }
  }

  // Here the options need the registers, so some elements of a row are computed, and the next ones turn into their place.
  static __device__ __forceinline__ void fast_with_options(const Arguments& args, T scale,
                                                           std::int64_t begin, CellSums sums,
                                                           unsigned* n_ignored) {
#pragma unroll 1
    for (int j = 0; j < math::kRowsPerGroup; ++j) {
      const std::int64_t first = begin + j * math::kRow;
      X x[kLanes], weights[kLanes] = {}, out[kLanes] = {}, hessian[kLanes] = {};
      Kept t[1][kLanes];
      unsigned ignored = 0;
      load_wide(args.scores.data + first * sizeof(X), x);
      load_targets(args, first, t, &ignored);
      *n_ignored += __popc(ignored);
      if (args.has_weights) load_weights(args, first, weights);
      const RowFactors row(args, first);
#pragma unroll 1
      for (int done = 0; done < kLanes; done += kAtOnce) {
        Written written[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int k = done + i;
          T target;
          convert(t[0][i], &target);
          Factors f = uniform_factors(args);
          row.get(args, k, &f);
          if (args.has_weights) convert(weights[i], &f.w);
          f.ignored = ignored >> i & 1;
          written[i] = Written();
          const T loss = element(args, scale, x[i], target, f, &written[i]);
          // From +0 on, which changes no sum but one of -0.
          if (kSums) sums[k][0] = __dadd_rn(j == 0 ? 0.0 : sums[k][0], loss);
        }
        ignored >>= kAtOnce;
        turn(x);
        turn(t[0]);
        turn(weights);
        turn(out);
        turn(hessian);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          out[kLanes - kAtOnce + i] = written[i].out;
          hessian[kLanes - kAtOnce + i] = written[i].hessian;
        }
      }
      if (kWrites) store_wide(args.out.data + first * sizeof(X), out);
      if (kOperation == kHessian) store_wide(args.hessian.data + first * sizeof(X), hessian);
    }
  }

  // The first elements leave, and the last ones are there twice.
  template <class V>
  static __device__ __forceinline__ void turn(V (&values)[kLanes]) {
#pragma unroll
    for (int k = 0; k + kAtOnce < kLanes; ++k) values[k] = values[k + kAtOnce];
  }

  template <int kRows>
  static __device__ __forceinline__ void load_targets(const Arguments& args, std::int64_t first,
                                                      Kept (&t)[kRows][kLanes], unsigned* ignored) {
    const bool find_ignored = kOptions && (args.has_ignore_label || args.ignores_uncertain);
    TargetType<S>::template dispatch<X>(
        args.target_dtype, LoadTargets<kRows, kLanes, Kept>{args, first, find_ignored, t, ignored});
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
        T t;
        bool ignored = false;
        TargetType<S>::template dispatch<X>(args.target_dtype,
                                            LoadTarget<T>{args, at, &t, &ignored});
        Factors f = Factors();
        if (kOptions) {
          f = uniform_factors(args);
          f.ignored = ignored;
          *n_ignored += ignored;
          if (args.pos_weight_per_channel) {
            f.p = *reinterpret_cast<const T*>(args.pos_weights.data +
                                              offset<sizeof(T)>(args, args.pos_weights, at));
          }
          if (args.class_weights_by_group) {
            get_class_weights(
                args.class_weights.data + offset<sizeof(ClassSlot)>(args, args.class_weights, at),
                &f);
          }
          if (args.has_weights) {
            f.w = load_weight<X, T>(
                args.weights.data +
                    place_of(args.weights, args.weight_itemsize, args.first, at).offset,
                args.weight_dtype);
          }
        }
        Written written = Written();
        const T loss = element(args, scale, x, t, f, &written);
        if (kSums) sum = __dadd_rn(sum, loss);
        if (kWrites) {
          *reinterpret_cast<X*>(args.out.data + offset<sizeof(X)>(args, args.out, at)) =
              written.out;
        }
        if (kOperation == kHessian) {
          *reinterpret_cast<X*>(args.hessian.data + offset<sizeof(X)>(args, args.hessian, at)) =
              written.hessian;
        }
      }
      if (kSums) sums[k][0] = sum;
    }
  }

  template <int kItemsize>
  static __device__ __forceinline__ std::int64_t offset(const Arguments& args,
                                                        const DeviceView& view, std::int64_t at) {
    return kOptions ? place_of(view, kItemsize, args.first, at).offset : at * kItemsize;
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
    const T scale = kScales ? scale_of(args) : T(0);
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
    if (kOptions && ignored != 0)
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

template <class X, class S, int kOperation, int kKind>
__global__ void __launch_bounds__(kThreads, min_blocks(sizeof(X), kKind))
    pass_kernel(const Arguments args) {
  Pass<X, S, kOperation, kKind>::run(args);
}

// ---- How many targets there are of each class ----

// The weights of a group go where its counts were, and to the caller.
SIGMOID_CE_DEVICE_INLINE void put_class_weights(const Arguments& args, std::uint64_t group,
                                                const double* weights) {
  if (args.class_slots != nullptr) {
    ClassSlot* const slot = args.class_slots + group;
    if (args.slots_of_float64) {
      reinterpret_cast<double*>(slot)[0] = weights[0];
      reinterpret_cast<double*>(slot)[1] = weights[1];
    } else {
      reinterpret_cast<float*>(slot)[0] = __double2float_rn(weights[0]);
      reinterpret_cast<float*>(slot)[1] = __double2float_rn(weights[1]);
    }
  }
  if (args.class_weights_out != nullptr) {
    args.class_weights_out[2 * group] = weights[0];
    args.class_weights_out[2 * group + 1] = weights[1];
  }
}

// Where nothing is counted for them: those that are given, or the same for all.
SIGMOID_CE_DEVICE_INLINE void class_weights_of_call(const Arguments& args) {
  const std::uint64_t step = static_cast<std::uint64_t>(gridDim.x) * kThreads;
  std::uint64_t group = static_cast<std::uint64_t>(blockIdx.x) * kThreads + threadIdx.x;
#pragma unroll 1
  for (; group < args.weight_count; group += step) {
    double weights[2] = {args.positive_factor, args.negative_factor};
    if (args.given_weights != nullptr) {
      weights[0] = args.given_weights[2 * group];
      weights[1] = args.given_weights[2 * group + 1];
    }
    put_class_weights(args, group, weights);
  }
}

// A pass over the targets alone. A tile of a block of threads lies mostly in one group, or the groups are few, and counted in
// shared memory.
template <class S>
struct Count {
  static constexpr int kLanes = kVectorBytes / sizeof(S);
  static constexpr int kTile = count_tile_of(sizeof(S));
  static constexpr int kFewGroups = 1024;

  struct Shared {
    unsigned counts[kFewGroups][2];  // of a block: fewer than 2^31 elements, by the number of tiles
    unsigned long long totals[3];    // ignored, of class 1, of class 0
  };

  const Arguments& args;
  Shared& shared;
  unsigned long long ignored = 0;

  __device__ __forceinline__ Count(const Arguments& a, Shared& s) : args(a), shared(s) {}

  __device__ __forceinline__ std::uint64_t groups() const { return args.groups.extent; }
  __device__ __forceinline__ bool few() const { return groups() <= kFewGroups; }

  __device__ __forceinline__ ClassSlot* slots() const {
    return args.counts_groups ? args.class_slots : &args.workspace->all;
  }

  // `packed`: of class 1 in the upper 16 bits, of class 0 in the lower ones.
  __device__ __forceinline__ void add(std::uint64_t group, unsigned packed) const {
    const unsigned n[2] = {packed >> 16, packed & 0xffffu};
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (n[k] == 0) continue;
      if (few()) {
        atomicAdd(&shared.counts[group][k], n[k]);
      } else {
        add_count(group, k, n[k]);
      }
    }
  }

  __device__ __forceinline__ void add_count(std::uint64_t group, int k, unsigned n) const {
    atomicAdd(reinterpret_cast<unsigned long long*>(&slots()[group].counts[k]),
              static_cast<unsigned long long>(n));
  }

  __device__ __forceinline__ std::uint64_t group_of(std::uint64_t run) const {
    return run - divided(run, args.groups) * args.groups.extent;
  }

  __device__ __forceinline__ unsigned classify(S t) {
    if (args.has_ignore_label && is_ignored(t, args)) {
      ++ignored;
      return 0;
    }
    const int c = class_of(t);
    return c > 0 ? 1u << 16 : c == 0 ? 1u : 0u;
  }

  // Element `at` of the call, wherever it is.
  __device__ __forceinline__ S load(std::int64_t at) const {
    return *reinterpret_cast<const S*>(args.targets.data +
                                       place_of(args.targets, sizeof(S), args.first, at).offset);
  }

  __device__ __forceinline__ void tile(std::int64_t begin) {
    const std::int64_t end = begin + kTile < args.count ? begin + kTile : args.count;
    const std::uint64_t index = static_cast<std::uint64_t>(args.first + begin);
    const std::uint64_t run = divided(index, args.group_length);
    const std::uint64_t last = static_cast<std::uint64_t>(args.first + end - 1);
    if (divided(last, args.group_length) != run) return several_groups(begin, end);
    unsigned packed = 0;
#pragma unroll 1
    for (std::int64_t at = begin + threadIdx.x * kLanes; at < end; at += kThreads * kLanes) {
      if (args.vector_targets && at + kLanes <= end) {
        S t[kLanes];
        load_wide(args.targets.data + at * sizeof(S), t);
#pragma unroll
        for (int k = 0; k < kLanes; ++k) packed += classify(t[k]);
      } else {
#pragma unroll 1
        for (int k = 0; k < kLanes && at + k < end; ++k) packed += classify(load(at + k));
      }
    }
    // At most kTile / 8 in a warp.
#pragma unroll
    for (int k = kWarp / 2; k > 0; k /= 2) packed += __shfl_down_sync(kAllLanes, packed, k);
    if (threadIdx.x % kWarp == 0) add(group_of(run), packed);
  }

  __device__ __forceinline__ void several_groups(std::int64_t begin, std::int64_t end) {
#pragma unroll 1
    for (std::int64_t at = begin + threadIdx.x * kLanes; at < end; at += kThreads * kLanes) {
      const std::uint64_t index = static_cast<std::uint64_t>(args.first + at);
      const std::uint64_t run = divided(index, args.group_length);
      std::uint64_t group = group_of(run);
      std::uint64_t left = args.group_length.extent - (index - run * args.group_length.extent);
      unsigned packed = 0;
#pragma unroll 1
      for (int k = 0; k < kLanes && at + k < end; ++k) {
        if (left == 0) {
          add(group, packed);
          packed = 0;
          left = args.group_length.extent;
          group = group + 1 == groups() ? 0 : group + 1;
        }
        --left;
        packed += classify(load(at + k));
      }
      add(group, packed);
    }
  }

  __device__ __forceinline__ void run() {
    const unsigned used = few() ? static_cast<unsigned>(groups()) : 0u;
    for (unsigned i = threadIdx.x; i < used; i += kThreads) {
      shared.counts[i][0] = shared.counts[i][1] = 0;
    }
    if (threadIdx.x < 3) shared.totals[threadIdx.x] = 0;
    __syncthreads();
    const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kTile;
#pragma unroll 1
    for (std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kTile; at < args.count;
         at += step) {
      tile(at);
    }
    if (ignored != 0) atomicAdd(&shared.totals[0], ignored);
    __syncthreads();
    for (unsigned i = threadIdx.x; i < used; i += kThreads) {
      for (int k = 0; k < 2; ++k) {
        if (shared.counts[i][k] != 0) add_count(i, k, shared.counts[i][k]);
      }
    }
    if (threadIdx.x == 0 && shared.totals[0] != 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(&args.workspace->ignored), shared.totals[0]);
    }
    if (is_last_block(&args.workspace->count_blocks_done)) finish();
  }

  // The weights of all groups, and the divisor.
  __device__ __forceinline__ void finish() {
    unsigned long long sums[2] = {};
#pragma unroll 1
    for (std::uint64_t group = threadIdx.x; group < groups(); group += kThreads) {
      unsigned long long n[2];
      for (int k = 0; k < 2; ++k) {
        n[k] = __ldcg(reinterpret_cast<const unsigned long long*>(&slots()[group].counts[k]));
        sums[k] += n[k];
      }
      if (!args.counts_groups) continue;
      double weights[2];
      math::class_weights(args.balance, args.positive_factor, args.negative_factor,
                          static_cast<std::int64_t>(n[0]), static_cast<std::int64_t>(n[1]),
                          weights);
      put_class_weights(args, group, weights);
    }
    for (int k = 0; k < 2; ++k) {
      if (sums[k] != 0) atomicAdd(&shared.totals[1 + k], sums[k]);
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    std::int64_t n = static_cast<std::int64_t>(shared.totals[1]);
    if (!args.counts_foreground && args.ignores_uncertain) {
      n += static_cast<std::int64_t>(shared.totals[2]);
    } else if (!args.counts_foreground) {
      n = args.count - static_cast<std::int64_t>(__ldcg(
                           reinterpret_cast<const unsigned long long*>(&args.workspace->ignored)));
    }
    args.workspace->divisor = n > 1 ? static_cast<double>(n) : 1.0;
  }
};

template <class S>
__global__ void __launch_bounds__(kThreads, kMinBlocks) count_targets(const Arguments args) {
  __shared__ typename Count<S>::Shared shared;
  Count<S>(args, shared).run();
}

}  // namespace cuda
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CUDA_KERNELS_CUH_
