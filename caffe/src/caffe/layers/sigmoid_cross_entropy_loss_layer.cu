#include <vector>

#include "caffe/layers/sigmoid_cross_entropy_loss_layer.hpp"

namespace caffe {

// The kernels are in util/sigmoid_ce.cu. They go into the default stream, as
// all of Caffe's do.

template <typename Dtype>
sigmoid_ce::cuda::Options SigmoidCrossEntropyLossLayer<Dtype>::GPUOptions(
    const vector<Blob<Dtype>*>& bottom) {
  sigmoid_ce::cuda::Options options;
  static_cast<sigmoid_ce::Options&>(options) = options_;
  if (pos_weight_.size() > 1) {
    // Copied to the GPU the first time.
    options.channel_pos_weight = channel_pos_weight_.gpu_data();
    options.channel_pos_weight_count = pos_weight_.size();
  } else {
    options.pos_weight = pos_weight_.data();
    options.pos_weight_count = pos_weight_.size();
  }
  if (bottom.size() == 3) {
    options.weight = sigmoid_ce::ConstArray(bottom[2]->gpu_data(), DataType(),
        weight_strides_.data());
  } else if (weight_.size() > 1) {
    options.weight = sigmoid_ce::ConstArray(channel_weight_.gpu_data(),
        DataType(), weight_strides_.data());
  } else if (!weight_.empty()) {
    options.uniform_weight = weight_.data();
  }
  return options;
}

template <typename Dtype>
void* SigmoidCrossEntropyLossLayer<Dtype>::Workspace(
    const sigmoid_ce::Inputs& inputs,
    const sigmoid_ce::cuda::Options& options) {
  const size_t size = sigmoid_ce::cuda::workspace_size(inputs, options);
  if (!workspace_ || workspace_->size() < size) {
    workspace_.reset(new SyncedMemory(size));
  }
  return workspace_->mutable_gpu_data();
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::Forward_gpu(
    const vector<Blob<Dtype>*>& bottom, const vector<Blob<Dtype>*>& top) {
  const sigmoid_ce::Inputs inputs =
      Inputs(bottom[0]->gpu_data(), bottom[1]->gpu_data());
  sigmoid_ce::cuda::Options options = GPUOptions(bottom);
  sigmoid_ce::cuda::Results results;
  results.loss = top[0]->mutable_gpu_data();
  results.loss_dtype = DataType();
  results.divisor = static_cast<double*>(divisor_->mutable_gpu_data());
  if (class_weights_) {
    results.class_weights =
        static_cast<double*>(class_weights_->mutable_gpu_data());
  }
  Check(sigmoid_ce::cuda::forward(inputs, options, results,
      Workspace(inputs, options), NULL));
  if (top.size() == 2) {
    options.device_class_weights = results.class_weights;
    Check(sigmoid_ce::cuda::elementwise(inputs, options,
        sigmoid_ce::MutableArray(top[1]->mutable_gpu_data()),
        class_weights_ ? Workspace(inputs, options) : NULL, NULL));
  }
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::Backward_gpu(
    const vector<Blob<Dtype>*>& top, const vector<bool>& propagate_down,
    const vector<Blob<Dtype>*>& bottom) {
  CheckPropagation(top, propagate_down);
  if (!propagate_down[0]) { return; }
  CheckForwardDone();
  const sigmoid_ce::Inputs inputs =
      Inputs(bottom[0]->gpu_data(), bottom[1]->gpu_data());
  sigmoid_ce::cuda::Options options = GPUOptions(bottom);
  options.gradient_divisor = static_cast<const double*>(divisor_->gpu_data());
  if (class_weights_) {
    options.device_class_weights =
        static_cast<const double*>(class_weights_->gpu_data());
  }
  options.loss_weight = top[0]->cpu_diff()[0];
  // With the divisor at hand nothing is added up or counted. Weights of the
  // classes are kept in the workspace in the type of the data.
  Check(sigmoid_ce::cuda::backward(inputs, options,
      sigmoid_ce::MutableArray(bottom[0]->mutable_gpu_diff()),
      class_weights_ ? Workspace(inputs, options) : NULL, NULL));
}

#ifndef SIGMOID_CE_PLUGIN
INSTANTIATE_LAYER_GPU_FUNCS(SigmoidCrossEntropyLossLayer);
#endif

}  // namespace caffe
