#ifndef CAFFE_SIGMOID_CROSS_ENTROPY_LOSS_LAYER_HPP_
#define CAFFE_SIGMOID_CROSS_ENTROPY_LOSS_LAYER_HPP_

#include <stdint.h>

#include <string>
#include <vector>

#include "caffe/blob.hpp"
#include "caffe/common.hpp"
#include "caffe/layer.hpp"
#include "caffe/proto/caffe.pb.h"
#include "caffe/syncedmem.hpp"

#include "caffe/layers/loss_layer.hpp"
#include "caffe/util/sigmoid_ce.hpp"

namespace caffe {

/**
 * @brief The cross-entropy loss of sigmoid(x) and targets, of sigmoid_ce:
 *        @f$ E = \frac{1}{d} \sum_i w_i \left[ (1 - t_i) \log(1 + e^{x_i}) +
 *        p_c t_i \log(1 + e^{-x_i}) \right] @f$
 *
 * Without weights p and w this is @f$ \max(x, 0) - x t + \log(1 + e^{-|x|})
 * @f$, the loss of the layer that Caffe has under this name. It is computed as
 * such, so that no score overflows and none loses its tail, and summed exactly;
 * one pass over memory, on the CPU in as many threads as the process may use
 * (SIGMOID_CE_NUM_THREADS). CPU and GPU give the same bits. On the GPU the loss
 * stays there until someone reads it, and nothing waits for the GPU.
 *
 * @param bottom input Blob vector (length 2 or 3)
 *   -# @f$ (N \times C \times H \times W) @f$
 *      the scores @f$ x \in [-\infty, +\infty] @f$, of any shape with at least
 *      one axis; axis 1 are the channels
 *   -# as many elements, the first axis of the same length
 *      the targets @f$ t @f$, usually in @f$ [0, 1] @f$
 *   -# optional: the element weights @f$ w @f$, of the shape of the scores or
 *      with axes of length 1 in it, which then serve all; missing axes at the
 *      end count as such, so that (N) is a weight per sample. An element of
 *      weight 0 has loss and gradient 0, whatever its score.
 * @param top output Blob vector (length 1 or 2)
 *   -# @f$ () @f$ the loss
 *   -# optional: the loss of each element, of the shape of the scores, without
 *      the divisor and the loss_weight. Its own loss_weight is 0, and nothing
 *      that learns may come after it: no gradient flows back from it.
 *
 * Options:
 *   - loss_param: ignore_label, normalization, normalize, as in every loss of
 *     Caffe. An element whose target, truncated to int, equals ignore_label has
 *     loss and gradient 0 and does not count as valid. The divisor d is max(1,
 *     .) of the number of elements (FULL), of elements not ignored (VALID), of
 *     shape(0) (BATCH_SIZE, the default), or 1 (NONE).
 *   - python_param.param_str: JSON, in any Caffe; and the fields of
 *     sigmoid_cross_entropy_loss_param where caffe.proto has them, in the order
 *     in which they work:
 *     - uncertain: "soft" (default), or "ignore": targets other than 0 and 1 are
 *       ignored as those of ignore_label are
 *     - balance: weights of the classes by P and M, the numbers of targets that
 *       are 1 and 0, ignored ones aside. "image": M / (P + M) for positives and
 *       P / (P + M) for negatives, counted for each index of axis 0; "batch":
 *       the same, counted over all; "batch_mean": V / (2 k) and V / (2 (V - k))
 *       with V = P + M and k = P, kept in [1, V - 1]; "none" (default).
 *       balance_per_channel: true counts for each index of axis 1 by itself
 *     - negative_scale: a factor on the negatives' weight
 *     - alpha: factors alpha and 1 - alpha on the positives' and the negatives'
 *     - label_smoothing s: t becomes t (1 - s) + s / 2
 *     - weight: w for all elements, or one per channel
 *     - pos_weight: p, a number, or one per channel
 *     - gamma: focal loss, the factor r^gamma with r = t (1 - sigmoid(x)) +
 *       (1 - t) sigmoid(x)
 *     - divisor: d itself; normalization: "foreground": d = max(1, P)
 */
template <typename Dtype>
class SigmoidCrossEntropyLossLayer : public LossLayer<Dtype> {
 public:
  explicit SigmoidCrossEntropyLossLayer(const LayerParameter& param)
      : LossLayer<Dtype>(param) {}
  virtual void LayerSetUp(const vector<Blob<Dtype>*>& bottom,
      const vector<Blob<Dtype>*>& top);
  virtual void Reshape(const vector<Blob<Dtype>*>& bottom,
      const vector<Blob<Dtype>*>& top);

  virtual inline const char* type() const { return "SigmoidCrossEntropyLoss"; }
  virtual inline int ExactNumBottomBlobs() const { return -1; }
  virtual inline int MinBottomBlobs() const { return 2; }
  virtual inline int MaxBottomBlobs() const { return 3; }
  virtual inline int ExactNumTopBlobs() const { return -1; }
  virtual inline int MinTopBlobs() const { return 1; }
  virtual inline int MaxTopBlobs() const { return 2; }
  /// Only the scores have a gradient.
  virtual inline bool AllowForceBackward(const int bottom_index) const {
    return bottom_index == 0;
  }

 protected:
  virtual void Forward_cpu(const vector<Blob<Dtype>*>& bottom,
      const vector<Blob<Dtype>*>& top);
  virtual void Forward_gpu(const vector<Blob<Dtype>*>& bottom,
      const vector<Blob<Dtype>*>& top);

  /// The gradient with respect to the scores, times the top's diff (the
  /// loss_weight). Targets and weights have none: propagate_down[1] and [2]
  /// must be false. The divisor and the weights of the classes are those of the
  /// last Forward.
  virtual void Backward_cpu(const vector<Blob<Dtype>*>& top,
      const vector<bool>& propagate_down, const vector<Blob<Dtype>*>& bottom);
  virtual void Backward_gpu(const vector<Blob<Dtype>*>& top,
      const vector<bool>& propagate_down, const vector<Blob<Dtype>*>& bottom);

  /// Fatal where a gradient is wanted that there is not: that of targets or
  /// weights, or one that comes from the losses of the elements.
  void CheckPropagation(const vector<Blob<Dtype>*>& top,
      const vector<bool>& propagate_down) const;
  /// Fatal unless there is one value, or one for each channel.
  void CheckChannels(const char* option, size_t values,
      const Blob<Dtype>& scores) const;
  /// Groups of elements that `balance` counts by themselves.
  int64_t Groups() const;
  /// The kernels' arguments, of data on the CPU or on the GPU.
  sigmoid_ce::Inputs Inputs(const Dtype* scores, const Dtype* targets) const;
  sigmoid_ce::Options CPUOptions(const vector<Blob<Dtype>*>& bottom) const;
  sigmoid_ce::cuda::Options GPUOptions(const vector<Blob<Dtype>*>& bottom);
  /// GPU memory that a call of the kernels needs.
  void* Workspace(const sigmoid_ce::Inputs& inputs,
                  const sigmoid_ce::cuda::Options& options);
  static sigmoid_ce::DType DataType() {
    return sizeof(Dtype) == sizeof(float) ? sigmoid_ce::DType::kFloat32
                                          : sigmoid_ce::DType::kFloat64;
  }
  /// Fatal before the first Forward.
  void CheckForwardDone() const;
  /// Fatal unless the kernels could do what was asked.
  void Check(const sigmoid_ce::Status& status) const;
  /// How messages begin.
  string Name() const;

  /// What SetUp read; arrays are filled in by CPUOptions() and GPUOptions().
  sigmoid_ce::Options options_;
  vector<double> pos_weight_;
  vector<double> weight_;
  /// The same in the type of the data: for the GPU, where there is one per
  /// channel, and the weights for the CPU.
  Blob<Dtype> channel_pos_weight_;
  Blob<Dtype> channel_weight_;

  /// Of the scores, and the element weights' steps along it in bytes.
  vector<int64_t> shape_;
  vector<int64_t> weight_strides_;

  /// What the last Forward divided by, a double, on the device where that ran:
  /// a Backward on the other one copies it. Uninitialized before.
  shared_ptr<SyncedMemory> divisor_;
  /// And the weights of the classes that it counted, where there is a balance:
  /// two doubles for each group. Backward does not count again.
  shared_ptr<SyncedMemory> class_weights_;
  /// Where the blocks of the GPU add up: a few hundred bytes of its memory, and
  /// 16 for each group of a balance.
  shared_ptr<SyncedMemory> workspace_;
};

}  // namespace caffe

#endif  // CAFFE_SIGMOID_CROSS_ENTROPY_LOSS_LAYER_HPP_
