// What Caffe's Blob and Layer want of its own CUDA sources, on a GPU that is emulated
// (tests/native/emulation): math on the CPU, through copies of what is in "device" memory.
#include <cmath>
#include <vector>

#include "caffe/common.hpp"
#include "caffe/util/math_functions.hpp"

namespace caffe {
namespace {

template <typename T>
std::vector<T> fetched(int n, const T* x) {
  std::vector<T> copy(n);
  CUDA_CHECK(cudaMemcpy(copy.data(), x, n * sizeof(T), cudaMemcpyDeviceToHost));
  return copy;
}

template <typename T>
void put(const std::vector<T>& values, T* x) {
  CUDA_CHECK(cudaMemcpy(x, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
}

template <typename T>
T dot(int n, const T* x, const T* y) {
  const std::vector<T> a = fetched(n, x), b = fetched(n, y);
  T sum = 0;
  for (int i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <typename T>
T asum(int n, const T* x) {
  T sum = 0;
  for (const T v : fetched(n, x)) sum += std::abs(v);
  return sum;
}

template <typename T>
void axpy(int n, T alpha, const T* x, T* y) {
  const std::vector<T> a = fetched(n, x);
  std::vector<T> b = fetched(n, y);
  for (int i = 0; i < n; ++i) b[i] += alpha * a[i];
  put(b, y);
}

template <typename T>
void scal(int n, T alpha, T* x) {
  std::vector<T> a = fetched(n, x);
  for (T& v : a) v *= alpha;
  put(a, x);
}

}  // namespace

void caffe_gpu_memcpy(const size_t n, const void* x, void* y) {
  CUDA_CHECK(cudaMemcpy(y, x, n, cudaMemcpyDefault));
}

template <>
void caffe_gpu_dot<float>(const int n, const float* x, const float* y, float* out) {
  *out = dot(n, x, y);
}
template <>
void caffe_gpu_dot<double>(const int n, const double* x, const double* y, double* out) {
  *out = dot(n, x, y);
}
template <>
void caffe_gpu_asum<float>(const int n, const float* x, float* out) {
  *out = asum(n, x);
}
template <>
void caffe_gpu_asum<double>(const int n, const double* x, double* out) {
  *out = asum(n, x);
}
template <>
void caffe_gpu_axpy<float>(const int n, const float alpha, const float* x, float* y) {
  axpy(n, alpha, x, y);
}
template <>
void caffe_gpu_axpy<double>(const int n, const double alpha, const double* x, double* y) {
  axpy(n, alpha, x, y);
}
template <>
void caffe_gpu_scal<float>(const int n, const float alpha, float* x) {
  scal(n, alpha, x);
}
template <>
void caffe_gpu_scal<double>(const int n, const double alpha, double* x) {
  scal(n, alpha, x);
}

}  // namespace caffe
