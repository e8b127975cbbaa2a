// sigmoid_ce 0.1.0, made from its sources by tools/make_overlay.py.
// (c) 2026, the sigmoid_ce developers. BSD 2-Clause License.
#include <cstdint>
#include <cstring>

#include "caffe/util/sigmoid_ce.hpp"

#if defined(__clang__)
#pragma clang diagnostic ignored "-Wunused-const-variable"
#endif

// What the dispatcher asks of an instruction set: a table of kernels, each for
// a run of elements.

namespace sigmoid_ce {
namespace cpu {

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

// What a call has beside scores and targets.
enum : unsigned {
  kIgnoreLabel = 1,
  kUncertain = 2,  // targets other than 0 and 1 are ignored
  kSmoothing = 4,
  kElementWeight = 8,
  kClassWeight = 16,
  kPosWeight = 32,
  kGamma = 64,

  kWeights = kElementWeight | kClassWeight,
  kZeros = kWeights | kIgnoreLabel |
      kUncertain,  // elements that are ignored or may have weight 0

  kArrays = 128,  // pos_weight or class weights differ between elements

  // Of a kernel: it looks which of its options are on. Others have all of
  // theirs.
  kAtRunTime = 256,
  kGeneral = kAtRunTime | kIgnoreLabel | kUncertain | kSmoothing | kWeights |
      kPosWeight | kArrays,
  kEverything = kGeneral | kGamma
};

// The kernels of an operation, by their options. Those with few take less time
// than the general one.
enum {
  kPlainKernel,
  kGeneralKernel,
  // For float32 scores with float32 or uint8 targets:
  kIgnoreKernel,
  kPosWeightKernel,
  kSmoothingKernel,
  kClassKernel,
  kFocalKernel,
  kFocalClassKernel,
  kKernels
};
constexpr unsigned kKernelOptions[kKernels] = {
    0,          kGeneral,     kIgnoreLabel, kPosWeight,
    kSmoothing, kClassWeight, kGamma,       kGamma | kClassWeight};

// A run starts at a block boundary. Arrays are contiguous, of any alignment; T
// is the scores' type.
struct Run {
  const void* scores;   // T
  const void* targets;  // the target type of the kernel
  void* out;            // T: losses or gradients; unused in kForward
  void* hessian;        // T
  std::int64_t n;
  bool stream;   // write `out` past the caches; it is aligned to 64 bytes then
  double scale;  // factor on the gradient, a value of T

  // Those that the kernel does not have are off.
  unsigned options;
  double pos_weight;        // a value of T, where pos_weights is null
  const void* pos_weights;  // T per element, or null
  double weight;            // a value of T, where weights is null
  const void* weights;      // T per element, or null
  double ignore_low,
      ignore_high;  // float targets: ignored when low <= t <= high
  std::int64_t
      ignore_label;  // integer targets; in the range of the target type
  double smoothing_factor,
      smoothing_term;  // t becomes t factor + term; values of T
  double
      class_weight[2];  // w+ and w-, values of T, where class_weights are null
  const void* class_weights[2];  // T per element, or null
  double gamma;

  // Results: one sum per block (kForward, kForwardBackward), and how many
  // elements were ignored.
  double* block_sums;
  std::int64_t ignored;
};

// NOLINT_NEXT_LINE(readability/casting)
using Kernel = void (*)(Run* run);
// How many of n targets have the label that is ignored; and how many are 1, and
// how many 0, whatever is ignored.
struct Counts {
  std::int64_t ignored, positive, negative;
};
// NOLINT_NEXT_LINE(readability/casting)
using CountKernel = void (*)(const Run& run, Counts* counts);
// n numbers of another type as T, from `targets` to `out`. Integers with the
// label that is ignored become kIgnored.
// NOLINT_NEXT_LINE(readability/casting)
using ConvertKernel = void (*)(const Run& run);
constexpr double kIgnored =
    1099511627776.0;  // 2^40: no integer target, which are saturated to 32 bits

// Indices: scores float32, float64; targets by kTarget*; operation; k*Kernel.
enum Target {
  kTargetScores,
  kTargetBool,
  kTargetUint8,
  kTargetInt8,
  kTargetInt32,
  kTargetInt64,
  kTargets
};

struct KernelTable {
  const char* name;
  Kernel run[2][kTargets][kOperations][kKernels];  // null where there is none
  Kernel focal[2][kFocalOperations];  // all options; for targets of the scores'
                                      // type
  CountKernel count_ignored[2][kTargets], count_classes[2][kTargets];
  ConvertKernel convert[2][kTargets];  // integers to T
  // float16, bfloat16 to float32 and back.
  ConvertKernel widen[2], narrow[2];
};

// Null where the instruction set does not exist on this architecture.
const KernelTable* scalar_kernels();
const KernelTable* avx2_kernels();
const KernelTable* avx512_kernels();
const KernelTable* neon_kernels();

}  // namespace cpu
}  // namespace sigmoid_ce

#if defined(__aarch64__)

// The CPU loop, written once. kernel_<isa>.cpp includes it inside a target
// region and calls make_table with its Ops. Everything here is a template over
// Ops, so that no function compiled for one instruction set can stand in for
// another's.

// Without optimisation all that is inlined would keep its variables, and the
// compiler need 6 GB for AVX-512.
#if defined(__GNUC__) && !defined(__clang__) && !defined(__OPTIMIZE__)
#pragma GCC optimize("O2")
#endif

// Two vectors handled as one, `kStride` elements apart in memory. Independent
// operations side by side hide the latency of the polynomials, and keep the
// formula free of it.

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
namespace cpu {

template <class O, int kStride>
struct Twice {
  using T = typename O::T;
  struct V {
    typename O::V a, b;
  };
  struct M {
    typename O::M a, b;
  };
  struct I {
    typename O::I a, b;
  };
  static constexpr int kLanes = O::kLanes;

#define SIGMOID_CE_TWICE_1(name) \
  static SIGMOID_CE_INLINE V name(V v) { return V{O::name(v.a), O::name(v.b)}; }
#define SIGMOID_CE_TWICE_2(name)                    \
  static SIGMOID_CE_INLINE V name(V v, V w) {       \
    return V{O::name(v.a, w.a), O::name(v.b, w.b)}; \
  }
#define SIGMOID_CE_TWICE_3(name)                              \
  static SIGMOID_CE_INLINE V name(V u, V v, V w) {            \
    return V{O::name(u.a, v.a, w.a), O::name(u.b, v.b, w.b)}; \
  }
  SIGMOID_CE_TWICE_1(abs)
  SIGMOID_CE_TWICE_2(add)
  SIGMOID_CE_TWICE_2(sub)
  SIGMOID_CE_TWICE_2(mul)
  SIGMOID_CE_TWICE_2(mul_rounded)
  SIGMOID_CE_TWICE_2(div)
  SIGMOID_CE_TWICE_2(quotient)
  SIGMOID_CE_TWICE_2(min_or_nan)
  SIGMOID_CE_TWICE_2(flip_sign)
  SIGMOID_CE_TWICE_2(zero_where_zero)
  SIGMOID_CE_TWICE_3(fma)
  SIGMOID_CE_TWICE_3(fnma)
  SIGMOID_CE_TWICE_3(scale)
  SIGMOID_CE_TWICE_3(by_sign)
  SIGMOID_CE_TWICE_3(if_zero)
#undef SIGMOID_CE_TWICE_1
#undef SIGMOID_CE_TWICE_2
#undef SIGMOID_CE_TWICE_3

  static SIGMOID_CE_INLINE V split(V v, V* mantissa) {
    return V{O::split(v.a, &mantissa->a), O::split(v.b, &mantissa->b)};
  }

  static SIGMOID_CE_INLINE V set(T v) { return V{O::set(v), O::set(v)}; }
  static SIGMOID_CE_INLINE V load(const T* p) {
    return V{O::load(p), O::load(p + kStride)};
  }
  static SIGMOID_CE_INLINE void store(T* p, V v) {
    O::store(p, v.a);
    O::store(p + kStride, v.b);
  }
  static SIGMOID_CE_INLINE void stream(T* p, V v) {
    O::stream(p, v.a);
    O::stream(p + kStride, v.b);
  }

  static SIGMOID_CE_INLINE M is_zero(V v) {
    return M{O::is_zero(v.a), O::is_zero(v.b)};
  }
  static SIGMOID_CE_INLINE M none() { return M{O::none(), O::none()}; }
  static SIGMOID_CE_INLINE M either(M m, M n) {
    return M{O::either(m.a, n.a), O::either(m.b, n.b)};
  }
  static SIGMOID_CE_INLINE M both(M m, M n) {
    return M{O::both(m.a, n.a), O::both(m.b, n.b)};
  }
  static SIGMOID_CE_INLINE bool all(M m) { return O::all(m.a) && O::all(m.b); }
  static SIGMOID_CE_INLINE M differs(V v, V w) {
    return M{O::differs(v.a, w.a), O::differs(v.b, w.b)};
  }
  static SIGMOID_CE_INLINE M in_range(V v, V low, V high) {
    return M{O::in_range(v.a, low.a, high.a), O::in_range(v.b, low.b, high.b)};
  }
  static SIGMOID_CE_INLINE V zero_if(M m, V v) {
    return V{O::zero_if(m.a, v.a), O::zero_if(m.b, v.b)};
  }
  static SIGMOID_CE_INLINE int count(M m) {
    return O::count(m.a) + O::count(m.b);
  }

  static SIGMOID_CE_INLINE V from_int(I v) {
    return V{O::from_int(v.a), O::from_int(v.b)};
  }
  template <class S>
  static SIGMOID_CE_INLINE I load_int(const S* p) {
    return I{O::load_int(p), O::load_int(p + kStride)};
  }
  static SIGMOID_CE_INLINE M equal(I v, std::int32_t label) {
    return M{O::equal(v.a, label), O::equal(v.b, label)};
  }
  static SIGMOID_CE_INLINE M equal64(const std::int64_t* p,
                                     std::int64_t label) {
    return M{O::equal64(p, label), O::equal64(p + kStride, label)};
  }
};

}  // namespace cpu
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

// The type tag of boolean targets: a byte of which any value but 0 is true.

namespace sigmoid_ce {
namespace math {

struct Bool {
  std::uint8_t byte;
};

}  // namespace math
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace cpu {

// Which integer targets are ignored. 64-bit ones are compared before they are
// saturated.
template <class O, class S>
SIGMOID_CE_INLINE typename O::M equal_label(const S* p, std::int64_t label) {
  return O::equal(O::load_int(p), static_cast<std::int32_t>(label));
}
template <class O>
SIGMOID_CE_INLINE typename O::M equal_label(const std::int64_t* p,
                                            std::int64_t label) {
  return O::equal64(p, label);
}

// Targets of type S as lanes of O: floats are loaded, integers converted.
template <class O, class S>
struct TargetOps {
  static constexpr bool kFinite = true;
  static SIGMOID_CE_INLINE typename O::V load(const S* p) {
    return O::from_int(O::load_int(p));
  }
  static SIGMOID_CE_INLINE typename O::M ignored(const S* p, const Run& run) {
    return equal_label<O>(p, run.ignore_label);
  }
  static SIGMOID_CE_INLINE bool ignores_zero(const Run& run) {
    return run.ignore_label == 0;
  }
};
template <class O>
struct FloatTargetOps {
  using T = typename O::T;
  static constexpr bool kFinite = false;
  static SIGMOID_CE_INLINE typename O::V load(const T* p) { return O::load(p); }
  static SIGMOID_CE_INLINE typename O::M ignored(const T* p, const Run& run) {
    return O::in_range(O::load(p), O::set(static_cast<T>(run.ignore_low)),
                       O::set(static_cast<T>(run.ignore_high)));
  }
  static SIGMOID_CE_INLINE bool ignores_zero(const Run& run) {
    return run.ignore_low <= 0 && run.ignore_high >= 0;
  }
};
template <class O>
struct TargetOps<O, float> : FloatTargetOps<O> {};
template <class O>
struct TargetOps<O, double> : FloatTargetOps<O> {};

// U vectors, one per row of a group: U = 1, 2 or 4.
template <class B, int U>
struct Rows;
template <class B>
struct Rows<B, 1> {
  using O = B;
  static SIGMOID_CE_INLINE typename B::D sum(typename B::V v) {
    return B::widen(v);
  }
  static SIGMOID_CE_INLINE typename B::D sum(typename B::D s, typename B::V v) {
    return B::add_wide(s, B::widen(v));
  }
};
template <class B>
struct Rows<B, 2> {
  using O = Twice<B, math::kRow>;
  static SIGMOID_CE_INLINE typename B::D sum(typename O::V v) {
    return B::add_wide(B::widen(v.a), B::widen(v.b));
  }
  static SIGMOID_CE_INLINE typename B::D sum(typename B::D s, typename O::V v) {
    return B::add_wide(B::add_wide(s, B::widen(v.a)), B::widen(v.b));
  }
};
template <class B>
struct Rows<B, 4> {
  using Half = Rows<B, 2>;
  using O = Twice<typename Half::O, 2 * math::kRow>;
  static SIGMOID_CE_INLINE typename B::D sum(typename O::V v) {
    return Half::sum(Half::sum(v.a), v.b);
  }
  static SIGMOID_CE_INLINE typename B::D sum(typename B::D s, typename O::V v) {
    return Half::sum(Half::sum(s, v.a), v.b);
  }
};

// Where the elements of a run, or of a padded group, are. T: scores; S:
// targets.
template <class T, class S>
struct Places {
  const T* x;
  const S* t;
  // General and focal kernels; null where there is one for all.
  const T* p;
  const T* w;
  const T* by_class[2];
  T* out;
  T* hessian;

  static SIGMOID_CE_INLINE Places of(const Run& run, bool general) {
    Places a = {static_cast<const T*>(run.scores),
                static_cast<const S*>(run.targets),
                nullptr,
                nullptr,
                {nullptr, nullptr},
                static_cast<T*>(run.out),
                static_cast<T*>(run.hessian)};
    if (general) {
      a.p = static_cast<const T*>(run.pos_weights);
      a.w = static_cast<const T*>(run.weights);
      for (int k = 0; k < 2; ++k)
        a.by_class[k] = static_cast<const T*>(run.class_weights[k]);
    }
    return a;
  }
};

// B: Ops of one vector; S: target type; kOptions: which are on, as in kernel.h;
// U: rows at a time.
template <class B, class S, int kOperation, unsigned kOptions, int U>
struct Loop {
  using T = typename B::T;
  using R = Rows<B, U>;
  using O = typename R::O;
  using V = typename O::V;
  using Targets = TargetOps<O, S>;
  using Place = Places<T, S>;
  static constexpr bool kSums = kOperation == kForward ||
                                kOperation == kForwardBackward ||
                                kOperation == kHessian;
  static constexpr bool kGradient = kOperation == kBackward ||
                                    kOperation == kForwardBackward ||
                                    kOperation == kHessian;
  static constexpr bool kLoss = kOperation != kBackward;

  // Whether any of `options` is on.
  static SIGMOID_CE_INLINE bool on(const Run& run, unsigned options) {
    return (kOptions & options) != 0 &&
           (!(kOptions & kAtRunTime) || (run.options & options) != 0);
  }

  static SIGMOID_CE_INLINE V constant(double v) {
    return O::set(static_cast<T>(v));
  }

  static SIGMOID_CE_INLINE void put(const Run& run, T* p, V v) {
    if (run.stream) {
      O::stream(p, v);
    } else {
      O::store(p, v);
    }
  }

  // The elements at i of U rows. Gives their losses, weight included.
  static SIGMOID_CE_INLINE V elements(const Run& run, const Place& at,
                                      std::int64_t i, std::int64_t* ignored) {
    using Element = math::Element<O>;
    const V score = O::load(at.x + i);
    V target = Targets::load(at.t + i), negative = O::sub(O::set(1), target);
    V weight = O::set(1), pos_weight = O::set(1), by_class = O::set(1);
    V class_weight[2] = {weight, weight};
    typename O::M zero = O::none();
    if (on(run, kElementWeight)) {
      weight = at.w ? O::load(at.w + i) : constant(run.weight);
      zero = O::is_zero(weight);
    }
    typename O::M out_of_it = O::none();
    if (on(run, kIgnoreLabel)) {
      out_of_it = Targets::ignored(at.t + i, run);
      *ignored += O::count(out_of_it);
      zero = O::either(zero, out_of_it);
    }
    if (on(run, kUncertain | kSmoothing | kClassWeight)) {
      if (on(run, kUncertain)) {
        const typename O::M uncertain = O::both(O::differs(target, O::set(0)),
                                                O::differs(target, O::set(1)));
        *ignored +=
            O::count(O::either(out_of_it, uncertain)) - O::count(out_of_it);
        zero = O::either(zero, uncertain);
      }
      if (on(run, kSmoothing)) {
        // Each by itself: 1 - t would have the rounding error of t, many times
        // a small smoothing.
        const V factor = constant(run.smoothing_factor),
                term = constant(run.smoothing_term);
        target = O::fma(target, factor, term);
        negative = O::fma(negative, factor, term);
      }
      if (on(run, kClassWeight)) {
        for (int k = 0; k < 2; ++k) {
          class_weight[k] = on(run, kArrays) && at.by_class[k]
                                ? O::load(at.by_class[k] + i)
                                : constant(run.class_weight[k]);
        }
        by_class =
            O::fma(target, class_weight[0], O::mul(negative, class_weight[1]));
        if (kOperation != kTargetBackward) {
          weight = on(run, kElementWeight) ? O::mul_rounded(weight, by_class)
                                           : by_class;
          zero = O::either(zero, O::is_zero(weight));
        }
      }
    }
    Element e;
    if (on(run, kPosWeight)) {
      pos_weight = on(run, kArrays) && at.p ? O::load(at.p + i)
                                            : constant(run.pos_weight);
      e = Element::weighted(score, target, negative, pos_weight);
    } else {
      e = Element::template plain<Targets::kFinite>(score, target, negative);
    }
    V loss = O::set(0), gradient = loss, hessian = loss;
    if (on(run, kGamma)) {
      const math::Focal<O> focal(e, target, negative, constant(run.gamma));
      if (kLoss) loss = focal.loss(e.loss());
      if (kGradient) gradient = focal.gradient();
      if (kOperation == kHessian) hessian = focal.hessian();
      if (kOperation == kTargetBackward) {
        gradient =
            focal.target_gradient(e.target_gradient(pos_weight), e.loss());
      }
    } else {
      if (kLoss) loss = e.loss();
      if (kGradient) gradient = e.gradient();
      if (kOperation == kHessian) hessian = e.hessian();
      if (kOperation == kTargetBackward)
        gradient = e.target_gradient(pos_weight);
    }
    if (kOperation == kTargetBackward) {
      if (on(run, kClassWeight)) {
        const V step = O::sub(class_weight[0], class_weight[1]);
        const V kept = O::zero_where_zero(by_class, gradient);
        gradient = O::fma(step, O::zero_where_zero(step, loss),
                          O::mul(by_class, kept));
      }
      if (on(run, kSmoothing))
        gradient = O::mul(gradient, constant(run.smoothing_factor));
      put(run, at.out + i, scaled(run, gradient, weight, zero));
      return loss;
    }
    if (kLoss) {
      if (on(run, kWeights)) loss = O::mul_rounded(weight, loss);
      if (on(run, kZeros)) loss = O::zero_if(zero, loss);
    }
    if (kOperation == kElementwise) put(run, at.out + i, loss);
    if (kGradient) put(run, at.out + i, scaled(run, gradient, weight, zero));
    if (kOperation == kHessian)
      put(run, at.hessian + i, scaled(run, hessian, weight, zero));
    return loss;
  }

  // A derivative with the weight and the factor of all.
  static SIGMOID_CE_INLINE V scaled(const Run& run, V d, V weight,
                                    typename O::M zero) {
    if (on(run, kWeights)) d = O::mul(d, weight);
    d = O::mul(d, constant(run.scale));
    return on(run, kZeros) ? O::zero_if(zero, d) : d;
  }

  // The lines of a group, 1 KiB ahead, or half of that where there are weights
  // too: the polynomials fill the processor's window, so that it does not reach
  // the next loads by itself. (The gradient alone does, and is better off
  // without; so are the weights of a float64 pass that writes.)
  template <class A>
  static SIGMOID_CE_INLINE void prefetch(const A* a) {
    constexpr int kLine = 64;
    constexpr int kAhead = (kOptions & kElementWeight) != 0 ? 512 : 1024;
    const char* p = reinterpret_cast<const char*>(a) + kAhead;
    for (int i = 0; i < math::kGroup * static_cast<int>(sizeof(A));
         i += kLine) {
      __builtin_prefetch(p + i);
    }
  }

  // The group at i; its sums are added to acc[0 .. 15].
  static SIGMOID_CE_INLINE void group(const Run& run, const Place& at,
                                      std::int64_t i, double* acc,
                                      std::int64_t* ignored) {
    for (int r = 0; r < math::kRow; r += B::kLanes) {
      typename B::D s = {};
      for (int j = 0; j < math::kRowsPerGroup; j += U) {
        const V loss = elements(run, at, i + r + j * math::kRow, ignored);
        if (kSums) s = j == 0 ? R::sum(loss) : R::sum(s, loss);
      }
      if (kSums) B::store_wide(acc + r, B::add_wide(B::load_wide(acc + r), s));
    }
  }

  // The n < 64 elements at begin: padded copies go through the same loop. The
  // padding has loss +0: x = -inf with t = 0, and the weight 0 where there are
  // options, which could make that anything. So only the plain kernel and those
  // that look at run time have one.
  static __attribute__((noinline)) void tail(Run run, Place at,
                                             std::int64_t begin, std::int64_t n,
                                             double* acc,
                                             std::int64_t* ignored) {
    alignas(64) T xs[math::kGroup], ps[math::kGroup], ws[math::kGroup],
        outs[math::kGroup];
    alignas(64) T classes[2][math::kGroup], hessians[math::kGroup];
    alignas(64) S ts[math::kGroup];
    for (int i = 0; i < math::kGroup; ++i) {
      xs[i] = -static_cast<T>(__builtin_inff());
      ps[i] = classes[0][i] = classes[1][i] = 1;
      ws[i] = i < n ? static_cast<T>(run.weight) : 0;
    }
    __builtin_memset(ts, 0, sizeof ts);
    __builtin_memcpy(xs, at.x + begin, n * sizeof(T));
    __builtin_memcpy(ts, at.t + begin, n * sizeof(S));
    Place padded = {xs,   ts,      nullptr, nullptr, {nullptr, nullptr},
                    outs, hessians};
    if (kOptions) {
      run.options |= kElementWeight;
      if (at.p) __builtin_memcpy(ps, at.p + begin, n * sizeof(T));
      if (at.w) __builtin_memcpy(ws, at.w + begin, n * sizeof(T));
      padded.p = at.p ? ps : nullptr;
      padded.w = ws;
      for (int k = 0; k < 2; ++k) {
        if (at.by_class[k])
          __builtin_memcpy(classes[k], at.by_class[k] + begin, n * sizeof(T));
        padded.by_class[k] = at.by_class[k] ? classes[k] : nullptr;
      }
    }
    run.stream = false;
    group(run, padded, 0, acc, ignored);
    if (kOperation != kForward)
      __builtin_memcpy(at.out + begin, outs, n * sizeof(T));
    if (kOperation == kHessian)
      __builtin_memcpy(at.hessian + begin, hessians, n * sizeof(T));
    if (on(run, kIgnoreLabel) && Targets::ignores_zero(run))
      *ignored -= math::kGroup - n;
  }

  static void run(Run* args) {
    using Tail = Loop<B, S, kOperation,
                      kOptions == 0 ? 0u : (kOptions & kGamma) | kGeneral, U>;
    const Run run = *args;
    const Place all = Place::of(run, kOptions != 0);
    double* sums = run.block_sums;
    std::int64_t ignored = 0;
    for (std::int64_t begin = 0; begin < run.n; begin += math::kBlock) {
      const std::int64_t end =
          run.n - begin < math::kBlock ? run.n : begin + math::kBlock;
      alignas(64) double acc[math::kAccumulators] = {};
      for (std::int64_t i = begin, q = 0; i < end;
           i += math::kQuarter, q += math::kRow) {
        const std::int64_t stop =
            end - i < math::kQuarter ? end : i + math::kQuarter;
        alignas(64) double sum[math::kRow] = {};
        std::int64_t k = i;
        for (; k + math::kGroup <= stop; k += math::kGroup) {
          if (kOperation != kBackward) {
            prefetch(all.x + k);
            prefetch(all.t + k);
            if ((kOperation == kForward || sizeof(T) == 4) &&
                on(run, kElementWeight) && all.w) {
              prefetch(all.w + k);
            }
          }
          group(run, all, k, sum, &ignored);
        }
        if (k < stop) Tail::tail(*args, all, k, stop - k, sum, &ignored);
        for (int r = 0; r < math::kRow; ++r) acc[q + r] = sum[r];
      }
      if (kSums) *sums++ = math::halve<B>(acc);
    }
    args->ignored = ignored;
  }
};

// Calls f(pointer to the targets of a vector, how many of them there are), the
// last vector padded with 0.
template <class B, class S, class F>
SIGMOID_CE_INLINE void each_vector(const Run& run, F f) {
  const S* t = static_cast<const S*>(run.targets);
  std::int64_t i = 0;
  for (; i + B::kLanes <= run.n; i += B::kLanes) f(t + i, B::kLanes);
  if (i < run.n) {
    S rest[B::kLanes];
    __builtin_memset(rest, 0, sizeof rest);
    __builtin_memcpy(rest, t + i, (run.n - i) * sizeof(S));
    f(rest, static_cast<int>(run.n - i));
  }
}

template <class B, class S>
struct Ignored {
  const Run& run;
  Counts* counts;
  SIGMOID_CE_INLINE void operator()(const S* t, int n) const {
    using Targets = TargetOps<B, S>;
    counts->ignored += B::count(Targets::ignored(t, run));
    if (Targets::ignores_zero(run)) counts->ignored -= B::kLanes - n;
  }
};
template <class B, class S>
struct Classes {
  Counts* counts;
  SIGMOID_CE_INLINE void operator()(const S* t, int n) const {
    const typename B::V v = TargetOps<B, S>::load(t);
    counts->positive += B::count(B::is_zero(B::sub(v, B::set(1))));
    counts->negative += B::count(B::is_zero(v)) - (B::kLanes - n);
  }
};

template <class B, class S>
void count_ignored(const Run& run, Counts* counts) {
  Counts c = {};
  each_vector<B, S>(run, Ignored<B, S>{run, &c});
  counts->ignored += c.ignored;
}
template <class B, class S>
void count_classes(const Run& run, Counts* counts) {
  Counts c = {};
  each_vector<B, S>(run, Classes<B, S>{&c});
  counts->positive += c.positive;
  counts->negative += c.negative;
}

// As many of n values as there are.
template <class B>
SIGMOID_CE_INLINE void store_some(typename B::T* p, typename B::V v, int n) {
  if (n == B::kLanes) return B::store(p, v);
  typename B::T all[B::kLanes];
  B::store(all, v);
  __builtin_memcpy(p, all, n * sizeof(*p));
}

template <class B, class S>
struct Convert {
  const Run& run;
  typename B::T** out;
  SIGMOID_CE_INLINE void operator()(const S* t, int n) const {
    using Targets = TargetOps<B, S>;
    typename B::V v = Targets::load(t);
    if (run.options & kIgnoreLabel) {
      const typename B::V kept =
          B::zero_if(Targets::ignored(t, run), B::set(1));
      v = B::if_zero(kept, B::set(static_cast<typename B::T>(kIgnored)), v);
    }
    store_some<B>(*out, v, n);
    *out += n;
  }
};
template <class B, class H>
struct Widen {
  float** out;
  SIGMOID_CE_INLINE void operator()(const H* p, int n) const {
    store_some<B>(*out, B::load_half(p), n);
    *out += n;
  }
};
template <class B, class H>
struct Narrow {
  H** out;
  SIGMOID_CE_INLINE void operator()(const float* p, int n) const {
    if (n == B::kLanes) {
      B::store_half(*out, B::load(p));
    } else {
      H all[B::kLanes];
      B::store_half(all, B::load(p));
      __builtin_memcpy(*out, all, n * sizeof(H));
    }
    *out += n;
  }
};

template <class B, class S>
void convert(const Run& run) {
  typename B::T* out = static_cast<typename B::T*>(run.out);
  each_vector<B, S>(run, Convert<B, S>{run, &out});
}
template <class B, class H>
void widen(const Run& run) {
  float* out = static_cast<float*>(run.out);
  each_vector<B, H>(run, Widen<B, H>{&out});
}
template <class B, class H>
void narrow(const Run& run) {
  H* out = static_cast<H*>(run.out);
  each_vector<B, float>(run, Narrow<B, H>{&out});
}

// All operations with exactly these options.
template <class B, class S, int U, int kKernel>
void fill_options(KernelTable* table, int scores, int target) {
  constexpr unsigned kOptions = kKernelOptions[kKernel];
  auto& run = table->run[scores][target];
  run[kForward][kKernel] = &Loop<B, S, kForward, kOptions, U>::run;
  run[kElementwise][kKernel] = &Loop<B, S, kElementwise, kOptions, U>::run;
  run[kBackward][kKernel] = &Loop<B, S, kBackward, kOptions, U>::run;
  run[kForwardBackward][kKernel] =
      &Loop<B, S, kForwardBackward, kOptions, U>::run;
}

template <class B, class S, int U>
void fill_target(KernelTable* table, int scores, int target) {
  fill_options<B, S, U, kPlainKernel>(table, scores, target);
  fill_options<B, S, U, kGeneralKernel>(table, scores, target);
  table->count_ignored[scores][target] = &count_ignored<B, S>;
  table->count_classes[scores][target] = &count_classes<B, S>;
  table->convert[scores][target] = &convert<B, S>;
}

// What is used most.
template <class B, class S, int U>
void fill_often(KernelTable* table, int scores, int target) {
  fill_options<B, S, U, kIgnoreKernel>(table, scores, target);
  fill_options<B, S, U, kPosWeightKernel>(table, scores, target);
  fill_options<B, S, U, kSmoothingKernel>(table, scores, target);
  fill_options<B, S, U, kClassKernel>(table, scores, target);
  fill_options<B, S, U, kFocalKernel>(table, scores, target);
  fill_options<B, S, U, kFocalClassKernel>(table, scores, target);
}

template <class B, int U, int kOperation>
void fill_focal(KernelTable* table, int scores) {
  table->focal[scores][kOperation] =
      &Loop<B, typename B::T, kOperation, kEverything, U>::run;
}

template <class B, int U>
void fill_scores(KernelTable* table, int scores) {
  fill_target<B, typename B::T, U>(table, scores, kTargetScores);
  fill_target<B, math::Bool, U>(table, scores, kTargetBool);
  fill_target<B, std::uint8_t, U>(table, scores, kTargetUint8);
  fill_target<B, std::int8_t, U>(table, scores, kTargetInt8);
  fill_target<B, std::int32_t, U>(table, scores, kTargetInt32);
  fill_target<B, std::int64_t, U>(table, scores, kTargetInt64);
  fill_focal<B, U, kForward>(table, scores);
  fill_focal<B, U, kElementwise>(table, scores);
  fill_focal<B, U, kBackward>(table, scores);
  fill_focal<B, U, kForwardBackward>(table, scores);
  fill_focal<B, U, kHessian>(table, scores);
  fill_focal<B, U, kTargetBackward>(table, scores);
}

// U: rows at a time, as many as the registers hold.
template <class F32, class F64, int U>
KernelTable make_table(const char* name) {
  KernelTable table = {};
  table.name = name;
  fill_scores<F32, U>(&table, 0);
  fill_often<F32, float, U>(&table, 0, kTargetScores);
  fill_often<F32, std::uint8_t, U>(&table, 0, kTargetUint8);
  fill_scores<F64, U>(&table, 1);
  table.widen[0] = &widen<F32, math::Float16>;
  table.widen[1] = &widen<F32, math::Bfloat16>;
  table.narrow[0] = &narrow<F32, math::Float16>;
  table.narrow[1] = &narrow<F32, math::Bfloat16>;
  return table;
}

}  // namespace cpu
}  // namespace sigmoid_ce

// Ops on 128-bit vectors of AArch64: NEON.

// NOLINT_NEXT_LINE(build/include_order)
#include <arm_neon.h>

namespace sigmoid_ce {
namespace cpu {

struct NeonF32 {
  using T = float;
  using V = float32x4_t;
  using M = uint32x4_t;
  using I = int32x4_t;
  struct D {
    float64x2_t a, b;
  };
  static constexpr int kLanes = 4;

  static SIGMOID_CE_INLINE V set(T v) { return vdupq_n_f32(v); }
  static SIGMOID_CE_INLINE V load(const T* p) {
    return vreinterpretq_f32_u8(
        vld1q_u8(reinterpret_cast<const std::uint8_t*>(p)));
  }
  static SIGMOID_CE_INLINE void store(T* p, V v) {
    vst1q_u8(reinterpret_cast<std::uint8_t*>(p), vreinterpretq_u8_f32(v));
  }
  static SIGMOID_CE_INLINE void stream(T* p, V v) { store(p, v); }

  static SIGMOID_CE_INLINE V add(V a, V b) { return vaddq_f32(a, b); }
  static SIGMOID_CE_INLINE V sub(V a, V b) { return vsubq_f32(a, b); }
  static SIGMOID_CE_INLINE V mul(V a, V b) { return vmulq_f32(a, b); }
  static SIGMOID_CE_INLINE V mul_rounded(V a, V b) {
    V v = mul(a, b);
    SIGMOID_CE_KEEP_ROUNDED(v);
    return v;
  }
  static SIGMOID_CE_INLINE V div(V a, V b) { return vdivq_f32(a, b); }
  static SIGMOID_CE_INLINE V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
  static SIGMOID_CE_INLINE V fnma(V a, V b, V c) { return vfmsq_f32(c, a, b); }
  static SIGMOID_CE_INLINE V abs(V v) { return vabsq_f32(v); }
  static SIGMOID_CE_INLINE V min_or_nan(V v, V limit) {
    return vminq_f32(limit, v);
  }
  // n has N - kBias in its low bits. The first product is exact, the second
  // rounds once.
  static SIGMOID_CE_INLINE V scale(V p, V n, V) {
    const uint32x4_t shifted = vshlq_n_u32(vreinterpretq_u32_f32(n), 23);
    const V power =
        vreinterpretq_f32_u32(vsubq_u32(vdupq_n_u32(127u << 23), shifted));
    return mul_rounded(mul(p, power), set(math::ExpLog1p<T>::kUnbias));
  }
  static SIGMOID_CE_INLINE M negative_sign(V x) {
    return vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_f32(x), 31));
  }
  static SIGMOID_CE_INLINE V by_sign(V x, V negative, V positive) {
    return vbslq_f32(negative_sign(x), negative, positive);
  }
  static SIGMOID_CE_INLINE V flip_sign(V v, V x) {
    const uint32x4_t sign =
        vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x80000000u));
    return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(v), sign));
  }
  static SIGMOID_CE_INLINE V zero_where_zero(V u, V v) {
    return zero_if(is_zero(u), v);
  }
  static SIGMOID_CE_INLINE V if_zero(V u, V v, V w) {
    return vbslq_f32(is_zero(u), v, w);
  }
  static SIGMOID_CE_INLINE V quotient(V a, V b) { return div(a, b); }
  // The exponent of a positive normal number, and the rest in [1, 2).
  static SIGMOID_CE_INLINE V split(V v, V* mantissa) {
    const M bits = vreinterpretq_u32_f32(v);
    const M low = vandq_u32(bits, vdupq_n_u32((1u << 23) - 1));
    *mantissa = vreinterpretq_f32_u32(vorrq_u32(low, vdupq_n_u32(127u << 23)));
    const int32x4_t exponent = vreinterpretq_s32_u32(vshrq_n_u32(bits, 23));
    return vcvtq_f32_s32(vsubq_s32(exponent, vdupq_n_s32(127)));
  }

  static SIGMOID_CE_INLINE M is_zero(V v) { return vceqzq_f32(v); }
  static SIGMOID_CE_INLINE M none() { return vdupq_n_u32(0); }
  static SIGMOID_CE_INLINE M either(M a, M b) { return vorrq_u32(a, b); }
  static SIGMOID_CE_INLINE M both(M a, M b) { return vandq_u32(a, b); }
  static SIGMOID_CE_INLINE bool all(M m) { return vminvq_u32(m) != 0; }
  static SIGMOID_CE_INLINE M differs(V a, V b) {
    return veorq_u32(vceqq_f32(a, b), vdupq_n_u32(~UINT32_C(0)));
  }
  static SIGMOID_CE_INLINE M in_range(V v, V low, V high) {
    return vandq_u32(vcgeq_f32(v, low), vcleq_f32(v, high));
  }
  static SIGMOID_CE_INLINE V zero_if(M m, V v) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), m));
  }
  static SIGMOID_CE_INLINE int count(M m) {
    return static_cast<int>(vaddvq_u32(vshrq_n_u32(m, 31)));
  }

  static SIGMOID_CE_INLINE uint16x4_t load_16(const void* p) {
    return vreinterpret_u16_u8(vld1_u8(static_cast<const std::uint8_t*>(p)));
  }
  static SIGMOID_CE_INLINE V load_half(const math::Float16* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(load_16(p)));
  }
  static SIGMOID_CE_INLINE V load_half(const math::Bfloat16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(load_16(p), 16));
  }
  static SIGMOID_CE_INLINE void store_16(void* p, uint16x4_t v) {
    vst1_u8(static_cast<std::uint8_t*>(p), vreinterpret_u8_u16(v));
  }
  static SIGMOID_CE_INLINE void store_half(math::Float16* p, V v) {
    store_16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
  }
  static SIGMOID_CE_INLINE void store_half(math::Bfloat16* p, V v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(odd, vdupq_n_u32(0x7fff));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    const uint32x4_t rounded =
        vbslq_u32(vceqq_f32(v, v), vaddq_u32(bits, up), quiet);
    store_16(p, vshrn_n_u32(rounded, 16));
  }

  static SIGMOID_CE_INLINE V from_int(I v) { return vcvtq_f32_s32(v); }
  static SIGMOID_CE_INLINE uint8x8_t load4(const void* p) {
    std::uint32_t v;
    __builtin_memcpy(&v, p, sizeof v);
    return vcreate_u8(v);
  }
  static SIGMOID_CE_INLINE I widen_u8(uint8x8_t v) {
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(v))));
  }
  static SIGMOID_CE_INLINE I load_int(const math::Bool* p) {
    return widen_u8(vmin_u8(load4(p), vdup_n_u8(1)));
  }
  static SIGMOID_CE_INLINE I load_int(const std::uint8_t* p) {
    return widen_u8(load4(p));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int8_t* p) {
    return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load4(p)))));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int32_t* p) {
    return vreinterpretq_s32_u8(
        vld1q_u8(reinterpret_cast<const std::uint8_t*>(p)));
  }
  static SIGMOID_CE_INLINE int64x2_t load2(const std::int64_t* p) {
    return vreinterpretq_s64_u8(
        vld1q_u8(reinterpret_cast<const std::uint8_t*>(p)));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int64_t* p) {
    return vcombine_s32(vqmovn_s64(load2(p)), vqmovn_s64(load2(p + 2)));
  }
  static SIGMOID_CE_INLINE M equal(I v, std::int32_t label) {
    return vceqq_s32(v, vdupq_n_s32(label));
  }
  static SIGMOID_CE_INLINE M equal64(const std::int64_t* p,
                                     std::int64_t label) {
    const int64x2_t l = vdupq_n_s64(label);
    return vcombine_u32(vmovn_u64(vceqq_s64(load2(p), l)),
                        vmovn_u64(vceqq_s64(load2(p + 2), l)));
  }

  static SIGMOID_CE_INLINE D widen(V v) {
    return D{vcvt_f64_f32(vget_low_f32(v)), vcvt_high_f64_f32(v)};
  }
  static SIGMOID_CE_INLINE D add_wide(D x, D y) {
    return D{vaddq_f64(x.a, y.a), vaddq_f64(x.b, y.b)};
  }
  static SIGMOID_CE_INLINE D load_wide(const double* p) {
    return D{vld1q_f64(p), vld1q_f64(p + 2)};
  }
  static SIGMOID_CE_INLINE void store_wide(double* p, D v) {
    vst1q_f64(p, v.a);
    vst1q_f64(p + 2, v.b);
  }
};

struct NeonF64 {
  using T = double;
  using V = float64x2_t;
  using M = uint64x2_t;
  using I = int32x2_t;
  using D = float64x2_t;
  static constexpr int kLanes = 2;

  static SIGMOID_CE_INLINE V set(T v) { return vdupq_n_f64(v); }
  static SIGMOID_CE_INLINE V load(const T* p) {
    return vreinterpretq_f64_u8(
        vld1q_u8(reinterpret_cast<const std::uint8_t*>(p)));
  }
  static SIGMOID_CE_INLINE void store(T* p, V v) {
    vst1q_u8(reinterpret_cast<std::uint8_t*>(p), vreinterpretq_u8_f64(v));
  }
  static SIGMOID_CE_INLINE void stream(T* p, V v) { store(p, v); }

  static SIGMOID_CE_INLINE V add(V a, V b) { return vaddq_f64(a, b); }
  static SIGMOID_CE_INLINE V sub(V a, V b) { return vsubq_f64(a, b); }
  static SIGMOID_CE_INLINE V mul(V a, V b) { return vmulq_f64(a, b); }
  static SIGMOID_CE_INLINE V mul_rounded(V a, V b) {
    V v = mul(a, b);
    SIGMOID_CE_KEEP_ROUNDED(v);
    return v;
  }
  static SIGMOID_CE_INLINE V div(V a, V b) { return vdivq_f64(a, b); }
  static SIGMOID_CE_INLINE V fma(V a, V b, V c) { return vfmaq_f64(c, a, b); }
  static SIGMOID_CE_INLINE V fnma(V a, V b, V c) { return vfmsq_f64(c, a, b); }
  static SIGMOID_CE_INLINE V abs(V v) { return vabsq_f64(v); }
  static SIGMOID_CE_INLINE V min_or_nan(V v, V limit) {
    return vminq_f64(limit, v);
  }
  static SIGMOID_CE_INLINE V scale(V p, V n, V) {
    const uint64x2_t shifted = vshlq_n_u64(vreinterpretq_u64_f64(n), 52);
    const V power = vreinterpretq_f64_u64(
        vsubq_u64(vdupq_n_u64(UINT64_C(1023) << 52), shifted));
    return mul_rounded(mul(p, power), set(math::ExpLog1p<T>::kUnbias));
  }
  static SIGMOID_CE_INLINE V by_sign(V x, V negative, V positive) {
    const int64x2_t sign = vshrq_n_s64(vreinterpretq_s64_f64(x), 63);
    return vbslq_f64(vreinterpretq_u64_s64(sign), negative, positive);
  }
  static SIGMOID_CE_INLINE V flip_sign(V v, V x) {
    const uint64x2_t sign =
        vandq_u64(vreinterpretq_u64_f64(x), vdupq_n_u64(UINT64_C(1) << 63));
    return vreinterpretq_f64_u64(veorq_u64(vreinterpretq_u64_f64(v), sign));
  }
  static SIGMOID_CE_INLINE V zero_where_zero(V u, V v) {
    return zero_if(is_zero(u), v);
  }
  static SIGMOID_CE_INLINE V if_zero(V u, V v, V w) {
    return vbslq_f64(is_zero(u), v, w);
  }
  static SIGMOID_CE_INLINE V quotient(V a, V b) { return div(a, b); }
  // The exponent of a positive normal number, and the rest in [1, 2).
  static SIGMOID_CE_INLINE V split(V v, V* mantissa) {
    const M bits = vreinterpretq_u64_f64(v);
    const M low = vandq_u64(bits, vdupq_n_u64((UINT64_C(1) << 52) - 1));
    *mantissa = vreinterpretq_f64_u64(
        vorrq_u64(low, vdupq_n_u64(UINT64_C(1023) << 52)));
    const int64x2_t exponent = vreinterpretq_s64_u64(vshrq_n_u64(bits, 52));
    return vcvtq_f64_s64(vsubq_s64(exponent, vdupq_n_s64(1023)));
  }

  static SIGMOID_CE_INLINE M is_zero(V v) { return vceqzq_f64(v); }
  static SIGMOID_CE_INLINE M none() { return vdupq_n_u64(0); }
  static SIGMOID_CE_INLINE M either(M a, M b) { return vorrq_u64(a, b); }
  static SIGMOID_CE_INLINE M both(M a, M b) { return vandq_u64(a, b); }
  static SIGMOID_CE_INLINE bool all(M m) {
    return (vgetq_lane_u64(m, 0) & vgetq_lane_u64(m, 1)) != 0;
  }
  static SIGMOID_CE_INLINE M differs(V a, V b) {
    return veorq_u64(vceqq_f64(a, b), vdupq_n_u64(~UINT64_C(0)));
  }
  static SIGMOID_CE_INLINE M in_range(V v, V low, V high) {
    return vandq_u64(vcgeq_f64(v, low), vcleq_f64(v, high));
  }
  static SIGMOID_CE_INLINE V zero_if(M m, V v) {
    return vreinterpretq_f64_u64(vbicq_u64(vreinterpretq_u64_f64(v), m));
  }
  static SIGMOID_CE_INLINE int count(M m) {
    return static_cast<int>(vaddvq_u64(vshrq_n_u64(m, 63)));
  }

  static SIGMOID_CE_INLINE V from_int(I v) {
    return vcvtq_f64_s64(vmovl_s32(v));
  }
  static SIGMOID_CE_INLINE uint8x8_t load2(const void* p) {
    std::uint16_t v;
    __builtin_memcpy(&v, p, sizeof v);
    return vcreate_u8(v);
  }
  static SIGMOID_CE_INLINE I load_int(const math::Bool* p) {
    return vget_low_s32(NeonF32::widen_u8(vmin_u8(load2(p), vdup_n_u8(1))));
  }
  static SIGMOID_CE_INLINE I load_int(const std::uint8_t* p) {
    return vget_low_s32(NeonF32::widen_u8(load2(p)));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int8_t* p) {
    return vget_low_s32(
        vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load2(p))))));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int32_t* p) {
    return vreinterpret_s32_u8(
        vld1_u8(reinterpret_cast<const std::uint8_t*>(p)));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int64_t* p) {
    return vqmovn_s64(NeonF32::load2(p));
  }
  static SIGMOID_CE_INLINE M equal(I v, std::int32_t label) {
    return vreinterpretq_u64_s64(
        vmovl_s32(vreinterpret_s32_u32(vceq_s32(v, vdup_n_s32(label)))));
  }
  static SIGMOID_CE_INLINE M equal64(const std::int64_t* p,
                                     std::int64_t label) {
    return vceqq_s64(NeonF32::load2(p), vdupq_n_s64(label));
  }

  static SIGMOID_CE_INLINE D widen(V v) { return v; }
  static SIGMOID_CE_INLINE D add_wide(D x, D y) { return vaddq_f64(x, y); }
  static SIGMOID_CE_INLINE D load_wide(const double* p) { return vld1q_f64(p); }
  static SIGMOID_CE_INLINE void store_wide(double* p, D v) { vst1q_f64(p, v); }
};

}  // namespace cpu
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace cpu {

const KernelTable* neon_kernels() {
  static const KernelTable table = make_table<NeonF32, NeonF64, 4>("neon");
  return &table;
}

}  // namespace cpu
}  // namespace sigmoid_ce

#endif
