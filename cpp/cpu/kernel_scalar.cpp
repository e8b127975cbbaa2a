#include "cpu/kernel.inl.h"
#include "cpu/ops_scalar.h"

namespace sigmoid_ce {
namespace cpu {

const KernelTable* scalar_kernels() {
  static const KernelTable table = make_table<ScalarOps<float>, ScalarOps<double>, 1>("scalar");
  return &table;
}

}  // namespace cpu
}  // namespace sigmoid_ce
