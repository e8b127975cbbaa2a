#include "sigmoid_ce/partial.h"

#include <cstring>

#include "math/exact_sum.h"

namespace sigmoid_ce {

constexpr int Partial::kLimbs;
constexpr int Partial::kWords;

static_assert(Partial::kLimbs == math::kLimbs, "one number of limbs");
static_assert(Partial::kWords == math::kWords, "one list of words");

namespace {

std::int64_t* words_of(Partial* partial) { return reinterpret_cast<std::int64_t*>(partial); }

}  // namespace

Partial::Partial() { std::memset(this, 0, sizeof *this); }

void Partial::add(double block_sum) { math::add_block_sum(words_of(this), block_sum); }

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
  Partial p = *this;
  p.normalize();
  int lowest = 0;
  while (lowest < kLimbs && p.limb[lowest] == 0) ++lowest;
  int top = kLimbs - 1;
  while (top >= 0 && math::exact_digit(p.limb, lowest, top) == 0) --top;
  return math::sum_of_words(words_of(&p), math::exact_round(p.limb, lowest, top));
}

bool Partial::operator==(const Partial& other) const {
  Partial a = *this, b = other;
  a.normalize();
  b.normalize();
  return std::memcmp(&a, &b, sizeof a) == 0;
}

}  // namespace sigmoid_ce
