// z / d for 0 <= z <= 1 and d = fl(1 + z), rounded as IEEE division rounds it: Newton's iteration for 1 / d and one
// correction of the quotient by its exact remainder (Markstein, Computation of elementary functions on the IBM RISC
// System/6000, 1990). The general division guards against remainders that underflow; here there is none, since d = 1 for
// z <= 2^-24. tests/native/division.cpp tries every z, with every error that the approximation may have.
#ifndef SIGMOID_CE_CUDA_DIVISION_H_
#define SIGMOID_CE_CUDA_DIVISION_H_

#include <cmath>

#include "math/platform.h"

namespace sigmoid_ce {
namespace cuda {

// `approximate`: 1 / d within 2 ulp.
SIGMOID_CE_BOTH float divide(float z, float d, float approximate) {
  const float error = fmaf(-d, approximate, 1.0f);
  const float reciprocal = fmaf(approximate, error, approximate);
  const float quotient = z * reciprocal;
  const float remainder = fmaf(-d, quotient, z);
  return fmaf(remainder, reciprocal, quotient);
}

}  // namespace cuda
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CUDA_DIVISION_H_
