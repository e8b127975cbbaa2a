// With it, longjmp refuses another stack.
#undef _FORTIFY_SOURCE

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "arguments.h"
#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStack = 256 * 1024;

enum State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Stack {
  const void* bottom = nullptr;
  std::size_t size = 0;
  void* fake = nullptr;  // the sanitizer's
};

struct Fiber {
  jmp_buf where;
  std::unique_ptr<char[]> memory;  // none before its first thread
  Stack stack;
  State state = kReady;
};

// The address sanitizer wants to know of each change of stacks, before it and after it. `at` is null on a
// new stack; `from` learns which one was left.
#if defined(__SANITIZE_ADDRESS__)
void leave(Stack* from, const Stack& to) {
  __sanitizer_start_switch_fiber(&from->fake, to.bottom, to.size);
}
void arrive(const Stack* at, Stack* from) {
  __sanitizer_finish_switch_fiber(at == nullptr ? nullptr : at->fake, &from->bottom, &from->size);
}
#else
void leave(Stack*, const Stack&) {}
void arrive(const Stack*, Stack*) {}
#endif

// The block that runs. One at a time: launches hold the mutex.
std::mutex mutex;
std::vector<Fiber> fibers;
jmp_buf scheduler;
Stack scheduler_stack;
unsigned running = 0;
const void* kernel = nullptr;
const void* argument = nullptr;

std::vector<int> votes;
std::vector<double> shuffled;

// Back to the scheduler, until it resumes this fiber. By setjmp and longjmp: swapcontext takes
// three quarters of all time, for a system call at each switch.
void wait_at(State barrier) {
  Fiber& fiber = fibers[running];
  fiber.state = barrier;
  if (_setjmp(fiber.where) == 0) {
    leave(&fiber.stack, scheduler_stack);
    _longjmp(scheduler, 1);
  }
  arrive(&fibers[running].stack, &scheduler_stack);
}

// A fiber runs one thread after another.
void enter() {
  using sigmoid_ce::cuda::Arguments;
  arrive(nullptr, &scheduler_stack);
  for (;;) {
    const Arguments arguments = *static_cast<const Arguments*>(argument);
    reinterpret_cast<void (*)(Arguments)>(const_cast<void*>(kernel))(arguments);
    wait_at(kDone);
  }
}

// By themselves, since setjmp and getcontext return twice for all that a compiler knows.
__attribute__((noinline)) void start(Fiber* fiber) {
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber->memory.get();
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, enter, 0);
  setcontext(&context);
}
__attribute__((noinline)) void resume(unsigned i) {
  running = i;
  threadIdx = dim3(i, 0, 0);
  Fiber& fiber = fibers[i];
  const bool is_new = fiber.memory == nullptr;
  if (is_new) {
    fiber.memory.reset(new char[kStack]);
    fiber.stack.bottom = fiber.memory.get();
    fiber.stack.size = kStack;
  }
  if (_setjmp(scheduler) != 0) {
    Stack left;
    arrive(&scheduler_stack, &left);
    return;
  }
  leave(&scheduler_stack, fiber.stack);
  if (is_new) start(&fiber);
  _longjmp(fiber.where, 1);
}

// Lets those go on who wait at a barrier to which all have come that are still there.
bool release(State barrier, unsigned begin, unsigned end) {
  bool any = false;
  for (unsigned i = begin; i < end; ++i) {
    if (fibers[i].state == kDone) continue;
    if (fibers[i].state != barrier) return false;
    any = true;
  }
  for (unsigned i = begin; any && i < end; ++i) {
    if (fibers[i].state == barrier) fibers[i].state = kReady;
  }
  return any;
}

void run_block(unsigned threads, std::mt19937* random) {
  for (unsigned i = 0; i < threads; ++i) fibers[i].state = kReady;
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  for (;;) {
    std::shuffle(order.begin(), order.end(), *random);
    bool ran = false;
    for (const unsigned i : order) {
      if (fibers[i].state != kReady) continue;
      ran = true;
      resume(i);
    }
    if (ran) continue;
    bool released = false;
    for (unsigned w = 0; w < threads; w += kWarp) {
      released = release(kAtWarpBarrier, w, std::min(w + kWarp, threads)) || released;
    }
    if (!released) released = release(kAtBlockBarrier, 0, threads);
    if (released) continue;
    for (unsigned i = 0; i < threads; ++i) {
      if (fibers[i].state != kDone) {
        std::fprintf(stderr, "emulation: threads of block %u wait at different barriers\n",
                     blockIdx.x);
        std::abort();
      }
    }
    return;
  }
}

std::string machine() {
  const char* text = std::getenv("SIGMOID_CE_EMULATED_GPU");
  return text == nullptr ? "" : text;
}

cudaError_t find() {
  const std::string m = machine();
  if (m == "none") return cudaErrorNoDevice;
  if (m == "no driver" || m == "old driver") return cudaErrorInsufficientDriver;
  return cudaSuccess;
}

int number(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : static_cast<int>(std::strtol(text, nullptr, 10));
}

// Few, so that the blocks of a grid have several tiles each.
int multiprocessors() { return number("SIGMOID_CE_EMULATED_MULTIPROCESSORS", 1); }

thread_local int current_device = 0;

int devices() { return machine() == "two" ? 2 : 1; }

// Device memory of its own: addresses that only functions of the device may touch, and that all arrays of a kernel have.
constexpr std::size_t kPage = 4096;
constexpr std::size_t kArena = std::size_t(1) << 40;  // addresses, not memory
std::size_t arena_used = 0;
std::map<void*, std::size_t> arena_blocks;

char* arena() {
  static char* const base = [] {
    const char* text = std::getenv("SIGMOID_CE_EMULATED_MEMORY");
    if (text == nullptr || std::string(text) != "own") return static_cast<char*>(nullptr);
    void* p = mmap(nullptr, kArena, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : static_cast<char*>(p);
  }();
  return base;
}

bool of_device(const void* p) {
  const char* q = static_cast<const char*>(p);
  return q >= arena() && q < arena() + arena_used;
}

// Never the same address twice.
cudaError_t take(void** p, std::size_t size) {
  const std::lock_guard<std::mutex> lock(mutex);
  const std::size_t bytes = (size + kPage) / kPage * kPage;
  if (bytes > kArena - arena_used) return cudaErrorMemoryAllocation;
  *p = arena() + arena_used;
  arena_used += bytes;
  arena_blocks[*p] = bytes;
  return cudaSuccess;
}

cudaError_t give_back(void* p) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (p == nullptr) return cudaSuccess;
  const auto found = arena_blocks.find(p);
  if (found == arena_blocks.end()) return cudaErrorInvalidValue;
  madvise(p, found->second, MADV_DONTNEED);
  arena_blocks.erase(found);
  return cudaSuccess;
}

// While the device works.
class AtWork {
 public:
  AtWork() : lock_(mutex) { protect(PROT_READ | PROT_WRITE); }
  ~AtWork() { protect(PROT_NONE); }

 private:
  static void protect(int how) {
    if (arena_used > 0) mprotect(arena(), arena_used, how);
  }
  std::lock_guard<std::mutex> lock_;
};

void check_device_memory(const sigmoid_ce::cuda::Arguments& args) {
  if (arena() == nullptr) return;
  const void* const arrays[] = {
      args.scores.data,   args.targets.data,     args.out.data,     args.pos_weights.data,
      args.weights.data,  args.workspace,        args.loss,         args.loss_divisor,
      args.partial,       args.divisor,          args.hessian.data, args.class_slots,
      args.given_weights, args.class_weights_out};
  for (const void* p : arrays) {
    if (p == nullptr || of_device(p)) continue;
    std::fprintf(stderr, "emulation: a kernel got an array that is not in device memory\n");
    std::abort();
  }
}

cudaError_t copy(void* to, const void* from, std::size_t size, cudaMemcpyKind kind) {
  const AtWork at_work;
  if (arena() != nullptr && kind != cudaMemcpyDefault && size > 0 &&
      (of_device(to) != (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) ||
       of_device(from) != (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice))) {
    return cudaErrorInvalidValue;
  }
  std::memcpy(to, from, size);
  return cudaSuccess;
}

}  // namespace

void emulated_syncthreads(int line) {
  static const int skipped = number("SIGMOID_CE_EMULATED_SKIP", 0);
  if (line != skipped) wait_at(kAtBlockBarrier);
}

int __syncthreads_or(int predicate) {
  votes[running] = predicate;
  wait_at(kAtBlockBarrier);
  int any = 0;
  for (const int vote : votes) any |= vote;
  wait_at(kAtBlockBarrier);
  return any != 0;
}

void __syncwarp(unsigned) { wait_at(kAtWarpBarrier); }

double __shfl_down_sync(unsigned, double value, unsigned delta) {
  const unsigned self = running;
  shuffled[self] = value;
  wait_at(kAtWarpBarrier);
  const double result = self % kWarp + delta < kWarp ? shuffled[self + delta] : value;
  wait_at(kAtWarpBarrier);
  return result;
}

unsigned __shfl_down_sync(unsigned mask, unsigned value, unsigned delta) {
  return static_cast<unsigned>(__shfl_down_sync(mask, static_cast<double>(value), delta));
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "an error of the emulation";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = machine() == "no driver" ? 0 : machine() == "old driver" ? 11000 : 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = find() == cudaSuccess ? devices() : 0;
  return find();
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return find();
}
cudaError_t cudaSetDevice(int device) {
  if (find() != cudaSuccess) return find();
  if (device < 0 || device >= devices()) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value =
      attribute == cudaDevAttrMultiProcessorCount ? multiprocessors() : machine() != "no pools";
  return find();
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (find() != cudaSuccess) return find();
  if (device < 0 || device >= devices()) return cudaErrorInvalidDevice;
  *properties = cudaDeviceProp();
  std::snprintf(properties->name, sizeof properties->name, "emulated GPU");
  properties->major = 9;
  properties->multiProcessorCount = multiprocessors();
  properties->totalGlobalMem = std::size_t(1) << 30;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** p, std::size_t size) {
  if (arena() != nullptr) return take(p, size);
  *p = size < (std::size_t(1) << 40) ? std::malloc(size) : nullptr;
  return *p == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  if (arena() != nullptr) return give_back(p);
  std::free(p);
  return cudaSuccess;
}
cudaError_t cudaMallocAsync(void** p, std::size_t size, cudaStream_t) {
  return cudaMalloc(p, size);
}
cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
cudaError_t cudaMallocHost(void** p, std::size_t size) {
  *p = find() == cudaSuccess ? std::malloc(size + 1) : nullptr;
  return find();
}
cudaError_t cudaFreeHost(void* p) {
  std::free(p);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* p, int value, std::size_t size) {
  return cudaMemsetAsync(p, value, size, nullptr);
}
cudaError_t cudaMemsetAsync(void* p, int value, std::size_t size, cudaStream_t) {
  const AtWork at_work;
  if (arena() != nullptr && !of_device(p)) return cudaErrorInvalidValue;
  std::memset(p, value, size);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t size, cudaMemcpyKind kind) {
  return copy(to, from, size, kind);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind kind,
                            cudaStream_t) {
  return copy(to, from, size, kind);
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = machine() == "capturing" ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new char);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) {
  return machine() == "busy" ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<char*>(event);
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** parameters,
                             std::size_t, cudaStream_t) {
  if (find() != cudaSuccess) return find();
  const AtWork at_work;
  check_device_memory(*static_cast<const sigmoid_ce::cuda::Arguments*>(parameters[0]));
  const char* order = std::getenv("SIGMOID_CE_EMULATED_ORDER");
  std::mt19937 random(order == nullptr ? 1u
                                       : static_cast<unsigned>(std::strtoul(order, nullptr, 10)));
  while (fibers.size() < block.x) fibers.emplace_back();
  votes.assign(block.x, 0);
  shuffled.assign(block.x, 0);
  kernel = function;
  argument = parameters[0];
  gridDim = grid;
  blockDim = block;
  std::vector<unsigned> blocks(grid.x);
  std::iota(blocks.begin(), blocks.end(), 0u);
  std::shuffle(blocks.begin(), blocks.end(), random);
  for (const unsigned b : blocks) {
    blockIdx = dim3(b, 0, 0);
    run_block(block.x, &random);
  }
  return cudaSuccess;
}
