// Included before the target region, so that nothing of the standard library is compiled for it.
#include <cstddef>
#include <cstdint>

#include "cpu/kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                      \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,popcnt"))), \
    apply_to = function)
#else
#pragma GCC push_options
// GCC's own _mm512_undefined_* set it off (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,popcnt")
#endif

#include "cpu/kernel.inl.h"
#include "cpu/ops_avx512.h"

namespace sigmoid_ce {
namespace cpu {
namespace {

// Inside the region, since it instantiates the kernels: not to be run before the CPU is known to fit.
KernelTable make() { return make_table<Avx512F32, Avx512F64, 4>("avx512"); }

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

const KernelTable* avx512_kernels() {
  static const KernelTable table = make();
  return &table;
}

}  // namespace cpu
}  // namespace sigmoid_ce

#endif
