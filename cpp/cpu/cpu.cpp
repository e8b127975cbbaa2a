// The C++ API: checks the arguments, cuts the elements into runs for the threads, stages what is not
// contiguous, and adds the block sums.
#include "sigmoid_ce/cpu.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "cpu/dispatch.h"
#include "cpu/kernel.h"
#include "cpu/parallel.h"
#include "cpu/system.h"
#include "math/block_sum.h"
#include "math/call.h"
#include "math/float_environment.h"
#include "math/semantics.h"
#include "math/view.h"

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
// Blocks that a thread takes at a time: enough to amortise the taking, few enough to share the end evenly.
constexpr std::int64_t kBlocksPerRun = 16;
constexpr std::int64_t kCacheLine = 64;

// P and M of a group of `balance`.
using ClassCounts = std::atomic<std::int64_t>[2];

struct Choice {
  Kernel run = nullptr;
  bool converts = false;  // wants integer targets in the type that is computed in
};

// One call, and what its threads share.
struct Job {
  const KernelTable* table = nullptr;
  // For a piece with the same pos_weight and class weights throughout, and for one with kArrays.
  Choice kernel, kernel_of_arrays;
  Run run = Run();  // all but the pointers of a run

  // A pass over the targets, instead of `kernel`: what is counted.
  bool counts = false;
  CountKernel count_ignored = nullptr, count_classes = nullptr;
  ClassCounts* class_counts = nullptr;  // one for each group, or one
  math::Groups groups = {1, 1};

  const View* scores = nullptr;
  const View* targets = nullptr;
  const View* pos_weight = nullptr;  // one double per element, by strides; null: uniform or off
  const View* weight = nullptr;      // null: uniform or off
  const View* class_weight[2] = {nullptr, nullptr};  // doubles by strides; null: uniform or off
  const View* out = nullptr;
  const View* hessian = nullptr;
  DType dtype = DType::kFloat32;  // what is computed in
  DType scores_dtype = DType::kFloat32;
  DType target_dtype = DType::kFloat32;
  DType weight_dtype = DType::kFloat32;
  int target = 0;  // index of the targets' type, as they are given
  bool stage_scores = false, stage_targets = false, stage_weight = false;
  bool stage_out = false, stage_hessian = false;  // through a buffer, then scattered
  DType out_dtype = DType::kFloat32, hessian_dtype = DType::kFloat32;

  bool is_float64() const { return dtype == DType::kFloat64; }

  std::int64_t first = 0, count = 0;
  std::int64_t run_length = 0;  // what a thread takes at a time
  bool by_block = false;        // and does block by block, since something is staged
  char* staging = nullptr;      // kStaging bytes for each thread that comes
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

// One of a thread's buffers; null where nothing is staged, and so there are none.
char* buffer_of(char* staging, Buffer which) {
  return staging == nullptr ? nullptr : staging + which * kBuffer;
}

// The staging buffers of a call, handed out to the threads that help. The last ones are kept for the next call,
// of any thread, since returning them to the system and asking for them again takes longer than a small call.
// (Not thread_local: where memory runs out while the destructor of such an object is registered, the C library
// ends the process.)
class Staging {
 public:
  Staging() = default;
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() {
    if (block_ != nullptr) std::free(spare.exchange(block_, std::memory_order_acq_rel));
  }

  // Null where there is no memory.
  char* get(std::int64_t size) {
    block_ = spare.exchange(nullptr, std::memory_order_acq_rel);
    if (block_ == nullptr || block_->size < size) {
      std::free(block_);
      block_ = nullptr;
      void* memory = nullptr;
      if (posix_memalign(&memory, kCacheLine, kCacheLine + size) != 0) return nullptr;
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

void gather_bytes(const View& view, std::int64_t index, std::int64_t n, char* out) {
  switch (view.itemsize()) {
    case 1:
      view.gather<std::uint8_t>(index, n, reinterpret_cast<std::uint8_t*>(out));
      break;
    case 2:
      view.gather<std::uint16_t>(index, n, reinterpret_cast<std::uint16_t*>(out));
      break;
    case 4:
      view.gather<std::uint32_t>(index, n, reinterpret_cast<std::uint32_t*>(out));
      break;
    default:
      view.gather<std::uint64_t>(index, n, reinterpret_cast<std::uint64_t*>(out));
      break;
  }
}

void scatter_bytes(const View& view, std::int64_t index, std::int64_t n, const char* values) {
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

void convert_with(ConvertKernel kernel, const Run& options, const void* from, void* to,
                  std::int64_t n) {
  Run run = options;
  run.targets = from;
  run.out = to;
  run.n = n;
  kernel(run);
}

// n elements from `index` on, side by side: where they are, or copied to `raw`.
const void* contiguous(const View& view, std::int64_t index, std::int64_t n, char* raw) {
  if (view.contiguous()) return view.at(index);
  gather_bytes(view, index, n, raw);
  return raw;
}

// Scores or targets in the type that is computed in.
const void* staged(const Job& job, const View& view, DType dtype, std::int64_t index,
                   std::int64_t n, char* buffer, char* raw) {
  if (!math::is_half(dtype)) return contiguous(view, index, n, buffer);
  convert_with(job.table->widen[half_index(dtype)], job.run, contiguous(view, index, n, raw),
               buffer, n);
  return buffer;
}

// Results from a buffer of the type that is computed in.
void unstage(const Job& job, const View& view, DType dtype, std::int64_t index, std::int64_t n,
             const char* buffer, char* raw) {
  if (math::is_half(dtype)) {
    void* const to = view.contiguous() ? view.at(index) : raw;
    convert_with(job.table->narrow[half_index(dtype)], job.run, buffer, to, n);
    if (view.contiguous()) return;
    buffer = raw;
  }
  scatter_bytes(view, index, n, buffer);
}

template <class T>
void gather_weight(const Job& job, std::int64_t index, std::int64_t n, T* out, char* raw) {
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
      staged(job, *job.weight, job.weight_dtype, index, n, reinterpret_cast<char*>(out), raw);
      break;
    default:
      job.weight->gather<T>(index, n, out);
      break;
  }
}

#if defined(__x86_64__)
constexpr bool kStreams = true;
void stream_end() { _mm_sfence(); }  // streamed lines are visible to other threads only after it
#else
constexpr bool kStreams = false;
void stream_end() {}
#endif

template <class T>
void run_elements(Job* job, std::int64_t index, std::int64_t n, char* staging, Run* run) {
  const auto buffer = [staging](Buffer which) { return buffer_of(staging, which); };
  char* const raw = buffer(kRawBuffer);
  run->scores = job->stage_scores ? staged(*job, *job->scores, job->scores_dtype, index, n,
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
    const bool one = index / job->groups.length == (index + n - 1) / job->groups.length;
    for (int k = 0; k < 2; ++k) {
      T* const weights = reinterpret_cast<T*>(buffer(k == 0 ? kPositiveBuffer : kNegativeBuffer));
      job->class_weight[k]->gather<double>(index, one ? 1 : n, weights);
      run->class_weight[k] = weights[0];
      run->class_weights[k] = one ? nullptr : weights;
    }
  }
  const bool arrays = run->pos_weights != nullptr || run->class_weights[0] != nullptr;
  const Choice& kernel = arrays ? job->kernel_of_arrays : job->kernel;
  if (kernel.converts) {
    convert_with(job->table->convert[job->is_float64()][job->target], *run,
                 contiguous(*job->targets, index, n, raw), buffer(kTargetsBuffer), n);
    run->targets = buffer(kTargetsBuffer);
    // The kernel sees what the conversion wrote in the place of an ignored target.
    run->ignore_low = run->ignore_high = kIgnored;
  } else {
    run->targets = job->stage_targets ? staged(*job, *job->targets, job->target_dtype, index, n,
                                               buffer(kTargetsBuffer), raw)
                                      : job->targets->at(index);
  }
  if (job->out != nullptr) {
    run->out = job->stage_out ? buffer(kOutBuffer) : job->out->at(index);
  }
  if (job->hessian != nullptr) {
    run->hessian = job->stage_hessian ? buffer(kHessianBuffer) : job->hessian->at(index);
  }
  run->n = n;
  kernel.run(run);
  if (job->stage_out) unstage(*job, *job->out, job->out_dtype, index, n, buffer(kOutBuffer), raw);
  if (job->stage_hessian) {
    unstage(*job, *job->hessian, job->hessian_dtype, index, n, buffer(kHessianBuffer), raw);
  }
}

// Of any alignment.
template <class S>
S load(const S* p) {
  S v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Of groups too short for a kernel.
template <class S>
void add_classes(const S* t, std::int64_t index, std::int64_t n, const math::Groups& groups,
                 ClassCounts* counts) {
  // Of few groups: added to what threads share once, at the end.
  constexpr std::int64_t kOwn = 1024;
  std::int64_t own[2][kOwn];
  const bool few = groups.count <= kOwn;
  if (few) {
    for (std::int64_t* all : own) {
      std::memset(all, 0, static_cast<std::size_t>(groups.count) * sizeof *all);
    }
  }
  std::int64_t group = index / groups.length % groups.count;
  std::int64_t left = groups.length - index % groups.length;
  while (n > 0) {
    if (few && groups.length == 1) {
      // A channel per element, as scores of shape (N, C) have them: one row at a time.
      const std::int64_t row = n < groups.count - group ? n : groups.count - group;
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
      if (own[k][g] != 0) counts[g][k].fetch_add(own[k][g], std::memory_order_relaxed);
    }
  }
}

// The classes of n targets, which lie side by side at `targets`.
void count_classes(const Job& job, const void* targets, std::int64_t index, std::int64_t n,
                   Run* run) {
  constexpr std::int64_t kShort = 64;  // groups too short for a kernel
  const math::Groups& groups = job.groups;
  if (groups.length < kShort && groups.count > 1) {
    switch (job.target_dtype) {
      case DType::kFloat64:
        return add_classes(static_cast<const double*>(targets), index, n, groups, job.class_counts);
      case DType::kBool: {
        // Any byte but 0 is 1.
        std::uint8_t bits[kBlock];
        const std::uint8_t* const bytes = static_cast<const std::uint8_t*>(targets);
        for (std::int64_t begin = 0; begin < n; begin += kBlock) {
          const std::int64_t length = n - begin < kBlock ? n - begin : kBlock;
          for (std::int64_t i = 0; i < length; ++i) bits[i] = bytes[begin + i] != 0;
          add_classes(bits, index + begin, length, groups, job.class_counts);
        }
        return;
      }
      case DType::kUint8:
        return add_classes(static_cast<const std::uint8_t*>(targets), index, n, groups,
                           job.class_counts);
      case DType::kInt8:
        return add_classes(static_cast<const std::int8_t*>(targets), index, n, groups,
                           job.class_counts);
      case DType::kInt32:
        return add_classes(static_cast<const std::int32_t*>(targets), index, n, groups,
                           job.class_counts);
      case DType::kInt64:
        return add_classes(static_cast<const std::int64_t*>(targets), index, n, groups,
                           job.class_counts);
      default:
        return add_classes(static_cast<const float*>(targets), index, n, groups, job.class_counts);
    }
  }
  const std::int64_t size = math::is_half(job.target_dtype) ? 4 : math::size_of(job.target_dtype);
  const char* t = static_cast<const char*>(targets);
  while (n > 0) {
    const std::int64_t left = groups.length - index % groups.length;
    const std::int64_t length = n < left ? n : left;
    run->targets = t;
    run->n = length;
    Counts counts = {};
    job.count_classes(*run, &counts);
    ClassCounts& group = job.class_counts[index / groups.length % groups.count];
    if (counts.positive != 0) group[0].fetch_add(counts.positive, std::memory_order_relaxed);
    if (counts.negative != 0) group[1].fetch_add(counts.negative, std::memory_order_relaxed);
    t += length * size;
    index += length;
    n -= length;
  }
}

// How many of the n elements from `index` on the kernel gets at a time: whole blocks, or all.
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
void count_targets(const Job& job, std::int64_t index, std::int64_t n, char* staging, F count) {
  const bool direct = job.targets->contiguous() && !math::is_half(job.target_dtype);
  while (n > 0) {
    const std::int64_t length = direct || n < kBlock ? n : kBlock;
    count(direct ? job.targets->at(index)
                 : staged(job, *job.targets, job.target_dtype, index, length,
                          buffer_of(staging, kTargetsBuffer), buffer_of(staging, kRawBuffer)),
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
    staging = job->staging + kStaging * job->staging_taken.fetch_add(1, std::memory_order_relaxed);
  }
  Partial partial;
  double block_sums[kBlocksPerRun];
  Run run = job->run;
  run.block_sums = block_sums;
  std::int64_t ignored = 0;
  for (;;) {
    const std::int64_t begin = job->next.fetch_add(job->run_length, std::memory_order_relaxed);
    if (begin >= job->count) break;
    const std::int64_t left = job->count - begin;
    const std::int64_t length = left < job->run_length ? left : job->run_length;
    const std::int64_t index = job->first + begin;
    if (job->counts) {
      count_targets(*job, index, length, staging,
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
    for (std::int64_t b = 0; b * kBlock < length; ++b) partial.add(block_sums[b]);
  }
  if (job->run.stream) stream_end();
  std::lock_guard<std::mutex> lock(job->mutex);
  job->ignored += ignored;
  if (job->run.block_sums != nullptr) job->partial.add(partial);
}

int target_index(DType dtype) {
  return math::is_integer(dtype)
             ? kTargetBool + static_cast<int>(dtype) - static_cast<int>(DType::kBool)
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
    counts_.reset(new (std::nothrow) ClassCounts[static_cast<std::size_t>(groups)]());
    weights_.reset(new (std::nothrow) double[2 * static_cast<std::size_t>(groups)]);
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
  return view.contiguous() && reinterpret_cast<std::uintptr_t>(view.at(first)) % kCacheLine == 0;
}

// The kernel with exactly these options, or one that looks at run time.
Choice find_kernel(const KernelTable& table, int scores, int target, Operation operation,
                   unsigned options) {
  Choice choice;
  if (operation < kOperations) {
    const Kernel* const kernels = table.run[scores][target][operation];
    for (int k = 0; k < kKernels && choice.run == nullptr; ++k) {
      if (kKernelOptions[k] == options) choice.run = kernels[k];
    }
    if (choice.run == nullptr && !(options & kGamma)) choice.run = kernels[kGeneralKernel];
  }
  if (choice.run == nullptr) {
    choice.run = table.focal[scores][operation];
    choice.converts = target != kTargetScores;
  }
  return choice;
}

Status execute(const Inputs& inputs, const Options& options, Operation operation,
               const Outputs& outputs) {
  const FloatEnvironment environment;  // options are rounded here as well
  const DType dtype = inputs.scores.dtype;
  const DType target_dtype = inputs.targets.dtype;
  const bool half = math::is_half(dtype);
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64 && !half) {
    return invalid("scores", "expected float16, bfloat16, float32 or float64");
  }
  if (target_dtype != dtype && !math::is_integer(target_dtype) &&
      !(half && target_dtype == DType::kFloat32)) {
    return invalid("targets",
                   half ? "expected the scores' dtype, float32, bool, uint8, int8, int32 or int64"
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
  const auto view_of = [&](const MutableArray* array, DType type) {
    return call.view(
        ConstArray(array ? array->data : nullptr, type, array ? array->strides : nullptr));
  };
  const auto type_of = [&](const MutableArray* array) {
    return half && array != nullptr && array->as_float32 ? DType::kFloat32 : dtype;
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
    // Where reads and writes together exceed the cache, written lines need not pass through it, as long
    // as they are whole: streaming stores are aligned. In place the lines are in the cache already.
    const std::int64_t traffic = 3 * call.count * call.itemsize;
    job.run.stream = kStreams && !job.stage_out && !output.same_layout(scores) &&
                     is_aligned(output, call.first) && traffic > cache_size();
  }
  if (outputs.hessian != nullptr && call.count > 0) {
    status = call.check_output(*outputs.hessian, hessian, scores, targets, weight);
    if (status.ok() && (hessian.same_layout(output) || call.overlap(hessian, output))) {
      status = invalid("out", "expected no overlap with the Hessian");
    }
    if (!status.ok()) {
      return std::strcmp(status.argument, "out") == 0 ? invalid("hessian", status.message) : status;
    }
    job.hessian = &hessian;
    job.stage_hessian = math::is_half(job.hessian_dtype) || !hessian.contiguous();
    job.run.stream = job.run.stream && !job.stage_hessian && !hessian.same_layout(scores) &&
                     is_aligned(hessian, call.first);
  }

  // ---- Options ----
  // One value per channel, by a stride on axis 1 alone.
  std::int64_t channel_strides[kMaxDims] = {};
  if (options.pos_weight_count > 1) channel_strides[1] = sizeof(double);
  const View pos_weight(options.pos_weight, sizeof(double), inputs.shape, inputs.ndim,
                        channel_strides, 0);
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
      job.stage_weight = !weight.contiguous() || options.weight.dtype != job.dtype;
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
  job.kernel = find_kernel(*table, computed, job.target, operation, job.run.options);
  job.run.options |= kArrays;  // where there are any
  job.kernel_of_arrays = find_kernel(*table, computed, job.target, operation, job.run.options);

  // ---- Class weights ----
  const math::Groups groups = math::groups_of(options, inputs.shape, inputs.ndim, call.total);
  const bool counts_groups = options.balance != Balance::kNone && options.class_weights == nullptr;
  ClassTable classes;
  const double* class_weights = options.class_weights;
  std::int64_t class_strides[kMaxDims] = {};
  constexpr std::int64_t kPair = 2 * sizeof(double);
  if (groups.count > 1) {
    if (options.balance_per_channel) class_strides[1] = kPair;
    if (options.balance == Balance::kImage) {
      class_strides[0] = options.balance_per_channel ? inputs.shape[1] * kPair : kPair;
    }
  }

  int threads = 1;
  status = find_threads(&threads);
  if (!status.ok()) return status;
  if (call.count < kSerial) threads = 1;
  job.by_block = job.stage_scores || job.stage_targets || job.stage_weight ||
                 job.pos_weight != nullptr || job.stage_out || job.stage_hessian ||
                 job.kernel.converts;
  const bool staged = job.by_block || (has_class_weights && groups.count > 1);
  const std::int64_t blocks = (call.count + kBlock - 1) / kBlock;
  if (threads > blocks) threads = blocks > 1 ? static_cast<int>(blocks) : 1;
  std::int64_t blocks_per_run = (blocks + 4 * threads - 1) / (4 * threads);
  if (blocks_per_run > kBlocksPerRun || threads == 1) blocks_per_run = kBlocksPerRun;
  job.run_length = blocks_per_run * kBlock;

  Staging staging;
  if (staged && call.count > 0) {
    job.staging = staging.get(kStaging * threads);
    if (job.staging == nullptr) return out_of_memory();
  }

  // ---- Counting ----
  const bool gradient = operation != kForward && operation != kElementwise;
  const bool needs_valid =
      gradient && options.normalization == Normalization::kValid && (ignore.on || uncertain);
  const bool needs_foreground = options.normalization == Normalization::kForeground &&
                                (gradient || outputs.divisor != nullptr);
  std::int64_t n_valid = call.count, n_foreground = 0;
  if (counts_groups || needs_foreground || needs_valid) {
    job.groups = counts_groups ? groups : math::Groups{call.total > 0 ? call.total : 1, 1};
    if (!classes.allocate(job.groups.count)) return out_of_memory();
    job.class_counts = classes.counts();
    job.counts = true;
    if (needs_valid && !uncertain) job.count_ignored = table->count_ignored[computed][job.target];
    if (counts_groups || needs_foreground || uncertain) {
      job.count_classes = table->count_classes[computed][job.target];
    }
    run_parallel(threads, work, &job);
    job.counts = false;
    const bool integers = math::is_integer(target_dtype);
    const bool no_positive = ignore.matches(1, integers), no_negative = ignore.matches(0, integers);
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
      outputs.class_weights[k] = class_weights != nullptr ? class_weights[k] : 1;
    }
    return Status();
  }
  job.groups = groups;
  const View positive(class_weights, kPair, inputs.shape, inputs.ndim, class_strides, 0);
  const double* const second = class_weights != nullptr ? class_weights + 1 : nullptr;
  const View negative(second, kPair, inputs.shape, inputs.ndim, class_strides, 0);
  if (has_class_weights && groups.count == 1) {
    for (int k = 0; k < 2; ++k) job.run.class_weight[k] = class_weights[k];
  } else if (has_class_weights) {
    job.class_weight[0] = &positive;
    job.class_weight[1] = &negative;
  }

  // ---- The pass ----
  if (gradient) {
    const double scale = options.loss_weight /
                         math::divisor(options, call.batch_size, n_valid, call.total, n_foreground);
    job.run.scale = job.is_float64() ? scale : static_cast<float>(scale);
  }
  double unused;
  job.run.block_sums = outputs.partial != nullptr ? &unused : nullptr;  // each thread has its own
  run_parallel(threads, work, &job);
  if (outputs.partial != nullptr) {
    *outputs.partial = job.partial;
    outputs.partial->n_total = call.count;
    outputs.partial->n_valid = call.count - job.ignored;
  }
  if (outputs.divisor != nullptr) {
    *outputs.divisor =
        math::divisor(options, call.batch_size, call.count - job.ignored, call.count, n_foreground);
  }
  return Status();
}

}  // namespace

Status forward(const Inputs& inputs, const Options& options, Partial* partial, double* divisor) {
  Outputs outputs;
  outputs.partial = partial;
  outputs.divisor = divisor;
  return execute(inputs, options, kForward, outputs);
}

Status elementwise(const Inputs& inputs, const Options& options, const MutableArray& losses) {
  Outputs outputs;
  outputs.out = &losses;
  return execute(inputs, options, kElementwise, outputs);
}

Status backward(const Inputs& inputs, const Options& options, const MutableArray& gradient) {
  Outputs outputs;
  outputs.out = &gradient;
  return execute(inputs, options, kBackward, outputs);
}

Status forward_backward(const Inputs& inputs, const Options& options, Partial* partial,
                        const MutableArray& gradient, double* divisor) {
  Outputs outputs;
  outputs.partial = partial;
  outputs.divisor = divisor;
  outputs.out = &gradient;
  return execute(inputs, options, kForwardBackward, outputs);
}

Status forward_backward(const Inputs& inputs, const Options& options, Partial* partial,
                        const MutableArray& gradient, const MutableArray& hessian,
                        double* divisor) {
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

Status class_weights(const Inputs& inputs, const Options& options, double* weights) {
  Outputs outputs;
  outputs.class_weights = weights;
  return execute(inputs, options, kForward, outputs);
}

double divisor(const Inputs& inputs, const Options& options, const Partial& partial) {
  return math::divisor(options, inputs.ndim > 0 ? inputs.shape[0] : 1, partial.n_valid,
                       partial.n_total);
}

double loss(const Inputs& inputs, const Options& options, const Partial& partial) {
  return divide(partial, divisor(inputs, options, partial));
}

double divide(const Partial& partial, double divisor) {
  const FloatEnvironment environment;
  // Compilers move a division across a change of mode, but not accesses to volatile variables.
  const volatile double sum = partial.sum();
  const volatile double result = sum / divisor;
  return result;
}

}  // namespace cpu
}  // namespace sigmoid_ce
