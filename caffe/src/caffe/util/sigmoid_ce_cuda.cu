// sigmoid_ce 0.1.0, made from its sources by tools/make_overlay.py.
// (c) 2026, the sigmoid_ce developers. BSD 2-Clause License.
#define SIGMOID_CE_TARGETS_OF_SCORES_ONLY

// NOLINT_NEXT_LINE(build/include_order)
#include <cuda_runtime.h>
#include <cmath>
#include <cstddef>
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
#define SIGMOID_CE_BOTH \
  __host__ __device__ inline __attribute__((always_inline))
#else
#define SIGMOID_CE_INLINE inline __attribute__((always_inline))
#define SIGMOID_CE_BOTH inline __attribute__((always_inline))
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
  kOperations,
  // Of the focal kernels only, which do without a focal loss too:
  kHessian = kOperations,  // forward, backward and the Hessian
  kTargetBackward,         // the gradient with respect to the targets
  kFocalOperations
};

// Kernels without options, with those that are branches taken by all alike, and
// with the focal loss as well.
enum Kind { kPlain, kGeneral, kFocal };

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

// How many targets of a group are 1, and how many 0; then the weights w+ and w-
// of the two classes, in the same place and in the type that is computed in.
struct ClassSlot {
  std::uint64_t counts[2];
};

// In device memory; the caller's. Zero before a pass of several blocks that
// adds to it, and before one that counts. The slots of the groups of `balance`
// follow.
struct Workspace {
  std::int64_t words[math::kWords];  // a Partial, not normalised
  std::uint32_t blocks_done;
  std::uint32_t count_blocks_done;
  // Of the pass that counts.
  std::uint64_t ignored;  // by their label
  ClassSlot all;          // where there are no groups
  double divisor;         // max(1, d)
};

struct Arguments {
  DeviceView scores, targets, out, hessian;
  std::int64_t first;  // index of the first element in the whole shape
  std::int64_t count;  // elements of the call
  unsigned tiles;      // pieces of work of the kernel
  bool vector;  // every array fits wide loads, wherever a tile has all its
                // elements
  bool vector_targets;  // the targets by themselves do, 16 bytes at a time
  DType target_dtype;

  // Factor on the gradient: `scale`, or loss_weight / *divisor.
  Number scale;
  double loss_weight;
  const double* divisor;

  // General kernels only.
  bool has_pos_weight;
  bool pos_weight_per_channel;  // else `pos_weight`
  Number pos_weight;
  DeviceView pos_weights;    // of the type that is computed in
  unsigned pos_weight_step;  // bytes from one to the next in a row: of one
                             // value, or 0
  bool has_weights;          // else `weight`
  bool wide_weights;         // of the scores' type, and side by side
  Number weight;
  DType weight_dtype;
  int weight_itemsize;
  DeviceView weights;
  bool has_ignore_label;
  bool ignores_uncertain;  // targets other than 0 and 1
  Number ignore_low,
      ignore_high;            // float targets: ignored when low <= t <= high
  std::int64_t ignore_label;  // integer targets
  bool has_smoothing;
  Number smoothing_factor, smoothing_term;  // t becomes t factor + term
  bool has_class_weights;
  bool class_weights_by_group;  // else `class_weight`
  Number class_weight[2];       // w+ and w-
  DeviceView class_weights;     // pairs of the type that is computed in, a
                                // ClassSlot apart
  unsigned class_weight_step;

  // Of focal kernels.
  bool has_gamma;
  Number gamma;

  // Counting, and the table of the class weights.
  bool counts_groups;  // into class_slots, whose weights follow; else
                       // Workspace::all
  Axis group_length,
      groups;  // counted together: those of one index / length % count
  ClassSlot* class_slots;       // of each group that has weights; or null
  bool slots_of_float64;        // the weights there are
  std::uint64_t weight_count;   // groups that have weights
  const double* given_weights;  // pairs, instead of those that follow from the
                                // counts; or null
  double* class_weights_out;    // pairs, for the caller; or null
  Balance balance;
  double positive_factor, negative_factor;
  bool counts_foreground;  // for the divisor: targets that are 1, else those
                           // that are not ignored

  // Results of the passes that add: device memory, or null.
  Workspace* workspace;
  void* loss;
  bool loss_is_float64;
  double* loss_divisor;
  std::int64_t* partial;
  bool divide_by_valid;       // by max(1, number of elements not ignored),
  bool divide_by_foreground;  // or by what was counted before; else by:
  double sum_divisor;
};

// The kernels for one type of scores: addresses to launch, of functions that
// take one Arguments.
struct KernelTable {
  const void* run[kTargets][kOperations][2];
  const void* focal[kFocalOperations];  // for targets of any type
};

const KernelTable* float16_kernels();
const KernelTable* bfloat16_kernels();
const KernelTable* float32_kernels();
const KernelTable* float64_kernels();
// Of functions that take one Arguments. By DType, null where there is none:
// counts the targets.
const void* count_kernel(DType targets);
// Class weights where nothing is counted.
const void* class_weights_kernel();

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
//   sigmoid(-a) u = x >= 0 ? n : p t            c = 1, or n + p t with
//   pos_weight, where n = 1 - t loss = w (a u + c m)            gradient = w (x
//   >= 0 ? u - c q : c q - u)
//                                   Hessian  = w c q (1 - q)
//
// which is w (p t softplus(-x) + n softplus(x)) without a cancellation. The
// focal loss is below. n comes with t, since a caller who smooths targets knows
// it better than 1 - t does.
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
//   -> NaN log_01(y)     (0, 2)             of 1        1 -> 0; anything else
//   gives a number that means nothing
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
  // Makes a subnormal number normal: 2^kLift.
  static constexpr int kLift = 64;
  static constexpr float kLifted = 1.8446744e+19f;

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
  static constexpr int kLift = 128;
  static constexpr double kLifted = 3.402823669209385e+38;

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

// y = 2^-N (1 + f): log1p(f) - N ln 2. The error is absolute, an ulp of the
// larger of 1 and |log y|.
template <class O>
SIGMOID_CE_INLINE typename O::V log_01(typename O::V y) {
  using V = typename O::V;
  using C = ExpLog1p<typename O::T>;
  V f;
  const V exponent = O::split(O::mul(y, O::set(C::kLifted)), &f);
  const V n = O::sub(O::set(C::kLift), exponent);
  const V l = log1p_01<O>(O::sub(f, O::set(1)));
  return O::fnma(n, O::set(C::kLn2Hi), O::fnma(n, O::set(C::kLn2Lo), l));
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
  static SIGMOID_CE_INLINE Element plain(V x, V t, V n) {
    Element e;
    e.x = x;
    e.a = O::abs(x);
    e.z = exp_neg<O>(e.a);
    // 0 * t is NaN for an infinite t, which the formula would let pass.
    if (!kFinite) e.z = O::fma(t, O::set(0), e.z);
    e.u = O::by_sign(x, t, n);
    e.c = O::set(1);
    return e;
  }

  // pos_weight p. An infinite t makes c NaN.
  static SIGMOID_CE_INLINE Element weighted(V x, V t, V n, V p) {
    Element e;
    e.x = x;
    e.a = O::abs(x);
    e.z = exp_neg<O>(e.a);
    e.weigh(t, n, p);
    return e;
  }

  // An element that was plain gets the pos_weight p.
  SIGMOID_CE_INLINE void weigh(V t, V n, V p) {
    u = O::by_sign(x, O::mul(p, t), n);
    c = O::fma(p, t, n);
  }

  // w left out.
  SIGMOID_CE_INLINE V loss() const {
    return O::fma(O::zero_where_zero(u, a), u, O::mul(c, log1p_01<O>(z)));
  }

  SIGMOID_CE_INLINE V gradient() const {
    return O::flip_sign(O::fnma(c, sigmoid_neg(), u), x);
  }

  SIGMOID_CE_INLINE V hessian() const {
    const V q = sigmoid_neg();
    return O::mul(O::mul(c, q), O::sub(O::set(1), q));
  }

  // d loss / d t = p softplus(-x) - softplus(x), which is -x where p = 1.
  SIGMOID_CE_INLINE V target_gradient(V p) const {
    const V m = O::fma(c, O::set(0), log1p_01<O>(z));  // NaN for an infinite t
    const V n = O::sub(O::set(1), p);
    const V f = O::by_sign(x, p, O::set(1));
    const V far = O::mul(f, O::zero_where_zero(f, a));
    const V positive = O::sub(O::set(0), O::fma(n, m, far));
    return O::by_sign(x, O::fnma(n, m, far), positive);
  }

  // q: z / (1 + z) by itself misses 2 ulp, since 1 + z is rounded. z - z * that
  // has the rounding times z.
  SIGMOID_CE_INLINE V sigmoid_neg() const {
    return O::fnma(z, O::div(z, O::add(O::set(1), z)), z);
  }
};

// The focal loss (Lin et al., Focal loss for dense object detection, 2017): the
// factor R = r^gamma, where r is what sigmoid(x) gives the wrong class, t (1 -
// sigmoid(x)) + (1 - t) sigmoid(x). With the names of Element, E its loss:
//
//   v = x >= 0 ? n : t         k = 1 - v     s = 1 - q        v is u without p
//   r = v s + k q = (v + k z) / (1 + z)
//   L = -log r = D + m, with D = -log(v + k z)                a where v = 0,
//   and 0 where v = 1 R = exp(-gamma L)
//
// Hard targets need no logarithm, and keep their tails. As f = R E, and with h
// = q s / r, rho = (2 v - 1) h:
//
//   f'  = R (E' + gamma rho E)                                up to the sign of
//   x, as E' f'' = R (E'' + gamma (2 rho E' + rho E ((gamma - 1) rho + q - s)))
//   df/dt = R (dE/dt +- gamma (s - q) E / r)
//
//   valid range      t in [0, 1], else NaN; gamma in [0, 10^6]
//   max error        docs/numerics.md
template <class O>
struct Focal {
  using T = typename O::T;
  using V = typename O::V;

  const Element<O>& e;
  V v, k, m, q, s, h, gamma, factor;

  // t, n: those that `element` was made with.
  SIGMOID_CE_INLINE Focal(const Element<O>& element, V t, V n, V power)
      : e(element), gamma(power) {
    const V one = O::set(1);
    v = O::by_sign(e.x, t, n);
    k = O::sub(one, v);
    m = log1p_01<O>(e.z);
    q = e.sigmoid_neg();
    s = O::sub(one, q);
    const V a = O::min_or_nan(
        e.a, O::set(1e12f));  // finite, and far beyond where R is 0
    V d = O::zero_where_zero(k, a);
    h = O::if_zero(v, s, q);
    // Whether t is 0 or 1. Of t itself and not of k where x >= 0: 1 - t is 1
    // for a tiny t below 0 too.
    if (!O::all(O::either(O::is_zero(t), O::is_zero(O::by_sign(e.x, k, v))))) {
      // A hard target among soft ones gets the bits that it gets among hard
      // ones.
      const V log_y = log_01<O>(O::fma(k, e.z, v));
      d = O::if_zero(v, a, O::sub(O::set(0), log_y));
      const V soft = O::quotient(O::mul(q, s), r());
      h = O::if_zero(v, s, O::if_zero(k, q, soft));
      const V nan = O::quotient(O::set(0), O::set(0));
      d = O::add(d, O::zero_if(O::in_range(t, O::set(0), one), nan));
    }
    // gamma L as g + (a rest): exp has the absolute error of its argument,
    // which is large in the tails.
    const V high = O::add(d, m);
    const V low = O::sub(m, O::sub(high, d));
    const V g = O::mul(gamma, high);
    const V minus_rest = O::fnma(gamma, low, O::fnma(gamma, high, g));
    const V power_of_r = exp_neg<O>(g);
    factor = O::fma(power_of_r, minus_rest, power_of_r);
  }

  SIGMOID_CE_INLINE V loss(V plain) const { return scaled(plain); }

  SIGMOID_CE_INLINE V gradient() const {
    return O::flip_sign(
        O::mul(factor, O::fma(O::mul(gamma, rho()), near_loss(), slope())),
        e.x);
  }

  SIGMOID_CE_INLINE V hessian() const {
    const V p = rho();
    const V curve = O::fma(O::sub(gamma, O::set(1)), p, O::sub(q, s));
    const V change =
        O::fma(O::add(p, p), slope(), O::mul(O::mul(p, near_loss()), curve));
    return O::mul(factor, O::fma(gamma, change, O::mul(O::mul(e.c, q), s)));
  }

  // plain: of the element, and its loss.
  SIGMOID_CE_INLINE V target_gradient(V plain, V loss) const {
    // A hard target has E / r = c m / q, which goes to c. The small term hides
    // the steps of subnormal numbers.
    const V small = O::set(1 / ExpLog1p<T>::kLifted);
    const V hard = O::mul(e.c, O::quotient(O::add(m, small), O::add(q, small)));
    const V ratio = O::if_zero(v, hard, O::quotient(loss, r()));
    const V change = O::mul(gamma, O::sub(s, q));
    return scaled(O::by_sign(e.x, O::fma(change, ratio, plain),
                             O::fnma(change, ratio, plain)));
  }

 private:
  // Nothing where R is 0, as it can be at infinite scores.
  SIGMOID_CE_INLINE V scaled(V v) const {
    return O::mul(factor, O::zero_where_zero(factor, v));
  }
  SIGMOID_CE_INLINE V limited() const {
    return O::min_or_nan(e.a, O::set(ExpLog1p<T>::kExpLimit));
  }
  SIGMOID_CE_INLINE V r() const { return O::fma(k, q, O::mul(v, s)); }
  SIGMOID_CE_INLINE V rho() const {
    return O::mul(O::fma(O::set(2), v, O::set(-1)), h);
  }
  SIGMOID_CE_INLINE V slope() const { return O::fnma(e.c, q, e.u); }
  // E, but finite where x is infinite: beyond the limit h is 0.
  SIGMOID_CE_INLINE V near_loss() const {
    return O::fma(limited(), e.u, O::mul(e.c, m));
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

// Which elements are counted together for `balance`: those of one (index /
// length) % count.
struct Groups {
  std::int64_t length, count;
};

inline Groups groups_of(const Options& options, const std::int64_t* shape,
                        int ndim, std::int64_t n_total) {
  Groups groups = {n_total > 0 ? n_total : 1, 1};
  int axes = 0;  // that the groups have an index of each
  if (options.balance == Balance::kImage) {
    groups.count = shape[0];
    axes = 1;
  }
  if (options.balance != Balance::kNone && options.balance_per_channel) {
    groups.count *= shape[1];
    axes = 2;
  }
  if (axes > 0) {
    groups.length = 1;
    for (int d = axes; d < ndim; ++d) groups.length *= shape[d];
    if (groups.length == 0) groups.length = 1;
  }
  return groups;
}

inline bool has_class_weights(const Options& options) {
  return options.class_weights != nullptr ||
         options.balance != Balance::kNone || options.negative_scale != 1 ||
         options.has_alpha;
}

// w+ and w- where P targets are 1 and M are 0. Products and quotients only,
// which every compiler rounds alike.
SIGMOID_CE_BOTH void class_weights(Balance balance, double positive_factor,
                                   double negative_factor, std::int64_t p,
                                   std::int64_t m, double* weights) {
  double positive = 1, negative = 1;
  const std::int64_t v = p + m;
  if (balance == Balance::kBatchMean) {
    std::int64_t k = p < v - 1 ? p : v - 1;
    k = k > 1 ? k : 1;
    const std::int64_t rest = v - k > 1 ? v - k : 1;
    positive = static_cast<double>(v) / static_cast<double>(2 * k);
    negative = static_cast<double>(v) / static_cast<double>(2 * rest);
  } else if (balance != Balance::kNone) {
    const double all = static_cast<double>(v > 1 ? v : 1);
    positive = static_cast<double>(m) / all;
    negative = static_cast<double>(p) / all;
  }
  weights[0] = positive * positive_factor;
  weights[1] = negative * negative_factor;
}

inline void class_weights(const Options& o, std::int64_t p, std::int64_t m,
                          double* weights) {
  class_weights(o.balance, o.has_alpha ? o.alpha : 1.0,
                (o.has_alpha ? 1.0 - o.alpha : 1.0) * o.negative_scale, p, m,
                weights);
}

// max(1, d), or Options::divisor.
inline double divisor(const Options& options, std::int64_t batch_size,
                      std::int64_t n_valid, std::int64_t n_total,
                      std::int64_t n_foreground = 0) {
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
    case Normalization::kForeground:
      d = n_foreground;
      break;
    case Normalization::kNumber:
      return options.divisor;
  }
  return d > 1 ? static_cast<double>(d) : 1.0;
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

// Ops on one element of a CUDA thread, for cpp/math/element.h. Every addition
// is an intrinsic that rounds to nearest and that the compiler never contracts
// with a product before it, so that no flag changes the bits.

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
  static constexpr int kBias = 127;
  static constexpr Bits kOne = Bits(kBias) << kMantissa;
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
    return divide(a, b, 1.0f / b);
#endif
  }
  SIGMOID_CE_DEVICE_INLINE float quotient(float a, float b) {
    return __fdiv_rn(a, b);
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
  static constexpr int kBias = 1023;
  static constexpr Bits kOne = Bits(kBias) << kMantissa;
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
  SIGMOID_CE_DEVICE_INLINE double quotient(double a, double b) {
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
  using M = bool;
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
  SIGMOID_CE_DEVICE_INLINE V if_zero(V u, V v, V w) { return u == 0 ? v : w; }
  // Of any two numbers; `div` is for z / (1 + z).
  SIGMOID_CE_DEVICE_INLINE V quotient(V a, V b) { return A::quotient(a, b); }
  // The exponent of a positive normal number, and the rest in [1, 2).
  SIGMOID_CE_DEVICE_INLINE V split(V v, V* mantissa) {
    constexpr Bits kLow = (Bits(1) << A::kMantissa) - 1;
    *mantissa = A::from_bits((A::bits(v) & kLow) | A::kOne);
    return A::from_int(static_cast<int>(A::bits(v) >> A::kMantissa) - A::kBias);
  }

  SIGMOID_CE_DEVICE_INLINE M is_zero(V v) { return v == 0; }
  SIGMOID_CE_DEVICE_INLINE M either(M a, M b) { return a | b; }
  SIGMOID_CE_DEVICE_INLINE bool all(M m) { return m; }
  SIGMOID_CE_DEVICE_INLINE M in_range(V v, V low, V high) {
    return v >= low && v <= high;
  }
  SIGMOID_CE_DEVICE_INLINE V zero_if(M m, V v) { return m ? V(0) : v; }
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
// Of kernels with a focal loss in double precision, which needs more registers.
constexpr int kMinBlocksFocal64 = 2;
constexpr int min_blocks(int itemsize, int kind) {
  return kind == kFocal && itemsize == 8 ? kMinBlocksFocal64 : kMinBlocks;
}
// Bytes of one load or store of a thread.
constexpr int kVectorBytes = 16;
// Rows of a thread, of four, of so many elements, that are loaded before the
// first is computed. More would not fit the registers.
constexpr int rows_at_once(int lanes, bool options, bool sums) {
  return !options && (lanes == 4 || (lanes == 2 && !sums)) ? 2 : 1;
}
// Elements of a row that are computed side by side where there are options. A
// focal loss is too long to be there more than once, and fills the processor by
// the threads that there are.
constexpr int elements_at_once(int lanes, int kind) {
  return kind == kFocal ? 1 : lanes == 8 ? 2 : lanes;
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

// Targets of so many bytes that a block counts at once: those of a warp fit 16
// bits.
constexpr int count_tile_of(int itemsize) {
  return 8 * kThreads * (kVectorBytes / itemsize);
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

// The class of a target: 1, 0, or -1 for what lies between or beyond.
template <class S>
SIGMOID_CE_DEVICE_INLINE int class_of(S t) {
  return t == 1 ? 1 : t == 0 ? 0 : -1;
}
SIGMOID_CE_DEVICE_INLINE int class_of(math::Bool t) {
  return t.byte != 0 ? 1 : 0;
}
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

// n / extent, for n below 2^63.
SIGMOID_CE_DEVICE_INLINE std::uint64_t divided(std::uint64_t n,
                                               const Axis& axis) {
  return (__umul64hi(n, axis.magic) + n) >> axis.shift;
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
  if (view.n_axes == 0) return {index * itemsize, itemsize};
  Place place = {0, view.axes[view.n_axes - 1].stride};
  std::uint64_t rest = static_cast<std::uint64_t>(first + index);
#pragma unroll 1
  for (int d = view.n_axes - 1; d > 0; --d) {
    const std::uint64_t quotient = divided(rest, view.axes[d]);
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
  double divisor =
      args.divide_by_foreground ? args.workspace->divisor : args.sum_divisor;
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

// Stand for the integers, and for every type, which is known when the kernel
// runs.
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
      *ignored |= is_left_out(t[0][k], args) ? 1u << k : 0u;
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
  static constexpr bool kSums = kOperation == kForward ||
                                kOperation == kForwardBackward ||
                                kOperation == kHessian;
  static constexpr bool kGradient = kOperation == kBackward ||
                                    kOperation == kForwardBackward ||
                                    kOperation == kHessian;
  static constexpr bool kScales = kGradient || kOperation == kTargetBackward;
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
  static constexpr int kRowsAtOnce = rows_at_once(kLanes, kOptions, kSums);
  static constexpr int kAtOnce = elements_at_once(kLanes, kKind);

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

  // The factor on the derivatives, the same for all.
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

  // The options of one element.
  struct Factors {
    T p, w;                // pos_weight, element weight
    T positive, negative;  // class weights
    bool ignored;
  };

  // Those that are the same for all.
  static __device__ __forceinline__ Factors
  uniform_factors(const Arguments& args) {
    return {Arithmetic<T>::number(args.pos_weight),
            Arithmetic<T>::number(args.weight),
            Arithmetic<T>::number(args.class_weight[0]),
            Arithmetic<T>::number(args.class_weight[1]), false};
  }

  // What goes into the outputs.
  struct Written {
    X out, hessian;
  };

  // One element: its loss, and what is written.
  static __device__ __forceinline__ T element(const Arguments& args, T scale,
                                              X x, T t, const Factors& f,
                                              Written* written) {
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
      const math::Focal<O> focal(e, t, negative,
                                 Arithmetic<T>::number(args.gamma));
      if (kOperation != kBackward) loss = focal.loss(e.loss());
      if (kGradient) d = focal.gradient();
      if (kOperation == kHessian) hessian = focal.hessian();
      if (kOperation == kTargetBackward) {
        d = focal.target_gradient(e.target_gradient(pos_weight_of(args, f)),
                                  e.loss());
      }
    } else {
      if (kOperation != kBackward) loss = e.loss();
      if (kGradient) d = e.gradient();
      if (kOperation == kHessian) hessian = e.hessian();
      if (kOperation == kTargetBackward)
        d = e.target_gradient(pos_weight_of(args, f));
    }
    if (kOperation == kTargetBackward) {
      if (args.has_class_weights) {
        const T step = O::sub(f.positive, f.negative);
        d = O::fma(step, O::zero_where_zero(step, loss),
                   O::mul(by_class, O::zero_where_zero(by_class, d)));
      }
      if (args.has_smoothing)
        d = O::mul(d, Arithmetic<T>::number(args.smoothing_factor));
    } else if (kOptions) {
      loss = zero ? T(0) : O::mul(w, loss);
    }
    if (kOperation == kElementwise) convert(loss, &written->out);
    if (kScales) convert(scaled(d, w, scale, zero), &written->out);
    if (kOperation == kHessian)
      convert(scaled(hessian, w, scale, zero), &written->hessian);
    return loss;
  }

  static __device__ __forceinline__ T pos_weight_of(const Arguments& args,
                                                    const Factors& f) {
    return args.has_pos_weight ? f.p : T(1);
  }

  // A derivative with the weight and the factor of all.
  static __device__ __forceinline__ T scaled(T d, T w, T scale, bool zero) {
    if (kOptions) d = O::mul(d, w);
    d = O::mul(d, scale);
    return kOptions && zero ? T(0) : d;
  }

  // Where the options of a row of a thread are, and those of lane k. Bytes from
  // the begin of small arrays, which take fewer registers than addresses.
  struct RowFactors {
    unsigned pos_weight = 0, class_weight = 0;

    __device__ __forceinline__ RowFactors(const Arguments& args,
                                          std::int64_t first) {
      if (args.pos_weight_per_channel) {
        pos_weight = offset32(args, args.pos_weights, sizeof(T), first);
      }
      if (args.class_weights_by_group) {
        class_weight =
            offset32(args, args.class_weights, sizeof(ClassSlot), first);
      }
    }
    static __device__ __forceinline__ unsigned offset32(const Arguments& args,
                                                        const DeviceView& view,
                                                        int itemsize,
                                                        std::int64_t first) {
      return static_cast<unsigned>(
          place_of(view, itemsize, args.first, first).offset);
    }
    __device__ __forceinline__ void get(const Arguments& args, int k,
                                        Factors* f) const {
      if (args.pos_weight_per_channel) {
        f->p = *reinterpret_cast<const T*>(
            args.pos_weights.data + (pos_weight + k * args.pos_weight_step));
      }
      if (args.class_weights_by_group) {
        get_class_weights(args.class_weights.data +
                              (class_weight + k * args.class_weight_step),
                          f);
      }
    }
  };

  static __device__ __forceinline__ void get_class_weights(const char* slot,
                                                           Factors* f) {
    f->positive = reinterpret_cast<const T*>(slot)[0];
    f->negative = reinterpret_cast<const T*>(slot)[1];
  }

  // The four rows of a thread from element `begin` of the call on, by wide
  // loads. sums[k][0]: over j of lane k.
  static __device__ __forceinline__ void fast(const Arguments& args, T scale,
                                              std::int64_t begin, CellSums sums,
                                              unsigned* n_ignored) {
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
        load_wide(args.scores.data + (first + i * math::kRow) * sizeof(X),
                  x[i]);
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
          const T loss =
              element(args, scale, x[i][k], target, Factors(), &written);
          out[k] = written.out;
          if (kSums) sum[k] = __dadd_rn(sum[k], loss);
        }
        if (kWrites)
          store_wide(args.out.data + (first + i * math::kRow) * sizeof(X), out);
      }
    }
    if (kSums) {
#pragma unroll
      for (int k = 0; k < kLanes; ++k) sums[k][0] = sum[k];
    }
  }

  // Here the options need the registers, so some elements of a row are
  // computed, and the next ones turn into their place.
  static __device__ __forceinline__ void fast_with_options(
      const Arguments& args, T scale, std::int64_t begin, CellSums sums,
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
      if (kOperation == kHessian)
        store_wide(args.hessian.data + first * sizeof(X), hessian);
    }
  }

  // The first elements leave, and the last ones are there twice.
  template <class V>
  static __device__ __forceinline__ void turn(V (&values)[kLanes]) {
#pragma unroll
    for (int k = 0; k + kAtOnce < kLanes; ++k) values[k] = values[k + kAtOnce];
  }

  template <int kRows>
  static __device__ __forceinline__ void load_targets(const Arguments& args,
                                                      std::int64_t first,
                                                      Kept (&t)[kRows][kLanes],
                                                      unsigned* ignored) {
    const bool find_ignored =
        kOptions && (args.has_ignore_label || args.ignores_uncertain);
    TargetType<S>::template dispatch<X>(
        args.target_dtype, LoadTargets<kRows, kLanes, Kept>{
                               args, first, find_ignored, t, ignored});
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
        T t;
        bool ignored = false;
        TargetType<S>::template dispatch<X>(
            args.target_dtype, LoadTarget<T>{args, at, &t, &ignored});
        Factors f = Factors();
        if (kOptions) {
          f = uniform_factors(args);
          f.ignored = ignored;
          *n_ignored += ignored;
          if (args.pos_weight_per_channel) {
            f.p = *reinterpret_cast<const T*>(
                args.pos_weights.data +
                offset<sizeof(T)>(args, args.pos_weights, at));
          }
          if (args.class_weights_by_group) {
            get_class_weights(
                args.class_weights.data +
                    offset<sizeof(ClassSlot)>(args, args.class_weights, at),
                &f);
          }
          if (args.has_weights) {
            f.w = load_weight<X, T>(
                args.weights.data +
                    place_of(args.weights, args.weight_itemsize, args.first, at)
                        .offset,
                args.weight_dtype);
          }
        }
        Written written = Written();
        const T loss = element(args, scale, x, t, f, &written);
        if (kSums) sum = __dadd_rn(sum, loss);
        if (kWrites) {
          *reinterpret_cast<X*>(args.out.data +
                                offset<sizeof(X)>(args, args.out, at)) =
              written.out;
        }
        if (kOperation == kHessian) {
          *reinterpret_cast<X*>(args.hessian.data +
                                offset<sizeof(X)>(args, args.hessian, at)) =
              written.hessian;
        }
      }
      if (kSums) sums[k][0] = sum;
    }
  }

  template <int kItemsize>
  static __device__ __forceinline__ std::int64_t offset(const Arguments& args,
                                                        const DeviceView& view,
                                                        std::int64_t at) {
    return kOptions ? place_of(view, kItemsize, args.first, at).offset
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
        word = __ldcg(
// NOLINT_NEXT_LINE(runtime/int)
            reinterpret_cast<const long long*>(&args.workspace->words[k]));
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
SIGMOID_CE_DEVICE_INLINE void put_class_weights(const Arguments& args,
                                                std::uint64_t group,
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
  std::uint64_t group =
      static_cast<std::uint64_t>(blockIdx.x) * kThreads + threadIdx.x;
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

// A pass over the targets alone. A tile of a block of threads lies mostly in
// one group, or the groups are few, and counted in shared memory.
template <class S>
struct Count {
  static constexpr int kLanes = kVectorBytes / sizeof(S);
  static constexpr int kTile = count_tile_of(sizeof(S));
  static constexpr int kFewGroups = 1024;

  struct Shared {
    unsigned counts[kFewGroups][2];  // of a block: fewer than 2^31 elements, by
                                     // the number of tiles
// NOLINT_NEXT_LINE(runtime/int)
    unsigned long long totals[3];    // ignored, of class 1, of class 0
  };

  const Arguments& args;
// NOLINT_NEXT_LINE(runtime/references)
  Shared& shared;
// NOLINT_NEXT_LINE(runtime/int)
  unsigned long long ignored = 0;

// NOLINT_NEXT_LINE(runtime/references)
  __device__ __forceinline__ Count(const Arguments& a, Shared& s)
      : args(a), shared(s) {}

  __device__ __forceinline__ std::uint64_t groups() const {
    return args.groups.extent;
  }
  __device__ __forceinline__ bool few() const { return groups() <= kFewGroups; }

  __device__ __forceinline__ ClassSlot* slots() const {
    return args.counts_groups ? args.class_slots : &args.workspace->all;
  }

  // `packed`: of class 1 in the upper 16 bits, of class 0 in the lower ones.
  __device__ __forceinline__ void add(std::uint64_t group,
                                      unsigned packed) const {
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

  __device__ __forceinline__ void add_count(std::uint64_t group, int k,
                                            unsigned n) const {
// NOLINT_NEXT_LINE(runtime/int)
    atomicAdd(reinterpret_cast<unsigned long long*>(&slots()[group].counts[k]),
// NOLINT_NEXT_LINE(runtime/int)
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
    return *reinterpret_cast<const S*>(
        args.targets.data +
        place_of(args.targets, sizeof(S), args.first, at).offset);
  }

  __device__ __forceinline__ void tile(std::int64_t begin) {
    const std::int64_t end =
        begin + kTile < args.count ? begin + kTile : args.count;
    const std::uint64_t index = static_cast<std::uint64_t>(args.first + begin);
    const std::uint64_t run = divided(index, args.group_length);
    const std::uint64_t last = static_cast<std::uint64_t>(args.first + end - 1);
    if (divided(last, args.group_length) != run)
      return several_groups(begin, end);
    unsigned packed = 0;
#pragma unroll 1
    for (std::int64_t at = begin + threadIdx.x * kLanes; at < end;
         at += kThreads * kLanes) {
      if (args.vector_targets && at + kLanes <= end) {
        S t[kLanes];
        load_wide(args.targets.data + at * sizeof(S), t);
#pragma unroll
        for (int k = 0; k < kLanes; ++k) packed += classify(t[k]);
      } else {
#pragma unroll 1
        for (int k = 0; k < kLanes && at + k < end; ++k)
          packed += classify(load(at + k));
      }
    }
    // At most kTile / 8 in a warp.
#pragma unroll
    for (int k = kWarp / 2; k > 0; k /= 2)
      packed += __shfl_down_sync(kAllLanes, packed, k);
    if (threadIdx.x % kWarp == 0) add(group_of(run), packed);
  }

  __device__ __forceinline__ void several_groups(std::int64_t begin,
                                                 std::int64_t end) {
#pragma unroll 1
    for (std::int64_t at = begin + threadIdx.x * kLanes; at < end;
         at += kThreads * kLanes) {
      const std::uint64_t index = static_cast<std::uint64_t>(args.first + at);
      const std::uint64_t run = divided(index, args.group_length);
      std::uint64_t group = group_of(run);
      std::uint64_t left =
          args.group_length.extent - (index - run * args.group_length.extent);
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
    for (std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kTile;
         at < args.count; at += step) {
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
// NOLINT_NEXT_LINE(runtime/int)
      atomicAdd(reinterpret_cast<unsigned long long*>(&args.workspace->ignored),
                shared.totals[0]);
    }
    if (is_last_block(&args.workspace->count_blocks_done)) finish();
  }

  // The weights of all groups, and the divisor.
  __device__ __forceinline__ void finish() {
// NOLINT_NEXT_LINE(runtime/int)
    unsigned long long sums[2] = {};
#pragma unroll 1
    for (std::uint64_t group = threadIdx.x; group < groups();
         group += kThreads) {
// NOLINT_NEXT_LINE(runtime/int)
      unsigned long long n[2];
      for (int k = 0; k < 2; ++k) {
// NOLINT_NEXT_LINE(runtime/int)
        n[k] = __ldcg(reinterpret_cast<const unsigned long long*>(
            &slots()[group].counts[k]));
        sums[k] += n[k];
      }
      if (!args.counts_groups) continue;
      double weights[2];
      math::class_weights(args.balance, args.positive_factor,
                          args.negative_factor, static_cast<std::int64_t>(n[0]),
                          static_cast<std::int64_t>(n[1]), weights);
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
      n = args.count - static_cast<std::int64_t>(
// NOLINT_NEXT_LINE(runtime/int)
                           __ldcg(reinterpret_cast<const unsigned long long*>(
                               &args.workspace->ignored)));
    }
    args.workspace->divisor = n > 1 ? static_cast<double>(n) : 1.0;
  }
};

template <class S>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    count_targets(const Arguments args) {
  __shared__ typename Count<S>::Shared shared;
  Count<S>(args, shared).run();
}

}  // namespace cuda
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace cuda {

template <class X, class S, int kOperation>
void fill_operation(const void* (&run)[kOperations][2]) {
  run[kOperation][0] =
      reinterpret_cast<const void*>(&pass_kernel<X, S, kOperation, kPlain>);
  run[kOperation][1] =
      reinterpret_cast<const void*>(&pass_kernel<X, S, kOperation, kGeneral>);
}

template <class X, class S>
void fill_target(const void* (&run)[kOperations][2]) {
  fill_operation<X, S, kForward>(run);
  fill_operation<X, S, kElementwise>(run);
  fill_operation<X, S, kBackward>(run);
  fill_operation<X, S, kForwardBackward>(run);
}

template <class X, int kOperation>
void fill_focal(const void* (&focal)[kFocalOperations]) {
  focal[kOperation] =
      reinterpret_cast<const void*>(&pass_kernel<X, Any, kOperation, kFocal>);
}

template <class X>
KernelTable make_table() {
  KernelTable table = {};
  static_assert(Pass<X, X, kForward, kPlain>::kTile == tile_of(sizeof(X)),
                "the plan counts tiles");
  fill_target<X, X>(table.run[kTargetScores]);
#if !defined(SIGMOID_CE_TARGETS_OF_SCORES_ONLY)
  if (sizeof(X) != sizeof(float))
    fill_target<X, float>(table.run[kTargetFloat32]);
  fill_target<X, Integer>(table.run[kTargetInteger]);
#endif
  fill_focal<X, kForward>(table.focal);
  fill_focal<X, kElementwise>(table.focal);
  fill_focal<X, kBackward>(table.focal);
  fill_focal<X, kForwardBackward>(table.focal);
  fill_focal<X, kHessian>(table.focal);
  fill_focal<X, kTargetBackward>(table.focal);
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
  return reinterpret_cast<const void*>(&count_targets<S>);
}
}  // namespace

const void* count_kernel(DType targets) {
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

namespace {
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    class_weights(const Arguments args) {
  class_weights_of_call(args);
}
}  // namespace

const void* class_weights_kernel() {
  return reinterpret_cast<const void*>(&class_weights);
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
  Kind kind;
  std::size_t
      clears;   // bytes of the workspace that must be 0 before the first kernel
  bool counts;  // the targets are counted first, by a kernel of their own
  bool weighs;  // class weights that need no counts are put into the workspace
                // first
  unsigned grid;  // blocks; 0: nothing to launch
  unsigned count_grid, weigh_grid;
  Arguments arguments;
};

// `results` of the passes that add, `out` of those that write, `hessian` of
// kHessian; else null.
Status make_plan(Operation operation, const Inputs& inputs,
                 const Options& options, const Results* results,
                 const MutableArray* out, const MutableArray* hessian,
                 void* workspace, int multiprocessors, Plan* plan);

// What the functions of cuda.h say of these.
std::size_t bytes_of_workspace(const Inputs& inputs, const Options& options);
std::int64_t groups_of(const Inputs& inputs, const Options& options);

}  // namespace cuda
}  // namespace sigmoid_ce

// The arguments of a call, checked: what is the same on every device.

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

constexpr double kMaxGamma = 1e6;

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
        !(o.weight.dtype == DType::kFloat32 && is_half(inputs.scores.dtype)) &&
        o.weight.dtype != DType::kBool && o.weight.dtype != DType::kUint8 &&
        o.weight.dtype != DType::kInt8) {
      return invalid("weight",
                     "expected the scores' dtype (or float32 beside 16 bits), "
                     "bool, uint8 or int8");
    }
    // !(a <= b) and the like: NaN too.
    if (!(o.label_smoothing >= 0 && o.label_smoothing < 1)) {
      return invalid("label_smoothing",
                     "expected a number of 0 or more and below 1");
    }
    if (!(o.gamma >= 0 && o.gamma <= kMaxGamma)) {
      return invalid("gamma", "expected a number from 0 to 1e6");
    }
    if (o.has_alpha && !(o.alpha >= 0 && o.alpha <= 1)) {
      return invalid("alpha", "expected a number from 0 to 1");
    }
    if (!(o.negative_scale >= 0 &&
          o.negative_scale <= std::numeric_limits<float>::max())) {
      return invalid("negative_scale", "expected a finite number of 0 or more");
    }
    if (o.uncertain > Uncertain::kIgnore) {
      return invalid("uncertain", "expected one of the enumeration");
    }
    if (o.balance > Balance::kBatchMean) {
      return invalid("balance", "expected one of the enumeration");
    }
    if (o.balance == Balance::kImage && inputs.ndim < 2) {
      return invalid(
          "balance",
          "by image expects scores with an axis of images and another one");
    }
    if (o.balance_per_channel && o.balance == Balance::kNone) {
      return invalid("balance_per_channel",
                     "expected a balance that it is for");
    }
    if (o.balance_per_channel && inputs.ndim < 2) {
      return invalid("balance_per_channel",
                     "expected scores with channels (axis 1)");
    }
    if (o.balance != Balance::kNone && o.class_weights == nullptr &&
        count != total) {
      return invalid(
          "balance",
          "expected the whole array, or the class_weights for a piece of it");
    }
    if (o.normalization > Normalization::kForeground) {
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

  // Whether a target of this value, which every type has, is ignored.
  bool matches(int value, bool integers) const {
    return on && (integers ? label == value : low <= value && value <= high);
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

// Bytes from one element to the next of a row, of an array whose last axis has
// one value for all, or one for each.
unsigned step_of(const DeviceView& view, std::int64_t itemsize) {
  return static_cast<unsigned>(
      view.n_axes == 0 ? itemsize : view.axes[view.n_axes - 1].stride);
}

// The options as the CPU has them; class weights in device memory count as
// given, and nobody here reads them.
sigmoid_ce::Options with_class_weights(const Options& options) {
  sigmoid_ce::Options common = options;
  common.class_weights = options.device_class_weights;
  return common;
}

math::Groups find_groups(const Inputs& inputs, const Options& options,
                         std::int64_t total) {
  return math::groups_of(options, inputs.shape, inputs.ndim, total);
}

// Whether the class weights have a table in the workspace.
bool has_slots(const Options& options) {
  return options.device_class_weights != nullptr ||
         options.balance != Balance::kNone;
}

bool is_scores_type(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 ||
         math::is_half(dtype);
}

std::int64_t pieces_of(std::int64_t n, std::int64_t unit) {
  return (n + unit - 1) / unit;
}

}  // namespace

std::int64_t groups_of(const Inputs& inputs, const Options& options) {
  const sigmoid_ce::Options common = with_class_weights(options);
  Inputs shape = inputs;
  shape.scores.data = shape.targets.data = &shape;  // the arrays may come later
  Call call(shape, common);
  return call.check().ok() ? find_groups(inputs, options, call.total).count : 0;
}

std::size_t bytes_of_workspace(const Inputs& inputs, const Options& options) {
  // The same for a pass that counts and for one that gets its weights.
  const std::int64_t groups =
      options.balance == Balance::kNone ? 1 : groups_of(inputs, options);
  return sizeof(Workspace) +
         static_cast<std::size_t>(groups) * sizeof(ClassSlot);
}

Status make_plan(Operation operation, const Inputs& inputs,
                 const Options& options, const Results* results,
                 const MutableArray* out, const MutableArray* hessian,
                 void* workspace, int multiprocessors, Plan* plan) {
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
  if (options.class_weights != nullptr) {
    return invalid(
        "class_weights",
        "expected none; those in device memory go into device_class_weights");
  }
  const sigmoid_ce::Options common = with_class_weights(options);
  Call call(inputs, common);
  Status status = call.check();
  if (!status.ok()) return status;
  const std::int64_t channels = options.channel_pos_weight_count;
  if (channels < 0 || (channels > 0 && options.channel_pos_weight == nullptr)) {
    return invalid("channel_pos_weight", "expected one value per channel");
  }
  if (!call.fits_channels(channels)) {
    return invalid("channel_pos_weight",
                   "expected one value, or one per channel (axis 1)");
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
  const bool gradient = operation != kForward && operation != kElementwise;
  const bool adds = results != nullptr;

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
  args.vector_targets =
      args.targets.n_axes == 0 &&
      fits_wide(args.targets, math::size_of(target),
                kVectorBytes / static_cast<int>(math::size_of(target)));
  const View weight = call.view(options.weight);
  const struct {
    const char* name;
    const MutableArray* array;
    DeviceView* view;
  } outputs[] = {{"out", out, &args.out}, {"hessian", hessian, &args.hessian}};
  for (const auto& output : outputs) {
    if (output.array == nullptr || call.count == 0) continue;
    if (output.array->as_float32) {
      return invalid(
          output.name,
          "expected an array of the scores' dtype; as_float32 is for the CPU");
    }
    const View view =
        call.view(ConstArray(output.array->data, dtype, output.array->strides));
    status = call.check_output(*output.array, view, scores, targets, weight);
    if (status.ok() && output.array == hessian) {
      const View first = call.view(ConstArray(out->data, dtype, out->strides));
      if (view.same_layout(first) || call.overlap(view, first)) {
        status = invalid("out", "expected no overlap with the gradient");
      }
    }
    if (!status.ok()) return Status(status.code, output.name, status.message);
    if (!make_view(view, call.first, output.view))
      return too_many_axes(output.name);
    strided = strided || output.view->n_axes > 0;
    args.vector = args.vector && output.view->n_axes == 0 &&
                  fits_wide(*output.view, itemsize, lanes);
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
    if (channels > 1) strides[1] = size;
    const View view(options.channel_pos_weight, size, inputs.shape, inputs.ndim,
                    strides, 0);
    if (!make_view(view, call.first, &args.pos_weights))
      return too_many_axes("pos_weight");
    args.vector = args.vector &&
                  has_whole_rows(args.pos_weights, call.first, lanes) &&
                  channels * size <= INT32_MAX;
    args.pos_weight_step = step_of(args.pos_weights, size);
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
  args.ignores_uncertain = options.uncertain == Uncertain::kIgnore;
  args.smoothing_factor = Number(1);
  if (options.label_smoothing != 0) {
    args.has_smoothing = true;
    args.smoothing_factor = Number(1 - options.label_smoothing);
    args.smoothing_term = Number(options.label_smoothing / 2);
  }
  args.has_gamma = options.gamma != 0;
  args.gamma = Number(options.gamma);

  // ---- Class weights ----
  args.workspace = static_cast<Workspace*>(workspace);
  const math::Groups groups = find_groups(inputs, options, call.total);
  const bool given_weights = options.device_class_weights != nullptr;
  args.has_class_weights = math::has_class_weights(common);
  args.balance = options.balance;
  args.positive_factor = options.has_alpha ? options.alpha : 1.0;
  args.negative_factor =
      (options.has_alpha ? 1.0 - options.alpha : 1.0) * options.negative_scale;
  args.class_weight[0] = Number(args.positive_factor);
  args.class_weight[1] = Number(args.negative_factor);
  args.given_weights = options.device_class_weights;
  args.weight_count = static_cast<std::uint64_t>(groups.count);
  args.class_weights_out = adds ? results->class_weights : nullptr;
  args.counts_groups =
      options.balance != Balance::kNone && !given_weights && groups.count > 0;
  args.slots_of_float64 = dtype == DType::kFloat64;
  if (has_slots(options)) {
    args.class_weights_by_group = true;
    args.class_slots = workspace == nullptr
                           ? nullptr
                           : reinterpret_cast<ClassSlot*>(args.workspace + 1);
    constexpr std::int64_t kSlot = sizeof(ClassSlot);
    std::int64_t strides[kMaxDims] = {};
    if (groups.count > 1) {
      if (options.balance_per_channel) strides[1] = kSlot;
      if (options.balance == Balance::kImage) {
        strides[0] =
            options.balance_per_channel ? inputs.shape[1] * kSlot : kSlot;
      }
    }
    const View view(args.class_slots, kSlot, inputs.shape, inputs.ndim, strides,
                    0);
    if (!make_view(view, call.first, &args.class_weights))
      return too_many_axes("balance");
    args.vector = args.vector &&
                  has_whole_rows(args.class_weights, call.first, lanes) &&
                  groups.count <= INT32_MAX / kSlot;
    args.class_weight_step = step_of(args.class_weights, kSlot);
  }
  if (operation >= kOperations || args.has_gamma) {
    plan->kind = kFocal;
  } else if (strided || args.has_pos_weight || weighted ||
             args.has_ignore_label || args.ignores_uncertain ||
             args.has_smoothing || args.has_class_weights) {
    plan->kind = kGeneral;
  }

  // ---- Scale and results ----
  const bool foreground = options.normalization == Normalization::kForeground;
  const bool finds_divisor =
      gradient && options.gradient_divisor == nullptr &&
      (foreground || (options.normalization == Normalization::kValid &&
                      (args.has_ignore_label || args.ignores_uncertain)));
  const bool divides_by_foreground =
      adds && foreground &&
      (results->loss != nullptr || results->divisor != nullptr);
  plan->counts = args.counts_groups || finds_divisor || divides_by_foreground;
  args.counts_foreground = foreground;
  const math::Groups counted =
      args.counts_groups ? groups
                         : math::Groups{call.total > 0 ? call.total : 1, 1};
  args.group_length = make_axis(counted.length, 0);
  args.groups = make_axis(counted.count, 0);
  plan->weighs = given_weights ||
                 (args.class_weights_out != nullptr && !args.counts_groups);
  if (gradient) {
    args.loss_weight = options.loss_weight;
    args.divisor = options.gradient_divisor;
    if (args.divisor == nullptr && !finds_divisor) {
      args.scale =
          Number(options.loss_weight / math::divisor(options, call.batch_size,
                                                     call.count, call.total));
    }
  }
  if (adds) {
    args.loss = results->loss;
    args.loss_is_float64 = results->loss_dtype == DType::kFloat64;
    args.loss_divisor = results->divisor;
    args.partial = reinterpret_cast<std::int64_t*>(results->partial);
    args.divide_by_valid = options.normalization == Normalization::kValid;
    args.divide_by_foreground = divides_by_foreground;
    args.sum_divisor =
        math::divisor(options, call.batch_size, call.count, call.total);
  }

  // ---- Grid ----
  const std::int64_t most =
      static_cast<std::int64_t>(kBlocksPerMultiprocessor) *
      (multiprocessors > 0 ? multiprocessors : 1);
  std::int64_t tiles = pieces_of(call.count, tile_of(itemsize));
  if (tiles > INT32_MAX) {
    return Status(Code::kUnsupported, "scores",
                  "expected fewer than 2^43 elements");
  }
  // A pass without elements has results all the same.
  if (tiles == 0 && adds) tiles = 1;
  args.tiles = static_cast<unsigned>(tiles);
  plan->grid = static_cast<unsigned>(tiles < most ? tiles : most);
  if (plan->counts) {
    const std::int64_t tile =
        count_tile_of(static_cast<int>(math::size_of(target)));
    const std::int64_t blocks = pieces_of(call.count, tile);
    // A block counts fewer than 2^31 targets.
    const std::int64_t least = pieces_of(blocks, INT32_MAX / tile);
    const std::int64_t wanted = blocks < most  ? blocks
                                : most > least ? most
                                               : least;
    plan->count_grid = static_cast<unsigned>(wanted == 0 ? 1 : wanted);
  }
  if (plan->weighs) {
    const std::int64_t blocks = pieces_of(groups.count, kThreads);
    plan->weigh_grid = static_cast<unsigned>(blocks == 0     ? 1
                                             : blocks < most ? blocks
                                                             : most);
  }
  const bool has_table = has_slots(options);
  if (plan->counts) {
    plan->clears =
        sizeof(Workspace) +
        (args.counts_groups ? static_cast<std::size_t>(groups.count) : 0) *
            sizeof(ClassSlot);
  } else if (adds && plan->grid > 1) {
    plan->clears = sizeof(Workspace);
  }
  if ((plan->clears > 0 || adds || has_table) && workspace == nullptr) {
    return invalid("workspace",
                   "expected workspace_size() bytes of device memory");
  }
  if (reinterpret_cast<std::uintptr_t>(workspace) % alignof(Workspace) != 0) {
    return invalid("workspace", "expected an address that is a multiple of 8");
  }
  if (finds_divisor) args.divisor = &args.workspace->divisor;
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

Status status_of(int number) {
  const cudaError_t error = static_cast<cudaError_t>(number);
  if (error != cudaSuccess) cudaGetLastError();
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

namespace {

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

const void* kernel_of(const Plan& plan) {
  const KernelTable& table = *table_of(plan.scores);
  if (plan.kind == kFocal) return table.focal[plan.operation];
  return table.run[plan.target][plan.operation][plan.kind == kGeneral];
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
  if (plan.clears > 0) {
    status = status_of(
        cudaMemsetAsync(plan.arguments.workspace, 0, plan.clears, stream));
  }
  if (status.ok() && plan.counts) {
    status = launch_kernel(count_kernel(plan.arguments.target_dtype),
                           plan.count_grid, plan.arguments, stream);
  }
  if (status.ok() && plan.weighs) {
    status = launch_kernel(class_weights_kernel(), plan.weigh_grid,
                           plan.arguments, stream);
  }
  if (status.ok())
    status = launch_kernel(kernel_of(plan), plan.grid, plan.arguments, stream);
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
               const MutableArray* out, void* workspace, Stream stream,
               const MutableArray* hessian = nullptr) {
  int multiprocessors = 0;
  Status status = find_multiprocessors(&multiprocessors);
  if (!status.ok()) return status;
  Plan plan;
  status = make_plan(operation, inputs, options, results, out, hessian,
                     workspace, multiprocessors, &plan);
  if (!status.ok()) return status;
  return launch(plan, stream);
}

}  // namespace

std::size_t workspace_size(const Inputs& inputs, const Options& options) {
  return bytes_of_workspace(inputs, options);
}

std::int64_t class_weight_groups(const Inputs& inputs, const Options& options) {
  return groups_of(inputs, options);
}

Status forward(const Inputs& inputs, const Options& options,
               const Results& results, void* workspace, Stream stream) {
  return execute(kForward, inputs, options, &results, nullptr, workspace,
                 stream);
}

Status elementwise(const Inputs& inputs, const Options& options,
                   const MutableArray& losses, void* workspace, Stream stream) {
  return execute(kElementwise, inputs, options, nullptr, &losses, workspace,
                 stream);
}

Status elementwise(const Inputs& inputs, const Options& options,
                   const MutableArray& losses, Stream stream) {
  return elementwise(inputs, options, losses, nullptr, stream);
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

Status forward_backward(const Inputs& inputs, const Options& options,
                        const Results& results, const MutableArray& gradient,
                        const MutableArray& hessian, void* workspace,
                        Stream stream) {
  return execute(kHessian, inputs, options, &results, &gradient, workspace,
                 stream, &hessian);
}

Status backward_targets(const Inputs& inputs, const Options& options,
                        const MutableArray& gradient, void* workspace,
                        Stream stream) {
  return execute(kTargetBackward, inputs, options, nullptr, &gradient,
                 workspace, stream);
}

}  // namespace cuda
}  // namespace sigmoid_ce
