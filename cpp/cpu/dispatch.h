// Who picks the instruction set and the number of threads.
#ifndef SIGMOID_CE_CPU_DISPATCH_H_
#define SIGMOID_CE_CPU_DISPATCH_H_

#include "cpu/kernel.h"
#include "sigmoid_ce/status.h"

namespace sigmoid_ce {
namespace cpu {

// Errors are those of the environment variables SIGMOID_CE_ISA and SIGMOID_CE_NUM_THREADS.
Status find_kernels(const KernelTable** table);
Status find_threads(int* threads);

}  // namespace cpu
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CPU_DISPATCH_H_
