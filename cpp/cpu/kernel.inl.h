// The CPU loop, written once. kernel_<isa>.cpp includes it inside a target region and calls make_table
// with its Ops. Everything here is a template over Ops, so that no function compiled for one
// instruction set can stand in for another's.
#ifndef SIGMOID_CE_CPU_KERNEL_INL_H_
#define SIGMOID_CE_CPU_KERNEL_INL_H_

// Without optimisation all that is inlined would keep its variables, and the compiler need 6 GB for AVX-512.
#if defined(__GNUC__) && !defined(__clang__) && !defined(__OPTIMIZE__)
#pragma GCC optimize("O2")
#endif

#include <cstdint>

#include "cpu/kernel.h"
#include "cpu/ops_twice.h"
#include "math/block_sum.h"
#include "math/element.h"
#include "math/half.h"
#include "math/targets.h"

namespace sigmoid_ce {
namespace cpu {

// Which integer targets are ignored. 64-bit ones are compared before they are saturated.
template <class O, class S>
SIGMOID_CE_INLINE typename O::M equal_label(const S* p, std::int64_t label) {
  return O::equal(O::load_int(p), static_cast<std::int32_t>(label));
}
template <class O>
SIGMOID_CE_INLINE typename O::M equal_label(const std::int64_t* p, std::int64_t label) {
  return O::equal64(p, label);
}

// Targets of type S as lanes of O: floats are loaded, integers converted.
template <class O, class S>
struct TargetOps {
  static constexpr bool kFinite = true;
  static SIGMOID_CE_INLINE typename O::V load(const S* p) { return O::from_int(O::load_int(p)); }
  static SIGMOID_CE_INLINE typename O::M ignored(const S* p, const Run& run) {
    return equal_label<O>(p, run.ignore_label);
  }
  static SIGMOID_CE_INLINE bool ignores_zero(const Run& run) { return run.ignore_label == 0; }
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
  static SIGMOID_CE_INLINE typename B::D sum(typename B::V v) { return B::widen(v); }
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

// Where the elements of a run, or of a padded group, are. T: scores; S: targets.
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
      for (int k = 0; k < 2; ++k) a.by_class[k] = static_cast<const T*>(run.class_weights[k]);
    }
    return a;
  }
};

// B: Ops of one vector; S: target type; kOptions: which are on, as in kernel.h; U: rows at a time.
template <class B, class S, int kOperation, unsigned kOptions, int U>
struct Loop {
  using T = typename B::T;
  using R = Rows<B, U>;
  using O = typename R::O;
  using V = typename O::V;
  using Targets = TargetOps<O, S>;
  using Place = Places<T, S>;
  static constexpr bool kSums =
      kOperation == kForward || kOperation == kForwardBackward || kOperation == kHessian;
  static constexpr bool kGradient =
      kOperation == kBackward || kOperation == kForwardBackward || kOperation == kHessian;
  static constexpr bool kLoss = kOperation != kBackward;

  // Whether any of `options` is on.
  static SIGMOID_CE_INLINE bool on(const Run& run, unsigned options) {
    return (kOptions & options) != 0 && (!(kOptions & kAtRunTime) || (run.options & options) != 0);
  }

  static SIGMOID_CE_INLINE V constant(double v) { return O::set(static_cast<T>(v)); }

  static SIGMOID_CE_INLINE void put(const Run& run, T* p, V v) {
    if (run.stream) {
      O::stream(p, v);
    } else {
      O::store(p, v);
    }
  }

  // The elements at i of U rows. Gives their losses, weight included.
  static SIGMOID_CE_INLINE V elements(const Run& run, const Place& at, std::int64_t i,
                                      std::int64_t* ignored) {
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
        const typename O::M uncertain =
            O::both(O::differs(target, O::set(0)), O::differs(target, O::set(1)));
        *ignored += O::count(O::either(out_of_it, uncertain)) - O::count(out_of_it);
        zero = O::either(zero, uncertain);
      }
      if (on(run, kSmoothing)) {
        // Each by itself: 1 - t would have the rounding error of t, many times a small smoothing.
        const V factor = constant(run.smoothing_factor), term = constant(run.smoothing_term);
        target = O::fma(target, factor, term);
        negative = O::fma(negative, factor, term);
      }
      if (on(run, kClassWeight)) {
        for (int k = 0; k < 2; ++k) {
          class_weight[k] = on(run, kArrays) && at.by_class[k] ? O::load(at.by_class[k] + i)
                                                               : constant(run.class_weight[k]);
        }
        by_class = O::fma(target, class_weight[0], O::mul(negative, class_weight[1]));
        if (kOperation != kTargetBackward) {
          weight = on(run, kElementWeight) ? O::mul_rounded(weight, by_class) : by_class;
          zero = O::either(zero, O::is_zero(weight));
        }
      }
    }
    Element e;
    if (on(run, kPosWeight)) {
      pos_weight = on(run, kArrays) && at.p ? O::load(at.p + i) : constant(run.pos_weight);
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
        gradient = focal.target_gradient(e.target_gradient(pos_weight), e.loss());
      }
    } else {
      if (kLoss) loss = e.loss();
      if (kGradient) gradient = e.gradient();
      if (kOperation == kHessian) hessian = e.hessian();
      if (kOperation == kTargetBackward) gradient = e.target_gradient(pos_weight);
    }
    if (kOperation == kTargetBackward) {
      if (on(run, kClassWeight)) {
        const V step = O::sub(class_weight[0], class_weight[1]);
        const V kept = O::zero_where_zero(by_class, gradient);
        gradient = O::fma(step, O::zero_where_zero(step, loss), O::mul(by_class, kept));
      }
      if (on(run, kSmoothing)) gradient = O::mul(gradient, constant(run.smoothing_factor));
      put(run, at.out + i, scaled(run, gradient, weight, zero));
      return loss;
    }
    if (kLoss) {
      if (on(run, kWeights)) loss = O::mul_rounded(weight, loss);
      if (on(run, kZeros)) loss = O::zero_if(zero, loss);
    }
    if (kOperation == kElementwise) put(run, at.out + i, loss);
    if (kGradient) put(run, at.out + i, scaled(run, gradient, weight, zero));
    if (kOperation == kHessian) put(run, at.hessian + i, scaled(run, hessian, weight, zero));
    return loss;
  }

  // A derivative with the weight and the factor of all.
  static SIGMOID_CE_INLINE V scaled(const Run& run, V d, V weight, typename O::M zero) {
    if (on(run, kWeights)) d = O::mul(d, weight);
    d = O::mul(d, constant(run.scale));
    return on(run, kZeros) ? O::zero_if(zero, d) : d;
  }

  // The lines of a group, 1 KiB ahead, or half of that where there are weights too: the polynomials fill the
  // processor's window, so that it does not reach the next loads by itself. (The gradient alone does, and is
  // better off without; so are the weights of a float64 pass that writes.)
  template <class A>
  static SIGMOID_CE_INLINE void prefetch(const A* a) {
    constexpr int kLine = 64;
    constexpr int kAhead = (kOptions & kElementWeight) != 0 ? 512 : 1024;
    const char* p = reinterpret_cast<const char*>(a) + kAhead;
    for (int i = 0; i < math::kGroup * static_cast<int>(sizeof(A)); i += kLine) {
      __builtin_prefetch(p + i);
    }
  }

  // The group at i; its sums are added to acc[0 .. 15].
  static SIGMOID_CE_INLINE void group(const Run& run, const Place& at, std::int64_t i, double* acc,
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

  // The n < 64 elements at begin: padded copies go through the same loop. The padding has loss +0:
  // x = -inf with t = 0, and the weight 0 where there are options, which could make that anything. So only
  // the plain kernel and those that look at run time have one.
  static __attribute__((noinline)) void tail(Run run, Place at, std::int64_t begin, std::int64_t n,
                                             double* acc, std::int64_t* ignored) {
    alignas(64) T xs[math::kGroup], ps[math::kGroup], ws[math::kGroup], outs[math::kGroup];
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
    Place padded = {xs, ts, nullptr, nullptr, {nullptr, nullptr}, outs, hessians};
    if (kOptions) {
      run.options |= kElementWeight;
      if (at.p) __builtin_memcpy(ps, at.p + begin, n * sizeof(T));
      if (at.w) __builtin_memcpy(ws, at.w + begin, n * sizeof(T));
      padded.p = at.p ? ps : nullptr;
      padded.w = ws;
      for (int k = 0; k < 2; ++k) {
        if (at.by_class[k]) __builtin_memcpy(classes[k], at.by_class[k] + begin, n * sizeof(T));
        padded.by_class[k] = at.by_class[k] ? classes[k] : nullptr;
      }
    }
    run.stream = false;
    group(run, padded, 0, acc, ignored);
    if (kOperation != kForward) __builtin_memcpy(at.out + begin, outs, n * sizeof(T));
    if (kOperation == kHessian) __builtin_memcpy(at.hessian + begin, hessians, n * sizeof(T));
    if (on(run, kIgnoreLabel) && Targets::ignores_zero(run)) *ignored -= math::kGroup - n;
  }

  static void run(Run* args) {
    using Tail = Loop<B, S, kOperation, kOptions == 0 ? 0u : (kOptions & kGamma) | kGeneral, U>;
    const Run run = *args;
    const Place all = Place::of(run, kOptions != 0);
    double* sums = run.block_sums;
    std::int64_t ignored = 0;
    for (std::int64_t begin = 0; begin < run.n; begin += math::kBlock) {
      const std::int64_t end = run.n - begin < math::kBlock ? run.n : begin + math::kBlock;
      alignas(64) double acc[math::kAccumulators] = {};
      for (std::int64_t i = begin, q = 0; i < end; i += math::kQuarter, q += math::kRow) {
        const std::int64_t stop = end - i < math::kQuarter ? end : i + math::kQuarter;
        alignas(64) double sum[math::kRow] = {};
        std::int64_t k = i;
        for (; k + math::kGroup <= stop; k += math::kGroup) {
          if (kOperation != kBackward) {
            prefetch(all.x + k);
            prefetch(all.t + k);
            if ((kOperation == kForward || sizeof(T) == 4) && on(run, kElementWeight) && all.w) {
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

// Calls f(pointer to the targets of a vector, how many of them there are), the last vector padded with 0.
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
      const typename B::V kept = B::zero_if(Targets::ignored(t, run), B::set(1));
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
  run[kForwardBackward][kKernel] = &Loop<B, S, kForwardBackward, kOptions, U>::run;
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
  table->focal[scores][kOperation] = &Loop<B, typename B::T, kOperation, kEverything, U>::run;
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

#endif  // SIGMOID_CE_CPU_KERNEL_INL_H_
