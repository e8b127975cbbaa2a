// Which targets ignore_label means, and what the sum is divided by. Caffe's rules (LossParameter,
// SigmoidCrossEntropyLossLayer), in a form that every device computes alike.
#ifndef SIGMOID_CE_MATH_SEMANTICS_H_
#define SIGMOID_CE_MATH_SEMANTICS_H_

#include <cmath>
#include <cstdint>
#include <limits>

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

// max(1, d), or Options::divisor.
inline double divisor(const Options& options, std::int64_t batch_size, std::int64_t n_valid,
                      std::int64_t n_total) {
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

#endif  // SIGMOID_CE_MATH_SEMANTICS_H_
