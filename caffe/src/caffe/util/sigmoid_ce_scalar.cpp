// sigmoid_ce 0.1.0, made from its sources by tools/make_overlay.py.
// (c) 2026, the sigmoid_ce developers. BSD 2-Clause License.
#include <cstdint>

#include "caffe/util/sigmoid_ce.hpp"

#if defined(__clang__)
#pragma clang diagnostic ignored "-Wunused-const-variable"
#endif

// The CPU loop, written once. kernel_<isa>.cpp includes it inside a target
// region and calls make_table with its Ops. Everything here is a template over
// Ops, so that no function compiled for one instruction set can stand in for
// another's.

// What the dispatcher asks of an instruction set: a table of kernels, each for
// a run of elements.

namespace sigmoid_ce {
namespace cpu {

enum Operation {
  kForward,
  kElementwise,
  kBackward,
  kForwardBackward,
  kOperations
};

// A run starts at a block boundary. Arrays are contiguous, of any alignment; T
// is the scores' type.
struct Run {
  const void* scores;   // T
  const void* targets;  // the target type of the kernel
  void* out;            // T: losses or gradients; unused in kForward
  std::int64_t n;
  bool stream;   // write `out` past the caches; it is aligned to 64 bytes then
  double scale;  // factor on the gradient, a value of T

  // General kernels only.
  bool has_pos_weight;
  double pos_weight;        // a value of T, where pos_weights is null
  const void* pos_weights;  // T per element, or null
  double weight;            // a value of T, where weights is null
  const void* weights;      // T per element, or null
  bool has_ignore_label;
  double ignore_low,
      ignore_high;  // float targets: ignored when low <= t <= high
  std::int64_t
      ignore_label;  // integer targets; in the range of the target type

  // Results: one sum per block (kForward, kForwardBackward), and how many
  // elements were ignored.
  double* block_sums;
  std::int64_t ignored;
};

// NOLINT_NEXT_LINE(readability/casting)
using Kernel = void (*)(Run* run);
// How many of n targets are ignored.
// NOLINT_NEXT_LINE(readability/casting)
using CountKernel = std::int64_t (*)(const Run& run);

// Indices: scores float32, float64; targets by kTarget*; plain or general.
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
  Kernel run[2][kTargets][kOperations][2];
  CountKernel count[2][kTargets];
};

// Null where the instruction set does not exist on this architecture.
const KernelTable* scalar_kernels();
const KernelTable* avx2_kernels();
const KernelTable* avx512_kernels();
const KernelTable* neon_kernels();

}  // namespace cpu
}  // namespace sigmoid_ce

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
  SIGMOID_CE_TWICE_2(min_or_nan)
  SIGMOID_CE_TWICE_2(flip_sign)
  SIGMOID_CE_TWICE_2(zero_where_zero)
  SIGMOID_CE_TWICE_3(fma)
  SIGMOID_CE_TWICE_3(fnma)
  SIGMOID_CE_TWICE_3(scale)
  SIGMOID_CE_TWICE_3(by_sign)
#undef SIGMOID_CE_TWICE_1
#undef SIGMOID_CE_TWICE_2
#undef SIGMOID_CE_TWICE_3

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

// B: Ops of one vector; S: target type; U: rows at a time.
template <class B, class S, int kOperation, bool kGeneral, int U>
struct Loop {
  using T = typename B::T;
  using R = Rows<B, U>;
  using O = typename R::O;
  using V = typename O::V;
  using Targets = TargetOps<O, S>;
  static constexpr bool kSums =
      kOperation == kForward || kOperation == kForwardBackward;

  static SIGMOID_CE_INLINE void put(const Run& run, T* p, V v) {
    if (run.stream) {
      O::stream(p, v);
    } else {
      O::store(p, v);
    }
  }

  // The elements at i of U rows. Gives their losses, weight included.
  static SIGMOID_CE_INLINE V elements(const Run& run, const T* x, const S* t,
                                      const T* p, const T* w, T* out,
                                      std::int64_t i, std::int64_t* ignored) {
    using Element = math::Element<O>;
    const V score = O::load(x + i);
    const V target = Targets::load(t + i);
    V weight = O::set(static_cast<T>(1));
    typename O::M zero = O::none();
    Element e;
    if (kGeneral && run.has_pos_weight) {
      e = Element::weighted(
          score, target,
          p ? O::load(p + i) : O::set(static_cast<T>(run.pos_weight)));
    } else {
      e = Element::template plain<Targets::kFinite>(score, target);
    }
    if (kGeneral) {
      weight = w ? O::load(w + i) : O::set(static_cast<T>(run.weight));
      zero = O::is_zero(weight);
      if (run.has_ignore_label) {
        const typename O::M m = Targets::ignored(t + i, run);
        *ignored += O::count(m);
        zero = O::either(zero, m);
      }
    }
    V loss = O::set(0);
    if (kOperation != kBackward) {
      loss = e.loss();
      if (kGeneral) loss = O::zero_if(zero, O::mul_rounded(weight, loss));
    }
    if (kOperation == kElementwise) put(run, out + i, loss);
    if (kOperation == kBackward || kOperation == kForwardBackward) {
      V d = e.gradient();
      if (kGeneral) d = O::mul(d, weight);
      d = O::mul(d, O::set(static_cast<T>(run.scale)));
      if (kGeneral) d = O::zero_if(zero, d);
      put(run, out + i, d);
    }
    return loss;
  }

  // The lines of a group, 1 KiB ahead: the polynomials fill the processor's
  // window, so that it does not reach the next loads by itself. (The gradient
  // alone does, and is better off without.)
  template <class A>
  static SIGMOID_CE_INLINE void prefetch(const A* a) {
    constexpr int kLine = 64;
    constexpr int kAhead = 1024;
    const char* p = reinterpret_cast<const char*>(a) + kAhead;
    for (int i = 0; i < math::kGroup * static_cast<int>(sizeof(A));
         i += kLine) {
      __builtin_prefetch(p + i);
    }
  }

  // One group; its sums are added to acc[0 .. 15].
  static SIGMOID_CE_INLINE void group(const Run& run, const T* x, const S* t,
                                      const T* p, const T* w, T* out,
                                      double* acc, std::int64_t* ignored) {
    for (int r = 0; r < math::kRow; r += B::kLanes) {
      typename B::D s = {};
      for (int j = 0; j < math::kRowsPerGroup; j += U) {
        const V loss =
            elements(run, x, t, p, w, out, r + j * math::kRow, ignored);
        if (kSums) s = j == 0 ? R::sum(loss) : R::sum(s, loss);
      }
      if (kSums) B::store_wide(acc + r, B::add_wide(B::load_wide(acc + r), s));
    }
  }

  // A group of fewer than 64 elements: padded copies go through the same loop.
  // The padding has loss +0: x = -inf with t = 0.
  static __attribute__((noinline)) void tail(Run run, std::int64_t n,
                                             const T* x, const S* t, const T* p,
                                             const T* w, T* out, double* acc,
                                             std::int64_t* ignored) {
    alignas(64) T xs[math::kGroup], ps[math::kGroup], ws[math::kGroup],
        outs[math::kGroup];
    alignas(64) S ts[math::kGroup];
    for (int i = 0; i < math::kGroup; ++i) {
      xs[i] = -static_cast<T>(__builtin_inff());
      ps[i] = 1;
      // A weight for all must not reach the padding either: infinity times 0 is
      // NaN.
      ws[i] = i < n ? static_cast<T>(run.weight) : 1;
    }
    __builtin_memset(ts, 0, sizeof ts);
    __builtin_memcpy(xs, x, n * sizeof(T));
    __builtin_memcpy(ts, t, n * sizeof(S));
    if (kGeneral && p) __builtin_memcpy(ps, p, n * sizeof(T));
    if (kGeneral && w) __builtin_memcpy(ws, w, n * sizeof(T));
    run.stream = false;
    group(run, xs, ts, kGeneral && p ? ps : nullptr, kGeneral ? ws : nullptr,
          outs, acc, ignored);
    if (kOperation != kForward) __builtin_memcpy(out, outs, n * sizeof(T));
    if (kGeneral && run.has_ignore_label && Targets::ignores_zero(run))
      *ignored -= math::kGroup - n;
  }

  static void run(Run* args) {
    const Run run = *args;
    const T* x = static_cast<const T*>(run.scores);
    const S* t = static_cast<const S*>(run.targets);
    const T* p = kGeneral ? static_cast<const T*>(run.pos_weights) : nullptr;
    const T* w = kGeneral ? static_cast<const T*>(run.weights) : nullptr;
    T* out = static_cast<T*>(run.out);
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
            prefetch(x + k);
            prefetch(t + k);
          }
          group(run, x + k, t + k, p ? p + k : p, w ? w + k : w,
                kOperation == kForward ? out : out + k, sum, &ignored);
        }
        if (k < stop) {
          tail(*args, stop - k, x + k, t + k, p ? p + k : p, w ? w + k : w,
               kOperation == kForward ? out : out + k, sum, &ignored);
        }
        for (int r = 0; r < math::kRow; ++r) acc[q + r] = sum[r];
      }
      if (kSums) *sums++ = math::halve<B>(acc);
    }
    args->ignored = ignored;
  }
};

template <class B, class S>
std::int64_t count_ignored(const Run& run) {
  using Targets = TargetOps<B, S>;
  const S* t = static_cast<const S*>(run.targets);
  std::int64_t ignored = 0;
  std::int64_t i = 0;
  for (; i + B::kLanes <= run.n; i += B::kLanes)
    ignored += B::count(Targets::ignored(t + i, run));
  if (i < run.n) {
    S rest[B::kLanes];
    __builtin_memset(rest, 0, sizeof rest);
    __builtin_memcpy(rest, t + i, (run.n - i) * sizeof(S));
    ignored += B::count(Targets::ignored(rest, run));
    if (Targets::ignores_zero(run)) ignored -= B::kLanes - (run.n - i);
  }
  return ignored;
}

template <class B, class S, int U, int kOperation>
void fill_operation(KernelTable* table, int scores, int target) {
  table->run[scores][target][kOperation][0] =
      &Loop<B, S, kOperation, false, U>::run;
  table->run[scores][target][kOperation][1] =
      &Loop<B, S, kOperation, true, U>::run;
}

template <class B, class S, int U>
void fill_target(KernelTable* table, int scores, int target) {
  fill_operation<B, S, U, kForward>(table, scores, target);
  fill_operation<B, S, U, kElementwise>(table, scores, target);
  fill_operation<B, S, U, kBackward>(table, scores, target);
  fill_operation<B, S, U, kForwardBackward>(table, scores, target);
  table->count[scores][target] = &count_ignored<B, S>;
}

template <class B, int U>
void fill_scores(KernelTable* table, int scores) {
  fill_target<B, typename B::T, U>(table, scores, kTargetScores);
  fill_target<B, math::Bool, U>(table, scores, kTargetBool);
  fill_target<B, std::uint8_t, U>(table, scores, kTargetUint8);
  fill_target<B, std::int8_t, U>(table, scores, kTargetInt8);
  fill_target<B, std::int32_t, U>(table, scores, kTargetInt32);
  fill_target<B, std::int64_t, U>(table, scores, kTargetInt64);
}

// U: rows at a time, as many as the registers hold.
template <class F32, class F64, int U>
KernelTable make_table(const char* name) {
  KernelTable table;
  table.name = name;
  fill_scores<F32, U>(&table, 0);
  fill_scores<F64, U>(&table, 1);
  return table;
}

}  // namespace cpu
}  // namespace sigmoid_ce

// Ops on one element: the portable instruction set, and the reference for what
// the others must give.

namespace sigmoid_ce {
namespace cpu {

template <class Real>
struct ScalarBits;
template <>
struct ScalarBits<float> {
  using Int = std::uint32_t;
  static constexpr int kMantissa = 23;
};
template <>
struct ScalarBits<double> {
  using Int = std::uint64_t;
  static constexpr int kMantissa = 52;
};

static SIGMOID_CE_INLINE float scalar_fma(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
static SIGMOID_CE_INLINE double scalar_fma(double a, double b, double c) {
  return __builtin_fma(a, b, c);
}

template <class Real>
struct ScalarOps {
  using T = Real;
  using V = Real;
  using M = bool;
  using I = std::int32_t;
  using D = double;
  using Bits = typename ScalarBits<Real>::Int;
  static constexpr int kLanes = 1;
  static constexpr Bits kSign = Bits(1) << (8 * sizeof(Real) - 1);

  static SIGMOID_CE_INLINE Bits bits(V v) {
    Bits b;
    __builtin_memcpy(&b, &v, sizeof b);
    return b;
  }
  static SIGMOID_CE_INLINE V from_bits(Bits b) {
    V v;
    __builtin_memcpy(&v, &b, sizeof v);
    return v;
  }

  static SIGMOID_CE_INLINE V set(T v) { return v; }
  static SIGMOID_CE_INLINE V load(const T* p) {
    V v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static SIGMOID_CE_INLINE void store(T* p, V v) {
    __builtin_memcpy(p, &v, sizeof v);
  }
  static SIGMOID_CE_INLINE void stream(T* p, V v) { store(p, v); }

  static SIGMOID_CE_INLINE V add(V a, V b) { return a + b; }
  static SIGMOID_CE_INLINE V sub(V a, V b) { return a - b; }
  static SIGMOID_CE_INLINE V mul(V a, V b) { return a * b; }
  static SIGMOID_CE_INLINE V mul_rounded(V a, V b) {
    V v = a * b;
    SIGMOID_CE_KEEP_ROUNDED(v);
    return v;
  }
  static SIGMOID_CE_INLINE V div(V a, V b) { return a / b; }
  static SIGMOID_CE_INLINE V fma(V a, V b, V c) { return scalar_fma(a, b, c); }
  static SIGMOID_CE_INLINE V fnma(V a, V b, V c) {
    return scalar_fma(-a, b, c);
  }
  static SIGMOID_CE_INLINE V abs(V v) { return from_bits(bits(v) & ~kSign); }
  static SIGMOID_CE_INLINE V min_or_nan(V v, V limit) {
    return limit < v ? limit : v;
  }
  // p * 2^-N: n has N - kBias in its low bits. The first product is exact, the
  // second rounds once.
  static SIGMOID_CE_INLINE V scale(V p, V n, V) {
    using C = math::ExpLog1p<T>;
    const Bits one = Bits(sizeof(T) == 4 ? 127 : 1023)
                     << ScalarBits<T>::kMantissa;
    const V power = from_bits(one - (bits(n) << ScalarBits<T>::kMantissa));
    return mul_rounded(p * power, C::kUnbias);
  }
  static SIGMOID_CE_INLINE V by_sign(V x, V negative, V positive) {
    return (bits(x) & kSign) ? negative : positive;
  }
  static SIGMOID_CE_INLINE V flip_sign(V v, V x) {
    return from_bits(bits(v) ^ (bits(x) & kSign));
  }
  static SIGMOID_CE_INLINE V zero_where_zero(V u, V v) {
    return u == 0 ? V(0) : v;
  }

  static SIGMOID_CE_INLINE M is_zero(V v) { return v == 0; }
  static SIGMOID_CE_INLINE M none() { return false; }
  static SIGMOID_CE_INLINE M either(M a, M b) { return a | b; }
  static SIGMOID_CE_INLINE M in_range(V v, V low, V high) {
    return v >= low && v <= high;
  }
  static SIGMOID_CE_INLINE V zero_if(M m, V v) { return m ? V(0) : v; }
  static SIGMOID_CE_INLINE int count(M m) { return m; }

  static SIGMOID_CE_INLINE V from_int(I v) { return static_cast<T>(v); }
  template <class S>
  static SIGMOID_CE_INLINE S read(const S* p) {
    S v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static SIGMOID_CE_INLINE I load_int(const math::Bool* p) {
    return p->byte != 0;
  }
  static SIGMOID_CE_INLINE I load_int(const std::uint8_t* p) { return *p; }
  static SIGMOID_CE_INLINE I load_int(const std::int8_t* p) { return *p; }
  static SIGMOID_CE_INLINE I load_int(const std::int32_t* p) { return read(p); }
  static SIGMOID_CE_INLINE I load_int(const std::int64_t* p) {
    const std::int64_t v = read(p);
    return v > INT32_MAX   ? INT32_MAX
           : v < INT32_MIN ? INT32_MIN
                           : static_cast<I>(v);
  }
  static SIGMOID_CE_INLINE M equal(I v, std::int32_t label) {
    return v == label;
  }
  static SIGMOID_CE_INLINE M equal64(const std::int64_t* p,
                                     std::int64_t label) {
    return read(p) == label;
  }

  static SIGMOID_CE_INLINE D widen(V v) { return v; }
  static SIGMOID_CE_INLINE D add_wide(D a, D b) { return a + b; }
  static SIGMOID_CE_INLINE D load_wide(const double* p) { return *p; }
  static SIGMOID_CE_INLINE void store_wide(double* p, D v) { *p = v; }
};

}  // namespace cpu
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace cpu {

const KernelTable* scalar_kernels() {
  static const KernelTable table =
      make_table<ScalarOps<float>, ScalarOps<double>, 1>("scalar");
  return &table;
}

}  // namespace cpu
}  // namespace sigmoid_ce
