// All that asks something of the CUDA runtime.
#ifndef SIGMOID_CE_CUDA_LAUNCH_H_
#define SIGMOID_CE_CUDA_LAUNCH_H_

#include "plan.h"
#include "sigmoid_ce/cuda.h"

namespace sigmoid_ce {
namespace cuda {

// Of the current device.
Status find_multiprocessors(int* count);

// Puts the work of a plan into a stream.
Status launch(const Plan& plan, Stream stream);

}  // namespace cuda
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CUDA_LAUNCH_H_
