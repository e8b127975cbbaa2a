// Instructions per element of the main loops, to be run under valgrind's callgrind by
// test_instructions.py:
//
//   valgrind --tool=callgrind --collect-atstart=no --callgrind-out-file=FILE instructions
//
// Prints a line `case size` for each call that is counted; the counts of the n-th are in FILE.n. Each case
// runs on two sizes, so that the difference has no set-up in it. Valgrind has no AVX-512: AVX2 it is.
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "sigmoid_ce/cpu.h"

#if defined(__has_include)
#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#endif
#endif

#if !defined(CALLGRIND_DUMP_STATS)

int main() {
  std::fprintf(stderr, "instructions: compiled without valgrind/callgrind.h\n");
  return 77;
}

#else

namespace {

namespace cpu = sigmoid_ce::cpu;
using sigmoid_ce::ConstArray;
using sigmoid_ce::DType;
using sigmoid_ce::Inputs;
using sigmoid_ce::MutableArray;
using sigmoid_ce::Options;
using sigmoid_ce::Partial;
using sigmoid_ce::Status;

// Whole blocks of 4096 elements, in both.
constexpr std::int64_t kSmall = 1 << 13;
constexpr std::int64_t kLarge = 3 << 13;

enum Variant {
  kPlain,
  kGeneral,
  kChannels,
  kStrided,
  kIgnore,
  kPosWeight,
  kSmoothing,
  kAlpha,
  kFocal,
  kFocalAlpha
};

// Scores 0 and targets 0 do: no path depends on a value.
template <class T>
struct Data {
  std::vector<T> scores, out, weight;
  std::vector<std::int64_t> targets;  // zero bytes of any type
  Data() : scores(2 * kLarge), out(kLarge), weight(kLarge, T(1)), targets(kLarge) {}
};

template <class T>
bool run(const char* operation, Variant variant, DType target, const char* name, Data<T>* data) {
  const DType dtype = sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64;
  const double channel_weights[] = {1, 2, 3, 4};
  for (const std::int64_t n : {kSmall, kLarge}) {
    const std::int64_t shape[] = {n / 64, 4, 16};
    const std::int64_t item = sizeof(T);
    const std::int64_t every_other[] = {128 * item, 32 * item, 2 * item};
    Inputs inputs;
    inputs.shape = shape;
    inputs.ndim = 3;
    inputs.scores =
        ConstArray(data->scores.data(), dtype, variant == kStrided ? every_other : nullptr);
    inputs.targets = ConstArray(data->targets.data(), target);
    Options options;
    if (variant == kGeneral || variant == kChannels) {
      options.pos_weight = channel_weights;
      options.pos_weight_count = variant == kChannels ? 4 : 1;
    }
    if (variant == kGeneral) {
      options.weight = ConstArray(data->weight.data(), dtype);
      options.has_ignore_label = true;
      options.ignore_label = 7;
    }
    if (variant == kIgnore) {
      options.has_ignore_label = true;
      options.ignore_label = 7;
    }
    if (variant == kPosWeight) {
      options.pos_weight = channel_weights + 1;
      options.pos_weight_count = 1;
    }
    if (variant == kSmoothing) options.label_smoothing = 0.25;
    if (variant == kAlpha || variant == kFocalAlpha) {
      options.has_alpha = true;
      options.alpha = 0.25;
    }
    if (variant == kFocal || variant == kFocalAlpha) options.gamma = 2;
    Partial partial;
    const MutableArray out(data->out.data());
    Status status;
    const std::string o = operation;
    // The first call is not counted: it looks up what is looked up once.
    for (int counted = 0; counted < 2; ++counted) {
      if (counted) CALLGRIND_TOGGLE_COLLECT;
      if (o == "forward") {
        status = cpu::forward(inputs, options, &partial);
      } else if (o == "elementwise") {
        status = cpu::elementwise(inputs, options, out);
      } else if (o == "backward") {
        status = cpu::backward(inputs, options, out);
      } else {
        status = cpu::forward_backward(inputs, options, &partial, out);
      }
      if (counted) CALLGRIND_TOGGLE_COLLECT;
    }
    CALLGRIND_DUMP_STATS;
    std::printf("%s %lld\n", name, static_cast<long long>(n));
    if (!status.ok()) {
      std::fprintf(stderr, "instructions: %s: %s: %s\n", name, status.argument, status.message);
      return false;
    }
  }
  return true;
}

template <class T>
bool run_all(const char* type, DType own) {
  Data<T> data;
  static const struct {
    const char* name;
    Variant variant;
    DType target;
  } cases[] = {{"plain", kPlain, own},
               {"uint8", kPlain, DType::kUint8},
               {"int64", kPlain, DType::kInt64},
               {"general", kGeneral, own},
               {"channels", kChannels, own},
               {"strided", kStrided, own},
               {"ignore_label", kIgnore, DType::kUint8},
               {"pos_weight", kPosWeight, DType::kUint8},
               {"label_smoothing", kSmoothing, DType::kUint8},
               {"alpha", kAlpha, DType::kUint8},
               {"gamma", kFocal, own},
               {"gamma_alpha", kFocalAlpha, own}};
  for (const char* operation : {"forward", "elementwise", "backward", "forward_backward"}) {
    for (const auto& c : cases) {
      const std::string name = std::string(operation) + "/" + type + "/" + c.name;
      if (!run<T>(operation, c.variant, c.target, name.c_str(), &data)) return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  if (!cpu::set_isa("avx2").ok()) {
    std::fprintf(stderr, "instructions: no AVX2 here\n");
    return 77;
  }
  cpu::set_num_threads(1);
  return run_all<float>("float32", DType::kFloat32) && run_all<double>("float64", DType::kFloat64)
             ? 0
             : 1;
}

#endif
