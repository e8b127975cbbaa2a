#include "table.cuh"

namespace sigmoid_ce {
namespace cuda {

const KernelTable* float64_kernels() {
  static const KernelTable table = make_table<double>();
  return &table;
}

}  // namespace cuda
}  // namespace sigmoid_ce
