// What a prediction costs, over rows of logits of any length, and the gradient of it.
//   lse = log(sum over j of e^x[j])        loss = sum over rows of weight (lse - x[target])
//   grad[j] = (e^(x[j] - lse) - (j is the target)) weight g
// A block has a row, and walks along it: forward once, with a maximum that moves, so that no exponential overflows; backward
// once more. The gradient may lie where the logits were: an element is read and written by one thread. So logits of 16 bits
// cost 2 + 4 bytes a number in all, and never stand in float32. Every sum has one order.
// A target that is no column makes loss and gradient NaN. THREADS of a block: fewer for short rows. TOGETHER: accesses of 8
// numbers that a thread has on their way at once.
//
// check: -DTYPE=bf16 -DTHREADS=512
// check: -DTYPE=f16 -DTHREADS=256
// check: -DTYPE=float -DTHREADS=64
#include "access.cuh"

constexpr int Warps = THREADS / 32;
constexpr float Least = -1e30f;  // instead of minus infinity, of which the difference to itself is no number
#define NOT_A_NUMBER __int_as_float(0x7fc00000)

#ifndef TOGETHER
#define TOGETHER 4
#endif

// 8 numbers at a multiple of 16 bytes.
struct Eight { Words words[sizeof(TYPE) / 2]; };
DEVICE Eight read(const TYPE* p) {
    Eight e;
#pragma unroll
    for (int i = 0; i < (int)sizeof(TYPE) / 2; i++) e.words[i] = ((const Words*)p)[i];
    return e;
}
DEVICE void write(TYPE* p, const float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < (int)sizeof(TYPE) / 2; i++) ((Words*)p)[i] = pack(x + 4 * i, TYPE{});
}
DEVICE void unpack(const Eight& e, float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < (int)sizeof(TYPE) / 2; i++) unpack(e.words[i], x + 4 * i, TYPE{});
}

// How a row lies: rows of an odd length begin anywhere. Its eights start at multiples of 16 bytes; some numbers stand before the
// first of them, and some behind the last.
struct Row {
    const TYPE* start;
    int before, eights, width;
    DEVICE Row(const TYPE* start, int width) : start(start), width(width) {
        before = min((int)((16 - ((u64)start & 15)) & 15) / (int)sizeof(TYPE), width);
        eights = (width - before) / 8;
    }
    DEVICE int at(int eight) const { return before + eight * 8; }
    // The numbers at the ends, of which a thread has one: its place, or -1.
    DEVICE int end(int thread) const {
        const int place = thread < before ? thread : thread + eights * 8;
        return place < width ? place : -1;
    }
};

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
    const Row row(a.logits + blockIdx.x * (i64)a.width, a.width);
    float most = Least, sum = 0.0f;
    if (const int i = row.end(threadIdx.x); i >= 0) {
        most = fmaxf(Least, to_float(row.start[i]));
        sum = exp2_fast((to_float(row.start[i]) - most) * LOG2_E);
    }
    for (int first = threadIdx.x; first < row.eights; first += THREADS * TOGETHER) {
        Eight e[TOGETHER];
#pragma unroll
        for (int q = 0; q < TOGETHER; q++) if (const int i = first + q * THREADS; i < row.eights) e[q] = read(row.start + row.at(i));
#pragma unroll
        for (int q = 0; q < TOGETHER; q++) {
            if (first + q * THREADS >= row.eights) break;
            float x[8];
            unpack(e[q], x);
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
    const float x = target >= 0 && target < a.width ? to_float(row.start[target]) : NOT_A_NUMBER;
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
    const Row row(a.logits + blockIdx.x * (i64)a.width, a.width);
    TYPE* grad = a.grad_logits + blockIdx.x * (i64)a.width;
    const i64 target = a.targets[blockIdx.x];
    const float lse = a.lse[blockIdx.x];
    float scale = (a.weights ? a.weights[blockIdx.x] : a.weight) * *a.grad;
    if (target < 0 || target >= a.width) scale = NOT_A_NUMBER;
    if (const int i = row.end(threadIdx.x); i >= 0)
        grad[i] = from_float<TYPE>(scale * (exp2_fast((to_float(row.start[i]) - lse) * LOG2_E) - (i == target ? 1.0f : 0.0f)));
    // Rows of logits and of the gradient begin alike, or one of them is walked along number by number.
    if (((u64)grad ^ (u64)row.start) & 15) {
        for (int i = row.before + threadIdx.x; i < row.at(row.eights); i += THREADS)
            grad[i] = from_float<TYPE>(scale * (exp2_fast((to_float(row.start[i]) - lse) * LOG2_E) - (i == target ? 1.0f : 0.0f)));
        return;
    }
    const int column = (int)target - row.before;  // of the eights' numbers
    for (int first = threadIdx.x; first < row.eights; first += THREADS * TOGETHER) {
        Eight e[TOGETHER];
#pragma unroll
        for (int q = 0; q < TOGETHER; q++) if (const int i = first + q * THREADS; i < row.eights) e[q] = read(row.start + row.at(i));
#pragma unroll
        for (int q = 0; q < TOGETHER; q++) {
            const int i = first + q * THREADS;
            if (i >= row.eights) break;
            float x[8];
            unpack(e[q], x);
#pragma unroll
            for (int j = 0; j < 8; j++) x[j] = scale * exp2_fast((x[j] - lse) * LOG2_E);
            if (i == column >> 3) {
#pragma unroll
                for (int j = 0; j < 8; j++) if (j == (column & 7)) x[j] -= scale;
            }
            write(grad + row.at(i), x);
        }
    }
}
