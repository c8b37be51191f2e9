// The smallest kernel: y = 2 x, which shows that compiling, loading and launching work, on any GPU.
// check: -DTYPE=float
// check: -DTYPE=bf16
// check: -DTYPE=f16
#include "common.cuh"

struct Arguments { const TYPE* x; TYPE* y; i64 count; };

extern "C" __global__ void probe(const __grid_constant__ Arguments a) {
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < a.count; i += (i64)gridDim.x * blockDim.x)
        a.y[i] = from_float<TYPE>(2.0f * to_float(a.x[i]));
}
