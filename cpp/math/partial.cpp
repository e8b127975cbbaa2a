#include "sigmoid_ce/partial.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "math/exact_sum.h"

namespace sigmoid_ce {

constexpr int Partial::kLimbs;
constexpr int Partial::kWords;

static_assert(Partial::kLimbs == math::kLimbs, "one number of limbs");

Partial::Partial() { std::memset(this, 0, sizeof *this); }

void Partial::add(double block_sum) {
  if (std::isfinite(block_sum)) {
    math::exact_add(limb, block_sum);
  } else if (std::isnan(block_sum)) {
    ++n_nan;
  } else if (block_sum > 0) {
    ++n_posinf;
  } else {
    ++n_neginf;
  }
}

void Partial::add(const Partial& other) {
  Partial o = other;
  o.normalize();
  normalize();
  for (int k = 0; k < kLimbs; ++k) limb[k] += o.limb[k];
  n_nan += o.n_nan;
  n_posinf += o.n_posinf;
  n_neginf += o.n_neginf;
  n_valid += o.n_valid;
  n_total += o.n_total;
  normalize();
}

void Partial::normalize() { math::exact_normalize(limb); }

double Partial::sum() const {
  if (n_nan > 0 || (n_posinf > 0 && n_neginf > 0)) return std::numeric_limits<double>::quiet_NaN();
  if (n_posinf > 0) return std::numeric_limits<double>::infinity();
  if (n_neginf > 0) return -std::numeric_limits<double>::infinity();
  Partial p = *this;
  p.normalize();
  return math::exact_round(p.limb);
}

bool Partial::operator==(const Partial& other) const {
  Partial a = *this, b = other;
  a.normalize();
  b.normalize();
  return std::memcmp(&a, &b, sizeof a) == 0;
}

}  // namespace sigmoid_ce
