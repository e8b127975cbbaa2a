// What the kernels ask of the compiler.
#ifndef SIGMOID_CE_MATH_PLATFORM_H_
#define SIGMOID_CE_MATH_PLATFORM_H_

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "sigmoid_ce: compile without -ffast-math, which changes results"
#endif

#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16
// On 32-bit x86: -mfpmath=sse.
#error "sigmoid_ce: float and double must have their own precision"
#endif

#if defined(__CUDA_FTZ) || defined(__USE_FAST_MATH__)
#error "sigmoid_ce: compile without -use_fast_math and -ftz=true: results change"
#endif

// Everything between the entry points of a kernel is inlined, so that no function compiled for one
// instruction set can be picked by the linker for another. In CUDA sources these are functions of the device,
// and those marked with SIGMOID_CE_BOTH of the host too.
#if defined(__CUDACC__)
#define SIGMOID_CE_INLINE __device__ inline __attribute__((always_inline))
#define SIGMOID_CE_BOTH __host__ __device__ inline __attribute__((always_inline))
#else
#define SIGMOID_CE_INLINE inline __attribute__((always_inline))
#define SIGMOID_CE_BOTH inline __attribute__((always_inline))
#endif

// A product that must be rounded before it is added: hides it from the optimiser, since GCC fuses mul and
// add into fma by default wherever the instruction exists, intrinsics included. Costs no instruction.
#if defined(__x86_64__) || defined(__i386__)
#define SIGMOID_CE_KEEP_ROUNDED(v) __asm__("" : "+x"(v))
#elif defined(__aarch64__)
#define SIGMOID_CE_KEEP_ROUNDED(v) __asm__("" : "+w"(v))
#else
#define SIGMOID_CE_KEEP_ROUNDED(v) __asm__("" : "+m"(v))
#endif

#endif  // SIGMOID_CE_MATH_PLATFORM_H_
