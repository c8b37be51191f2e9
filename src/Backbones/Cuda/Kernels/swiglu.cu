// The inside of a gated MLP: y = silu(gate) value, and with NORM a LayerNorm over it. Gate and value are the two halves of one
// product whose halves were padded to PADDED numbers; WIDTH of them count. The result is padded with zeros likewise.
//
// A block has a row, which stays in registers: one read of gate and value, one write. Mean first, then the squares about it.
// Expected: 8 (PADDED / VECTOR / THREADS rounded up) + 30 registers; bound by memory.
//
// check: -DTYPE=bf16 -DWIDTH=2730 -DPADDED=2752 -DVECTOR=8 -DTHREADS=192 -DNORM=1
// check: -DTYPE=float -DWIDTH=2730 -DPADDED=2752 -DVECTOR=4 -DTHREADS=256 -DNORM=1
// check: -DTYPE=f16 -DWIDTH=512 -DPADDED=512 -DVECTOR=8 -DTHREADS=64 -DNORM=0
// check: -DTYPE=bf16 -DWIDTH=37 -DPADDED=37 -DVECTOR=1 -DTHREADS=64 -DNORM=1
#include "rows.cuh"

struct Arguments {
    const TYPE* x;       // (rows, 2 PADDED): gate, value
    const TYPE* weight;  // (PADDED) with NORM
    const TYPE* bias;
    TYPE* y;             // (rows, PADDED)
    float eps;
};

constexpr int Each = (PADDED / VECTOR + THREADS - 1) / THREADS;  // vectors of a thread
static_assert(PADDED % VECTOR == 0 && WIDTH <= PADDED);

extern "C" __global__ void __launch_bounds__(THREADS) swiglu(const __grid_constant__ Arguments a) {
    const TYPE* gate = a.x + (i64)blockIdx.x * (2 * PADDED);
    const TYPE* value = gate + PADDED;
    TYPE* out = a.y + (i64)blockIdx.x * PADDED;
    float y[Each][VECTOR];
    [[maybe_unused]] float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < Each; i++) {
        const int at = (i * THREADS + threadIdx.x) * VECTOR;
        float g[VECTOR] = {}, v[VECTOR] = {};
        if (at < PADDED) {
            load_vector<VECTOR>(gate + at, g);
            load_vector<VECTOR>(value + at, v);
        }
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            y[i][j] = at + j < WIDTH ? silu(g[j]) * v[j] : 0.0f;
            sum += y[i][j];
        }
    }
#if NORM
    __shared__ float sums[2][THREADS / 32];
    const float mean = block_sum<THREADS>(sum, sums[0]) * (1.0f / WIDTH);
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < Each; i++) {
        const int at = (i * THREADS + threadIdx.x) * VECTOR;
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            const float d = y[i][j] - mean;
            if (at + j < WIDTH) squares += d * d;
        }
    }
    const float scale = rsqrtf(block_sum<THREADS>(squares, sums[1]) * (1.0f / WIDTH) + a.eps);
#endif
#pragma unroll
    for (int i = 0; i < Each; i++) {
        const int at = (i * THREADS + threadIdx.x) * VECTOR;
        if (at >= PADDED) continue;
#if NORM
        float w[VECTOR], b[VECTOR];
        load_vector<VECTOR>(a.weight + at, w);
        load_vector<VECTOR>(a.bias + at, b);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) y[i][j] = at + j < WIDTH ? (y[i][j] - mean) * scale * w[j] + b[j] : 0.0f;
#endif
        store_vector<VECTOR>(out + at, y[i]);
    }
}
