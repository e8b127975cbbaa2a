// Faults for compute-sanitizer to find, one per tool: a checker that misses its fault on some machine has checked
// nothing there. `gpu_planted memcheck`, `racecheck`, `initcheck` or `synccheck`; "none": no fault.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

__global__ void out_of_bounds(int* data, int count) { data[count + threadIdx.x] = 1; }

__global__ void race(int* data) {
  __shared__ int shared[64];
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  data[threadIdx.x] = shared[63 - threadIdx.x];  // no barrier between
}

__global__ void copy(const int* from, int* to) { to[threadIdx.x] = from[threadIdx.x]; }

__global__ void divergent(int* data) {
  if (threadIdx.x < 48) __syncthreads();  // of the second warp, half never come
  data[threadIdx.x] = 1;
}

int main(int argc, char** argv) {
  const char* fault = argc > 1 ? argv[1] : "none";
  int *a = nullptr, *b = nullptr;
  if (cudaMalloc(&a, 64 * sizeof(int)) != cudaSuccess ||
      cudaMalloc(&b, 64 * sizeof(int)) != cudaSuccess) {
    std::fprintf(stderr, "no memory on a device\n");
    return 3;
  }
  if (std::strcmp(fault, "memcheck") == 0) {
    out_of_bounds<<<1, 64>>>(a, 64);
  } else if (std::strcmp(fault, "racecheck") == 0) {
    race<<<1, 64>>>(a);
  } else if (std::strcmp(fault, "initcheck") == 0) {
    copy<<<1, 64>>>(a, b);
  } else if (std::strcmp(fault, "synccheck") == 0) {
    divergent<<<1, 64>>>(a);
  } else {
    cudaMemset(a, 1, 64 * sizeof(int));
    copy<<<1, 64>>>(a, b);
  }
  const cudaError_t error = cudaDeviceSynchronize();
  if (error != cudaSuccess) std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  return error == cudaSuccess ? 0 : 4;
}
