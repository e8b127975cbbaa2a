// The CPU loop, written once. kernel_<isa>.cpp includes it inside a target region and calls make_table
// with its Ops. Everything here is a template over Ops, so that no function compiled for one
// instruction set can stand in for another's.
#ifndef SIGMOID_CE_CPU_KERNEL_INL_H_
#define SIGMOID_CE_CPU_KERNEL_INL_H_

#include <cstdint>

#include "cpu/kernel.h"
#include "cpu/ops_twice.h"
#include "math/block_sum.h"
#include "math/element.h"
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

// B: Ops of one vector; S: target type; U: rows at a time.
template <class B, class S, int kOperation, bool kGeneral, int U>
struct Loop {
  using T = typename B::T;
  using R = Rows<B, U>;
  using O = typename R::O;
  using V = typename O::V;
  using Targets = TargetOps<O, S>;
  static constexpr bool kSums = kOperation == kForward || kOperation == kForwardBackward;

  static SIGMOID_CE_INLINE void put(const Run& run, T* p, V v) {
    if (run.stream) {
      O::stream(p, v);
    } else {
      O::store(p, v);
    }
  }

  // The elements at i of U rows. Gives their losses, weight included.
  static SIGMOID_CE_INLINE V elements(const Run& run, const T* x, const S* t, const T* p,
                                      const T* w, T* out, std::int64_t i, std::int64_t* ignored) {
    using Element = math::Element<O>;
    const V score = O::load(x + i);
    const V target = Targets::load(t + i);
    V weight = O::set(static_cast<T>(1));
    typename O::M zero = O::none();
    Element e;
    if (kGeneral && run.has_pos_weight) {
      e = Element::weighted(score, target,
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

  // The lines of a group, 1 KiB ahead: the polynomials fill the processor's window, so that it does not
  // reach the next loads by itself. (The gradient alone does, and is better off without.)
  template <class A>
  static SIGMOID_CE_INLINE void prefetch(const A* a) {
    constexpr int kLine = 64;
    constexpr int kAhead = 1024;
    const char* p = reinterpret_cast<const char*>(a) + kAhead;
    for (int i = 0; i < math::kGroup * static_cast<int>(sizeof(A)); i += kLine) {
      __builtin_prefetch(p + i);
    }
  }

  // One group; its sums are added to acc[0 .. 15].
  static SIGMOID_CE_INLINE void group(const Run& run, const T* x, const S* t, const T* p,
                                      const T* w, T* out, double* acc, std::int64_t* ignored) {
    for (int r = 0; r < math::kRow; r += B::kLanes) {
      typename B::D s = {};
      for (int j = 0; j < math::kRowsPerGroup; j += U) {
        const V loss = elements(run, x, t, p, w, out, r + j * math::kRow, ignored);
        if (kSums) s = j == 0 ? R::sum(loss) : R::sum(s, loss);
      }
      if (kSums) B::store_wide(acc + r, B::add_wide(B::load_wide(acc + r), s));
    }
  }

  // A group of fewer than 64 elements: padded copies go through the same loop. The padding has loss +0:
  // x = -inf with t = 0.
  static __attribute__((noinline)) void tail(Run run, std::int64_t n, const T* x, const S* t,
                                             const T* p, const T* w, T* out, double* acc,
                                             std::int64_t* ignored) {
    alignas(64) T xs[math::kGroup], ps[math::kGroup], ws[math::kGroup], outs[math::kGroup];
    alignas(64) S ts[math::kGroup];
    for (int i = 0; i < math::kGroup; ++i) {
      xs[i] = -static_cast<T>(__builtin_inff());
      ps[i] = 1;
      // A weight for all must not reach the padding either: infinity times 0 is NaN.
      ws[i] = i < n ? static_cast<T>(run.weight) : 1;
    }
    __builtin_memset(ts, 0, sizeof ts);
    __builtin_memcpy(xs, x, n * sizeof(T));
    __builtin_memcpy(ts, t, n * sizeof(S));
    if (kGeneral && p) __builtin_memcpy(ps, p, n * sizeof(T));
    if (kGeneral && w) __builtin_memcpy(ws, w, n * sizeof(T));
    run.stream = false;
    group(run, xs, ts, kGeneral && p ? ps : nullptr, kGeneral ? ws : nullptr, outs, acc, ignored);
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
      const std::int64_t end = run.n - begin < math::kBlock ? run.n : begin + math::kBlock;
      alignas(64) double acc[math::kAccumulators] = {};
      for (std::int64_t i = begin, q = 0; i < end; i += math::kQuarter, q += math::kRow) {
        const std::int64_t stop = end - i < math::kQuarter ? end : i + math::kQuarter;
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
  for (; i + B::kLanes <= run.n; i += B::kLanes) ignored += B::count(Targets::ignored(t + i, run));
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
  table->run[scores][target][kOperation][0] = &Loop<B, S, kOperation, false, U>::run;
  table->run[scores][target][kOperation][1] = &Loop<B, S, kOperation, true, U>::run;
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

#endif  // SIGMOID_CE_CPU_KERNEL_INL_H_
