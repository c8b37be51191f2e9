// What the two passes of the selective scan share: the threads' roles, loads along time, and sums over lanes.
//
// N states of a channel are spread over LANES threads side by side, S = STATES of them each: state q S + s is number s of
// lane q. A tile is STEPS steps of time. For what is done once a step and channel (softplus, gate, loads and stores), lane q
// owns the E steps from q E on; with fewer steps than lanes the last lanes own none.
#pragma once
#include "common.cuh"

#define PADDED (LANES * STATES)                          // n, with zeros behind
#define E (STEPS >= LANES ? STEPS / LANES : 1)
#define CHUNK 64                                         // steps between two states kept for the backward pass
#define WARPS (THREADS / 32)

struct Strides { i64 row, channel, time; };

// E numbers of memory, as they are, in registers.
template <class T> struct Raw { u32 words[E * sizeof(T) >= 4 ? E * sizeof(T) / 4 : 1]; };

template <class T> DEVICE float get(const Raw<T>& raw, int i) {
    if constexpr (sizeof(T) == 4) return __int_as_float(raw.words[i]);
    else { T x; x.bits = (u16)(raw.words[i / 2] >> (i % 2 * 16)); return to_float(x); }
}
template <> DEVICE float get<bf16>(const Raw<bf16>& raw, int i) { return i % 2 ? high_bf16(raw.words[i / 2]) : low_bf16(raw.words[i / 2]); }

DEVICE u32 bits_of(float x) { return __float_as_int(x); }
DEVICE u32 bits_of(bf16 x) { return x.bits; }
DEVICE u32 bits_of(f16 x) { return x.bits; }

// The steps from p on, of which `left` exist; zeros behind.
template <class T, bool ALIGNED_16> DEVICE Raw<T> load_steps(const T* p, i64 stride, int left) {
    Raw<T> raw;
    constexpr int WORDS = sizeof(raw.words) / 4;
    if (ALIGNED_16 && WORDS % 4 == 0 && left >= E) {
#pragma unroll
        for (int i = 0; i < WORDS / 4; i++) {
            Words w = ((const Words*)p)[i];
            raw.words[4 * i] = w.x; raw.words[4 * i + 1] = w.y; raw.words[4 * i + 2] = w.z; raw.words[4 * i + 3] = w.w;
        }
        return raw;
    }
#pragma unroll
    for (int i = 0; i < WORDS; i++) raw.words[i] = 0;
#pragma unroll
    for (int i = 0; i < E; i++)
        if (i < left) {
            if constexpr (sizeof(T) == 4) raw.words[i] = bits_of(p[i * stride]);
            else raw.words[i / 2] |= bits_of(p[i * stride]) << (i % 2 * 16);
        }
    return raw;
}

template <class T, bool ALIGNED_16> DEVICE void store_steps(T* p, i64 stride, int left, const float (&x)[E]) {
    Raw<T> raw;
    constexpr int WORDS = sizeof(raw.words) / 4;
    if (ALIGNED_16 && WORDS % 4 == 0 && left >= E) {
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            if constexpr (sizeof(T) == 4) raw.words[i] = bits_of(from_float<T>(x[i]));
            else raw.words[i] = bits_of(from_float<T>(x[2 * i])) | bits_of(from_float<T>(x[2 * i + 1])) << 16;
        }
#pragma unroll
        for (int i = 0; i < WORDS / 4; i++)
            ((Words*)p)[i] = Words{raw.words[4 * i], raw.words[4 * i + 1], raw.words[4 * i + 2], raw.words[4 * i + 3]};
        return;
    }
#pragma unroll
    for (int i = 0; i < E; i++)
        if (i < left) p[i * stride] = from_float<T>(x[i]);
}

DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// COUNT numbers of every thread, summed over WIDTH threads that lie STRIDE apart, in an order that is always the same.
// Afterwards thread w of them holds the sums from first_sum(w) on, sums_held of them, in x[0], x[1], ...
// A step hands half of the sums over and keeps the other half, so that it costs COUNT shuffles in all.
template <int COUNT, int WIDTH> DEVICE constexpr int sums_held() { return COUNT > WIDTH ? COUNT / WIDTH : 1; }
template <int COUNT, int WIDTH> DEVICE int first_sum(int w) {
    if constexpr (COUNT >= WIDTH) return w * (COUNT / WIDTH);
    else return w / (WIDTH / COUNT);
}

template <int COUNT, int WIDTH, int STRIDE> DEVICE void sum_lanes(float (&x)[COUNT], int w) {
    if constexpr (WIDTH > 1) {
        int count = COUNT;
#pragma unroll
        for (int distance = WIDTH / 2; distance > 0; distance /= 2) {
            if (count > 1) {
                count /= 2;
                const bool upper = w & distance;
#pragma unroll
                for (int i = 0; i < COUNT / 2; i++)
                    if (i < count) {
                        float give = upper ? x[i] : x[i + count];
                        float keep = upper ? x[i + count] : x[i];
                        x[i] = keep + __shfl_xor_sync(0xffffffffu, give, distance * STRIDE);
                    }
            } else {
                x[0] += __shfl_xor_sync(0xffffffffu, x[0], distance * STRIDE);
            }
        }
    }
}

// Step sizes and what enters, for the steps of a channel: blocks of 8 steps, 16 floats {step, step u} and 4 of padding, so
// that neither the owners' writes nor the reads of all channels of a warp meet in a bank. Sums take a block's place when
// its steps are done.
#define BLOCK_PITCH 20
#define CHANNEL_PITCH (STEPS / 8 * BLOCK_PITCH + 4)
DEVICE int step_at(int t) { return t / 8 * BLOCK_PITCH + t % 8 * 2; }
DEVICE void write_steps(float* channel, int t, const float (&pairs)[2 * E]) {
    float* to = channel + step_at(t);                    // E divides 8: the steps of a lane are in one block
    if constexpr (E == 1) *(Pair<float>*)to = Pair<float>{pairs[0], pairs[1]};
    else {
#pragma unroll
        for (int i = 0; i < E / 2; i++) ((Quad<float>*)to)[i] = Quad<float>{pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]};
    }
}

// B and C of a tile as [step][lane][S of B, S of C].
template <class T, bool ALIGNED_16> DEVICE void load_inputs(float* to, const T* from, i64 state_stride, i64 time_stride, int n, int oct, int left, int second) {
    float* at = to + oct * 8 * 2 * PADDED + n / STATES * 2 * STATES + second * STATES + n % STATES;
    if (n < N && ALIGNED_16 && left >= 8) {
        const Words* p = (const Words*)(from + n * state_stride + oct * 8);
        if constexpr (sizeof(T) == 4) {
            Words a = p[0], b = p[1];
            const u32 words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
            for (int i = 0; i < 8; i++) at[i * 2 * PADDED] = __int_as_float(words[i]);
        } else {
            Words a = p[0];
            const u32 words[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
            for (int i = 0; i < 8; i++) { T x; x.bits = (u16)(words[i / 2] >> (i % 2 * 16)); at[i * 2 * PADDED] = to_float(x); }
        }
        return;
    }
    const T* p = from + n * state_stride + oct * 8 * time_stride;
#pragma unroll
    for (int i = 0; i < 8; i++) at[i * 2 * PADDED] = n < N && i < left ? to_float(p[i * time_stride]) : 0.0f;
}

// The whole tile, by all threads of the block. `left`: steps that exist from its first one on.
template <class TB, class TC, bool ALIGNED_16>
DEVICE void load_tile_inputs(float* to, const TB* B, const Strides& b, const TC* C, const Strides& c, int left) {
    for (int i = threadIdx.x; i < 2 * PADDED * (STEPS / 8); i += THREADS) {
        const int n = i % PADDED, second = i / PADDED % 2, oct = i / (2 * PADDED);
        if (second) load_inputs<TC, ALIGNED_16>(to, C, c.channel, c.time, n, oct, left - oct * 8, 1);
        else load_inputs<TB, ALIGNED_16>(to, B, b.channel, b.time, n, oct, left - oct * 8, 0);
    }
}

// B and C of one step and lane.
DEVICE void read_inputs(const float* tile, int t, int q, float (&B)[STATES], float (&C)[STATES]) {
    const float* p = tile + (t * LANES + q) * 2 * STATES;
    float x[2 * STATES];
    if constexpr (STATES == 1) {
        Pair<float> v = *(const Pair<float>*)p;
        x[0] = v.x; x[1] = v.y;
    } else {
#pragma unroll
        for (int i = 0; i < STATES / 2; i++) {
            Quad<float> v = ((const Quad<float>*)p)[i];
            x[4 * i] = v.x; x[4 * i + 1] = v.y; x[4 * i + 2] = v.z; x[4 * i + 3] = v.w;
        }
    }
#pragma unroll
    for (int s = 0; s < STATES; s++) { B[s] = x[s]; C[s] = x[STATES + s]; }
}

// S states of a lane in memory [.., n]; those behind n are zero.
DEVICE void load_states(const float* p, int q, float (&x)[STATES]) {
#pragma unroll
    for (int s = 0; s < STATES; s++) x[s] = q * STATES + s < N ? p[q * STATES + s] : 0.0f;
}
DEVICE void store_states(float* p, int q, const float (&x)[STATES]) {
#pragma unroll
    for (int s = 0; s < STATES; s++)
        if (q * STATES + s < N) p[q * STATES + s] = x[s];
}
