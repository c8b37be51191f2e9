// What a decode step reads and moves on by itself.
#pragma once
#include "common.cuh"

#define MOST_ROWS 16

// DecodeControl in C#. The host writes it when the batch changes.
struct Control {
    int ids[MOST_ROWS];        // the last token of each row
    int positions[MOST_ROWS];  // tokens before it
    int room[MOST_ROWS];       // tokens that its cache has room for
    u32 steps[MOST_ROWS];      // steps so far
    u64 random[MOST_ROWS];     // the state of each row's generator
    u64 greatest[MOST_ROWS];   // `ranked` of each row's greatest logit, from `head` to `choose`; else 0
    double top_p;              // share of the probability that is kept
    float inverse_temperature; // 0: greedy
    float penalty;
    int top_k;                 // tokens that are kept; 0: all
    int count;                 // rows that are there: at most B
};

// A logit and its id as one number, which is the greater for a greater logit and, of equal ones, for a lower id, as the CPU's Sampler
// chooses. What is not a number is above all; nothing is 0.
DEVICE u64 ranked(float logit, int id) {
    const u32 bits = logit == 0 ? 0 : __float_as_uint(logit), order = logit != logit ? ~0u : bits >> 31 ? ~bits : bits | 0x80000000u;
    return (u64)order << 32 | (u32)~id;
}
DEVICE float ranked_logit(u64 ranked) {
    const u32 order = (u32)(ranked >> 32);
    return __uint_as_float(order >> 31 ? order ^ 0x80000000u : ~order);
}
DEVICE int ranked_id(u64 ranked) { return (int)~(u32)ranked; }
