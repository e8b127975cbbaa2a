// Data in pieces, through the C++ API: the gradients of the chunks of an array (Inputs::first_index and
// count) have the bits of the whole call's, and the losses of chunks of whole blocks add up to its loss.
// Exits with 1 and a message per case that differs, else prints the number of cases.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "sigmoid_ce/cpu.h"

namespace {

namespace cpu = sigmoid_ce::cpu;
using sigmoid_ce::ConstArray;
using sigmoid_ce::DType;
using sigmoid_ce::Inputs;
using sigmoid_ce::MutableArray;
using sigmoid_ce::Normalization;
using sigmoid_ce::Options;
using sigmoid_ce::Partial;

constexpr std::int64_t kBlock = 4096;
constexpr std::int64_t kShape[3] = {6, 3, 5000};  // channels and samples end inside of blocks
constexpr std::int64_t kCount = 6 * 3 * 5000;
const double kPosWeights[3] = {0.1, 1.0, 7.5};

int failures = 0, cases = 0;

void fail(const std::string& name, const char* what) {
  std::fprintf(stderr, "%s: %s\n", name.c_str(), what);
  ++failures;
}

void check(const sigmoid_ce::Status& status, const std::string& name) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s: %s\n", name.c_str(), status.argument, status.message);
  std::exit(2);
}

// Splitmix64, as a number in [0, 1).
double draw(std::int64_t stream, std::int64_t i) {
  std::uint64_t v = static_cast<std::uint64_t>(stream << 40) + static_cast<std::uint64_t>(i);
  v = (v + 1) * 0x9E3779B97F4A7C15u;
  v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9u;
  v = (v ^ (v >> 27)) * 0x94D049BB133111EBu;
  return static_cast<double>((v ^ (v >> 31)) >> 11) / 9007199254740992.0;
}

// Arrays without strides begin at the chunk; arrays with strides begin at element 0 of the whole.
template <class T>
ConstArray piece(const std::vector<T>& whole, DType dtype, const std::int64_t* strides,
                 std::int64_t first) {
  return ConstArray(whole.data() + (strides ? 0 : first), dtype, strides);
}

struct Arrays {
  const std::int64_t* score_strides;
  const std::int64_t* target_strides;
  const std::int64_t* out_strides;
};

template <class T>
void compare(const std::string& name, DType dtype, const std::vector<T>& scores,
             const std::vector<std::uint8_t>& targets, const Arrays& arrays,
             const Options& options) {
  ++cases;
  Inputs whole;
  whole.shape = kShape;
  whole.ndim = 3;
  whole.scores = piece(scores, dtype, arrays.score_strides, 0);
  whole.targets = piece(targets, DType::kUint8, arrays.target_strides, 0);
  std::vector<T> wanted(kCount), got(kCount), both(kCount);
  Partial wanted_sum;
  check(cpu::backward(whole, options, MutableArray(wanted.data(), arrays.out_strides)), name);
  check(cpu::forward(whole, options, &wanted_sum), name);
  // Such a gradient would be equal by chance.
  if (std::count(wanted.begin(), wanted.end(), T(0)) > kCount / 2) fail(name, "mostly zeros");

  // The last two cut inside of blocks: right for gradients, which know no blocks.
  for (const std::int64_t step :
       {kBlock, 3 * kBlock, 10 * kBlock, std::int64_t(4999), kBlock + 1}) {
    const bool blocks = step % kBlock == 0;
    std::fill(got.begin(), got.end(), T(-99));
    std::fill(both.begin(), both.end(), T(-99));
    Partial sum, sum_of_both;
    for (std::int64_t first = 0; first < kCount; first += step) {
      Inputs chunk = whole;
      chunk.scores = piece(scores, dtype, arrays.score_strides, first);
      chunk.targets = piece(targets, DType::kUint8, arrays.target_strides, first);
      chunk.first_index = first;
      chunk.count = std::min(step, kCount - first);
      const std::int64_t start = arrays.out_strides ? 0 : first;
      check(cpu::backward(chunk, options, MutableArray(got.data() + start, arrays.out_strides)),
            name);
      Partial part;
      check(cpu::forward_backward(chunk, options, &part,
                                  MutableArray(both.data() + start, arrays.out_strides)),
            name);
      if (part.n_total != chunk.count) fail(name, "n_total of a chunk is not its count");
      sum_of_both.add(part);
      check(cpu::forward(chunk, options, &part), name);
      sum.add(part);
    }
    const std::size_t bytes = kCount * sizeof(T);
    const std::string what = name + ", step " + std::to_string(step);
    if (std::memcmp(got.data(), wanted.data(), bytes) != 0) {
      fail(what, "backward of the chunks differs from backward of the whole");
    }
    if (std::memcmp(both.data(), wanted.data(), bytes) != 0) {
      fail(what, "forward_backward of the chunks differs from backward of the whole");
    }
    if (!blocks) continue;
    if (!(sum == wanted_sum) || !(sum_of_both == wanted_sum)) {
      fail(what, "the sums of the chunks do not add up to that of the whole");
    }
    if (cpu::loss(whole, options, sum) != cpu::loss(whole, options, wanted_sum)) {
      fail(what, "the loss of the added chunks differs from that of the whole");
    }
  }
}

template <class T>
void all_cases(const std::string& type, DType dtype) {
  std::vector<T> scores(kCount), weights(kCount);
  std::vector<std::uint8_t> targets(kCount);
  for (std::int64_t i = 0; i < kCount; ++i) {
    scores[i] = static_cast<T>(16 * draw(1, i) - 8);
    targets[i] = static_cast<std::uint8_t>(3 * draw(2, i));
    weights[i] = static_cast<T>(0.25 + draw(3, i));
  }
  const std::int64_t size = sizeof(T);
  const std::int64_t per_sample[3] = {size, 0, 0}, per_channel[3] = {0, size, 0};
  const std::int64_t per_column[3] = {0, 0, size}, per_row[3] = {3 * size, size, 0};
  const std::int64_t for_all[3] = {0, 0, 0};
  // Memory order: columns, samples, channels.
  const std::int64_t turned[3] = {3 * size, size, 18 * size};
  const std::int64_t turned_targets[3] = {3, 1, 18};

  const struct {
    const char* name;
    Arrays arrays;
  } layouts[] = {{"contiguous", {nullptr, nullptr, nullptr}},
                 {"turned scores", {turned, nullptr, nullptr}},
                 {"turned targets", {nullptr, turned_targets, nullptr}},
                 {"turned out", {nullptr, nullptr, turned}},
                 {"all turned", {turned, turned_targets, turned}}};
  const struct {
    const char* name;
    bool used;
    const std::int64_t* strides;
  } kinds[] = {{"no weight", false, nullptr},
               {"weight per sample", true, per_sample},
               {"weight per channel", true, per_channel},
               {"weight per column", true, per_column},
               {"weight per row", true, per_row},
               {"weight for all", true, for_all}};
  const struct {
    const char* name;
    Normalization mode;
  } modes[] = {{"full", Normalization::kFull},
               {"batch_size", Normalization::kBatchSize},
               {"none", Normalization::kNone},
               {"number", Normalization::kNumber}};

  for (const auto& layout : layouts) {
    for (const auto& kind : kinds) {
      for (const auto& mode : modes) {
        Options options;
        options.pos_weight = kPosWeights;
        options.pos_weight_count = 3;
        options.has_ignore_label = true;
        options.ignore_label = 2;
        options.normalization = mode.mode;
        options.divisor = 0.3;
        options.loss_weight = 0.7;
        if (kind.used) options.weight = ConstArray(weights.data(), dtype, kind.strides);
        compare(type + ", " + layout.name + ", " + kind.name + ", " + mode.name, dtype, scores,
                targets, layout.arrays, options);
      }
    }
  }
  // A plain gradient goes through another kernel.
  for (const auto& mode : modes) {
    Options options;
    options.normalization = mode.mode;
    compare(type + ", plain, " + mode.name, dtype, scores, targets, layouts[0].arrays, options);
  }
}

}  // namespace

int main() {
  all_cases<float>("float32", DType::kFloat32);
  all_cases<double>("float64", DType::kFloat64);
  if (failures > 0) return 1;
  std::printf("%d cases\n", cases);
  return 0;
}
