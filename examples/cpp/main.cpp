// Loss and gradient of a small batch, with the options that detection and segmentation use: positives
// weighted per channel, and pixels to ignore. Ends with a status other than 0 when a result is wrong.
#include <cmath>
#include <cstdint>
#include <cstdio>

#include "sigmoid_ce/cpu.h"
#include "sigmoid_ce/version.h"

namespace {

constexpr int kCount = 12;

// Relative. Each loss is within 2 float32 ulp, of 2^-23 at most, and all have one sign.
constexpr double kLossTolerance = 2 * 1.2e-7;
// As much for the derivative, and up to 2 ulp more for scaling it with 1 / divisor.
constexpr double kGradientTolerance = 4 * 1.2e-7;

bool near(double value, double exact, double tolerance) {
  return std::fabs(value - exact) <= tolerance * std::fabs(exact);
}

int fail(const sigmoid_ce::Status& status) {
  std::fprintf(stderr, "%s: %s\n", status.argument, status.message);
  return 1;
}

}  // namespace

int main() {
  // 2 images, 3 channels, 2 pixels, in C order. Targets need not be of the scores' type.
  const std::int64_t shape[] = {2, 3, 2};
  const float scores[kCount] = {4, -2, 0, 1, -8, 30, -1, 3, 2, -4, 0, 0.5f};
  const std::uint8_t targets[kCount] = {1, 0, 1, 0, 0, 1, 1, 255, 0, 0, 1, 255};
  const double pos_weight[] = {1, 2, 0.5};  // per channel

  sigmoid_ce::Inputs inputs;
  inputs.scores = {scores, sigmoid_ce::DType::kFloat32};
  inputs.targets = {targets, sigmoid_ce::DType::kUint8};
  inputs.shape = shape;
  inputs.ndim = 3;

  sigmoid_ce::Options options;
  options.pos_weight = pos_weight;
  options.pos_weight_count = 3;
  options.has_ignore_label = true;
  options.ignore_label = 255;
  options.normalization = sigmoid_ce::Normalization::kValid;

  // One pass over memory. Nothing throws: a Status that is not ok names the argument at fault.
  float gradient[kCount];
  sigmoid_ce::Partial partial;
  const sigmoid_ce::Status status = sigmoid_ce::cpu::forward_backward(
      inputs, options, &partial, sigmoid_ce::MutableArray(gradient));
  if (!status.ok()) return fail(status);
  const double loss = sigmoid_ce::cpu::loss(inputs, options, partial);

  std::printf("sigmoid_ce %s, %s, %d threads\n", SIGMOID_CE_VERSION, sigmoid_ce::cpu::isa(),
              sigmoid_ce::cpu::num_threads());
  std::printf("loss %.9f over %lld valid of %lld\n", loss, static_cast<long long>(partial.n_valid),
              static_cast<long long>(partial.n_total));

  // Worked out in 40 digits. The usual sigmoid(x) - t would give 0 for the sixth, in float32.
  const double exact_loss = 0.66498826107308160;
  const double exact_gradient[kCount] = {-0.0017986209962091558,
                                         0.0119202922022117556,
                                         -0.1,
                                         0.0731058578630004879,
                                         0.0000335350130466478,
                                         -4.67881148441964948e-15,
                                         -0.0731058578630004879,
                                         0,
                                         0.0880797077977882444,
                                         0.0017986209962091558,
                                         -0.025,
                                         0};
  int wrong = near(loss, exact_loss, kLossTolerance) ? 0 : 1;
  for (int i = 0; i < kCount; ++i) {
    std::printf("gradient[%d] = %.9g\n", i, gradient[i]);
    wrong += near(gradient[i], exact_gradient[i], kGradientTolerance) ? 0 : 1;
  }
  wrong += partial.n_valid == 10 && partial.n_total == kCount ? 0 : 1;

  // Data may come in pieces, here one image at a time. `add` is exact, so the sum has no order. Cuts at
  // multiples of 4096 elements give the bits of the whole; any other, like this one, the same to 1 ulp.
  sigmoid_ce::Partial total;
  for (int image = 0; image < 2; ++image) {
    inputs.first_index = image * 6;
    inputs.count = 6;
    inputs.scores.data = scores + image * 6;
    inputs.targets.data = targets + image * 6;
    sigmoid_ce::Partial part;
    const sigmoid_ce::Status piece = sigmoid_ce::cpu::forward(inputs, options, &part);
    if (!piece.ok()) return fail(piece);
    total.add(part);
  }
  wrong += near(total.sum(), partial.sum(), kLossTolerance) ? 0 : 1;

  if (wrong != 0) std::fprintf(stderr, "%d results are wrong\n", wrong);
  return wrong == 0 ? 0 : 1;
}
