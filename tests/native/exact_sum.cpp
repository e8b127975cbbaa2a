// Exact sums of sets of doubles. Input, native byte order: for each set a 64-bit count and that many finite
// doubles, until the end. Output: for each set the sum as a double. Each set is added in several orders and
// in parts that are merged in three ways; where these disagree it says so and ends with status 1.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "sigmoid_ce/partial.h"

namespace {

using sigmoid_ce::Partial;

std::uint64_t bits(double value) {
  std::uint64_t b;
  std::memcpy(&b, &value, sizeof b);
  return b;
}

// Every word by itself, as an all-reduce adds them: no carries.
void add_words(const Partial& part, Partial* total) {
  std::int64_t a[Partial::kWords], b[Partial::kWords];
  std::memcpy(a, total, sizeof a);
  std::memcpy(b, &part, sizeof b);
  for (int i = 0; i < Partial::kWords; ++i) a[i] += b[i];
  std::memcpy(static_cast<void*>(total), a, sizeof a);
}

struct Sums {
  Partial list[6];

  explicit Sums(const std::vector<double>& values) {
    const std::size_t n = values.size();
    constexpr std::size_t kParts = 3;
    Partial part[kParts];
    for (std::size_t i = 0; i < n; ++i) {
      list[0].add(values[i]);
      list[1].add(values[n - 1 - i]);
      list[2].add(values[(7919 * i + 5) % n]);  // another order: 7919 is prime to every n here
      part[i % kParts].add(values[i]);
    }
    for (std::size_t k = 0; k < kParts; ++k) {
      list[3].add(part[kParts - 1 - k]);
      add_words(part[k], &list[4]);  // limbs of any sign
      part[k].normalize();
      add_words(part[k], &list[5]);
    }
  }

  bool agree() const {
    for (const Partial& p : list) {
      if (!(p == list[0]) || bits(p.sum()) != bits(list[0].sum())) return false;
    }
    return true;
  }
};

}  // namespace

int main() {
  std::vector<double> values;
  std::uint64_t count, sets = 0;
  while (std::fread(&count, sizeof count, 1, stdin) == 1) {
    values.resize(count);
    if (std::fread(values.data(), sizeof(double), count, stdin) != count) {
      std::fprintf(stderr, "set %llu: the input ends\n", static_cast<unsigned long long>(sets));
      return 2;
    }
    const Sums sums(values);
    if (!sums.agree()) {
      std::fprintf(stderr, "set %llu: orders disagree\n", static_cast<unsigned long long>(sets));
      return 1;
    }
    const double sum = sums.list[0].sum();
    std::fwrite(&sum, sizeof sum, 1, stdout);
    ++sets;
  }
  return 0;
}
