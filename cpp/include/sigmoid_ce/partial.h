// The result of a forward pass over some elements: an exact sum and counts. Every word is additive.
#ifndef SIGMOID_CE_PARTIAL_H_
#define SIGMOID_CE_PARTIAL_H_

#include <cstdint>

namespace sigmoid_ce {

// The sum of block sums as a fixed-point number, value = sum of limb[k] * 2^(32 k - 1088): no rounding, so
// the order of addition does not matter, and integer addition of all words (an all-reduce with SUM, at
// most 2^30 normalised parts) merges two partials. A double of any exponent fits, 2^63 of them too.
struct Partial {
  static constexpr int kLimbs = 68;
  static constexpr int kWords = kLimbs + 5;

  std::int64_t limb[kLimbs];
  std::int64_t n_nan;     // blocks of 4096 elements whose sum was NaN
  std::int64_t n_posinf;  // ... was +inf
  std::int64_t n_neginf;  // ... was -inf
  std::int64_t n_valid;   // elements not ignored
  std::int64_t n_total;   // all elements

  Partial();                       // zero
  void add(double block_sum);      // exact; at most 2^30 calls between two normalize()
  void add(const Partial& other);  // exact; normalises both
  void normalize();                // carries: limbs 0..66 into [0, 2^32), the sign in the last
  double sum() const;  // rounded once, to nearest even; NaN and infinities by the counts
  bool operator==(const Partial& other) const;  // after normalising
};

// 73 additive words, in the order of the members: what an all-reduce carries.
static_assert(sizeof(Partial) == Partial::kWords * sizeof(std::int64_t), "Partial is its words");

}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_PARTIAL_H_
