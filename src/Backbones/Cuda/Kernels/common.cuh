// What every kernel starts from. NVRTC is given no header of CUDA's: only its built-in names are used.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct bf16 { u16 bits; };
struct f16 { u16 bits; };
template <class T> struct alignas(2 * sizeof(T)) Pair { T x, y; };
template <class T> struct alignas(4 * sizeof(T)) Quad { T x, y, z, w; };
struct alignas(16) Words { u32 x, y, z, w; };  // 16 bytes, the widest access

#define DEVICE __device__ __forceinline__
#define INFINITE __int_as_float(0x7f800000)

// --- Numbers in memory, as float32 in registers ---
DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __int_as_float((u32)x.bits << 16); }
DEVICE float to_float(f16 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }

template <class T> DEVICE T from_float(float x);
template <> DEVICE float from_float<float>(float x) { return x; }
template <> DEVICE f16 from_float<f16>(float x) { f16 y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }
template <> DEVICE bf16 from_float<bf16>(float x) {
    bf16 y;
#if __CUDA_ARCH__ >= 900
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    u32 bits = __float_as_int(x);
    y.bits = x != x ? 0x7fff : (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to the nearest, ties to even
#endif
    return y;
}

// Two bf16 of one word: the first is the lower half.
DEVICE float low_bf16(u32 word) { return __int_as_float(word << 16); }
DEVICE float high_bf16(u32 word) { return __int_as_float(word & 0xffff0000u); }

// --- Functions by the special function unit: one instruction each, relative error about 2^-22 ---
DEVICE float exp2_fast(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float log2_fast(float x) { float y; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float reciprocal_fast(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

// log(1 + e^x), within 1e-6 of itself: max(x, 0) + t p(t) with t = e^-|x|. (The special function unit's logarithm near one
// would lose small step sizes.)
DEVICE float softplus(float x) {
    float t = exp2_fast(-LOG2_E * fabsf(x));
    float p = fmaf(fmaf(fmaf(fmaf(fmaf(fmaf(fmaf(-0.00853920973f, t, 0.0440896355f), t, -0.107681718f), t, 0.177452417f), t, -0.244954629f), t, 0.332754798f), t, -0.499974054f), t, 0.999999806f);
    return fmaf(t, p, fmaxf(x, 0.0f));
}
DEVICE float sigmoid(float x) { return reciprocal_fast(1.0f + exp2_fast(-x * LOG2_E)); }
DEVICE float silu(float x) { return x * sigmoid(x); }

// --- Sums over the threads of a warp: every thread gets the same bits ---
DEVICE float warp_sum(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance >>= 1) x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}
DEVICE float warp_max(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

// --- Programmatic dependent launch: what may be done before the kernel ahead has ended, and after ---
DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
