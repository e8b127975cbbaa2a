// sigmoid_ce 0.1.0, made from its sources by tools/make_overlay.py.
// (c) 2026, the sigmoid_ce developers. BSD 2-Clause License.
// NOLINT_NEXT_LINE(build/include_order)
#include <pthread.h>
// NOLINT_NEXT_LINE(build/include_order)
#include <sched.h>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>

#include "caffe/util/sigmoid_ce.hpp"

#if defined(__clang__)
#pragma clang diagnostic ignored "-Wunused-const-variable"
#endif

// Exact addition of doubles: the fixed-point number behind Partial, value = sum
// of limb[k] 2^(32 k - 1088).
//
// Limbs are 64-bit integers that hold 32 bits each, so that 2^30 values can be
// added before a carry has to be passed on, and integer addition, in any order
// and on any device, merges two numbers.

// What the kernels ask of the compiler.

#if defined(__FAST_MATH__) || \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "sigmoid_ce: compile without -ffast-math, which changes results"
#endif

#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && \
    __FLT_EVAL_METHOD__ != 16
// On 32-bit x86: -mfpmath=sse.
#error "sigmoid_ce: float and double must have their own precision"
#endif

#if defined(__CUDA_FTZ) || defined(__USE_FAST_MATH__)
#error \
    "sigmoid_ce: compile without -use_fast_math and -ftz=true: results change"
#endif

// Everything between the entry points of a kernel is inlined, so that no
// function compiled for one instruction set can be picked by the linker for
// another. In CUDA sources these are functions of the device, and those marked
// with SIGMOID_CE_BOTH of the host too.
#if defined(__CUDACC__)
#define SIGMOID_CE_INLINE __device__ inline __attribute__((always_inline))
#define SIGMOID_CE_BOTH \
  __host__ __device__ inline __attribute__((always_inline))
#else
#define SIGMOID_CE_INLINE inline __attribute__((always_inline))
#define SIGMOID_CE_BOTH inline __attribute__((always_inline))
#endif

// A product that must be rounded before it is added: hides it from the
// optimiser, since GCC fuses mul and add into fma by default wherever the
// instruction exists, intrinsics included. Costs no instruction.
#if defined(__x86_64__) || defined(__i386__)
#define SIGMOID_CE_KEEP_ROUNDED(v) __asm__("" : "+x"(v))
#elif defined(__aarch64__)
#define SIGMOID_CE_KEEP_ROUNDED(v) __asm__("" : "+w"(v))
#else
#define SIGMOID_CE_KEEP_ROUNDED(v) __asm__("" : "+m"(v))
#endif

namespace sigmoid_ce {
namespace math {

constexpr int kLimbs = 68;
constexpr int kLimbBias =
    1088;  // limb[0] counts units of 2^-1088; a double's lowest bit is 2^-1074

// The words of a Partial: its limbs, then counts.
enum Word {
  kWordNan = kLimbs,
  kWordPosInf,
  kWordNegInf,
  kWordValid,
  kWordTotal,
  kWords
};

constexpr std::uint64_t kSignBit = std::uint64_t(1) << 63;
constexpr std::uint64_t kInfinityBits = std::uint64_t(0x7ff) << 52;
constexpr std::uint64_t kNanBits = std::uint64_t(0xfff) << 51;

SIGMOID_CE_BOTH double from_bits(std::uint64_t bits) {
  double value;
// NOLINT_NEXT_LINE(caffe/alt_fn)
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Adds a finite value, given as its bits.
SIGMOID_CE_BOTH void exact_add(std::int64_t* limb, std::uint64_t bits) {
  const int exponent = static_cast<int>(bits >> 52) & 0x7ff;
  std::uint64_t mantissa = bits & ((std::uint64_t(1) << 52) - 1);
  if (exponent != 0) mantissa |= std::uint64_t(1) << 52;
  // value = +- mantissa * 2^(e - 1075), e = max(exponent, 1)
  const int shift =
      (exponent != 0 ? exponent : 1) - 1075 + kLimbBias;  // 14 .. 2059
  const int k = shift / 32;
  const int s = shift % 32;
  // 53 + 31 bits over three limbs.
  const std::uint64_t low = (mantissa << s) & 0xffffffffu;
  const std::uint64_t middle = (mantissa >> (32 - s)) & 0xffffffffu;
  const std::uint64_t high = s ? mantissa >> (64 - s) : 0;
  if (bits & kSignBit) {
    limb[k] -= static_cast<std::int64_t>(low);
    limb[k + 1] -= static_cast<std::int64_t>(middle);
    limb[k + 2] -= static_cast<std::int64_t>(high);
  } else {
    limb[k] += static_cast<std::int64_t>(low);
    limb[k + 1] += static_cast<std::int64_t>(middle);
    limb[k + 2] += static_cast<std::int64_t>(high);
  }
}

// Adds the sum of a block, which need not be finite, to the words of a Partial.
SIGMOID_CE_BOTH void add_block_sum(std::int64_t* words, double sum) {
  std::uint64_t bits;
// NOLINT_NEXT_LINE(caffe/alt_fn)
  memcpy(&bits, &sum, sizeof bits);
  const std::uint64_t magnitude = bits & ~kSignBit;
  if (magnitude < kInfinityBits) {
    exact_add(words, bits);
  } else if (magnitude > kInfinityBits) {
    ++words[kWordNan];
  } else {
    ++words[bits == magnitude ? kWordPosInf : kWordNegInf];
  }
}

// Carries: every limb but the last into [0, 2^32); the last keeps the sign.
inline void exact_normalize(std::int64_t* limb) {
  std::int64_t carry = 0;
  for (int k = 0; k < kLimbs - 1; ++k) {
    const std::int64_t v = limb[k] + carry;
    carry = v >> 32;  // floor
    limb[k] = v & 0xffffffff;
  }
  limb[kLimbs - 1] += carry;
}

// Digit k of the magnitude of normalised limbs, of which `lowest` is the first
// that is not 0. That of a negative number is its complement.
SIGMOID_CE_BOTH std::uint64_t exact_digit(const std::int64_t* limb, int lowest,
                                          int k) {
  const std::uint64_t v = static_cast<std::uint64_t>(limb[k]);
  if (limb[kLimbs - 1] >= 0 || k < lowest) return v;
  const std::uint64_t complement = (k == lowest ? 0 : ~std::uint64_t(0)) - v;
  return k == kLimbs - 1 ? complement : complement & 0xffffffffu;
}

// The value of normalised limbs, rounded once to nearest, ties to even;
// overflow gives infinity. `lowest` and `top` are the first and the last of
// their digits that are not 0, or kLimbs and -1.
SIGMOID_CE_BOTH double exact_round(const std::int64_t* limb, int lowest,
                                   int top) {
  if (top < 0) return 0.0;
  const std::uint64_t sign = limb[kLimbs - 1] < 0 ? kSignBit : 0;
  const std::uint64_t top_digit = exact_digit(limb, lowest, top);
  int width = 0;  // bits of the top digit; the last one may exceed 32
  while (width < 64 && (top_digit >> width) != 0) ++width;
  // Position of the leading bit and of the lowest bit that the result keeps, in
  // units of 2^-1088.
  const int lead = 32 * top + width - 1;
  if (lead >= kLimbBias + 1024)
    return from_bits(kInfinityBits | sign);  // so that top < kLimbs - 2
  const int lowest_double = kLimbBias - 1074;
  const int last = lead - 52 > lowest_double ? lead - 52 : lowest_double;

  // Bits [last, lead] as an integer, out of three digits, the bit below for
  // rounding, and whether anything is below that.
  const int k = last / 32;
  const int s = last % 32;
  std::uint64_t mantissa = exact_digit(limb, lowest, k) >> s;
  mantissa |= exact_digit(limb, lowest, k + 1) << (32 - s);
  if (s > 0) mantissa |= exact_digit(limb, lowest, k + 2) << (64 - s);
  const int half = last - 1;  // >= 13
  const std::uint64_t below = exact_digit(limb, lowest, half / 32);
  const bool half_set = (below >> (half % 32)) & 1;
  const bool sticky = (below & ((std::uint64_t(1) << (half % 32)) - 1)) != 0 ||
                      lowest < half / 32;
  if (half_set && (sticky || (mantissa & 1))) ++mantissa;

  // mantissa * 2^(last - 1088): built from its fields, since 2^53 carries into
  // the exponent by itself.
  if (mantissa >> 52 == 0)
    return from_bits(mantissa | sign);  // subnormal, last == lowest_double
  const std::uint64_t exponent =
      static_cast<std::uint64_t>(last - lowest_double + 1);
  // The implicit bit adds 1 to the exponent, a carry 1 more.
  return from_bits((((exponent - 1) << 52) + mantissa) | sign);
}

// The sum that the words of a Partial mean, given that of its limbs.
SIGMOID_CE_BOTH double sum_of_words(const std::int64_t* words, double finite) {
  const bool positive = words[kWordPosInf] > 0;
  const bool negative = words[kWordNegInf] > 0;
  if (words[kWordNan] > 0 || (positive && negative)) return from_bits(kNanBits);
  if (positive) return from_bits(kInfinityBits);
  if (negative) return from_bits(kInfinityBits | kSignBit);
  return finite;
}

}  // namespace math
}  // namespace sigmoid_ce

namespace sigmoid_ce {

constexpr int Partial::kLimbs;
constexpr int Partial::kWords;

static_assert(Partial::kLimbs == math::kLimbs, "one number of limbs");
static_assert(Partial::kWords == math::kWords, "one list of words");

namespace {

std::int64_t* words_of(Partial* partial) {
  return reinterpret_cast<std::int64_t*>(partial);
}

}  // namespace

// NOLINT_NEXT_LINE(caffe/alt_fn)
Partial::Partial() { std::memset(this, 0, sizeof *this); }

void Partial::add(double block_sum) {
  math::add_block_sum(words_of(this), block_sum);
}

void Partial::add(const Partial& other) {
  Partial o = other;
  o.normalize();
  normalize();
  for (int k = 0; k < kLimbs; ++k) limb[k] += o.limb[k];
  n_nan += o.n_nan;
  n_posinf += o.n_posinf;
  n_neginf += o.n_neginf;
  n_valid += o.n_valid;
  n_total += o.n_total;
  normalize();
}

void Partial::normalize() { math::exact_normalize(limb); }

double Partial::sum() const {
  Partial p = *this;
  p.normalize();
  int lowest = 0;
  while (lowest < kLimbs && p.limb[lowest] == 0) ++lowest;
  int top = kLimbs - 1;
  while (top >= 0 && math::exact_digit(p.limb, lowest, top) == 0) --top;
  return math::sum_of_words(words_of(&p),
                            math::exact_round(p.limb, lowest, top));
}

bool Partial::operator==(const Partial& other) const {
  Partial a = *this, b = other;
  a.normalize();
  b.normalize();
  return std::memcmp(&a, &b, sizeof a) == 0;
}

}  // namespace sigmoid_ce
// What the operating system says of the machine.

namespace sigmoid_ce {
namespace cpu {

// The CPUs that this process may use: affinity mask and cgroup quota, at
// least 1.
int usable_cpus();

// CPUs by the bandwidth limits of a process's cgroups (version 1 and 2),
// rounded up: the smallest on the way from its own cgroup up to the root. 0: no
// limit. `self` lists the cgroups as /proc/self/cgroup does, and `root` is
// where they are mounted, as /sys/fs/cgroup is.
int cgroup_cpus(const char* self, const char* root);

// Bytes of the last-level cache of one CPU; a common size where it is not
// known.
std::int64_t cache_size();

}  // namespace cpu
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace cpu {
namespace {

// CPUs by the bandwidth limit of one cgroup folder, rounded up; 0: no limit.
int quota_of(const std::string& folder) {
// NOLINT_NEXT_LINE(runtime/int)
  long long quota = -1, period = -1;
  if (std::FILE* f = std::fopen((folder + "/cpu.max").c_str(),
                                "r")) {  // version 2; "max" when unlimited
    if (std::fscanf(f, "%lld %lld", &quota, &period) != 2) quota = -1;
    std::fclose(f);
  } else {
    const char* const names[] = {"/cpu.cfs_quota_us", "/cpu.cfs_period_us"};
// NOLINT_NEXT_LINE(runtime/int)
    long long* const values[] = {&quota, &period};
    for (int i = 0; i < 2; ++i) {
      if (std::FILE* g = std::fopen((folder + names[i]).c_str(), "r")) {
        if (std::fscanf(g, "%lld", values[i]) != 1) *values[i] = -1;
        std::fclose(g);
      }
    }
  }
  if (quota <= 0 || period <= 0) return 0;
  return static_cast<int>((quota + period - 1) / period);
}

int affinity_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  // More CPUs than cpu_set_t holds.
  return static_cast<int>(std::thread::hardware_concurrency());
}

// From sysfs and not from sysconf, which adds up the caches of all CPUs on some
// machines.
std::int64_t find_cache_size() {
  std::int64_t largest = 0;
  for (int index = 0; index < 8; ++index) {
    char path[64];
    std::snprintf(path, sizeof path,
                  "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
    std::FILE* f = std::fopen(path, "r");
    if (f == nullptr) continue;
// NOLINT_NEXT_LINE(runtime/int)
    long long size = 0;
    char unit = ' ';
    if (std::fscanf(f, "%lld%c", &size, &unit) >= 1) {
      const std::int64_t bytes = size * (unit == 'K'   ? 1 << 10
                                         : unit == 'M' ? 1 << 20
                                                       : 1);
      if (bytes > largest) largest = bytes;
    }
    std::fclose(f);
  }
  return largest > 0 ? largest : 32 << 20;
}

}  // namespace

int cgroup_cpus(const char* self, const char* mounted) {
  std::FILE* f = std::fopen(self, "r");
  if (f == nullptr) return 0;
  int least = 0;
  char line[4096];
  while (std::fgets(line, sizeof line, f)) {
    // hierarchy:controllers:path
    char* controllers = std::strchr(line, ':');
    char* path = controllers ? std::strchr(controllers + 1, ':') : nullptr;
    if (path == nullptr) continue;
    *path++ = '\0';
    ++controllers;
    path[std::strcspn(path, "\n")] = '\0';
    std::string root;
    if (*controllers == '\0') {
      root = mounted;
    } else if ((std::string(",") + controllers + ",").find(",cpu,") !=
               std::string::npos) {
      root = std::string(mounted) + "/" + controllers;
    } else {
      continue;
    }
    for (std::string p = path;; p.resize(p.rfind('/'))) {
      const int quota = quota_of(root + p);
      if (quota > 0 && (least == 0 || quota < least)) least = quota;
      if (p.rfind('/') == std::string::npos) break;
    }
  }
  std::fclose(f);
  return least;
}

int usable_cpus() {
  int n = affinity_cpus();
  try {
    const int quota = cgroup_cpus("/proc/self/cgroup", "/sys/fs/cgroup");
    if (quota > 0 && quota < n) n = quota;
  } catch (const std::bad_alloc&) {
    // Without the quota then.
  }
  return n > 1 ? n : 1;
}

std::int64_t cache_size() {
  static const std::int64_t size = find_cache_size();
  return size;
}

}  // namespace cpu
}  // namespace sigmoid_ce
// Worker threads that are started once and wait between calls.

namespace sigmoid_ce {
namespace cpu {

// Calls task(context) on this thread and on up to threads - 1 workers at the
// same time, and returns when all calls have returned. A worker that comes too
// late is not called, and none is while another thread's task has the workers:
// the task must do all its work with one call too.
void run_parallel(int threads, void (*task)(void* context), void* context);

}  // namespace cpu
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace cpu {
namespace {

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// A sleeping thread takes longer to wake than a small call takes to run, so
// threads look for work (and for the end of it) this long before they sleep.
// Short, since a busy CPU is taken from somebody else.
constexpr std::chrono::microseconds kSpin(20);

template <class Condition>
bool spin_until(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (condition()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return condition();
}

class Pool {
 public:
  // One task at a time: false when another thread has the workers.
  bool acquire() { return !taken_.exchange(true, std::memory_order_acquire); }
  void release() { taken_.store(false, std::memory_order_release); }

// NOLINT_NEXT_LINE(readability/casting)
  void run(int helpers, void (*task)(void*), void* context) {
    start_workers(helpers);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = task;
      context_ = context;
      open_.store(helpers, std::memory_order_relaxed);
    }
    if (helpers == 1) {
      wake_.notify_one();
    } else {
      wake_.notify_all();
    }
    task(context);
    std::unique_lock<std::mutex> lock(mutex_);
    open_.store(0, std::memory_order_relaxed);
    if (running_.load(std::memory_order_relaxed) == 0) return;
    lock.unlock();
    spin_until(
        [this] { return running_.load(std::memory_order_relaxed) == 0; });
    lock.lock();
    done_.wait(
        lock, [this] { return running_.load(std::memory_order_relaxed) == 0; });
  }

 private:
  // Fewer, or none, where the system refuses a thread: the caller does the work
  // then.
  void start_workers(int count) {
    while (workers_ < count) {
      try {
        std::thread(&Pool::work, this).detach();
      } catch (const std::system_error&) {
        return;
      } catch (const std::bad_alloc&) {
        return;
      }
      ++workers_;
    }
  }

  void work() {
    for (;;) {
      spin_until([this] { return open_.load(std::memory_order_relaxed) > 0; });
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock,
                 [this] { return open_.load(std::memory_order_relaxed) > 0; });
      open_.fetch_sub(1, std::memory_order_relaxed);
      running_.fetch_add(1, std::memory_order_relaxed);
// NOLINT_NEXT_LINE(readability/casting)
      void (*task)(void*) = task_;
      void* context = context_;
      lock.unlock();
      task(context);
      lock.lock();
      running_.fetch_sub(1, std::memory_order_relaxed);
      done_.notify_one();
    }
  }

  std::atomic<bool> taken_{false};
  int workers_ = 0;  // of the thread that acquired the pool

  // Changed under the mutex; atomic so that spinning threads may look without
  // it.
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<int> open_{0};     // workers that may still join
  std::atomic<int> running_{0};  // workers that have
// NOLINT_NEXT_LINE(readability/casting)
  void (*task_)(void*) = nullptr;
  void* context_ = nullptr;
};

// Never destroyed: workers sleep in it until the process ends. A forked child
// has no workers, and the parent's pool may be locked in it for ever, so it
// starts another.
std::atomic<Pool*> pool{nullptr};

void forget_pool() { pool.store(nullptr, std::memory_order_relaxed); }

Pool* get_pool() {
  Pool* p = pool.load(std::memory_order_acquire);
  if (p != nullptr) return p;
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  if (registered != 0) return nullptr;
  Pool* fresh = new (std::nothrow) Pool;
  if (fresh == nullptr) return nullptr;
  if (pool.compare_exchange_strong(p, fresh, std::memory_order_acq_rel))
    return fresh;
  delete fresh;  // another thread was first
  return p;
}

}  // namespace

void run_parallel(int threads, void (*task)(void* context), void* context) {
  Pool* p = threads > 1 ? get_pool() : nullptr;
  if (p == nullptr || !p->acquire()) {
    task(context);
    return;
  }
  p->run(threads - 1, task, context);
  p->release();
}

}  // namespace cpu
}  // namespace sigmoid_ce
// Who picks the instruction set and the number of threads.

// What the dispatcher asks of an instruction set: a table of kernels, each for
// a run of elements.

namespace sigmoid_ce {
namespace cpu {

enum Operation {
  kForward,
  kElementwise,
  kBackward,
  kForwardBackward,
  kOperations,
  // Of the focal kernels only, which do without a focal loss too:
  kHessian = kOperations,  // forward, backward and the Hessian
  kTargetBackward,         // the gradient with respect to the targets
  kFocalOperations
};

// What a call has beside scores and targets.
enum : unsigned {
  kIgnoreLabel = 1,
  kUncertain = 2,  // targets other than 0 and 1 are ignored
  kSmoothing = 4,
  kElementWeight = 8,
  kClassWeight = 16,
  kPosWeight = 32,
  kGamma = 64,

  kWeights = kElementWeight | kClassWeight,
  kZeros = kWeights | kIgnoreLabel |
      kUncertain,  // elements that are ignored or may have weight 0

  kArrays = 128,  // pos_weight or class weights differ between elements

  // Of a kernel: it looks which of its options are on. Others have all of
  // theirs.
  kAtRunTime = 256,
  kGeneral = kAtRunTime | kIgnoreLabel | kUncertain | kSmoothing | kWeights |
      kPosWeight | kArrays,
  kEverything = kGeneral | kGamma
};

// The kernels of an operation, by their options. Those with few take less time
// than the general one.
enum {
  kPlainKernel,
  kGeneralKernel,
  // For float32 scores with float32 or uint8 targets:
  kIgnoreKernel,
  kPosWeightKernel,
  kSmoothingKernel,
  kClassKernel,
  kFocalKernel,
  kFocalClassKernel,
  kKernels
};
constexpr unsigned kKernelOptions[kKernels] = {
    0,          kGeneral,     kIgnoreLabel, kPosWeight,
    kSmoothing, kClassWeight, kGamma,       kGamma | kClassWeight};

// A run starts at a block boundary. Arrays are contiguous, of any alignment; T
// is the scores' type.
struct Run {
  const void* scores;   // T
  const void* targets;  // the target type of the kernel
  void* out;            // T: losses or gradients; unused in kForward
  void* hessian;        // T
  std::int64_t n;
  bool stream;   // write `out` past the caches; it is aligned to 64 bytes then
  double scale;  // factor on the gradient, a value of T

  // Those that the kernel does not have are off.
  unsigned options;
  double pos_weight;        // a value of T, where pos_weights is null
  const void* pos_weights;  // T per element, or null
  double weight;            // a value of T, where weights is null
  const void* weights;      // T per element, or null
  double ignore_low,
      ignore_high;  // float targets: ignored when low <= t <= high
  std::int64_t
      ignore_label;  // integer targets; in the range of the target type
  double smoothing_factor,
      smoothing_term;  // t becomes t factor + term; values of T
  double
      class_weight[2];  // w+ and w-, values of T, where class_weights are null
  const void* class_weights[2];  // T per element, or null
  double gamma;

  // Results: one sum per block (kForward, kForwardBackward), and how many
  // elements were ignored.
  double* block_sums;
  std::int64_t ignored;
};

// NOLINT_NEXT_LINE(readability/casting)
using Kernel = void (*)(Run* run);
// How many of n targets have the label that is ignored; and how many are 1, and
// how many 0, whatever is ignored.
struct Counts {
  std::int64_t ignored, positive, negative;
};
// NOLINT_NEXT_LINE(readability/casting)
using CountKernel = void (*)(const Run& run, Counts* counts);
// n numbers of another type as T, from `targets` to `out`. Integers with the
// label that is ignored become kIgnored.
// NOLINT_NEXT_LINE(readability/casting)
using ConvertKernel = void (*)(const Run& run);
constexpr double kIgnored =
    1099511627776.0;  // 2^40: no integer target, which are saturated to 32 bits

// Indices: scores float32, float64; targets by kTarget*; operation; k*Kernel.
enum Target {
  kTargetScores,
  kTargetBool,
  kTargetUint8,
  kTargetInt8,
  kTargetInt32,
  kTargetInt64,
  kTargets
};

struct KernelTable {
  const char* name;
  Kernel run[2][kTargets][kOperations][kKernels];  // null where there is none
  Kernel focal[2][kFocalOperations];  // all options; for targets of the scores'
                                      // type
  CountKernel count_ignored[2][kTargets], count_classes[2][kTargets];
  ConvertKernel convert[2][kTargets];  // integers to T
  // float16, bfloat16 to float32 and back.
  ConvertKernel widen[2], narrow[2];
};

// Null where the instruction set does not exist on this architecture.
const KernelTable* scalar_kernels();
const KernelTable* avx2_kernels();
const KernelTable* avx512_kernels();
const KernelTable* neon_kernels();

}  // namespace cpu
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace cpu {

// Errors are those of the environment variables SIGMOID_CE_ISA and
// SIGMOID_CE_NUM_THREADS.
Status find_kernels(const KernelTable** table);
Status find_threads(int* threads);

}  // namespace cpu
}  // namespace sigmoid_ce

#if defined(__x86_64__)
// NOLINT_NEXT_LINE(build/include_order)
#include <cpuid.h>
#endif

namespace sigmoid_ce {
namespace cpu {
namespace {

#if defined(__x86_64__)
// Which GCC before 11 has no name for. It needs the same support by the system
// as AVX.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

// __builtin_cpu_supports asks CPUID and, for vector registers, whether the
// operating system saves them.
bool supported(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (std::strcmp(name, "avx2") == 0) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("popcnt") && has_f16c();
  }
  if (std::strcmp(name, "avx512") == 0) {
    return __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("popcnt");
  }
#endif
  static_cast<void>(name);
  return true;
}

struct Isa {
  const char* name;
  // Not to be called before the CPU check: the code that fills a table uses the
  // instruction set.
  const KernelTable* (*kernels)();
};

// Compiled in, best first.
const Isa kCompiled[] = {
#if defined(__x86_64__)
    {"avx512", avx512_kernels},
    {"avx2", avx2_kernels},
#elif defined(__aarch64__)
    {"neon", neon_kernels},
#endif
    {"scalar", scalar_kernels},
};
constexpr int kCompiledCount =
    static_cast<int>(sizeof(kCompiled) / sizeof(kCompiled[0]));

// Compiled in and supported by this machine, best first.
struct Tables {
  const KernelTable* list[kCompiledCount];
  int count;

  Tables() : list(), count(0) {
    for (const Isa& isa : kCompiled) {
      if (supported(isa.name)) list[count++] = isa.kernels();
    }
  }

  const KernelTable* find(const char* name) const {
    for (int i = 0; i < count; ++i) {
      if (std::strcmp(list[i]->name, name) == 0) return list[i];
    }
    return nullptr;
  }
};

const Tables& tables() {
  static const Tables t;
  return t;
}

// Null where SIGMOID_CE_ISA names one that is not to be had.
const KernelTable* default_table() {
  const char* name = std::getenv("SIGMOID_CE_ISA");
  return name != nullptr && *name != '\0' ? tables().find(name)
                                          : tables().list[0];
}

std::atomic<const KernelTable*> chosen{nullptr};

constexpr int kMaxThreads = 1 << 16;

// 0 where SIGMOID_CE_NUM_THREADS is no number of threads.
int default_threads() {
  const char* text = std::getenv("SIGMOID_CE_NUM_THREADS");
  if (text == nullptr || *text == '\0') return usable_cpus();
  char* end = nullptr;
// NOLINT_NEXT_LINE(runtime/int)
  const long n = std::strtol(text, &end, 10);
  return *end == '\0' && n >= 1 && n <= kMaxThreads ? static_cast<int>(n) : 0;
}

std::atomic<int> set_threads{0};  // by set_num_threads; 0: the default

// The default, looked up once per process; a forked worker may have another
// affinity.
constexpr int kUnknown = -1;
std::atomic<int> found_threads{kUnknown};

void forget_threads() {
  found_threads.store(kUnknown, std::memory_order_relaxed);
}

}  // namespace

Status find_kernels(const KernelTable** table) {
  const KernelTable* t = chosen.load(std::memory_order_acquire);
  if (t == nullptr) {
    t = default_table();
    if (t == nullptr) {
      return Status(Code::kUnsupported, "SIGMOID_CE_ISA",
                    "expected an instruction set that is compiled in and that "
                    "this machine has");
    }
    chosen.store(t, std::memory_order_release);
  }
  *table = t;
  return Status();
}

Status find_threads(int* threads) {
  *threads = num_threads();
  if (*threads > 0) return Status();
  return Status(Code::kInvalidArgument, "SIGMOID_CE_NUM_THREADS",
                "expected 1 to 65536 threads");
}

Status set_isa(const char* name) {
  if (name == nullptr) {
    chosen.store(nullptr, std::memory_order_release);
    return Status();
  }
  const KernelTable* t = tables().find(name);
  if (t == nullptr) {
    return Status(Code::kUnsupported, "isa",
                  "expected an instruction set that is compiled in and that "
                  "this machine has");
  }
  chosen.store(t, std::memory_order_release);
  return Status();
}

const char* isa() {
  const KernelTable* t = nullptr;
  return find_kernels(&t).ok() ? t->name : "";
}

int compiled_isa_count() { return kCompiledCount; }
const char* compiled_isa_name(int index) {
  return index >= 0 && index < kCompiledCount ? kCompiled[index].name : nullptr;
}
int isa_count() { return tables().count; }
const char* isa_name(int index) {
  return index >= 0 && index < tables().count ? tables().list[index]->name
                                              : nullptr;
}

Status set_num_threads(int n) {
  if (n < 0 || n > kMaxThreads) {
    return Status(Code::kInvalidArgument, "n",
                  "expected 1 to 65536 threads, or 0 for the default");
  }
  if (n == 0) forget_threads();
  set_threads.store(n, std::memory_order_relaxed);
  return Status();
}

int num_threads() {
  const int n = set_threads.load(std::memory_order_relaxed);
  if (n > 0) return n;
  int found = found_threads.load(std::memory_order_relaxed);
  if (found == kUnknown) {
    static const int registered =
        pthread_atfork(nullptr, nullptr, forget_threads);
    static_cast<void>(registered);
    found = default_threads();
    found_threads.store(found, std::memory_order_relaxed);
  }
  return found;
}

}  // namespace cpu
}  // namespace sigmoid_ce
// The C++ API: checks the arguments, cuts the elements into runs for the
// threads, stages what is not contiguous, and adds the block sums.

#if defined(__x86_64__)
// NOLINT_NEXT_LINE(build/include_order)
#include <emmintrin.h>
#endif

// The order in which the losses of a block are added, which decides the bits of
// the result.
//
// A block is 4096 consecutive elements, position 1024 h + 64 g + 16 j + r (h <
// 4, g < 16, j < 4, r < 16). In float64:
//
//   S[h][g][r]      = ((l0 + l1) + l2) + l3     over j
//   acc[16 h + r]   = sum of S over g in order, from +0
//   then the 64 acc are halved: acc[i] += acc[i + k] for k = 32, 16, 8, 4, 2, 1
//
// Missing elements are +0. Vectors of 1 to 16 lanes add in this order without
// moving data between lanes, and go through memory in order: a group of 64
// elements at a time, with 16 accumulators in registers. A GPU block has 64 of
// them to add side by side. Blocks are added exactly: exact_sum.h.

namespace sigmoid_ce {
namespace math {

constexpr int kRow = 16;           // r
constexpr int kRowsPerGroup = 4;   // j
constexpr int kGroup = 64;         // kRow * kRowsPerGroup
constexpr int kQuarter = 1024;     // 16 groups: what shares accumulators
constexpr int kBlock = 4096;       // 4 quarters
constexpr int kAccumulators = 64;  // kRow per quarter

// The last step. O only keeps the instantiations of different instruction sets
// apart.
template <class O>
SIGMOID_CE_INLINE double halve(double (&acc)[kAccumulators]) {
  for (int k = kAccumulators / 2; k > 0; k /= 2) {
    for (int i = 0; i < k; ++i) acc[i] += acc[i + k];
  }
  return acc[0];
}

}  // namespace math
}  // namespace sigmoid_ce

// The arguments of a call, checked: what is the same on every device.

// Which targets ignore_label means, and what the sum is divided by. Caffe's
// rules (LossParameter, SigmoidCrossEntropyLossLayer), in a form that every
// device computes alike.

namespace sigmoid_ce {
namespace math {

// The smallest T that is >= m.
template <class T>
T float_at_least(std::uint64_t m) {
  const T v =
      static_cast<T>(m);  // nearest; m <= 2^63 + 1, so that v converts back
  return static_cast<std::uint64_t>(v) < m
             ? std::nextafter(v, std::numeric_limits<T>::infinity())
             : v;
}

// Targets of a floating type whose truncation to an integer is `label`: those
// with low <= t <= high; none where low > high. k = 0: -1 < t < 1; k > 0: k <=
// t < k + 1; k < 0: k - 1 < t <= k.
template <class T>
void ignore_range(std::int64_t label, T* low, T* high) {
  const T one_less = std::nextafter(T(1), T(0));
  if (label == 0) {
    *low = -one_less;
    *high = one_less;
    return;
  }
  const std::uint64_t m =
      label < 0 ? ~static_cast<std::uint64_t>(label) + 1 : label;
  const T near = float_at_least<T>(m);
  const T far = std::nextafter(float_at_least<T>(m + 1), T(0));
  *low = label < 0 ? -far : near;
  *high = label < 0 ? -near : far;
}

// Which elements are counted together for `balance`: those of one (index /
// length) % count.
struct Groups {
  std::int64_t length, count;
};

inline Groups groups_of(const Options& options, const std::int64_t* shape,
                        int ndim, std::int64_t n_total) {
  Groups groups = {n_total > 0 ? n_total : 1, 1};
  int axes = 0;  // that the groups have an index of each
  if (options.balance == Balance::kImage) {
    groups.count = shape[0];
    axes = 1;
  }
  if (options.balance != Balance::kNone && options.balance_per_channel) {
    groups.count *= shape[1];
    axes = 2;
  }
  if (axes > 0) {
    groups.length = 1;
    for (int d = axes; d < ndim; ++d) groups.length *= shape[d];
    if (groups.length == 0) groups.length = 1;
  }
  return groups;
}

inline bool has_class_weights(const Options& options) {
  return options.class_weights != nullptr ||
         options.balance != Balance::kNone || options.negative_scale != 1 ||
         options.has_alpha;
}

// w+ and w- where P targets are 1 and M are 0. Products and quotients only,
// which every compiler rounds alike.
SIGMOID_CE_BOTH void class_weights(Balance balance, double positive_factor,
                                   double negative_factor, std::int64_t p,
                                   std::int64_t m, double* weights) {
  double positive = 1, negative = 1;
  const std::int64_t v = p + m;
  if (balance == Balance::kBatchMean) {
    std::int64_t k = p < v - 1 ? p : v - 1;
    k = k > 1 ? k : 1;
    const std::int64_t rest = v - k > 1 ? v - k : 1;
    positive = static_cast<double>(v) / static_cast<double>(2 * k);
    negative = static_cast<double>(v) / static_cast<double>(2 * rest);
  } else if (balance != Balance::kNone) {
    const double all = static_cast<double>(v > 1 ? v : 1);
    positive = static_cast<double>(m) / all;
    negative = static_cast<double>(p) / all;
  }
  weights[0] = positive * positive_factor;
  weights[1] = negative * negative_factor;
}

inline void class_weights(const Options& o, std::int64_t p, std::int64_t m,
                          double* weights) {
  class_weights(o.balance, o.has_alpha ? o.alpha : 1.0,
                (o.has_alpha ? 1.0 - o.alpha : 1.0) * o.negative_scale, p, m,
                weights);
}

// max(1, d), or Options::divisor.
inline double divisor(const Options& options, std::int64_t batch_size,
                      std::int64_t n_valid, std::int64_t n_total,
                      std::int64_t n_foreground = 0) {
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
    case Normalization::kForeground:
      d = n_foreground;
      break;
    case Normalization::kNumber:
      return options.divisor;
  }
  return d > 1 ? static_cast<double>(d) : 1.0;
}

}  // namespace math
}  // namespace sigmoid_ce

// Strided arrays as the loop sees them: contiguous, uniform, or copied block by
// block.

namespace sigmoid_ce {
namespace math {

// Axes of length 1 dropped and axes that lie in one stride merged, so that most
// arrays have one or two.
class View {
 public:
  // `strides` null: contiguous, and `data` is the element of index `first`.
  View(const void* data, std::int64_t itemsize, const std::int64_t* shape,
       int ndim, const std::int64_t* strides, std::int64_t first)
      : itemsize_(itemsize), ndim_(0) {
    base_ = reinterpret_cast<std::uintptr_t>(data);
    if (strides == nullptr) {
      base_ -= static_cast<std::uintptr_t>(first * itemsize);
      extent_[0] = INT64_MAX;
      stride_[0] = itemsize;
      ndim_ = 1;
      return;
    }
    for (int d = 0; d < ndim; ++d) {
      if (shape[d] == 1) continue;
      if (ndim_ > 0 && stride_[ndim_ - 1] == strides[d] * shape[d]) {
        extent_[ndim_ - 1] *= shape[d];
        stride_[ndim_ - 1] = strides[d];
      } else {
        extent_[ndim_] = shape[d];
        stride_[ndim_] = strides[d];
        ++ndim_;
      }
    }
    if (ndim_ == 0) {
      extent_[0] = 1;
      stride_[0] = itemsize;
      ndim_ = 1;
    }
  }

  bool contiguous() const { return ndim_ == 1 && stride_[0] == itemsize_; }
  bool uniform() const { return ndim_ == 1 && stride_[0] == 0; }
  // The element of an index; of contiguous views only.
  void* at(std::int64_t index) const {
    return pointer(base_ + offset(index * itemsize_));
  }
  std::int64_t itemsize() const { return itemsize_; }
  // The address of element 0 of the whole shape, and the axes that are left: at
  // least one.
  std::uintptr_t base() const { return base_; }
  int ndim() const { return ndim_; }
  std::int64_t extent(int d) const { return extent_[d]; }
  std::int64_t stride(int d) const { return stride_[d]; }

  // The n elements from `index` on, converted one by one to Dst.
  template <class Src, class Dst>
  void gather(std::int64_t index, std::int64_t n, Dst* out) const {
    walk(index, n,
         [&out](const char* p, std::int64_t stride, std::int64_t length) {
           Dst* const begin = out;
           out += length;
           if (stride == 0) {
             Src v;
// NOLINT_NEXT_LINE(caffe/alt_fn)
             std::memcpy(&v, p, sizeof v);
             for (std::int64_t i = 0; i < length; ++i)
               begin[i] = static_cast<Dst>(v);
           } else if (stride == sizeof(Src)) {
             for (std::int64_t i = 0; i < length; ++i) {
               Src v;
// NOLINT_NEXT_LINE(caffe/alt_fn)
               std::memcpy(&v, p + i * sizeof(Src), sizeof v);
               begin[i] = static_cast<Dst>(v);
             }
           } else {
             for (std::int64_t i = 0; i < length; ++i) {
               Src v;
// NOLINT_NEXT_LINE(caffe/alt_fn)
               std::memcpy(&v, p + i * stride, sizeof v);
               begin[i] = static_cast<Dst>(v);
             }
           }
         });
  }

  // Back again: n elements written from `index` on. The view is of an array
  // that may be written.
  template <class T>
  void scatter(std::int64_t index, std::int64_t n, const T* values) const {
    walk(index, n,
         [&values](char* p, std::int64_t stride, std::int64_t length) {
           for (std::int64_t i = 0; i < length; ++i)
// NOLINT_NEXT_LINE(caffe/alt_fn)
             std::memcpy(p + i * stride, values++, sizeof(T));
         });
  }

  // The bytes [low, high) of n elements from `first` on; of contiguous views
  // only.
  void bounds(std::int64_t first, std::int64_t n, std::uintptr_t* low,
              std::uintptr_t* high) const {
    *low = base_ + offset(first * itemsize_);
    *high = *low + offset(n * itemsize_);
  }

  // Two indices of one byte: an output with such a view has no defined result.
  // Sufficient, not necessary: true as well for layouts that interleave without
  // a collision, which no slicing produces.
  bool overlaps_itself() const {
    bool done[kMaxDims] = {};
    std::int64_t reach = itemsize_;  // bytes spanned by the axes so far
    for (int k = 0; k < ndim_; ++k) {
      int least = -1;
      for (int d = 0; d < ndim_; ++d) {
        if (!done[d] &&
            (least < 0 || magnitude(stride_[d]) < magnitude(stride_[least])))
          least = d;
      }
      done[least] = true;
      if (extent_[least] > 1 && magnitude(stride_[least]) < reach) return true;
      if (extent_[least] != INT64_MAX)
        reach += (extent_[least] - 1) * magnitude(stride_[least]);
    }
    return false;
  }

  bool same_layout(const View& other) const {
    if (base_ != other.base_ || ndim_ != other.ndim_ ||
        itemsize_ != other.itemsize_)
      return false;
    for (int d = 0; d < ndim_; ++d) {
      if (stride_[d] != other.stride_[d]) return false;
      // A view without strides has no extents.
      if (d > 0 && extent_[d] != other.extent_[d]) return false;
    }
    return true;
  }

 private:
  // Addresses are integers until they are used: a contiguous view's element 0
  // may lie outside its array.
  static std::uintptr_t offset(std::int64_t bytes) {
    return static_cast<std::uintptr_t>(bytes);
  }
  static char* pointer(std::uintptr_t address) {
    return reinterpret_cast<char*>(address);
  }
  static std::int64_t magnitude(std::int64_t v) { return v < 0 ? -v : v; }

  // Calls f(address, stride, length) for the pieces of the last axis that hold
  // `index` .. `index + n - 1`.
  template <class F>
  void walk(std::int64_t index, std::int64_t n, F f) const {
    const int last = ndim_ - 1;
    std::int64_t position[kMaxDims];
    std::uintptr_t p = base_;
    for (int d = last; d >= 0; --d) {
      position[d] = index % extent_[d];
      index /= extent_[d];
      p += offset(position[d] * stride_[d]);
    }
    while (n > 0) {
      const std::int64_t left = extent_[last] - position[last];
      const std::int64_t length = n < left ? n : left;
      f(pointer(p), stride_[last], length);
      n -= length;
      position[last] += length;
      p += offset(length * stride_[last]);
      for (int d = last; d > 0 && position[d] == extent_[d]; --d) {
        p += offset(stride_[d - 1] - position[d] * stride_[d]);
        position[d] = 0;
        ++position[d - 1];
      }
    }
  }

  std::uintptr_t base_;  // element 0
  std::int64_t itemsize_;
  int ndim_;  // 1 or more
  std::int64_t extent_[kMaxDims];
  std::int64_t stride_[kMaxDims];
};

}  // namespace math
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace math {

inline std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kFloat16:
    case DType::kBfloat16:
      return 2;
    default:
      return 1;
  }
}

constexpr double kMaxGamma = 1e6;

inline bool is_integer(DType dtype) {
  return dtype >= DType::kBool && dtype <= DType::kInt64;
}
inline bool is_half(DType dtype) {
  return dtype == DType::kFloat16 || dtype == DType::kBfloat16;
}

inline Status invalid(const char* argument, const char* message) {
  return Status(Code::kInvalidArgument, argument, message);
}

struct Call {
  const Inputs& inputs;
  const Options& options;
  std::int64_t total = 1;  // of the whole shape
  std::int64_t first = 0, count = 0;
  std::int64_t batch_size = 1;
  std::int64_t itemsize = 4;

  Call(const Inputs& i, const Options& o) : inputs(i), options(o) {}

  // The types of the scores and the targets are the device's to check, before
  // this.
  Status check() {
    itemsize = size_of(inputs.scores.dtype);
    if (inputs.ndim < 0 || inputs.ndim > kMaxDims)
      return invalid("shape", "expected 0 to 64 axes");
    bool empty = false;
    for (int d = 0; d < inputs.ndim; ++d) {
      const std::int64_t n = inputs.shape[d];
      if (n < 0) return invalid("shape", "expected lengths of 0 or more");
      empty = empty || n == 0;
      // A byte offset must fit 63 bits too.
      if (n != 0 && total > INT64_MAX / 8 / n) {
        return invalid("shape", "expected fewer than 2^60 elements");
      }
      if (n != 0) total *= n;
    }
    if (empty) total = 0;
    if (inputs.ndim > 0) batch_size = inputs.shape[0];
    first = inputs.first_index;
    if (first < 0 || first > total)
      return invalid("first_index", "expected an index of the shape");
    count = inputs.count < 0 ? total - first : inputs.count;
    if (count > total - first)
      return invalid("count", "expected elements inside the shape");
    if (count > 0 && inputs.scores.data == nullptr)
      return invalid("scores", "expected an array");
    if (count > 0 && inputs.targets.data == nullptr)
      return invalid("targets", "expected an array");
    return check_options();
  }

  // After check().
  View view(const ConstArray& a) const {
    return View(a.data, size_of(a.dtype), inputs.shape, inputs.ndim, a.strides,
                first);
  }

  // Of contiguous arrays. Whether strided ones share an element is a hard
  // question, which the caller's array library answers better: cpu.h leaves it
  // to the caller.
  bool overlap(const View& a, const View& b) const {
    if (!a.contiguous() || !b.contiguous()) return false;
    std::uintptr_t a_low, a_high, b_low, b_high;
    a.bounds(first, count, &a_low, &a_high);
    b.bounds(first, count, &b_low, &b_high);
    return a_low < b_high && b_low < a_high;
  }

  // An array that is written, of `count` > 0 elements: not on itself, nor on an
  // input but the scores in place.
  Status check_output(const MutableArray& out, const View& view,
                      const View& scores, const View& targets,
                      const View& weight) const {
    if (out.data == nullptr) return invalid("out", "expected an array");
    if (view.overlaps_itself())
      return invalid("out", "expected elements that do not overlap");
    if (!view.same_layout(scores) && overlap(view, scores)) {
      return invalid("out",
                     "expected the scores themselves, or no overlap with them");
    }
    if (overlap(view, targets))
      return invalid("out", "expected no overlap with targets");
    if (options.weight.data != nullptr && overlap(view, weight)) {
      return invalid("out", "expected no overlap with weight");
    }
    return Status();
  }

  bool fits_channels(std::int64_t count_of_values) const {
    return count_of_values <= 1 ||
           (inputs.ndim >= 2 && count_of_values == inputs.shape[1]);
  }

 private:
  Status check_options() const {
    const Options& o = options;
    if (o.pos_weight_count < 0 ||
        (o.pos_weight_count > 0 && o.pos_weight == nullptr)) {
      return invalid("pos_weight", "expected one number, or one per channel");
    }
    if (!fits_channels(o.pos_weight_count)) {
      return invalid("pos_weight",
                     "expected one number, or one per channel (axis 1)");
    }
    for (std::int64_t i = 0; i < o.pos_weight_count; ++i) {
      // !(a <= b): NaN too.
      if (!(o.pos_weight[i] >= 0) || std::isinf(o.pos_weight[i])) {
        return invalid("pos_weight", "expected finite values of 0 or more");
      }
      if (inputs.scores.dtype != DType::kFloat64 &&
          o.pos_weight[i] > std::numeric_limits<float>::max()) {
        return invalid("pos_weight",
                       "expected values that are finite as float32");
      }
    }
    if (o.weight.data != nullptr && o.weight.dtype != inputs.scores.dtype &&
        !(o.weight.dtype == DType::kFloat32 && is_half(inputs.scores.dtype)) &&
        o.weight.dtype != DType::kBool && o.weight.dtype != DType::kUint8 &&
        o.weight.dtype != DType::kInt8) {
      return invalid("weight",
                     "expected the scores' dtype (or float32 beside 16 bits), "
                     "bool, uint8 or int8");
    }
    // !(a <= b) and the like: NaN too.
    if (!(o.label_smoothing >= 0 && o.label_smoothing < 1)) {
      return invalid("label_smoothing",
                     "expected a number of 0 or more and below 1");
    }
    if (!(o.gamma >= 0 && o.gamma <= kMaxGamma)) {
      return invalid("gamma", "expected a number from 0 to 1e6");
    }
    if (o.has_alpha && !(o.alpha >= 0 && o.alpha <= 1)) {
      return invalid("alpha", "expected a number from 0 to 1");
    }
    if (!(o.negative_scale >= 0 &&
          o.negative_scale <= std::numeric_limits<float>::max())) {
      return invalid("negative_scale", "expected a finite number of 0 or more");
    }
    if (o.uncertain > Uncertain::kIgnore) {
      return invalid("uncertain", "expected one of the enumeration");
    }
    if (o.balance > Balance::kBatchMean) {
      return invalid("balance", "expected one of the enumeration");
    }
    if (o.balance == Balance::kImage && inputs.ndim < 2) {
      return invalid(
          "balance",
          "by image expects scores with an axis of images and another one");
    }
    if (o.balance_per_channel && o.balance == Balance::kNone) {
      return invalid("balance_per_channel",
                     "expected a balance that it is for");
    }
    if (o.balance_per_channel && inputs.ndim < 2) {
      return invalid("balance_per_channel",
                     "expected scores with channels (axis 1)");
    }
    if (o.balance != Balance::kNone && o.class_weights == nullptr &&
        count != total) {
      return invalid(
          "balance",
          "expected the whole array, or the class_weights for a piece of it");
    }
    if (o.normalization > Normalization::kForeground) {
      return invalid("normalization", "expected one of the enumeration");
    }
    if (o.normalization == Normalization::kNumber &&
        !(o.divisor > 0 && std::isfinite(o.divisor))) {
      return invalid("normalization", "expected a finite number above 0");
    }
    return Status();
  }
};

// ignore_label as the kernels want it; off when no target of the type can
// match.
struct IgnoreRule {
  bool on = false;
  double low = 0, high = 0;  // float targets: ignored when low <= t <= high
  std::int64_t label = 0;    // integer targets

  IgnoreRule(DType targets, const Options& options)
      : label(options.ignore_label) {
    if (!options.has_ignore_label) return;
    std::int64_t least = INT64_MIN, most = INT64_MAX;
    switch (targets) {
      case DType::kFloat64:
        ignore_range(label, &low, &high);
        break;
      case DType::kBool:
        least = 0, most = 1;
        break;
      case DType::kUint8:
        least = 0, most = UINT8_MAX;
        break;
      case DType::kInt8:
        least = INT8_MIN, most = INT8_MAX;
        break;
      case DType::kInt32:
        least = INT32_MIN, most = INT32_MAX;
        break;
      case DType::kInt64:
        break;
      default: {
        float l, h;
        ignore_range(label, &l, &h);
        low = l;
        high = h;
      }
    }
    on = label >= least && label <= most;
  }

  // Whether a target of this value, which every type has, is ignored.
  bool matches(int value, bool integers) const {
    return on && (integers ? label == value : low <= value && value <= high);
  }
};

}  // namespace math
}  // namespace sigmoid_ce

// Round to nearest, subnormals kept: what the guarantee of equal bits needs.
// The caller's own mode (and exception flags) come back at the end of the
// scope.

#if defined(__x86_64__) || defined(__i386__)
// NOLINT_NEXT_LINE(build/include_order)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace sigmoid_ce {
namespace math {

class FloatEnvironment {
 public:
#if defined(__x86_64__) || defined(__i386__)
  FloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FloatEnvironment() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FloatEnvironment() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" : : "r"(std::uint64_t(0)) : "memory");
  }
  ~FloatEnvironment() {
    __asm__ volatile("msr fpcr, %0" : : "r"(saved_) : "memory");
  }

 private:
  std::uint64_t saved_;
#else
  FloatEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatEnvironment() { std::fesetenv(&saved_); }

 private:
  std::fenv_t saved_;
#endif

 public:
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;
};

}  // namespace math
}  // namespace sigmoid_ce

namespace sigmoid_ce {
namespace cpu {
namespace {

using math::Call;
using math::FloatEnvironment;
using math::invalid;
using math::kBlock;
using math::View;

// Below this many elements a second thread costs more than it saves.
constexpr std::int64_t kSerial = 1 << 15;
// Blocks that a thread takes at a time: enough to amortise the taking, few
// enough to share the end evenly.
constexpr std::int64_t kBlocksPerRun = 16;
constexpr std::int64_t kCacheLine = 64;

// P and M of a group of `balance`.
using ClassCounts = std::atomic<std::int64_t>[2];

struct Choice {
  Kernel run = nullptr;
  bool converts =
      false;  // wants integer targets in the type that is computed in
};

// One call, and what its threads share.
struct Job {
  const KernelTable* table = nullptr;
  // For a piece with the same pos_weight and class weights throughout, and for
  // one with kArrays.
  Choice kernel, kernel_of_arrays;
  Run run = Run();  // all but the pointers of a run

  // A pass over the targets, instead of `kernel`: what is counted.
  bool counts = false;
  CountKernel count_ignored = nullptr, count_classes = nullptr;
  ClassCounts* class_counts = nullptr;  // one for each group, or one
  math::Groups groups = {1, 1};

  const View* scores = nullptr;
  const View* targets = nullptr;
  const View* pos_weight =
      nullptr;  // one double per element, by strides; null: uniform or off
  const View* weight = nullptr;  // null: uniform or off
  const View* class_weight[2] = {
      nullptr, nullptr};  // doubles by strides; null: uniform or off
  const View* out = nullptr;
  const View* hessian = nullptr;
  DType dtype = DType::kFloat32;  // what is computed in
  DType scores_dtype = DType::kFloat32;
  DType target_dtype = DType::kFloat32;
  DType weight_dtype = DType::kFloat32;
  int target = 0;  // index of the targets' type, as they are given
  bool stage_scores = false, stage_targets = false, stage_weight = false;
  bool stage_out = false,
       stage_hessian = false;  // through a buffer, then scattered
  DType out_dtype = DType::kFloat32, hessian_dtype = DType::kFloat32;

  bool is_float64() const { return dtype == DType::kFloat64; }

  std::int64_t first = 0, count = 0;
  std::int64_t run_length = 0;  // what a thread takes at a time
  bool by_block = false;  // and does block by block, since something is staged
  char* staging = nullptr;  // kStaging bytes for each thread that comes
  std::atomic<int> staging_taken{0};
  std::atomic<std::int64_t> next{0};

  std::mutex mutex;
  Partial partial;
  std::int64_t ignored = 0;
};

// Buffers of one thread.
enum Buffer {
  kScoresBuffer,
  kTargetsBuffer,
  kPosWeightBuffer,
  kWeightBuffer,
  kPositiveBuffer,  // class weights
  kNegativeBuffer,
  kOutBuffer,
  kHessianBuffer,
  kRawBuffer,  // what is converted to or from another type
  kBuffers
};
constexpr std::int64_t kBuffer = kBlock * 8;
constexpr std::int64_t kStaging = kBuffers * kBuffer;

// One of a thread's buffers; null where nothing is staged, and so there are
// none.
char* buffer_of(char* staging, Buffer which) {
  return staging == nullptr ? nullptr : staging + which * kBuffer;
}

// The staging buffers of a call, handed out to the threads that help. The last
// ones are kept for the next call, of any thread, since returning them to the
// system and asking for them again takes longer than a small call. (Not
// thread_local: where memory runs out while the destructor of such an object is
// registered, the C library ends the process.)
class Staging {
 public:
  Staging() = default;
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() {
    if (block_ != nullptr)
      std::free(spare.exchange(block_, std::memory_order_acq_rel));
  }

  // Null where there is no memory.
  char* get(std::int64_t size) {
    block_ = spare.exchange(nullptr, std::memory_order_acq_rel);
    if (block_ == nullptr || block_->size < size) {
      std::free(block_);
      block_ = nullptr;
      void* memory = nullptr;
      if (posix_memalign(&memory, kCacheLine, kCacheLine + size) != 0)
        return nullptr;
      block_ = static_cast<Block*>(memory);
      block_->size = size;
    }
    return reinterpret_cast<char*>(block_) + kCacheLine;
  }

 private:
  struct Block {
    std::int64_t size;  // of the buffers, which begin a cache line further on
  };
  static std::atomic<Block*> spare;

  Block* block_ = nullptr;
};

std::atomic<Staging::Block*> Staging::spare{nullptr};

void gather_bytes(const View& view, std::int64_t index, std::int64_t n,
                  char* out) {
  switch (view.itemsize()) {
    case 1:
      view.gather<std::uint8_t>(index, n, reinterpret_cast<std::uint8_t*>(out));
      break;
    case 2:
      view.gather<std::uint16_t>(index, n,
                                 reinterpret_cast<std::uint16_t*>(out));
      break;
    case 4:
      view.gather<std::uint32_t>(index, n,
                                 reinterpret_cast<std::uint32_t*>(out));
      break;
    default:
      view.gather<std::uint64_t>(index, n,
                                 reinterpret_cast<std::uint64_t*>(out));
      break;
  }
}

void scatter_bytes(const View& view, std::int64_t index, std::int64_t n,
                   const char* values) {
  switch (view.itemsize()) {
    case 2:
      view.scatter(index, n, reinterpret_cast<const std::uint16_t*>(values));
      break;
    case 4:
      view.scatter(index, n, reinterpret_cast<const std::uint32_t*>(values));
      break;
    default:
      view.scatter(index, n, reinterpret_cast<const std::uint64_t*>(values));
      break;
  }
}

int half_index(DType dtype) { return dtype == DType::kFloat16 ? 0 : 1; }

void convert_with(ConvertKernel kernel, const Run& options, const void* from,
                  void* to, std::int64_t n) {
  Run run = options;
  run.targets = from;
  run.out = to;
  run.n = n;
  kernel(run);
}

// n elements from `index` on, side by side: where they are, or copied to `raw`.
const void* contiguous(const View& view, std::int64_t index, std::int64_t n,
                       char* raw) {
  if (view.contiguous()) return view.at(index);
  gather_bytes(view, index, n, raw);
  return raw;
}

// Scores or targets in the type that is computed in.
const void* staged(const Job& job, const View& view, DType dtype,
                   std::int64_t index, std::int64_t n, char* buffer,
                   char* raw) {
  if (!math::is_half(dtype)) return contiguous(view, index, n, buffer);
  convert_with(job.table->widen[half_index(dtype)], job.run,
               contiguous(view, index, n, raw), buffer, n);
  return buffer;
}

// Results from a buffer of the type that is computed in.
void unstage(const Job& job, const View& view, DType dtype, std::int64_t index,
             std::int64_t n, const char* buffer, char* raw) {
  if (math::is_half(dtype)) {
    void* const to = view.contiguous() ? view.at(index) : raw;
    convert_with(job.table->narrow[half_index(dtype)], job.run, buffer, to, n);
    if (view.contiguous()) return;
    buffer = raw;
  }
  scatter_bytes(view, index, n, buffer);
}

template <class T>
void gather_weight(const Job& job, std::int64_t index, std::int64_t n, T* out,
                   char* raw) {
  switch (job.weight_dtype) {
    case DType::kBool: {
      job.weight->gather<std::uint8_t>(index, n, out);
      for (std::int64_t i = 0; i < n; ++i) out[i] = out[i] != 0;
      break;
    }
    case DType::kUint8:
      job.weight->gather<std::uint8_t>(index, n, out);
      break;
    case DType::kInt8:
      job.weight->gather<std::int8_t>(index, n, out);
      break;
    case DType::kFloat16:
    case DType::kBfloat16:
      staged(job, *job.weight, job.weight_dtype, index, n,
             reinterpret_cast<char*>(out), raw);
      break;
    default:
      job.weight->gather<T>(index, n, out);
      break;
  }
}

#if defined(__x86_64__)
constexpr bool kStreams = true;
void stream_end() {
  _mm_sfence();
}  // streamed lines are visible to other threads only after it
#else
constexpr bool kStreams = false;
void stream_end() {}
#endif

template <class T>
void run_elements(Job* job, std::int64_t index, std::int64_t n, char* staging,
                  Run* run) {
  const auto buffer = [staging](Buffer which) -> auto {
    return buffer_of(staging, which);
  };
  char* const raw = buffer(kRawBuffer);
  run->scores = job->stage_scores
                    ? staged(*job, *job->scores, job->scores_dtype, index, n,
                             buffer(kScoresBuffer), raw)
                    : job->scores->at(index);
  if (job->pos_weight != nullptr) {
    T* const pos_weights = reinterpret_cast<T*>(buffer(kPosWeightBuffer));
    job->pos_weight->gather<double>(index, n, pos_weights);
    run->pos_weights = pos_weights;
  }
  if (job->weight != nullptr) {
    if (job->stage_weight) {
      T* const weights = reinterpret_cast<T*>(buffer(kWeightBuffer));
      gather_weight(*job, index, n, weights, raw);
      run->weights = weights;
    } else {
      run->weights = job->weight->at(index);
    }
  }
  if (job->class_weight[0] != nullptr) {
    // Groups are mostly longer than a run.
    const bool one =
        index / job->groups.length == (index + n - 1) / job->groups.length;
    for (int k = 0; k < 2; ++k) {
      T* const weights = reinterpret_cast<T*>(
          buffer(k == 0 ? kPositiveBuffer : kNegativeBuffer));
      job->class_weight[k]->gather<double>(index, one ? 1 : n, weights);
      run->class_weight[k] = weights[0];
      run->class_weights[k] = one ? nullptr : weights;
    }
  }
  const bool arrays =
      run->pos_weights != nullptr || run->class_weights[0] != nullptr;
  const Choice& kernel = arrays ? job->kernel_of_arrays : job->kernel;
  if (kernel.converts) {
    convert_with(job->table->convert[job->is_float64()][job->target], *run,
                 contiguous(*job->targets, index, n, raw),
                 buffer(kTargetsBuffer), n);
    run->targets = buffer(kTargetsBuffer);
    // The kernel sees what the conversion wrote in the place of an ignored
    // target.
    run->ignore_low = run->ignore_high = kIgnored;
  } else {
    run->targets = job->stage_targets
                       ? staged(*job, *job->targets, job->target_dtype, index,
                                n, buffer(kTargetsBuffer), raw)
                       : job->targets->at(index);
  }
  if (job->out != nullptr) {
    run->out = job->stage_out ? buffer(kOutBuffer) : job->out->at(index);
  }
  if (job->hessian != nullptr) {
    run->hessian =
        job->stage_hessian ? buffer(kHessianBuffer) : job->hessian->at(index);
  }
  run->n = n;
  kernel.run(run);
  if (job->stage_out)
    unstage(*job, *job->out, job->out_dtype, index, n, buffer(kOutBuffer), raw);
  if (job->stage_hessian) {
    unstage(*job, *job->hessian, job->hessian_dtype, index, n,
            buffer(kHessianBuffer), raw);
  }
}

// Of any alignment.
template <class S>
S load(const S* p) {
  S v;
// NOLINT_NEXT_LINE(caffe/alt_fn)
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Of groups too short for a kernel.
template <class S>
void add_classes(const S* t, std::int64_t index, std::int64_t n,
                 const math::Groups& groups, ClassCounts* counts) {
  // Of few groups: added to what threads share once, at the end.
  constexpr std::int64_t kOwn = 1024;
  std::int64_t own[2][kOwn];
  const bool few = groups.count <= kOwn;
  if (few) {
    for (std::int64_t* all : own) {
// NOLINT_NEXT_LINE(caffe/alt_fn)
      std::memset(all, 0, static_cast<std::size_t>(groups.count) * sizeof *all);
    }
  }
  std::int64_t group = index / groups.length % groups.count;
  std::int64_t left = groups.length - index % groups.length;
  while (n > 0) {
    if (few && groups.length == 1) {
      // A channel per element, as scores of shape (N, C) have them: one row at
      // a time.
      const std::int64_t row =
          n < groups.count - group ? n : groups.count - group;
      std::int64_t* const positive = own[0] + group;
      std::int64_t* const negative = own[1] + group;
      for (std::int64_t i = 0; i < row; ++i) {
        positive[i] += load(t + i) == 1;
        negative[i] += load(t + i) == 0;
      }
      t += row;
      n -= row;
      group = 0;
      continue;
    }
    const std::int64_t length = n < left ? n : left;
    int found[2] = {0, 0};
    for (std::int64_t i = 0; i < length; ++i) {
      found[0] += load(t + i) == 1;
      found[1] += load(t + i) == 0;
    }
    for (int k = 0; k < 2; ++k) {
      if (few) {
        own[k][group] += found[k];
      } else if (found[k] != 0) {
        counts[group][k].fetch_add(found[k], std::memory_order_relaxed);
      }
    }
    t += length;
    n -= length;
    left = groups.length;
    group = group + 1 == groups.count ? 0 : group + 1;
  }
  for (std::int64_t g = 0; few && g < groups.count; ++g) {
    for (int k = 0; k < 2; ++k) {
      if (own[k][g] != 0)
        counts[g][k].fetch_add(own[k][g], std::memory_order_relaxed);
    }
  }
}

// The classes of n targets, which lie side by side at `targets`.
void count_classes(const Job& job, const void* targets, std::int64_t index,
                   std::int64_t n, Run* run) {
  constexpr std::int64_t kShort = 64;  // groups too short for a kernel
  const math::Groups& groups = job.groups;
  if (groups.length < kShort && groups.count > 1) {
    switch (job.target_dtype) {
      case DType::kFloat64:
        return add_classes(static_cast<const double*>(targets), index, n,
                           groups, job.class_counts);
      case DType::kBool: {
        // Any byte but 0 is 1.
        std::uint8_t bits[kBlock];
        const std::uint8_t* const bytes =
            static_cast<const std::uint8_t*>(targets);
        for (std::int64_t begin = 0; begin < n; begin += kBlock) {
          const std::int64_t length = n - begin < kBlock ? n - begin : kBlock;
          for (std::int64_t i = 0; i < length; ++i)
            bits[i] = bytes[begin + i] != 0;
          add_classes(bits, index + begin, length, groups, job.class_counts);
        }
        return;
      }
      case DType::kUint8:
        return add_classes(static_cast<const std::uint8_t*>(targets), index, n,
                           groups, job.class_counts);
      case DType::kInt8:
        return add_classes(static_cast<const std::int8_t*>(targets), index, n,
                           groups, job.class_counts);
      case DType::kInt32:
        return add_classes(static_cast<const std::int32_t*>(targets), index, n,
                           groups, job.class_counts);
      case DType::kInt64:
        return add_classes(static_cast<const std::int64_t*>(targets), index, n,
                           groups, job.class_counts);
      default:
        return add_classes(static_cast<const float*>(targets), index, n, groups,
                           job.class_counts);
    }
  }
  const std::int64_t size =
      math::is_half(job.target_dtype) ? 4 : math::size_of(job.target_dtype);
  const char* t = static_cast<const char*>(targets);
  while (n > 0) {
    const std::int64_t left = groups.length - index % groups.length;
    const std::int64_t length = n < left ? n : left;
    run->targets = t;
    run->n = length;
    Counts counts = {};
    job.count_classes(*run, &counts);
    ClassCounts& group = job.class_counts[index / groups.length % groups.count];
    if (counts.positive != 0)
      group[0].fetch_add(counts.positive, std::memory_order_relaxed);
    if (counts.negative != 0)
      group[1].fetch_add(counts.negative, std::memory_order_relaxed);
    t += length * size;
    index += length;
    n -= length;
  }
}

// How many of the n elements from `index` on the kernel gets at a time: whole
// blocks, or all.
std::int64_t piece(const Job& job, std::int64_t index, std::int64_t n) {
  const std::int64_t block = n < kBlock ? n : kBlock;
  if (job.by_block) return block;
  if (job.class_weight[0] == nullptr) return n;
  const std::int64_t left = job.groups.length - index % job.groups.length;
  if (n <= left) return n;
  return left < kBlock ? block : left / kBlock * kBlock;
}

// The targets of a piece in the type that is computed in, or in their own.
template <class F>
void count_targets(const Job& job, std::int64_t index, std::int64_t n,
                   char* staging, F count) {
  const bool direct =
      job.targets->contiguous() && !math::is_half(job.target_dtype);
  while (n > 0) {
    const std::int64_t length = direct || n < kBlock ? n : kBlock;
    count(direct ? job.targets->at(index)
                 : staged(job, *job.targets, job.target_dtype, index, length,
                          buffer_of(staging, kTargetsBuffer),
                          buffer_of(staging, kRawBuffer)),
          index, length);
    index += length;
    n -= length;
  }
}

// What each thread does: takes runs until there are none.
void work(void* context) {
  Job* job = static_cast<Job*>(context);
  if (job->next.load(std::memory_order_relaxed) >= job->count) return;
  const FloatEnvironment environment;
  char* staging = nullptr;
  if (job->staging != nullptr) {
    staging = job->staging + kStaging * job->staging_taken.fetch_add(
                                            1, std::memory_order_relaxed);
  }
  Partial partial;
  double block_sums[kBlocksPerRun];
  Run run = job->run;
  run.block_sums = block_sums;
  std::int64_t ignored = 0;
  for (;;) {
    const std::int64_t begin =
        job->next.fetch_add(job->run_length, std::memory_order_relaxed);
    if (begin >= job->count) break;
    const std::int64_t left = job->count - begin;
    const std::int64_t length = left < job->run_length ? left : job->run_length;
    const std::int64_t index = job->first + begin;
    if (job->counts) {
      count_targets(
          *job, index, length, staging,
          [&](const void* targets, std::int64_t begin, std::int64_t n) {
            if (job->count_ignored != nullptr) {
              run.targets = targets;
              run.n = n;
              Counts counts = {};
              job->count_ignored(run, &counts);
              ignored += counts.ignored;
            }
            if (job->count_classes != nullptr)
              count_classes(*job, targets, begin, n, &run);
          });
      continue;
    }
    for (std::int64_t at = 0; at < length;) {
      const std::int64_t n = piece(*job, index + at, length - at);
      run.block_sums = block_sums + at / kBlock;
      if (job->is_float64()) {
        run_elements<double>(job, index + at, n, staging, &run);
      } else {
        run_elements<float>(job, index + at, n, staging, &run);
      }
      ignored += run.ignored;
      at += n;
    }
    if (job->run.block_sums == nullptr) continue;
    for (std::int64_t b = 0; b * kBlock < length; ++b)
      partial.add(block_sums[b]);
  }
  if (job->run.stream) stream_end();
  std::lock_guard<std::mutex> lock(job->mutex);
  job->ignored += ignored;
  if (job->run.block_sums != nullptr) job->partial.add(partial);
}

int target_index(DType dtype) {
  return math::is_integer(dtype) ? kTargetBool + static_cast<int>(dtype) -
                                       static_cast<int>(DType::kBool)
                                 : kTargetScores;
}

// What a call gives; null where it is not wanted.
struct Outputs {
  Partial* partial = nullptr;
  double* divisor = nullptr;  // of the loss
  const MutableArray* out = nullptr;
  const MutableArray* hessian = nullptr;
  double* class_weights = nullptr;  // instead of everything else
};

// How many targets there are of each class, by group: in memory of their own.
class ClassTable {
 public:
  bool allocate(std::int64_t groups) {
    counts_.reset(new (std::nothrow)
                      ClassCounts[static_cast<std::size_t>(groups)]());
    weights_.reset(
        new (std::nothrow) double[2 * static_cast<std::size_t>(groups)]);
    return counts_ != nullptr && weights_ != nullptr;
  }
  ClassCounts* counts() { return counts_.get(); }
  double* weights() { return weights_.get(); }

 private:
  std::unique_ptr<ClassCounts[]> counts_;
  std::unique_ptr<double[]> weights_;
};

Status out_of_memory() {
  return Status(Code::kOutOfMemory, "", "no memory for the staging buffers");
}

bool is_aligned(const View& view, std::int64_t first) {
  return view.contiguous() &&
         reinterpret_cast<std::uintptr_t>(view.at(first)) % kCacheLine == 0;
}

// The kernel with exactly these options, or one that looks at run time.
Choice find_kernel(const KernelTable& table, int scores, int target,
                   Operation operation, unsigned options) {
  Choice choice;
  if (operation < kOperations) {
    const Kernel* const kernels = table.run[scores][target][operation];
    for (int k = 0; k < kKernels && choice.run == nullptr; ++k) {
      if (kKernelOptions[k] == options) choice.run = kernels[k];
    }
    if (choice.run == nullptr && !(options & kGamma))
      choice.run = kernels[kGeneralKernel];
  }
  if (choice.run == nullptr) {
    choice.run = table.focal[scores][operation];
    choice.converts = target != kTargetScores;
  }
  return choice;
}

Status execute(const Inputs& inputs, const Options& options,
               Operation operation, const Outputs& outputs) {
  const FloatEnvironment environment;  // options are rounded here as well
  const DType dtype = inputs.scores.dtype;
  const DType target_dtype = inputs.targets.dtype;
  const bool half = math::is_half(dtype);
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64 && !half) {
    return invalid("scores", "expected float16, bfloat16, float32 or float64");
  }
  if (target_dtype != dtype && !math::is_integer(target_dtype) &&
      !(half && target_dtype == DType::kFloat32)) {
    return invalid(
        "targets",
        half ? "expected the scores' dtype, float32, bool, uint8, int8, int32 "
               "or int64"
             : "expected the scores' dtype, bool, uint8, int8, int32 or int64");
  }
  Call call(inputs, options);
  Status status = call.check();
  if (!status.ok()) return status;
  const KernelTable* table = nullptr;
  status = find_kernels(&table);
  if (!status.ok()) return status;

  Job job;
  job.table = table;
  job.first = call.first;
  job.count = call.count;
  job.dtype = dtype == DType::kFloat64 ? dtype : DType::kFloat32;
  job.scores_dtype = dtype;
  job.target_dtype = target_dtype;
  job.target = target_index(target_dtype);
  const int computed = job.is_float64() ? 1 : 0;
  const View scores = call.view(inputs.scores);
  const View targets = call.view(inputs.targets);
  const View weight = call.view(options.weight);
  job.scores = &scores;
  job.targets = &targets;
  job.stage_scores = half || !scores.contiguous();
  job.stage_targets = math::is_half(target_dtype) || !targets.contiguous();

  // ---- Outputs ----
  const auto view_of = [&](const MutableArray* array, DType type) -> auto {
    return call.view(ConstArray(array ? array->data : nullptr, type,
                                array ? array->strides : nullptr));
  };
  const auto type_of = [&](const MutableArray* array) -> auto {
    return half && array != nullptr && array->as_float32 ? DType::kFloat32
                                                         : dtype;
  };
  job.out_dtype = type_of(outputs.out);
  job.hessian_dtype = type_of(outputs.hessian);
  const View output = view_of(outputs.out, job.out_dtype);
  const View hessian = view_of(outputs.hessian, job.hessian_dtype);
  if (outputs.out != nullptr && call.count > 0) {
    status = call.check_output(*outputs.out, output, scores, targets, weight);
    if (!status.ok()) return status;
    job.out = &output;
    job.stage_out = math::is_half(job.out_dtype) || !output.contiguous();
    // Where reads and writes together exceed the cache, written lines need not
    // pass through it, as long as they are whole: streaming stores are aligned.
    // In place the lines are in the cache already.
    const std::int64_t traffic = 3 * call.count * call.itemsize;
    job.run.stream = kStreams && !job.stage_out &&
                     !output.same_layout(scores) &&
                     is_aligned(output, call.first) && traffic > cache_size();
  }
  if (outputs.hessian != nullptr && call.count > 0) {
    status =
        call.check_output(*outputs.hessian, hessian, scores, targets, weight);
    if (status.ok() &&
        (hessian.same_layout(output) || call.overlap(hessian, output))) {
      status = invalid("out", "expected no overlap with the Hessian");
    }
    if (!status.ok()) {
      return std::strcmp(status.argument, "out") == 0
                 ? invalid("hessian", status.message)
                 : status;
    }
    job.hessian = &hessian;
    job.stage_hessian =
        math::is_half(job.hessian_dtype) || !hessian.contiguous();
    job.run.stream = job.run.stream && !job.stage_hessian &&
                     !hessian.same_layout(scores) &&
                     is_aligned(hessian, call.first);
  }

  // ---- Options ----
  // One value per channel, by a stride on axis 1 alone.
  std::int64_t channel_strides[kMaxDims] = {};
  if (options.pos_weight_count > 1) channel_strides[1] = sizeof(double);
  const View pos_weight(options.pos_weight, sizeof(double), inputs.shape,
                        inputs.ndim, channel_strides, 0);
  if (options.pos_weight_count > 0) {
    job.run.options |= kPosWeight;
    job.run.pos_weight = options.pos_weight[0];
    if (options.pos_weight_count > 1) job.pos_weight = &pos_weight;
  }
  job.run.weight = 1;
  job.weight_dtype = options.weight.dtype;
  if (options.weight.data != nullptr && call.count > 0) {
    job.run.options |= kElementWeight;
    job.weight = &weight;
    if (weight.uniform()) {
      float w;
      char raw[kCacheLine];
      if (job.is_float64()) {
        gather_weight(job, call.first, 1, &job.run.weight, raw);
      } else {
        gather_weight(job, call.first, 1, &w, raw);
        job.run.weight = w;
      }
      job.weight = nullptr;
    } else {
      job.stage_weight =
          !weight.contiguous() || options.weight.dtype != job.dtype;
    }
  }
  const math::IgnoreRule ignore(target_dtype, options);
  if (ignore.on) job.run.options |= kIgnoreLabel;
  job.run.ignore_low = ignore.low;
  job.run.ignore_high = ignore.high;
  job.run.ignore_label = ignore.label;
  const bool uncertain = options.uncertain == Uncertain::kIgnore;
  if (uncertain) job.run.options |= kUncertain;
  if (options.label_smoothing != 0) {
    job.run.options |= kSmoothing;
    job.run.smoothing_factor = 1 - options.label_smoothing;
    job.run.smoothing_term = options.label_smoothing / 2;
  }
  const bool has_class_weights = math::has_class_weights(options);
  if (has_class_weights) job.run.options |= kClassWeight;
  if (options.gamma != 0) {
    job.run.options |= kGamma;
    job.run.gamma = options.gamma;
  }

  // ---- Kernel ----
  job.kernel =
      find_kernel(*table, computed, job.target, operation, job.run.options);
  job.run.options |= kArrays;  // where there are any
  job.kernel_of_arrays =
      find_kernel(*table, computed, job.target, operation, job.run.options);

  // ---- Class weights ----
  const math::Groups groups =
      math::groups_of(options, inputs.shape, inputs.ndim, call.total);
  const bool counts_groups =
      options.balance != Balance::kNone && options.class_weights == nullptr;
  ClassTable classes;
  const double* class_weights = options.class_weights;
  std::int64_t class_strides[kMaxDims] = {};
  constexpr std::int64_t kPair = 2 * sizeof(double);
  if (groups.count > 1) {
    if (options.balance_per_channel) class_strides[1] = kPair;
    if (options.balance == Balance::kImage) {
      class_strides[0] =
          options.balance_per_channel ? inputs.shape[1] * kPair : kPair;
    }
  }

  int threads = 1;
  status = find_threads(&threads);
  if (!status.ok()) return status;
  if (call.count < kSerial) threads = 1;
  job.by_block = job.stage_scores || job.stage_targets || job.stage_weight ||
                 job.pos_weight != nullptr || job.stage_out ||
                 job.stage_hessian || job.kernel.converts;
  const bool staged = job.by_block || (has_class_weights && groups.count > 1);
  const std::int64_t blocks = (call.count + kBlock - 1) / kBlock;
  if (threads > blocks) threads = blocks > 1 ? static_cast<int>(blocks) : 1;
  std::int64_t blocks_per_run = (blocks + 4 * threads - 1) / (4 * threads);
  if (blocks_per_run > kBlocksPerRun || threads == 1)
    blocks_per_run = kBlocksPerRun;
  job.run_length = blocks_per_run * kBlock;

  Staging staging;
  if (staged && call.count > 0) {
    job.staging = staging.get(kStaging * threads);
    if (job.staging == nullptr) return out_of_memory();
  }

  // ---- Counting ----
  const bool gradient = operation != kForward && operation != kElementwise;
  const bool needs_valid = gradient &&
                           options.normalization == Normalization::kValid &&
                           (ignore.on || uncertain);
  const bool needs_foreground =
      options.normalization == Normalization::kForeground &&
      (gradient || outputs.divisor != nullptr);
  std::int64_t n_valid = call.count, n_foreground = 0;
  if (counts_groups || needs_foreground || needs_valid) {
    job.groups = counts_groups
                     ? groups
                     : math::Groups{call.total > 0 ? call.total : 1, 1};
    if (!classes.allocate(job.groups.count)) return out_of_memory();
    job.class_counts = classes.counts();
    job.counts = true;
    if (needs_valid && !uncertain)
      job.count_ignored = table->count_ignored[computed][job.target];
    if (counts_groups || needs_foreground || uncertain) {
      job.count_classes = table->count_classes[computed][job.target];
    }
    run_parallel(threads, work, &job);
    job.counts = false;
    const bool integers = math::is_integer(target_dtype);
    const bool no_positive = ignore.matches(1, integers),
               no_negative = ignore.matches(0, integers);
    std::int64_t n_classes = 0;
    for (std::int64_t g = 0; g < job.groups.count; ++g) {
      const std::int64_t p = no_positive ? 0 : classes.counts()[g][0].load();
      const std::int64_t m = no_negative ? 0 : classes.counts()[g][1].load();
      n_foreground += p;
      n_classes += p + m;
      math::class_weights(options, p, m, classes.weights() + 2 * g);
    }
    n_valid = uncertain ? n_classes : call.count - job.ignored;
    if (counts_groups) class_weights = classes.weights();
    job.ignored = 0;
    job.next.store(0);
    job.staging_taken.store(0);
  }
  double no_groups[2];
  if (has_class_weights && class_weights == nullptr) {
    math::class_weights(options, 0, 0, no_groups);
    class_weights = no_groups;
  }
  if (outputs.class_weights != nullptr) {
    for (std::int64_t k = 0; k < 2 * groups.count; ++k) {
      outputs.class_weights[k] =
          class_weights != nullptr ? class_weights[k] : 1;
    }
    return Status();
  }
  job.groups = groups;
  const View positive(class_weights, kPair, inputs.shape, inputs.ndim,
                      class_strides, 0);
  const double* const second =
      class_weights != nullptr ? class_weights + 1 : nullptr;
  const View negative(second, kPair, inputs.shape, inputs.ndim, class_strides,
                      0);
  if (has_class_weights && groups.count == 1) {
    for (int k = 0; k < 2; ++k) job.run.class_weight[k] = class_weights[k];
  } else if (has_class_weights) {
    job.class_weight[0] = &positive;
    job.class_weight[1] = &negative;
  }

  // ---- The pass ----
  if (gradient) {
    const double scale =
        options.loss_weight / math::divisor(options, call.batch_size, n_valid,
                                            call.total, n_foreground);
    job.run.scale = job.is_float64() ? scale : static_cast<float>(scale);
  }
  double unused;
  job.run.block_sums = outputs.partial != nullptr
                           ? &unused
                           : nullptr;  // each thread has its own
  run_parallel(threads, work, &job);
  if (outputs.partial != nullptr) {
    *outputs.partial = job.partial;
    outputs.partial->n_total = call.count;
    outputs.partial->n_valid = call.count - job.ignored;
  }
  if (outputs.divisor != nullptr) {
    *outputs.divisor =
        math::divisor(options, call.batch_size, call.count - job.ignored,
                      call.count, n_foreground);
  }
  return Status();
}

}  // namespace

Status forward(const Inputs& inputs, const Options& options, Partial* partial,
               double* divisor) {
  Outputs outputs;
  outputs.partial = partial;
  outputs.divisor = divisor;
  return execute(inputs, options, kForward, outputs);
}

Status elementwise(const Inputs& inputs, const Options& options,
                   const MutableArray& losses) {
  Outputs outputs;
  outputs.out = &losses;
  return execute(inputs, options, kElementwise, outputs);
}

Status backward(const Inputs& inputs, const Options& options,
                const MutableArray& gradient) {
  Outputs outputs;
  outputs.out = &gradient;
  return execute(inputs, options, kBackward, outputs);
}

Status forward_backward(const Inputs& inputs, const Options& options,
                        Partial* partial, const MutableArray& gradient,
                        double* divisor) {
  Outputs outputs;
  outputs.partial = partial;
  outputs.divisor = divisor;
  outputs.out = &gradient;
  return execute(inputs, options, kForwardBackward, outputs);
}

Status forward_backward(const Inputs& inputs, const Options& options,
                        Partial* partial, const MutableArray& gradient,
                        const MutableArray& hessian, double* divisor) {
  Outputs outputs;
  outputs.partial = partial;
  outputs.divisor = divisor;
  outputs.out = &gradient;
  outputs.hessian = &hessian;
  return execute(inputs, options, kHessian, outputs);
}

Status backward_targets(const Inputs& inputs, const Options& options,
                        const MutableArray& gradient) {
  Outputs outputs;
  outputs.out = &gradient;
  return execute(inputs, options, kTargetBackward, outputs);
}

std::int64_t class_weight_groups(const Inputs& inputs, const Options& options) {
  Call call(inputs, options);
  if (!call.check().ok()) return 0;
  return math::groups_of(options, inputs.shape, inputs.ndim, call.total).count;
}

Status class_weights(const Inputs& inputs, const Options& options,
                     double* weights) {
  Outputs outputs;
  outputs.class_weights = weights;
  return execute(inputs, options, kForward, outputs);
}

double divisor(const Inputs& inputs, const Options& options,
               const Partial& partial) {
  return math::divisor(options, inputs.ndim > 0 ? inputs.shape[0] : 1,
                       partial.n_valid, partial.n_total);
}

double loss(const Inputs& inputs, const Options& options,
            const Partial& partial) {
  return divide(partial, divisor(inputs, options, partial));
}

double divide(const Partial& partial, double divisor) {
  const FloatEnvironment environment;
  // Compilers move a division across a change of mode, but not accesses to
  // volatile variables.
  const volatile double sum = partial.sum();
  const volatile double result = sum / divisor;
  return result;
}

}  // namespace cpu
}  // namespace sigmoid_ce
