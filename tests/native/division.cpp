// cuda/division.h against the processor's division: `division [--every N]` tries every N-th float in [0, 1], with
// reciprocals from 2 ulp below to 2 ulp above the nearest. Prints how many quotients there were and how many differ.
#include "division.h"

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int kUlps = 2;
constexpr std::uint32_t kOneBits = 0x3f800000u;

float from_bits(std::uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

std::uint64_t count_wrong(std::uint32_t begin, std::uint32_t step) {
  std::uint64_t wrong = 0;
  for (std::uint64_t bits = begin; bits <= kOneBits; bits += step) {
    const float z = from_bits(static_cast<std::uint32_t>(bits));
    const float d = 1.0f + z;
    const float nearest = 1.0f / d;
    std::uint32_t r;
    std::memcpy(&r, &nearest, sizeof r);
    for (int k = -kUlps; k <= kUlps; ++k) {
      const float q = sigmoid_ce::cuda::divide(z, d, from_bits(r + static_cast<std::uint32_t>(k)));
      wrong += !(q == z / d);
    }
  }
  return wrong;
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint32_t every =
      argc == 3 ? static_cast<std::uint32_t>(std::strtoul(argv[2], nullptr, 10)) : 1;
  const unsigned threads =
      std::thread::hardware_concurrency() > 0 ? std::thread::hardware_concurrency() : 1;
  std::vector<std::uint64_t> wrong(threads);
  std::vector<std::thread> pool;
  for (unsigned i = 0; i < threads; ++i) {
    pool.emplace_back(
        [&wrong, i, every, threads] { wrong[i] = count_wrong(i * every, every * threads); });
  }
  std::uint64_t total = 0;
  for (unsigned i = 0; i < threads; ++i) {
    pool[i].join();
    total += wrong[i];
  }
  std::printf("%" PRIu64 " %" PRIu64 "\n", std::uint64_t(kOneBits / every + 1) * (2 * kUlps + 1),
              total);
  return total == 0 ? 0 : 1;
}
