// What the memory of this machine allows, for the benchmark: the rate of a loop that only reads two
// arrays, and of one that reads two and writes a third with ordinary or with streaming stores.
//
// An honest limit is at least as fast as any kernel that is compared with it. So the loops are
// vectorised and compiled for the CPU they run on, and keep several independent sums; software
// prefetching, several streams per thread and copies through a block in cache were tried and did
// not help. The arithmetic is on integers: one cheap instruction per vector, and no pattern of bits
// is slow, as subnormal floats would be.
//
// The threads are pinned, each works on a contiguous part of its own, and they do not wait for one
// another between passes. The time runs from a common start, so that starting threads is not
// counted.
//
// Needs GCC or Clang, and Linux for the pinning.
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

typedef std::uint32_t Vector __attribute__((vector_size(64)));
// For addresses that are aligned to an element only, as those of a caller's arrays may be.
typedef std::uint32_t UnalignedVector __attribute__((vector_size(64), aligned(1), may_alias));

constexpr std::size_t kVectorBytes = sizeof(Vector);
// Two arrays' sums take 16 of AVX2's registers and 8 of AVX-512's; an integer addition takes one
// cycle.
constexpr std::size_t kVectorsPerStep = 4;
constexpr std::size_t kStepBytes = kVectorsPerStep * kVectorBytes;

enum class Stores { kOrdinary, kStreaming };

#if defined(__SSE2__) || defined(__aarch64__)
constexpr bool kHasStreaming = true;
#else
constexpr bool kHasStreaming = false;
#endif

inline Vector load(const unsigned char* address) {
  return *reinterpret_cast<const UnalignedVector*>(address);
}

template <Stores kind>
inline void store(unsigned char* address, const Vector& value) {
  if (kind == Stores::kOrdinary) {
    *reinterpret_cast<UnalignedVector*>(address) = value;
    return;
  }
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(address), reinterpret_cast<const __m512i&>(value));
#elif defined(__AVX__)
  const __m256i* halves = reinterpret_cast<const __m256i*>(&value);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(address), halves[0]);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(address) + 1, halves[1]);
#elif defined(__SSE2__)
  const __m128i* quarters = reinterpret_cast<const __m128i*>(&value);
  for (int q = 0; q < 4; ++q)
    _mm_stream_si128(reinterpret_cast<__m128i*>(address) + q, quarters[q]);
#elif defined(__aarch64__)
  typedef std::uint32_t Quarter __attribute__((vector_size(16)));
  const Quarter* quarters = reinterpret_cast<const Quarter*>(&value);
  for (int pair = 0; pair < 2; ++pair) {
    asm volatile("stnp %q0, %q1, [%2]"
                 :
                 : "w"(quarters[2 * pair]), "w"(quarters[2 * pair + 1]), "r"(address + 32 * pair)
                 : "memory");
  }
#endif
}

// Streaming stores pass by the caches in no fixed order: they must have ended before the clock
// stops.
inline void finish_stores() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

inline void add_step(const unsigned char* address, Vector* sums) {
  for (std::size_t v = 0; v < kVectorsPerStep; ++v) sums[v] += load(address + v * kVectorBytes);
}

std::uint32_t add_words(const unsigned char* address, std::size_t bytes) {
  std::uint32_t sum = 0;
  for (std::size_t at = 0; at + 4 <= bytes; at += 4) {
    std::uint32_t word;
    std::memcpy(&word, address + at, 4);
    sum += word;
  }
  return sum;
}

// The sum of all 32-bit words of both, modulo 2^32.
std::uint32_t read_pass(const unsigned char* a, std::size_t a_bytes, const unsigned char* b,
                        std::size_t b_bytes) {
  Vector a_sums[kVectorsPerStep] = {};
  Vector b_sums[kVectorsPerStep] = {};
  const std::size_t a_steps = a_bytes / kStepBytes;
  const std::size_t b_steps = b_bytes / kStepBytes;
  if (a_steps == b_steps) {
    for (std::size_t step = 0; step < a_steps; ++step) {
      add_step(a + step * kStepBytes, a_sums);
      add_step(b + step * kStepBytes, b_sums);
    }
  } else {
    // The arrays advance in proportion, as in a kernel whose targets are narrower than its scores.
    std::size_t b_step = 0;
    const std::size_t ratio = b_steps ? std::max<std::size_t>(1, a_steps / b_steps) : a_steps + 1;
    std::size_t until_b = ratio;
    for (std::size_t step = 0; step < a_steps; ++step) {
      add_step(a + step * kStepBytes, a_sums);
      if (--until_b == 0) {
        if (b_step < b_steps) add_step(b + b_step++ * kStepBytes, b_sums);
        until_b = ratio;
      }
    }
    for (; b_step < b_steps; ++b_step) add_step(b + b_step * kStepBytes, b_sums);
  }
  std::uint32_t sum = add_words(a + a_steps * kStepBytes, a_bytes - a_steps * kStepBytes) +
                      add_words(b + b_steps * kStepBytes, b_bytes - b_steps * kStepBytes);
  for (std::size_t v = 0; v < kVectorsPerStep; ++v) {
    const Vector both = a_sums[v] + b_sums[v];
    for (std::size_t lane = 0; lane < kVectorBytes / 4; ++lane) sum += both[lane];
  }
  return sum;
}

// out = a + b, words of 32 bits modulo 2^32. Streaming needs `out` aligned to a vector.
template <Stores kind>
void write_pass(const unsigned char* a, const unsigned char* b, unsigned char* out,
                std::size_t bytes) {
  const std::size_t steps = bytes / kStepBytes;
  for (std::size_t step = 0; step < steps; ++step) {
    const std::size_t at = step * kStepBytes;
    for (std::size_t v = at; v < at + kStepBytes; v += kVectorBytes) {
      store<kind>(out + v, load(a + v) + load(b + v));
    }
  }
  for (std::size_t at = steps * kStepBytes; at + 4 <= bytes; at += 4) {
    std::uint32_t word_a;
    std::uint32_t word_b;
    std::memcpy(&word_a, a + at, 4);
    std::memcpy(&word_b, b + at, 4);
    const std::uint32_t word = word_a + word_b;
    std::memcpy(out + at, &word, 4);
  }
  if (kind == Stores::kStreaming) finish_stores();
}

struct Slice {
  std::size_t begin;
  std::size_t size;
};

// Part `index` of `bytes` cut into `parts` at whole steps; the last takes what is left.
Slice slice(std::size_t bytes, int parts, int index) {
  const std::size_t steps = bytes / kStepBytes;
  const std::size_t begin = steps * index / parts * kStepBytes;
  const std::size_t end = index + 1 == parts ? bytes : steps * (index + 1) / parts * kStepBytes;
  return Slice{begin, end - begin};
}

void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof(set),
                         &set);  // refused: the thread stays where it is
}

// Calls work(index) once on each of `threads` threads, all started together. Seconds to the last
// one's end.
template <typename Work>
double timed(int threads, const int* cpus, const Work& work) {
  typedef std::chrono::steady_clock Clock;
  std::atomic<int> arrived(0);
  std::vector<Clock::time_point> starts(threads);
  std::vector<Clock::time_point> ends(threads);
  std::vector<std::thread> team;
  for (int index = 0; index < threads; ++index) {
    team.emplace_back([&, index] {
      pin(cpus[index]);
      // Awake, so that they start together; the caller sleeps in join and takes no CPU from them.
      arrived.fetch_add(1);
      while (arrived.load() < threads) std::this_thread::yield();
      starts[index] = Clock::now();
      work(index);
      ends[index] = Clock::now();
    });
  }
  for (std::thread& thread : team) thread.join();
  const Clock::time_point start = *std::min_element(starts.begin(), starts.end());
  return std::chrono::duration<double>(*std::max_element(ends.begin(), ends.end()) - start).count();
}

}  // namespace

extern "C" {

int limits_has_streaming() { return kHasStreaming; }

// Seconds for `passes` passes; `*sum` is one pass's sum of words, for the caller to check.
double limits_read(const unsigned char* a, std::size_t a_bytes, const unsigned char* b,
                   std::size_t b_bytes, int threads, const int* cpus, int passes,
                   std::uint32_t* sum) {
  std::vector<std::uint32_t> sums(threads);
  const double seconds = timed(threads, cpus, [&](int index) {
    const Slice in_a = slice(a_bytes, threads, index);
    const Slice in_b = slice(b_bytes, threads, index);
    std::uint32_t last = 0;
    for (int pass = 0; pass < passes; ++pass) {
      last = read_pass(a + in_a.begin, in_a.size, b + in_b.begin, in_b.size);
      asm volatile("" : "+r"(last) : : "memory");  // every pass reads anew
    }
    sums[index] = last;
  });
  *sum = 0;
  for (std::uint32_t part : sums) *sum += part;
  return seconds;
}

// Seconds for `passes` passes over arrays of `bytes` each.
double limits_write(const unsigned char* a, const unsigned char* b, unsigned char* out,
                    std::size_t bytes, int streaming, int threads, const int* cpus, int passes) {
  return timed(threads, cpus, [&](int index) {
    const Slice part = slice(bytes, threads, index);
    for (int pass = 0; pass < passes; ++pass) {
      if (streaming) {
        write_pass<Stores::kStreaming>(a + part.begin, b + part.begin, out + part.begin, part.size);
      } else {
        write_pass<Stores::kOrdinary>(a + part.begin, b + part.begin, out + part.begin, part.size);
      }
      asm volatile("" : : : "memory");
    }
  });
}

}  // extern "C"
