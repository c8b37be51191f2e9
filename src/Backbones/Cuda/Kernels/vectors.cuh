// N numbers side by side, aligned to their size: one access of up to 16 bytes.
#pragma once
#include "common.cuh"

// --- 4, 8 or 16 bytes as words. In assembly, because a compiler that merges branches forgets what it knew of an alignment ---
DEVICE void load_words(const void* p, u32 (&w)[1]) { asm volatile("ld.global.u32 %0, [%1];" : "=r"(w[0]) : "l"(p)); }
DEVICE void load_words(const void* p, u32 (&w)[2]) { asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(w[0]), "=r"(w[1]) : "l"(p)); }
DEVICE void load_words(const void* p, u32 (&w)[4]) {
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]) : "l"(p));
}
DEVICE void store_words(void* p, const u32 (&w)[1]) { asm volatile("st.global.u32 [%0], %1;" :: "l"(p), "r"(w[0]) : "memory"); }
DEVICE void store_words(void* p, const u32 (&w)[2]) { asm volatile("st.global.v2.u32 [%0], {%1, %2};" :: "l"(p), "r"(w[0]), "r"(w[1]) : "memory"); }
DEVICE void store_words(void* p, const u32 (&w)[4]) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" :: "l"(p), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory");
}

// --- Numbers ---
DEVICE float from_bits(u32 bits, float) { return __uint_as_float(bits); }
DEVICE float from_bits(u32 bits, bf16) { return to_float(bf16{(u16)bits}); }
DEVICE float from_bits(u32 bits, f16) { return to_float(f16{(u16)bits}); }
DEVICE u32 to_bits(float x, float) { return __float_as_uint(x); }
template <class T> DEVICE u32 to_bits(float x, T) { return from_float<T>(x).bits; }

template <int N, class T> DEVICE void load_vector(const T* p, float (&x)[N]) {
    if constexpr (N * sizeof(T) < 4) x[0] = to_float(*p);
    else {
        constexpr int Each = 4 / sizeof(T);  // numbers of a word
        u32 w[N / Each];
        load_words(p, w);
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = from_bits(w[i / Each] >> (32 / Each * (i % Each)), T{});
    }
}
template <int N, class T> DEVICE void store_vector(T* p, const float (&x)[N]) {
    if constexpr (N * sizeof(T) < 4) *p = from_float<T>(x[0]);
    else {
        constexpr int Each = 4 / sizeof(T);
        u32 w[N / Each] = {};
#pragma unroll
        for (int i = 0; i < N; i++) w[i / Each] |= to_bits(x[i], T{}) << (32 / Each * (i % Each));
        store_words(p, w);
    }
}
template <int N, class T> DEVICE void copy_vector(const T* from, T* to) {
    if constexpr (N * sizeof(T) < 4) *to = *from;
    else {
        u32 w[N * sizeof(T) / 4];
        load_words(from, w);
        store_words(to, w);
    }
}
