// Which targets ignore_label means, and what the sum is divided by. Caffe's rules (LossParameter,
// SigmoidCrossEntropyLossLayer), in a form that every device computes alike.
#ifndef SIGMOID_CE_MATH_SEMANTICS_H_
#define SIGMOID_CE_MATH_SEMANTICS_H_

#include <cmath>
#include <cstdint>
#include <limits>

#include "math/platform.h"
#include "sigmoid_ce/options.h"

namespace sigmoid_ce {
namespace math {

// The smallest T that is >= m.
template <class T>
T float_at_least(std::uint64_t m) {
  const T v = static_cast<T>(m);  // nearest; m <= 2^63 + 1, so that v converts back
  return static_cast<std::uint64_t>(v) < m ? std::nextafter(v, std::numeric_limits<T>::infinity())
                                           : v;
}

// Targets of a floating type whose truncation to an integer is `label`: those with low <= t <= high; none
// where low > high. k = 0: -1 < t < 1; k > 0: k <= t < k + 1; k < 0: k - 1 < t <= k.
template <class T>
void ignore_range(std::int64_t label, T* low, T* high) {
  const T one_less = std::nextafter(T(1), T(0));
  if (label == 0) {
    *low = -one_less;
    *high = one_less;
    return;
  }
  const std::uint64_t m = label < 0 ? ~static_cast<std::uint64_t>(label) + 1 : label;
  const T near = float_at_least<T>(m);
  const T far = std::nextafter(float_at_least<T>(m + 1), T(0));
  *low = label < 0 ? -far : near;
  *high = label < 0 ? -near : far;
}

// Which elements are counted together for `balance`: those of one (index / length) % count.
struct Groups {
  std::int64_t length, count;
};

inline Groups groups_of(const Options& options, const std::int64_t* shape, int ndim,
                        std::int64_t n_total) {
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
  return options.class_weights != nullptr || options.balance != Balance::kNone ||
         options.negative_scale != 1 || options.has_alpha;
}

// w+ and w- where P targets are 1 and M are 0. Products and quotients only, which every compiler rounds alike.
SIGMOID_CE_BOTH void class_weights(Balance balance, double positive_factor, double negative_factor,
                                   std::int64_t p, std::int64_t m, double* weights) {
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

inline void class_weights(const Options& o, std::int64_t p, std::int64_t m, double* weights) {
  class_weights(o.balance, o.has_alpha ? o.alpha : 1.0,
                (o.has_alpha ? 1.0 - o.alpha : 1.0) * o.negative_scale, p, m, weights);
}

// max(1, d), or Options::divisor.
inline double divisor(const Options& options, std::int64_t batch_size, std::int64_t n_valid,
                      std::int64_t n_total, std::int64_t n_foreground = 0) {
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

#endif  // SIGMOID_CE_MATH_SEMANTICS_H_
