// Several numbers of memory at once, as float32 in registers. Addresses that are not aligned, and ends of rows, go one by one.
#pragma once
#include "common.cuh"

// --- Two numbers of a 32-bit word ---
DEVICE void unpack(u32 word, float& first, float& second, bf16) { first = low_bf16(word); second = high_bf16(word); }
DEVICE void unpack(u32 word, float& first, float& second, f16) {
    first = to_float(f16{(u16)word});
    second = to_float(f16{(u16)(word >> 16)});
}
template <class T> DEVICE u32 packed(float first, float second) {
    return (u32)from_float<T>(first).bits | (u32)from_float<T>(second).bits << 16;
}

// --- 16 bytes ---
DEVICE void unpack(Words w, float* x, float) {
    x[0] = __uint_as_float(w.x); x[1] = __uint_as_float(w.y); x[2] = __uint_as_float(w.z); x[3] = __uint_as_float(w.w);
}
template <class T> DEVICE void unpack(Words w, float* x, T type) {
    unpack(w.x, x[0], x[1], type); unpack(w.y, x[2], x[3], type); unpack(w.z, x[4], x[5], type); unpack(w.w, x[6], x[7], type);
}
DEVICE Words pack(const float* x, float) {
    return {__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3])};
}
template <class T> DEVICE Words pack(const float* x, T) {
    return {packed<T>(x[0], x[1]), packed<T>(x[2], x[3]), packed<T>(x[4], x[5]), packed<T>(x[6], x[7])};
}
DEVICE bool is_aligned(const void* p) { return ((u64)p & 15) == 0; }

// --- 8 numbers in a row, of which the first `valid` exist; the others read as zero and are not written ---
template <class T> DEVICE void load8(const T* p, int valid, float (&x)[8]) {
    if (valid >= 8 && is_aligned(p)) {
        const Words* words = (const Words*)p;
#pragma unroll
        for (int i = 0; i < (int)sizeof(T) / 2; i++) unpack(words[i], x + 4 * i, T{});
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = i < valid ? to_float(p[i]) : 0.0f;
    }
}
template <class T> DEVICE void store8(T* p, int valid, const float (&x)[8]) {
    if (valid >= 8 && is_aligned(p)) {
        Words* words = (Words*)p;
#pragma unroll
        for (int i = 0; i < (int)sizeof(T) / 2; i++) words[i] = pack(x + 4 * i, T{});
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) if (i < valid) p[i] = from_float<T>(x[i]);
    }
}

// --- N numbers in a row (4, aligned to their size, or 1) ---
template <int N> struct Access;
template <> struct Access<1> {
    template <class T> static DEVICE void load(const T* p, float* x) { x[0] = to_float(p[0]); }
    template <class T> static DEVICE void store(T* p, const float* x) { p[0] = from_float<T>(x[0]); }
};
template <> struct Access<4> {
    static DEVICE void load(const float* p, float* x) { unpack(*(const Words*)p, x, 0.0f); }
    static DEVICE void store(float* p, const float* x) { *(Words*)p = pack(x, 0.0f); }
    template <class T> static DEVICE void load(const T* p, float* x) {
        Pair<u32> w = *(const Pair<u32>*)p;
        unpack(w.x, x[0], x[1], T{});
        unpack(w.y, x[2], x[3], T{});
    }
    template <class T> static DEVICE void store(T* p, const float* x) {
        *(Pair<u32>*)p = {packed<T>(x[0], x[1]), packed<T>(x[2], x[3])};
    }
};
