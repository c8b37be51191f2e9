// The norms and the head of both models.
//
//   D  hidden size     V  vocabulary     LAYER_NORM  LayerNorm, else RMSNorm
#pragma once
#include "decode.cuh"

#define NORM_THREADS 512
#define NORM_WARPS (NORM_THREADS / 32)

struct Norm {
    const TYPE *weight, *bias;    // (d), the bias null in an RMSNorm
    const TYPE *weight2, *bias2;  // of a second norm of the same rows, or null
    const float* residual;        // (B, d)
    Words *x, *x2;                // (B, d)
    float epsilon;
};

struct Head {
    const TYPE* weight;  // (v, d)
    const Words* x;      // (B, d)
    float* logits;       // (B, v)
};

// The total over the block, to every thread. scratch: NORM_WARPS floats, free again at the end.
DEVICE float block_sum(float value, float* scratch) {
    value = warp_sum(value);
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = value;
    __syncthreads();
    value = 0;
#pragma unroll
    for (int w = 0; w < NORM_WARPS; w++) value += scratch[w];
    __syncthreads();
    return value;
}

// A block a row. A kernel of its own rather than a part of each product: the products' blocks, which are there already and wait for
// their weights, would each do it again.
extern "C" __global__ void __launch_bounds__(NORM_THREADS) normalise(const __grid_constant__ Norm a) {
    __shared__ float scratch[NORM_WARPS];
    constexpr int EACH = divide_up(D, NORM_THREADS);
    const int b = blockIdx.x;
    float v[EACH], mean = 0, square = 0;
    let_next_kernel_start();
    wait_for_previous_kernel();
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int c = threadIdx.x + i * NORM_THREADS;
        v[i] = c < D ? read_fresh(a.residual + b * D + c) : 0;
        mean += v[i];
    }
    mean = LAYER_NORM ? block_sum(mean, scratch) * (1.0f / D) : 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        v[i] = (int)threadIdx.x + i * NORM_THREADS < D ? v[i] - mean : 0;
        square = fmaf(v[i], v[i], square);
    }
    const float scale = 1.0f / sqrtf(block_sum(square, scratch) * (1.0f / D) + a.epsilon);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int c = threadIdx.x + i * NORM_THREADS;
        if (c >= D) continue;
        pack(a.x, D, b, c, fmaf(v[i] * scale, to_float(a.weight[c]), LAYER_NORM ? to_float(a.bias[c]) : 0));
        if (a.weight2) pack(a.x2, D, b, c, fmaf(v[i] * scale, to_float(a.weight2[c]), LAYER_NORM ? to_float(a.bias2[c]) : 0));
    }
}

typedef Product<V, blocks_for(V, SMS * PER_SM), D> HeadProduct;
SPREAD(head, blocks_for(V, SMS * PER_SM), HeadProduct::WORDS)

extern __shared__ Words dynamic[];

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) head(const __grid_constant__ Head a) {
    HeadProduct product;
    product.begin(blockIdx.x, a.weight, nullptr, dynamic);
    wait_for_previous_kernel();
    product.run(a.x, nullptr, [&](int row, int b, float sum) { a.logits[(i64)b * V + row] = sum; });
}
