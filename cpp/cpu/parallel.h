// Worker threads that are started once and wait between calls.
#ifndef SIGMOID_CE_CPU_PARALLEL_H_
#define SIGMOID_CE_CPU_PARALLEL_H_

namespace sigmoid_ce {
namespace cpu {

// Calls task(context) on this thread and on up to threads - 1 workers at the same time, and returns when
// all calls have returned. A worker that comes too late is not called, and none is while another thread's
// task has the workers: the task must do all its work with one call too.
void run_parallel(int threads, void (*task)(void* context), void* context);

}  // namespace cpu
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CPU_PARALLEL_H_
