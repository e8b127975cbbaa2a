// The order in which the losses of a block are added, which decides the bits of the result.
//
// A block is 4096 consecutive elements, position 1024 h + 64 g + 16 j + r (h < 4, g < 16, j < 4, r < 16).
// In float64:
//
//   S[h][g][r]      = ((l0 + l1) + l2) + l3     over j
//   acc[16 h + r]   = sum of S over g in order, from +0
//   then the 64 acc are halved: acc[i] += acc[i + k] for k = 32, 16, 8, 4, 2, 1
//
// Missing elements are +0. Vectors of 1 to 16 lanes add in this order without moving data between lanes,
// and go through memory in order: a group of 64 elements at a time, with 16 accumulators in registers. A
// GPU block has 64 of them to add side by side. Blocks are added exactly: exact_sum.h.
#ifndef SIGMOID_CE_MATH_BLOCK_SUM_H_
#define SIGMOID_CE_MATH_BLOCK_SUM_H_

#include "math/platform.h"

namespace sigmoid_ce {
namespace math {

constexpr int kRow = 16;           // r
constexpr int kRowsPerGroup = 4;   // j
constexpr int kGroup = 64;         // kRow * kRowsPerGroup
constexpr int kQuarter = 1024;     // 16 groups: what shares accumulators
constexpr int kBlock = 4096;       // 4 quarters
constexpr int kAccumulators = 64;  // kRow per quarter

// The last step. O only keeps the instantiations of different instruction sets apart.
template <class O>
SIGMOID_CE_INLINE double halve(double (&acc)[kAccumulators]) {
  for (int k = kAccumulators / 2; k > 0; k /= 2) {
    for (int i = 0; i < k; ++i) acc[i] += acc[i + k];
  }
  return acc[0];
}

}  // namespace math
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_MATH_BLOCK_SUM_H_
