// Round to nearest, subnormals kept: what the guarantee of equal bits needs. The caller's own mode (and
// exception flags) come back at the end of the scope.
#ifndef SIGMOID_CE_MATH_FLOAT_ENVIRONMENT_H_
#define SIGMOID_CE_MATH_FLOAT_ENVIRONMENT_H_

#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace sigmoid_ce {
namespace math {

class FloatEnvironment {
 public:
#if defined(__x86_64__) || defined(__i386__)
  FloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FloatEnvironment() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FloatEnvironment() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" : : "r"(std::uint64_t(0)) : "memory");
  }
  ~FloatEnvironment() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_) : "memory"); }

 private:
  std::uint64_t saved_;
#else
  FloatEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatEnvironment() { std::fesetenv(&saved_); }

 private:
  std::fenv_t saved_;
#endif

 public:
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;
};

}  // namespace math
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_MATH_FLOAT_ENVIRONMENT_H_
