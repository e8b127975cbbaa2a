#include "table.cuh"

namespace sigmoid_ce {
namespace cuda {

const KernelTable* float32_kernels() {
  static const KernelTable table = make_table<float>();
  return &table;
}

}  // namespace cuda
}  // namespace sigmoid_ce
