// What stands before and behind the layers of a decode step, for both models: the embedding of the last ids, the head, and the
// choice of the next ids, which stay on the GPU for the next step and go to the host's memory beside it.
//
// check: -DTYPE=bf16 -DWEIGHTS_16 -DB=1 -DSMS=132 -DSTAGED=98304 -DD=1536 -DV=50280 -DLAYER_NORM=false
// check: -DTYPE=f16 -DWEIGHTS_16 -DB=16 -DSMS=132 -DSTAGED=98304 -DD=2560 -DV=50304 -DLAYER_NORM=true
// check: -DTYPE=float -DB=4 -DSMS=40 -DSTAGED=20000 -DD=37 -DV=101 -DLAYER_NORM=true
#include "decode.cuh"

#define RING 64  // steps that the host may lag behind

struct Ends {
    const TYPE* table;              // (v, d)
    const TYPE *norm, *norm_bias;   // (d)
    const TYPE* head;               // (v, d)
    float* residual;                // (B, d)
    float* logits;                  // (B, v)
    Control* control;
    u32* seen;                      // (MOST_ROWS, words of v bits): the tokens that the penalty is for
    volatile u64* ring;             // (RING, MOST_ROWS), the host's memory: step << 32 | id
    float epsilon;
};

extern "C" __global__ void __launch_bounds__(256) embed(const __grid_constant__ Ends a) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const int b = blockIdx.y, id = a.control->ids[b];
    const TYPE* row = a.table + (i64)(id < 0 || id >= V ? 0 : id) * D;
    for (int c = blockIdx.x * 256 + threadIdx.x; c < D; c += gridDim.x * 256) a.residual[b * D + c] = to_float(row[c]);
}

constexpr int HEAD_SLICES = slices(V, D, SMS);

extern __shared__ Words dynamic[];  // (B, d), packed

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) head(const __grid_constant__ Ends a) {
    __shared__ float partial[WARPS * TILE * B], scratch[(WARPS + 1) * B];
    constexpr int WIDTH = rows_at_once<HEAD_SLICES>();
    let_next_kernel_start();
    prefetch<V, D>(a.head, blockIdx.x * WIDTH, WIDTH);
    wait_for_previous_kernel();
    normalise<D, LAYER_NORM>(a.residual, a.norm, a.norm_bias, a.epsilon, dynamic, scratch);
    project<V, HEAD_SLICES>(blockIdx.x, gridDim.x, partial,
        [&](Sums& sums, int row, int slice) { accumulate<D, HEAD_SLICES>(sums, a.head + (i64)row * D, slice, dynamic); },
        [&](int row, int b, float sum) { a.logits[(i64)b * V + row] = sum; });
}

#define CHOOSERS 1024
#define NONE 0x7fffffff
constexpr int SEEN_WORDS = (V + 31) / 32;

// The greater logit, of equal ones the first: as the CPU's Sampler.
struct Best {
    float logit;
    int id;
    DEVICE void take(float other, int other_id) {
        if (other > logit || (other == logit && other_id < id)) {
            logit = other;
            id = other_id;
        }
    }
};

DEVICE Best best_of_warp(Best best) {
#pragma unroll
    for (int distance = 16; distance > 0; distance >>= 1) {
        const float logit = __shfl_xor_sync(0xffffffffu, best.logit, distance);
        const int id = __shfl_xor_sync(0xffffffffu, best.id, distance);
        best.take(logit, id);
    }
    return best;
}

// The next id of one row a block. Where the logits are not finite, the host reads -1.
extern "C" __global__ void __launch_bounds__(CHOOSERS) choose(const __grid_constant__ Ends a) {
    __shared__ float logits_of[32];
    __shared__ int ids_of[32];
    let_next_kernel_start();
    wait_for_previous_kernel();
    const int b = blockIdx.x;
    Control& control = *a.control;
    if (b >= control.count) return;

    float* logits = a.logits + (i64)b * V;
    u32* seen = a.seen + b * SEEN_WORDS;
    const float penalty = control.penalty;
    Best best = {-INFINITE, NONE};
    int broken = 0;
#pragma unroll 8
    for (int i = threadIdx.x; i < V; i += CHOOSERS) {
        float logit = logits[i];
        if (penalty != 1.0f && (seen[i >> 5] >> (i & 31) & 1)) {
            logit = logit > 0 ? logit / penalty : logit * penalty;
            logits[i] = logit;
        }
        broken |= logit != logit;
        best.take(logit, i);
    }
    best = best_of_warp(best);
    if ((threadIdx.x & 31) == 0) {
        logits_of[threadIdx.x >> 5] = best.logit;
        ids_of[threadIdx.x >> 5] = best.id;
    }
    broken = __syncthreads_or(broken);
    best.logit = logits_of[threadIdx.x & 31];
    best.id = ids_of[threadIdx.x & 31];
    best = best_of_warp(best);
    broken |= !(fabsf(best.logit) < INFINITE);

    if (threadIdx.x != 0) return;
    const int id = broken ? -1 : best.id;
    if (!broken && penalty != 1.0f) seen[id >> 5] |= 1u << (id & 31);
    const u32 step = control.steps[b] + 1;
    control.steps[b] = step;
    control.positions[b]++;
    control.ids[b] = id;
    a.ring[step % RING * MOST_ROWS + b] = (u64)step << 32 | (u32)id;
}
