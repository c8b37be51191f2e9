// The smallest kernels: y = 2 x, which shows that compiling, loading and launching work, on any GPU; and one that only takes time,
// behind which a benchmark puts what it times.
// check: -DTYPE=float
// check: -DTYPE=bf16
// check: -DTYPE=f16
#include "common.cuh"

struct Arguments { const TYPE* x; TYPE* y; i64 count; };

extern "C" __global__ void probe(const __grid_constant__ Arguments a) {
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < a.count; i += (i64)gridDim.x * blockDim.x)
        a.y[i] = from_float<TYPE>(2.0f * to_float(a.x[i]));
}

struct SleepArguments { i64 ticks; };

extern "C" __global__ void sleep(const __grid_constant__ SleepArguments a) {
    const i64 begin = clock64();
    while (clock64() - begin < a.ticks) ;
}
