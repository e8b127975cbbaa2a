// Included before the target region, so that nothing of the standard library is compiled for it.
#include <cstddef>
#include <cstdint>

#include "cpu/kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,popcnt")
#endif

#include "cpu/kernel.inl.h"
#include "cpu/ops_avx2.h"

namespace sigmoid_ce {
namespace cpu {
namespace {

// Inside the region, since it instantiates the kernels: not to be run before the CPU is known to fit.
KernelTable make() { return make_table<Avx2F32, Avx2F64, 2>("avx2"); }

}  // namespace
}  // namespace cpu
}  // namespace sigmoid_ce

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace sigmoid_ce {
namespace cpu {

const KernelTable* avx2_kernels() {
  static const KernelTable table = make();
  return &table;
}

}  // namespace cpu
}  // namespace sigmoid_ce

#endif
