// Compares the float32 kernels with a double-precision oracle for every one of the 2^32 scores.
//
//   sweep [--bound ULP] [--threads N] [--every K] [--isa NAME]
//
// For t = 0 and t = 1: the loss (elementwise) and the gradient (backward, normalization none). Prints, for
// each of the four, the largest error in ulp and the score where it occurs, then a digest of all bits. Exit
// status 1 when an error is above the bound, 2 when the API or the command line failed. --every K visits
// each K-th chunk of 2^16 magnitudes, as a quick check of the program itself.
//
// An ulp is the spacing of float32 numbers in the binade of the exact value, 2^-149 at the least, so that a
// subnormal result is held to the same bound. The oracle is the C library's exp and log1p in double: its
// error is below 1e-8 float32 ulp. It depends on |x| only, so both signs and both targets share it.
#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "sigmoid_ce/cpu.h"

namespace {

namespace cpu = sigmoid_ce::cpu;

constexpr std::int64_t kChunk = 1 << 16;  // magnitudes in one chunk
constexpr std::int64_t kChunks =
    (std::int64_t{1} << 31) / kChunk;  // sign bit cleared: 2^31 magnitudes
constexpr int kQuantities = 4;         // loss, gradient for t = 0, 1
const char* const kNames[kQuantities] = {"loss t=0", "loss t=1", "gradient t=0", "gradient t=1"};

std::uint32_t bits_of(float v) {
  std::uint32_t b;
  std::memcpy(&b, &v, sizeof b);
  return b;
}

float float_of(std::uint32_t b) {
  float v;
  std::memcpy(&v, &b, sizeof v);
  return v;
}

std::uint64_t mix(std::uint64_t v) {  // the finaliser of splitmix64
  v += 0x9E3779B97F4A7C15u;
  v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9u;
  v = (v ^ (v >> 27)) * 0x94D049BB133111EBu;
  return v ^ (v >> 31);
}

// 1 / spacing of float32 in the binade of `exact`, which is finite.
double ulps_per_unit(double exact) {
  std::uint64_t b;
  std::memcpy(&b, &exact, sizeof b);
  int exponent = static_cast<int>((b >> 52) & 0x7FF) - 1023;
  if (exponent < -126) exponent = -126;  // float32 subnormals share one spacing
  b = static_cast<std::uint64_t>(1023 + 23 - exponent) << 52;
  double scale;
  std::memcpy(&scale, &b, sizeof scale);
  return scale;
}

double error_in_ulp(float got, double exact) {
  if (std::isnan(exact)) return std::isnan(got) ? 0.0 : std::numeric_limits<double>::infinity();
  if (std::isinf(exact)) {
    return static_cast<double>(got) == exact ? 0.0 : std::numeric_limits<double>::infinity();
  }
  const double error = std::fabs(static_cast<double>(got) - exact) * ulps_per_unit(exact);
  return error >= 0 ? error
                    : std::numeric_limits<double>::infinity();  // a NaN where a number is due
}

struct Result {
  double worst[kQuantities] = {0, 0, 0, 0};
  float where[kQuantities] = {0, 0, 0, 0};
  std::uint64_t digest = 0;
  std::int64_t scores = 0;
  bool failed = false;
};

struct Oracle {
  double softplus_minus;  // log(1 + exp(-a))
  double sigmoid_minus;   // 1 / (1 + exp(a))
};

Oracle oracle(double a) {
  // From a = 128 on both values are below 3e-56, less than 1e-10 of float32's smallest number.
  if (a >= 128) return Oracle{0, 0};
  const double z = std::exp(-a);
  return Oracle{std::log1p(z), z / (1 + z)};
}

class Worker {
 public:
  Worker()
      : scores_(kChunk), out_(kChunk), zeros_(kChunk, 0.0f), ones_(kChunk, 1.0f), oracle_(kChunk) {}

  void run(int first, int step, std::int64_t every, Result* result) {
    for (std::int64_t chunk = first * every; chunk < kChunks; chunk += step * every) {
      const std::uint32_t base = static_cast<std::uint32_t>(chunk * kChunk);
      for (std::int64_t i = 0; i < kChunk; ++i) {
        oracle_[i] = oracle(static_cast<double>(float_of(base + static_cast<std::uint32_t>(i))));
      }
      for (int negative = 0; negative < 2; ++negative) {
        for (std::int64_t i = 0; i < kChunk; ++i) {
          scores_[i] =
              float_of((base + static_cast<std::uint32_t>(i)) | (negative ? 0x80000000u : 0u));
        }
        for (int quantity = 0; quantity < kQuantities; ++quantity) {
          if (!compute(quantity)) {
            result->failed = true;
            return;
          }
          compare(quantity, negative, base, result);
        }
        result->scores += kChunk;
      }
    }
  }

 private:
  bool compute(int quantity) {
    const std::int64_t shape[1] = {kChunk};
    sigmoid_ce::Inputs inputs;
    inputs.scores = sigmoid_ce::ConstArray(scores_.data(), sigmoid_ce::DType::kFloat32);
    inputs.targets =
        sigmoid_ce::ConstArray((quantity & 1 ? ones_ : zeros_).data(), sigmoid_ce::DType::kFloat32);
    inputs.shape = shape;
    inputs.ndim = 1;
    sigmoid_ce::Options options;
    options.normalization = sigmoid_ce::Normalization::kNone;
    const sigmoid_ce::MutableArray out(out_.data());
    const sigmoid_ce::Status status =
        quantity < 2 ? cpu::elementwise(inputs, options, out) : cpu::backward(inputs, options, out);
    if (!status.ok()) std::fprintf(stderr, "%s: %s\n", status.argument, status.message);
    return status.ok();
  }

  void compare(int quantity, int negative, std::uint32_t base, Result* result) {
    const int target = quantity & 1;
    // A score on the wrong side of its target pays |x| and has a gradient close to 1.
    const bool wrong = negative == target;
    double worst = result->worst[quantity];
    std::uint64_t digest = 0;
    for (std::int64_t i = 0; i < kChunk; ++i) {
      const std::uint32_t magnitude = base + static_cast<std::uint32_t>(i);
      const double a = static_cast<double>(float_of(magnitude));
      double exact;
      if (std::isnan(a)) {
        exact = a;
      } else if (quantity < 2) {
        exact = wrong ? a + oracle_[i].softplus_minus : oracle_[i].softplus_minus;
      } else {
        exact = wrong ? 1 - oracle_[i].sigmoid_minus : oracle_[i].sigmoid_minus;
        if (target) exact = -exact;
      }
      const float got = out_[i];
      const double error = error_in_ulp(got, exact);
      if (error > worst) {
        worst = error;
        result->where[quantity] = scores_[i];
      }
      const std::uint64_t key =
          (static_cast<std::uint64_t>(quantity * 2 + negative) << 32) | magnitude;
      digest += mix(key ^ mix(std::isnan(got) ? 0x7FC00000u : bits_of(got)));
    }
    result->worst[quantity] = worst;
    result->digest += digest;
  }

  std::vector<float> scores_, out_, zeros_, ones_;
  std::vector<Oracle> oracle_;
};

}  // namespace

int main(int argc, char** argv) {
  double bound = 2;
  int threads = 2;
  std::int64_t every = 1;
  for (int i = 1; i < argc; i += 2) {
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (!std::strcmp(argv[i], "--bound")) {
      bound = std::atof(value);
    } else if (!std::strcmp(argv[i], "--threads")) {
      threads = std::atoi(value);
    } else if (!std::strcmp(argv[i], "--every")) {
      every = std::atoll(value);
    } else if (!std::strcmp(argv[i], "--isa")) {
      const sigmoid_ce::Status status = cpu::set_isa(value);
      if (!status.ok()) {
        std::fprintf(stderr, "--isa %s: %s\n", value, status.message);
        return 2;
      }
    } else {
      std::fprintf(stderr, "unknown option %s\n", argv[i]);
      return 2;
    }
  }
  if (!(bound > 0) || threads < 1 || every < 1) {
    std::fprintf(stderr, "--bound, --threads and --every take a number above 0\n");
    return 2;
  }
  // The sweep brings its own threads; the library's would only fight with them.
  if (!cpu::set_num_threads(1).ok()) return 2;

  std::vector<Result> results(threads);
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i) {
    pool.emplace_back(
        [i, threads, every, &results] { Worker().run(i, threads, every, &results[i]); });
  }
  for (std::thread& thread : pool) thread.join();

  Result total;
  for (const Result& part : results) {
    if (part.failed) return 2;
    for (int quantity = 0; quantity < kQuantities; ++quantity) {
      // Of equal errors the one at the smaller bit pattern counts, whatever the number of threads.
      const bool tie = part.worst[quantity] == total.worst[quantity] &&
                       bits_of(part.where[quantity]) < bits_of(total.where[quantity]);
      if (part.worst[quantity] > total.worst[quantity] || tie) {
        total.worst[quantity] = part.worst[quantity];
        total.where[quantity] = part.where[quantity];
      }
    }
    total.digest += part.digest;
    total.scores += part.scores;
  }
  bool good = true;
  std::printf("isa %s, %" PRId64 " scores\n", cpu::isa(), total.scores);
  for (int quantity = 0; quantity < kQuantities; ++quantity) {
    std::printf("%-13s max %.6f ulp at x = %.9g (%a)\n", kNames[quantity], total.worst[quantity],
                static_cast<double>(total.where[quantity]),
                static_cast<double>(total.where[quantity]));
    if (!(total.worst[quantity] <= bound)) good = false;
  }
  std::printf("digest %016" PRIx64 "\n", total.digest);
  std::printf(good ? "within %g ulp\n" : "ABOVE %g ulp\n", bound);
  return good ? 0 : 1;
}
