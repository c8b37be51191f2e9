// The gradients of B and C from the workspace of selective_scan_backward: sums over the parts, in order. A block takes
// THREADS / (2 PADDED) steps of a row; the part of its threads that has one step lies side by side in the workspace.
//
// check: -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=16 -DLANES=8 -DSTATES=2 -DTHREADS=256
// check: -DB_TYPE=float -DC_TYPE=f16 -DN=3 -DLANES=2 -DSTATES=2 -DTHREADS=256
// check: -DB_TYPE=float -DC_TYPE=float -DN=256 -DLANES=32 -DSTATES=8 -DTHREADS=512
#include "common.cuh"

#define WIDTH (2 * LANES * STATES)                       // of a step in the workspace
#define STEPS (THREADS / WIDTH)

struct Strides { i64 row, channel, time; };
struct Arguments {
    const float* workspace;                              // (parts, b, l, WIDTH)
    B_TYPE* grad_B; C_TYPE* grad_C;
    Strides by_B, by_C;
    int batch, length, parts;
};

extern "C" __global__ void __launch_bounds__(THREADS) selective_scan_sum(const __grid_constant__ Arguments a) {
    const int blocks = (a.length + STEPS - 1) / STEPS;
    const int row = blockIdx.x / blocks, t = blockIdx.x % blocks * STEPS + threadIdx.x / WIDTH, i = threadIdx.x % WIDTH;
    if (t >= a.length) return;
    const float* from = a.workspace + ((i64)row * a.length + t) * WIDTH + i;
    const i64 pitch = (i64)a.batch * a.length * WIDTH;
    float sum = 0.0f;
#pragma unroll 8
    for (int part = 0; part < a.parts; part++) sum += from[part * pitch];
    const int n = i / (2 * STATES) * STATES + i % STATES;
    if (n >= N) return;
    if (i / STATES % 2) a.grad_C[row * a.by_C.row + n * a.by_C.channel + t * a.by_C.time] = from_float<C_TYPE>(sum);
    else a.grad_B[row * a.by_B.row + n * a.by_B.channel + t * a.by_B.time] = from_float<B_TYPE>(sum);
}
