// A GPU made of one thread of the CPU, for tests on machines without one: what cuda/ uses of CUDA, so that a C++ compiler
// takes its sources as they are. Device memory is host memory, a stream does its work at once, and the threads of a block
// are fibers that run in an order that changes, from barrier to barrier; where all wait and none can go on, the program
// ends with a message. Atomics are additions, since one fiber runs at a time.
//
// It says nothing about speed, memory consistency or the device compiler.
//
// Environment: SIGMOID_CE_EMULATED_GPU, "none", "no driver" or "old driver" instead of one device, "two" devices, or one
// with "no pools" of memory, that is "busy" (no event comes to pass) or "capturing" a graph;
// SIGMOID_CE_EMULATED_ORDER, a number that the order of fibers depends on; SIGMOID_CE_EMULATED_MULTIPROCESSORS, of the
// device; SIGMOID_CE_EMULATED_MEMORY, "own": device memory that the host cannot touch, nor kernels the host's;
// SIGMOID_CE_EMULATED_SKIP, the line of a __syncthreads() that does nothing, to see that tests find it missing.
#ifndef SIGMOID_CE_TESTS_EMULATION_CUDA_RUNTIME_H_
#define SIGMOID_CE_TESTS_EMULATION_CUDA_RUNTIME_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint2 {
  unsigned x, y;
};
struct uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

// Of the fiber that runs.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

// ---- What kernels call ----

void emulated_syncthreads(int line);
#define __syncthreads() emulated_syncthreads(__LINE__)
int __syncthreads_or(int predicate);
void __syncwarp(unsigned mask = 0xffffffffu);
double __shfl_down_sync(unsigned mask, double value, unsigned delta);
unsigned __shfl_down_sync(unsigned mask, unsigned value, unsigned delta);
inline void __threadfence() {}

template <class T>
T emulated_add(T* p, T v) {
  const T before = *p;
  *p = before + v;
  return before;
}
inline unsigned atomicAdd(unsigned* p, unsigned v) { return emulated_add(p, v); }
inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long v) {
  return emulated_add(p, v);
}
inline int atomicMin(int* p, int v) {
  const int before = *p;
  if (v < before) *p = v;
  return before;
}
inline int atomicMax(int* p, int v) {
  const int before = *p;
  if (v > before) *p = v;
  return before;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

template <class To, class From>
To emulated_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline unsigned __float_as_uint(float v) { return emulated_cast<unsigned>(v); }
inline float __uint_as_float(unsigned v) { return emulated_cast<float>(v); }
inline long long __double_as_longlong(double v) { return emulated_cast<long long>(v); }
inline double __longlong_as_double(long long v) { return emulated_cast<double>(v); }

// A product that is hidden from the optimiser is not fused.
template <class T>
T emulated_product(T a, T b) {
  T v = a * b;
  __asm__("" : "+m"(v));
  return v;
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return emulated_product(a, b); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return emulated_product(a, b); }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __int2float_rn(int v) { return static_cast<float>(v); }
inline double __int2double_rn(int v) { return v; }
inline float __double2float_rn(double v) { return static_cast<float>(v); }

// ---- What the host calls ----

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorNotReady = 600,
  cudaErrorNotSupported = 801
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMemoryPoolsSupported = 115 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
constexpr unsigned cudaEventDisableTiming = 2;
struct CUstream_st;
typedef CUstream_st* cudaStream_t;
struct CUevent_st;
typedef CUevent_st* cudaEvent_t;
struct cudaDeviceProp {
  char name[256];
  int major, minor;
  int multiProcessorCount;
  std::size_t totalGlobalMem;
  // Of CUDA 12 and before; Caffe prints them.
  std::size_t sharedMemPerBlock, memPitch, totalConstMem, textureAlignment;
  int regsPerBlock, warpSize, maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3];
  int clockRate, deviceOverlap, kernelExecTimeoutEnabled;
};

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMalloc(void** p, std::size_t size);
cudaError_t cudaFree(void* p);
cudaError_t cudaMallocHost(void** p, std::size_t size);
cudaError_t cudaFreeHost(void* p);
cudaError_t cudaMallocAsync(void** p, std::size_t size, cudaStream_t stream);
cudaError_t cudaFreeAsync(void* p, cudaStream_t stream);
cudaError_t cudaMemset(void* p, int value, std::size_t size);
cudaError_t cudaMemsetAsync(void* p, int value, std::size_t size, cudaStream_t stream);
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t size, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** parameters,
                             std::size_t shared, cudaStream_t stream);

#endif  // SIGMOID_CE_TESTS_EMULATION_CUDA_RUNTIME_H_
