// The numbers that decide the speed of the kernels and nothing else: no result depends on them.
#ifndef SIGMOID_CE_CUDA_TUNING_H_
#define SIGMOID_CE_CUDA_TUNING_H_

#include "arguments.h"

namespace sigmoid_ce {
namespace cuda {

constexpr int kThreads = 256;
// Half of the threads that a multiprocessor holds: 64 registers each on those with 2048 threads.
constexpr int kMinBlocks = 4;
// Of kernels with a focal loss in double precision, which needs more registers.
constexpr int kMinBlocksFocal64 = 2;
constexpr int min_blocks(int itemsize, int kind) {
  return kind == kFocal && itemsize == 8 ? kMinBlocksFocal64 : kMinBlocks;
}
// Bytes of one load or store of a thread.
constexpr int kVectorBytes = 16;
// Rows of a thread, of four, of so many elements, that are loaded before the first is computed. More would not fit the
// registers.
constexpr int rows_at_once(int lanes, bool options, bool sums) {
  return !options && (lanes == 4 || (lanes == 2 && !sums)) ? 2 : 1;
}
// Elements of a row that are computed side by side where there are options. A focal loss is too long to be there more than
// once, and fills the processor by the threads that there are.
constexpr int elements_at_once(int lanes, int kind) {
  return kind == kFocal ? 1 : lanes == 8 ? 2 : lanes;
}
// Blocks of the grid per multiprocessor: several times what runs at once, so that the last ones end together, and
// few enough that their additions to the sum, a few atomics each, are hidden.
constexpr int kBlocksPerMultiprocessor = 32;

// Elements per piece of work of scores of so many bytes: one or two blocks of the sum.
constexpr int tile_of(int itemsize) {
  return itemsize >= 4 ? 4096 : kThreads * (kVectorBytes / itemsize) * 4;
}

// Targets of so many bytes that a block counts at once: those of a warp fit 16 bits.
constexpr int count_tile_of(int itemsize) { return 8 * kThreads * (kVectorBytes / itemsize); }

}  // namespace cuda
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CUDA_TUNING_H_
