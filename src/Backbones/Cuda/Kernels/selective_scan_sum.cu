// The gradients of B and C from the workspace of selective_scan_backward: sums over the parts, always in the same order. A block
// takes STEPS steps of a row. SPLIT threads share the parts of a sum, so that few steps keep the memory busy, too.
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
};

extern "C" __global__ void __launch_bounds__(THREADS) selective_scan_sum(const __grid_constant__ Arguments a) {
    __shared__ float sums[SPLIT][STEPS * WIDTH];
    const int blocks = (a.length + STEPS - 1) / STEPS;
    const int row = blockIdx.x / blocks, first = blockIdx.x % blocks * STEPS;
    const int share = threadIdx.x / (STEPS * WIDTH), i = threadIdx.x % (STEPS * WIDTH), t = first + i / WIDTH;
    wait_for_previous_kernel();

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
