#include "cpu/dispatch.h"

#include <pthread.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "cpu/system.h"
#include "sigmoid_ce/cpu.h"

namespace sigmoid_ce {
namespace cpu {
namespace {

#if defined(__x86_64__)
// Which GCC before 11 has no name for. It needs the same support by the system as AVX.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

// __builtin_cpu_supports asks CPUID and, for vector registers, whether the operating system saves them.
bool supported(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (std::strcmp(name, "avx2") == 0) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("popcnt") && has_f16c();
  }
  if (std::strcmp(name, "avx512") == 0) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("popcnt");
  }
#endif
  static_cast<void>(name);
  return true;
}

struct Isa {
  const char* name;
  // Not to be called before the CPU check: the code that fills a table uses the instruction set.
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
constexpr int kCompiledCount = static_cast<int>(sizeof(kCompiled) / sizeof(kCompiled[0]));

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
  return name != nullptr && *name != '\0' ? tables().find(name) : tables().list[0];
}

std::atomic<const KernelTable*> chosen{nullptr};

constexpr int kMaxThreads = 1 << 16;

// 0 where SIGMOID_CE_NUM_THREADS is no number of threads.
int default_threads() {
  const char* text = std::getenv("SIGMOID_CE_NUM_THREADS");
  if (text == nullptr || *text == '\0') return usable_cpus();
  char* end = nullptr;
  const long n = std::strtol(text, &end, 10);
  return *end == '\0' && n >= 1 && n <= kMaxThreads ? static_cast<int>(n) : 0;
}

std::atomic<int> set_threads{0};  // by set_num_threads; 0: the default

// The default, looked up once per process; a forked worker may have another affinity.
constexpr int kUnknown = -1;
std::atomic<int> found_threads{kUnknown};

void forget_threads() { found_threads.store(kUnknown, std::memory_order_relaxed); }

}  // namespace

Status find_kernels(const KernelTable** table) {
  const KernelTable* t = chosen.load(std::memory_order_acquire);
  if (t == nullptr) {
    t = default_table();
    if (t == nullptr) {
      return Status(Code::kUnsupported, "SIGMOID_CE_ISA",
                    "expected an instruction set that is compiled in and that this machine has");
    }
    chosen.store(t, std::memory_order_release);
  }
  *table = t;
  return Status();
}

Status find_threads(int* threads) {
  *threads = num_threads();
  if (*threads > 0) return Status();
  return Status(Code::kInvalidArgument, "SIGMOID_CE_NUM_THREADS", "expected 1 to 65536 threads");
}

Status set_isa(const char* name) {
  if (name == nullptr) {
    chosen.store(nullptr, std::memory_order_release);
    return Status();
  }
  const KernelTable* t = tables().find(name);
  if (t == nullptr) {
    return Status(Code::kUnsupported, "isa",
                  "expected an instruction set that is compiled in and that this machine has");
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
  return index >= 0 && index < tables().count ? tables().list[index]->name : nullptr;
}

Status set_num_threads(int n) {
  if (n < 0 || n > kMaxThreads) {
    return Status(Code::kInvalidArgument, "n", "expected 1 to 65536 threads, or 0 for the default");
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
    static const int registered = pthread_atfork(nullptr, nullptr, forget_threads);
    static_cast<void>(registered);
    found = default_threads();
    found_threads.store(found, std::memory_order_relaxed);
  }
  return found;
}

}  // namespace cpu
}  // namespace sigmoid_ce
