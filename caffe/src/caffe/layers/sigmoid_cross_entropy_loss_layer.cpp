// Boost.Bind as it has always been, without a note from each file.
#ifndef BOOST_BIND_GLOBAL_PLACEHOLDERS
#define BOOST_BIND_GLOBAL_PLACEHOLDERS
#endif

#include <algorithm>
#include <limits>
#include <locale>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "boost/property_tree/json_parser.hpp"
#include "boost/property_tree/ptree.hpp"

#include "caffe/layers/sigmoid_cross_entropy_loss_layer.hpp"

namespace caffe {
namespace sigmoid_ce_layer {
namespace {

typedef boost::property_tree::ptree JSON;

// What a prototxt may ask for beyond loss_param.
struct Parameters {
  vector<double> pos_weight;
  vector<double> weight;   // empty or one
  vector<double> divisor;  // empty or one
};

// ---- sigmoid_cross_entropy_loss_param, where caffe.proto has it ----

// Overloads for LayerParameter with and without the message: the one with int
// is better where it exists.
template <typename Proto>
auto HasMessage(const Proto& proto, int)
    -> decltype(proto.has_sigmoid_cross_entropy_loss_param()) {
  return proto.has_sigmoid_cross_entropy_loss_param();
}

template <typename Proto>
bool HasMessage(const Proto& proto, ...) {
  return false;
}

template <typename Proto>
auto ReadMessage(const Proto& proto, int, Parameters* parameters)
    -> decltype(proto.sigmoid_cross_entropy_loss_param(), void()) {
  const auto& message = proto.sigmoid_cross_entropy_loss_param();
  for (int i = 0; i < message.pos_weight_size(); ++i) {
    parameters->pos_weight.push_back(message.pos_weight(i));
  }
  if (message.has_weight()) { parameters->weight.push_back(message.weight()); }
  if (message.has_divisor()) {
    parameters->divisor.push_back(message.divisor());
  }
}

template <typename Proto>
void ReadMessage(const Proto& proto, ...) {}

// ---- param_str ----

double ReadNumber(const string& name, const string& key, const JSON& value) {
  // As C writes numbers, whatever locale the program has set.
  const boost::property_tree::stream_translator<char, std::char_traits<char>,
      std::allocator<char>, double> in_c(std::locale::classic());
  const boost::optional<double> number =
      value.get_value_optional<double>(in_c);
  CHECK(number && value.empty())
      << name << "param_str: " << key << ": expected a number, got "
      << (value.empty() ? "\"" + value.data() + "\"" : "an array or object");
  return *number;
}

void ReadParamStr(const string& name, const string& text,
                  Parameters* parameters) {
  JSON json;
  std::istringstream stream(text);
  try {
    boost::property_tree::read_json(stream, json);
  } catch (const boost::property_tree::json_parser_error& error) {
    LOG(FATAL) << name << "param_str: expected a JSON object such as "
               << "{\"pos_weight\": 100}, got " << text << " ("
               << error.message() << ")";
  }
  // An empty array or string is the same to Boost as an empty object.
  const size_t start = text.find_first_not_of(" \t\r\n");
  CHECK(start != string::npos && text[start] == '{') << name
      << "param_str: expected a JSON object, got " << text;
  std::set<string> seen;
  for (JSON::const_iterator it = json.begin(); it != json.end(); ++it) {
    const string& key = it->first;
    const JSON& value = it->second;
    CHECK(seen.insert(key).second)
        << name << "param_str: " << key << " is there twice";
    if (key == "pos_weight") {
      if (value.empty()) {
        parameters->pos_weight.push_back(ReadNumber(name, key, value));
      }
      for (JSON::const_iterator item = value.begin(); item != value.end();
           ++item) {
        CHECK(item->first.empty()) << name << "param_str: " << key
            << ": expected a number or an array of numbers, got an object";
        parameters->pos_weight.push_back(ReadNumber(name, key, item->second));
      }
    } else if (key == "weight") {
      parameters->weight.push_back(ReadNumber(name, key, value));
    } else if (key == "divisor") {
      parameters->divisor.push_back(ReadNumber(name, key, value));
    } else {
      LOG(FATAL) << name << "param_str: unknown option \"" << key
                 << "\", expected pos_weight, weight or divisor";
    }
  }
}

// ---- loss_param ----

// Old trees have no `normalization`. Values go by name: forks number them
// differently.
template <typename Proto>
auto ReadNormalization(const string& name, const Proto& proto, int,
                       sigmoid_ce::Options* options)
    -> decltype(proto.has_normalization()) {
  if (!proto.has_normalization()) { return false; }
  if (proto.normalization() == Proto::FULL) {
    options->normalization = sigmoid_ce::Normalization::kFull;
  } else if (proto.normalization() == Proto::VALID) {
    options->normalization = sigmoid_ce::Normalization::kValid;
  } else if (proto.normalization() == Proto::BATCH_SIZE) {
    options->normalization = sigmoid_ce::Normalization::kBatchSize;
  } else if (proto.normalization() == Proto::NONE) {
    options->normalization = sigmoid_ce::Normalization::kNone;
  } else {
    LOG(FATAL) << name << "loss_param: normalization: expected FULL, VALID, "
               << "BATCH_SIZE or NONE, got the number "
               << static_cast<int>(proto.normalization());
  }
  return true;
}

template <typename Proto>
bool ReadNormalization(const string& name, const Proto& proto, ...) {
  return false;
}

}  // namespace
}  // namespace sigmoid_ce_layer

template <typename Dtype>
string SigmoidCrossEntropyLossLayer<Dtype>::Name() const {
  return string(this->type()) + " layer \"" + this->layer_param_.name() +
         "\": ";
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::Check(
    const sigmoid_ce::Status& status) const {
  CHECK(status.ok()) << Name() << status.argument
      << (*status.argument ? ": " : "") << status.message;
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::LayerSetUp(
    const vector<Blob<Dtype>*>& bottom, const vector<Blob<Dtype>*>& top) {
  LossLayer<Dtype>::LayerSetUp(bottom, top);
  const LayerParameter& param = this->layer_param_;
  const LossParameter& loss_param = param.loss_param();
  const string name = Name();
  options_ = sigmoid_ce::Options();

  options_.has_ignore_label = loss_param.has_ignore_label();
  options_.ignore_label = loss_param.ignore_label();
  const bool has_normalization = sigmoid_ce_layer::ReadNormalization(
      name, loss_param, 0, &options_);
  if (!has_normalization) {
    options_.normalization = loss_param.has_normalize() &&
        loss_param.normalize() ? sigmoid_ce::Normalization::kValid
                               : sigmoid_ce::Normalization::kBatchSize;
  }

  sigmoid_ce_layer::Parameters parameters;
  const bool has_message = sigmoid_ce_layer::HasMessage(param, 0);
  if (has_message) {
    sigmoid_ce_layer::ReadMessage(param, 0, &parameters);
  }
  const string& param_str = param.python_param().param_str();
  if (!param_str.empty()) {
    CHECK(!has_message) << name << "param_str and "
        << "sigmoid_cross_entropy_loss_param are both there; give one";
    sigmoid_ce_layer::ReadParamStr(name, param_str, &parameters);
  }

  pos_weight_ = parameters.pos_weight;
  for (int i = 0; i < pos_weight_.size(); ++i) {
    CHECK(pos_weight_[i] >= 0 &&
          pos_weight_[i] <= std::numeric_limits<Dtype>::max())
        << name << "pos_weight: expected finite values of 0 or more, got "
        << pos_weight_[i];
  }
  has_weight_ = !parameters.weight.empty();
  if (has_weight_) {
    const double weight = parameters.weight[0];
    CHECK(weight >= 0 && weight <= std::numeric_limits<Dtype>::max())
        << name << "weight: expected a finite value of 0 or more, got "
        << weight;
    CHECK_EQ(bottom.size(), 2) << name << "weight and a third bottom with "
        << "element weights are both there; give one";
    weight_ = weight;
    typed_weight_ = weight;
  }
  if (!parameters.divisor.empty()) {
    const double divisor = parameters.divisor[0];
    CHECK(divisor > 0 && divisor <= std::numeric_limits<double>::max())
        << name << "divisor: expected a finite value above 0, got " << divisor;
    CHECK(!has_normalization && !loss_param.has_normalize())
        << name << "divisor and loss_param's normalization are both there; "
        << "give one";
    options_.normalization = sigmoid_ce::Normalization::kNumber;
    options_.divisor = divisor;
  }
  if (pos_weight_.size() > 1) {
    channel_pos_weight_.Reshape(vector<int>(1, pos_weight_.size()));
    std::copy(pos_weight_.begin(), pos_weight_.end(),
              channel_pos_weight_.mutable_cpu_data());
  }
  divisor_.reset(new SyncedMemory(sizeof(double)));
  workspace_.reset();
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::Reshape(
    const vector<Blob<Dtype>*>& bottom, const vector<Blob<Dtype>*>& top) {
  CHECK_GE(bottom[0]->num_axes(), 1) << Name()
      << "scores: expected at least one axis, got a scalar";
  CHECK(bottom[1]->num_axes() >= 1 &&
        bottom[1]->shape(0) == bottom[0]->shape(0)) << Name()
      << "targets: expected the first axis of scores of shape "
      << bottom[0]->shape_string() << ", got shape "
      << bottom[1]->shape_string();
  LossLayer<Dtype>::Reshape(bottom, top);
  CHECK_EQ(bottom[0]->count(), bottom[1]->count()) << Name()
      << "targets: expected as many elements as scores of shape "
      << bottom[0]->shape_string() << " have, got shape "
      << bottom[1]->shape_string();
  shape_.assign(bottom[0]->shape().begin(), bottom[0]->shape().end());
  CHECK_LE(shape_.size(), sigmoid_ce::kMaxDims) << Name()
      << "scores: got shape " << bottom[0]->shape_string();
  CHECK(pos_weight_.size() <= 1 ||
        (shape_.size() >= 2 && pos_weight_.size() == shape_[1])) << Name()
      << "pos_weight: expected one value, or one per channel (axis 1) of "
      << "scores of shape " << bottom[0]->shape_string() << ", got "
      << pos_weight_.size();
  // One weight for all has no step along any axis.
  weight_strides_.assign(shape_.size(), 0);
  if (bottom.size() == 3) {
    const vector<int>& weight_shape = bottom[2]->shape();
    // As many elements as scores go in their order, as targets do.
    const bool full = bottom[2]->count() == bottom[0]->count();
    bool fits = full || weight_shape.size() <= shape_.size();
    int64_t stride = sizeof(Dtype);
    for (int i = shape_.size() - 1; full && i >= 0; --i) {
      weight_strides_[i] = stride;
      stride *= shape_[i];
    }
    for (int i = weight_shape.size() - 1; !full && fits && i >= 0; --i) {
      fits = weight_shape[i] == 1 || weight_shape[i] == shape_[i];
      weight_strides_[i] = weight_shape[i] == 1 ? 0 : stride;
      stride *= weight_shape[i];
    }
    CHECK(fits) << Name() << "weights: expected as many elements as scores of "
        << "shape " << bottom[0]->shape_string() << " have, or axes of length "
        << "1 in that shape, got "
        << bottom[2]->shape_string();
  }
}

template <typename Dtype>
sigmoid_ce::Inputs SigmoidCrossEntropyLossLayer<Dtype>::Inputs(
    const Dtype* scores, const Dtype* targets) const {
  sigmoid_ce::Inputs inputs;
  inputs.scores = sigmoid_ce::ConstArray(scores, DataType());
  inputs.targets = sigmoid_ce::ConstArray(targets, DataType());
  inputs.shape = shape_.data();
  inputs.ndim = static_cast<int>(shape_.size());
  return inputs;
}

template <typename Dtype>
sigmoid_ce::Options SigmoidCrossEntropyLossLayer<Dtype>::CPUOptions(
    const vector<Blob<Dtype>*>& bottom) const {
  sigmoid_ce::Options options = options_;
  options.pos_weight = pos_weight_.data();
  options.pos_weight_count = pos_weight_.size();
  if (bottom.size() == 3) {
    options.weight = sigmoid_ce::ConstArray(bottom[2]->cpu_data(), DataType(),
        weight_strides_.data());
  } else if (has_weight_) {
    options.weight = sigmoid_ce::ConstArray(&typed_weight_, DataType(),
        weight_strides_.data());
  }
  return options;
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::Forward_cpu(
    const vector<Blob<Dtype>*>& bottom, const vector<Blob<Dtype>*>& top) {
  const sigmoid_ce::Inputs inputs =
      Inputs(bottom[0]->cpu_data(), bottom[1]->cpu_data());
  const sigmoid_ce::Options options = CPUOptions(bottom);
  sigmoid_ce::Partial sum;
  Check(sigmoid_ce::cpu::forward(inputs, options, &sum));
  *static_cast<double*>(divisor_->mutable_cpu_data()) =
      sigmoid_ce::cpu::divisor(inputs, options, sum);
  top[0]->mutable_cpu_data()[0] =
      static_cast<Dtype>(sigmoid_ce::cpu::loss(inputs, options, sum));
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::CheckForwardDone() const {
  CHECK(divisor_->head() != SyncedMemory::UNINITIALIZED) << Name()
      << "Backward before Forward";
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::CheckPropagateDown(
    const vector<bool>& propagate_down) const {
  for (int i = 1; i < propagate_down.size(); ++i) {
    CHECK(!propagate_down[i]) << Name() << "cannot backpropagate to "
        << (i == 1 ? "targets" : "weights") << " (bottom " << i << ")";
  }
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::Backward_cpu(
    const vector<Blob<Dtype>*>& top, const vector<bool>& propagate_down,
    const vector<Blob<Dtype>*>& bottom) {
  CheckPropagateDown(propagate_down);
  if (!propagate_down[0]) { return; }
  CheckForwardDone();
  sigmoid_ce::Options options = CPUOptions(bottom);
  options.normalization = sigmoid_ce::Normalization::kNumber;
  options.divisor = *static_cast<const double*>(divisor_->cpu_data());
  options.loss_weight = top[0]->cpu_diff()[0];
  const sigmoid_ce::Inputs inputs =
      Inputs(bottom[0]->cpu_data(), bottom[1]->cpu_data());
  Check(sigmoid_ce::cpu::backward(inputs, options,
      sigmoid_ce::MutableArray(bottom[0]->mutable_cpu_diff())));
}

#ifdef CPU_ONLY
STUB_GPU(SigmoidCrossEntropyLossLayer);
#endif

// A plugin registers the layer itself, with the host's registry.
#ifndef SIGMOID_CE_PLUGIN
INSTANTIATE_CLASS(SigmoidCrossEntropyLossLayer);
REGISTER_LAYER_CLASS(SigmoidCrossEntropyLoss);
#endif

}  // namespace caffe
