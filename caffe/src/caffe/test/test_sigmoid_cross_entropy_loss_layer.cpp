#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"

#include "caffe/blob.hpp"
#include "caffe/common.hpp"
#include "caffe/layer_factory.hpp"
#include "caffe/layers/sigmoid_cross_entropy_loss_layer.hpp"

#include "caffe/test/test_caffe_main.hpp"
#include "caffe/test/test_gradient_check_util.hpp"

namespace caffe {

// What options ask for, in the formula's own terms.
struct SigmoidCEFormula {
  SigmoidCEFormula() : weight(1), mode("BATCH_SIZE"), divisor(0),
      has_ignore_label(false), ignore_label(0), ignore_uncertain(false),
      balance("none"), per_channel(false), negative_scale(1), alpha(-1),
      smoothing(0), gamma(0) {}

  vector<double> pos_weight;  // none, one, or one per channel
  double weight;
  vector<double> channel_weight;  // none, or one per channel
  string mode;  // FOREGROUND as well
  double divisor;  // above 0: in place of the mode
  bool has_ignore_label;
  int ignore_label;
  bool ignore_uncertain;
  string balance;
  bool per_channel;
  double negative_scale;
  double alpha;  // off below 0
  double smoothing;
  double gamma;

  // Whether roundings come in that the loss without the family does not have.
  bool HasFamily() const {
    return balance != "none" || negative_scale != 1 || alpha >= 0 ||
        smoothing != 0 || gamma != 0;
  }
};

// The targets of a test: 0 and 1, all between, and those of no probability.
enum SigmoidCETargets { HARD, SOFT, OUTSIDE, LABELS };

// Bounds of docs/numerics.md, each in distances from 1 to the next number, of
// the sum of the terms' sizes. The float64 sums inside a block err as well,
// which shows where the layer's own type is double.
const double kSigmoidCETerms = 4;
const double kSigmoidCESum = 25;
// A gradient is rounded twice more, by half of that: the factor loss_weight /
// divisor, and the product with it. So is a loss, once.
const double kSigmoidCEScale = 1;
// Class weights and smoothed targets: two weights, the smoothed target, 1 minus
// it, two products and their sum, half of a distance each, and one to spare.
const double kSigmoidCEFamily = 4;
// The focal factor, exp(-gamma L) with L = -log(r): for each gamma (1 + L) the
// roundings of L, which has a logarithm and a quotient.
const double kSigmoidCEFocal = 4;

template <typename Dtype>
class SigmoidCEData {
 public:
  SigmoidCEData() : top_(1, &loss_), state_(1) {
    bottom_.push_back(&scores_);
    bottom_.push_back(&targets_);
  }

  static vector<int> Shape(int a = -1, int b = -1, int c = -1, int d = -1) {
    const int axes[] = {a, b, c, d};
    vector<int> shape;
    for (int i = 0; i < 4 && axes[i] >= 0; ++i) {
      shape.push_back(axes[i]);
    }
    return shape;
  }

  // In [0, 1), the same sequence everywhere.
  double Uniform() {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return (state_ >> 11) * std::ldexp(1.0, -53);
  }

  // Bell-shaped scores of standard deviation 3.
  void FillScores() {
    Dtype* data = scores_.mutable_cpu_data();
    for (int i = 0; i < scores_.count(); ++i) {
      data[i] = 3 * (Uniform() + Uniform() + Uniform() + Uniform() - 2) *
          std::sqrt(3.0);
    }
  }

  void FillTargets(SigmoidCETargets kind) {
    Dtype* data = targets_.mutable_cpu_data();
    for (int i = 0; i < targets_.count(); ++i) {
      const double u = Uniform();
      switch (kind) {
        case HARD: data[i] = u < 0.5; break;
        case SOFT: data[i] = u; break;
        case OUTSIDE: data[i] = 6 * u - 2.5; break;
        // Hard, soft and three labels, -1 and 255 among them.
        case LABELS: data[i] = u < 0.2 ? -1 : u < 0.4 ? 255 : u < 0.5 ? 2 :
            u < 0.6 ? 0 : u < 0.7 ? 1 : 2 * u - 1; break;
      }
    }
  }

  void Fill(const vector<int>& shape, SigmoidCETargets kind) {
    scores_.Reshape(shape);
    targets_.Reshape(shape);
    FillScores();
    FillTargets(kind);
  }

  // A third bottom, with a zero now and then.
  void FillWeights(const vector<int>& shape) {
    bottom_.resize(2);
    bottom_.push_back(&weights_);
    weights_.Reshape(shape);
    Dtype* data = weights_.mutable_cpu_data();
    for (int i = 0; i < weights_.count(); ++i) {
      const double u = Uniform();
      data[i] = u < 0.1 ? 0 : 3 * u;
    }
  }

  static LayerParameter Parse(const string& options) {
    LayerParameter param;
    CHECK(google::protobuf::TextFormat::ParseFromString(options, &param))
        << options;
    param.set_name("the loss");
    param.set_type("SigmoidCrossEntropyLoss");
    return param;
  }

  // Options as the JSON of param_str, with ' for quotes.
  static string ParamStr(string json) {
    for (int i = 0; i < json.size(); ++i) {
      if (json[i] == '\'') { json.replace(i++, 1, "\\\""); }
    }
    return "python_param { param_str: \"" + json + "\" } ";
  }

  // Whether caffe.proto has the message.
  static bool HasMessage(const string& field = "pos_weight") {
    const google::protobuf::FieldDescriptor* message =
        LayerParameter::descriptor()->FindFieldByName(
            "sigmoid_cross_entropy_loss_param");
    return message != NULL &&
        message->message_type()->FindFieldByName(field) != NULL;
  }

  void SetUpLayer(const string& options) {
    SigmoidCrossEntropyLossLayer<Dtype> layer(Parse(options));
    layer.SetUp(bottom_, top_);
  }

  // The third bottom's element for an element of the scores.
  double Weight(int index) const {
    if (bottom_.size() < 3) { return 1; }
    const vector<int>& shape = weights_.shape();
    const Dtype* data = weights_.cpu_data();
    if (weights_.count() == scores_.count()) { return data[index]; }
    int offset = 0;
    for (int axis = 0; axis < shape.size(); ++axis) {
      const int place = index / scores_.count(axis + 1) % scores_.shape(axis);
      offset = offset * shape[axis] + (shape[axis] == 1 ? 0 : place);
    }
    return data[offset];
  }

  // The loss, the gradient, and what they may err by. By the textbook formula,
  // a sum of two softplus functions, which shares nothing with the layer's.
  struct Expected {
    long double loss, loss_error;
    vector<long double> losses, losses_error, gradient, gradient_error;
  };

  bool IsIgnored(const SigmoidCEFormula& formula, Dtype target) const {
    return (formula.has_ignore_label &&
            static_cast<int>(target) == formula.ignore_label) ||
        (formula.ignore_uncertain && target != 0 && target != 1);
  }

  int Channel(int index) const {
    return index / scores_.count(2) % scores_.shape(1);
  }

  // Elements that are counted with this one have the same number.
  int Group(const SigmoidCEFormula& formula, int index) const {
    const int image =
        formula.balance == "image" ? index / scores_.count(1) : 0;
    return formula.per_channel ? image * scores_.shape(1) + Channel(index)
                               : image;
  }

  // The weight of positives (k = 1) or negatives (k = 0), of which there are
  // this many.
  static long double ClassWeight(const SigmoidCEFormula& formula, int k,
                                 long double positives,
                                 long double negatives) {
    const long double all = positives + negatives;
    long double weight = 1;
    if (formula.balance == "batch_mean") {
      const long double kept =
          std::max(1.0L, std::min(positives, all - 1));
      weight = all / 2 / (k ? kept : std::max(1.0L, all - kept));
    } else if (formula.balance != "none") {
      weight = all == 0 ? 0 : (k ? negatives : positives) / all;
    }
    if (formula.alpha >= 0) {
      weight *= k ? formula.alpha : 1 - formula.alpha;
    }
    return k ? weight : weight * formula.negative_scale;
  }

  Expected Reference(const SigmoidCEFormula& formula, double top_diff) const {
    const double eps = std::numeric_limits<Dtype>::epsilon();
    const double tiny = std::numeric_limits<Dtype>::denorm_min();
    const int count = scores_.count();
    const Dtype* scores = scores_.cpu_data();
    const Dtype* targets = targets_.cpu_data();
    Expected expected;
    expected.losses.resize(count);
    expected.losses_error.resize(count);
    expected.gradient.resize(count);
    expected.gradient_error.resize(count);
    std::map<int, int> counts[2];
    int valid = 0, foreground = 0;
    for (int i = 0; i < count; ++i) {
      if (IsIgnored(formula, targets[i])) { continue; }
      ++valid;
      foreground += targets[i] == 1;
      if (targets[i] == 0 || targets[i] == 1) {
        ++counts[targets[i] == 1][Group(formula, i)];
      }
    }
    long double sum = 0, terms = 0;
    for (int i = 0; i < count; ++i) {
      if (IsIgnored(formula, targets[i])) { continue; }
      const long double x = scores[i];
      const long double t =
          targets[i] * (1 - formula.smoothing) + formula.smoothing / 2;
      long double p = 1, w = static_cast<Dtype>(formula.weight) * Weight(i);
      if (formula.pos_weight.size() == 1) {
        p = static_cast<Dtype>(formula.pos_weight[0]);
      } else if (formula.pos_weight.size() > 1) {
        p = static_cast<Dtype>(formula.pos_weight[Channel(i)]);
      }
      if (!formula.channel_weight.empty()) {
        w *= static_cast<Dtype>(formula.channel_weight[Channel(i)]);
      }
      const int group = Group(formula, i);
      const long double positive = ClassWeight(formula, 1, counts[1][group],
                                               counts[0][group]);
      const long double negative = ClassWeight(formula, 0, counts[1][group],
                                               counts[0][group]);
      // Sizes of sums, which roundings are of: 1 - t is not small where it was
      // computed from a rounded t.
      const long double size_of_t = std::abs(t);
      const long double size_of_rest =
          formula.smoothing == 0 ? std::abs(1 - t) : 1 + size_of_t;
      const long double size_of_w =
          w * (size_of_t * positive + size_of_rest * negative);
      w *= t * positive + (1 - t) * negative;
      if (w == 0) { continue; }
      const long double tail = std::log1p(std::exp(-std::abs(x)));
      const long double softplus = x > 0 ? x + tail : tail;
      const long double softplus_neg = x > 0 ? tail : tail - x;
      const long double sigmoid = 1 / (1 + std::exp(-x));
      const long double sigmoid_neg = 1 / (1 + std::exp(x));
      const long double loss = (1 - t) * softplus + p * t * softplus_neg;
      const long double loss_terms =
          size_of_rest * softplus + p * size_of_t * softplus_neg;
      const long double slope = (1 - t) * sigmoid - p * t * sigmoid_neg;
      const long double slope_terms =
          size_of_rest * sigmoid + p * size_of_t * sigmoid_neg;
      const long double r = t * sigmoid_neg + (1 - t) * sigmoid;
      const long double factor =
          formula.gamma == 0 ? 1 : std::pow(r, formula.gamma);
      // d log(factor) / d x.
      const long double rate = formula.gamma == 0 ? 0 :
          formula.gamma * (1 - 2 * t) * sigmoid * sigmoid_neg / r;
      double roundings = formula.HasFamily() ? kSigmoidCEFamily : 0;
      if (formula.gamma != 0) {
        roundings += kSigmoidCEFocal *
            (1 + formula.gamma * (1 + std::abs(std::log(r))));
      }
      const long double unit = eps * std::max(std::abs(w), size_of_w) * factor;
      expected.losses[i] = w * factor * loss;
      expected.losses_error[i] =
          2 * tiny + (kSigmoidCETerms + roundings) * unit * loss_terms;
      sum += expected.losses[i];
      terms += (kSigmoidCETerms + kSigmoidCEScale + roundings +
          (sizeof(Dtype) == sizeof(double) ? kSigmoidCESum : 0)) * unit *
          loss_terms;
      expected.gradient[i] = w * factor * (rate * loss + slope);
      expected.gradient_error[i] =
          (kSigmoidCETerms + kSigmoidCEScale + roundings) * unit *
          (std::abs(rate) * loss_terms + slope_terms);
    }
    long double divisor = 1;
    if (formula.mode == "FULL") { divisor = count; }
    if (formula.mode == "VALID") { divisor = valid; }
    if (formula.mode == "FOREGROUND") { divisor = foreground; }
    if (formula.mode == "BATCH_SIZE") { divisor = scores_.shape(0); }
    if (divisor < 1) { divisor = 1; }
    if (formula.divisor > 0) { divisor = formula.divisor; }
    expected.loss = sum / divisor;
    expected.loss_error = tiny + terms / divisor;
    for (int i = 0; i < count; ++i) {
      const long double scale = top_diff / divisor;
      expected.gradient[i] *= scale;
      expected.gradient_error[i] =
          2 * tiny + std::abs(scale) * expected.gradient_error[i];
    }
    return expected;
  }

  void Backward(Layer<Dtype>* layer) {
    vector<bool> propagate_down(bottom_.size(), false);
    propagate_down[0] = true;
    layer->Backward(top_, propagate_down, bottom_);
  }

  // One iteration of a layer that is set up.
  void CheckIteration(Layer<Dtype>* layer, const SigmoidCEFormula& formula,
                      double loss_weight = 1) {
    const Dtype weighted = layer->Forward(bottom_, top_);
    const Dtype top_diff = loss_.cpu_diff()[0];
    // A float in the prototxt, whatever the layer is.
    EXPECT_EQ(static_cast<float>(loss_weight), top_diff);
    const Expected expected = Reference(formula, top_diff);
    const Dtype loss = loss_.cpu_data()[0];
    EXPECT_LE(std::abs(loss - expected.loss), expected.loss_error)
        << "loss " << loss << ", expected " << expected.loss;
    EXPECT_EQ(weighted, loss * top_diff);
    if (top_.size() == 2) {
      ASSERT_EQ(scores_.shape(), losses_.shape());
      for (int i = 0; i < losses_.count(); ++i) {
        ASSERT_LE(std::abs(losses_.cpu_data()[i] - expected.losses[i]),
                  expected.losses_error[i])
            << "element " << i << ", score " << scores_.cpu_data()[i]
            << ", target " << targets_.cpu_data()[i] << ": loss "
            << losses_.cpu_data()[i] << ", expected " << expected.losses[i];
      }
    }
    // What is there from before must not matter.
    Dtype* diff = scores_.mutable_cpu_diff();
    for (int i = 0; i < scores_.count(); ++i) {
      diff[i] = std::numeric_limits<Dtype>::quiet_NaN();
    }
    Backward(layer);
    const Dtype* gradient = scores_.cpu_diff();
    for (int i = 0; i < scores_.count(); ++i) {
      ASSERT_LE(std::abs(gradient[i] - expected.gradient[i]),
                expected.gradient_error[i])
          << "element " << i << ", score " << scores_.cpu_data()[i]
          << ", target " << targets_.cpu_data()[i] << ": gradient "
          << gradient[i] << ", expected " << expected.gradient[i];
    }
  }

  void Check(const string& options, const SigmoidCEFormula& formula,
             double loss_weight = 1) {
    SCOPED_TRACE(options);
    SigmoidCrossEntropyLossLayer<Dtype> layer(Parse(options));
    layer.SetUp(bottom_, top_);
    CheckIteration(&layer, formula, loss_weight);
  }

  // `steepness`: the largest third derivative times 8.
  void CheckGradient(const string& options, double steepness = 1) {
    SCOPED_TRACE(options);
    SigmoidCrossEntropyLossLayer<Dtype> layer(Parse(options));
    // The truncated series of a central difference leaves step^2 times a third
    // of a derivative below 1/8; the rounded losses, of size 10 at the most,
    // leave 10 eps / step. Each has one decimal to spare.
    const bool is_double = sizeof(Dtype) == sizeof(double);
    GradientChecker<Dtype> checker(is_double ? 1e-4 : 2e-2,
                                   steepness * (is_double ? 1e-8 : 4e-4));
    if (top_.size() == 1) {
      checker.CheckGradientExhaustive(&layer, bottom_, top_, 0);
    } else {
      // From the losses of the elements there is none.
      layer.SetUp(bottom_, top_);
      checker.CheckGradientSingle(&layer, bottom_, top_, 0, 0, 0);
    }
  }

  // Asks for the second top.
  void WantLosses() { top_.resize(2, &losses_); }

  Blob<Dtype> scores_, targets_, weights_, loss_, losses_;
  vector<Blob<Dtype>*> bottom_, top_;

 private:
  uint64_t state_;
};

template <typename TypeParam>
class SigmoidCrossEntropyLossLayerTest
    : public MultiDeviceTest<TypeParam>,
      protected SigmoidCEData<typename TypeParam::Dtype> {};

TYPED_TEST_CASE(SigmoidCrossEntropyLossLayerTest, TestDtypesAndDevices);

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestByName) {
  typedef typename TypeParam::Dtype Dtype;
  this->Fill(this->Shape(10, 5), SOFT);
  shared_ptr<Layer<Dtype> > layer =
      LayerRegistry<Dtype>::CreateLayer(this->Parse(""));
  EXPECT_STREQ("SigmoidCrossEntropyLoss", layer->type());
  EXPECT_TRUE(layer->AllowForceBackward(0));
  EXPECT_FALSE(layer->AllowForceBackward(1));
  EXPECT_FALSE(layer->AllowForceBackward(2));
  layer->SetUp(this->bottom_, this->top_);
  EXPECT_EQ(0, this->loss_.num_axes());
  EXPECT_EQ(1, layer->loss(0));
  this->CheckIteration(layer.get(), SigmoidCEFormula());
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestDivisors) {
  // What loss_param holds, and the mode it comes to.
  const char* kModes[][2] = {
    {"", "BATCH_SIZE"},
    {"normalization: FULL", "FULL"},
    {"normalization: VALID", "VALID"},
    {"normalization: BATCH_SIZE", "BATCH_SIZE"},
    {"normalization: NONE", "NONE"},
    {"normalize: true", "VALID"},
    {"normalize: false", "BATCH_SIZE"},
    {"normalization: FULL normalize: true", "FULL"},
    {"normalization: VALID normalize: false", "VALID"},
  };
  const vector<int> shapes[] = {this->Shape(10, 5), this->Shape(3, 4, 6, 5),
      this->Shape(7), this->Shape(1, 6, 21), this->Shape(1, 1, 1, 1)};
  for (int i = 0; i < sizeof(kModes) / sizeof(kModes[0]); ++i) {
    const string start = string("loss_param { ") + kModes[i][0];
    for (int k = 0; k < sizeof(shapes) / sizeof(shapes[0]); ++k) {
      SigmoidCEFormula formula;
      formula.mode = kModes[i][1];
      this->Fill(shapes[k], HARD);
      this->Check(start + " }", formula);
      this->Fill(shapes[k], LABELS);
      this->Check(start + " }", formula);
      // 0 takes soft targets in (-1, 1) with it, as truncation does.
      const int kLabels[] = {0, 1, 2, -1, 255, 7};
      for (int l = 0; l < 6; ++l) {
        formula.has_ignore_label = true;
        formula.ignore_label = kLabels[l];
        std::ostringstream options;
        options << start << " ignore_label: " << kLabels[l] << " }";
        this->Check(options.str(), formula);
      }
    }
  }
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestIgnoredOnly) {
  typedef typename TypeParam::Dtype Dtype;
  this->Fill(this->Shape(4, 3), HARD);
  for (int i = 0; i < 12; ++i) {
    this->targets_.mutable_cpu_data()[i] = -1;
    this->scores_.mutable_cpu_data()[i] = i % 3 == 0 ? INFINITY :
        i % 3 == 1 ? -INFINITY : NAN;
  }
  SigmoidCrossEntropyLossLayer<Dtype> layer(this->Parse(
      "loss_param { ignore_label: -1 normalization: VALID }"));
  layer.SetUp(this->bottom_, this->top_);
  EXPECT_EQ(0, layer.Forward(this->bottom_, this->top_));
  this->Backward(&layer);
  for (int i = 0; i < 12; ++i) {
    EXPECT_EQ(0, this->scores_.cpu_diff()[i]);
  }
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestPosWeight) {
  const vector<int> shapes[] = {this->Shape(10, 3), this->Shape(2, 3, 4, 5)};
  const SigmoidCETargets kinds[] = {HARD, SOFT, OUTSIDE};
  for (int k = 0; k < 6; ++k) {
    this->Fill(shapes[k % 2], kinds[k / 2]);
    SigmoidCEFormula formula;
    formula.pos_weight.assign(1, 7.3);
    this->Check(this->ParamStr("{'pos_weight': 7.3}"), formula);
    this->Check(this->ParamStr("{'pos_weight': [7.3]}"), formula);
    formula.pos_weight.push_back(0);
    formula.pos_weight.push_back(100);
    this->Check(this->ParamStr("{'pos_weight': [7.3, 0, 1e2]}"), formula);
    formula.mode = "VALID";
    this->Check(this->ParamStr("{'pos_weight': [7.3, 0, 1e2]}") +
        "loss_param { normalization: VALID }", formula);
  }
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestPosWeightWithoutChannels) {
  this->Fill(this->Shape(17), HARD);
  SigmoidCEFormula formula;
  formula.pos_weight.assign(1, 2.5);
  this->Check(this->ParamStr("{'pos_weight': 2.5}"), formula);
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestWeightAndDivisor) {
  this->Fill(this->Shape(4, 3, 2), LABELS);
  SigmoidCEFormula formula;
  this->Check(this->ParamStr("{}"), formula);
  formula.weight = 0.3;
  this->Check(this->ParamStr("{'weight': 0.3}"), formula);
  formula.divisor = 0.7;
  this->Check(this->ParamStr("{'divisor': 0.7, 'weight': 0.3}"), formula);
  formula.has_ignore_label = true;
  formula.ignore_label = 255;
  formula.pos_weight.assign(1, 3);
  this->Check(this->ParamStr("{'divisor': 0.7, 'weight': 0.3, "
      "'pos_weight': 3} ") + "loss_param { ignore_label: 255 }", formula);
  formula.weight = 0;
  this->Check(this->ParamStr("{'weight': 0, 'divisor': 0.7}") +
      "loss_param { ignore_label: 255 }", formula);
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestWeightBottom) {
  const vector<int> whole = this->Shape(4, 3, 5, 2);
  const vector<int> shapes[] = {
      whole, this->Shape(4), this->Shape(4, 3), this->Shape(4, 3, 5),
      this->Shape(4, 1, 1, 1), this->Shape(1, 3), this->Shape(1, 3, 1, 1),
      this->Shape(1, 1, 5, 2), this->Shape(4, 1, 5), this->Shape(4, 1, 5, 1),
      this->Shape(1, 3, 1, 2), this->Shape(1), this->Shape(1, 1, 1, 1),
      this->Shape(), this->Shape(12, 10), this->Shape(120)};
  for (int i = 0; i < sizeof(shapes) / sizeof(shapes[0]); ++i) {
    this->Fill(whole, LABELS);
    this->FillWeights(shapes[i]);
    SCOPED_TRACE(this->weights_.shape_string());
    SigmoidCEFormula formula;
    this->Check("", formula);
    formula.pos_weight.assign(1, 4);
    formula.pos_weight.push_back(0.5);
    formula.pos_weight.push_back(2);
    formula.has_ignore_label = true;
    formula.ignore_label = 255;
    formula.mode = "VALID";
    this->Check(this->ParamStr("{'pos_weight': [4, 0.5, 2]}") +
        "loss_param { ignore_label: 255 normalization: VALID }", formula);
  }
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestMaskedByWeight) {
  typedef typename TypeParam::Dtype Dtype;
  this->Fill(this->Shape(2, 2), HARD);
  this->FillWeights(this->Shape(2));
  this->scores_.mutable_cpu_data()[0] = INFINITY;
  this->scores_.mutable_cpu_data()[1] = NAN;
  this->weights_.mutable_cpu_data()[0] = 0;
  this->weights_.mutable_cpu_data()[1] = 1;
  SigmoidCrossEntropyLossLayer<Dtype> layer(
      this->Parse("loss_param { normalization: VALID }"));
  layer.SetUp(this->bottom_, this->top_);
  const Dtype loss = layer.Forward(this->bottom_, this->top_);
  EXPECT_GT(loss, 0);
  EXPECT_LT(loss, 10);
  this->Backward(&layer);
  EXPECT_EQ(0, this->scores_.cpu_diff()[0]);
  EXPECT_EQ(0, this->scores_.cpu_diff()[1]);
  EXPECT_NE(0, this->scores_.cpu_diff()[2]);
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestMessage) {
  if (!this->HasMessage()) { return; }
  this->Fill(this->Shape(4, 3, 2), LABELS);
  SigmoidCEFormula formula;
  this->Check("sigmoid_cross_entropy_loss_param { }", formula);
  formula.pos_weight.assign(1, 7);
  this->Check("sigmoid_cross_entropy_loss_param { pos_weight: 7 }", formula);
  formula.pos_weight.push_back(2);
  formula.pos_weight.push_back(0.5);
  formula.weight = 0.3;
  formula.divisor = 9;
  this->Check("sigmoid_cross_entropy_loss_param { pos_weight: 7 pos_weight: 2 "
      "pos_weight: 0.5 weight: 0.3 divisor: 9 }", formula);
}

// Options of the family as JSON, and what they mean.
struct SigmoidCECase {
  string json;
  string rest;  // of the prototxt
  SigmoidCEFormula formula;
};

inline vector<SigmoidCECase> SigmoidCEFamily() {
  vector<SigmoidCECase> cases;
  SigmoidCECase one;
  one.json = "{'uncertain': 'soft', 'balance': 'none', 'gamma': 0, "
      "'label_smoothing': 0, 'negative_scale': 1, "
      "'balance_per_channel': false}";
  cases.push_back(one);
  one.json = "{'uncertain': 'ignore'}";
  one.rest = "loss_param { normalization: VALID }";
  one.formula.ignore_uncertain = true;
  one.formula.mode = "VALID";
  cases.push_back(one);
  const char* kBalances[] = {"image", "batch", "batch_mean"};
  for (int i = 0; i < 6; ++i) {
    const string balance = kBalances[i / 2];
    one = SigmoidCECase();
    one.formula.balance = balance;
    one.formula.per_channel = i % 2;
    const string per_channel = i % 2 ? "true" : "false";
    const string start = "{'balance': '" + balance +
        "', 'balance_per_channel': " + per_channel;
    one.json = start + "}";
    cases.push_back(one);
    one.json = start + ", 'uncertain': 'ignore', 'negative_scale': 1.1, "
        "'alpha': 0.3, 'label_smoothing': 0.1}";
    one.rest = "loss_param { ignore_label: 255 normalization: VALID }";
    one.formula.ignore_uncertain = true;
    one.formula.negative_scale = 1.1;
    one.formula.alpha = 0.3;
    one.formula.smoothing = 0.1;
    one.formula.has_ignore_label = true;
    one.formula.ignore_label = 255;
    one.formula.mode = "VALID";
    cases.push_back(one);
  }
  one = SigmoidCECase();
  one.json = "{'negative_scale': 0}";
  one.formula.negative_scale = 0;
  cases.push_back(one);
  one.json = "{'alpha': 0.25, 'gamma': 2, 'normalization': 'foreground'}";
  one.formula = SigmoidCEFormula();
  one.formula.alpha = 0.25;
  one.formula.gamma = 2;
  one.formula.mode = "FOREGROUND";
  cases.push_back(one);
  one.json = "{'label_smoothing': 0.2, 'gamma': 0.5, 'pos_weight': 3, "
      "'weight': [0.5, 2, 1], 'divisor': 7}";
  one.formula = SigmoidCEFormula();
  one.formula.smoothing = 0.2;
  one.formula.gamma = 0.5;
  one.formula.pos_weight.assign(1, 3);
  one.formula.channel_weight.push_back(0.5);
  one.formula.channel_weight.push_back(2);
  one.formula.channel_weight.push_back(1);
  one.formula.divisor = 7;
  cases.push_back(one);
  one.json = "{'uncertain': 'ignore', 'normalization': 'foreground', "
      "'gamma': 1.5, 'balance': 'batch', 'pos_weight': [2, 0.5, 1]}";
  one.rest = "loss_param { ignore_label: -1 } loss_weight: 3";
  one.formula = SigmoidCEFormula();
  one.formula.has_ignore_label = true;
  one.formula.ignore_label = -1;
  one.formula.ignore_uncertain = true;
  one.formula.mode = "FOREGROUND";
  one.formula.gamma = 1.5;
  one.formula.balance = "batch";
  one.formula.pos_weight.push_back(2);
  one.formula.pos_weight.push_back(0.5);
  one.formula.pos_weight.push_back(1);
  cases.push_back(one);
  return cases;
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestFamily) {
  const vector<SigmoidCECase> cases = SigmoidCEFamily();
  const vector<int> shapes[] = {this->Shape(4, 3, 5, 2), this->Shape(10, 3),
      this->Shape(1, 3, 21), this->Shape(2, 3, 40, 41)};
  for (int k = 0; k < 8; ++k) {
    for (int i = 0; i < cases.size(); ++i) {
      const SigmoidCECase& one = cases[i];
      this->top_.resize(1);
      if (k % 2) { this->WantLosses(); }
      // Of a focal loss targets are probabilities.
      const bool labels = one.formula.gamma == 0 ||
          one.formula.ignore_uncertain;
      this->Fill(shapes[k / 2], labels ? LABELS : k % 4 < 2 ? SOFT : HARD);
      const bool weighted = one.rest.find("loss_weight") != string::npos;
      string rest = one.rest;
      if (weighted && k % 2) { rest += " loss_weight: 0"; }
      this->Check(this->ParamStr(one.json) + rest, one.formula,
                  weighted ? 3 : 1);
    }
  }
}

// Where a class, or a whole image, has no target.
TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestBalanceOfOneClass) {
  typedef typename TypeParam::Dtype Dtype;
  const vector<SigmoidCECase> cases = SigmoidCEFamily();
  for (int value = -1; value <= 2; ++value) {
    for (int i = 0; i < cases.size(); ++i) {
      if (cases[i].formula.balance == "none") { continue; }
      this->Fill(this->Shape(4, 3, 2), HARD);
      // Of the second image; of all the others one of the channels.
      Dtype* targets = this->targets_.mutable_cpu_data();
      for (int k = 0; k < 24; ++k) {
        if (k / 6 == 1 || k % 6 / 2 == 2) { targets[k] = value; }
      }
      const double weight =
          cases[i].rest.find("loss_weight") == string::npos ? 1 : 3;
      this->Check(this->ParamStr(cases[i].json) + cases[i].rest,
                  cases[i].formula, weight);
    }
  }
  // All of one: by image nothing is left.
  this->Fill(this->Shape(3, 5), HARD);
  caffe_set(15, Dtype(1), this->targets_.mutable_cpu_data());
  SigmoidCrossEntropyLossLayer<Dtype> layer(
      this->Parse(this->ParamStr("{'balance': 'image'}")));
  layer.SetUp(this->bottom_, this->top_);
  EXPECT_EQ(0, layer.Forward(this->bottom_, this->top_));
}

// Backward goes by what Forward counted: targets that have changed since are
// not counted again.
TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestBalanceIsCountedOnce) {
  typedef typename TypeParam::Dtype Dtype;
  this->Fill(this->Shape(4, 1), HARD);
  Dtype* scores = this->scores_.mutable_cpu_data();
  Dtype* targets = this->targets_.mutable_cpu_data();
  for (int i = 0; i < 4; ++i) {
    scores[i] = 0;
    targets[i] = i == 0;
  }
  SigmoidCrossEntropyLossLayer<Dtype> layer(
      this->Parse(this->ParamStr("{'balance': 'batch'}")));
  layer.SetUp(this->bottom_, this->top_);
  layer.Forward(this->bottom_, this->top_);
  // Now all are 0, of which a new count would make the weight 0. It is 1/4.
  this->targets_.mutable_cpu_data()[0] = 0;
  this->Backward(&layer);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(Dtype(0.25 * 0.5 / 4), this->scores_.cpu_diff()[i]);
  }
}

// Another batch is counted anew.
TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestBalanceOfEachBatch) {
  typedef typename TypeParam::Dtype Dtype;
  const char* kBalances[] = {"image", "batch", "batch_mean"};
  for (int k = 0; k < 3; ++k) {
    SigmoidCEFormula formula;
    formula.balance = kBalances[k];
    formula.per_channel = true;
    SigmoidCrossEntropyLossLayer<Dtype> layer(this->Parse(this->ParamStr(
        string("{'balance_per_channel': true, 'balance': '") + kBalances[k] +
        "'}")));
    const vector<int> shapes[] = {this->Shape(3, 3, 7), this->Shape(3, 3, 7),
        this->Shape(20, 3), this->Shape(2, 3, 3, 3), this->Shape(0, 3),
        this->Shape(1, 3)};
    for (int i = 0; i < sizeof(shapes) / sizeof(shapes[0]); ++i) {
      this->Fill(shapes[i], HARD);
      if (i == 0) { layer.SetUp(this->bottom_, this->top_); }
      this->CheckIteration(&layer, formula);
    }
  }
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestLosses) {
  typedef typename TypeParam::Dtype Dtype;
  this->WantLosses();
  this->Fill(this->Shape(4, 3, 5, 2), LABELS);
  SigmoidCEFormula formula;
  this->Check("", formula);
  this->Check("loss_weight: 2", formula, 2);
  this->Check("loss_weight: 2 loss_weight: 0", formula, 2);
  formula.has_ignore_label = true;
  formula.ignore_label = 255;
  formula.weight = 0.5;
  this->Check("loss_param { ignore_label: 255 } " +
      this->ParamStr("{'weight': 0.5}"), formula);
  this->FillWeights(this->Shape(4));
  formula.weight = 1;
  this->Check("loss_param { ignore_label: 255 }", formula);
  // By name, as a net makes it; another shape; nothing at all.
  shared_ptr<Layer<Dtype> > layer =
      LayerRegistry<Dtype>::CreateLayer(this->Parse(""));
  layer->SetUp(this->bottom_, this->top_);
  EXPECT_EQ(1, layer->loss(0));
  EXPECT_EQ(0, layer->loss(1));
  this->bottom_.resize(2);
  const vector<int> shapes[] = {this->Shape(7), this->Shape(3, 70, 60),
      this->Shape(0, 3), this->Shape(2, 2)};
  for (int i = 0; i < 4; ++i) {
    this->Fill(shapes[i], SOFT);
    this->CheckIteration(layer.get(), SigmoidCEFormula());
    if (this->losses_.count() > 0) {
      // A diff that is never asked for takes no memory.
      EXPECT_EQ(SyncedMemory::UNINITIALIZED, this->losses_.diff()->head());
    }
  }
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestWeightPerChannel) {
  this->Fill(this->Shape(4, 3, 5, 2), LABELS);
  SigmoidCEFormula formula;
  formula.weight = 0.3;
  this->Check(this->ParamStr("{'weight': [0.3]}"), formula);
  formula.weight = 1;
  formula.channel_weight.push_back(0.3);
  formula.channel_weight.push_back(0);
  formula.channel_weight.push_back(20);
  this->Check(this->ParamStr("{'weight': [0.3, 0, 20]}"), formula);
  formula.pos_weight.push_back(2);
  formula.pos_weight.push_back(1);
  formula.pos_weight.push_back(0.1);
  this->Check(this->ParamStr("{'weight': [0.3, 0, 20], "
      "'pos_weight': [2, 1, 0.1]}"), formula);
}

// The message as of an earlier version has fewer fields.
TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestMessageOfTheFamily) {
  if (!this->HasMessage("gamma")) { return; }
  this->Fill(this->Shape(4, 3, 2), LABELS);
  SigmoidCEFormula formula;
  formula.channel_weight.push_back(0.3);
  formula.channel_weight.push_back(2);
  formula.channel_weight.push_back(1);
  formula.ignore_uncertain = true;
  formula.balance = "batch_mean";
  formula.per_channel = true;
  formula.negative_scale = 1.1;
  formula.alpha = 0.75;
  formula.smoothing = 0.1;
  formula.gamma = 2;
  formula.mode = "FOREGROUND";
  this->Check("sigmoid_cross_entropy_loss_param { weight: 0.3 weight: 2 "
      "weight: 1 uncertain: 'ignore' balance: 'batch_mean' "
      "balance_per_channel: true negative_scale: 1.1 alpha: 0.75 "
      "label_smoothing: 0.1 gamma: 2 normalization: 'foreground' }", formula);
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestTargetsOutside) {
  this->Fill(this->Shape(6, 5, 3), OUTSIDE);
  this->Check("", SigmoidCEFormula());
  SigmoidCEFormula formula;
  formula.mode = "NONE";
  this->Check("loss_param { normalization: NONE }", formula);
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestGradient) {
  const SigmoidCETargets kinds[] = {HARD, SOFT, OUTSIDE};
  for (int i = 0; i < 3; ++i) {
    this->bottom_.resize(2);
    this->Fill(this->Shape(4, 3), kinds[i]);
    this->CheckGradient("");
    this->CheckGradient("loss_weight: 3.7");
    this->CheckGradient("loss_param { normalization: FULL }");
    this->CheckGradient("loss_param { ignore_label: 1 normalize: true }");
    this->CheckGradient(this->ParamStr("{'pos_weight': 3}"));
    this->CheckGradient(this->ParamStr(
        "{'pos_weight': [0.5, 2, 1], 'weight': 0.7, 'divisor': 4.5}"));
    this->FillWeights(this->Shape(4));
    this->CheckGradient("");
    this->FillWeights(this->Shape(1, 3));
    this->CheckGradient("loss_param { ignore_label: 0 }");
    this->FillWeights(this->Shape(4, 3));
    this->CheckGradient(this->ParamStr("{'pos_weight': [0.5, 2, 1]}"));
  }
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestGradientOfTheFamily) {
  const vector<SigmoidCECase> cases = SigmoidCEFamily();
  for (int i = 0; i < cases.size(); ++i) {
    this->top_.resize(1);
    // A target of 255 that is not ignored makes losses too large.
    this->Fill(this->Shape(4, 3),
               cases[i].formula.ignore_uncertain ? LABELS : HARD);
    if (!cases[i].formula.ignore_uncertain) {
      this->targets_.mutable_cpu_data()[4] = 0.3;
      this->targets_.mutable_cpu_data()[7] = 0.75;
    }
    // For weights of the classes and the slopes of a focal loss.
    this->CheckGradient(this->ParamStr(cases[i].json) + cases[i].rest, 10);
    if (cases[i].rest.find("loss_weight") == string::npos) {
      this->WantLosses();
      this->CheckGradient(this->ParamStr(cases[i].json) + cases[i].rest, 10);
    }
  }
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestConfidentScores) {
  typedef typename TypeParam::Dtype Dtype;
  const double kInf = INFINITY;
  const double kNaN = NAN;
  const struct { double score, target, loss, gradient; } kRows[] = {
    {0, 1, 0.69314718055994530942, -0.5},
    {17, 1, 4.1399376330897474477e-8, -4.1399375473943306009e-8},
    {20, 1, 2.0611536203143807032e-9, -2.0611536181902035814e-9},
    {20, 0, 20.00000000206115362, 0.99999999793884638181},
    {-30, 0, 9.3576229688397367794e-14, 9.3576229688392989538e-14},
    {-30, 1, 30.000000000000093576, -0.99999999999990642377},
    {100, 1, 3.720075976020835963e-44, -3.720075976020835963e-44},
    {-100, 0, 3.720075976020835963e-44, 3.720075976020835963e-44},
    {1e30, 1, 0, 0},
    {-1e30, 0, 0, 0},
    {1e30, 0, 1e30, 1},
    {kInf, 1, 0, 0},
    {-kInf, 0, 0, 0},
    {kInf, 0, kInf, 1},
    {-kInf, 1, kInf, -1},
    {kInf, 0.5, kInf, 0.5},
    {-kInf, 0.5, kInf, -0.5},
    {kInf, 2, -kInf, -1},
    {kNaN, 0, kNaN, kNaN},
    {kNaN, 1, kNaN, kNaN},
    {3, kNaN, kNaN, kNaN},
    {3, kInf, kNaN, kNaN},
    {3, -kInf, kNaN, kNaN},
  };
  this->Fill(this->Shape(1, 1), HARD);
  SigmoidCrossEntropyLossLayer<Dtype> layer(this->Parse(""));
  layer.SetUp(this->bottom_, this->top_);
  for (int i = 0; i < sizeof(kRows) / sizeof(kRows[0]); ++i) {
    this->scores_.mutable_cpu_data()[0] = kRows[i].score;
    this->targets_.mutable_cpu_data()[0] = kRows[i].target;
    layer.Forward(this->bottom_, this->top_);
    this->Backward(&layer);
    const double want[] = {kRows[i].loss, kRows[i].gradient};
    const double got[] = {this->loss_.cpu_data()[0],
                          this->scores_.cpu_diff()[0]};
    for (int k = 0; k < 2; ++k) {
      // 2 ulp, in numbers that the type has.
      const double error = 2 * std::abs(want[k]) *
          std::numeric_limits<Dtype>::epsilon() +
          std::numeric_limits<Dtype>::denorm_min();
      const bool same = want[k] == got[k] ||
          (std::isnan(want[k]) && std::isnan(got[k]));
      EXPECT_TRUE(same || std::abs(want[k] - got[k]) <= error)
          << (k ? "gradient" : "loss") << " at score " << kRows[i].score
          << ", target " << kRows[i].target << ": " << got[k] << ", expected "
          << want[k];
    }
  }
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestManyElements) {
  typedef typename TypeParam::Dtype Dtype;
  // More than a block's worth per thread, and a last block that is not full.
  this->Fill(this->Shape(16, 3, 300, 300), HARD);
  const int count = this->scores_.count();
  ASSERT_GT(count, 1 << 22);
  SigmoidCrossEntropyLossLayer<Dtype> layer(this->Parse(""));
  layer.SetUp(this->bottom_, this->top_);
  layer.Forward(this->bottom_, this->top_);
  long double sum = 0;
  for (int i = 0; i < count; ++i) {
    const double x = this->scores_.cpu_data()[i];
    const double t = this->targets_.cpu_data()[i];
    sum += std::max(x, 0.0) - x * t + std::log1p(std::exp(-std::abs(x)));
  }
  const long double exact = sum / 16;
  // 2.5 ulp of float32, in the binade of the loss. For double the bounds above,
  // and 3 for the double in the sum here.
  const double eps = std::numeric_limits<Dtype>::epsilon();
  const double error = sizeof(Dtype) == sizeof(float) ?
      2.5 * std::ldexp(eps, std::ilogb(static_cast<double>(exact))) :
      (kSigmoidCETerms + kSigmoidCESum + 3) * eps * exact;
  EXPECT_LE(std::abs(this->loss_.cpu_data()[0] - exact), error);
  this->Backward(&layer);
  for (int i = 0; i < count; ++i) {
    const double x = this->scores_.cpu_data()[i];
    const double t = this->targets_.cpu_data()[i];
    const double gradient =
        (t > 0.5 ? -1 / (1 + std::exp(x)) : 1 / (1 + std::exp(-x))) / 16;
    // 2 ulp, and 3 of the formula above in double.
    ASSERT_NEAR(gradient, this->scores_.cpu_diff()[i],
                5 * eps * std::abs(gradient)) << i;
  }
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestReshape) {
  typedef typename TypeParam::Dtype Dtype;
  const vector<int> shapes[] = {this->Shape(10, 3), this->Shape(3, 3, 4, 4),
      this->Shape(1, 3), this->Shape(500, 3, 5), this->Shape(0, 3),
      this->Shape(2, 3, 0), this->Shape(2, 3)};
  SigmoidCEFormula formula;
  formula.pos_weight.push_back(0.5);
  formula.pos_weight.push_back(3);
  formula.pos_weight.push_back(1);
  SigmoidCrossEntropyLossLayer<Dtype> layer(this->Parse(
      this->ParamStr("{'pos_weight': [0.5, 3, 1]}")));
  for (int i = 0; i < sizeof(shapes) / sizeof(shapes[0]); ++i) {
    this->Fill(shapes[i], SOFT);
    SCOPED_TRACE(this->scores_.shape_string());
    // As many targets in another shape.
    this->targets_.Reshape(this->Shape(shapes[i][0], 1,
        this->scores_.count(1)));
    this->FillWeights(this->Shape(i % 2 ? shapes[i][0] : 1));
    if (i == 0) { layer.SetUp(this->bottom_, this->top_); }
    this->CheckIteration(&layer, formula);
  }
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestUntouched) {
  typedef typename TypeParam::Dtype Dtype;
  this->Fill(this->Shape(10, 5), LABELS);
  this->FillWeights(this->Shape(10));
  const vector<Dtype> before[] = {
      vector<Dtype>(this->scores_.cpu_data(), this->scores_.cpu_data() + 50),
      vector<Dtype>(this->targets_.cpu_data(), this->targets_.cpu_data() + 50),
      vector<Dtype>(this->weights_.cpu_data(), this->weights_.cpu_data() + 10)};
  SigmoidCrossEntropyLossLayer<Dtype> layer(this->Parse(
      "loss_param { ignore_label: 255 normalization: VALID }"));
  layer.SetUp(this->bottom_, this->top_);
  layer.Forward(this->bottom_, this->top_);
  EXPECT_EQ(SyncedMemory::UNINITIALIZED, this->scores_.diff()->head());
  layer.Backward(this->top_, vector<bool>(3, false), this->bottom_);
  EXPECT_EQ(SyncedMemory::UNINITIALIZED, this->scores_.diff()->head());
  this->Backward(&layer);
  EXPECT_NE(SyncedMemory::UNINITIALIZED, this->scores_.diff()->head());
  // A diff that is never asked for takes no memory.
  EXPECT_EQ(SyncedMemory::UNINITIALIZED, this->targets_.diff()->head());
  EXPECT_EQ(SyncedMemory::UNINITIALIZED, this->weights_.diff()->head());
  const vector<Dtype> gradient(this->scores_.cpu_diff(),
                               this->scores_.cpu_diff() + 50);
  // Neither Forward nor a Backward that is not to go down writes it.
  layer.Forward(this->bottom_, this->top_);
  this->loss_.mutable_cpu_diff()[0] = 5;
  layer.Backward(this->top_, vector<bool>(3, false), this->bottom_);
  EXPECT_EQ(0, memcmp(gradient.data(), this->scores_.cpu_diff(),
                      50 * sizeof(Dtype)));
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(0, memcmp(before[i].data(), this->bottom_[i]->cpu_data(),
                        before[i].size() * sizeof(Dtype)));
  }
  EXPECT_EQ(0, layer.blobs().size());
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestTopDiff) {
  typedef typename TypeParam::Dtype Dtype;
  this->Fill(this->Shape(10, 5), SOFT);
  this->Check("loss_weight: 3.7", SigmoidCEFormula(), 3.7);
  this->Check("loss_weight: -0.3", SigmoidCEFormula(), -0.3);
  this->loss_.mutable_cpu_diff()[0] = 0;
  this->Check("loss_weight: 0", SigmoidCEFormula(), 0);
  // What a layer above the loss hands down.
  SigmoidCrossEntropyLossLayer<Dtype> layer(this->Parse("loss_weight: 2"));
  layer.SetUp(this->bottom_, this->top_);
  const Dtype kDiffs[] = {-2.5, 0, 1e-3, 1e6};
  for (int k = 0; k < 4; ++k) {
    layer.Forward(this->bottom_, this->top_);
    this->loss_.mutable_cpu_diff()[0] = kDiffs[k];
    this->Backward(&layer);
    const typename SigmoidCEData<Dtype>::Expected expected =
        this->Reference(SigmoidCEFormula(), kDiffs[k]);
    for (int i = 0; i < 50; ++i) {
      ASSERT_LE(std::abs(this->scores_.cpu_diff()[i] - expected.gradient[i]),
                expected.gradient_error[i]);
    }
  }
}

// What a solver's thread does: its own layer and blobs, made from a seed.
template <typename TypeParam>
void RunSigmoidCE(int round, vector<typename TypeParam::Dtype>* results) {
  typedef typename TypeParam::Dtype Dtype;
  Caffe::set_mode(TypeParam::device);
  SigmoidCEData<Dtype> data;
  data.Fill(data.Shape(7, 3, 50, 40 + round % 2), LABELS);
  data.FillWeights(data.Shape(7, 1, 50));
  SigmoidCrossEntropyLossLayer<Dtype> layer(data.Parse(
      data.ParamStr("{'pos_weight': [1, 2, 3]}") +
      "loss_param { ignore_label: 255 normalization: VALID }"));
  layer.SetUp(data.bottom_, data.top_);
  layer.Forward(data.bottom_, data.top_);
  data.Backward(&layer);
  results->assign(data.scores_.cpu_diff(),
                  data.scores_.cpu_diff() + data.scores_.count());
  results->push_back(data.loss_.cpu_data()[0]);
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestThreads) {
  typedef typename TypeParam::Dtype Dtype;
  const int kThreads = 4, kRounds = 10;
  vector<Dtype> alone[2];
  for (int k = 0; k < 2; ++k) { RunSigmoidCE<TypeParam>(k, &alone[k]); }
  vector<vector<Dtype> > results(kThreads * kRounds);
  vector<std::thread> threads;
  for (int k = 0; k < kThreads; ++k) {
    threads.push_back(std::thread([k, &results] {
      for (int i = k * kRounds; i < (k + 1) * kRounds; ++i) {
        RunSigmoidCE<TypeParam>(i + k, &results[i]);
      }
    }));
  }
  for (int k = 0; k < kThreads; ++k) { threads[k].join(); }
  for (int i = 0; i < results.size(); ++i) {
    const vector<Dtype>& wanted = alone[(i + i / kRounds) % 2];
    ASSERT_EQ(wanted.size(), results[i].size());
    EXPECT_EQ(0, memcmp(wanted.data(), results[i].data(),
                        wanted.size() * sizeof(Dtype))) << i;
  }
}

#ifndef CPU_ONLY

// Shows where the divisor is.
template <typename Dtype>
class SigmoidCELayerWithDivisor : public SigmoidCrossEntropyLossLayer<Dtype> {
 public:
  explicit SigmoidCELayerWithDivisor(const LayerParameter& param)
      : SigmoidCrossEntropyLossLayer<Dtype>(param) {}
  SyncedMemory::SyncedHead head() const { return this->divisor_->head(); }
  SyncedMemory::SyncedHead classes() const {
    return this->class_weights_->head();
  }
};

// The loss and then the gradient, each pass on the device that is asked for.
template <typename Dtype>
vector<Dtype> RunSigmoidCEOn(SigmoidCEData<Dtype>* data, const string& options,
                             Caffe::Brew forward, Caffe::Brew backward) {
  const Caffe::Brew before = Caffe::mode();
  SigmoidCrossEntropyLossLayer<Dtype> layer(data->Parse(options));
  Caffe::set_mode(forward);
  layer.SetUp(data->bottom_, data->top_);
  layer.Forward(data->bottom_, data->top_);
  vector<Dtype> results(1, data->loss_.cpu_data()[0]);
  if (data->top_.size() == 2) {
    results.insert(results.end(), data->losses_.cpu_data(),
                   data->losses_.cpu_data() + data->losses_.count());
  }
  // What is there from before must not matter.
  Dtype* diff = data->scores_.mutable_cpu_diff();
  std::fill(diff, diff + data->scores_.count(), Dtype(-77));
  Caffe::set_mode(backward);
  data->Backward(&layer);
  results.insert(results.end(), data->scores_.cpu_diff(),
                 data->scores_.cpu_diff() + data->scores_.count());
  Caffe::set_mode(before);
  return results;
}

// The same bits. NaNs are of the same kind to everyone.
template <typename Dtype>
void ExpectSameBits(const vector<Dtype>& a, const vector<Dtype>& b) {
  ASSERT_EQ(a.size(), b.size());
  int different = 0;
  for (int i = 0; i < a.size(); ++i) {
    const bool nans = std::isnan(a[i]) && std::isnan(b[i]);
    if (!nans && memcmp(&a[i], &b[i], sizeof(Dtype)) != 0) {
      ++different;
      EXPECT_GT(different, 3) << (i == 0 ? "loss" : "gradient") << " at "
          << i - 1 << ": " << a[i] << " and " << b[i];
    }
  }
  EXPECT_EQ(0, different);
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestSameBitsOnBothDevices) {
  typedef typename TypeParam::Dtype Dtype;
  if (Caffe::mode() != Caffe::GPU) { return; }
  const string per_channel = this->ParamStr("{'pos_weight': [0.3, 7.7, 0]}");
  const string kOptions[] = {
      "",
      "loss_weight: -0.3",
      "loss_param { normalization: FULL }",
      "loss_param { normalization: VALID }",
      "loss_param { normalization: NONE }",
      "loss_param { ignore_label: 255 }",
      "loss_param { ignore_label: 0 normalization: VALID } loss_weight: 3.7",
      "loss_param { ignore_label: -1 normalize: true }",
      this->ParamStr("{'pos_weight': 7.3}"),
      this->ParamStr("{'divisor': 0.7, 'pos_weight': 0.1}"),
      per_channel,
      per_channel + "loss_param { ignore_label: 255 normalization: VALID }"};
  const string kWeight = this->ParamStr("{'weight': 0.3, 'pos_weight': 3.3}") +
      "loss_param { ignore_label: 2 normalization: FULL }";
  // The last two are of many blocks, one of them no multiple of anything.
  const vector<int> shapes[] = {this->Shape(10, 3), this->Shape(4, 3, 5, 2),
      this->Shape(1, 3, 1, 1), this->Shape(16, 3, 32, 32),
      this->Shape(7, 3, 70, 61)};
  for (int k = 0; k < sizeof(shapes) / sizeof(shapes[0]); ++k) {
    const vector<int>& shape = shapes[k];
    // No weights, one per sample, per element, per channel and so on.
    vector<vector<int> > weights(1);
    weights.push_back(this->Shape(shape[0]));
    if (k < 3) { weights.push_back(shape); }
    if (k < 4) { weights.push_back(this->Shape(1, shape[1])); }
    if (k == 1) {
      weights.push_back(this->Shape(1, 1, 1, shape[3]));
      weights.push_back(this->Shape(shape[0], 1, shape[2]));
    }
    for (int w = 0; w < weights.size(); ++w) {
      this->bottom_.resize(2);
      this->Fill(shape, LABELS);
      const double kScores[] = {INFINITY, -INFINITY, NAN, 0, -0.0, 1e30};
      const int specials = w % 2 == 0 ? 0 : 6;
      for (int i = 0; i < specials && i < this->scores_.count(); ++i) {
        this->scores_.mutable_cpu_data()[i] = kScores[i];
      }
      if (w > 0) { this->FillWeights(weights[w]); }
      vector<string> all(kOptions, kOptions + sizeof(kOptions) /
          sizeof(kOptions[0]));
      if (w == 0) { all.push_back(kWeight); }
      for (int i = 0; i < all.size(); ++i) {
        SCOPED_TRACE(all[i] + ", scores " + this->scores_.shape_string() +
            (w > 0 ? ", weights " + this->weights_.shape_string() : ""));
        const vector<Dtype> expected =
            RunSigmoidCEOn<Dtype>(this, all[i], Caffe::CPU, Caffe::CPU);
        ExpectSameBits(expected,
            RunSigmoidCEOn<Dtype>(this, all[i], Caffe::GPU, Caffe::GPU));
        // The divisor goes from one to the other.
        ExpectSameBits(expected,
            RunSigmoidCEOn<Dtype>(this, all[i], Caffe::CPU, Caffe::GPU));
        ExpectSameBits(expected,
            RunSigmoidCEOn<Dtype>(this, all[i], Caffe::GPU, Caffe::CPU));
      }
    }
  }
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestFamilySameBitsOnBothDevices) {
  typedef typename TypeParam::Dtype Dtype;
  if (Caffe::mode() != Caffe::GPU) { return; }
  const vector<SigmoidCECase> cases = SigmoidCEFamily();
  const vector<int> shapes[] = {this->Shape(4, 3, 5, 2), this->Shape(10, 3),
      this->Shape(16, 3, 32, 32), this->Shape(7, 3, 70, 61)};
  for (int k = 0; k < 8; ++k) {
    this->top_.resize(1);
    for (int i = 0; i < cases.size(); ++i) {
      string options = this->ParamStr(cases[i].json) + cases[i].rest;
      if (k % 2) {
        this->WantLosses();
        if (cases[i].rest.find("loss_weight") != string::npos) {
          options += " loss_weight: 0";
        }
      }
      this->Fill(shapes[k / 2], LABELS);
      const double kScores[] = {INFINITY, -INFINITY, NAN, 0, -0.0, 1e30};
      for (int j = 0; j < 6 && k % 4 == 3; ++j) {
        this->scores_.mutable_cpu_data()[j] = kScores[j];
      }
      SCOPED_TRACE(options + ", scores " + this->scores_.shape_string());
      const vector<Dtype> expected =
          RunSigmoidCEOn<Dtype>(this, options, Caffe::CPU, Caffe::CPU);
      ExpectSameBits(expected,
          RunSigmoidCEOn<Dtype>(this, options, Caffe::GPU, Caffe::GPU));
      // The weights of the classes go from one to the other.
      ExpectSameBits(expected,
          RunSigmoidCEOn<Dtype>(this, options, Caffe::CPU, Caffe::GPU));
      ExpectSameBits(expected,
          RunSigmoidCEOn<Dtype>(this, options, Caffe::GPU, Caffe::CPU));
    }
  }
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestFamilyStaysOnTheGPU) {
  typedef typename TypeParam::Dtype Dtype;
  if (Caffe::mode() != Caffe::GPU) { return; }
  this->Fill(this->Shape(6, 3, 5), HARD);
  this->WantLosses();
  SigmoidCELayerWithDivisor<Dtype> layer(this->Parse(this->ParamStr(
      "{'balance': 'image', 'weight': [3, 2, 1], "
      "'normalization': 'foreground'}")));
  layer.SetUp(this->bottom_, this->top_);
  for (int round = 0; round < 2; ++round) {
    layer.Forward(this->bottom_, this->top_);
    EXPECT_EQ(SyncedMemory::HEAD_AT_GPU, this->losses_.data()->head());
    EXPECT_EQ(SyncedMemory::HEAD_AT_GPU, layer.head());
    EXPECT_EQ(SyncedMemory::HEAD_AT_GPU, layer.classes());
    this->Backward(&layer);
    EXPECT_EQ(SyncedMemory::HEAD_AT_GPU, this->scores_.diff()->head());
    EXPECT_EQ(SyncedMemory::HEAD_AT_GPU, this->losses_.data()->head());
    EXPECT_EQ(SyncedMemory::HEAD_AT_GPU, layer.head());
    EXPECT_EQ(SyncedMemory::HEAD_AT_GPU, layer.classes());
  }
  EXPECT_EQ(SyncedMemory::UNINITIALIZED, this->losses_.diff()->head());
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestStaysOnTheGPU) {
  typedef typename TypeParam::Dtype Dtype;
  if (Caffe::mode() != Caffe::GPU) { return; }
  this->Fill(this->Shape(6, 3, 5), LABELS);
  this->FillWeights(this->Shape(6));
  SigmoidCELayerWithDivisor<Dtype> layer(this->Parse(
      this->ParamStr("{'pos_weight': [3, 2, 1]}") +
      "loss_param { ignore_label: 255 normalization: VALID }"));
  layer.SetUp(this->bottom_, this->top_);
  EXPECT_EQ(SyncedMemory::UNINITIALIZED, layer.head());
  for (int round = 0; round < 2; ++round) {
    this->loss_.mutable_gpu_data();
    layer.Forward(this->bottom_, this->top_);
    EXPECT_EQ(SyncedMemory::HEAD_AT_GPU, this->loss_.data()->head());
    EXPECT_EQ(SyncedMemory::HEAD_AT_GPU, layer.head());
    this->Backward(&layer);
    EXPECT_EQ(SyncedMemory::HEAD_AT_GPU, this->scores_.diff()->head());
    EXPECT_EQ(SyncedMemory::HEAD_AT_GPU, this->loss_.data()->head());
    EXPECT_EQ(SyncedMemory::HEAD_AT_GPU, layer.head());
  }
  EXPECT_EQ(SyncedMemory::UNINITIALIZED, this->targets_.diff()->head());
  EXPECT_EQ(SyncedMemory::UNINITIALIZED, this->weights_.diff()->head());
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(SyncedMemory::SYNCED, this->bottom_[i]->data()->head());
  }
}

TYPED_TEST(SigmoidCrossEntropyLossLayerTest, TestMessagesOnTheGPU) {
  typedef typename TypeParam::Dtype Dtype;
  if (Caffe::mode() != Caffe::GPU) { return; }
  this->Fill(this->Shape(4, 3), HARD);
  SigmoidCrossEntropyLossLayer<Dtype> layer(this->Parse(""));
  layer.SetUp(this->bottom_, this->top_);
  EXPECT_DEATH(this->Backward(&layer), "\"the loss\": Backward before Forward");
  const vector<bool> both(2, true);
  EXPECT_DEATH(layer.Backward(this->top_, both, this->bottom_),
      "\"the loss\": cannot backpropagate to targets .bottom 1.");
}

#endif  // CPU_ONLY

// What a layer refuses, and how. One type is enough.
template <typename TypeParam>
class SigmoidCrossEntropyLossLayerDeathTest
    : public SigmoidCrossEntropyLossLayerTest<TypeParam> {
 protected:
  SigmoidCrossEntropyLossLayerDeathTest() {
    this->Fill(this->Shape(4, 3, 2), HARD);
  }

  void ExpectDeath(const string& options, const string& message) {
    SCOPED_TRACE(options);
    EXPECT_DEATH(this->SetUpLayer(options),
        "SigmoidCrossEntropyLoss layer \"the loss\": " + message);
  }
};

typedef ::testing::Types<CPUDevice<float> > FloatOnCPU;
TYPED_TEST_CASE(SigmoidCrossEntropyLossLayerDeathTest, FloatOnCPU);

TYPED_TEST(SigmoidCrossEntropyLossLayerDeathTest, TestParamStr) {
  const char* kRows[][2] = {
    {"{'pos_wieght': 3}", "param_str: unknown option \"pos_wieght\", expected "
        "pos_weight, weight, divisor, uncertain, label_smoothing, balance, "
        "balance_per_channel, negative_scale, gamma, alpha or normalization"},
    {"{'ignore_label': 3}", "param_str: unknown option \"ignore_label\""},
    {"{'pos_weight': 3", "param_str: expected a JSON object such as .*got "},
    {"{'pos_weight': 3} 4", "param_str: expected a JSON object such as "},
    {"pos_weight", "param_str: expected a JSON object such as "},
    {"3", "param_str: expected a JSON object"},
    {"[3]", "param_str: expected a JSON object, got .3"},
    {"[]", "param_str: expected a JSON object, got .."},
    {"''", "param_str: expected a JSON object, got "},
    {"{'weight': 1, 'weight': 1}", "param_str: weight is there twice"},
    {"{'pos_weight': 'many'}",
        "param_str: pos_weight: expected a number, got \"many\""},
    {"{'pos_weight': true}",
        "param_str: pos_weight: expected a number, got \"true\""},
    {"{'pos_weight': []}",
        "param_str: pos_weight: expected a number"},
    {"{'pos_weight': [1, [2], 3]}",
        "param_str: pos_weight: expected a number, got an array or object"},
    {"{'pos_weight': {'a': 3}}", "param_str: pos_weight: expected a number or "
        "an array of numbers, got an object"},
    {"{'pos_weight': 1e999}", "param_str: pos_weight: expected a number"},
    {"{'weight': [[1]]}",
        "param_str: weight: expected a number, got an array or object"},
    {"{'weight': {'a': 3}}", "param_str: weight: expected a number or an "
        "array of numbers, got an object"},
    {"{'weight': [1, -1, 1]}",
        "weight: expected finite values of 0 or more, got -1"},
    {"{'weight': [1, 2]}", "weight: expected one value, or one per channel "
        ".axis 1. of scores of shape 4 3 2 .24., got 2"},
    {"{'balance': 'imag'}", "balance: expected \"none\", \"image\", "
        "\"batch\" or \"batch_mean\", got \"imag\""},
    {"{'balance': ['image']}",
        "param_str: balance: expected a string, got an array or object"},
    {"{'balance_per_channel': true}", "balance_per_channel: expected a "
        "balance .\"image\", \"batch\" or \"batch_mean\". beside it, got "
        "none"},
    {"{'balance_per_channel': true, 'balance': 'none'}",
        "balance_per_channel: expected a balance"},
    {"{'balance_per_channel': 1}",
        "param_str: balance_per_channel: expected true or false, got \"1\""},
    {"{'uncertain': 'ignored'}",
        "uncertain: expected \"soft\" or \"ignore\", got \"ignored\""},
    {"{'label_smoothing': 1}", "label_smoothing: expected a number of 0 or "
        "more and below 1, got 1"},
    {"{'label_smoothing': -0.1}", "label_smoothing: expected a number of 0 or "
        "more and below 1, got -0.1"},
    {"{'negative_scale': -2}",
        "negative_scale: expected a number of 0 or more that is finite in "
        "float32, got -2"},
    {"{'negative_scale': 1e39}",
        "negative_scale: expected a number of 0 or more that is finite in "
        "float32, got 1e.39"},
    {"{'gamma': -1}", "gamma: expected a number from 0 to 1e6, got -1"},
    {"{'gamma': 1e7}", "gamma: expected a number from 0 to 1e6, got 1e.07"},
    {"{'gamma': 'two'}", "param_str: gamma: expected a number, got \"two\""},
    {"{'alpha': 1.5}", "alpha: expected a number from 0 to 1, got 1.5"},
    {"{'alpha': -0.5}", "alpha: expected a number from 0 to 1, got -0.5"},
    {"{'normalization': 'full'}", "normalization: expected \"foreground\" "
        ".loss_param has the others., got \"full\""},
    {"{'normalization': 'foreground', 'divisor': 2}", "normalization "
        "\"foreground\" and divisor are both there; give one"},
    {"{'divisor': null}",
        "param_str: divisor: expected a number, got \"null\""},
    {"{'pos_weight': -1}",
        "pos_weight: expected finite values of 0 or more, got -1"},
    {"{'pos_weight': [1, 1, -2]}",
        "pos_weight: expected finite values of 0 or more, got -2"},
    {"{'pos_weight': 1e39}",
        "pos_weight: expected finite values of 0 or more, got 1e.39"},
    {"{'weight': -0.5}",
        "weight: expected finite values of 0 or more, got -0.5"},
    {"{'divisor': 0}", "divisor: expected a finite value above 0, got 0"},
    {"{'divisor': -1}", "divisor: expected a finite value above 0, got -1"},
    {"{'pos_weight': [1, 2]}", "pos_weight: expected one value, or one per "
        "channel .axis 1. of scores of shape 4 3 2 .24., got 2"},
  };
  for (int i = 0; i < sizeof(kRows) / sizeof(kRows[0]); ++i) {
    this->ExpectDeath(this->ParamStr(kRows[i][0]), kRows[i][1]);
  }
  this->ExpectDeath(this->ParamStr("{'divisor': 2}") +
      "loss_param { normalization: FULL }",
      "divisor and loss_param's normalization are both there; give one");
  this->ExpectDeath(this->ParamStr("{'normalization': 'foreground'}") +
      "loss_param { normalization: FULL }", "normalization \"foreground\" and "
      "loss_param's normalization are both there; give one");
  this->ExpectDeath(this->ParamStr("{'divisor': 2}") +
      "loss_param { normalize: true }",
      "divisor and loss_param's normalization are both there; give one");
}

TYPED_TEST(SigmoidCrossEntropyLossLayerDeathTest, TestMessage) {
  if (!this->HasMessage()) { return; }
  const string name = "sigmoid_cross_entropy_loss_param ";
  this->ExpectDeath(name + "{ pos_weight: 3 } " +
      this->ParamStr("{'pos_weight': 3}"), "param_str and " + name +
      "are both there; give one");
  this->ExpectDeath(name + "{ pos_weight: nan }",
      "pos_weight: expected finite values of 0 or more, got nan");
  this->ExpectDeath(name + "{ pos_weight: inf }",
      "pos_weight: expected finite values of 0 or more, got inf");
  this->ExpectDeath(name + "{ weight: nan }",
      "weight: expected finite values of 0 or more, got nan");
  this->ExpectDeath(name + "{ divisor: nan }",
      "divisor: expected a finite value above 0, got nan");
  this->ExpectDeath(name + "{ pos_weight: 1 pos_weight: 2 }",
      "pos_weight: expected one value, or one per channel");
  if (!this->HasMessage("gamma")) { return; }
  this->ExpectDeath(name + "{ weight: 1 weight: 2 }",
      "weight: expected one value, or one per channel");
  const char* kNaNs[][2] = {
    {"gamma", "a number from 0 to 1e6"},
    {"alpha", "a number from 0 to 1"},
    {"label_smoothing", "a number of 0 or more and below 1"},
    {"negative_scale", "a number of 0 or more that is finite in float32"},
  };
  for (int i = 0; i < 4; ++i) {
    this->ExpectDeath(name + "{ " + kNaNs[i][0] + ": nan }",
        string(kNaNs[i][0]) + ": expected " + kNaNs[i][1] + ", got nan");
  }
  this->ExpectDeath(name + "{ balance: 'Batch' }",
      "balance: expected \"none\", \"image\", \"batch\" or \"batch_mean\", "
      "got \"Batch\"");
  this->ExpectDeath(name + "{ uncertain: '' }",
      "uncertain: expected \"soft\" or \"ignore\", got \"\"");
}

TYPED_TEST(SigmoidCrossEntropyLossLayerDeathTest, TestShapes) {
  this->targets_.Reshape(this->Shape(4, 3));
  this->ExpectDeath("", "targets: expected as many elements as scores of "
      "shape 4 3 2 .24. have, got shape 4 3 .12.");
  this->targets_.Reshape(this->Shape(3, 4, 2));
  this->ExpectDeath("", "targets: expected the first axis of scores of "
      "shape 4 3 2 .24., got shape 3 4 2 .24.");
  this->targets_.Reshape(this->Shape());
  this->ExpectDeath("", "targets: expected the first axis of scores of "
      "shape 4 3 2 .24., got shape .1.");
  this->Fill(this->Shape(), HARD);
  this->ExpectDeath("", "scores: expected at least one axis, got a scalar");
  this->Fill(this->Shape(5), HARD);
  this->ExpectDeath(this->ParamStr("{'pos_weight': [1, 2, 3, 4, 5]}"),
      "pos_weight: expected one value, or one per channel .axis 1. of scores "
      "of shape 5 .5., got 5");
  this->ExpectDeath(this->ParamStr("{'balance': 'image'}"),
      "balance: \"image\" expects scores with an axis of images and another "
      "one, got shape 5 .5.");
  this->ExpectDeath(this->ParamStr(
      "{'balance': 'batch', 'balance_per_channel': true}"),
      "balance_per_channel: expected scores with channels .axis 1., got "
      "shape 5 .5.");
}

TYPED_TEST(SigmoidCrossEntropyLossLayerDeathTest, TestLosses) {
  typedef typename TypeParam::Dtype Dtype;
  this->WantLosses();
  this->ExpectDeath("loss_weight: 1 loss_weight: 0.5",
      "loss_weight: expected 0 for the second top, the losses of the "
      "elements, from which no gradient flows, got 0.5");
  // Caffe's own check.
  EXPECT_DEATH(this->SetUpLayer("loss_weight: 1 loss_weight: 0 loss_weight: 0"),
      "loss_weight must be unspecified or specified once per top blob");
  this->top_[1] = &this->scores_;
  this->ExpectDeath("", "the second top, the losses of the elements, cannot be "
      "in place of bottom 0");
  this->top_[1] = &this->losses_;
  SigmoidCrossEntropyLossLayer<Dtype> layer(this->Parse(""));
  layer.SetUp(this->bottom_, this->top_);
  layer.Forward(this->bottom_, this->top_);
  // Zeros do no harm.
  caffe_set(24, Dtype(0), this->losses_.mutable_cpu_diff());
  this->Backward(&layer);
  this->losses_.mutable_cpu_diff()[23] = -1;
  EXPECT_DEATH(this->Backward(&layer), "\"the loss\": cannot backpropagate "
      "from the losses of the elements .top 1.");
}

TYPED_TEST(SigmoidCrossEntropyLossLayerDeathTest, TestWeights) {
  const vector<int> shapes[] = {this->Shape(3), this->Shape(4, 2),
      this->Shape(4, 3, 3), this->Shape(2, 3, 2), this->Shape(1, 2, 2),
      this->Shape(1, 4, 3, 1), this->Shape(0)};
  for (int i = 0; i < sizeof(shapes) / sizeof(shapes[0]); ++i) {
    this->weights_.Reshape(shapes[i]);
    this->bottom_.resize(2);
    this->bottom_.push_back(&this->weights_);
    this->ExpectDeath("", "weights: expected as many elements as scores of "
        "shape 4 3 2 .24. have, or axes of length 1 in that shape, got " +
        string(1, '0' + shapes[i][0]) + " ");
  }
  this->FillWeights(this->Shape(4));
  this->ExpectDeath(this->ParamStr("{'weight': 2}"),
      "weight and a third bottom with element weights are both there");
}

TYPED_TEST(SigmoidCrossEntropyLossLayerDeathTest, TestBlobCounts) {
  // Caffe's own checks.
  this->bottom_.resize(1);
  EXPECT_DEATH(this->SetUpLayer(""), "at least 2 bottom");
  this->bottom_.resize(4, &this->targets_);
  EXPECT_DEATH(this->SetUpLayer(""), "at most 3 bottom");
  this->bottom_.resize(2);
  this->top_.resize(3, &this->weights_);
  EXPECT_DEATH(this->SetUpLayer(""), "at most 2 top");
  this->top_.clear();
  EXPECT_DEATH(this->SetUpLayer(""), "at least 1 top");
}

TYPED_TEST(SigmoidCrossEntropyLossLayerDeathTest, TestBackward) {
  typedef typename TypeParam::Dtype Dtype;
  this->FillWeights(this->Shape(4));
  SigmoidCrossEntropyLossLayer<Dtype> layer(this->Parse(""));
  layer.SetUp(this->bottom_, this->top_);
  EXPECT_DEATH(this->Backward(&layer), "\"the loss\": Backward before Forward");
  layer.Forward(this->bottom_, this->top_);
  vector<bool> propagate_down(3, true);
  EXPECT_DEATH(layer.Backward(this->top_, propagate_down, this->bottom_),
      "\"the loss\": cannot backpropagate to targets .bottom 1.");
  propagate_down[1] = false;
  EXPECT_DEATH(layer.Backward(this->top_, propagate_down, this->bottom_),
      "\"the loss\": cannot backpropagate to weights .bottom 2.");
}

}  // namespace caffe
