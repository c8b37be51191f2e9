// What NVRTC has built in, declared for clang, so that eng/check-kernels.sh can check the kernels' syntax and types on a
// machine without any CUDA. Only for that: nothing is linked or run.
#pragma once
#define __device__ __attribute__((device))
#define __global__ __attribute__((global))
#define __host__ __attribute__((host))
#define __shared__ __attribute__((shared))
#define __constant__ __attribute__((constant))
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...) __attribute__((launch_bounds(__VA_ARGS__)))
#define __grid_constant__
#define __restrict__ __restrict
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
#include <__clang_cuda_builtin_vars.h>
typedef unsigned int cuda_u32; typedef unsigned long long cuda_u64;
extern "C" {
__device__ void __syncthreads(); __device__ void __syncwarp(unsigned = 0xffffffffu); __device__ void __threadfence(); __device__ void __threadfence_block();
__device__ void __nanosleep(unsigned); __device__ int __syncthreads_or(int); __device__ int __syncthreads_count(int);
__device__ float exp2f(float); __device__ float expf(float); __device__ float logf(float); __device__ float log2f(float); __device__ float log1pf(float); __device__ float sqrtf(float); __device__ float rsqrtf(float);
__device__ double sqrt(double); __device__ double ceil(double); __device__ float fmaxf(float, float); __device__ float fminf(float, float); __device__ float fabsf(float); __device__ float fmaf(float, float, float); __device__ float cosf(float); __device__ float sinf(float); __device__ float tanhf(float); __device__ float erff(float);
__device__ float __expf(float); __device__ float __fdividef(float, float); __device__ float floorf(float); __device__ float powf(float, float);
__device__ float __fadd_rn(float, float); __device__ float __fmul_rn(float, float);
__device__ int __popc(unsigned); __device__ int __ffs(int); __device__ int __clz(int);
__device__ unsigned __umulhi(unsigned, unsigned); __device__ unsigned __brev(unsigned);
__device__ unsigned __ballot_sync(unsigned, int); __device__ int __any_sync(unsigned, int); __device__ int __all_sync(unsigned, int); __device__ unsigned __activemask();
__device__ void __trap();
__device__ long long clock64();
}
__device__ float __int_as_float(int); __device__ int __float_as_int(float); __device__ float __uint_as_float(unsigned); __device__ unsigned __float_as_uint(float);
template <class T> __device__ T __shfl_sync(unsigned, T, int, int = 32);
template <class T> __device__ T __shfl_xor_sync(unsigned, T, int, int = 32);
template <class T> __device__ T __shfl_up_sync(unsigned, T, unsigned, int = 32);
template <class T> __device__ T __shfl_down_sync(unsigned, T, unsigned, int = 32);
template <class T> __device__ T __ldg(const T*);
template <class T> __device__ T __ldcs(const T*);
template <class T> __device__ void __stcs(T*, T);
__device__ float atomicAdd(float*, float); __device__ int atomicAdd(int*, int); __device__ unsigned atomicAdd(unsigned*, unsigned); __device__ double atomicAdd(double*, double);
__device__ unsigned atomicMax(unsigned*, unsigned); __device__ int atomicMax(int*, int); __device__ unsigned long long atomicMax(unsigned long long*, unsigned long long);
__device__ unsigned atomicCAS(unsigned*, unsigned, unsigned); __device__ unsigned atomicExch(unsigned*, unsigned); __device__ unsigned atomicInc(unsigned*, unsigned);
template <class T> __device__ T min(T a, T b) { return a < b ? a : b; }
template <class T> __device__ T max(T a, T b) { return a > b ? a : b; }
