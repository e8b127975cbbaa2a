// sigmoid_ce 0.1.0, made from its sources by tools/make_overlay.py.
// (c) 2026, the sigmoid_ce developers. BSD 2-Clause License.
#define SIGMOID_CE_TARGETS_OF_SCORES_ONLY

// NOLINT_NEXT_LINE(build/include_order)
#include <cuda_runtime.h>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "caffe/util/sigmoid_ce.hpp"

#if defined(__clang__)
#pragma clang diagnostic ignored "-Wunused-const-variable"
#endif
#if defined(__NVCC_DIAG_PRAGMA_SUPPORT__)
#pragma nv_diag_suppress 177
#elif defined(__CUDACC__)
#pragma diag_suppress 177
#endif

// The table of the kernels for one type of scores.

// The kernels. A block of threads goes through tiles of one or two blocks of
// math/block_sum.h, in the order that the header lays down: a thread has the
// four rows of a group for as many r as it loads at once, so its sums over j
// need no other thread; those over g go through shared memory.

// What a kernel gets, and the tables through which launch.cu finds it. No CUDA
// in here.

// Exact addition of doubles: the fixed-point number behind Partial, value = sum
// of limb[k] 2^(32 k - 1088).
//
// Limbs are 64-bit integers that hold 32 bits each, so that 2^30 values can be
// added before a carry has to be passed on, and integer addition, in any order
// and on any device, merges two numbers.

// What the kernels ask of the compiler.

#if defined(__FAST_MATH__) || \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "sigmoid_ce: compile without -ffast-math, which changes results"
#endif

#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && \
    __FLT_EVAL_METHOD__ != 16
// On 32-bit x86: -mfpmath=sse.
#error "sigmoid_ce: float and double must have their own precision"
#endif

#if defined(__CUDA_FTZ) || defined(__USE_FAST_MATH__)
#error \
    "sigmoid_ce: compile without -use_fast_math and -ftz=true: results change"
#endif

// Everything between the entry points of a kernel is inlined, so that no
// function compiled for one instruction set can be picked by the linker for
// another. In CUDA sources these are functions of the device, and those marked
// with SIGMOID_CE_BOTH of the host too.
#if defined(__CUDACC__)
#define SIGMOID_CE_INLINE __device__ inline __attribute__((always_inline))
#define SIGMOID_CE_BOTH __host__ __device__ inline
#else
#define SIGMOID_CE_INLINE inline __attribute__((always_inline))
#define SIGMOID_CE_BOTH inline
#endif

// A product that must be rounded before it is added: hides it from the
// optimiser, since GCC fuses mul and add into fma by default wherever the
// instruction exists, intrinsics included. Costs no instruction.
#if defined(__x86_64__) || defined(__i386__)
#define SIGMOID_CE_KEEP_ROUNDED(v) __asm__("" : "+x"(v))
#elif defined(__aarch64__)
#define SIGMOID_CE_KEEP_ROUNDED(v) __asm__("" : "+w"(v))
#else
#define SIGMOID_CE_KEEP_ROUNDED(v) __asm__("" : "+m"(v))
#endif

namespace sigmoid_ce {
namespace math {

constexpr int kLimbs = 68;
constexpr int kLimbBias =
    1088;  // limb[0] counts units of 2^-1088; a double's lowest bit is 2^-1074

// The words of a Partial: its limbs, then counts.
enum Word {
  kWordNan = kLimbs,
  kWordPosInf,
  kWordNegInf,
  kWordValid,
  kWordTotal,
  kWords
};

constexpr std::uint64_t kSignBit = std::uint64_t(1) << 63;
constexpr std::uint64_t kInfinityBits = std::uint64_t(0x7ff) << 52;
constexpr std::uint64_t kNanBits = std::uint64_t(0xfff) << 51;

SIGMOID_CE_BOTH double from_bits(std::uint64_t bits) {
  double value;
// NOLINT_NEXT_LINE(caffe/alt_fn)
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Adds a finite value, given as its bits.
SIGMOID_CE_BOTH void exact_add(std::int64_t* limb, std::uint64_t bits) {
  const int exponent = static_cast<int>(bits >> 52) & 0x7ff;
  std::uint64_t mantissa = bits & ((std::uint64_t(1) << 52) - 1);
  if (exponent != 0) mantissa |= std::uint64_t(1) << 52;
  // value = +- mantissa * 2^(e - 1075), e = max(exponent, 1)
  const int shift =
      (exponent != 0 ? exponent : 1) - 1075 + kLimbBias;  // 14 .. 2059
  const int k = shift / 32;
  const int s = shift % 32;
  // 53 + 31 bits over three limbs.
  const std::uint64_t low = (mantissa << s) & 0xffffffffu;
  const std::uint64_t middle = (mantissa >> (32 - s)) & 0xffffffffu;
  const std::uint64_t high = s ? mantissa >> (64 - s) : 0;
  if (bits & kSignBit) {
    limb[k] -= static_cast<std::int64_t>(low);
    limb[k + 1] -= static_cast<std::int64_t>(middle);
    limb[k + 2] -= static_cast<std::int64_t>(high);
  } else {
    limb[k] += static_cast<std::int64_t>(low);
    limb[k + 1] += static_cast<std::int64_t>(middle);
    limb[k + 2] += static_cast<std::int64_t>(high);
  }
}

// Adds the sum of a block, which need not be finite, to the words of a Partial.
SIGMOID_CE_BOTH void add_block_sum(std::int64_t* words, double sum) {
  std::uint64_t bits;
// NOLINT_NEXT_LINE(caffe/alt_fn)
  memcpy(&bits, &sum, sizeof bits);
  const std::uint64_t magnitude = bits & ~kSignBit;
  if (magnitude < kInfinityBits) {
    exact_add(words, bits);
  } else if (magnitude > kInfinityBits) {
    ++words[kWordNan];
  } else {
    ++words[bits == magnitude ? kWordPosInf : kWordNegInf];
  }
}

// Carries: every limb but the last into [0, 2^32); the last keeps the sign.
inline void exact_normalize(std::int64_t* limb) {
  std::int64_t carry = 0;
  for (int k = 0; k < kLimbs - 1; ++k) {
    const std::int64_t v = limb[k] + carry;
    carry = v >> 32;  // floor
    limb[k] = v & 0xffffffff;
  }
  limb[kLimbs - 1] += carry;
}

// Digit k of the magnitude of normalised limbs, of which `lowest` is the first
// that is not 0. That of a negative number is its complement.
SIGMOID_CE_BOTH std::uint64_t exact_digit(const std::int64_t* limb, int lowest,
                                          int k) {
  const std::uint64_t v = static_cast<std::uint64_t>(limb[k]);
  if (limb[kLimbs - 1] >= 0 || k < lowest) return v;
  const std::uint64_t complement = (k == lowest ? 0 : ~std::uint64_t(0)) - v;
  return k == kLimbs - 1 ? complement : complement & 0xffffffffu;
}

// The value of normalised limbs, rounded once to nearest, ties to even;
// overflow gives infinity. `lowest` and `top` are the first and the last of
// their digits that are not 0, or kLimbs and -1.
SIGMOID_CE_BOTH double exact_round(const std::int64_t* limb, int lowest,
                                   int top) {
  if (top < 0) return 0.0;
  const std::uint64_t sign = limb[kLimbs - 1] < 0 ? kSignBit : 0;
  const std::uint64_t top_digit = exact_digit(limb, lowest, top);
  int width = 0;  // bits of the top digit; the last one may exceed 32
  while (width < 64 && (top_digit >> width) != 0) ++width;
  // Position of the leading bit and of the lowest bit that the result keeps, in
  // units of 2^-1088.
  const int lead = 32 * top + width - 1;
  if (lead >= kLimbBias + 1024)
    return from_bits(kInfinityBits | sign);  // so that top < kLimbs - 2
  const int lowest_double = kLimbBias - 1074;
  const int last = lead - 52 > lowest_double ? lead - 52 : lowest_double;

  // Bits [last, lead] as an integer, out of three digits, the bit below for
  // rounding, and whether anything is below that.
  const int k = last / 32;
  const int s = last % 32;
  std::uint64_t mantissa = exact_digit(limb, lowest, k) >> s;
  mantissa |= exact_digit(limb, lowest, k + 1) << (32 - s);
  if (s > 0) mantissa |= exact_digit(limb, lowest, k + 2) << (64 - s);
  const int half = last - 1;  // >= 13
  const std::uint64_t below = exact_digit(limb, lowest, half / 32);
  const bool half_set = (below >> (half % 32)) & 1;
  const bool sticky = (below & ((std::uint64_t(1) << (half % 32)) - 1)) != 0 ||
                      lowest < half / 32;
  if (half_set && (sticky || (mantissa & 1))) ++mantissa;

  // mantissa * 2^(last - 1088): built from its fields, since 2^53 carries into
  // the exponent by itself.
  if (mantissa >> 52 == 0)
    return from_bits(mantissa | sign);  // subnormal, last == lowest_double
  const std::uint64_t exponent =
      static_cast<std::uint64_t>(last - lowest_double + 1);
  // The implicit bit adds 1 to the exponent, a carry 1 more.
  return from_bits((((exponent - 1) << 52) + mantissa) | sign);
}

// The sum that the words of a Partial mean, given that of its limbs.
SIGMOID_CE_BOTH double sum_of_words(const std::int64_t* words, double finite) {
  const bool positive = words[kWordPosInf] > 0;
  const bool negative = words[kWordNegInf] > 0;
  if (words[kWordNan] > 0 || (positive && negative)) return from_bits(kNanBits);
  if (positive) return from_bits(kInfinityBits);
  if (negative) return from_bits(kInfinityBits | kSignBit);
  return finite;
}

}  // namespace math
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace cuda {

enum Operation {
  kForward,
  kElementwise,
  kBackward,
  kForwardBackward,
  kOperations
};

// Types of targets beside the scores' own.
enum Target {
  kTargetScores,
  kTargetFloat32,  // with scores of another type
  kTargetInteger,
  kTargets
};

// An axis of an array. An index below 2^63 is divided by its extent as (high 64
// bits of n * magic, plus n) >> shift (Granlund and Montgomery, Division by
// invariant integers using multiplication, 1994).
struct Axis {
  std::uint64_t extent;
  std::uint64_t magic;
  std::int64_t stride;  // bytes
  int shift;
};

constexpr int kMaxAxes = 8;

// An array in device memory. `data` is the element of index 0 of the call where
// the array is contiguous, else that of the whole shape.
struct DeviceView {
  char* data;
  int n_axes;  // 0: contiguous
  Axis axes[kMaxAxes];
};

// A number in both types, so that float32 kernels need not convert.
struct Number {
  double f64;
  float f32;

  Number() : f64(0), f32(0) {}
  explicit Number(double v) : f64(v), f32(static_cast<float>(v)) {}
};

// In device memory; the caller's. Zero before a pass of several blocks that
// adds to it.
struct Workspace {
  std::int64_t words[math::kWords];  // a Partial, not normalised
  std::uint64_t ignored;             // of the pass that counts
  std::uint32_t blocks_done;
  std::uint32_t count_blocks_done;
  double divisor;  // max(1, number of elements that are not ignored)
};

struct Arguments {
  DeviceView scores, targets, out;
  std::int64_t first;  // index of the first element in the whole shape
  std::int64_t count;  // elements of the call
  unsigned tiles;      // pieces of work of the kernel
  bool vector;  // every array fits wide loads, wherever a tile has all its
                // elements
  DType target_dtype;

  // Factor on the gradient: `scale`, or loss_weight / *divisor.
  Number scale;
  double loss_weight;
  const double* divisor;

  // General kernels only.
  bool has_pos_weight;
  bool pos_weight_per_channel;  // else `pos_weight`
  Number pos_weight;
  DeviceView pos_weights;  // of the type that is computed in
  bool has_weights;        // else `weight`
  bool wide_weights;       // of the scores' type, and side by side
  Number weight;
  DType weight_dtype;
  int weight_itemsize;
  DeviceView weights;
  bool has_ignore_label;
  Number ignore_low,
      ignore_high;            // float targets: ignored when low <= t <= high
  std::int64_t ignore_label;  // integer targets

  // Results of the passes that add: device memory, or null.
  Workspace* workspace;
  void* loss;
  bool loss_is_float64;
  double* loss_divisor;
  std::int64_t* partial;
  bool divide_by_valid;  // by max(1, number of elements not ignored), else by:
  double sum_divisor;
};

// The kernels for one type of scores: addresses to launch, of functions that
// take one Arguments.
struct KernelTable {
  const void* run[kTargets][kOperations][2];
};

const KernelTable* float16_kernels();
const KernelTable* bfloat16_kernels();
const KernelTable* float32_kernels();
const KernelTable* float64_kernels();
// By DType, of functions that take one Arguments; null where there is none.
const void* valid_kernel(DType targets);

}  // namespace cuda
}  // namespace sigmoid_ce

// The order in which the losses of a block are added, which decides the bits of
// the result.
//
// A block is 4096 consecutive elements, position 1024 h + 64 g + 16 j + r (h <
// 4, g < 16, j < 4, r < 16). In float64:
//
//   S[h][g][r]      = ((l0 + l1) + l2) + l3     over j
//   acc[16 h + r]   = sum of S over g in order, from +0
//   then the 64 acc are halved: acc[i] += acc[i + k] for k = 32, 16, 8, 4, 2, 1
//
// Missing elements are +0. Vectors of 1 to 16 lanes add in this order without
// moving data between lanes, and go through memory in order: a group of 64
// elements at a time, with 16 accumulators in registers. A GPU block has 64 of
// them to add side by side. Blocks are added exactly: exact_sum.h.

namespace sigmoid_ce {
namespace math {

constexpr int kRow = 16;           // r
constexpr int kRowsPerGroup = 4;   // j
constexpr int kGroup = 64;         // kRow * kRowsPerGroup
constexpr int kQuarter = 1024;     // 16 groups: what shares accumulators
constexpr int kBlock = 4096;       // 4 quarters
constexpr int kAccumulators = 64;  // kRow per quarter

// The last step. O only keeps the instantiations of different instruction sets
// apart.
template <class O>
SIGMOID_CE_INLINE double halve(double (&acc)[kAccumulators]) {
  for (int k = kAccumulators / 2; k > 0; k /= 2) {
    for (int i = 0; i < k; ++i) acc[i] += acc[i + k];
  }
  return acc[0];
}

}  // namespace math
}  // namespace sigmoid_ce

// The formula: loss and gradient of one element (docs/numerics.md has the
// derivation).
//
// Score x, target t, pos_weight p, element weight w; every name as in
// docs/numerics.md:
//
//   a = |x|       z = exp(-a)       m = log1p(z)       q = z / (1 + z) =
//   sigmoid(-a) u = x >= 0 ? 1 - t : p t        c = 1, or (1 - t) + p t with
//   pos_weight loss = w (a u + c m)            gradient = w (x >= 0 ? u - c q :
//   c q - u)
//
// which is w (p t softplus(-x) + (1 - t) softplus(x)) without a cancellation.
//
//   shapes, dtypes   lanes of float or double, O::T
//   valid range      every x; t finite; p finite and >= 0; every w
//   max error        t in {0, 1}, p = w = 1: 2 ulp. Otherwise see
//   docs/numerics.md special values   any of x, t NaN or t infinite: NaN. a u =
//   +0 where u = 0, so x = +-inf gives +-inf or 0
//
// The sign of x is its sign bit: x = -0 takes the negative branch, whose exact
// values are the same.

// exp(-a) for a >= 0 and log1p(z) for z in [0, 1], for any vector type.
//
// An Ops type O supplies the arithmetic (cpp/cpu/ops_*.h): O::T is float or
// double, O::V one or more lanes of it. Every step is one IEEE operation, so
// all Ops give the same bits.
//
//                 valid range        max error   special values
//   exp_neg(a)    [0, inf], NaN      0.9 ulp     inf -> +0, NaN -> NaN;
//   subnormals right log1p_01(z)   [0, 1], NaN        0.9 ulp     0 -> 0, NaN
//   -> NaN
//
// Constants: tools/fit_polynomials.py prints them, with the error of each fit.

namespace sigmoid_ce {
namespace math {

// c0 + x (c1 + x (c2 + ...)), one fma per step.
template <class O>
SIGMOID_CE_INLINE typename O::V horner(typename O::V, typename O::T c) {
  return O::set(c);
}
template <class O, class... Rest>
SIGMOID_CE_INLINE typename O::V horner(typename O::V x, typename O::T c0,
                                       typename O::T c1, Rest... rest) {
  return O::fma(horner<O>(x, c1, rest...), x, O::set(c0));
}

template <class T>
struct ExpLog1p;

template <>
struct ExpLog1p<float> {
  // exp(-105) < 2^-150, half the smallest subnormal: from here on the result
  // rounds to 0.
  static constexpr float kExpLimit = 105.0f;
  static constexpr float kLog2e = 1.442695f;
  // Adding 1.5 * 2^23 rounds to an integer N and leaves it in the low bits. The
  // -kBias makes the low bits N - kBias: 2^(kBias - N) is then a normal number
  // for every N in [0, 152].
  static constexpr int kBias = 64;
  static constexpr float kRound = 1.2582912e+07f - kBias;
  static constexpr float kUnbias = 5.421011e-20f;
  // ln 2 in two parts: N * kLn2Hi is exact (15 bits, N < 2^8), so a - N *
  // kLn2Hi is exact too.
  static constexpr float kLn2Hi = 0.69314575f;
  static constexpr float kLn2Lo = 1.4286068e-06f;

  // E with exp(-r) = 1 + r E(r), |r| <= ln(2)/2: relative error 2^-28.0
  template <class O>
  static SIGMOID_CE_INLINE typename O::V exp_polynomial(typename O::V r) {
    return horner<O>(r, -1.0f, 0.49999988f, -0.16666518f, 0.04166965f,
                     -0.008368947f, 0.0013745326f);
  }
  // L with log1p(z) = z + z L(z - 1/2), 0 <= z <= 1: relative error 2^-27.0
  template <class O>
  static SIGMOID_CE_INLINE typename O::V log_polynomial(typename O::V v) {
    return horner<O>(v, -0.18906978f, -0.2885271f, 0.13260889f, -0.06768819f,
                     0.036637034f, -0.020563211f, 0.011568095f, -0.0067877984f,
                     0.005267309f, -0.0031765092f);
  }
};

template <>
struct ExpLog1p<double> {
  static constexpr double kExpLimit = 746.0;  // exp(-746) < 2^-1075
  static constexpr double kLog2e = 1.4426950408889634;
  static constexpr int kBias = 512;  // N in [0, 1077]
  static constexpr double kRound = 6755399441055744.0 - kBias;
  static constexpr double kUnbias = 7.458340731200207e-155;
  static constexpr double kLn2Hi = 0.6931471805582987;  // 36 bits, N < 2^11
  static constexpr double kLn2Lo = 1.6465949582897082e-12;

  template <class O>  // relative error 2^-57.7
  static SIGMOID_CE_INLINE typename O::V exp_polynomial(typename O::V r) {
    return horner<O>(r, -1.0, 0.5000000000000012, -0.16666666666666471,
                     0.04166666666651975, -0.008333333333458665,
                     0.0013888888945921057, -0.00019841269581196487,
                     2.4801491030993337e-05, -2.755752164644174e-06,
                     2.763090755114223e-07, -2.5020074850572813e-08);
  }
  template <class O>  // relative error 2^-56.0
  static SIGMOID_CE_INLINE typename O::V log_polynomial(typename O::V v) {
    return horner<O>(
        v, -0.18906978378367123, -0.2885270990993239, 0.13260975375420211,
        -0.06768864331096505, 0.036611854523182094, -0.020548811919081696,
        0.01183379211018376, -0.006945394975980343, 0.004136179082569997,
        -0.0024918411803596025, 0.0015153836556083353, -0.0009288575551460796,
        0.0005730562824454988, -0.00035481979441492103, 0.00022113224433550896,
        -0.00014210230835083978, 8.951903417022319e-05, -4.4824268189796884e-05,
        2.7952027808534836e-05, -3.836562023664898e-05, 2.4683225237993178e-05);
  }
};

template <class O>
SIGMOID_CE_INLINE typename O::V exp_neg(typename O::V a) {
  using V = typename O::V;
  using C = ExpLog1p<typename O::T>;
  const V b = O::min_or_nan(a, O::set(C::kExpLimit));
  const V n = O::fma(b, O::set(C::kLog2e), O::set(C::kRound));  // N + kRound
  const V k = O::sub(O::set(C::kRound), n);                     // -N
  const V r = O::fma(k, O::set(C::kLn2Lo), O::fma(k, O::set(C::kLn2Hi), b));
  const V p = O::fma(r, C::template exp_polynomial<O>(r), O::set(1));
  return O::scale(p, n, k);  // times 2^-N, rounded once
}

// Centred at 1/2, so that the powers are small and L, at most 0.31 in size, is
// rounded once before it is used: that error is what decides the accuracy of
// the loss near x = 0.
template <class O>
SIGMOID_CE_INLINE typename O::V log1p_01(typename O::V z) {
  using C = ExpLog1p<typename O::T>;
  return O::fma(z, C::template log_polynomial<O>(O::sub(z, O::set(0.5f))), z);
}

}  // namespace math
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace math {

template <class O>
struct Element {
  using V = typename O::V;

  V x, a, z, u, c;

  // pos_weight off. kFinite: t came from an integer.
  template <bool kFinite>
  static SIGMOID_CE_INLINE Element plain(V x, V t) {
    Element e;
    e.x = x;
    e.a = O::abs(x);
    e.z = exp_neg<O>(e.a);
    // 0 * t is NaN for an infinite t, which the formula would let pass.
    if (!kFinite) e.z = O::fma(t, O::set(0), e.z);
    e.u = O::by_sign(x, t, O::sub(O::set(1), t));
    e.c = O::set(1);
    return e;
  }

  // pos_weight p. An infinite t makes c NaN.
  static SIGMOID_CE_INLINE Element weighted(V x, V t, V p) {
    Element e;
    e.x = x;
    e.a = O::abs(x);
    e.z = exp_neg<O>(e.a);
    e.weigh(t, p);
    return e;
  }

  // An element that was plain gets the pos_weight p.
  SIGMOID_CE_INLINE void weigh(V t, V p) {
    const V negative = O::sub(O::set(1), t);
    u = O::by_sign(x, O::mul(p, t), negative);
    c = O::fma(p, t, negative);
  }

  // w left out.
  SIGMOID_CE_INLINE V loss() const {
    return O::fma(O::zero_where_zero(u, a), u, O::mul(c, log1p_01<O>(z)));
  }

  SIGMOID_CE_INLINE V gradient() const {
    // z / (1 + z) by itself misses 2 ulp, since 1 + z is rounded. z - z * that
    // has the rounding times z.
    const V q = O::fnma(z, O::div(z, O::add(O::set(1), z)), z);
    return O::flip_sign(O::fnma(c, q, u), x);
  }
};

}  // namespace math
}  // namespace sigmoid_ce

// float16 and bfloat16: types of storage. Arithmetic is in float32, and a
// result is rounded once.

namespace sigmoid_ce {
namespace math {

struct Float16 {
  std::uint16_t bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};

SIGMOID_CE_BOTH float float_of_bits(std::uint32_t bits) {
  float value;
// NOLINT_NEXT_LINE(caffe/alt_fn)
  memcpy(&value, &bits, sizeof value);
  return value;
}
SIGMOID_CE_BOTH std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
// NOLINT_NEXT_LINE(caffe/alt_fn)
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Exact.
SIGMOID_CE_BOTH float widen(Bfloat16 v) {
  return float_of_bits(std::uint32_t(v.bits) << 16);
}
SIGMOID_CE_BOTH float widen(Float16 v) {
  const std::uint32_t sign = std::uint32_t(v.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00u)
    return float_of_bits(sign | 0x7f800000u | (magnitude << 13));
  // The exponents' biases are 112 apart, and subnormals become normal: a
  // product does both.
  const float scaled =
      float_of_bits(magnitude << 13) * 5.192296858534828e33f;  // 2^112
  return float_of_bits(bits_of_float(scaled) | sign);
}

// To nearest, ties to even; beyond the largest number infinity.
SIGMOID_CE_BOTH void narrow(float value, Bfloat16* result) {
  const std::uint32_t bits = bits_of_float(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  result->bits =
      static_cast<std::uint16_t>(nan ? (bits >> 16) | 0x40u : rounded);
}
SIGMOID_CE_BOTH void narrow(float value, Float16* result) {
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x47800000u) {  // 2^16
    half = 0x7c00u;
  } else if (magnitude <
             0x38800000u) {  // 2^-14: adding 1/2 leaves units of 2^-24, the
                             // subnormals', in the low bits
    half = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1)) >> 13;
  }
  result->bits = static_cast<std::uint16_t>(sign | half);
}

}  // namespace math
}  // namespace sigmoid_ce

// The type tag of boolean targets: a byte of which any value but 0 is true.

namespace sigmoid_ce {
namespace math {

struct Bool {
  std::uint8_t byte;
};

}  // namespace math
}  // namespace sigmoid_ce

// Ops on one element of a CUDA thread, for cpp/math/element.h. Every operation
// is an intrinsic that rounds to nearest and that the compiler never contracts,
// so that no flag changes the bits.

// z / d for 0 <= z <= 1 and d = fl(1 + z), rounded as IEEE division rounds it:
// Newton's iteration for 1 / d and one correction of the quotient by its exact
// remainder (Markstein, Computation of elementary functions on the IBM RISC
// System/6000, 1990). The general division guards against remainders that
// underflow; here there is none, since d = 1 for z <= 2^-24.
// tests/native/division.cpp tries every z, with every error that the
// approximation may have.

namespace sigmoid_ce {
namespace cuda {

// `approximate`: 1 / d within 2 ulp.
SIGMOID_CE_BOTH float divide(float z, float d, float approximate) {
  const float error = fmaf(-d, approximate, 1.0f);
  const float reciprocal = fmaf(approximate, error, approximate);
  const float quotient = z * reciprocal;
  const float remainder = fmaf(-d, quotient, z);
  return fmaf(remainder, reciprocal, quotient);
}

}  // namespace cuda
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace cuda {

#define SIGMOID_CE_DEVICE_INLINE static __device__ __forceinline__

template <class Real>
struct Arithmetic;

template <>
struct Arithmetic<float> {
  using Bits = std::uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr Bits kOne = Bits(127) << kMantissa;
  SIGMOID_CE_DEVICE_INLINE Bits bits(float v) { return __float_as_uint(v); }
  SIGMOID_CE_DEVICE_INLINE float from_bits(Bits b) {
    return __uint_as_float(b);
  }
  SIGMOID_CE_DEVICE_INLINE float add(float a, float b) {
    return __fadd_rn(a, b);
  }
  SIGMOID_CE_DEVICE_INLINE float mul(float a, float b) {
    return __fmul_rn(a, b);
  }
  // b = fl(1 + a).
  SIGMOID_CE_DEVICE_INLINE float div(float a, float b) {
#if defined(__CUDA_ARCH__)
    float approximate;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(approximate) : "f"(b));
    return divide(a, b, approximate);
#else
    return a / b;
#endif
  }
  SIGMOID_CE_DEVICE_INLINE float fma(float a, float b, float c) {
    return __fmaf_rn(a, b, c);
  }
  SIGMOID_CE_DEVICE_INLINE float from_int(int v) { return __int2float_rn(v); }
  SIGMOID_CE_DEVICE_INLINE float from_double(double v) {
    return __double2float_rn(v);
  }
  SIGMOID_CE_DEVICE_INLINE float number(const Number& v) { return v.f32; }
};

template <>
struct Arithmetic<double> {
// NOLINT_NEXT_LINE(runtime/int)
  using Bits = unsigned long long;
  static constexpr int kMantissa = 52;
  static constexpr Bits kOne = Bits(1023) << kMantissa;
  SIGMOID_CE_DEVICE_INLINE Bits bits(double v) {
    return static_cast<Bits>(__double_as_longlong(v));
  }
  SIGMOID_CE_DEVICE_INLINE double from_bits(Bits b) {
// NOLINT_NEXT_LINE(runtime/int)
    return __longlong_as_double(static_cast<long long>(b));
  }
  SIGMOID_CE_DEVICE_INLINE double add(double a, double b) {
    return __dadd_rn(a, b);
  }
  SIGMOID_CE_DEVICE_INLINE double mul(double a, double b) {
    return __dmul_rn(a, b);
  }
  SIGMOID_CE_DEVICE_INLINE double div(double a, double b) {
    return __ddiv_rn(a, b);
  }
  SIGMOID_CE_DEVICE_INLINE double fma(double a, double b, double c) {
    return __fma_rn(a, b, c);
  }
  SIGMOID_CE_DEVICE_INLINE double from_int(int v) { return __int2double_rn(v); }
  SIGMOID_CE_DEVICE_INLINE double from_double(double v) { return v; }
  SIGMOID_CE_DEVICE_INLINE double number(const Number& v) { return v.f64; }
};

template <class Real>
struct Ops {
  using T = Real;
  using V = Real;
  using A = Arithmetic<Real>;
  using Bits = typename A::Bits;
  static constexpr Bits kSign = Bits(1) << (8 * sizeof(Real) - 1);

  SIGMOID_CE_DEVICE_INLINE V set(T v) { return v; }
  SIGMOID_CE_DEVICE_INLINE V add(V a, V b) { return A::add(a, b); }
  SIGMOID_CE_DEVICE_INLINE V sub(V a, V b) { return A::add(a, -b); }
  // Not the intrinsic, which keeps a factor of 1. Nothing is fused: every
  // addition is an intrinsic.
  SIGMOID_CE_DEVICE_INLINE V mul(V a, V b) { return a * b; }
  SIGMOID_CE_DEVICE_INLINE V div(V a, V b) { return A::div(a, b); }
  SIGMOID_CE_DEVICE_INLINE V fma(V a, V b, V c) { return A::fma(a, b, c); }
  SIGMOID_CE_DEVICE_INLINE V fnma(V a, V b, V c) { return A::fma(-a, b, c); }
  SIGMOID_CE_DEVICE_INLINE V abs(V v) {
    return A::from_bits(A::bits(v) & ~kSign);
  }
  SIGMOID_CE_DEVICE_INLINE V min_or_nan(V v, V limit) {
    return limit < v ? limit : v;
  }
  // p * 2^-N: n has N - kBias in its low bits. The first product is exact, the
  // second rounds once.
  SIGMOID_CE_DEVICE_INLINE V scale(V p, V n, V) {
    const V power = A::from_bits(A::kOne - (A::bits(n) << A::kMantissa));
    return A::mul(A::mul(p, power), math::ExpLog1p<T>::kUnbias);
  }
  SIGMOID_CE_DEVICE_INLINE V by_sign(V x, V negative, V positive) {
    return (A::bits(x) & kSign) ? negative : positive;
  }
  SIGMOID_CE_DEVICE_INLINE V flip_sign(V v, V x) {
    return A::from_bits(A::bits(v) ^ (A::bits(x) & kSign));
  }
  SIGMOID_CE_DEVICE_INLINE V zero_where_zero(V u, V v) {
    return u == 0 ? V(0) : v;
  }
};

}  // namespace cuda
}  // namespace sigmoid_ce

// The numbers that decide the speed of the kernels and nothing else: no result
// depends on them.

namespace sigmoid_ce {
namespace cuda {

constexpr int kThreads = 256;
// Half of the threads that a multiprocessor holds: 64 registers each on those
// with 2048 threads.
constexpr int kMinBlocks = 4;
// Bytes of one load or store of a thread.
constexpr int kVectorBytes = 16;
// Rows of a thread, of four, of so many elements, that are loaded before the
// first is computed. More would not fit the registers.
constexpr int rows_at_once(int lanes, bool general, bool sums) {
  return !general && (lanes == 4 || (lanes == 2 && !sums)) ? 2 : 1;
}
// Blocks of the grid per multiprocessor: several times what runs at once, so
// that the last ones end together, and few enough that their additions to the
// sum, a few atomics each, are hidden.
constexpr int kBlocksPerMultiprocessor = 32;

// Elements per piece of work of scores of so many bytes: one or two blocks of
// the sum.
constexpr int tile_of(int itemsize) {
  return itemsize >= 4 ? 4096 : kThreads * (kVectorBytes / itemsize) * 4;
}

}  // namespace cuda
}  // namespace sigmoid_ce

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
SIGMOID_CE_DEVICE_INLINE void convert(math::Bfloat16 v, float* result) {
  *result = math::widen(v);
}
SIGMOID_CE_DEVICE_INLINE void convert(float v, math::Bfloat16* result) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result->bits) : "f"(v));
#else
  math::narrow(v, result);
#endif
}
SIGMOID_CE_DEVICE_INLINE void convert(math::Float16 v, math::Float16* result) {
  *result = v;
}
SIGMOID_CE_DEVICE_INLINE void convert(math::Bfloat16 v,
                                      math::Bfloat16* result) {
  *result = v;
}
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
  *result = Arithmetic<T>::from_int(static_cast<int>(v < least  ? least
                                                     : v > most ? most
                                                                : v));
}

// Which targets are ignored: by their own type, since 64 bits are compared
// before they are saturated.
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
  for (int k = 0; k < kChunks; ++k)
    chunks[k] = reinterpret_cast<const C*>(p)[k];
// NOLINT_NEXT_LINE(caffe/alt_fn)
  memcpy(values, chunks, sizeof values);
}
template <int N, class S>
SIGMOID_CE_DEVICE_INLINE void store_wide(char* p, const S (&values)[N]) {
  using C = typename Chunk<N * sizeof(S)>::Type;
  constexpr int kChunks = N * sizeof(S) / sizeof(C);
  C chunks[kChunks];
// NOLINT_NEXT_LINE(caffe/alt_fn)
  memcpy(chunks, values, sizeof values);
#pragma unroll
  for (int k = 0; k < kChunks; ++k) reinterpret_cast<C*>(p)[k] = chunks[k];
}

// Where the element of an index is.
struct Place {
  std::int64_t offset;  // bytes
  std::int64_t step;    // to the next element, within the last axis
};

SIGMOID_CE_DEVICE_INLINE Place place_of(const DeviceView& view,
                                        std::int64_t itemsize,
                                        std::int64_t first,
                                        std::int64_t index) {
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
        static_cast<std::int64_t>(rest - quotient * view.axes[d].extent) *
        view.axes[d].stride;
    rest = quotient;
  }
  place.offset += static_cast<std::int64_t>(rest) * view.axes[0].stride;
  return place;
}

// ---- The end of a pass that adds ----

// The words of all blocks are in `words`, in shared memory: carries, rounding,
// division. Every thread comes.
SIGMOID_CE_DEVICE_INLINE void finish(const Arguments& args,
                                     std::int64_t* words) {
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
  // A carry of one limb seldom makes another, so all limbs pass theirs on at
  // once.
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
  if (k < math::kLimbs && math::exact_digit(words, lowest, k) != 0)
    atomicMax(&top, k);
  __syncthreads();
  if (args.partial != nullptr && k < math::kWords) args.partial[k] = words[k];
  if (k != 0) return;
  const double sum =
      math::sum_of_words(words, math::exact_round(words, lowest, top));
  double divisor = args.sum_divisor;
  if (args.divide_by_valid) {
    divisor = words[math::kWordValid] > 1
                  ? static_cast<double>(words[math::kWordValid])
                  : 1.0;
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

// True in the block that comes last, which then sees what all have written.
// Every thread comes.
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
// NOLINT_NEXT_LINE(runtime/int)
  atomicAdd(reinterpret_cast<unsigned long long*>(total),
// NOLINT_NEXT_LINE(runtime/int)
            static_cast<unsigned long long>(value));
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

// Targets of some rows of a thread, by wide loads, and bit k of `ignored` for
// lane k of a single row. Kept as K: integers converted, others as they are,
// which takes fewer registers.
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
    for (int k = 0; k < kLanes; ++k)
      *ignored |= is_ignored(t[0][k], args) ? 1u << k : 0u;
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
        args.targets.data +
        place_of(args.targets, sizeof(S), args.first, index).offset);
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
  static constexpr bool kSums =
      kOperation == kForward || kOperation == kForwardBackward;
  static constexpr bool kGradient =
      kOperation == kBackward || kOperation == kForwardBackward;
  static constexpr bool kWrites = kOperation != kForward;
  static constexpr int kLanes = kVectorBytes / sizeof(X);  // r of one thread
  static constexpr int kThreadsPerRow = math::kRow / kLanes;
  static constexpr int kThreadsPerBlock =
      math::kBlock / (kLanes * math::kRowsPerGroup);
  // A tile is as many blocks as the threads hold, or one, in steps.
  static constexpr int kBlocks =
      kThreads > kThreadsPerBlock ? kThreads / kThreadsPerBlock : 1;
  static constexpr int kSteps = kBlocks * kThreadsPerBlock / kThreads;
  static constexpr int kTile = kBlocks * math::kBlock;
  static constexpr int kCells =
      kSteps * kThreads;  // of a tile: the four rows of a thread, kLanes wide
  static constexpr int kRowsAtOnce = rows_at_once(kLanes, kGeneral, kSums);

  // Two save a barrier per tile, but not where there would be no room for half
  // of a multiprocessor's threads.
  static constexpr int kBuffers = kBlocks > 1 ? 1 : 2;

  // What a pass that adds keeps in shared memory.
  struct Shared {
    // S[h][g][r] of each cell: of this tile and, in the other buffer, of the
    // one before. Lane by lane with a gap, so that neither those who write one
    // lane of all cells nor those who read all r of a group meet in a bank.
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
      scale = Arithmetic<T>::from_double(
          __ddiv_rn(args.loss_weight, *args.divisor));
    }
    __syncthreads();
    return scale;
  }

  // One element: its loss, and what goes into `out`.
  static __device__ __forceinline__ T element(const Arguments& args, T scale,
                                              X x, T t, T p, T w, bool ignored,
                                              X* out) {
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

  // The four rows of a thread from element `begin` of the call on, by wide
  // loads. sums[k][0]: over j of lane k.
  static __device__ __forceinline__ void fast(const Arguments& args, T scale,
                                              std::int64_t begin, CellSums sums,
                                              unsigned* n_ignored) {
    double sum[kLanes] = {};
#pragma unroll 1
    for (int j = 0; j < math::kRowsPerGroup; j += kRowsAtOnce) {
      const std::int64_t first = begin + j * math::kRow;
      X x[kRowsAtOnce][kLanes];
      Kept t[kRowsAtOnce][kLanes];
      unsigned ignored = 0;
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        load_wide(args.scores.data + (first + i * math::kRow) * sizeof(X),
                  x[i]);
      }
      TargetType<S>::dispatch(
          args.target_dtype,
          LoadTargets<kRowsAtOnce, kLanes, Kept>{
              args, first, kGeneral && args.has_ignore_label, t, &ignored});
      X weights[kLanes];
      const char* pos_weights = nullptr;
      int step = 0;
      if (kGeneral) {
        *n_ignored += __popc(ignored);
        if (args.has_weights) load_weights(args, first, weights);
        if (args.pos_weight_per_channel) {
          const Place place =
              place_of(args.pos_weights, sizeof(T), args.first, first);
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
          const T loss = element(args, scale, x[i][k], target, p, w,
                                 ignored >> k & 1, &out[k]);
          if (kSums && !kGeneral) sum[k] = __dadd_rn(sum[k], loss);
          // Here the options need the registers. From +0 on, which changes no
          // sum but one of -0.
          if (kSums && kGeneral)
            sums[k][0] = __dadd_rn(j == 0 ? 0.0 : sums[k][0], loss);
          // Instructions of one pair do not move to another, which would take
          // more registers than there are.
          if (kGeneral && kLanes == 8 && k % 2 == 1) __syncwarp();
        }
        if (kWrites)
          store_wide(args.out.data + (first + i * math::kRow) * sizeof(X), out);
      }
    }
    if (kSums && !kGeneral) {
#pragma unroll
      for (int k = 0; k < kLanes; ++k) sums[k][0] = sum[k];
    }
  }

  // The weights of one row, which lies in one run of the array's last axis.
  // Those of 8 bits are exact in any X.
  static __device__ __forceinline__ void load_weights(const Arguments& args,
                                                      std::int64_t first,
                                                      X (&weights)[kLanes]) {
    const Place place =
        place_of(args.weights, args.weight_itemsize, args.first, first);
    const char* const data = args.weights.data + place.offset;
    if (args.wide_weights) return load_wide(data, weights);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      convert(load_weight<X, T>(data + k * place.step, args.weight_dtype),
              &weights[k]);
    }
  }

  // The same one by one: for addresses, strides and ends that wide loads cannot
  // do.
  static __device__ __forceinline__ void slow(const Arguments& args, T scale,
                                              std::int64_t begin, CellSums sums,
                                              unsigned* n_ignored) {
#pragma unroll 1
    for (int k = 0; k < kLanes; ++k) {
      double sum = 0;
#pragma unroll 1
      for (int j = 0; j < math::kRowsPerGroup; ++j) {
        const std::int64_t at = begin + j * math::kRow + k;
        if (at >= args.count) break;  // missing elements are +0
        const X x = *reinterpret_cast<const X*>(
            args.scores.data + offset<sizeof(X)>(args, args.scores, at));
        T t, p = 1, w = 1;
        bool ignored = false;
        TargetType<S>::dispatch(args.target_dtype,
                                LoadTarget<T>{args, at, &t, &ignored});
        if (kGeneral) {
          *n_ignored += ignored;
          p = Arithmetic<T>::number(args.pos_weight);
          w = Arithmetic<T>::number(args.weight);
          if (args.pos_weight_per_channel) {
            p = *reinterpret_cast<const T*>(
                args.pos_weights.data +
                offset<sizeof(T)>(args, args.pos_weights, at));
          }
          if (args.has_weights) {
            w = load_weight<X, T>(
                args.weights.data +
                    place_of(args.weights, args.weight_itemsize, args.first, at)
                        .offset,
                args.weight_dtype);
          }
        }
        X out;
        const T loss = element(args, scale, x, t, p, w, ignored, &out);
        if (kSums) sum = __dadd_rn(sum, loss);
        if (kWrites) {
          *reinterpret_cast<X*>(args.out.data +
                                offset<sizeof(X)>(args, args.out, at)) = out;
        }
      }
      if (kSums) sums[k][0] = sum;
    }
  }

  template <int kItemsize>
  static __device__ __forceinline__ std::int64_t offset(const Arguments& args,
                                                        const DeviceView& view,
                                                        std::int64_t at) {
    return kGeneral ? place_of(view, kItemsize, args.first, at).offset
                    : at * kItemsize;
  }

  // The elements of this thread in a tile. Sums go to `sums`, one per cell and
  // lane.
  static __device__ __forceinline__ void elements(const Arguments& args,
                                                  T scale, unsigned tile,
                                                  CellSums sums,
                                                  unsigned* n_ignored) {
    const std::int64_t start = static_cast<std::int64_t>(tile) * kTile;
    const bool wide = args.vector && start + kTile <= args.count;
#pragma unroll 1
    for (int cell = threadIdx.x; cell < kCells; cell += kThreads) {
      const std::int64_t begin = start + cell / kThreadsPerRow * math::kGroup +
                                 cell % kThreadsPerRow * kLanes;
      const CellSums own =
          kSums ? reinterpret_cast<CellSums>(&sums[0][cell]) : nullptr;
      if (wide) {
        fast(args, scale, begin, own, n_ignored);
      } else {
        slow(args, scale, begin, own, n_ignored);
      }
    }
  }

  // The sum of one block, by a warp: the g in order, then the halving. `sums`
  // are those of the block's first cell.
  static __device__ __forceinline__ void reduce(
      const double (*sums)[kCells + kThreadsPerRow], std::int64_t* words) {
    constexpr int kGroups = math::kQuarter / math::kGroup;
    const int lane = threadIdx.x % kWarp;
    double acc[math::kAccumulators / kWarp];
#pragma unroll
    for (int i = 0; i < math::kAccumulators / kWarp; ++i) {
      const int a = lane + i * kWarp;  // 16 h + r
      const int h = a / math::kRow;
      const int r = a % math::kRow;
      const double* s =
          &sums[r % kLanes][h * kGroups * kThreadsPerRow + r / kLanes];
      acc[i] = 0;
#pragma unroll
      for (int g = 0; g < kGroups; ++g)
        acc[i] = __dadd_rn(acc[i], s[g * kThreadsPerRow]);
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
      for (int k = threadIdx.x; k < math::kWords; k += kThreads)
        shared.words[b][k] = 0;
    }
    unsigned ignored = 0;
    int buffer = 0;
    for (unsigned tile = blockIdx.x; tile < args.tiles; tile += gridDim.x) {
      elements(args, scale, tile, shared.sums[buffer], &ignored);
      __syncthreads();
      const int block = threadIdx.x / kWarp;
      if (block < kBlocks) {
        reduce(reinterpret_cast<CellSums>(
                   &shared.sums[buffer][0][block * kThreadsPerBlock]),
               shared.words[block]);
      }
      // What is written next: the other buffer, while a warp that is behind
      // still reads this one, or this one again.
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
        word = __ldcg(
// NOLINT_NEXT_LINE(runtime/int)
            reinterpret_cast<const long long*>(&args.workspace->words[k]));
    }
    if (k < math::kWords) words[k] = word;
    __syncthreads();
    finish(args, words);
  }
};

template <class X, class S, int kOperation, bool kGeneral>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    pass_kernel(const Arguments args) {
  Pass<X, S, kOperation, kGeneral>::run(args);
}

// ---- How many targets are not ignored ----

// An element-wise pass of S alone. Vector loads where `vector` says so.
template <class S>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    valid_targets(const Arguments args) {
  constexpr int kLanes = sizeof(S) < 4 ? 4 : kVectorBytes / sizeof(S);
// NOLINT_NEXT_LINE(runtime/int)
  __shared__ unsigned long long total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
// NOLINT_NEXT_LINE(runtime/int)
  unsigned long long ignored = 0;
  const std::int64_t step =
      static_cast<std::int64_t>(gridDim.x) * kThreads * kLanes;
  std::int64_t at =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kLanes;
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
                args.targets.data +
                place_of(args.targets, sizeof(S), args.first, at + k).offset),
            args);
      }
    }
  }
  if (ignored != 0) atomicAdd(&total, ignored);
  __syncthreads();
  if (threadIdx.x == 0 && total != 0) {
// NOLINT_NEXT_LINE(runtime/int)
    atomicAdd(reinterpret_cast<unsigned long long*>(&args.workspace->ignored),
              total);
  }
  if (!is_last_block(&args.workspace->count_blocks_done) || threadIdx.x != 0)
    return;
  const std::int64_t valid =
      args.count - static_cast<std::int64_t>(
// NOLINT_NEXT_LINE(runtime/int)
                       __ldcg(reinterpret_cast<const unsigned long long*>(
                           &args.workspace->ignored)));
  args.workspace->divisor = valid > 1 ? static_cast<double>(valid) : 1.0;
}

}  // namespace cuda
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace cuda {

template <class X, class S, int kOperation>
void fill_operation(const void* (&run)[kOperations][2]) {
  run[kOperation][0] =
      reinterpret_cast<const void*>(&pass_kernel<X, S, kOperation, false>);
  run[kOperation][1] =
      reinterpret_cast<const void*>(&pass_kernel<X, S, kOperation, true>);
}

template <class X, class S>
void fill_target(const void* (&run)[kOperations][2]) {
  fill_operation<X, S, kForward>(run);
  fill_operation<X, S, kElementwise>(run);
  fill_operation<X, S, kBackward>(run);
  fill_operation<X, S, kForwardBackward>(run);
}

template <class X>
KernelTable make_table() {
  KernelTable table = {};
  static_assert(Pass<X, X, kForward, false>::kTile == tile_of(sizeof(X)),
                "the plan counts tiles");
  fill_target<X, X>(table.run[kTargetScores]);
#if !defined(SIGMOID_CE_TARGETS_OF_SCORES_ONLY)
  if (sizeof(X) != sizeof(float))
    fill_target<X, float>(table.run[kTargetFloat32]);
  fill_target<X, Integer>(table.run[kTargetInteger]);
#endif
  return table;
}

}  // namespace cuda
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace cuda {

const KernelTable* float32_kernels() {
  static const KernelTable table = make_table<float>();
  return &table;
}

}  // namespace cuda
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace cuda {

const KernelTable* float64_kernels() {
  static const KernelTable table = make_table<double>();
  return &table;
}

}  // namespace cuda
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace cuda {

namespace {
template <class S>
const void* address() {
  return reinterpret_cast<const void*>(&valid_targets<S>);
}
}  // namespace

const void* valid_kernel(DType targets) {
  switch (targets) {
    case DType::kFloat32:
      return address<float>();
    case DType::kFloat64:
      return address<double>();
#if !defined(SIGMOID_CE_TARGETS_OF_SCORES_ONLY)
    case DType::kFloat16:
      return address<math::Float16>();
    case DType::kBfloat16:
      return address<math::Bfloat16>();
    case DType::kBool:
      return address<math::Bool>();
    case DType::kUint8:
      return address<std::uint8_t>();
    case DType::kInt8:
      return address<std::int8_t>();
    case DType::kInt32:
      return address<std::int32_t>();
    case DType::kInt64:
      return address<std::int64_t>();
#endif
    default:
      return nullptr;
  }
}

}  // namespace cuda
}  // namespace sigmoid_ce
// What a call will launch, worked out on the host from its arguments alone. No
// CUDA in here.

namespace sigmoid_ce {
namespace cuda {

struct Plan {
  DType scores;
  Operation operation;
  Target target;
  bool general;
  bool clears;    // the workspace must be 0 before the first kernel
  bool counts;    // the targets are counted first, by a kernel of their own
  unsigned grid;  // blocks; 0: nothing to launch
  unsigned count_grid;
  Arguments arguments;
};

// `results` of the passes that add, `out` of those that write; else null.
Status make_plan(Operation operation, const Inputs& inputs,
                 const Options& options, const Results* results,
                 const MutableArray* out, void* workspace, int multiprocessors,
                 Plan* plan);

}  // namespace cuda
}  // namespace sigmoid_ce

// The arguments of a call, checked: what is the same on every device.

// Which targets ignore_label means, and what the sum is divided by. Caffe's
// rules (LossParameter, SigmoidCrossEntropyLossLayer), in a form that every
// device computes alike.

namespace sigmoid_ce {
namespace math {

// The smallest T that is >= m.
template <class T>
T float_at_least(std::uint64_t m) {
  const T v =
      static_cast<T>(m);  // nearest; m <= 2^63 + 1, so that v converts back
  return static_cast<std::uint64_t>(v) < m
             ? std::nextafter(v, std::numeric_limits<T>::infinity())
             : v;
}

// Targets of a floating type whose truncation to an integer is `label`: those
// with low <= t <= high; none where low > high. k = 0: -1 < t < 1; k > 0: k <=
// t < k + 1; k < 0: k - 1 < t <= k.
template <class T>
void ignore_range(std::int64_t label, T* low, T* high) {
  const T one_less = std::nextafter(T(1), T(0));
  if (label == 0) {
    *low = -one_less;
    *high = one_less;
    return;
  }
  const std::uint64_t m =
      label < 0 ? ~static_cast<std::uint64_t>(label) + 1 : label;
  const T near = float_at_least<T>(m);
  const T far = std::nextafter(float_at_least<T>(m + 1), T(0));
  *low = label < 0 ? -far : near;
  *high = label < 0 ? -near : far;
}

// max(1, d), or Options::divisor.
inline double divisor(const Options& options, std::int64_t batch_size,
                      std::int64_t n_valid, std::int64_t n_total) {
  std::int64_t d = 1;
  switch (options.normalization) {
    case Normalization::kFull:
      d = n_total;
      break;
    case Normalization::kValid:
      d = n_valid;
      break;
    case Normalization::kBatchSize:
      d = batch_size;
      break;
    case Normalization::kNone:
      break;
    case Normalization::kNumber:
      return options.divisor;
  }
  return d > 1 ? static_cast<double>(d) : 1.0;
}

}  // namespace math
}  // namespace sigmoid_ce

// Strided arrays as the loop sees them: contiguous, uniform, or copied block by
// block.

namespace sigmoid_ce {
namespace math {

// Axes of length 1 dropped and axes that lie in one stride merged, so that most
// arrays have one or two.
class View {
 public:
  // `strides` null: contiguous, and `data` is the element of index `first`.
  View(const void* data, std::int64_t itemsize, const std::int64_t* shape,
       int ndim, const std::int64_t* strides, std::int64_t first)
      : itemsize_(itemsize), ndim_(0) {
    base_ = reinterpret_cast<std::uintptr_t>(data);
    if (strides == nullptr) {
      base_ -= static_cast<std::uintptr_t>(first * itemsize);
      extent_[0] = INT64_MAX;
      stride_[0] = itemsize;
      ndim_ = 1;
      return;
    }
    for (int d = 0; d < ndim; ++d) {
      if (shape[d] == 1) continue;
      if (ndim_ > 0 && stride_[ndim_ - 1] == strides[d] * shape[d]) {
        extent_[ndim_ - 1] *= shape[d];
        stride_[ndim_ - 1] = strides[d];
      } else {
        extent_[ndim_] = shape[d];
        stride_[ndim_] = strides[d];
        ++ndim_;
      }
    }
    if (ndim_ == 0) {
      extent_[0] = 1;
      stride_[0] = itemsize;
      ndim_ = 1;
    }
  }

  bool contiguous() const { return ndim_ == 1 && stride_[0] == itemsize_; }
  bool uniform() const { return ndim_ == 1 && stride_[0] == 0; }
  // The element of an index; of contiguous views only.
  void* at(std::int64_t index) const {
    return pointer(base_ + offset(index * itemsize_));
  }
  std::int64_t itemsize() const { return itemsize_; }
  // The address of element 0 of the whole shape, and the axes that are left: at
  // least one.
  std::uintptr_t base() const { return base_; }
  int ndim() const { return ndim_; }
  std::int64_t extent(int d) const { return extent_[d]; }
  std::int64_t stride(int d) const { return stride_[d]; }

  // The n elements from `index` on, converted one by one to Dst.
  template <class Src, class Dst>
  void gather(std::int64_t index, std::int64_t n, Dst* out) const {
    walk(index, n,
         [&out](const char* p, std::int64_t stride, std::int64_t length) {
           Dst* const begin = out;
           out += length;
           if (stride == 0) {
             Src v;
// NOLINT_NEXT_LINE(caffe/alt_fn)
             std::memcpy(&v, p, sizeof v);
             for (std::int64_t i = 0; i < length; ++i)
               begin[i] = static_cast<Dst>(v);
           } else if (stride == sizeof(Src)) {
             for (std::int64_t i = 0; i < length; ++i) {
               Src v;
// NOLINT_NEXT_LINE(caffe/alt_fn)
               std::memcpy(&v, p + i * sizeof(Src), sizeof v);
               begin[i] = static_cast<Dst>(v);
             }
           } else {
             for (std::int64_t i = 0; i < length; ++i) {
               Src v;
// NOLINT_NEXT_LINE(caffe/alt_fn)
               std::memcpy(&v, p + i * stride, sizeof v);
               begin[i] = static_cast<Dst>(v);
             }
           }
         });
  }

  // Back again: n elements written from `index` on. The view is of an array
  // that may be written.
  template <class T>
  void scatter(std::int64_t index, std::int64_t n, const T* values) const {
    walk(index, n,
         [&values](char* p, std::int64_t stride, std::int64_t length) {
           for (std::int64_t i = 0; i < length; ++i)
// NOLINT_NEXT_LINE(caffe/alt_fn)
             std::memcpy(p + i * stride, values++, sizeof(T));
         });
  }

  // The bytes [low, high) of n elements from `first` on; of contiguous views
  // only.
  void bounds(std::int64_t first, std::int64_t n, std::uintptr_t* low,
              std::uintptr_t* high) const {
    *low = base_ + offset(first * itemsize_);
    *high = *low + offset(n * itemsize_);
  }

  // Two indices of one byte: an output with such a view has no defined result.
  // Sufficient, not necessary: true as well for layouts that interleave without
  // a collision, which no slicing produces.
  bool overlaps_itself() const {
    bool done[kMaxDims] = {};
    std::int64_t reach = itemsize_;  // bytes spanned by the axes so far
    for (int k = 0; k < ndim_; ++k) {
      int least = -1;
      for (int d = 0; d < ndim_; ++d) {
        if (!done[d] &&
            (least < 0 || magnitude(stride_[d]) < magnitude(stride_[least])))
          least = d;
      }
      done[least] = true;
      if (extent_[least] > 1 && magnitude(stride_[least]) < reach) return true;
      if (extent_[least] != INT64_MAX)
        reach += (extent_[least] - 1) * magnitude(stride_[least]);
    }
    return false;
  }

  bool same_layout(const View& other) const {
    if (base_ != other.base_ || ndim_ != other.ndim_ ||
        itemsize_ != other.itemsize_)
      return false;
    for (int d = 0; d < ndim_; ++d) {
      if (stride_[d] != other.stride_[d]) return false;
      // A view without strides has no extents.
      if (d > 0 && extent_[d] != other.extent_[d]) return false;
    }
    return true;
  }

 private:
  // Addresses are integers until they are used: a contiguous view's element 0
  // may lie outside its array.
  static std::uintptr_t offset(std::int64_t bytes) {
    return static_cast<std::uintptr_t>(bytes);
  }
  static char* pointer(std::uintptr_t address) {
    return reinterpret_cast<char*>(address);
  }
  static std::int64_t magnitude(std::int64_t v) { return v < 0 ? -v : v; }

  // Calls f(address, stride, length) for the pieces of the last axis that hold
  // `index` .. `index + n - 1`.
  template <class F>
  void walk(std::int64_t index, std::int64_t n, F f) const {
    const int last = ndim_ - 1;
    std::int64_t position[kMaxDims];
    std::uintptr_t p = base_;
    for (int d = last; d >= 0; --d) {
      position[d] = index % extent_[d];
      index /= extent_[d];
      p += offset(position[d] * stride_[d]);
    }
    while (n > 0) {
      const std::int64_t left = extent_[last] - position[last];
      const std::int64_t length = n < left ? n : left;
      f(pointer(p), stride_[last], length);
      n -= length;
      position[last] += length;
      p += offset(length * stride_[last]);
      for (int d = last; d > 0 && position[d] == extent_[d]; --d) {
        p += offset(stride_[d - 1] - position[d] * stride_[d]);
        position[d] = 0;
        ++position[d - 1];
      }
    }
  }

  std::uintptr_t base_;  // element 0
  std::int64_t itemsize_;
  int ndim_;  // 1 or more
  std::int64_t extent_[kMaxDims];
  std::int64_t stride_[kMaxDims];
};

}  // namespace math
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace math {

inline std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kFloat16:
    case DType::kBfloat16:
      return 2;
    default:
      return 1;
  }
}

inline bool is_integer(DType dtype) {
  return dtype >= DType::kBool && dtype <= DType::kInt64;
}
inline bool is_half(DType dtype) {
  return dtype == DType::kFloat16 || dtype == DType::kBfloat16;
}

inline Status invalid(const char* argument, const char* message) {
  return Status(Code::kInvalidArgument, argument, message);
}

struct Call {
  const Inputs& inputs;
  const Options& options;
  std::int64_t total = 1;  // of the whole shape
  std::int64_t first = 0, count = 0;
  std::int64_t batch_size = 1;
  std::int64_t itemsize = 4;

  Call(const Inputs& i, const Options& o) : inputs(i), options(o) {}

  // The types of the scores and the targets are the device's to check, before
  // this.
  Status check() {
    itemsize = size_of(inputs.scores.dtype);
    if (inputs.ndim < 0 || inputs.ndim > kMaxDims)
      return invalid("shape", "expected 0 to 64 axes");
    bool empty = false;
    for (int d = 0; d < inputs.ndim; ++d) {
      const std::int64_t n = inputs.shape[d];
      if (n < 0) return invalid("shape", "expected lengths of 0 or more");
      empty = empty || n == 0;
      // A byte offset must fit 63 bits too.
      if (n != 0 && total > INT64_MAX / 8 / n) {
        return invalid("shape", "expected fewer than 2^60 elements");
      }
      if (n != 0) total *= n;
    }
    if (empty) total = 0;
    if (inputs.ndim > 0) batch_size = inputs.shape[0];
    first = inputs.first_index;
    if (first < 0 || first > total)
      return invalid("first_index", "expected an index of the shape");
    count = inputs.count < 0 ? total - first : inputs.count;
    if (count > total - first)
      return invalid("count", "expected elements inside the shape");
    if (count > 0 && inputs.scores.data == nullptr)
      return invalid("scores", "expected an array");
    if (count > 0 && inputs.targets.data == nullptr)
      return invalid("targets", "expected an array");
    return check_options();
  }

  // After check().
  View view(const ConstArray& a) const {
    return View(a.data, size_of(a.dtype), inputs.shape, inputs.ndim, a.strides,
                first);
  }

  // Of contiguous arrays. Whether strided ones share an element is a hard
  // question, which the caller's array library answers better: cpu.h leaves it
  // to the caller.
  bool overlap(const View& a, const View& b) const {
    if (!a.contiguous() || !b.contiguous()) return false;
    std::uintptr_t a_low, a_high, b_low, b_high;
    a.bounds(first, count, &a_low, &a_high);
    b.bounds(first, count, &b_low, &b_high);
    return a_low < b_high && b_low < a_high;
  }

  // An array that is written, of `count` > 0 elements: not on itself, nor on an
  // input but the scores in place.
  Status check_output(const MutableArray& out, const View& view,
                      const View& scores, const View& targets,
                      const View& weight) const {
    if (out.data == nullptr) return invalid("out", "expected an array");
    if (view.overlaps_itself())
      return invalid("out", "expected elements that do not overlap");
    if (!view.same_layout(scores) && overlap(view, scores)) {
      return invalid("out",
                     "expected the scores themselves, or no overlap with them");
    }
    if (overlap(view, targets))
      return invalid("out", "expected no overlap with targets");
    if (options.weight.data != nullptr && overlap(view, weight)) {
      return invalid("out", "expected no overlap with weight");
    }
    return Status();
  }

  bool fits_channels(std::int64_t count_of_values) const {
    return count_of_values <= 1 ||
           (inputs.ndim >= 2 && count_of_values == inputs.shape[1]);
  }

 private:
  Status check_options() const {
    const Options& o = options;
    if (o.pos_weight_count < 0 ||
        (o.pos_weight_count > 0 && o.pos_weight == nullptr)) {
      return invalid("pos_weight", "expected one number, or one per channel");
    }
    if (!fits_channels(o.pos_weight_count)) {
      return invalid("pos_weight",
                     "expected one number, or one per channel (axis 1)");
    }
    for (std::int64_t i = 0; i < o.pos_weight_count; ++i) {
      // !(a <= b): NaN too.
      if (!(o.pos_weight[i] >= 0) || std::isinf(o.pos_weight[i])) {
        return invalid("pos_weight", "expected finite values of 0 or more");
      }
      if (inputs.scores.dtype != DType::kFloat64 &&
          o.pos_weight[i] > std::numeric_limits<float>::max()) {
        return invalid("pos_weight",
                       "expected values that are finite as float32");
      }
    }
    if (o.weight.data != nullptr && o.weight.dtype != inputs.scores.dtype &&
        o.weight.dtype != DType::kBool && o.weight.dtype != DType::kUint8 &&
        o.weight.dtype != DType::kInt8) {
      return invalid("weight",
                     "expected the scores' dtype, bool, uint8 or int8");
    }
    if (o.normalization > Normalization::kNumber) {
      return invalid("normalization", "expected one of the enumeration");
    }
    if (o.normalization == Normalization::kNumber &&
        !(o.divisor > 0 && std::isfinite(o.divisor))) {
      return invalid("normalization", "expected a finite number above 0");
    }
    return Status();
  }
};

// ignore_label as the kernels want it; off when no target of the type can
// match.
struct IgnoreRule {
  bool on = false;
  double low = 0, high = 0;  // float targets: ignored when low <= t <= high
  std::int64_t label = 0;    // integer targets

  IgnoreRule(DType targets, const Options& options)
      : label(options.ignore_label) {
    if (!options.has_ignore_label) return;
    std::int64_t least = INT64_MIN, most = INT64_MAX;
    switch (targets) {
      case DType::kFloat64:
        ignore_range(label, &low, &high);
        break;
      case DType::kBool:
        least = 0, most = 1;
        break;
      case DType::kUint8:
        least = 0, most = UINT8_MAX;
        break;
      case DType::kInt8:
        least = INT8_MIN, most = INT8_MAX;
        break;
      case DType::kInt32:
        least = INT32_MIN, most = INT32_MAX;
        break;
      case DType::kInt64:
        break;
      default: {
        float l, h;
        ignore_range(label, &l, &h);
        low = l;
        high = h;
      }
    }
    on = label >= least && label <= most;
  }
};

}  // namespace math
}  // namespace sigmoid_ce

// Round to nearest, subnormals kept: what the guarantee of equal bits needs.
// The caller's own mode (and exception flags) come back at the end of the
// scope.

#if defined(__x86_64__) || defined(__i386__)
// NOLINT_NEXT_LINE(build/include_order)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace sigmoid_ce {
namespace math {

class FloatEnvironment {
 public:
#if defined(__x86_64__) || defined(__i386__)
  FloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FloatEnvironment() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FloatEnvironment() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" : : "r"(std::uint64_t(0)) : "memory");
  }
  ~FloatEnvironment() {
    __asm__ volatile("msr fpcr, %0" : : "r"(saved_) : "memory");
  }

 private:
  std::uint64_t saved_;
#else
  FloatEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatEnvironment() { std::fesetenv(&saved_); }

 private:
  std::fenv_t saved_;
#endif

 public:
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;
};

}  // namespace math
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace cuda {
namespace {

using math::Call;
using math::invalid;
using math::View;

// n / d for every n below 2^63 as (high 64 bits of n * magic, plus n) >> shift.
Axis make_axis(std::int64_t extent, std::int64_t stride) {
  Axis axis;
  axis.extent = static_cast<std::uint64_t>(extent);
  axis.stride = stride;
  axis.shift = 0;
  while (axis.shift < 63 && (std::uint64_t(1) << axis.shift) < axis.extent)
    ++axis.shift;
  // floor(2^64 (2^shift - extent) / extent) + 1, by long division in base 2.
  std::uint64_t rest =
      (std::uint64_t(1) << axis.shift) - axis.extent;  // < extent
  std::uint64_t quotient = 0;
  for (int bit = 0; bit < 64; ++bit) {
    rest *= 2;  // < 2^64, since extents are below 2^60
    quotient *= 2;
    if (rest >= axis.extent) {
      rest -= axis.extent;
      ++quotient;
    }
  }
  axis.magic = quotient + 1;
  return axis;
}

bool make_view(const View& view, std::int64_t first, DeviceView* result) {
// NOLINT_NEXT_LINE(caffe/alt_fn)
  std::memset(result, 0, sizeof *result);
  if (view.contiguous()) {
    result->data = static_cast<char*>(view.at(first));
    return true;
  }
  if (view.ndim() > kMaxAxes) return false;
  result->data = reinterpret_cast<char*>(view.base());
  result->n_axes = view.ndim();
  for (int d = 0; d < view.ndim(); ++d) {
    result->axes[d] = make_axis(view.extent(d), view.stride(d));
  }
  return true;
}

Status too_many_axes(const char* argument) {
  return Status(
      Code::kUnsupported, argument,
      "expected at most 8 axes that cannot be merged; pass a contiguous copy");
}

// Whether one wide load reads `lanes` elements that are side by side wherever a
// row begins.
bool fits_wide(const DeviceView& view, std::int64_t itemsize, int lanes) {
  const std::int64_t bytes =
      lanes * itemsize < kVectorBytes ? lanes * itemsize : kVectorBytes;
  if (reinterpret_cast<std::uintptr_t>(view.data) %
          static_cast<std::uintptr_t>(bytes) !=
      0) {
    return false;
  }
  if (view.n_axes == 0) return true;
  if (view.axes[view.n_axes - 1].stride != itemsize) return false;
  for (int d = 0; d < view.n_axes - 1; ++d) {
    if (view.axes[d].stride % bytes != 0) return false;
  }
  return true;
}

// Whether a row of `lanes` elements stays within one run of the last axis.
bool has_whole_rows(const DeviceView& view, std::int64_t first, int lanes) {
  if (view.n_axes <= 1) return true;
  return first % lanes == 0 && view.axes[view.n_axes - 1].extent % lanes == 0;
}

bool is_scores_type(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 ||
         math::is_half(dtype);
}

std::int64_t round_up(std::int64_t n, std::int64_t unit) {
  return (n + unit - 1) / unit;
}

}  // namespace

Status make_plan(Operation operation, const Inputs& inputs,
                 const Options& options, const Results* results,
                 const MutableArray* out, void* workspace, int multiprocessors,
                 Plan* plan) {
  const math::FloatEnvironment environment;  // options are rounded here
  const DType dtype = inputs.scores.dtype;
  const DType target = inputs.targets.dtype;
  if (!is_scores_type(dtype)) {
    return invalid("scores", "expected float16, bfloat16, float32 or float64");
  }
  if (target != dtype && target != DType::kFloat32 &&
      !math::is_integer(target)) {
    return invalid("targets",
                   "expected the scores' dtype, float32, bool, uint8, int8, "
                   "int32 or int64");
  }
  if (options.pos_weight_count > 1) {
    return invalid("pos_weight",
                   "expected one number; values per channel go into "
                   "channel_pos_weight, in device memory");
  }
  Call call(inputs, options);
  Status status = call.check();
  if (!status.ok()) return status;
  const std::int64_t channels = options.channel_pos_weight_count;
  if (channels < 0 || (channels > 0 && options.channel_pos_weight == nullptr)) {
    return invalid("channel_pos_weight", "expected one value per channel");
  }
  if (channels > 0 && (inputs.ndim < 2 || channels != inputs.shape[1])) {
    return invalid("channel_pos_weight",
                   "expected one value per channel (axis 1)");
  }
  if (channels > 0 && options.pos_weight_count > 0) {
    return invalid("channel_pos_weight", "expected none beside pos_weight");
  }
  if (options.uniform_weight != nullptr && options.weight.data != nullptr) {
    return invalid("uniform_weight", "expected none beside weight");
  }
  if (results != nullptr && results->loss != nullptr &&
      results->loss_dtype != DType::kFloat32 &&
      results->loss_dtype != DType::kFloat64) {
    return invalid("loss_dtype", "expected float32 or float64");
  }
  const bool gradient = operation == kBackward || operation == kForwardBackward;
  const bool counts = gradient && options.gradient_divisor == nullptr &&
                      options.normalization == Normalization::kValid;

// NOLINT_NEXT_LINE(caffe/alt_fn)
  std::memset(static_cast<void*>(plan), 0, sizeof *plan);
  Arguments& args = plan->arguments;
  plan->scores = dtype;
  plan->operation = operation;
  plan->target = target == dtype             ? kTargetScores
                 : target == DType::kFloat32 ? kTargetFloat32
                                             : kTargetInteger;
  args.first = call.first;
  args.count = call.count;
  args.target_dtype = target;
  const int itemsize = static_cast<int>(call.itemsize);
  const int lanes = kVectorBytes / itemsize;

  // ---- Arrays ----
  const View scores = call.view(inputs.scores);
  const View targets = call.view(inputs.targets);
  if (!make_view(scores, call.first, &args.scores))
    return too_many_axes("scores");
  if (!make_view(targets, call.first, &args.targets))
    return too_many_axes("targets");
  bool strided = args.scores.n_axes > 0 || args.targets.n_axes > 0;
  args.vector = !strided && fits_wide(args.scores, itemsize, lanes) &&
                fits_wide(args.targets, math::size_of(target), lanes);
  const View weight = call.view(options.weight);
  if (out != nullptr && call.count > 0) {
    const View view = call.view(ConstArray(out->data, dtype, out->strides));
    status = call.check_output(*out, view, scores, targets, weight);
    if (!status.ok()) return status;
    if (!make_view(view, call.first, &args.out)) return too_many_axes("out");
    strided = strided || args.out.n_axes > 0;
    args.vector = args.vector && args.out.n_axes == 0 &&
                  fits_wide(args.out, itemsize, lanes);
  }

  // ---- Options ----
  args.pos_weight = Number(1);
  if (options.pos_weight_count > 0) {
    args.has_pos_weight = true;
    args.pos_weight = Number(options.pos_weight[0]);
  } else if (channels > 0) {
    args.has_pos_weight = args.pos_weight_per_channel = true;
    const std::int64_t size = dtype == DType::kFloat64 ? 8 : 4;
    std::int64_t strides[kMaxDims] = {};
    strides[1] = size;
    const View view(options.channel_pos_weight, size, inputs.shape, inputs.ndim,
                    strides, 0);
    if (!make_view(view, call.first, &args.pos_weights))
      return too_many_axes("pos_weight");
    args.vector =
        args.vector && has_whole_rows(args.pos_weights, call.first, lanes);
  }
  args.weight = Number(1);
  bool weighted = false;
  if (options.uniform_weight != nullptr) {
    weighted = true;
    args.weight = Number(*options.uniform_weight);
  } else if (options.weight.data != nullptr && call.count > 0) {
    weighted = args.has_weights = true;
    args.weight_dtype = options.weight.dtype;
    args.weight_itemsize =
        static_cast<int>(math::size_of(options.weight.dtype));
    if (!make_view(weight, call.first, &args.weights))
      return too_many_axes("weight");
    args.vector =
        args.vector && has_whole_rows(args.weights, call.first, lanes);
    args.wide_weights = options.weight.dtype == dtype &&
                        fits_wide(args.weights, itemsize, lanes);
  }
  const math::IgnoreRule ignore(target, options);
  args.has_ignore_label = ignore.on;
  args.ignore_low = Number(ignore.low);
  args.ignore_high = Number(ignore.high);
  args.ignore_label = ignore.label;
  plan->general =
      strided || args.has_pos_weight || weighted || args.has_ignore_label;

  // ---- Scale and results ----
  plan->counts = counts && args.has_ignore_label;
  if (gradient) {
    args.loss_weight = options.loss_weight;
    args.divisor = options.gradient_divisor;
    if (args.divisor == nullptr && !plan->counts) {
      args.scale =
          Number(options.loss_weight / math::divisor(options, call.batch_size,
                                                     call.count, call.total));
    }
  }
  args.workspace = static_cast<Workspace*>(workspace);
  if (plan->counts) args.divisor = &args.workspace->divisor;
  const bool adds = results != nullptr;
  if (adds) {
    args.loss = results->loss;
    args.loss_is_float64 = results->loss_dtype == DType::kFloat64;
    args.loss_divisor = results->divisor;
    args.partial = reinterpret_cast<std::int64_t*>(results->partial);
    args.divide_by_valid = options.normalization == Normalization::kValid;
    args.sum_divisor =
        math::divisor(options, call.batch_size, call.count, call.total);
  }

  // ---- Grid ----
  const std::int64_t most =
      static_cast<std::int64_t>(kBlocksPerMultiprocessor) *
      (multiprocessors > 0 ? multiprocessors : 1);
  std::int64_t tiles = round_up(call.count, tile_of(itemsize));
  if (tiles > INT32_MAX) {
    return Status(Code::kUnsupported, "scores",
                  "expected fewer than 2^43 elements");
  }
  // A pass without elements has results all the same.
  if (tiles == 0 && adds) tiles = 1;
  args.tiles = static_cast<unsigned>(tiles);
  plan->grid = static_cast<unsigned>(tiles < most ? tiles : most);
  if (plan->counts) {
    const std::int64_t blocks =
        round_up(call.count, std::int64_t(kThreads) * kVectorBytes);
    plan->count_grid = static_cast<unsigned>(blocks == 0     ? 1
                                             : blocks < most ? blocks
                                                             : most);
  }
  plan->clears = plan->counts || (adds && plan->grid > 1);
  if ((plan->clears || adds) && workspace == nullptr) {
    return invalid("workspace",
                   "expected workspace_size() bytes of device memory");
  }
  if (reinterpret_cast<std::uintptr_t>(workspace) % alignof(Workspace) != 0) {
    return invalid("workspace", "expected an address that is a multiple of 8");
  }
  return Status();
}

}  // namespace cuda
}  // namespace sigmoid_ce

// All that asks something of the CUDA runtime.

namespace sigmoid_ce {
namespace cuda {

// Of the current device.
Status find_multiprocessors(int* count);

// Puts the work of a plan into a stream.
Status launch(const Plan& plan, Stream stream);

}  // namespace cuda
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace cuda {
namespace {

Status status_of(cudaError_t error) {
  const int number = static_cast<int>(error);
  switch (error) {
    case cudaSuccess:
      return Status();
    case cudaErrorMemoryAllocation:
      return Status(Code::kOutOfMemory, "", "no memory left on the device",
                    number);
    case cudaErrorNoDevice:
      return Status(Code::kNoDevice, "", "no GPU that CUDA can use", number);
    case cudaErrorInsufficientDriver: {
      // The same error for no driver and for one that is too old.
      int version = 0;
      const bool driver =
          cudaDriverGetVersion(&version) == cudaSuccess && version > 0;
      cudaGetLastError();
      return Status(Code::kNoDevice, "",
                    driver ? "the driver of the GPU is too old for the CUDA "
                             "that this was built with"
                           : "no driver for GPUs on this machine",
                    number);
    }
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      return Status(Code::kUnsupported, "",
                    "this was not built for the GPU of this machine", number);
    default:
      return Status(Code::kDeviceError, "", cudaGetErrorString(error), number);
  }
}

const KernelTable* table_of(DType scores) {
  switch (scores) {
#if !defined(SIGMOID_CE_TARGETS_OF_SCORES_ONLY)
    case DType::kFloat16:
      return float16_kernels();
    case DType::kBfloat16:
      return bfloat16_kernels();
#endif
    case DType::kFloat32:
      return float32_kernels();
    default:
      return float64_kernels();
  }
}

Status launch_kernel(const void* kernel, unsigned grid,
                     const Arguments& arguments, Stream stream) {
  if (kernel == nullptr) {
    return Status(Code::kUnsupported, "targets",
                  "this build has no kernel for their dtype");
  }
  void* parameters[] = {const_cast<Arguments*>(&arguments)};
  return status_of(cudaLaunchKernel(kernel, dim3(grid), dim3(kThreads),
                                    parameters, 0, stream));
}

}  // namespace

Status find_multiprocessors(int* count) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error =
        cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
  }
  return status_of(error);
}

Status launch(const Plan& plan, Stream stream) {
  if (plan.grid == 0) return Status();
  Status status;
  if (plan.clears) {
    status = status_of(cudaMemsetAsync(plan.arguments.workspace, 0,
                                       sizeof(Workspace), stream));
  }
  if (status.ok() && plan.counts) {
    Arguments arguments = plan.arguments;
    arguments.vector =
        arguments.targets.n_axes == 0 &&
        reinterpret_cast<std::uintptr_t>(arguments.targets.data) %
                kVectorBytes ==
            0;
    status = launch_kernel(valid_kernel(arguments.target_dtype),
                           plan.count_grid, arguments, stream);
  }
  if (status.ok()) {
    const KernelTable* table = table_of(plan.scores);
    status =
        launch_kernel(table->run[plan.target][plan.operation][plan.general],
                      plan.grid, plan.arguments, stream);
  }
  return status;
}

Status device_count(int* count) {
  *count = 0;
  return status_of(cudaGetDeviceCount(count));
}

Status device_info(int device, DeviceInfo* info) {
// NOLINT_NEXT_LINE(caffe/alt_fn)
  std::memset(info, 0, sizeof *info);
  cudaDeviceProp properties;
  Status status = status_of(cudaGetDeviceProperties(&properties, device));
  if (!status.ok()) return status;
// NOLINT_NEXT_LINE(caffe/alt_fn)
  std::memcpy(info->name, properties.name, sizeof info->name);
  info->major = properties.major;
  info->minor = properties.minor;
  info->multiprocessors = properties.multiProcessorCount;
  info->memory = properties.totalGlobalMem;
  status = status_of(cudaDriverGetVersion(&info->driver_version));
  if (status.ok())
    status = status_of(cudaRuntimeGetVersion(&info->runtime_version));
  return status;
}

}  // namespace cuda
}  // namespace sigmoid_ce
// The functions of sigmoid_ce/cuda.h: a plan, and its launch.

namespace sigmoid_ce {
namespace cuda {
namespace {

Status execute(Operation operation, const Inputs& inputs,
               const Options& options, const Results* results,
               const MutableArray* out, void* workspace, Stream stream) {
  int multiprocessors = 0;
  Status status = find_multiprocessors(&multiprocessors);
  if (!status.ok()) return status;
  Plan plan;
  status = make_plan(operation, inputs, options, results, out, workspace,
                     multiprocessors, &plan);
  if (!status.ok()) return status;
  return launch(plan, stream);
}

}  // namespace

std::size_t workspace_size(const Inputs&, const Options&) {
  return sizeof(Workspace);
}

Status forward(const Inputs& inputs, const Options& options,
               const Results& results, void* workspace, Stream stream) {
  return execute(kForward, inputs, options, &results, nullptr, workspace,
                 stream);
}

Status elementwise(const Inputs& inputs, const Options& options,
                   const MutableArray& losses, Stream stream) {
  return execute(kElementwise, inputs, options, nullptr, &losses, nullptr,
                 stream);
}

Status backward(const Inputs& inputs, const Options& options,
                const MutableArray& gradient, void* workspace, Stream stream) {
  return execute(kBackward, inputs, options, nullptr, &gradient, workspace,
                 stream);
}

Status forward_backward(const Inputs& inputs, const Options& options,
                        const Results& results, const MutableArray& gradient,
                        void* workspace, Stream stream) {
  return execute(kForwardBackward, inputs, options, &results, &gradient,
                 workspace, stream);
}

}  // namespace cuda
}  // namespace sigmoid_ce
