// The functions of sigmoid_ce/cpu.h, computed on a CUDA device: copies the arguments there and the results back, and
// compares what the pass leaves beside them. SIGMOID_CE_DIGEST_OFFSET: so many elements from an aligned address.
#ifndef SIGMOID_CE_TESTS_DIGEST_CUDA_H_
#define SIGMOID_CE_TESTS_DIGEST_CUDA_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "math/call.h"
#include "sigmoid_ce/cpu.h"
#include "sigmoid_ce/cuda.h"

namespace digest_cuda {

using sigmoid_ce::ConstArray;
using sigmoid_ce::DType;
using sigmoid_ce::Inputs;
using sigmoid_ce::MutableArray;
using sigmoid_ce::Options;
using sigmoid_ce::Partial;
using sigmoid_ce::Status;

inline void must(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(2);
}

inline std::size_t offset() {
  const char* text = std::getenv("SIGMOID_CE_DIGEST_OFFSET");
  return text == nullptr ? 0 : std::strtoul(text, nullptr, 10);
}

// Device memory with a copy of `size` bytes, or with bytes of 1, which no result has all over.
class Buffer {
 public:
  Buffer(const void* data, std::size_t size, std::size_t itemsize) : size_(size) {
    must(cudaMalloc(&memory_, size + offset() * itemsize + 1));
    data_ = static_cast<char*>(memory_) + offset() * itemsize;
    if (size == 0) return;
    if (data != nullptr) {
      must(cudaMemcpy(data_, data, size, cudaMemcpyHostToDevice));
    } else {
      must(cudaMemsetAsync(data_, 1, size, nullptr));
    }
  }
  ~Buffer() { cudaFree(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* get() const { return data_; }
  void copy_to(void* host) const {
    if (size_ > 0) must(cudaMemcpy(host, data_, size_, cudaMemcpyDeviceToHost));
  }

 private:
  void* memory_ = nullptr;
  void* data_ = nullptr;
  std::size_t size_;
};

// The bytes from element 0 of an array on; strides of the cases are not negative.
inline std::size_t span(const ConstArray& array, const Inputs& inputs) {
  std::int64_t count = 1, last = 0;
  for (int d = 0; d < inputs.ndim; ++d) {
    count *= inputs.shape[d];
    if (array.strides != nullptr) last += (inputs.shape[d] - 1) * array.strides[d];
  }
  const std::int64_t itemsize = sigmoid_ce::math::size_of(array.dtype);
  if (count == 0) return 0;
  return static_cast<std::size_t>(array.strides == nullptr ? count * itemsize : last + itemsize);
}

enum Pass { kForward, kElementwise, kBackward, kBoth, kHessian, kTargets };

inline Status run(Pass pass, Inputs inputs, const Options& options, Partial* partial,
                  const MutableArray& out, double* divisor_out = nullptr,
                  const MutableArray& hessian = MutableArray()) {
  const std::size_t item = static_cast<std::size_t>(sigmoid_ce::math::size_of(inputs.scores.dtype));
  const std::size_t size = span(inputs.scores, inputs);
  const Buffer scores(inputs.scores.data, size, item);
  const Buffer targets(inputs.targets.data, span(inputs.targets, inputs),
                       static_cast<std::size_t>(sigmoid_ce::math::size_of(inputs.targets.dtype)));
  const Inputs host = inputs;
  inputs.scores.data = scores.get();
  inputs.targets.data = targets.get();

  sigmoid_ce::cuda::Options o;
  static_cast<Options&>(o) = options;
  std::vector<float> narrow(options.pos_weight, options.pos_weight + options.pos_weight_count);
  const std::size_t channels = narrow.size() > 1 ? narrow.size() : 0;
  const bool wide = inputs.scores.dtype == DType::kFloat64;
  const Buffer pos_weights(wide ? static_cast<const void*>(options.pos_weight) : narrow.data(),
                           channels * (wide ? 8 : 4), wide ? 8 : 4);
  if (channels > 0) {
    o.pos_weight = nullptr;
    o.pos_weight_count = 0;
    o.channel_pos_weight = pos_weights.get();
    o.channel_pos_weight_count = static_cast<std::int64_t>(channels);
  }
  const bool weighted = options.weight.data != nullptr;
  const Buffer weight(options.weight.data, weighted ? span(options.weight, inputs) : 0,
                      static_cast<std::size_t>(sigmoid_ce::math::size_of(options.weight.dtype)));
  if (weighted) o.weight.data = weight.get();

  const Buffer workspace(nullptr, sigmoid_ce::cuda::workspace_size(inputs, o), 8);
  const Buffer written(nullptr, size, item), curve(nullptr, size, item);
  struct Left {
    double loss, divisor;
    Partial partial;
  } left;
  const Buffer results(nullptr, sizeof left, 8);
  const std::size_t groups =
      static_cast<std::size_t>(sigmoid_ce::cuda::class_weight_groups(inputs, o));
  const Buffer class_weights(nullptr, groups * 2 * sizeof(double), 8);
  sigmoid_ce::cuda::Results r;
  r.loss = results.get();
  r.divisor = static_cast<double*>(results.get()) + 1;
  r.partial = reinterpret_cast<Partial*>(r.divisor + 1);
  r.class_weights = static_cast<double*>(class_weights.get());
  const MutableArray array(written.get(), out.strides);
  const MutableArray curve_array(curve.get(), hessian.strides);
  Status status;
  switch (pass) {
    case kForward:
      status = sigmoid_ce::cuda::forward(inputs, o, r, workspace.get(), nullptr);
      break;
    case kElementwise:
      status = sigmoid_ce::cuda::elementwise(inputs, o, array, workspace.get(), nullptr);
      break;
    case kBackward:
      status = sigmoid_ce::cuda::backward(inputs, o, array, workspace.get(), nullptr);
      break;
    case kBoth:
      status = sigmoid_ce::cuda::forward_backward(inputs, o, r, array, workspace.get(), nullptr);
      break;
    case kHessian:
      status = sigmoid_ce::cuda::forward_backward(inputs, o, r, array, curve_array, workspace.get(),
                                                  nullptr);
      break;
    case kTargets:
      status = sigmoid_ce::cuda::backward_targets(inputs, o, array, workspace.get(), nullptr);
      break;
  }
  if (!status.ok()) return status;
  must(cudaDeviceSynchronize());
  if (pass != kForward) written.copy_to(out.data);
  if (pass == kHessian) curve.copy_to(hessian.data);
  if (partial == nullptr) return status;
  results.copy_to(&left);
  *partial = left.partial;
  // Of the targets that are 1 the CPU counts its own, and the caller compares.
  const double divisor = options.normalization == sigmoid_ce::Normalization::kForeground
                             ? left.divisor
                             : sigmoid_ce::cpu::divisor(host, options, left.partial);
  const double loss = sigmoid_ce::cpu::divide(left.partial, divisor);
  if (divisor_out != nullptr) *divisor_out = left.divisor;
  const bool same_loss = loss == left.loss || (loss != loss && left.loss != left.loss);
  if (!same_loss || divisor != left.divisor) {
    std::fprintf(stderr, "loss %.17g and not %.17g, divisor %.17g and not %.17g\n", left.loss, loss,
                 left.divisor, divisor);
    std::exit(1);
  }
  // Without class weights the CPU is not asked: it does not take all types of targets that the GPU takes.
  std::vector<double> wanted_weights(2 * groups, 1.0), got_weights(2 * groups);
  const Status counted = sigmoid_ce::math::has_class_weights(options)
                             ? sigmoid_ce::cpu::class_weights(host, options, wanted_weights.data())
                             : Status();
  class_weights.copy_to(got_weights.data());
  if (!counted.ok() || got_weights != wanted_weights) {
    std::fprintf(stderr, "the class weights differ\n");
    std::exit(1);
  }
  // The same with a loss in float32, and the divisor and the class weights of the gradient from the device.
  if (pass == kForward) {
    r.loss_dtype = DType::kFloat32;
    status = sigmoid_ce::cuda::forward(inputs, o, r, workspace.get(), nullptr);
    must(cudaDeviceSynchronize());
    results.copy_to(&left);
    float narrowed;
    std::memcpy(&narrowed, &left.loss, sizeof narrowed);
    const float wanted = static_cast<float>(loss);
    if (!status.ok() || !(narrowed == wanted || (wanted != wanted && narrowed != narrowed))) {
      std::fprintf(stderr, "float32 loss %.9g and not %.9g\n", narrowed, wanted);
      std::exit(1);
    }
    std::vector<char> given(size), computed(size);
    status = sigmoid_ce::cuda::backward(inputs, o, array, workspace.get(), nullptr);
    must(cudaDeviceSynchronize());
    written.copy_to(computed.data());
    o.gradient_divisor = r.divisor;
    if (sigmoid_ce::math::has_class_weights(options)) o.device_class_weights = r.class_weights;
    if (status.ok())
      status = sigmoid_ce::cuda::backward(inputs, o, array, workspace.get(), nullptr);
    must(cudaDeviceSynchronize());
    written.copy_to(given.data());
    if (!status.ok() || given != computed) {
      std::fprintf(stderr, "what the forward pass left gives another gradient\n");
      std::exit(1);
    }
  }
  return status;
}

inline Status forward(const Inputs& inputs, const Options& options, Partial* partial,
                      double* divisor = nullptr) {
  return run(kForward, inputs, options, partial, MutableArray(), divisor);
}
inline Status elementwise(const Inputs& inputs, const Options& options, const MutableArray& out) {
  return run(kElementwise, inputs, options, nullptr, out);
}
inline Status backward(const Inputs& inputs, const Options& options, const MutableArray& out) {
  return run(kBackward, inputs, options, nullptr, out);
}
inline Status forward_backward(const Inputs& inputs, const Options& options, Partial* partial,
                               const MutableArray& out) {
  return run(kBoth, inputs, options, partial, out);
}
inline Status forward_backward(const Inputs& inputs, const Options& options, Partial* partial,
                               const MutableArray& out, const MutableArray& hessian) {
  return run(kHessian, inputs, options, partial, out, nullptr, hessian);
}
inline Status backward_targets(const Inputs& inputs, const Options& options,
                               const MutableArray& out) {
  return run(kTargets, inputs, options, nullptr, out);
}

}  // namespace digest_cuda

#endif  // SIGMOID_CE_TESTS_DIGEST_CUDA_H_
