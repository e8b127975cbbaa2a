// The type tag of boolean targets: a byte of which any value but 0 is true.
#ifndef SIGMOID_CE_MATH_TARGETS_H_
#define SIGMOID_CE_MATH_TARGETS_H_

#include <cstdint>

namespace sigmoid_ce {
namespace math {

struct Bool {
  std::uint8_t byte;
};

}  // namespace math
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_MATH_TARGETS_H_
