// The launch plan (cuda/plan.h) and the arithmetic of indices in the kernels' headers, as host code.
//
//   plan grid      grids, tiles, tails and workspaces up to 2^43 elements; the cells of a tile
//   plan divide    divisions of an index by an extent against the processor's
//   plan errors    arguments that are refused, and by what name
//   plan views     reads lines "itemsize first ndim length... stride... count index...", prints a line "vector axes
//                  offset..." for each: bytes from element 0 of the whole shape; or "too many"
//
// Exits with 1 and a message per check that fails, else prints how many there were.
#include "plan.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "kernels.cuh"
#include "tuning.h"

namespace {

using namespace sigmoid_ce::cuda;  // NOLINT: what is tested
using sigmoid_ce::Balance;
using sigmoid_ce::Code;
using sigmoid_ce::ConstArray;
using sigmoid_ce::DType;
using sigmoid_ce::Inputs;
using sigmoid_ce::MutableArray;
using sigmoid_ce::Normalization;
using sigmoid_ce::Status;
using sigmoid_ce::Uncertain;

constexpr std::int64_t k2To40 = std::int64_t(1) << 40;

// Addresses: nothing is read or written there. Apart by more than any array is long.
void* const kScores = reinterpret_cast<void*>(std::uintptr_t(1) << 52);
void* const kTargets = reinterpret_cast<void*>(std::uintptr_t(2) << 52);
void* const kOut = reinterpret_cast<void*>(std::uintptr_t(3) << 52);
void* const kWeights = reinterpret_cast<void*>(std::uintptr_t(4) << 52);
void* const kWorkspace = reinterpret_cast<void*>(std::uintptr_t(5) << 52);
void* const kResult = reinterpret_cast<void*>(std::uintptr_t(6) << 52);
void* const kHessianOut = reinterpret_cast<void*>(std::uintptr_t(7) << 52);

bool has_sum(int operation) {
  return operation == kForward || operation == kForwardBackward || operation == kHessian;
}
bool has_derivative(int operation) { return operation != kForward && operation != kElementwise; }

int checks = 0, failures = 0;

void check(bool right, const std::string& what) {
  ++checks;
  if (right) return;
  std::fprintf(stderr, "%s\n", what.c_str());
  ++failures;
}

int finish_checks() {
  if (failures == 0) std::printf("%d checks\n", checks);
  return failures == 0 ? 0 : 1;
}

// A call with all that its operation needs.
struct Example {
  std::vector<std::int64_t> shape;
  Inputs inputs;
  sigmoid_ce::cuda::Options options;
  Results results;
  MutableArray out{kOut}, hessian{kHessianOut};
  void* workspace = kWorkspace;
  int multiprocessors = 132;
  Plan plan;

  explicit Example(std::vector<std::int64_t> lengths, DType scores = DType::kFloat32,
                   DType targets = DType::kFloat32)
      : shape(std::move(lengths)) {
    inputs.scores = ConstArray(kScores, scores);
    inputs.targets = ConstArray(kTargets, targets);
    inputs.shape = shape.data();
    inputs.ndim = static_cast<int>(shape.size());
    results.loss = kResult;
  }

  Status make(Operation operation) {
    return make_plan(operation, inputs, options, has_sum(operation) ? &results : nullptr,
                     operation == kForward ? nullptr : &out,
                     operation == kHessian ? &hessian : nullptr, workspace, multiprocessors, &plan);
  }
};

// ---- Grid ----

void check_grid(std::int64_t count, DType scores, Operation operation, int multiprocessors) {
  const std::string name = std::to_string(count) + " elements, scores of type " +
                           std::to_string(static_cast<int>(scores)) + ", operation " +
                           std::to_string(operation) + ", " + std::to_string(multiprocessors);
  Example e({count}, scores, scores);
  e.multiprocessors = multiprocessors;
  const bool adds = has_sum(operation);
  const Status status = e.make(operation);
  const std::int64_t tile = tile_of(scores == DType::kFloat64   ? 8
                                    : scores == DType::kFloat32 ? 4
                                                                : 2);
  if ((count + tile - 1) / tile > INT32_MAX) {
    check(status.code == Code::kUnsupported, name + ": not refused");
    return;
  }
  check(status.ok(), name + ": " + status.argument + " " + status.message);
  const Plan& plan = e.plan;
  const std::int64_t tiles = plan.arguments.tiles;
  check(plan.arguments.count == count && plan.arguments.first == 0, name + ": elements");
  // All elements are in tiles, and no tile is beyond them; but one with nothing for a result.
  check(tiles * tile >= count, name + ": elements without a tile");
  check(count == 0 ? tiles == (adds ? 1 : 0) : (tiles - 1) * tile < count, name + ": empty tiles");
  // Blocks take the tiles in turn, so all are taken while there is a block, and none twice.
  check(plan.grid <= plan.arguments.tiles && (plan.grid > 0 || tiles == 0), name + ": grid");
  check(plan.grid <= static_cast<unsigned>(kBlocksPerMultiprocessor * multiprocessors),
        name + ": blocks without end");
  check(plan.grid == plan.arguments.tiles ||
            plan.grid == static_cast<unsigned>(kBlocksPerMultiprocessor * multiprocessors),
        name + ": an idle GPU");
  // The counter of a block's loop stays a number of its type, and byte offsets that of theirs.
  check(tiles + plan.grid <= UINT32_MAX, name + ": the counter of tiles overflows");
  check(static_cast<double>(tiles) * static_cast<double>(tile) * 8 < 9.2e18,
        name + ": an offset overflows");
  check(plan.clears == (adds && plan.grid > 1 ? sizeof(Workspace) : 0),
        name + ": the workspace is cleared");
  check(!plan.counts && plan.count_grid == 0, name + ": targets are counted");
}

// As a block does: who has which element of a tile.
template <class P, class X>
void check_tile(const std::string& name) {
  check(P::kTile == tile_of(sizeof(X)), name + ": length of a tile");
  std::vector<int> owners(P::kTile);
  int most = 0;
  for (int thread = 0; thread < kThreads; ++thread) {
    int own = 0;
    for (int cell = thread; cell < P::kCells; cell += kThreads) {
      const int begin = cell / P::kThreadsPerRow * sigmoid_ce::math::kGroup +
                        cell % P::kThreadsPerRow * P::kLanes;
      for (int j = 0; j < sigmoid_ce::math::kRowsPerGroup; ++j) {
        for (int k = 0; k < P::kLanes; ++k) {
          ++owners.at(begin + j * sigmoid_ce::math::kRow + k);
          ++own;
        }
      }
    }
    most = std::max(most, own);
  }
  check(std::count(owners.begin(), owners.end(), 1) == P::kTile, name + ": owners of elements");
  check(most == P::kTile / kThreads, name + ": threads share the work");
}

int grid() {
  std::vector<std::int64_t> counts = {0, 1};
  for (int bit = 1; bit <= 44; ++bit) {
    for (const std::int64_t near : {-4097, -4096, -1, 0, 1, 5, 4095, 4096, 8192}) {
      const std::int64_t count = (std::int64_t(1) << bit) + near;
      if (count > 0) counts.push_back(count);
    }
  }
  for (const std::int64_t count : counts) {
    for (const DType scores :
         {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBfloat16}) {
      for (int operation = 0; operation < kFocalOperations; ++operation) {
        for (const int multiprocessors : {1, 84, 132, 1024}) {
          check_grid(count, scores, static_cast<Operation>(operation), multiprocessors);
        }
      }
    }
  }
  check_tile<Pass<float, float, kForward, kPlain>, float>("float32");
  check_tile<Pass<float, Integer, kForwardBackward, kGeneral>, float>("float32, general");
  check_tile<Pass<double, double, kForward, kPlain>, double>("float64");
  check_tile<Pass<sigmoid_ce::math::Float16, float, kBackward, kPlain>, sigmoid_ce::math::Float16>(
      "float16");
  check_tile<Pass<double, Any, kHessian, kFocal>, double>("float64, focal");

  // Counting of the targets: only where the gradient needs it, by as many blocks as have work.
  for (const std::int64_t count : {std::int64_t(0), std::int64_t(1), std::int64_t(4096),
                                   std::int64_t(4097), std::int64_t(1) << 20, k2To40}) {
    for (int operation = 0; operation < kFocalOperations; ++operation) {
      Example e({count}, DType::kFloat32, DType::kUint8);
      e.options.normalization = Normalization::kValid;
      e.options.has_ignore_label = true;
      e.options.ignore_label = 255;
      const std::string name = std::to_string(count) + " elements with an ignore_label";
      const bool gradient = has_derivative(operation);
      check(e.make(static_cast<Operation>(operation)).ok(), name);
      check(e.plan.counts == gradient, name + ": counted");
      check(!gradient || (e.plan.clears && e.plan.count_grid >= 1 &&
                          e.plan.count_grid <= 132u * kBlocksPerMultiprocessor),
            name + ": blocks that count");
      check((e.plan.arguments.divisor != nullptr) == gradient, name + ": divisor");
      // A label that no target has, and a divisor that is given, need no count.
      e.options.ignore_label = 256;
      check(e.make(static_cast<Operation>(operation)).ok() && !e.plan.counts, name + ": 256");
      e.options.ignore_label = 255;
      e.options.gradient_divisor = static_cast<double*>(kResult);
      check(e.make(static_cast<Operation>(operation)).ok() && !e.plan.counts, name + ": given");
    }
  }

  // Groups of a balance: what is counted, in how much memory, and what runs.
  static const double given[] = {1, 2};
  for (int operation = 0; operation < kFocalOperations; ++operation) {
    const std::string name = "balance, operation " + std::to_string(operation);
    const bool focal = operation >= kOperations;
    Example e({4, 6, 10});
    const auto make = [&] { return e.make(static_cast<Operation>(operation)).ok(); };
    const struct {
      Balance balance;
      bool per_channel;
      std::size_t groups, length;
    } ways[] = {{Balance::kImage, false, 4, 60},
                {Balance::kBatch, false, 1, 240},
                {Balance::kBatchMean, true, 6, 10},
                {Balance::kImage, true, 24, 10}};
    for (const auto& way : ways) {
      e.options = sigmoid_ce::cuda::Options();
      e.options.balance = way.balance;
      e.options.balance_per_channel = way.per_channel;
      const Arguments& args = e.plan.arguments;
      check(make() && e.plan.counts && !e.plan.weighs && e.plan.count_grid == 1, name + ": counts");
      check(e.plan.kind == (focal ? kFocal : kGeneral), name + ": kernel");
      check(args.groups.extent == way.groups && args.group_length.extent == way.length,
            name + ": groups");
      check(e.plan.clears == sizeof(Workspace) + way.groups * sizeof(ClassSlot) &&
                e.plan.clears == bytes_of_workspace(e.inputs, e.options),
            name + ": workspace");
      check(groups_of(e.inputs, e.options) == static_cast<std::int64_t>(way.groups),
            name + ": groups_of");
      // Weights that are given take no count; a divisor may.
      e.options.device_class_weights = given;
      check(make() && !e.plan.counts && e.plan.weighs && e.plan.weigh_grid == 1, name + ": given");
      e.options.normalization = Normalization::kForeground;
      const bool divides = has_sum(operation) || has_derivative(operation);
      check(make() && e.plan.counts == divides && args.groups.extent == 1 &&
                (!divides || args.group_length.extent == 240),
            name + ": foreground");
    }
    e.options = sigmoid_ce::cuda::Options();
    e.options.gamma = 2;
    check(make() && e.plan.kind == kFocal && !e.plan.counts, name + ": focal");
    e.options = sigmoid_ce::cuda::Options();
    e.options.uncertain = Uncertain::kIgnore;
    e.options.normalization = Normalization::kValid;
    check(make() && e.plan.counts == has_derivative(operation), name + ": uncertain");
    check(bytes_of_workspace(e.inputs, e.options) == sizeof(Workspace) + sizeof(ClassSlot),
          name + ": no groups");
  }
  // A block counts fewer than 2^31 targets, of whatever grid.
  for (const int multiprocessors : {1, 132}) {
    Example e({k2To40 * 4}, DType::kFloat32, DType::kUint8);
    e.multiprocessors = multiprocessors;
    e.options.balance = Balance::kBatch;
    check(e.make(kBackward).ok() && (k2To40 * 4) / e.plan.count_grid < INT32_MAX,
          "targets of a block");
  }

  // Wide loads and stores: every array at an address that is a multiple of its share of 16 bytes.
  const struct {
    DType scores, targets;
    int scores_unit, targets_unit;
  } pairs[] = {
      {DType::kFloat32, DType::kFloat32, 16, 16}, {DType::kFloat64, DType::kFloat64, 16, 16},
      {DType::kFloat16, DType::kFloat16, 16, 16}, {DType::kFloat32, DType::kUint8, 16, 4},
      {DType::kFloat64, DType::kBool, 16, 2},     {DType::kBfloat16, DType::kInt8, 16, 8},
      {DType::kFloat64, DType::kFloat32, 16, 8},  {DType::kBfloat16, DType::kFloat32, 16, 16},
      {DType::kFloat32, DType::kInt32, 16, 16},   {DType::kFloat64, DType::kInt64, 16, 16},
      {DType::kFloat32, DType::kInt64, 16, 16},   {DType::kFloat16, DType::kInt64, 16, 16}};
  for (const auto& pair : pairs) {
    for (int shift = 0; shift <= 32; ++shift) {
      const std::string name = "types " + std::to_string(static_cast<int>(pair.scores)) + ", " +
                               std::to_string(static_cast<int>(pair.targets)) + ", " +
                               std::to_string(shift) + " bytes off";
      Example e({100000}, pair.scores, pair.targets);
      e.inputs.scores.data = static_cast<char*>(kScores) + shift;
      check(e.make(kBackward).ok() && e.plan.arguments.vector == (shift % pair.scores_unit == 0),
            name + ": scores");
      e.inputs.scores.data = kScores;
      e.inputs.targets.data = static_cast<char*>(kTargets) + shift;
      check(e.make(kBackward).ok() && e.plan.arguments.vector == (shift % pair.targets_unit == 0),
            name + ": targets");
      e.inputs.targets.data = kTargets;
      e.out.data = static_cast<char*>(kOut) + shift;
      check(e.make(kBackward).ok() && e.plan.arguments.vector == (shift % pair.scores_unit == 0),
            name + ": out");
      check(e.plan.kind == kPlain, name + ": the plain kernel");
    }
  }
  return finish_checks();
}

// ---- Division ----

// The kernels' division, and the rest of it, of an index by the extent of an axis.
void check_division(const Axis& axis, std::uint64_t n) {
  DeviceView view;
  std::memset(static_cast<void*>(&view), 0, sizeof view);
  view.n_axes = 2;
  view.axes[0].stride = 1;
  view.axes[1] = axis;
  // Element (q, r) is at q, or at r.
  view.axes[1].stride = 0;
  const std::uint64_t quotient =
      static_cast<std::uint64_t>(place_of(view, 4, 0, static_cast<std::int64_t>(n)).offset);
  view.axes[0].stride = 0;
  view.axes[1].stride = 1;
  const std::uint64_t rest =
      static_cast<std::uint64_t>(place_of(view, 4, 0, static_cast<std::int64_t>(n)).offset);
  check(quotient == n / axis.extent && rest == n % axis.extent,
        std::to_string(n) + " / " + std::to_string(axis.extent) + " gives " +
            std::to_string(quotient) + ", rest " + std::to_string(rest));
}

int divide() {
  std::mt19937_64 random(1);
  std::vector<std::int64_t> extents;
  for (int bit = 1; bit < 59; ++bit) {
    for (const std::int64_t near : {-1, 0, 1}) {
      const std::int64_t extent = (std::int64_t(1) << bit) + near;
      if (extent > 1) extents.push_back(extent);
    }
    extents.push_back(static_cast<std::int64_t>(random() >> (64 - bit)) + 2);
  }
  for (std::int64_t extent = 2; extent < 300; ++extent) extents.push_back(extent);
  for (const std::int64_t extent : extents) {
    if (extent > std::numeric_limits<std::int64_t>::max() / 16) continue;
    // Two axes that do not merge: the second has the extent.
    Example e({2, extent}, DType::kFloat32, DType::kUint8);
    const std::int64_t strides[] = {4, 8};
    e.inputs.scores.strides = strides;
    e.inputs.count = 1;
    const Status status = e.make(kForward);
    check(status.ok() && e.plan.arguments.scores.n_axes == 2,
          "extent " + std::to_string(extent) + " is refused: " + status.message);
    if (!status.ok() || e.plan.arguments.scores.n_axes != 2) continue;
    const Axis axis = e.plan.arguments.scores.axes[1];
    const std::uint64_t d = static_cast<std::uint64_t>(extent);
    check(axis.extent == d && axis.stride == 8, "axis of extent " + std::to_string(extent));
    const std::uint64_t most = (std::uint64_t(1) << 63) - 1;
    for (const std::uint64_t n :
         {std::uint64_t(0), std::uint64_t(1), d - 1, d, d + 1, 2 * d - 1, 2 * d, most / d * d - 1,
          most / d * d, most - 1, most, (std::uint64_t(1) << 62) - 1, std::uint64_t(1) << 62}) {
      check_division(axis, n);
    }
    for (int i = 0; i < 1000; ++i) {
      const std::uint64_t n = (random() >> 1) >> (random() % 63);
      check_division(axis, n);
      // Beside multiples of the extent, where a quotient that is off by a little shows.
      const std::uint64_t multiple = n / d * d;
      check_division(axis, multiple);
      if (multiple > 0) check_division(axis, multiple - 1);
    }
  }
  return finish_checks();
}

// ---- Errors ----

template <class Change>
void refused(Operation operation, const char* argument, Code code, Change change) {
  Example e({4, 6, 10});
  check(e.make(operation).ok(), std::string("the example of ") + argument);
  change(&e);
  const Status status = e.make(operation);
  check(status.code == code && std::strcmp(status.argument, argument) == 0 &&
            std::strlen(status.message) > 0,
        std::string("expected a refusal of ") + argument + ", got '" + status.argument + "': '" +
            status.message + "'");
}

int errors() {
  const Code wrong = Code::kInvalidArgument;
  static const double number = 1, negative = -1, large = 1e300;
  static const double not_a_number = std::nan("");
  static const double pair[] = {1, 2, 3, 4, 5, 6};
  for (int k = 0; k < kFocalOperations; ++k) {
    const Operation operation = static_cast<Operation>(k);
    const bool adds = has_sum(operation);
    for (const DType dtype : {DType::kBool, DType::kUint8, DType::kInt8, DType::kInt32,
                              DType::kInt64, static_cast<DType>(9)}) {
      refused(operation, "scores", wrong, [=](Example* e) { e->inputs.scores.dtype = dtype; });
    }
    for (const DType dtype :
         {DType::kFloat64, DType::kFloat16, DType::kBfloat16, static_cast<DType>(9)}) {
      refused(operation, "targets", wrong, [=](Example* e) { e->inputs.targets.dtype = dtype; });
    }
    refused(operation, "scores", wrong, [](Example* e) { e->inputs.scores.data = nullptr; });
    refused(operation, "targets", wrong, [](Example* e) { e->inputs.targets.data = nullptr; });
    refused(operation, "shape", wrong, [](Example* e) { e->shape[1] = -1; });
    refused(operation, "shape", wrong, [](Example* e) { e->shape[1] = std::int64_t(1) << 60; });
    refused(operation, "shape", wrong, [](Example* e) { e->inputs.ndim = 65; });
    refused(operation, "first_index", wrong, [](Example* e) { e->inputs.first_index = 241; });
    refused(operation, "first_index", wrong, [](Example* e) { e->inputs.first_index = -1; });
    refused(operation, "count", wrong, [](Example* e) { e->inputs.count = 241; });
    refused(operation, "pos_weight", wrong, [](Example* e) {
      e->options.pos_weight = pair;
      e->options.pos_weight_count = 6;
    });
    for (const double* value : {&negative, &large, &not_a_number}) {
      refused(operation, "pos_weight", wrong, [=](Example* e) {
        e->options.pos_weight = value;
        e->options.pos_weight_count = 1;
      });
    }
    refused(operation, "pos_weight", wrong, [](Example* e) { e->options.pos_weight_count = 1; });
    for (const std::int64_t count : {-1, 4, 5, 7}) {
      refused(operation, "channel_pos_weight", wrong, [=](Example* e) {
        e->options.channel_pos_weight = kWeights;
        e->options.channel_pos_weight_count = count;
      });
    }
    refused(operation, "channel_pos_weight", wrong, [](Example* e) {
      e->options.channel_pos_weight_count = 6;  // and no pointer
    });
    refused(operation, "channel_pos_weight", wrong, [](Example* e) {
      e->inputs.ndim = 1;
      e->options.channel_pos_weight = kWeights;
      e->options.channel_pos_weight_count = 4;
    });
    refused(operation, "channel_pos_weight", wrong, [](Example* e) {
      e->options.channel_pos_weight = kWeights;
      e->options.channel_pos_weight_count = 6;
      e->options.pos_weight = &number;
      e->options.pos_weight_count = 1;
    });
    for (const DType dtype :
         {DType::kFloat64, DType::kInt32, DType::kInt64, DType::kFloat16, DType::kBfloat16}) {
      refused(operation, "weight", wrong,
              [=](Example* e) { e->options.weight = ConstArray(kWeights, dtype); });
    }
    refused(operation, "uniform_weight", wrong, [](Example* e) {
      e->options.uniform_weight = &number;
      e->options.weight = ConstArray(kWeights, DType::kFloat32);
    });
    refused(operation, "normalization", wrong,
            [](Example* e) { e->options.normalization = static_cast<Normalization>(6); });
    for (const double divisor : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
      refused(operation, "normalization", wrong, [=](Example* e) {
        e->options.normalization = Normalization::kNumber;
        e->options.divisor = divisor;
      });
    }
    refused(operation, "scores", Code::kUnsupported, [](Example* e) {
      e->shape = {std::int64_t(1) << 43, 1, 1};
      e->inputs.shape = e->shape.data();
    });

    // Nine axes of length 2 with a gap between each; eight are the most.
    static const std::int64_t strides[] = {4 << 18, 4 << 16, 4 << 14, 4 << 12, 4 << 10,
                                           4 << 8,  4 << 6,  4 << 4,  4 << 2};
    const auto nine = [](Example* e) {
      e->shape.assign(9, 2);
      e->inputs.shape = e->shape.data();
      e->inputs.ndim = 9;
    };
    const Code unsupported = Code::kUnsupported;
    refused(operation, "scores", unsupported, [=](Example* e) {
      nine(e);
      e->inputs.scores.strides = strides;
    });
    refused(operation, "targets", unsupported, [=](Example* e) {
      nine(e);
      e->inputs.targets.strides = strides;
    });
    refused(operation, "weight", unsupported, [=](Example* e) {
      nine(e);
      e->options.weight = ConstArray(kWeights, DType::kFloat32, strides);
    });
    if (operation != kForward) {
      refused(operation, "out", unsupported, [=](Example* e) {
        nine(e);
        e->out.strides = strides;
      });
      refused(operation, "out", wrong, [](Example* e) { e->out.data = nullptr; });
      refused(operation, "out", wrong,
              [](Example* e) { e->out.data = static_cast<char*>(kScores) + 4; });
      refused(operation, "out", wrong, [](Example* e) { e->out.data = kTargets; });
      refused(operation, "out", wrong, [](Example* e) {
        static const std::int64_t none[] = {0, 0, 0};
        e->out.strides = none;
      });
      refused(operation, "out", wrong, [](Example* e) {
        e->options.weight = ConstArray(kWeights, DType::kFloat32);
        e->out.data = kWeights;
      });
      Example e({4, 6, 10});
      e.out.data = kScores;
      check(e.make(operation).ok(), "over the scores");
      e.shape[0] = 0;
      e.out.data = nullptr;
      check(e.make(operation).ok() && (adds || e.plan.grid == 0), "an empty output");
    }
    Example eight({2, 2, 2, 2, 2, 2, 2, 2});
    eight.inputs.scores.strides = strides;
    check(eight.make(operation).ok() && eight.plan.arguments.scores.n_axes == 8 &&
              eight.plan.kind != kPlain,
          "eight axes");

    // The workspace: of the passes that add, and of gradients that count.
    if (adds) {
      refused(operation, "workspace", wrong, [](Example* e) { e->workspace = nullptr; });
      refused(operation, "loss_dtype", wrong,
              [](Example* e) { e->results.loss_dtype = DType::kFloat16; });
    } else {
      Example e({4, 6, 10});
      e.workspace = nullptr;
      check(e.make(operation).ok(), "no workspace");
    }
    for (int shift = 1; shift < 8; ++shift) {
      refused(operation, "workspace", wrong,
              [=](Example* e) { e->workspace = static_cast<char*>(kWorkspace) + shift; });
    }
    if (has_derivative(operation)) {
      refused(operation, "workspace", wrong, [](Example* e) {
        e->workspace = nullptr;
        e->options.has_ignore_label = true;
        e->options.normalization = Normalization::kValid;
      });
    }
    refused(operation, "workspace", wrong, [](Example* e) {
      e->workspace = nullptr;
      e->options.balance = Balance::kImage;
    });

    // The family of losses.
    refused(operation, "class_weights", wrong, [](Example* e) { e->options.class_weights = pair; });
    refused(operation, "balance", wrong, [](Example* e) {
      e->options.balance = Balance::kBatch;
      e->inputs.count = 7;  // a piece has not all targets
    });
    refused(operation, "balance", wrong, [](Example* e) {
      e->options.balance = Balance::kImage;
      e->inputs.ndim = 1;
    });
    refused(operation, "balance", wrong,
            [](Example* e) { e->options.balance = static_cast<Balance>(4); });
    refused(operation, "balance_per_channel", wrong,
            [](Example* e) { e->options.balance_per_channel = true; });
    refused(operation, "gamma", wrong, [](Example* e) { e->options.gamma = -1; });
    refused(operation, "gamma", wrong, [](Example* e) { e->options.gamma = std::nan(""); });
    refused(operation, "label_smoothing", wrong,
            [](Example* e) { e->options.label_smoothing = 1; });
    refused(operation, "negative_scale", wrong,
            [](Example* e) { e->options.negative_scale = HUGE_VAL; });
    refused(operation, "alpha", wrong, [](Example* e) {
      e->options.has_alpha = true;
      e->options.alpha = 1.5;
    });
    refused(operation, "uncertain", wrong,
            [](Example* e) { e->options.uncertain = static_cast<Uncertain>(2); });
    if (operation != kForward) {
      refused(operation, "out", wrong, [](Example* e) { e->out.as_float32 = true; });
    }
    if (operation == kHessian) {
      refused(operation, "hessian", wrong, [](Example* e) { e->hessian.as_float32 = true; });
      refused(operation, "hessian", wrong, [](Example* e) { e->hessian.data = kOut; });
      refused(operation, "hessian", wrong, [](Example* e) { e->hessian.data = kTargets; });
      refused(operation, "hessian", wrong, [](Example* e) { e->hessian.data = nullptr; });
      refused(operation, "hessian", wrong,
              [](Example* e) { e->hessian.data = static_cast<char*>(kScores) + 4; });
    }
  }
  return finish_checks();
}

// ---- Views ----

int views() {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream in(line);
    std::int64_t itemsize = 0, first = 0, count = 0;
    int ndim = 0;
    in >> itemsize >> first >> ndim;
    std::vector<std::int64_t> shape(ndim), strides(ndim);
    for (auto& n : shape) in >> n;
    for (auto& n : strides) in >> n;
    in >> count;
    std::vector<std::int64_t> indices(count);
    for (auto& n : indices) in >> n;
    if (!in) {
      std::fprintf(stderr, "not understood: %s\n", line.c_str());
      return 2;
    }
    const DType dtype = itemsize == 8 ? DType::kFloat64 : DType::kFloat32;
    Example e(shape, dtype, DType::kUint8);
    e.inputs.scores.strides = strides.data();
    e.inputs.first_index = first;
    const Status status = e.make(kForward);
    if (status.code == Code::kUnsupported) {
      std::printf("too many\n");
      continue;
    }
    if (!status.ok()) {
      std::fprintf(stderr, "%s: %s %s\n", line.c_str(), status.argument, status.message);
      return 2;
    }
    const DeviceView& view = e.plan.arguments.scores;
    std::printf("%d %d", e.plan.arguments.vector, view.n_axes);
    for (const std::int64_t index : indices) {
      const Place place = place_of(view, itemsize, e.plan.arguments.first, index - first);
      std::printf(" %" PRId64, static_cast<std::int64_t>(view.data - static_cast<char*>(kScores)) +
                                   place.offset);
    }
    std::printf("\n");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "grid") return grid();
  if (what == "divide") return divide();
  if (what == "errors") return errors();
  if (what == "views") return views();
  std::fprintf(stderr, "usage: plan grid|divide|errors|views\n");
  return 2;
}
