#include "table.cuh"

namespace sigmoid_ce {
namespace cuda {

const KernelTable* bfloat16_kernels() {
  static const KernelTable table = make_table<math::Bfloat16>();
  return &table;
}

}  // namespace cuda
}  // namespace sigmoid_ce
