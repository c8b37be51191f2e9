// What the decode steps of both models share: products of a weight matrix with B vectors at the speed of memory.
//
//   TYPE  of the weights           B    rows of the batch, 1 to 16
//   SMS   multiprocessors          STAGED  bytes of shared memory for activations that other kernels made
//
// A tile is 8 rows of the matrix, a group is 64 bytes of columns. In a warp lane (g, t) of 8 x 4 holds 16 bytes of row g, so a
// load of the warp is a tile by a group. That is at once the layout of a tensor core's second operand (mma.m16n8k16, columns
// taken in another order, the same on both sides), whose first operand is the batch: 16 rows of activations, which is why B
// ends at 16. Activations are float32; for the tensor cores each is split into two 16-bit numbers, high + low, which keeps 16
// bits of bfloat16's (22 of float16's) and costs nothing: memory sets the pace. float32 weights, and GPUs before 8.0, take
// fused multiply-adds instead.
//
// A tile's columns are dealt out to the warps of a block in slices, whose sums are added in the order of the slices. Nothing in
// the order of a sum depends on B: a row's bits are the same in any batch.
#pragma once
#include "common.cuh"

#define THREADS 512
#define WARPS 16
#define TILE 8

// Two blocks of this size share a multiprocessor, so that one asks for its weights while the other ends.
#define BLOCKS_AT_ONCE (B <= 8 ? 2 : 1)

#define COUNTED __host__ __device__  // counted by the compiler, for names outside of any function too

#define MOST_ROWS 16

// What a step reads and moves on by itself; DecodeControl in C#. The host writes it when the batch changes.
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

constexpr int VECTOR = 16 / sizeof(TYPE);  // columns of a lane's 16 bytes
constexpr int GROUP = 4 * VECTOR;          // columns of a group

#if defined(WEIGHTS_16) && __CUDA_ARCH__ >= 800
#define TENSOR_CORES 1
#else
#define TENSOR_CORES 0
#endif

// How much of its weights a block asks the second-level cache for before it may read activations, in bytes.
#ifndef PREFETCH
#define PREFETCH 98304
#endif

COUNTED constexpr int groups(int columns) { return (columns + GROUP - 1) / GROUP; }
COUNTED constexpr int tiles(int rows) { return (rows + TILE - 1) / TILE; }

// The most slices with which the blocks of one matrix still stand on the multiprocessors all at once. DecodeGrid.cs counts alike.
COUNTED constexpr int slices(int rows, int columns, int blocks) {
    int s = WARPS;
    while (s > 1 && ((tiles(rows) + WARPS / s - 1) / (WARPS / s) > blocks || groups(columns) < s)) s /= 2;
    return s;
}

// --- Activations as the products read them: (group, row of the batch, GROUP); for the tensor cores twice, high and low ---
COUNTED constexpr int packed_words(int columns) { return groups(columns) * GROUP * B / 4; }  // of 16 bytes

DEVICE void pack_one(Words* x, int columns, int b, int column, float value) {
    const int at = (column / GROUP * B + b) * GROUP + column % GROUP;
#if TENSOR_CORES
    TYPE* halves = (TYPE*)x;
    TYPE high = from_float<TYPE>(value);
    halves[at] = high;
    halves[groups(columns) * GROUP * B + at] = from_float<TYPE>(value - to_float(high));
#else
    ((float*)x)[at] = value;
#endif
}

// The last column brings the zeros behind it.
DEVICE void pack(Words* x, int columns, int b, int column, float value) {
    pack_one(x, columns, b, column, value);
    if (columns % GROUP != 0 && column == columns - 1)
        for (int c = columns; c < groups(columns) * GROUP; c++) pack_one(x, columns, b, c, 0);
}

// Whether a block copies activations of so many columns into shared memory: one wait instead of many short ones. Where that
// would leave no room for the next kernel's block, the products read them where they lie. DecodeGrid.cs decides alike.
COUNTED constexpr bool is_staged(int columns) { return packed_words(columns) * 16 <= STAGED; }

// The copy; nobody reads it before the next __syncthreads.
DEVICE void stage(const Words* x, int columns, Words* to) {
    for (int i = threadIdx.x; i < packed_words(columns); i += THREADS) to[i] = x[i];
}

// --- Weights ---
DEVICE Words read_once(const void* p) {
    Words w;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w) : "l"(p));
    return w;
}

// VECTOR columns of a row from a column on; zeros behind the last.
template <int COLUMNS> DEVICE Words read_weights(const TYPE* row, int column) {
    Words w = {0, 0, 0, 0};
    if (COLUMNS % VECTOR == 0) {
        if (COLUMNS % GROUP == 0 || column < COLUMNS) w = read_once(row + column);
    } else {
        union { TYPE values[VECTOR]; Words words; } u;
        u.words = w;
#pragma unroll
        for (int j = 0; j < VECTOR; j++)
            if (column + j < COLUMNS) u.values[j] = row[column + j];
        w = u.words;
    }
    return w;
}

// Asks for the share of the weights that this block reads first. Whole rows, so one piece of memory.
template <int ROWS, int COLUMNS> DEVICE void prefetch(const TYPE* w, int first, int count) {
#if __CUDA_ARCH__ >= 900
    if (COLUMNS % VECTOR != 0 || first >= ROWS || threadIdx.x >= 32) return;
    const i64 bytes = (i64)min(count, ROWS - first) * COLUMNS * (i64)sizeof(TYPE), end = bytes < PREFETCH ? bytes : PREFETCH;
    const char* from = (const char*)(w + (i64)first * COLUMNS);
    for (i64 at = threadIdx.x * 4096; at < end; at += 32 * 4096) {
        const u32 size = (u32)(end - at < 4096 ? end - at : 4096);
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" :: "l"(from + at), "r"(size) : "memory");
    }
#endif
}

// A line that the end of the block will want.
DEVICE void prefetch_line(const void* p) { asm volatile("prefetch.global.L2 [%0];" :: "l"(p)); }

// --- The sums of a warp: one tile by B ---
#if TENSOR_CORES
DEVICE void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1, bf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
DEVICE void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1, f16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

struct Sums {
    float high[4], low[4];  // rows g and g + 8 of the batch, rows 2t and 2t + 1 of the tile

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < 4; i++) high[i] = low[i] = 0;
    }

    DEVICE static Words row(const Words* x, int group, int b, int t) {
        if (b < B) return x[(group * B + b) * 4 + t];
        return Words{0, 0, 0, 0};
    }

    DEVICE void add(Words w, const Words* x, int columns, int group) {
        const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
        part(high, w, x, group, g, t);
        part(low, w, x, groups(columns) + group, g, t);
    }

    DEVICE static void part(float (&c)[4], Words w, const Words* x, int group, int g, int t) {
        const Words a = row(x, group, g, t);
        Words a8 = {0, 0, 0, 0};
        if (B > 8) a8 = row(x, group, g + 8, t);
        multiply(c, a.x, a8.x, a.y, a8.y, w.x, w.y, TYPE());
        multiply(c, a.z, a8.z, a.w, a8.w, w.z, w.w, TYPE());
    }

    // To (B, TILE).
    DEVICE void store(float* to) {
        const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
        if (g < B) {
            to[g * TILE + 2 * t] = high[0] + low[0];
            to[g * TILE + 2 * t + 1] = high[1] + low[1];
        }
        if (g + 8 < B) {
            to[(g + 8) * TILE + 2 * t] = high[2] + low[2];
            to[(g + 8) * TILE + 2 * t + 1] = high[3] + low[3];
        }
    }
};
#else
struct Sums {
    float sums[B];  // of row g of the tile, this lane's columns

    DEVICE void clear() {
#pragma unroll
        for (int b = 0; b < B; b++) sums[b] = 0;
    }

    DEVICE void add(Words w, const Words* x, int, int group) {
        union { Words words; TYPE values[VECTOR]; } u;
        u.words = w;
        const int t = threadIdx.x & 3;
#pragma unroll
        for (int b = 0; b < B; b++) {
            const Quad<float>* from = (const Quad<float>*)x + (group * B + b) * VECTOR + t * (VECTOR / 4);
#pragma unroll
            for (int j = 0; j < VECTOR; j += 4) {
                const Quad<float> q = from[j / 4];
                sums[b] = fmaf(to_float(u.values[j]), q.x, sums[b]);
                sums[b] = fmaf(to_float(u.values[j + 1]), q.y, sums[b]);
                sums[b] = fmaf(to_float(u.values[j + 2]), q.z, sums[b]);
                sums[b] = fmaf(to_float(u.values[j + 3]), q.w, sums[b]);
            }
        }
    }

    DEVICE void store(float* to) {
        const int g = (threadIdx.x & 31) >> 2;
#pragma unroll
        for (int b = 0; b < B; b++) {
            float sum = sums[b];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            if ((threadIdx.x & 3) == 0) to[b * TILE + g] = sum;
        }
    }
};
#endif

// Loads of a lane that are on their way at once: a divisor of all of them where there is one.
COUNTED constexpr int loads_ahead(int count) {
    for (int ahead = 8; ahead >= 4; ahead--)
        if (count % ahead == 0) return ahead;
    return 8;
}

// Adds one slice of a row times x.
template <int COLUMNS, int SLICES> DEVICE void accumulate(Sums& sums, const TYPE* row, int slice, const Words* x) {
    constexpr int ALL = groups(COLUMNS), COUNT = ALL / SLICES, AHEAD = loads_ahead(COUNT);
    constexpr bool EVEN = ALL % SLICES == 0 && COUNT % AHEAD == 0;
    const int from = EVEN ? slice * COUNT : ALL * slice / SLICES, to = EVEN ? from + COUNT : ALL * (slice + 1) / SLICES;
    const int column = (threadIdx.x & 3) * VECTOR;
    for (int at = from; at < to; at += AHEAD) {
        Words w[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (EVEN || at + i < to) w[i] = read_weights<COLUMNS>(row, (at + i) * GROUP + column);
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (EVEN || at + i < to) sums.add(w[i], x, COLUMNS, at + i);
    }
}

template <int SLICES> COUNTED constexpr int rows_at_once() { return WARPS / SLICES * TILE; }

// All rows of a product that fall to one block of several: part(sums, row, slice) adds what a warp has, finish(row, b, sum) takes
// a sum, on one thread. partial: WARPS * TILE * B floats of shared memory.
template <int ROWS, int SLICES, class Part, class Finish>
DEVICE void project(int block, int blocks, float* partial, Part part, Finish finish) {
    constexpr int WIDTH = rows_at_once<SLICES>();
    const int warp = threadIdx.x >> 5, g = (threadIdx.x & 31) >> 2, tile = warp / SLICES, slice = warp % SLICES;
    for (int first = block * WIDTH; first < ROWS; first += blocks * WIDTH) {
        Sums sums;
        sums.clear();
        part(sums, min(first + tile * TILE + g, ROWS - 1), slice);
        sums.store(partial + warp * TILE * B);
        __syncthreads();
        for (int i = threadIdx.x; i < WIDTH * B; i += THREADS) {
            const int r = i % WIDTH, b = i / WIDTH;
            const float* p = partial + r / TILE * SLICES * TILE * B + b * TILE + r % TILE;
            float sum = p[0];
#pragma unroll
            for (int s = 1; s < SLICES; s++) sum += p[s * TILE * B];
            if (first + r < ROWS) finish(first + r, b, sum);
        }
        __syncthreads();
    }
}

// --- Norms ---

// The totals over the block of B values a thread, to every thread. scratch: (WARPS + 1) * B floats.
DEVICE void block_sums(float (&values)[B], float* scratch) {
#pragma unroll
    for (int b = 0; b < B; b++) {
        const float sum = warp_sum(values[b]);
        if ((threadIdx.x & 31) == 0) scratch[(threadIdx.x >> 5) * B + b] = sum;
    }
    __syncthreads();
    if (threadIdx.x < B) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += scratch[w * B + threadIdx.x];
        scratch[WARPS * B + threadIdx.x] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int b = 0; b < B; b++) values[b] = scratch[WARPS * B + b];
}

// x = RMSNorm(residual), or LayerNorm where there is a bias: (B, COLUMNS) float32, packed into shared memory.
template <int COLUMNS, bool CENTRED>
DEVICE void normalise(const float* residual, const TYPE* weight, const TYPE* bias, float epsilon, Words* x, float* scratch) {
    constexpr int EACH = (COLUMNS + THREADS - 1) / THREADS;
    float mean[B], scale[B];
#pragma unroll
    for (int b = 0; b < B; b++) mean[b] = scale[b] = 0;
    if (CENTRED) {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int c = threadIdx.x + i * THREADS;
            if (c < COLUMNS)
#pragma unroll
                for (int b = 0; b < B; b++) mean[b] += residual[b * COLUMNS + c];
        }
        block_sums(mean, scratch);
#pragma unroll
        for (int b = 0; b < B; b++) mean[b] *= 1.0f / COLUMNS;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int c = threadIdx.x + i * THREADS;
        if (c < COLUMNS)
#pragma unroll
            for (int b = 0; b < B; b++) {
                const float centred = residual[b * COLUMNS + c] - mean[b];
                scale[b] = fmaf(centred, centred, scale[b]);
            }
    }
    block_sums(scale, scratch);
#pragma unroll
    for (int b = 0; b < B; b++) scale[b] = 1.0f / sqrtf(scale[b] * (1.0f / COLUMNS) + epsilon);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int c = threadIdx.x + i * THREADS;
        if (c < COLUMNS) {
            const float w = to_float(weight[c]), shift = CENTRED ? to_float(bias[c]) : 0;
#pragma unroll
            for (int b = 0; b < B; b++) pack(x, COLUMNS, b, c, fmaf((residual[b * COLUMNS + c] - mean[b]) * scale[b], w, shift));
        }
    }
    __syncthreads();
}
