// AdamW (arXiv 1711.05101, algorithm 2) over a range of flat weights, and the norm of all gradients that it clips by. Nothing is
// read back by the host: the factor goes from one kernel to the next in the GPU's memory.
//
// The gradient of an element is the sum of two, either of which may be absent: float32, of earlier micro-batches, and NARROW, of
// the last one. Bytes of an element, with NARROW alone: 2 for the norm, 12 read + 12 written of weights and moments, 2 of the
// gradient, 2 more where it is set to zero, 2 of the working copy.
//
// check: -DNARROW=bf16
// check: -DNARROW=f16
// check: -DNARROW=float
#include "access.cuh"

#define THREADS 256

template <int N> DEVICE int valid_at(i64 i, i64 count) { return count - i < N ? count < i ? 0 : (int)(count - i) : N; }

// 4 numbers in a row, as load8 and store8 of access.cuh: so neighbours read side by side what is 4 bytes wide.
template <class T> DEVICE bool is_whole(const T* p, int valid) { return valid == 4 && ((u64)p & (4 * sizeof(T) - 1)) == 0; }
template <class T> DEVICE void load(const T* p, int valid, float (&x)[4]) {
    if (is_whole(p, valid)) Access<4>::load(p, x);
    else {
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = i < valid ? to_float(p[i]) : 0.0f;
    }
}
template <class T> DEVICE void store(T* p, int valid, const float (&x)[4]) {
    if (is_whole(p, valid)) Access<4>::store(p, x);
    else {
#pragma unroll
        for (int i = 0; i < 4; i++) if (i < valid) p[i] = from_float<T>(x[i]);
    }
}
template <class T> DEVICE void load(const T* p, int valid, float (&x)[8]) { load8(p, valid, x); }

template <int N> DEVICE void load_gradient(const float* wide, const NARROW* narrow, i64 i, int valid, float (&g)[N]) {
#pragma unroll
    for (int j = 0; j < N; j++) g[j] = 0.0f;
    if (wide) load(wide + i, valid, g);
    if (narrow) {
        float more[N];
        load(narrow + i, valid, more);
#pragma unroll
        for (int j = 0; j < N; j++) g[j] += more[j];
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
        load_gradient(a.wide, a.narrow, i, valid_at<8>(i, a.count), g);
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
    float* wide; NARROW* narrow;                 // the gradients, or none
    NARROW* working;                             // the new weights for the model; or none
    const float* norm;                           // what gradient_norm gave
    i64 count;
    float rate, decay;                           // the learning rate over the mean's correction; the learning rate times the weight decay
    float beta1, beta2, rest1, rest2;            // rest = 1 - beta
    float root_scale, epsilon;                   // one over the root of the square's correction
    int clear_wide, clear_narrow;                // whether these are set to zero
};

extern "C" __global__ void __launch_bounds__(THREADS) adamw(const __grid_constant__ StepArguments a) {
    constexpr int Groups = 2;
    const i64 first = blockIdx.x * (i64)(THREADS * 4 * Groups) + threadIdx.x * 4;
    const float norm = a.norm[0], factor = a.norm[1];
    if (norm - norm == 0.0f) {  // a gradient that is no number leaves weights and moments as they were
        float w[Groups][4], m[Groups][4], v[Groups][4], g[Groups][4];
#pragma unroll
        for (int q = 0; q < Groups; q++) {
            const i64 i = first + q * THREADS * 4;
            const int valid = valid_at<4>(i, a.count);
            load(a.weights + i, valid, w[q]);
            load(a.mean + i, valid, m[q]);
            load(a.square + i, valid, v[q]);
        }
#pragma unroll
        for (int q = 0; q < Groups; q++) {  // last: these are unpacked, which waits for them
            const i64 i = first + q * THREADS * 4;
            load_gradient(a.wide, a.narrow, i, valid_at<4>(i, a.count), g[q]);
        }
#pragma unroll
        for (int q = 0; q < Groups; q++) {
            const i64 i = first + q * THREADS * 4;
            const int valid = valid_at<4>(i, a.count);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                g[q][j] *= factor;
                m[q][j] = a.beta1 * m[q][j] + a.rest1 * g[q][j];
                v[q][j] = a.beta2 * v[q][j] + a.rest2 * g[q][j] * g[q][j];
                w[q][j] -= a.decay * w[q][j];
                w[q][j] -= a.rate * m[q][j] / (sqrtf(v[q][j]) * a.root_scale + a.epsilon);
            }
            store(a.weights + i, valid, w[q]);
            store(a.mean + i, valid, m[q]);
            store(a.square + i, valid, v[q]);
            if (a.working) store(a.working + i, valid, w[q]);
        }
    }
    const float zeros[4] = {};
#pragma unroll
    for (int q = 0; q < Groups; q++) {
        const i64 i = first + q * THREADS * 4;
        const int valid = valid_at<4>(i, a.count);
        if (a.wide && a.clear_wide) store(a.wide + i, valid, zeros);
        if (a.narrow && a.clear_narrow) store(a.narrow + i, valid, zeros);
    }
}
