// What the decode steps of both models share: products of a weight matrix with B vectors at the speed of memory.
//
//   TYPE  of the weights      B     rows of the batch, 1 to 16
//   SMS   multiprocessors
//
// A group is 64 bytes of columns, a tile is 8 rows of the matrix. A load of a warp is 128 bytes of each of 4 rows, a whole line of
// memory each: lane 8r + c holds 16 bytes of row r. That is also the layout of a tensor core's second operand (mma.m16n8k16), if its
// 8 columns are taken for the 4 rows' first and second halves by turns: column 2r has row r's first group, column 2r + 1 its second.
// The first operand has the batch's activations of the first group in its rows 0 to 7 and of the second in 8 to 15, so of the
// products two quarters are wanted, and a row's sum is one of each. Activations are float32; for the tensor cores each is split into
// two 16-bit numbers, high + low, which keeps 16 bits of bfloat16's (22 of float16's) and costs nothing: memory sets the pace. float32
// weights, and GPUs before 8.0, take fused multiply-adds instead.
//
// Nothing in the order of a sum depends on B: a row's bits are the same in any batch.
#pragma once
#include "decode_control.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)
#define TILE 8
#define BLOCKS_AT_ONCE (B <= 8 ? 3 : 2)
static_assert(TILE * B <= THREADS, "each sum of a block has a thread");

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

// Not by way of ld.global.nc, which the compiler would put off past any barrier until just before its use.
DEVICE Words read_once(const void* p) {
    Words w;
    asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w) : "l"(p) : "memory");
    return w;
}

// VECTOR columns of a row from a column on; zeros behind the last.
template <int COLUMNS> DEVICE Words read_weights(const TYPE* row, int column) {
    Words w = {0, 0, 0, 0};
    if (COLUMNS % VECTOR == 0) {
        if (COLUMNS % (2 * GROUP) == 0 || column < COLUMNS) w = read_once(row + column);
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
// 16 bytes into shared memory, or zeros, without a register in between; there after copies_arrived(). By way of the first-level
// cache (.ca): the other blocks of the multiprocessor read the same, and what goes past that cache waits behind the weights.
DEVICE void copy_ahead(Words* to, const Words* from, bool exists) {
    asm volatile("{ .reg .u64 shared; cvta.to.shared.u64 shared, %0; cp.async.ca.shared.global [shared], [%1], 16, %2; }"
        :: "l"(to), "l"(from), "r"(exists ? 16 : 0) : "memory");
}
DEVICE void copies_arrived() { asm volatile("cp.async.wait_all;" ::: "memory"); }

DEVICE void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1, bf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
DEVICE void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1, f16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

#define SETS (B <= 8 ? 1 : 2)  // of 8 rows of the batch

// A lane's share of two groups of the activations.
template <int COLUMNS> struct Inputs {
    Words high[SETS][2], low[SETS][2];

    DEVICE void load(const Words* x, int pair) {
        const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
#pragma unroll
        for (int s = 0; s < SETS; s++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int group = 2 * pair + half, b = 8 * s + g;
                high[s][half] = low[s][half] = Words{0, 0, 0, 0};
                if (group >= groups(COLUMNS) || b >= B) continue;
                high[s][half] = x[(group * B + b) * 4 + t];
                low[s][half] = x[((groups(COLUMNS) + group) * B + b) * 4 + t];
            }
    }

    // From where Product::stage left them for COUNT rows of steps; `at`: the first row of the step.
    template <int COUNT> DEVICE void take(const Words* staged, int at) {
        const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
#pragma unroll
        for (int s = 0; s < SETS; s++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                high[s][half] = low[s][half] = Words{0, 0, 0, 0};
                if (8 * s + g >= B) continue;
                high[s][half] = staged[(half * COUNT + at + 8 * s + g) * 4 + t];
                low[s][half] = staged[((2 + half) * COUNT + at + 8 * s + g) * 4 + t];
            }
    }
};

struct Sums {
    float sums[2][SETS][4];  // of rows 0 to 3 and 4 to 7 of the tile

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < 2 * SETS * 4; i++) sums[i / (SETS * 4)][i / 4 % SETS][i % 4] = 0;
    }

    // w: rows 0 to 3 and 4 to 7.
    template <int COLUMNS> DEVICE void add(const Words (&w)[2], const Inputs<COLUMNS>& x) {
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int s = 0; s < SETS; s++) {
                part(sums[h][s], w[h], x.high[s]);
                part(sums[h][s], w[h], x.low[s]);
            }
    }

    DEVICE static void part(float (&c)[4], Words w, const Words (&a)[2]) {
        multiply(c, a[0].x, a[1].x, a[0].y, a[1].y, w.x, w.y, TYPE());
        multiply(c, a[0].z, a[1].z, a[0].w, a[1].w, w.z, w.w, TYPE());
    }

    // To (B, TILE).
    DEVICE void store(float* to) {
        const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int s = 0; s < SETS; s++)
                if (8 * s + g < B) to[(8 * s + g) * TILE + 4 * h + t] = sums[h][s][0] + sums[h][s][3];
    }
};
#else
template <int COLUMNS> struct Inputs {
    const Words* at;
    DEVICE void load(const Words* x, int pair) { at = x + min(2 * pair + (int)(threadIdx.x >> 2 & 1), groups(COLUMNS) - 1) * B * (GROUP / 4); }
};

struct Sums {
    float sums[2][B];  // of this lane's row of 0 to 3 and of 4 to 7 of the tile, this lane's columns

    DEVICE void clear() {
#pragma unroll
        for (int b = 0; b < B; b++) sums[0][b] = sums[1][b] = 0;
    }

    template <int COLUMNS> DEVICE void add(const Words (&w)[2], const Inputs<COLUMNS>& x) {
        const int t = threadIdx.x & 3;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            union { Words words; TYPE values[VECTOR]; } u;
            u.words = w[h];
#pragma unroll
            for (int b = 0; b < B; b++) {
                const Quad<float>* from = (const Quad<float>*)x.at + b * VECTOR + t * (VECTOR / 4);
                float sum = sums[h][b];
#pragma unroll
                for (int j = 0; j < VECTOR; j += 4) {
                    const Quad<float> q = from[j / 4];
                    sum = fmaf(to_float(u.values[j]), q.x, sum);
                    sum = fmaf(to_float(u.values[j + 1]), q.y, sum);
                    sum = fmaf(to_float(u.values[j + 2]), q.z, sum);
                    sum = fmaf(to_float(u.values[j + 3]), q.w, sum);
                }
                sums[h][b] = sum;
            }
        }
    }

    DEVICE void store(float* to) {
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int b = 0; b < B; b++) {
                float sum = sums[h][b];
#pragma unroll
                for (int distance = 1; distance < 8; distance <<= 1) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
                if ((threadIdx.x & 7) == 0) to[b * TILE + 4 * h + ((threadIdx.x & 31) >> 3)] = sum;
            }
    }
};
#endif

// --- A product ---
COUNTED constexpr int steps(int columns) { return divide_up(divide_up(groups(columns), 2), WARPS); }

// Steps of a thread whose loads are on their way at once, two each.
COUNTED constexpr int steps_ahead(int count) {
    if (count <= 6) return count;
    for (int ahead = 6; ahead >= 4; ahead--)
        if (count % ahead == 0) return ahead;
    return 5;
}

struct Nothing { DEVICE void operator()() const {} };

// W x, or W x + W2 x2 of two matrices with as many rows. A block takes one tile of rows, its warps every WARPS-th pair of groups of
// columns; their sums are added in their order. Many small blocks rather than few that stay: multiprocessors are not equally
// near to memory, and whichever is ready takes the next.
template <int ROWS, int COLUMNS, int COLUMNS2 = 0> struct Product {
    static constexpr int C2 = COLUMNS2 == 0 ? COLUMNS : COLUMNS2;
    static constexpr int BLOCKS = tiles(ROWS), STEPS1 = steps(COLUMNS), STEPS = STEPS1 + steps(COLUMNS2), AHEAD = steps_ahead(STEPS), ROUNDS = divide_up(STEPS, AHEAD);
    // Few rows leave most lanes without activations to read, and registers room for those of one step: a step after another would
    // wait for the second-level cache. So they are all copied into shared memory first.
    static constexpr int COUNT = STEPS * B, STAGE = COUNT * 16;  // of a warp: rows of its steps; words
    static constexpr bool STAGED = TENSOR_CORES && WARPS * STAGE * 16 <= 24 << 10;
    static constexpr int AT_ONCE = B <= 2 && AHEAD <= 3 ? 4 : BLOCKS_AT_ONCE;  // blocks of a multiprocessor, which registers are counted for
    static constexpr int PARTIAL = divide_up(WARPS * TILE * B, 4), WORDS = PARTIAL + (STAGED ? WARPS * STAGE : 0);

    const TYPE *w, *w2;
    int first;
    Words ahead[AHEAD][2];

    // Asks for the first weights. Nothing that an earlier kernel of the step writes is read before run().
    DEVICE void begin(int block, const TYPE* weights, const TYPE* weights2) {
        w = weights;
        w2 = weights2;
        first = block * TILE;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) load(ahead[i], i);
        __syncwarp();  // all of them are on their way before any is used
    }

    DEVICE void load(Words (&to)[2], int step) const {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const i64 row = min(first + 4 * h + (int)((threadIdx.x & 31) >> 3), ROWS - 1);
            to[h] = COLUMNS2 == 0 || step < STEPS1 ? load_from<COLUMNS>(w + row * COLUMNS, step) : load_from<C2>(w2 + row * C2, step - STEPS1);
        }
    }

    template <int C> DEVICE static Words load_from(const TYPE* row, int step) {
        const int pair = step * WARPS + (threadIdx.x >> 5);
        if (groups(C) % (2 * WARPS) != 0 && 2 * pair >= groups(C)) return Words{0, 0, 0, 0};
        return read_weights<C>(row, 2 * pair * GROUP + (threadIdx.x & 7) * VECTOR);
    }

#if TENSOR_CORES
    // To [half and part][row of a step][4 lanes].
    DEVICE static void stage(const Words* x, const Words* x2, Words* staged) {
        const int warp = threadIdx.x >> 5, t = threadIdx.x & 3;
#pragma unroll
        for (int i = 0; i < COUNT; i += 8) {
            const int at = i + ((threadIdx.x & 31) >> 2), step = at / B, b = at % B;
            if (at >= COUNT) break;
            const bool one = COLUMNS2 == 0 || step < STEPS1;
            const int count = one ? groups(COLUMNS) : groups(C2), pair = (one ? step : step - STEPS1) * WARPS + warp;
            const Words* from = one ? x : x2;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int group = 2 * pair + j % 2;
                copy_ahead(staged + (j * COUNT + at) * 4 + t, from + (group < count ? ((j / 2 * count + group) * B + b) * 4 + t : 0), group < count);
            }
        }
        copies_arrived();
        __syncwarp();
    }
#endif

    DEVICE void use(Sums& sums, const Words (&from)[2], int step, const Words* x, const Words* x2, const Words* staged) const {
        const int warp = threadIdx.x >> 5;
#if TENSOR_CORES
        if constexpr (STAGED) {
            Inputs<COLUMNS> inputs;
            inputs.template take<COUNT>(staged, step * B);
            sums.add(from, inputs);
            return;
        }
#endif
        if (COLUMNS2 == 0 || step < STEPS1) {
            Inputs<COLUMNS> inputs;
            inputs.load(x, step * WARPS + warp);
            sums.add(from, inputs);
        } else {
            Inputs<C2> inputs;
            inputs.load(x2, (step - STEPS1) * WARPS + warp);
            sums.add(from, inputs);
        }
    }

    // finish(row, b, sum) takes a sum, on thread b TILE + row - first. partial: WORDS of shared memory. beside() is called by every
    // thread when its products are under way; what it leaves in shared memory is there for finish.
    template <class Finish, class Beside = Nothing> DEVICE void run(const Words* x, const Words* x2, Words* partial, Finish finish, Beside beside = Beside()) {
        Sums sums;
        sums.clear();
        Words* staged = partial + PARTIAL + (threadIdx.x >> 5) * STAGE;
#if TENSOR_CORES
        if constexpr (STAGED) stage(x, x2, staged);
#endif
#pragma unroll 1
        for (int round = 0; round < ROUNDS - 1; round++)
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const int step = round * AHEAD + i;
                use(sums, ahead[i], step, x, x2, staged);
                if (STEPS % AHEAD == 0 || step + AHEAD < STEPS) load(ahead[i], step + AHEAD);
            }
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if ((ROUNDS - 1) * AHEAD + i < STEPS) use(sums, ahead[i], (ROUNDS - 1) * AHEAD + i, x, x2, staged);

        beside();
        float* own = (float*)partial;
        sums.store(own + (threadIdx.x >> 5) * TILE * B);
        __syncthreads();
        const int i = threadIdx.x;
        if (i >= TILE * B || first + i % TILE >= ROWS) return;
        float sum = 0;
#pragma unroll
        for (int s = 0; s < WARPS; s++) sum += own[s * TILE * B + i];
        finish(first + i % TILE, i / TILE, sum);
    }
};
