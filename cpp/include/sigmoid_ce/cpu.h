// The loss on the CPU. Formula, bounds and the guarantee of equal bits: docs/numerics.md.
//
//   loss = w (p t log(1 + exp(-x)) + (1 - t) log(1 + exp(x)))     score x, target t, pos_weight p, weight w
//   for p = w = 1: max(x, 0) - x t + log1p(exp(-|x|))
//
// Thread-safe and fork-safe. Inputs are never written. No exception leaves these functions. Memory: where an
// array is strided, broadcast or converted, 288 KiB per thread of the call, kept for the next call; 32 bytes for
// each group of `balance`, for the call; else none.
#ifndef SIGMOID_CE_CPU_H_
#define SIGMOID_CE_CPU_H_

#include <cstdint>

#include "sigmoid_ce/options.h"
#include "sigmoid_ce/partial.h"
#include "sigmoid_ce/status.h"

namespace sigmoid_ce {
namespace cpu {

// The sum of the losses and the counts; and the divisor max(1, d) that `options` asks for, where it is wanted.
Status forward(const Inputs& inputs, const Options& options, Partial* partial,
               double* divisor = nullptr);

// The loss of each element: reduction "none", no divisor.
Status elementwise(const Inputs& inputs, const Options& options, const MutableArray& losses);

// d loss / d scores, times loss_weight / divisor. The output may be the scores array itself; any other
// overlap with an input is refused where the arrays are contiguous, and not allowed where they are strided.
Status backward(const Inputs& inputs, const Options& options, const MutableArray& gradient);

// Both in one pass over memory.
Status forward_backward(const Inputs& inputs, const Options& options, Partial* partial,
                        const MutableArray& gradient, double* divisor = nullptr);

// And the second derivatives, with the same factors: the diagonal of the Hessian, beside which there is nothing.
Status forward_backward(const Inputs& inputs, const Options& options, Partial* partial,
                        const MutableArray& gradient, const MutableArray& hessian,
                        double* divisor = nullptr);

// d loss / d targets, times loss_weight / divisor; 0 where they are ignored or masked. Counts of `balance` and of the
// divisor are taken for constants. In the scores' dtype; the output may be the scores array itself.
Status backward_targets(const Inputs& inputs, const Options& options, const MutableArray& gradient);

// w+ and w- of each group of `balance`, for Options::class_weights, so that a second pass need not count: 2
// class_weight_groups() numbers. A group is an image, a channel, a channel of an image (images first), or all.
std::int64_t class_weight_groups(const Inputs& inputs, const Options& options);  // 0: bad arguments
Status class_weights(const Inputs& inputs, const Options& options, double* weights);

// sum / divisor in float64; and the divisor by the counts of a Partial, of any normalization but kForeground.
double divide(const Partial& partial, double divisor);
double divisor(const Inputs& inputs, const Options& options, const Partial& partial);
double loss(const Inputs& inputs, const Options& options, const Partial& partial);

// Instruction sets: "scalar", "avx2", "avx512", "neon". The best that the machine has is used, unless the
// environment variable SIGMOID_CE_ISA or set_isa names another. The result's bits do not depend on it.
// A variable that names none makes calls return an error, as does SIGMOID_CE_NUM_THREADS below.
Status set_isa(const char* name);  // nullptr: back to the default
const char* isa();                 // the one in use, "" when SIGMOID_CE_ISA names none
int isa_count();                   // compiled in and supported here
const char* isa_name(int index);   // best first, nullptr outside of the range
int compiled_isa_count();          // compiled in, whether this machine has them or not
const char* compiled_isa_name(int index);

// Threads: by default as many as the process may use (affinity, cgroup quota), or SIGMOID_CE_NUM_THREADS.
Status set_num_threads(int n);  // 0: back to the default
int num_threads();              // 0 when SIGMOID_CE_NUM_THREADS is no number

}  // namespace cpu
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CPU_H_
