// For kernels of which a block has a row.
#pragma once
#include "vectors.cuh"

// The sum over the block, to every thread, always in the same order. `shared` has a place for each warp, and is used once.
template <int Threads> DEVICE float block_sum(float x, float* shared) {
    static_assert(Threads % 32 == 0);
    x = warp_sum(x);
    if (Threads == 32) return x;
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0.0f;
#pragma unroll
    for (int i = 0; i < Threads / 32; i++) x += shared[i];
    return x;
}
