// What a prediction costs, over rows of logits of any length, and the gradient of it.
//   lse = log(sum over j of e^x[j])        loss = sum over rows of weight (lse - x[target])
//   grad[j] = (e^(x[j] - lse) - (j is the target)) weight g
// A block has a row, and walks along it: forward once, with a maximum that moves, so that no exponential overflows; backward
// once more. The gradient may lie where the logits were: an element is read and written by one thread. So logits of 16 bits
// cost 2 + 4 bytes a number in all, and never stand in float32. Every sum has one order.
// A target that is no column makes loss and gradient NaN. THREADS of a block: fewer for short rows.
//
// check: -DTYPE=bf16 -DTHREADS=512
// check: -DTYPE=f16 -DTHREADS=512
// check: -DTYPE=float -DTHREADS=64
#include "access.cuh"

constexpr int Warps = THREADS / 32;
constexpr float Least = -1e30f;  // instead of minus infinity, of which the difference to itself is no number
#define NOT_A_NUMBER __int_as_float(0x7fc00000)

// Numbers before the first that lies at a multiple of 16 bytes. Rows of an odd length begin anywhere.
DEVICE int lead(const TYPE* row) { return (int)((16 - ((u64)row & 15)) & 15) / (int)sizeof(TYPE); }

// For each 8 numbers of the thread: `i` where they start, which for the row's first may be before it, and whether all 8 exist.
#define EACH(row, width, i, whole) \
    for (int i = (lead(row) ? lead(row) - 8 : 0) + threadIdx.x * 8; i < (width); i += THREADS * 8) \
        if (const bool whole = i >= 0 && i + 8 <= (width); true)

DEVICE void load(const TYPE* row, int width, int i, bool whole, float (&x)[8]) {
    if (whole) load8(row + i, 8, x);
    else {
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] = i + j >= 0 && i + j < width ? to_float(row[i + j]) : -INFINITE;
    }
}

struct ForwardArguments {
    const TYPE* logits;    // (r, v)
    const i64* targets;    // (r)
    const float* weights;  // (r), or none: each row weighs `weight`
    float* lse;            // (r)
    float* losses;         // (r), weighted
    i64 rows;
    int width;
    float weight;
};

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_forward(const __grid_constant__ ForwardArguments a) {
    const TYPE* row = a.logits + blockIdx.x * (i64)a.width;
    float most = Least, sum = 0.0f;
    EACH(row, a.width, i, whole) {
        float x[8];
        load(row, a.width, i, whole, x);
        float top = x[0];
#pragma unroll
        for (int j = 1; j < 8; j++) top = fmaxf(top, x[j]);
        if (top > most) {
            sum *= exp2_fast((most - top) * LOG2_E);
            most = top;
        }
#pragma unroll
        for (int j = 0; j < 8; j++) sum += exp2_fast((x[j] - most) * LOG2_E);
    }

    __shared__ float tops[Warps], sums[Warps];
    const float top = warp_max(most);
    sum = warp_sum(sum * exp2_fast((most - top) * LOG2_E));
    if (threadIdx.x % 32 == 0) {
        tops[threadIdx.x / 32] = top;
        sums[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    most = tops[0];
    for (int w = 1; w < Warps; w++) most = fmaxf(most, tops[w]);
    sum = 0.0f;
    for (int w = 0; w < Warps; w++) sum += sums[w] * exp2_fast((tops[w] - most) * LOG2_E);
    const float lse = most + logf(sum);
    const i64 target = a.targets[blockIdx.x];
    const float x = target >= 0 && target < a.width ? to_float(row[target]) : NOT_A_NUMBER;
    a.lse[blockIdx.x] = lse;
    a.losses[blockIdx.x] = (a.weights ? a.weights[blockIdx.x] : a.weight) * (lse - x);
}

struct SumArguments {
    const float* losses;
    float* sum;
    i64 rows;
};

// One block.
extern "C" __global__ void __launch_bounds__(256) cross_entropy_sum(const __grid_constant__ SumArguments a) {
    __shared__ double sums[256];
    double sum = 0.0;
    for (i64 i = threadIdx.x; i < a.rows; i += 256) sum += a.losses[i];
    sums[threadIdx.x] = sum;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) *a.sum = (float)sums[0];
}

struct BackwardArguments {
    const TYPE* logits;    // (r, v)
    TYPE* grad_logits;     // (r, v); may be the same memory
    const i64* targets;    // (r)
    const float* weights;  // (r), or none
    const float* lse;      // (r)
    const float* grad;     // one number: the gradient of the loss
    i64 rows;
    int width;
    float weight;
};

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_backward(const __grid_constant__ BackwardArguments a) {
    const TYPE* row = a.logits + blockIdx.x * (i64)a.width;
    TYPE* grad = a.grad_logits + blockIdx.x * (i64)a.width;
    const i64 target = a.targets[blockIdx.x];
    const float lse = a.lse[blockIdx.x];
    float scale = (a.weights ? a.weights[blockIdx.x] : a.weight) * *a.grad;
    if (target < 0 || target >= a.width) scale = NOT_A_NUMBER;
    EACH(row, a.width, i, whole) {
        float x[8];
        load(row, a.width, i, whole, x);
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] = scale * (exp2_fast((x[j] - lse) * LOG2_E) - (i + j == target ? 1.0f : 0.0f));
        if (whole) store8(grad + i, 8, x);
        else {
#pragma unroll
            for (int j = 0; j < 8; j++) if (i + j >= 0 && i + j < a.width) grad[i + j] = from_float<TYPE>(x[j]);
        }
    }
}
