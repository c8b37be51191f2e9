// The convolution of a Mamba layer with its SiLU: each channel by itself, looking back K positions.
//   pre[t] = bias + sum over j of weight[j] u[t - (K - 1) + j]        y[t] = pre[t] sigmoid(pre[t])
// Time is contiguous, the strides of rows and channels are free.
//
// A block has one channel, so that the gradients of its weights are summed in one place and in one order. A thread takes 8
// positions of a row at a time, and reads the K - 1 before and after these by itself: they are in the cache, and no thread waits
// for another. 32 registers forward, 48 backward (sm_90, K = 4); 72 and 75% of the memory's speed on an H100.
//
// check: -DTYPE=bf16 -DK=4
// check: -DTYPE=f16 -DK=2
// check: -DTYPE=float -DK=8
// check: -DTYPE=float -DK=1
#include "access.cuh"

#define WARPS 5

struct ForwardArguments {
    const TYPE* u;          // (b, e, l)
    const TYPE* weight;     // (e, k)
    const TYPE* bias;       // (e), or none
    TYPE* y;                // (b, e, l)
    const float* state;     // (b, e, k): the k inputs before these, the oldest first; none: zeros
    float* next_state;      // the last k inputs; may be the same memory
    i64 u_row, u_channel, y_row, y_channel, state_row;
    int rows, channels, length;
};

DEVICE float input(const TYPE* u, const float* state, int t) {
    return t >= 0 ? to_float(u[t]) : state ? state[K + t] : 0.0f;
}

// As many numbers beside 8 as an access has of which K - 1 count.
constexpr int Near = K - 1 <= 4 ? 4 : 8;
DEVICE void load_near(const TYPE* p, float (&x)[4]) { Access<4>::load(p, x); }
DEVICE void load_near(const TYPE* p, float (&x)[8]) { load8(p, 8, x); }

// The K - 1 inputs before position t, a multiple of 8.
DEVICE void load_before(const TYPE* u, const float* state, int t, float* x) {
    if (t > 0 && is_aligned(u + t)) {
        float near[Near];
        load_near(u + t - Near, near);
#pragma unroll
        for (int j = 0; j < K - 1; j++) x[j] = near[Near - (K - 1) + j];
    } else {
#pragma unroll
        for (int j = 0; j < K - 1; j++) x[j] = input(u, state, t - (K - 1) + j);
    }
}

// The K - 1 numbers from t on; beyond the end zeros.
DEVICE void load_after(const TYPE* p, int t, int length, float* x) {
    if (t + Near <= length && is_aligned(p + t)) {
        float near[Near];
        load_near(p + t, near);
#pragma unroll
        for (int j = 0; j < K - 1; j++) x[j] = near[j];
    } else {
#pragma unroll
        for (int j = 0; j < K - 1; j++) x[j] = t + j < length ? to_float(p[t + j]) : 0.0f;
    }
}

DEVICE void load_own(const TYPE* p, int t, int length, float* x) {
    float own[8];
    load8(p + t, length - t, own);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = own[j];
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) conv_forward(const __grid_constant__ ForwardArguments a) {
    const int channel = blockIdx.x, eights = (a.length + 7) / 8;
    float w[K];
#pragma unroll
    for (int j = 0; j < K; j++) w[j] = to_float(a.weight[channel * K + j]);
    const float bias = a.bias ? to_float(a.bias[channel]) : 0.0f;

    for (int i = threadIdx.x; i < a.rows * eights; i += WARPS * 32) {
        const int row = i / eights, t = i % eights * 8;
        const TYPE* u = a.u + row * a.u_row + channel * a.u_channel;
        float x[K + 7], y[8];
        load_own(u, t, a.length, x + K - 1);
        load_before(u, a.state ? a.state + row * a.state_row + channel * K : nullptr, t, x);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float pre = bias;
#pragma unroll
            for (int k = 0; k < K; k++) pre += w[k] * x[j + k];
            y[j] = silu(pre);
        }
        store8(a.y + row * a.y_row + channel * a.y_channel + t, a.length - t, y);
    }

    if (!a.next_state) return;
    // Every warp has read the old state; of a short input some of it moves down, which is read before any of it is written.
    for (int first = 0; first < a.rows * K; first += WARPS * 32) {
        const int i = first + threadIdx.x, row = i / K, j = i % K;
        float value = 0.0f;
        if (row < a.rows) value = input(a.u + row * a.u_row + channel * a.u_channel, a.state ? a.state + row * a.state_row + channel * K : nullptr, a.length - K + j);
        __syncthreads();
        if (row < a.rows) a.next_state[row * a.state_row + channel * K + j] = value;
    }
}

// One position: a thread for each row and channel.
extern "C" __global__ void conv_step(const __grid_constant__ ForwardArguments a) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.rows * a.channels) return;
    const int row = i / a.channels, channel = i % a.channels;
    const TYPE* u = a.u + row * a.u_row + channel * a.u_channel;
    const float* state = a.state ? a.state + row * a.state_row + channel * K : nullptr;
    float x[K], pre = a.bias ? to_float(a.bias[channel]) : 0.0f;
#pragma unroll
    for (int j = 0; j < K; j++) {
        x[j] = input(u, state, j - (K - 1));
        pre += to_float(a.weight[channel * K + j]) * x[j];
    }
    a.y[row * a.y_row + channel * a.y_channel] = from_float<TYPE>(silu(pre));
    if (!a.next_state) return;
#pragma unroll
    for (int j = 0; j < K; j++) a.next_state[row * a.state_row + channel * K + j] = x[j];
}

struct BackwardArguments {
    const TYPE* u;          // (b, e, l)
    const TYPE* weight;     // (e, k)
    const TYPE* bias;       // (e), or none
    const TYPE* grad_y;     // (b, e, l)
    const TYPE* grad_y_more; // (b, e, l), with the strides of grad_y: added to it; or none
    TYPE* grad_u;           // (b, e, l), or none
    TYPE* grad_weight;      // (e, k), or none
    TYPE* grad_bias;        // (e), or none
    i64 u_row, u_channel, grad_y_row, grad_y_channel, grad_u_row, grad_u_channel;
    int rows, channels, length;
    int add;                // whether grad_weight and grad_bias are added to
};

DEVICE void put(TYPE* p, float value, int add) { *p = from_float<TYPE>(add ? to_float(*p) + value : value); }

extern "C" __global__ void __launch_bounds__(WARPS * 32) conv_backward(const __grid_constant__ BackwardArguments a) {
    const int channel = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, eights = (a.length + 7) / 8;
    float w[K], grad_w[K] = {}, grad_b = 0.0f;
#pragma unroll
    for (int j = 0; j < K; j++) w[j] = to_float(a.weight[channel * K + j]);
    const float bias = a.bias ? to_float(a.bias[channel]) : 0.0f;

    for (int i = threadIdx.x; i < a.rows * eights; i += WARPS * 32) {
        const int row = i / eights, t = i % eights * 8;
        const TYPE* u = a.u + row * a.u_row + channel * a.u_channel;
        const i64 from = row * a.grad_y_row + channel * a.grad_y_channel;
        float x[2 * K + 6], g[K + 7];  // from t - (K - 1) to t + 8 + (K - 2); from t on
        load_own(u, t, a.length, x + K - 1);
        load_own(a.grad_y + from, t, a.length, g);
        load_before(u, nullptr, t, x);
        load_after(u, t + 8, a.length, x + K + 7);
        load_after(a.grad_y + from, t + 8, a.length, g + 8);
        if (a.grad_y_more) {
            float more[K + 7];
            load_own(a.grad_y_more + from, t, a.length, more);
            load_after(a.grad_y_more + from, t + 8, a.length, more + 8);
#pragma unroll
            for (int j = 0; j < K + 7; j++) g[j] += more[j];
        }
#pragma unroll
        for (int j = 0; j < K + 7; j++) {
            float pre = bias;
#pragma unroll
            for (int k = 0; k < K; k++) pre += w[k] * x[j + k];
            const float s = sigmoid(pre);
            g[j] *= s * (1.0f + pre * (1.0f - s));  // beyond the end zero, as grad_y is
        }
        if (a.grad_u) {
            float grad_u[8];
#pragma unroll
            for (int j = 0; j < 8; j++) {
                grad_u[j] = 0.0f;
#pragma unroll
                for (int k = 0; k < K; k++) grad_u[j] += w[k] * g[j + K - 1 - k];
            }
            store8(a.grad_u + row * a.grad_u_row + channel * a.grad_u_channel + t, a.length - t, grad_u);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            grad_b += g[j];
#pragma unroll
            for (int k = 0; k < K; k++) grad_w[k] += g[j] * x[j + k];
        }
    }

    __shared__ float sums[WARPS][K + 1];
#pragma unroll
    for (int k = 0; k < K; k++) {
        const float sum = warp_sum(grad_w[k]);
        if (lane == 0) sums[warp][k] = sum;
    }
    grad_b = warp_sum(grad_b);
    if (lane == 0) sums[warp][K] = grad_b;
    __syncthreads();
    if (threadIdx.x > K) return;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) sum += sums[i][threadIdx.x];
    if (threadIdx.x < K) { if (a.grad_weight) put(a.grad_weight + channel * K + threadIdx.x, sum, a.add); }
    else if (a.grad_bias) put(a.grad_bias + channel, sum, a.add);
}
