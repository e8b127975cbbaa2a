// The C++ API: checks the arguments, cuts the elements into runs for the threads, stages what is not
// contiguous, and adds the block sums.
#include "sigmoid_ce/cpu.h"

#include <atomic>
#include <cstdlib>
#include <mutex>
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

// One call, and what its threads share.
struct Job {
  Kernel kernel = nullptr;
  CountKernel count_kernel = nullptr;  // instead of `kernel`
  Run run = Run();                     // all but the pointers of a run

  const View* scores = nullptr;
  const View* targets = nullptr;
  const View* pos_weight = nullptr;  // one double per element, by strides; null: uniform or off
  const View* weight = nullptr;      // null: uniform or off
  const View* out = nullptr;
  DType dtype = DType::kFloat32;  // of the scores
  DType weight_dtype = DType::kFloat32;
  bool stage_scores = false, stage_targets = false, stage_weight = false;
  bool stage_out = false;  // through a buffer, then scattered

  std::int64_t first = 0, count = 0;
  std::int64_t run_length = 0;
  char* staging = nullptr;  // kStaging bytes for each thread that comes
  std::atomic<int> staging_taken{0};
  std::atomic<std::int64_t> next{0};

  std::mutex mutex;
  Partial partial;
  std::int64_t ignored = 0;
};

// Buffers of one thread: scores, targets, pos_weight, weight, out.
constexpr std::int64_t kBuffer = kBlock * 8;
constexpr std::int64_t kStaging = 5 * kBuffer;

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

template <class T>
void gather_weight(const Job& job, std::int64_t index, std::int64_t n, T* out) {
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
    default:
      job.weight->gather<T>(index, n, out);
      break;
  }
}

void gather_bytes(const View& view, std::int64_t index, std::int64_t n, char* out) {
  switch (view.itemsize()) {
    case 1:
      view.gather<std::uint8_t>(index, n, reinterpret_cast<std::uint8_t*>(out));
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
  if (view.itemsize() == 4) {
    view.scatter(index, n, reinterpret_cast<const std::uint32_t*>(values));
  } else {
    view.scatter(index, n, reinterpret_cast<const std::uint64_t*>(values));
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
  if (job->stage_scores) {
    gather_bytes(*job->scores, index, n, staging);
    run->scores = staging;
  } else {
    run->scores = job->scores->at(index);
  }
  if (job->stage_targets) {
    gather_bytes(*job->targets, index, n, staging + kBuffer);
    run->targets = staging + kBuffer;
  } else {
    run->targets = job->targets->at(index);
  }
  if (job->pos_weight != nullptr) {
    T* const pos_weights = reinterpret_cast<T*>(staging + 2 * kBuffer);
    job->pos_weight->gather<double>(index, n, pos_weights);
    run->pos_weights = pos_weights;
  }
  if (job->weight != nullptr) {
    if (job->stage_weight) {
      T* const weights = reinterpret_cast<T*>(staging + 3 * kBuffer);
      gather_weight(*job, index, n, weights);
      run->weights = weights;
    } else {
      run->weights = job->weight->at(index);
    }
  }
  if (job->out != nullptr) {
    run->out = job->stage_out ? staging + 4 * kBuffer : job->out->at(index);
  }
  run->n = n;
  job->kernel(run);
  if (job->stage_out) scatter_bytes(*job->out, index, n, staging + 4 * kBuffer);
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
    if (job->count_kernel != nullptr) {
      if (job->stage_targets) {
        gather_bytes(*job->targets, index, length, staging);
        run.targets = staging;
      } else {
        run.targets = job->targets->at(index);
      }
      run.n = length;
      ignored += job->count_kernel(run);
      continue;
    }
    if (job->dtype == DType::kFloat32) {
      run_elements<float>(job, index, length, staging, &run);
    } else {
      run_elements<double>(job, index, length, staging, &run);
    }
    ignored += run.ignored;
    if (job->run.block_sums == nullptr) continue;
    for (std::int64_t b = 0; b * kBlock < length; ++b) partial.add(block_sums[b]);
  }
  if (job->run.stream) stream_end();
  std::lock_guard<std::mutex> lock(job->mutex);
  job->ignored += ignored;
  if (job->run.block_sums != nullptr) job->partial.add(partial);
}

int target_index(const Inputs& inputs) {
  if (inputs.targets.dtype == inputs.scores.dtype) return kTargetScores;
  return kTargetBool + static_cast<int>(inputs.targets.dtype) - static_cast<int>(DType::kBool);
}

Status execute(const Inputs& inputs, const Options& options, Operation operation, Partial* partial,
               const MutableArray* out) {
  const FloatEnvironment environment;  // options are rounded here as well
  const DType dtype = inputs.scores.dtype;
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64) {
    return invalid("scores", "expected float32 or float64");
  }
  if (inputs.targets.dtype != dtype && !math::is_integer(inputs.targets.dtype)) {
    return invalid("targets", "expected the scores' dtype, bool, uint8, int8, int32 or int64");
  }
  Call call(inputs, options);
  Status status = call.check();
  if (!status.ok()) return status;
  const KernelTable* table = nullptr;
  status = find_kernels(&table);
  if (!status.ok()) return status;

  Job job;
  job.first = call.first;
  job.count = call.count;
  job.dtype = inputs.scores.dtype;
  const View scores = call.view(inputs.scores);
  const View targets = call.view(inputs.targets);
  const View weight = call.view(options.weight);
  const View output = call.view(
      ConstArray(out ? out->data : nullptr, inputs.scores.dtype, out ? out->strides : nullptr));
  job.scores = &scores;
  job.targets = &targets;
  job.stage_scores = !scores.contiguous();
  job.stage_targets = !targets.contiguous();

  if (out != nullptr && call.count > 0) {
    status = call.check_output(*out, output, scores, targets, weight);
    if (!status.ok()) return status;
    job.out = &output;
    job.stage_out = !output.contiguous();
    // Where reads and writes together exceed the cache, written lines need not pass through it, as long
    // as they are whole: streaming stores are aligned. In place the lines are in the cache already.
    const std::int64_t traffic = 3 * call.count * call.itemsize;
    const bool aligned = reinterpret_cast<std::uintptr_t>(output.at(call.first)) % kCacheLine == 0;
    job.run.stream = kStreams && !job.stage_out && !output.same_layout(scores) && aligned &&
                     traffic > cache_size();
  }

  // One value per channel, by a stride on axis 1 alone.
  std::int64_t channel_strides[kMaxDims] = {};
  if (options.pos_weight_count > 1) channel_strides[1] = sizeof(double);
  const View pos_weight(options.pos_weight, sizeof(double), inputs.shape, inputs.ndim,
                        channel_strides, 0);
  if (options.pos_weight_count > 0) {
    job.run.has_pos_weight = true;
    job.run.pos_weight = options.pos_weight[0];
    if (options.pos_weight_count > 1) job.pos_weight = &pos_weight;
  }
  job.run.weight = 1;
  job.weight_dtype = options.weight.dtype;
  bool general = job.run.has_pos_weight;
  if (options.weight.data != nullptr && call.count > 0) {
    general = true;
    job.weight = &weight;
    if (weight.uniform()) {
      if (job.dtype == DType::kFloat32) {
        float w;
        gather_weight(job, call.first, 1, &w);
        job.run.weight = w;
      } else {
        gather_weight(job, call.first, 1, &job.run.weight);
      }
      job.weight = nullptr;
    } else {
      job.stage_weight = !weight.contiguous() || options.weight.dtype != inputs.scores.dtype;
    }
  }
  const math::IgnoreRule ignore(inputs.targets.dtype, options);
  job.run.has_ignore_label = ignore.on;
  job.run.ignore_low = ignore.low;
  job.run.ignore_high = ignore.high;
  job.run.ignore_label = ignore.label;
  general = general || job.run.has_ignore_label;

  const int scores_index = job.dtype == DType::kFloat32 ? 0 : 1;
  const int target = target_index(inputs);
  job.kernel = table->run[scores_index][target][operation][general];

  int threads = 1;
  status = find_threads(&threads);
  if (!status.ok()) return status;
  if (call.count < kSerial) threads = 1;
  const bool staged = job.stage_scores || job.stage_targets || job.stage_weight ||
                      job.pos_weight != nullptr || job.stage_out;
  const std::int64_t blocks = (call.count + kBlock - 1) / kBlock;
  if (threads > blocks) threads = blocks > 1 ? static_cast<int>(blocks) : 1;
  std::int64_t blocks_per_run = staged ? 1 : (blocks + 4 * threads - 1) / (4 * threads);
  if (blocks_per_run > kBlocksPerRun || threads == 1) blocks_per_run = staged ? 1 : kBlocksPerRun;
  job.run_length = blocks_per_run * kBlock;

  Staging staging;
  if (staged && call.count > 0) {
    job.staging = staging.get(kStaging * threads);
    if (job.staging == nullptr) {
      return Status(Code::kOutOfMemory, "", "no memory for the staging buffers");
    }
  }

  const bool gradient = operation == kBackward || operation == kForwardBackward;
  if (gradient) {
    std::int64_t n_valid = call.count;
    if (job.run.has_ignore_label && options.normalization == Normalization::kValid) {
      job.count_kernel = table->count[scores_index][target];
      run_parallel(threads, work, &job);
      n_valid -= job.ignored;
      job.count_kernel = nullptr;
      job.ignored = 0;
      job.next.store(0);
      job.staging_taken.store(0);
    }
    const double scale =
        options.loss_weight / math::divisor(options, call.batch_size, n_valid, call.total);
    job.run.scale = job.dtype == DType::kFloat32 ? static_cast<float>(scale) : scale;
  }
  double unused;
  job.run.block_sums = partial != nullptr ? &unused : nullptr;  // each thread has its own
  run_parallel(threads, work, &job);
  if (partial != nullptr) {
    *partial = job.partial;
    partial->n_total = call.count;
    partial->n_valid = call.count - job.ignored;
  }
  return Status();
}

}  // namespace

Status forward(const Inputs& inputs, const Options& options, Partial* partial) {
  return execute(inputs, options, kForward, partial, nullptr);
}

Status elementwise(const Inputs& inputs, const Options& options, const MutableArray& losses) {
  return execute(inputs, options, kElementwise, nullptr, &losses);
}

Status backward(const Inputs& inputs, const Options& options, const MutableArray& gradient) {
  return execute(inputs, options, kBackward, nullptr, &gradient);
}

Status forward_backward(const Inputs& inputs, const Options& options, Partial* partial,
                        const MutableArray& gradient) {
  return execute(inputs, options, kForwardBackward, partial, &gradient);
}

double divisor(const Inputs& inputs, const Options& options, const Partial& partial) {
  return math::divisor(options, inputs.ndim > 0 ? inputs.shape[0] : 1, partial.n_valid,
                       partial.n_total);
}

double loss(const Inputs& inputs, const Options& options, const Partial& partial) {
  const FloatEnvironment environment;
  // Compilers move a division across a change of mode, but not accesses to volatile variables.
  const volatile double sum = partial.sum();
  const volatile double result = sum / divisor(inputs, options, partial);
  return result;
}

}  // namespace cpu
}  // namespace sigmoid_ce
