// AdamW (arXiv 1711.05101, algorithm 2) over a range of flat weights, and the norm of all gradients that it clips by. Nothing is
// read back by the host: the factor goes from one kernel to the next in the GPU's memory.
//
// The gradient of an element is the sum of two, either of which may be absent: float32, of earlier micro-batches, and NARROW, of
// the last one. Bytes of an element, with NARROW alone: 2 for the norm, 12 read + 12 written of weights and moments, 2 + 2 of the
// gradient, 2 of the working copy.
//
// check: -DNARROW=bf16
// check: -DNARROW=f16
// check: -DNARROW=float
#include "access.cuh"

#define THREADS 256

DEVICE int valid_at(i64 i, i64 count) { return count - i < 8 ? (int)(count - i) : 8; }

DEVICE void load_gradient(const float* wide, const NARROW* narrow, i64 i, int valid, float (&g)[8]) {
#pragma unroll
    for (int j = 0; j < 8; j++) g[j] = 0.0f;
    if (wide) load8(wide + i, valid, g);
    if (narrow) {
        float more[8];
        load8(narrow + i, valid, more);
#pragma unroll
        for (int j = 0; j < 8; j++) g[j] += more[j];
    }
}

// --- The norm: a partial sum for each block, then one block over these ---
struct SquaresArguments {
    const float* wide; const NARROW* narrow;  // (count) each, or none
    i64 count;
    double* sums;                             // (blocks)
};

DEVICE double block_sum(double x) {
    __shared__ double sums[THREADS];
    sums[threadIdx.x] = x;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    __syncthreads();
    return sums[0];
}

extern "C" __global__ void __launch_bounds__(THREADS) gradient_squares(const __grid_constant__ SquaresArguments a) {
    double sum = 0.0;
    for (i64 i = (blockIdx.x * (i64)THREADS + threadIdx.x) * 8; i < a.count; i += gridDim.x * (i64)THREADS * 8) {
        float g[8], squares = 0.0f;
        load_gradient(a.wide, a.narrow, i, valid_at(i, a.count), g);
#pragma unroll
        for (int j = 0; j < 8; j++) squares += g[j] * g[j];
        sum += squares;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) a.sums[blockIdx.x] = sum;
}

struct NormArguments {
    const double* sums;
    float* result;       // the norm, and what the gradients are multiplied by
    int count;
    float most;          // the greatest norm; 0: any
};

extern "C" __global__ void __launch_bounds__(THREADS) gradient_norm(const __grid_constant__ NormArguments a) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < a.count; i += THREADS) sum += a.sums[i];
    sum = block_sum(sum);
    if (threadIdx.x != 0) return;
    const float norm = (float)sqrt(sum);
    a.result[0] = norm;
    a.result[1] = a.most > 0.0f ? fminf(1.0f, a.most / (norm + 1e-6f)) : 1.0f;
}

// --- The step ---
struct StepArguments {
    float* weights; float* mean; float* square;  // (count) each
    float* wide; NARROW* narrow;                 // the gradients, set to zero; or none
    NARROW* working;                             // the new weights for the model; or none
    const float* norm;                           // what gradient_norm gave
    i64 count;
    float rate, decay;                           // the learning rate over the mean's correction; the learning rate times the weight decay
    float beta1, beta2, rest1, rest2;            // rest = 1 - beta
    float root_scale, epsilon;                   // one over the root of the square's correction
};

extern "C" __global__ void __launch_bounds__(THREADS) adamw(const __grid_constant__ StepArguments a) {
    const i64 i = (blockIdx.x * (i64)THREADS + threadIdx.x) * 8;
    if (i >= a.count) return;
    const int valid = valid_at(i, a.count);
    const float norm = a.norm[0], factor = a.norm[1];
    if (norm - norm == 0.0f) {  // a gradient that is no number leaves weights and moments as they were
        float w[8], m[8], v[8], g[8];
        load8(a.weights + i, valid, w);
        load8(a.mean + i, valid, m);
        load8(a.square + i, valid, v);
        load_gradient(a.wide, a.narrow, i, valid, g);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            g[j] *= factor;
            m[j] = a.beta1 * m[j] + a.rest1 * g[j];
            v[j] = a.beta2 * v[j] + a.rest2 * g[j] * g[j];
            w[j] -= a.decay * w[j];
            w[j] -= a.rate * m[j] / (sqrtf(v[j]) * a.root_scale + a.epsilon);
        }
        store8(a.weights + i, valid, w);
        store8(a.mean + i, valid, m);
        store8(a.square + i, valid, v);
        if (a.working) store8(a.working + i, valid, w);
    }
    const float zeros[8] = {};
    if (a.wide) store8(a.wide + i, valid, zeros);
    if (a.narrow) store8(a.narrow + i, valid, zeros);
}
