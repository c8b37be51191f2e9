// What the decode steps of both models share: products of a weight matrix with B vectors at the speed of memory.
//
//   TYPE  of the weights      B     rows of the batch, 1 to 16
//   SMS   multiprocessors     ROOM  bytes of shared memory that a block may take: half of what falls to it
//
// A tile is 8 rows of the matrix, a group is 64 bytes of columns. In a warp lane (g, t) of 8 x 4 holds 16 bytes of row g, so a
// load of the warp is a tile by a group. That is at once the layout of a tensor core's second operand (mma.m16n8k16, columns
// taken in another order, the same on both sides), whose first operand is the batch: 16 rows of activations, which is why B
// ends at 16. Activations are float32; for the tensor cores each is split into two 16-bit numbers, high + low, which keeps 16
// bits of bfloat16's (22 of float16's) and costs nothing: memory sets the pace. float32 weights, and GPUs before 8.0, take
// fused multiply-adds instead.
//
// Nothing in the order of a sum depends on B: a row's bits are the same in any batch.
#pragma once
#include "decode_control.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)
#define TILE 8

// Blocks of a product on a multiprocessor. As many again fit beside them: those of the next kernel, which ask for their first
// weights while these end.
#define PER_SM 2
#define BLOCKS_AT_ONCE (2 * PER_SM)

#define COUNTED __host__ __device__  // counted by the compiler, for names outside of any function too

constexpr int VECTOR = 16 / sizeof(TYPE);  // columns of a lane's 16 bytes
constexpr int GROUP = 4 * VECTOR;          // columns of a group

#if defined(WEIGHTS_16) && __CUDA_ARCH__ >= 800
#define TENSOR_CORES 1
#else
#define TENSOR_CORES 0
#endif

COUNTED constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }
COUNTED constexpr int least(int a, int b) { return a < b ? a : b; }
COUNTED constexpr int most(int a, int b) { return a > b ? a : b; }
COUNTED constexpr int groups(int columns) { return divide_up(columns, GROUP); }
COUNTED constexpr int tiles(int rows) { return divide_up(rows, TILE); }

// What the host launches a kernel with: blocks, and bytes of dynamic shared memory. DecodeBatch reads it.
#define SPREAD(kernel, blocks, words) extern "C" { __constant__ int kernel##_spread[2] = {blocks, (words) * 16}; }

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

// --- Weights ---

// VECTOR columns of a row from a column on; zeros behind the last.
template <int COLUMNS> DEVICE Words read_weights(const TYPE* row, int column) {
    Words w = {0, 0, 0, 0};
    if (COLUMNS % VECTOR == 0) {
        if (COLUMNS % GROUP == 0 || column < COLUMNS) w = *(const Words*)(row + column);
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

DEVICE u32 shared_address(const void* p) {
    u64 a;
    asm("cvta.to.shared.u64 %0, %1;" : "=l"(a) : "l"(p));
    return (u32)a;
}

// 16 bytes of weights to a place in shared memory that is this thread's own: nobody else reads them, so no barrier is needed.
template <int COLUMNS> DEVICE void copy_weights(Words* to, const TYPE* w, int row, int column, bool there) {
#if __CUDA_ARCH__ >= 800
    if (COLUMNS % VECTOR == 0) {
        there = there && column < COLUMNS;
        const void* from = there ? w + (i64)row * COLUMNS + column : w;
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" :: "r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
        return;
    }
#endif
    *to = there ? read_weights<COLUMNS>(w + (i64)row * COLUMNS, column) : Words{0, 0, 0, 0};
}
DEVICE void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int LEFT> DEVICE void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" :: "n"(LEFT) : "memory");
#endif
}

DEVICE void prefetch_line(const void* p) { asm volatile("prefetch.global.L2 [%0];" :: "l"(p)); }

// Past the first-level cache, which may hold what was there before the last kernel.
DEVICE float read_fresh(const float* p) {
    float x;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(x) : "l"(p));
    return x;
}
DEVICE Words read_fresh(const Words* p) {
    Words w;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w) : "l"(p));
    return w;
}

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

// A lane's share of a group of the activations.
template <int COLUMNS, bool SHARED> struct Inputs {
    Words high, low, high8, low8;
    DEVICE static Words at(const Words* p) { return SHARED ? *p : read_fresh(p); }
    DEVICE void load(const Words* x, int group) {
        const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
        high = low = high8 = low8 = Words{0, 0, 0, 0};
        if (group >= groups(COLUMNS)) return;
        if (g < B) {
            high = at(x + (group * B + g) * 4 + t);
            low = at(x + ((groups(COLUMNS) + group) * B + g) * 4 + t);
        }
        if (g + 8 < B) {
            high8 = at(x + (group * B + g + 8) * 4 + t);
            low8 = at(x + ((groups(COLUMNS) + group) * B + g + 8) * 4 + t);
        }
    }
};

struct Sums {
    float sums[4];  // rows g and g + 8 of the batch, rows 2t and 2t + 1 of the tile

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[i] = 0;
    }

    template <int COLUMNS, bool SHARED> DEVICE void add(Words w, const Inputs<COLUMNS, SHARED>& x) {
        multiply(sums, x.high.x, x.high8.x, x.high.y, x.high8.y, w.x, w.y, TYPE());
        multiply(sums, x.high.z, x.high8.z, x.high.w, x.high8.w, w.z, w.w, TYPE());
        multiply(sums, x.low.x, x.low8.x, x.low.y, x.low8.y, w.x, w.y, TYPE());
        multiply(sums, x.low.z, x.low8.z, x.low.w, x.low8.w, w.z, w.w, TYPE());
    }

    // To (B, TILE).
    DEVICE void store(float* to) {
        const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
        if (g < B) {
            to[g * TILE + 2 * t] = sums[0];
            to[g * TILE + 2 * t + 1] = sums[1];
        }
        if (g + 8 < B) {
            to[(g + 8) * TILE + 2 * t] = sums[2];
            to[(g + 8) * TILE + 2 * t + 1] = sums[3];
        }
    }
};
#else
template <int COLUMNS, bool SHARED> struct Inputs {
    const Words* at;
    DEVICE void load(const Words* x, int group) { at = x + min(group, groups(COLUMNS) - 1) * B * (GROUP / 4); }
};

struct Sums {
    float sums[B];  // of row g of the tile, this lane's columns

    DEVICE void clear() {
#pragma unroll
        for (int b = 0; b < B; b++) sums[b] = 0;
    }

    template <int COLUMNS, bool SHARED> DEVICE void add(Words w, const Inputs<COLUMNS, SHARED>& x) {
        union { Words words; TYPE values[VECTOR]; } u;
        u.words = w;
        const int t = threadIdx.x & 3;
#pragma unroll
        for (int b = 0; b < B; b++) {
            const Quad<float>* from = (const Quad<float>*)x.at + b * VECTOR + t * (VECTOR / 4);
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

// The copy of activations that other kernels made; nobody reads it before the next __syncthreads.
DEVICE void stage(const Words* x, int words, Words* to) {
#pragma unroll 8
    for (int i = threadIdx.x; i < words; i += THREADS) to[i] = read_fresh(x + i);
}

// --- A product of which each of BLOCKS blocks has some rows ---
COUNTED constexpr int blocks_for(int rows, int blocks) { return least(divide_up(rows, 4), blocks); }

// Words of shared memory for the sums of so many tiles, and for the weights of one step of them.
COUNTED constexpr int partial_words(int tiles) { return divide_up(tiles * WARPS * TILE * B, 4); }
COUNTED constexpr int step_words(int tiles) { return tiles * THREADS; }

// The most tiles whose sums a thread holds in registers, and the block in shared memory.
COUNTED constexpr int most_tiles() {
    int most = TENSOR_CORES || B <= 4 ? 6 : B <= 8 ? 4 : 2;
    while (most > 1 && (partial_words(most) + step_words(most)) * 16 > ROOM) most--;
    return most;
}

// W x, or W x + W2 x2 of two matrices with as many rows. A block has a contiguous range of rows and takes T tiles of it at a time:
// a step of a warp is one group of columns of all T, every WARPS-th group is one warp's, and the warps' sums are added in their
// order. The weights of the next AHEAD steps are on their way to shared memory: each thread copies what it will read itself.
template <int ROWS, int BLOCKS, int COLUMNS, int COLUMNS2 = 0> struct Product {
    static constexpr int MOST = divide_up(ROWS, BLOCKS), TILES = divide_up(MOST, TILE), PASSES = divide_up(TILES, most_tiles()), T = divide_up(TILES, PASSES);
    static constexpr int STEPS1 = divide_up(groups(COLUMNS), WARPS), STEPS2 = divide_up(groups(COLUMNS2), WARPS), EACH = STEPS1 + STEPS2, STEPS = PASSES * EACH;
    static constexpr int SHARED = ROOM / 16, PARTIAL = partial_words(T), STEP = step_words(T), INPUTS = packed_words(COLUMNS) + packed_words(COLUMNS2);
    // Activations are copied to shared memory where that leaves room for the weights of two steps; else they are read where they lie.
    static constexpr bool STAGED = INPUTS + PARTIAL + 2 * STEP <= SHARED;
    static constexpr int AHEAD = most(1, least(STEPS, (SHARED - PARTIAL - (STAGED ? INPUTS : 0)) / STEP));
    static constexpr int WORDS = (STAGED ? INPUTS : 0) + PARTIAL + AHEAD * STEP;

    const TYPE *w, *w2;
    Words *staged, *ring;
    float* partial;
    int first, end;

    // Asks for the first weights. Nothing that an earlier kernel of the step writes is read before run().
    DEVICE void begin(int block, const TYPE* weights, const TYPE* weights2, Words* shared) {
        w = weights;
        w2 = weights2;
        staged = shared;
        partial = (float*)(shared + (STAGED ? INPUTS : 0));
        ring = (Words*)partial + PARTIAL + threadIdx.x;
        first = (int)((i64)ROWS * block / BLOCKS);
        end = (int)((i64)ROWS * (block + 1) / BLOCKS);
#pragma unroll
        for (int s = 0; s < AHEAD; s++) load(s, s);
    }

    DEVICE void load(int step, int slot) {
        if (step < STEPS) {
            const int warp = threadIdx.x >> 5, g = (threadIdx.x & 31) >> 2, column = (threadIdx.x & 3) * VECTOR;
            const int pass = PASSES == 1 ? 0 : step / EACH, i = step - pass * EACH;
            Words* to = ring + slot * STEP;
#pragma unroll
            for (int t = 0; t < T; t++) {
                const int row = first + (pass * T + t) * TILE + g;
                if (STEPS2 == 0 || i < STEPS1) copy_weights<COLUMNS>(to + t * THREADS, w, row, (i * WARPS + warp) * GROUP + column, row < end);
                else copy_weights<STEPS2 == 0 ? COLUMNS : COLUMNS2>(to + t * THREADS, w2, row, ((i - STEPS1) * WARPS + warp) * GROUP + column, row < end);
            }
        }
        commit_copies();
    }

    // The next kernel may start once the last weights are on their way: what it asks for comes behind them.
    template <int C> DEVICE void walk(Sums (&sums)[T], const Words* x, int& step, int& slot) {
        constexpr int COUNT = divide_up(groups(C), WARPS);
        const int warp = threadIdx.x >> 5;
        Inputs<C, STAGED> next;
        next.load(x, warp);
#pragma unroll 1
        for (int i = 0; i < COUNT; i++, step++) {
            if (step == STEPS - AHEAD) let_next_kernel_start();
            const Inputs<C, STAGED> now = next;
            if (i + 1 < COUNT) next.load(x, (i + 1) * WARPS + warp);
            wait_for_copies<AHEAD - 1>();
            const Words* from = ring + slot * STEP;
#pragma unroll
            for (int t = 0; t < T; t++) sums[t].add(from[t * THREADS], now);
            load(step + AHEAD, slot);
            slot = slot + 1 == AHEAD ? 0 : slot + 1;
        }
    }

    // finish(row, b, sum) takes a sum, on one thread.
    template <class Finish> DEVICE void run(const Words* x, const Words* x2, Finish finish) {
        if (STAGED) {
            stage(x, packed_words(COLUMNS), staged);
            stage(x2, packed_words(COLUMNS2), staged + packed_words(COLUMNS));
            x = staged;
            x2 = staged + packed_words(COLUMNS);
            __syncthreads();
        }
        int step = 0, slot = 0;
        for (int pass = 0; pass < PASSES; pass++) {
            Sums sums[T];
#pragma unroll
            for (int t = 0; t < T; t++) sums[t].clear();
            walk<COLUMNS>(sums, x, step, slot);
            if (STEPS2 > 0) walk<STEPS2 == 0 ? COLUMNS : COLUMNS2>(sums, x2, step, slot);
#pragma unroll
            for (int t = 0; t < T; t++) sums[t].store(partial + (t * WARPS + (threadIdx.x >> 5)) * TILE * B);
            __syncthreads();
            for (int i = threadIdx.x; i < T * TILE * B; i += THREADS) {
                const int r = i % (T * TILE), b = i / (T * TILE), row = first + pass * T * TILE + r;
                if (row >= end) continue;
                const float* p = partial + r / TILE * WARPS * TILE * B + b * TILE + r % TILE;
                float sum = 0;
#pragma unroll
                for (int s = 0; s < WARPS; s++) sum += p[s * TILE * B];
                finish(row, b, sum);
            }
            if (pass + 1 < PASSES) __syncthreads();
        }
    }
};
