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
    double top_p;              // share of the probability that is kept
    float inverse_temperature; // 0: greedy
    float penalty;
    int top_k;                 // tokens that are kept; 0: all
    int count;                 // rows that are there: at most B
};
