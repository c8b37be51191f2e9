// What stands between two layers: the output of the last is added to the residual stream, and the stream is normalised.
//   residual = residual + x        normed = (residual - mean) / deviation * weight + bias       LayerNorm
//                                  normed = residual / rms * weight                             RMSNorm
// A block has a row in registers: each number is read once and written once. The sums are float32, the mean is taken off
// before the squares are added, and every sum has one order.
// WIDTH: numbers of a row. THREADS of a block. VEC: numbers of an access, 4 or 1. LAYER: 1 LayerNorm, 0 RMSNorm.
// Expected: about 40 registers forward, 80 backward; bound by memory.
//
// check: -DTYPE=bf16 -DRESIDUAL=float -DWIDTH=1536 -DTHREADS=128 -DVEC=4 -DLAYER=0
// check: -DTYPE=bf16 -DRESIDUAL=bf16 -DWIDTH=2560 -DTHREADS=224 -DVEC=4 -DLAYER=1
// check: -DTYPE=f16 -DRESIDUAL=float -DWIDTH=2560 -DTHREADS=224 -DVEC=4 -DLAYER=0
// check: -DTYPE=float -DRESIDUAL=float -DWIDTH=77 -DTHREADS=32 -DVEC=1 -DLAYER=1
#include "access.cuh"

constexpr int Count = (WIDTH + THREADS * VEC - 1) / (THREADS * VEC);  // accesses of a thread
constexpr int Warps = THREADS / 32;

// Sums over the threads of the block; every thread gets the same bits.
template <int N> DEVICE void block_sum(float (&x)[N]) {
    __shared__ float sums[Warps][N];
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = warp_sum(x[i]);
    if (Warps == 1) return;
    if (threadIdx.x % 32 == 0) {
#pragma unroll
        for (int i = 0; i < N; i++) sums[threadIdx.x / 32][i] = x[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = 0.0f;
        for (int w = 0; w < Warps; w++) x[i] += sums[w][i];
    }
    __syncthreads();
}

// For each access of the thread: `q` its number, `i` where it starts in the row.
#define EACH(q, i) \
    _Pragma("unroll") for (int q = 0; q < Count; q++) \
        if (int i = (q * THREADS + threadIdx.x) * VEC; (q + 1) * THREADS * VEC <= WIDTH || i < WIDTH)

struct ForwardArguments {
    const RESIDUAL* residual;  // (r, d), or none
    const TYPE* x;             // (r, d), or none
    const TYPE* weight;        // (d)
    const TYPE* bias;          // (d), LayerNorm only
    RESIDUAL* sum;             // (r, d), or none; may be the residual's memory
    TYPE* normed;              // (r, d)
    i64 rows;
    float epsilon;
};

extern "C" __global__ void __launch_bounds__(THREADS) norm_forward(const __grid_constant__ ForwardArguments a) {
    const i64 start = blockIdx.x * (i64)WIDTH;
    float v[Count][VEC] = {}, total[1] = {};
    EACH(q, i) {
        if (a.residual) Access<VEC>::load(a.residual + start + i, v[q]);
        if (a.x) {
            float x[VEC];
            Access<VEC>::load(a.x + start + i, x);
#pragma unroll
            for (int j = 0; j < VEC; j++) v[q][j] = to_float(from_float<RESIDUAL>(v[q][j] + x[j]));
        }
        if (a.sum) Access<VEC>::store(a.sum + start + i, v[q]);
    }
    if (LAYER) {
        EACH(q, i) {
#pragma unroll
            for (int j = 0; j < VEC; j++) total[0] += v[q][j];
        }
        block_sum(total);
        const float mean = total[0] * (1.0f / WIDTH);
        EACH(q, i) {
#pragma unroll
            for (int j = 0; j < VEC; j++) v[q][j] -= mean;
        }
        total[0] = 0.0f;
    }
    EACH(q, i) {
#pragma unroll
        for (int j = 0; j < VEC; j++) total[0] += v[q][j] * v[q][j];
    }
    block_sum(total);
    const float scale = rsqrtf(total[0] * (1.0f / WIDTH) + a.epsilon);
    EACH(q, i) {
        float w[VEC], b[VEC] = {};
        Access<VEC>::load(a.weight + i, w);
        if (LAYER) Access<VEC>::load(a.bias + i, b);
#pragma unroll
        for (int j = 0; j < VEC; j++) w[j] = v[q][j] * scale * w[j] + b[j];
        Access<VEC>::store(a.normed + start + i, w);
    }
}

struct BackwardArguments {
    const RESIDUAL* sum;            // (r, d): what was normalised
    const TYPE* weight;             // (d)
    const TYPE* bias;               // (d), LayerNorm only
    const TYPE* grad_normed;        // (r, d)
    const RESIDUAL* grad_sum;       // (r, d): the gradient of the sum from after the layer, or none
    RESIDUAL* grad_residual;        // (r, d), may be grad_sum's memory
    TYPE* grad_x;                   // (r, d): the same as TYPE, or none
    TYPE* normed;                   // (r, d): the result of the forward pass once more, or none
    float* part_weight;             // (blocks, d): each block's share of the weight's gradient, or none
    float* part_bias;               // (blocks, d), LayerNorm only, or none
    i64 rows;
    float epsilon;
};

extern "C" __global__ void __launch_bounds__(THREADS) norm_backward(const __grid_constant__ BackwardArguments a) {
    float w[Count][VEC] = {}, grad_w[Count][VEC] = {}, grad_b[Count][VEC] = {};
    EACH(q, i) Access<VEC>::load(a.weight + i, w[q]);

    for (i64 row = blockIdx.x; row < a.rows; row += gridDim.x) {
        const i64 start = row * WIDTH;
        float v[Count][VEC] = {}, g[Count][VEC] = {};
        EACH(q, i) {
            Access<VEC>::load(a.sum + start + i, v[q]);
            Access<VEC>::load(a.grad_normed + start + i, g[q]);
        }
        if (LAYER) {
            float total[1] = {};
            EACH(q, i) {
#pragma unroll
                for (int j = 0; j < VEC; j++) total[0] += v[q][j];
            }
            block_sum(total);
            const float mean = total[0] * (1.0f / WIDTH);
            EACH(q, i) {
#pragma unroll
                for (int j = 0; j < VEC; j++) v[q][j] -= mean;
            }
        }
        float sums[3] = {};  // of squares, of the gradient times v, of the gradient
        EACH(q, i) {
#pragma unroll
            for (int j = 0; j < VEC; j++) {
                const float gw = g[q][j] * w[q][j];
                sums[0] += v[q][j] * v[q][j];
                sums[1] += gw * v[q][j];
                sums[2] += gw;
            }
        }
        block_sum(sums);
        const float scale = rsqrtf(sums[0] * (1.0f / WIDTH) + a.epsilon);
        const float along = sums[1] * scale * (1.0f / WIDTH), mean = LAYER ? sums[2] * (1.0f / WIDTH) : 0.0f;
        EACH(q, i) {
            float grad[VEC] = {}, normed[VEC] = {};
            if (a.grad_sum) Access<VEC>::load(a.grad_sum + start + i, grad);
            if (LAYER && a.normed) Access<VEC>::load(a.bias + i, normed);
#pragma unroll
            for (int j = 0; j < VEC; j++) {
                const float unit = v[q][j] * scale;
                grad[j] += scale * (g[q][j] * w[q][j] - mean - unit * along);
                normed[j] += unit * w[q][j];
                grad_w[q][j] += g[q][j] * unit;
                if (LAYER) grad_b[q][j] += g[q][j];
            }
            Access<VEC>::store(a.grad_residual + start + i, grad);
            if (a.grad_x) Access<VEC>::store(a.grad_x + start + i, grad);
            if (a.normed) Access<VEC>::store(a.normed + start + i, normed);
        }
    }

    const i64 start = blockIdx.x * (i64)WIDTH;
    EACH(q, i) {
        if (a.part_weight) Access<VEC>::store(a.part_weight + start + i, grad_w[q]);
        if (LAYER && a.part_bias) Access<VEC>::store(a.part_bias + start + i, grad_b[q]);
    }
}

struct SumArguments {
    const float* parts[2];  // (blocks, d) each, or none
    TYPE* sums[2];          // (d) each
    int blocks;
    int add;                // whether the sums are added to
};

// The blocks' shares added up, in one order: 32 columns a block, the rows dealt to its warps.
extern "C" __global__ void __launch_bounds__(1024) norm_sum_parts(const __grid_constant__ SumArguments a) {
    __shared__ float sums[32][32];
    const float* parts = a.parts[blockIdx.y];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    if (!parts) return;
    float sum = 0.0f;
    if (column < WIDTH) for (int i = warp; i < a.blocks; i += 32) sum += parts[i * (i64)WIDTH + column];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || column >= WIDTH) return;
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 32; i++) sum += sums[i][lane];
    TYPE* to = a.sums[blockIdx.y] + column;
    *to = from_float<TYPE>(a.add ? to_float(*to) + sum : sum);
}
