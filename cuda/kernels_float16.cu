#include "table.cuh"

namespace sigmoid_ce {
namespace cuda {

const KernelTable* float16_kernels() {
  static const KernelTable table = make_table<math::Float16>();
  return &table;
}

}  // namespace cuda
}  // namespace sigmoid_ce
