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
  } else if (has_weight_) {
    options.uniform_weight = &weight_;
  }
  return options;
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::Forward_gpu(
    const vector<Blob<Dtype>*>& bottom, const vector<Blob<Dtype>*>& top) {
  const sigmoid_ce::Inputs inputs =
      Inputs(bottom[0]->gpu_data(), bottom[1]->gpu_data());
  const sigmoid_ce::cuda::Options options = GPUOptions(bottom);
  const size_t size = sigmoid_ce::cuda::workspace_size(inputs, options);
  if (!workspace_ || workspace_->size() < size) {
    workspace_.reset(new SyncedMemory(size));
  }
  sigmoid_ce::cuda::Results results;
  results.loss = top[0]->mutable_gpu_data();
  results.loss_dtype = DataType();
  results.divisor = static_cast<double*>(divisor_->mutable_gpu_data());
  Check(sigmoid_ce::cuda::forward(inputs, options, results,
      workspace_->mutable_gpu_data(), NULL));
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::Backward_gpu(
    const vector<Blob<Dtype>*>& top, const vector<bool>& propagate_down,
    const vector<Blob<Dtype>*>& bottom) {
  CheckPropagateDown(propagate_down);
  if (!propagate_down[0]) { return; }
  CheckForwardDone();
  const sigmoid_ce::Inputs inputs =
      Inputs(bottom[0]->gpu_data(), bottom[1]->gpu_data());
  sigmoid_ce::cuda::Options options = GPUOptions(bottom);
  options.gradient_divisor = static_cast<const double*>(divisor_->gpu_data());
  options.loss_weight = top[0]->cpu_diff()[0];
  // With the divisor at hand nothing is added up: no workspace.
  Check(sigmoid_ce::cuda::backward(inputs, options,
      sigmoid_ce::MutableArray(bottom[0]->mutable_gpu_diff()), NULL, NULL));
}

#ifndef SIGMOID_CE_PLUGIN
INSTANTIATE_LAYER_GPU_FUNCS(SigmoidCrossEntropyLossLayer);
#endif

}  // namespace caffe
