#include "cpu/kernel.h"

#if defined(__aarch64__)

#include "cpu/kernel.inl.h"
#include "cpu/ops_neon.h"

namespace sigmoid_ce {
namespace cpu {

const KernelTable* neon_kernels() {
  static const KernelTable table = make_table<NeonF32, NeonF64, 4>("neon");
  return &table;
}

}  // namespace cpu
}  // namespace sigmoid_ce

#endif
