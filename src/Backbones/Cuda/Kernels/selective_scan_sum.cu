// The sums that selective_scan_backward leaves to be made, always in the same order. The gradients of B and C, from its workspace,
// over the parts: a block takes STEPS steps of a row, and SPLIT threads share the parts of a sum, so that few steps keep the memory
// busy, too. The blocks after those add the gradients of A, D and the bias over rows and pieces, a thread for each number.
//
// check: -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=16 -DLANES=4 -DSTATES=4 -DTHREADS=512 -DSPLIT=8
// check: -DB_TYPE=float -DC_TYPE=f16 -DN=3 -DLANES=1 -DSTATES=4 -DTHREADS=512 -DSPLIT=8
// check: -DB_TYPE=float -DC_TYPE=float -DN=256 -DLANES=32 -DSTATES=8 -DTHREADS=512 -DSPLIT=1
#include "common.cuh"

#define WIDTH (2 * LANES * STATES)                       // of a step in the workspace
#define STEPS (THREADS / WIDTH / SPLIT)

struct Strides { i64 row, channel, time; };
struct Arguments {
    const float* workspace;                              // (parts, b, l, WIDTH)
    B_TYPE* grad_B; C_TYPE* grad_C;
    Strides by_B, by_C;
    int batch, length, parts;
    const float *rows_A, *rows_D, *rows_bias;            // (rows, d, n), (rows, d), (rows, d); D and the bias may be absent
    float *grad_A, *grad_D, *grad_bias;
    int rows, channels;
};

// Number i of A's, then of D's, then of the bias's gradient.
__device__ void sum_over_rows(const Arguments& a, i64 i) {
    const i64 of_A = (i64)a.channels * N;
    const float* from = a.rows_A;
    float* to = a.grad_A;
    i64 pitch = of_A;
    if (i >= of_A) {
        i -= of_A;
        const bool of_bias = i >= a.channels;
        if (of_bias) i -= a.channels;
        from = of_bias ? a.rows_bias : a.rows_D;
        to = of_bias ? a.grad_bias : a.grad_D;
        pitch = a.channels;
    }
    if (i >= pitch || !from) return;
    float sum = 0.0f;
#pragma unroll 8
    for (int row = 0; row < a.rows; row++) sum += from[row * pitch + i];
    to[i] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) selective_scan_sum(const __grid_constant__ Arguments a) {
    __shared__ float sums[SPLIT][STEPS * WIDTH];
    const int blocks = (a.length + STEPS - 1) / STEPS, after = (int)blockIdx.x - a.batch * blocks;
    wait_for_previous_kernel();
    if (after >= 0) return sum_over_rows(a, (i64)after * THREADS + threadIdx.x);

    const int row = blockIdx.x / blocks, first = blockIdx.x % blocks * STEPS;
    const int share = threadIdx.x / (STEPS * WIDTH), i = threadIdx.x % (STEPS * WIDTH), t = first + i / WIDTH;
    float sum = 0.0f;
    if (t < a.length) {
        const float* from = a.workspace + ((i64)row * a.length + first) * WIDTH + i;
        const i64 pitch = (i64)a.batch * a.length * WIDTH;
#pragma unroll 8
        for (int part = share; part < a.parts; part += SPLIT) sum += from[part * pitch];
    }
    sums[share][i] = sum;
    __syncthreads();
    if (share > 0 || t >= a.length) return;
#pragma unroll
    for (int other = 1; other < SPLIT; other++) sum += sums[other][i];
    const int n = i % WIDTH / (2 * STATES) * STATES + i % STATES;
    if (n >= N) return;
    if (i / STATES % 2) a.grad_C[row * a.by_C.row + n * a.by_C.channel + t * a.by_C.time] = from_float<C_TYPE>(sum);
    else a.grad_B[row * a.by_B.row + n * a.by_B.channel + t * a.by_B.time] = from_float<B_TYPE>(sum);
}
