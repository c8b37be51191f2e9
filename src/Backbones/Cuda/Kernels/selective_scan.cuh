// What the two passes of the selective scan share: the threads' roles, loads along time, and sums over lanes.
//
// N states of a channel are spread over LANES threads side by side, S = STATES of them each: state q S + s is number s of
// lane q. A tile is STEPS steps of time. For what is done once a step and channel (softplus, gate, loads and stores), lane q
// owns the E steps from q E on; with fewer steps than lanes the last lanes own none.
#pragma once
#include "common.cuh"

#define PADDED (LANES * STATES)                          // n, with zeros behind
#define WIDTH (2 * PADDED)                               // numbers of B and C in a step
#define E (STEPS >= LANES ? STEPS / LANES : 1)
#define CHUNK 64                                         // steps between two states kept for the backward pass
#define WARPS (THREADS / 32)

struct Strides { i64 row, channel, time; };

template <bool VALUE> struct Flag { static constexpr bool value = VALUE; };
template <class X, class Y> struct Same { static constexpr bool yes = false; };
template <class X> struct Same<X, X> { static constexpr bool yes = true; };

// --- Numbers of memory along time, as they are, in words of registers ---
template <class T, int COUNT> struct Raw { u32 words[COUNT * sizeof(T) >= 4 ? COUNT * sizeof(T) / 4 : 1]; };

template <class T, int WORDS> DEVICE float get(const u32 (&words)[WORDS], int i) {
    if constexpr (sizeof(T) == 4) return __int_as_float(words[i]);
    else if constexpr (Same<T, bf16>::yes) return i % 2 ? high_bf16(words[i / 2]) : low_bf16(words[i / 2]);
    else { T x; x.bits = (u16)(words[i / 2] >> (i % 2 * 16)); return to_float(x); }
}

DEVICE u32 bits_of(float x) { return __float_as_int(x); }
DEVICE u32 bits_of(bf16 x) { return x.bits; }
DEVICE u32 bits_of(f16 x) { return x.bits; }

// COUNT steps from p on, of which `left` exist; zeros behind.
template <class T, int COUNT, bool ALIGNED_16, int WORDS> DEVICE void load_steps(u32 (&words)[WORDS], const T* p, i64 stride, int left) {
    constexpr int BYTES = COUNT * sizeof(T);
    if constexpr (ALIGNED_16 && BYTES % 16 == 0) {
        if (left >= COUNT) {
#pragma unroll
            for (int i = 0; i < BYTES / 16; i++) {
                Words w = ((const Words*)p)[i];
                words[4 * i] = w.x; words[4 * i + 1] = w.y; words[4 * i + 2] = w.z; words[4 * i + 3] = w.w;
            }
            return;
        }
    } else if constexpr (ALIGNED_16 && BYTES == 8) {
        if (left >= COUNT) {
            Pair<u32> w = *(const Pair<u32>*)p;
            words[0] = w.x; words[1] = w.y;
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < WORDS; i++) words[i] = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        if (i < left) {
            if constexpr (sizeof(T) == 4) words[i] = bits_of(p[i * stride]);
            else words[i / 2] |= bits_of(p[i * stride]) << (i % 2 * 16);
        }
}

template <class T, bool ALIGNED_16> DEVICE void store_steps(T* p, i64 stride, int left, const float (&x)[E]) {
    constexpr int BYTES = E * sizeof(T);
    if constexpr (ALIGNED_16 && BYTES % 8 == 0) {
        if (left >= E) {
            u32 words[BYTES / 4];
#pragma unroll
            for (int i = 0; i < BYTES / 4; i++) {
                if constexpr (sizeof(T) == 4) words[i] = bits_of(from_float<T>(x[i]));
                else words[i] = bits_of(from_float<T>(x[2 * i])) | bits_of(from_float<T>(x[2 * i + 1])) << 16;
            }
            if constexpr (BYTES == 8) *(Pair<u32>*)p = Pair<u32>{words[0], words[1]};
            else {
#pragma unroll
                for (int i = 0; i < BYTES / 16; i++) ((Words*)p)[i] = Words{words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]};
            }
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < E; i++)
        if (i < left) p[i * stride] = from_float<T>(x[i]);
}

// --- B and C of a tile: in registers of all threads of the block, eight steps of one state each, and from there in shared
// memory as [step][lane][S of B, S of C] ---
#define OCTETS (WIDTH * (STEPS / 8))
#define HELD_OCTETS ((OCTETS + THREADS - 1) / THREADS)
struct Octet { u32 words[8]; };

// WHOLE: all steps of the tile exist, so that nothing has to be asked for each.
template <class TB, class TC, bool ALIGNED_16, bool WHOLE = false>
DEVICE void load_tile_inputs(Octet (&to)[HELD_OCTETS], const TB* B, const Strides& b, const TC* C, const Strides& c, int left, bool with_C = true) {
#pragma unroll
    for (int j = 0; j < HELD_OCTETS; j++) {
        const int i = threadIdx.x + j * THREADS, n = i % PADDED, oct = i / WIDTH;
        const bool second = i / PADDED % 2;
        if (OCTETS % THREADS != 0 && i >= OCTETS) break;
        const int mine = (PADDED > N && n >= N) || (second && !with_C) ? 0 : WHOLE ? 8 : left - oct * 8;
        if constexpr (Same<TB, TC>::yes) {
            const i64 time = ALIGNED_16 ? 1 : second ? c.time : b.time;
            load_steps<TB, 8, ALIGNED_16>(to[j].words, (second ? C : B) + n * (second ? c.channel : b.channel) + oct * 8 * time, time, mine);
        } else {
            if (second) load_steps<TC, 8, ALIGNED_16>(to[j].words, C + n * c.channel + oct * 8 * c.time, c.time, mine);
            else load_steps<TB, 8, ALIGNED_16>(to[j].words, B + n * b.channel + oct * 8 * b.time, b.time, mine);
        }
    }
}

// With state s of a lane in the place of s ^ order.
template <class TB, class TC> DEVICE void store_tile_inputs(float* to, const Octet (&from)[HELD_OCTETS], int order = 0) {
#pragma unroll
    for (int j = 0; j < HELD_OCTETS; j++) {
        const int i = threadIdx.x + j * THREADS, n = i % PADDED, second = i / PADDED % 2, oct = i / WIDTH;
        if (OCTETS % THREADS != 0 && i >= OCTETS) break;
        float* at = to + oct * 8 * WIDTH + n / STATES * 2 * STATES + second * STATES + ((n % STATES) ^ order);
        if (second || Same<TB, TC>::yes) {
#pragma unroll
            for (int k = 0; k < 8; k++) at[k * WIDTH] = get<TC>(from[j].words, k);
        } else {
#pragma unroll
            for (int k = 0; k < 8; k++) at[k * WIDTH] = get<TB>(from[j].words, k);
        }
    }
}

// The same for types of 16 bits each, which stay as they are, as [two steps][lane][step][S of B, S of C].
template <class TB, class TC> DEVICE void store_tile_inputs(u16* to, const Octet (&from)[HELD_OCTETS]) {
#pragma unroll
    for (int j = 0; j < HELD_OCTETS; j++) {
        const int i = threadIdx.x + j * THREADS, n = i % PADDED, second = i / PADDED % 2, oct = i / WIDTH;
        if (OCTETS % THREADS != 0 && i >= OCTETS) break;
        u16* at = to + oct * 8 * WIDTH + n / STATES * 4 * STATES + second * STATES + n % STATES;
#pragma unroll
        for (int k = 0; k < 8; k++) at[k / 2 * 2 * WIDTH + k % 2 * 2 * STATES] = (u16)(from[j].words[k / 2] >> (k % 2 * 16));
    }
}

// --- Shared memory, by the widest access: COUNT floats at a multiple of their size or of 16 bytes ---
template <int COUNT> DEVICE void read_vector(const float* p, float (&x)[COUNT]) {
    if constexpr (COUNT == 1) x[0] = *p;
    else if constexpr (COUNT == 2) { Pair<float> v = *(const Pair<float>*)p; x[0] = v.x; x[1] = v.y; }
    else {
#pragma unroll
        for (int i = 0; i < COUNT / 4; i++) {
            Quad<float> v = ((const Quad<float>*)p)[i];
            x[4 * i] = v.x; x[4 * i + 1] = v.y; x[4 * i + 2] = v.z; x[4 * i + 3] = v.w;
        }
    }
}
template <int COUNT> DEVICE void write_vector(float* p, const float (&x)[COUNT]) {
    if constexpr (COUNT == 1) *p = x[0];
    else if constexpr (COUNT == 2) *(Pair<float>*)p = Pair<float>{x[0], x[1]};
    else {
#pragma unroll
        for (int i = 0; i < COUNT / 4; i++) ((Quad<float>*)p)[i] = Quad<float>{x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]};
    }
}
template <int COUNT> DEVICE void read_vector(const u16* p, u32 (&words)[COUNT]) {
    if constexpr (COUNT == 1) words[0] = *(const u32*)p;
    else if constexpr (COUNT == 2) { Pair<u32> v = *(const Pair<u32>*)p; words[0] = v.x; words[1] = v.y; }
    else {
#pragma unroll
        for (int i = 0; i < COUNT / 4; i++) {
            Words v = ((const Words*)p)[i];
            words[4 * i] = v.x; words[4 * i + 1] = v.y; words[4 * i + 2] = v.z; words[4 * i + 3] = v.w;
        }
    }
}

// {step, what enters of u} of COUNT steps.
template <int COUNT> DEVICE void read_steps(const float* p, float (&dt)[COUNT], float (&du)[COUNT]) {
    float pairs[2 * COUNT];
    read_vector<2 * COUNT>(p, pairs);
#pragma unroll
    for (int i = 0; i < COUNT; i++) { dt[i] = pairs[2 * i]; du[i] = pairs[2 * i + 1]; }
}

// B, or B and C, of step t; p is where the lane's are in step 0.
DEVICE void read_B(const float* p, int t, float (&B)[STATES]) { read_vector<STATES>(p + t * WIDTH, B); }
DEVICE void read_inputs(const float* p, int t, float (&B)[STATES], float (&C)[STATES]) {
    float x[2 * STATES];
    read_vector<2 * STATES>(p + t * WIDTH, x);
#pragma unroll
    for (int s = 0; s < STATES; s++) { B[s] = x[s]; C[s] = x[STATES + s]; }
}
// B and C of steps t and t + 1; p is where the lane's are in steps 0 and 1.
DEVICE void read_two_steps(const float* p, int t, float (&B)[2][STATES], float (&C)[2][STATES]) {
    read_inputs(p, t, B[0], C[0]);
    read_inputs(p, t + 1, B[1], C[1]);
}
DEVICE void read_two_steps(const u16* p, int t, float (&B)[2][STATES], float (&C)[2][STATES]) {
    u32 words[2 * STATES];
    read_vector(p + t * WIDTH, words);
#pragma unroll
    for (int s = 0; s < STATES; s++) {
        B[0][s] = get<B_TYPE>(words, s); C[0][s] = get<C_TYPE>(words, STATES + s);
        B[1][s] = get<B_TYPE>(words, 2 * STATES + s); C[1][s] = get<C_TYPE>(words, 3 * STATES + s);
    }
}

// S states of a lane in memory [.., n]; those behind n are zero. State s ^ order is number s.
DEVICE void load_states(const float* p, int q, int order, float (&x)[STATES]) {
#pragma unroll
    for (int s = 0; s < STATES; s++) {
        const int n = q * STATES + (s ^ order);
        x[s] = n < N ? p[n] : 0.0f;
    }
}
DEVICE void store_states(float* p, int q, int order, const float (&x)[STATES]) {
#pragma unroll
    for (int s = 0; s < STATES; s++) {
        const int n = q * STATES + (s ^ order);
        if (n < N) p[n] = x[s];
    }
}
