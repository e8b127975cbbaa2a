#include <vector>

#include "caffe/layers/sigmoid_cross_entropy_loss_layer.hpp"

namespace caffe {

// This version of sigmoid_ce has no CUDA kernels: the layer computes on the
// CPU, at the price of copies, and says so once. This file takes the place of
// the built-in layer's, which does not fit the class any more; without it a GPU
// build does not link.

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::Forward_gpu(
    const vector<Blob<Dtype>*>& bottom, const vector<Blob<Dtype>*>& top) {
  LOG_FIRST_N(WARNING, 1) << Name() << "computes on the CPU, since this version"
      << " of sigmoid_ce has no CUDA kernels";
  Forward_cpu(bottom, top);
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::Backward_gpu(
    const vector<Blob<Dtype>*>& top, const vector<bool>& propagate_down,
    const vector<Blob<Dtype>*>& bottom) {
  Backward_cpu(top, propagate_down, bottom);
}

#ifndef SIGMOID_CE_PLUGIN
INSTANTIATE_LAYER_GPU_FUNCS(SigmoidCrossEntropyLossLayer);
#endif

}  // namespace caffe
