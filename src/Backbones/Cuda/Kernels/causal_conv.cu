// The convolution of a Mamba layer with its SiLU: each channel by itself, looking back K positions.
//   pre[t] = bias + sum over j of weight[j] u[t - (K - 1) + j]        y[t] = pre[t] sigmoid(pre[t])
// Time is contiguous, the strides of rows and channels are free.
//
// A block has one channel, so that the gradients of its weights are summed in one place and in one order. A thread takes 8
// positions of a row at a time, and reads the K - 1 before and after these by itself: they are in the cache, and no thread waits
// for another.
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

// --- What a thread reads for its 8 positions: these, and K - 1 on one side or on both. All of it is on its way before any is
// unpacked, where rows lie at multiples of 16 bytes ---
template <int BYTES> struct Raw;
template <> struct Raw<8> { Pair<u32> words; };
template <> struct Raw<16> { Words words; };
template <> struct Raw<32> { Words words[2]; };
template <class T> DEVICE void spread(const Raw<8>& r, float* x, T type) { unpack(r.words.x, x[0], x[1], type); unpack(r.words.y, x[2], x[3], type); }
template <class T> DEVICE void spread(const Raw<16>& r, float* x, T type) { unpack(r.words, x, type); }
template <class T> DEVICE void spread(const Raw<32>& r, float* x, T type) { unpack(r.words[0], x, type); unpack(r.words[1], x + 4, type); }

constexpr int Near = K - 1 <= 4 ? 4 : 8;  // the access that K - 1 numbers fit into
typedef Raw<8 * sizeof(TYPE)> Own;
typedef Raw<Near * sizeof(TYPE)> Beside;

DEVICE Own read_own(const TYPE* p) { return *(const Own*)p; }
DEVICE Beside read_beside(const TYPE* p, bool exists) { return K > 1 && exists ? *(const Beside*)p : Beside{}; }
DEVICE void spread_before(const Beside& r, float* x) {
    float near[Near];
    spread(r, near, TYPE{});
#pragma unroll
    for (int j = 0; j < K - 1; j++) x[j] = near[Near - (K - 1) + j];
}
DEVICE void spread_after(const Beside& r, float* x) {
    float near[Near];
    spread(r, near, TYPE{});
#pragma unroll
    for (int j = 0; j < K - 1; j++) x[j] = near[j];
}

// The same one by one, wherever a row lies: numbers from t on; beyond the end zeros.
template <int N> DEVICE void load_plainly(const TYPE* p, int t, int length, float* x) {
#pragma unroll
    for (int j = 0; j < N; j++) x[j] = t + j < length ? to_float(p[t + j]) : 0.0f;
}
DEVICE void load_before(const TYPE* u, const float* state, int t, float* x) {
#pragma unroll
    for (int j = 0; j < K - 1; j++) x[j] = input(u, state, t - (K - 1) + j);
}
// Whether addresses and strides are multiples of 16 bytes, and rows of 8 positions.
DEVICE bool is_even(const void* p, i64 row, i64 channel, int length) {
    return (((u64)p | (u64)row * sizeof(TYPE) | (u64)channel * sizeof(TYPE)) & 15) == 0 && length % 8 == 0;
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) conv_forward(const __grid_constant__ ForwardArguments a) {
    const int channel = blockIdx.x, eights = (a.length + 7) / 8;
    float w[K];
#pragma unroll
    for (int j = 0; j < K; j++) w[j] = to_float(a.weight[channel * K + j]);
    const float bias = a.bias ? to_float(a.bias[channel]) : 0.0f;

    const bool even = is_even(a.u, a.u_row, a.u_channel, a.length);
    for (int i = threadIdx.x; i < a.rows * eights; i += WARPS * 32) {
        const int row = i / eights, t = i % eights * 8;
        const TYPE* u = a.u + row * a.u_row + channel * a.u_channel;
        const float* state = a.state ? a.state + row * a.state_row + channel * K : nullptr;
        float x[K + 7], y[8];
        if (even) {
            const Own own = read_own(u + t);
            const Beside before = read_beside(u + t - Near, t > 0);
            spread(own, x + K - 1, TYPE{});
            spread_before(before, x);
        } else load_plainly<8>(u, t, a.length, x + K - 1);
        if (!even || (t == 0 && state)) load_before(u, state, t, x);
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

    const bool even = is_even(a.u, a.u_row, a.u_channel, a.length) && is_even(a.grad_y, a.grad_y_row, a.grad_y_channel, a.length) && is_aligned(a.grad_y_more);
    for (int i = threadIdx.x; i < a.rows * eights; i += WARPS * 32) {
        const int row = i / eights, t = i % eights * 8;
        const TYPE* u = a.u + row * a.u_row + channel * a.u_channel;
        const i64 from = row * a.grad_y_row + channel * a.grad_y_channel;
        float x[2 * K + 6], g[K + 7];  // from t - (K - 1) to t + 8 + (K - 2); from t on
        if (even) {
            const bool goes_on = t + 8 < a.length;
            const TYPE *own = a.grad_y + from + t, *more = a.grad_y_more + from + t;
            const Own u0 = read_own(u + t), g0 = read_own(own), m0 = a.grad_y_more ? read_own(more) : Own{};
            const Beside before = read_beside(u + t - Near, t > 0), u1 = read_beside(u + t + 8, goes_on), g1 = read_beside(own + 8, goes_on);
            const Beside m1 = read_beside(more + 8, goes_on && a.grad_y_more);
            spread(u0, x + K - 1, TYPE{});
            spread_before(before, x);
            spread_after(u1, x + K + 7);
            spread(g0, g, TYPE{});
            spread_after(g1, g + 8);
            float further[K + 7];  // zeros, if there are none
            spread(m0, further, TYPE{});
            spread_after(m1, further + 8);
#pragma unroll
            for (int j = 0; j < K + 7; j++) g[j] += further[j];
        } else {
            load_before(u, nullptr, t, x);
            load_plainly<K + 7>(u, t, a.length, x + K - 1);
            load_plainly<K + 7>(a.grad_y + from, t, a.length, g);
            if (a.grad_y_more) {
                float further[K + 7];
                load_plainly<K + 7>(a.grad_y_more + from, t, a.length, further);
#pragma unroll
                for (int j = 0; j < K + 7; j++) g[j] += further[j];
            }
        }
#pragma unroll
        for (int j = 0; j < K + 7; j++) {
            float pre = bias;
#pragma unroll
            for (int k = 0; k < K; k++) pre += w[k] * x[j + k];
            const float s = sigmoid(pre);
            g[j] = g[j] * s * (1.0f + pre * (1.0f - s));  // beyond the end zero, as grad_y is
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
