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

template <typename T>
struct Option {
  Option() : given(false), value() {}
  void Set(const T& what) {
    given = true;
    value = what;
  }

  bool given;
  T value;
};

// What a prototxt may ask for beyond loss_param.
struct Parameters {
  vector<double> pos_weight;
  vector<double> weight;
  Option<double> divisor;
  Option<string> uncertain;
  Option<double> label_smoothing;
  Option<string> balance;
  Option<bool> balance_per_channel;
  Option<double> negative_scale;
  Option<double> gamma;
  Option<double> alpha;
  Option<string> normalization;
};

// ---- sigmoid_cross_entropy_loss_param, where caffe.proto has it ----

// Overloads for LayerParameter with and without the message, and for a message
// with and without a field, which earlier versions did not write: the one with
// int is better where it exists.
template <typename Proto>
auto HasMessage(const Proto& proto, int)
    -> decltype(proto.has_sigmoid_cross_entropy_loss_param()) {
  return proto.has_sigmoid_cross_entropy_loss_param();
}

template <typename Proto>
bool HasMessage(const Proto& proto, ...) {
  return false;
}

#define SIGMOID_CE_READ_FIELD(field)                                          \
  template <typename Message>                                                 \
  auto Read_##field(const Message& message, int, Parameters* parameters)      \
      -> decltype(message.has_##field(), void()) {                            \
    if (message.has_##field()) { parameters->field.Set(message.field()); }    \
  }                                                                           \
  template <typename Message>                                                 \
  void Read_##field(const Message& message, ...) {}

SIGMOID_CE_READ_FIELD(divisor)
SIGMOID_CE_READ_FIELD(uncertain)
SIGMOID_CE_READ_FIELD(label_smoothing)
SIGMOID_CE_READ_FIELD(balance)
SIGMOID_CE_READ_FIELD(balance_per_channel)
SIGMOID_CE_READ_FIELD(negative_scale)
SIGMOID_CE_READ_FIELD(gamma)
SIGMOID_CE_READ_FIELD(alpha)
SIGMOID_CE_READ_FIELD(normalization)

#undef SIGMOID_CE_READ_FIELD

// One number in the messages of earlier versions.
template <typename Message>
auto ReadWeight(const Message& message, int, Parameters* parameters)
    -> decltype(message.weight_size(), void()) {
  for (int i = 0; i < message.weight_size(); ++i) {
    parameters->weight.push_back(message.weight(i));
  }
}

template <typename Message>
void ReadWeight(const Message& message, char, Parameters* parameters) {
  if (message.has_weight()) { parameters->weight.push_back(message.weight()); }
}

template <typename Proto>
auto ReadMessage(const Proto& proto, int, Parameters* parameters)
    -> decltype(proto.sigmoid_cross_entropy_loss_param(), void()) {
  const auto& message = proto.sigmoid_cross_entropy_loss_param();
  for (int i = 0; i < message.pos_weight_size(); ++i) {
    parameters->pos_weight.push_back(message.pos_weight(i));
  }
  ReadWeight(message, 0, parameters);
  Read_divisor(message, 0, parameters);
  Read_uncertain(message, 0, parameters);
  Read_label_smoothing(message, 0, parameters);
  Read_balance(message, 0, parameters);
  Read_balance_per_channel(message, 0, parameters);
  Read_negative_scale(message, 0, parameters);
  Read_gamma(message, 0, parameters);
  Read_alpha(message, 0, parameters);
  Read_normalization(message, 0, parameters);
}

template <typename Proto>
void ReadMessage(const Proto& proto, ...) {}

// ---- param_str ----

// Reads values of JSON, and says in the layer's name what it cannot read.
class Reader {
 public:
  Reader(const string& name, const string& key) : name_(name), key_(key) {}

  double Number(const JSON& value) const {
    // As C writes numbers, whatever locale the program has set.
    const boost::property_tree::stream_translator<char, std::char_traits<char>,
        std::allocator<char>, double> in_c(std::locale::classic());
    const boost::optional<double> number =
        value.get_value_optional<double>(in_c);
    CHECK(number && value.empty()) << Expected("a number", value);
    return *number;
  }

  void Read(const JSON& value, Option<double>* option) const {
    option->Set(Number(value));
  }

  void Read(const JSON& value, Option<string>* option) const {
    CHECK(value.empty()) << Expected("a string", value);
    option->Set(value.data());
  }

  void Read(const JSON& value, Option<bool>* option) const {
    const bool is_true = value.data() == "true";
    CHECK(value.empty() && (is_true || value.data() == "false"))
        << Expected("true or false", value);
    option->Set(is_true);
  }

  void Read(const JSON& value, vector<double>* numbers) const {
    if (value.empty()) { numbers->push_back(Number(value)); }
    for (JSON::const_iterator item = value.begin(); item != value.end();
         ++item) {
      CHECK(item->first.empty()) << name_ << "param_str: " << key_
          << ": expected a number or an array of numbers, got an object";
      numbers->push_back(Number(item->second));
    }
  }

 private:
  string Expected(const string& what, const JSON& value) const {
    return name_ + "param_str: " + key_ + ": expected " + what + ", got " +
        (value.empty() ? "\"" + value.data() + "\"" : "an array or object");
  }

  string name_, key_;
};

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
    const Reader reader(name, key);
    if (key == "pos_weight") {
      reader.Read(value, &parameters->pos_weight);
    } else if (key == "weight") {
      reader.Read(value, &parameters->weight);
    } else if (key == "divisor") {
      reader.Read(value, &parameters->divisor);
    } else if (key == "uncertain") {
      reader.Read(value, &parameters->uncertain);
    } else if (key == "label_smoothing") {
      reader.Read(value, &parameters->label_smoothing);
    } else if (key == "balance") {
      reader.Read(value, &parameters->balance);
    } else if (key == "balance_per_channel") {
      reader.Read(value, &parameters->balance_per_channel);
    } else if (key == "negative_scale") {
      reader.Read(value, &parameters->negative_scale);
    } else if (key == "gamma") {
      reader.Read(value, &parameters->gamma);
    } else if (key == "alpha") {
      reader.Read(value, &parameters->alpha);
    } else if (key == "normalization") {
      reader.Read(value, &parameters->normalization);
    } else {
      LOG(FATAL) << name << "param_str: unknown option \"" << key
                 << "\", expected pos_weight, weight, divisor, uncertain, "
                 << "label_smoothing, balance, balance_per_channel, "
                 << "negative_scale, gamma, alpha or normalization";
    }
  }
}

// ---- Values ----

void CheckWeights(const string& name, const char* option,
                  const vector<double>& weights, double largest) {
  for (int i = 0; i < weights.size(); ++i) {
    // NaN is refused as well.
    CHECK(weights[i] >= 0 && weights[i] <= largest) << name << option
        << ": expected finite values of 0 or more, got " << weights[i];
  }
}

// Sets the options that need no shape to be checked.
void ReadFamily(const string& name, const Parameters& parameters,
                sigmoid_ce::Options* options) {
  const string& uncertain = parameters.uncertain.value;
  if (parameters.uncertain.given && uncertain != "soft") {
    CHECK_EQ(uncertain, "ignore") << name
        << "uncertain: expected \"soft\" or \"ignore\", got \"" << uncertain
        << "\"";
    options->uncertain = sigmoid_ce::Uncertain::kIgnore;
  }
  const string& balance = parameters.balance.value;
  if (parameters.balance.given && balance != "none") {
    if (balance == "image") {
      options->balance = sigmoid_ce::Balance::kImage;
    } else if (balance == "batch") {
      options->balance = sigmoid_ce::Balance::kBatch;
    } else if (balance == "batch_mean") {
      options->balance = sigmoid_ce::Balance::kBatchMean;
    } else {
      LOG(FATAL) << name << "balance: expected \"none\", \"image\", "
                 << "\"batch\" or \"batch_mean\", got \"" << balance << "\"";
    }
  }
  options->balance_per_channel = parameters.balance_per_channel.value;
  CHECK(!options->balance_per_channel ||
        options->balance != sigmoid_ce::Balance::kNone) << name
      << "balance_per_channel: expected a balance (\"image\", \"batch\" or "
      << "\"batch_mean\") beside it, got none";
  if (parameters.label_smoothing.given) {
    const double smoothing = parameters.label_smoothing.value;
    CHECK(smoothing >= 0 && smoothing < 1) << name
        << "label_smoothing: expected a number of 0 or more and below 1, got "
        << smoothing;
    options->label_smoothing = smoothing;
  }
  if (parameters.negative_scale.given) {
    const double scale = parameters.negative_scale.value;
    CHECK(scale >= 0 && scale <= std::numeric_limits<float>::max()) << name
        << "negative_scale: expected a number of 0 or more that is finite in "
        << "float32, got "
        << scale;
    options->negative_scale = scale;
  }
  if (parameters.gamma.given) {
    const double gamma = parameters.gamma.value;
    CHECK(gamma >= 0 && gamma <= 1e6) << name
        << "gamma: expected a number from 0 to 1e6, got " << gamma;
    options->gamma = gamma;
  }
  if (parameters.alpha.given) {
    const double alpha = parameters.alpha.value;
    CHECK(alpha >= 0 && alpha <= 1) << name
        << "alpha: expected a number from 0 to 1, got " << alpha;
    options->has_alpha = true;
    options->alpha = alpha;
  }
}

// One of three places says what the sum is divided by.
void ReadDivisor(const string& name, const Parameters& parameters,
                 bool in_loss_param, sigmoid_ce::Options* options) {
  const string& normalization = parameters.normalization.value;
  if (parameters.normalization.given) {
    CHECK_EQ(normalization, "foreground") << name
        << "normalization: expected \"foreground\" (loss_param has the "
        << "others), got \"" << normalization << "\"";
    CHECK(!in_loss_param) << name << "normalization \"foreground\" and "
        << "loss_param's normalization are both there; give one";
    CHECK(!parameters.divisor.given) << name << "normalization "
        << "\"foreground\" and divisor are both there; give one";
    options->normalization = sigmoid_ce::Normalization::kForeground;
  }
  if (parameters.divisor.given) {
    const double divisor = parameters.divisor.value;
    CHECK(divisor > 0 && divisor <= std::numeric_limits<double>::max())
        << name << "divisor: expected a finite value above 0, got " << divisor;
    CHECK(!in_loss_param) << name << "divisor and loss_param's normalization "
        << "are both there; give one";
    options->normalization = sigmoid_ce::Normalization::kNumber;
    options->divisor = divisor;
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

  if (top.size() == 2) {
    // Caffe wants one for each top.
    if (this->layer_param_.loss_weight_size() == 1) {
      this->layer_param_.add_loss_weight(0);
    }
    CHECK(param.loss_weight_size() < 2 || param.loss_weight(1) == 0) << name
        << "loss_weight: expected 0 for the second top, the losses of the "
        << "elements, from which no gradient flows, got "
        << param.loss_weight(1);
  }

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
  weight_ = parameters.weight;
  const double largest = std::numeric_limits<Dtype>::max();
  sigmoid_ce_layer::CheckWeights(name, "pos_weight", pos_weight_, largest);
  sigmoid_ce_layer::CheckWeights(name, "weight", weight_, largest);
  CHECK(weight_.empty() || bottom.size() == 2) << name << "weight and a third "
      << "bottom with element weights are both there; give one";
  sigmoid_ce_layer::ReadFamily(name, parameters, &options_);
  sigmoid_ce_layer::ReadDivisor(name, parameters,
      has_normalization || loss_param.has_normalize(), &options_);
  if (pos_weight_.size() > 1) {
    channel_pos_weight_.Reshape(vector<int>(1, pos_weight_.size()));
    std::copy(pos_weight_.begin(), pos_weight_.end(),
              channel_pos_weight_.mutable_cpu_data());
  }
  if (!weight_.empty()) {
    channel_weight_.Reshape(vector<int>(1, weight_.size()));
    std::copy(weight_.begin(), weight_.end(),
              channel_weight_.mutable_cpu_data());
  }
  divisor_.reset(new SyncedMemory(sizeof(double)));
  class_weights_.reset();
  workspace_.reset();
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::CheckChannels(
    const char* option, size_t values, const Blob<Dtype>& scores) const {
  CHECK(values <= 1 || (shape_.size() >= 2 && values == shape_[1])) << Name()
      << option << ": expected one value, or one per channel (axis 1) of "
      << "scores of shape " << scores.shape_string() << ", got " << values;
}

template <typename Dtype>
int64_t SigmoidCrossEntropyLossLayer<Dtype>::Groups() const {
  int64_t groups = 1;
  if (options_.balance == sigmoid_ce::Balance::kImage) { groups = shape_[0]; }
  if (options_.balance_per_channel) { groups *= shape_[1]; }
  return groups;
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
  CheckChannels("pos_weight", pos_weight_.size(), *bottom[0]);
  CheckChannels("weight", weight_.size(), *bottom[0]);
  // One weight for all has no step along any axis.
  weight_strides_.assign(shape_.size(), 0);
  if (weight_.size() > 1) { weight_strides_[1] = sizeof(Dtype); }
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
  if (options_.balance != sigmoid_ce::Balance::kNone) {
    CHECK(shape_.size() >= 2 ||
          options_.balance != sigmoid_ce::Balance::kImage) << Name()
        << "balance: \"image\" expects scores with an axis of images and "
        << "another one, got shape " << bottom[0]->shape_string();
    CHECK(shape_.size() >= 2 || !options_.balance_per_channel) << Name()
        << "balance_per_channel: expected scores with channels (axis 1), got "
        << "shape " << bottom[0]->shape_string();
    const size_t size = 2 * sizeof(double) *
        std::max<int64_t>(Groups(), 1);
    if (!class_weights_ || class_weights_->size() < size) {
      class_weights_.reset(new SyncedMemory(size));
    }
  }
  if (top.size() == 2) {
    for (int i = 0; i < bottom.size(); ++i) {
      CHECK(top[1] != bottom[i]) << Name() << "the second top, the losses of "
          << "the elements, cannot be in place of bottom " << i;
    }
    top[1]->ReshapeLike(*bottom[0]);
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
  } else if (!weight_.empty()) {
    options.weight = sigmoid_ce::ConstArray(channel_weight_.cpu_data(),
        DataType(), weight_strides_.data());
  }
  return options;
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::Forward_cpu(
    const vector<Blob<Dtype>*>& bottom, const vector<Blob<Dtype>*>& top) {
  const sigmoid_ce::Inputs inputs =
      Inputs(bottom[0]->cpu_data(), bottom[1]->cpu_data());
  sigmoid_ce::Options options = CPUOptions(bottom);
  if (class_weights_) {
    double* weights = static_cast<double*>(class_weights_->mutable_cpu_data());
    Check(sigmoid_ce::cpu::class_weights(inputs, options, weights));
    options.class_weights = weights;
  }
  double* divisor = static_cast<double*>(divisor_->mutable_cpu_data());
  sigmoid_ce::Partial sum;
  Check(sigmoid_ce::cpu::forward(inputs, options, &sum, divisor));
  top[0]->mutable_cpu_data()[0] =
      static_cast<Dtype>(sigmoid_ce::cpu::divide(sum, *divisor));
  if (top.size() == 2) {
    Check(sigmoid_ce::cpu::elementwise(inputs, options,
        sigmoid_ce::MutableArray(top[1]->mutable_cpu_data())));
  }
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::CheckForwardDone() const {
  CHECK(divisor_->head() != SyncedMemory::UNINITIALIZED &&
        !(class_weights_ &&
          class_weights_->head() == SyncedMemory::UNINITIALIZED)) << Name()
      << "Backward before Forward";
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::CheckPropagation(
    const vector<Blob<Dtype>*>& top, const vector<bool>& propagate_down) const {
  for (int i = 1; i < propagate_down.size(); ++i) {
    CHECK(!propagate_down[i]) << Name() << "cannot backpropagate to "
        << (i == 1 ? "targets" : "weights") << " (bottom " << i << ")";
  }
  // Where nothing that learns comes after the losses nobody writes their diff,
  // and there is no memory for it.
  if (top.size() < 2 || top[1]->count() == 0 ||
      top[1]->diff()->head() == SyncedMemory::UNINITIALIZED) {
    return;
  }
  const Dtype* diff = top[1]->cpu_diff();
  for (int i = 0; i < top[1]->count(); ++i) {
    CHECK_EQ(diff[i], 0) << Name() << "cannot backpropagate from the losses of "
        << "the elements (top 1)";
  }
}

template <typename Dtype>
void SigmoidCrossEntropyLossLayer<Dtype>::Backward_cpu(
    const vector<Blob<Dtype>*>& top, const vector<bool>& propagate_down,
    const vector<Blob<Dtype>*>& bottom) {
  CheckPropagation(top, propagate_down);
  if (!propagate_down[0]) { return; }
  CheckForwardDone();
  sigmoid_ce::Options options = CPUOptions(bottom);
  options.normalization = sigmoid_ce::Normalization::kNumber;
  options.divisor = *static_cast<const double*>(divisor_->cpu_data());
  if (class_weights_) {
    options.class_weights =
        static_cast<const double*>(class_weights_->cpu_data());
  }
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
