// The order in which the losses of a block are added, which decides the bits of the result.
//
// A block is 4096 consecutive elements, position 256 g + 64 j + r (g < 16, j < 4, r < 64). In float64:
//
//   S[g][r] = ((l0 + l1) + l2) + l3     over j
//   acc[r]  = sum over g in order, from +0
//   then r is halved: acc[r] += acc[r + h] for h = 32, 16, 8, 4, 2, 1
//
// Missing elements are +0. Vectors of 1 to 64 lanes, and a GPU block of 64 or 256 threads, add in this
// order without a shuffle before the halving. Blocks are added exactly: exact_sum.h.
#ifndef SIGMOID_CE_MATH_BLOCK_SUM_H_
#define SIGMOID_CE_MATH_BLOCK_SUM_H_

#include "math/platform.h"

namespace sigmoid_ce {
namespace math {

constexpr int kRow = 64;          // r
constexpr int kRowsPerGroup = 4;  // j
constexpr int kGroup = 256;       // kRow * kRowsPerGroup
constexpr int kBlock = 4096;      // 16 groups

// The last step. O only keeps the instantiations of different instruction sets apart.
template <class O>
SIGMOID_CE_INLINE double halve(double (&acc)[kRow]) {
  for (int h = kRow / 2; h > 0; h /= 2) {
    for (int r = 0; r < h; ++r) acc[r] += acc[r + h];
  }
  return acc[0];
}

}  // namespace math
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_MATH_BLOCK_SUM_H_
