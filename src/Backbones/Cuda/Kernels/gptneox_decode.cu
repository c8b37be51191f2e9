// One layer of GPT-NeoX for one token of B rows. The names of the sizes are those of Models/GptNeoX.cs; M is the width inside
// the MLP. With the parallel residual, four kernels:
//
//   normalise    x, x2 = the two norms of the residual
//   qkv          the query, key and value of every head, of x
//   attend       attention; and on other blocks wide = gelu(up(x2)), so that memory does not rest while attention is waited for
//   dense_down   residual += dense(attended) + down(wide)
//
// and without it seven: normalise, qkv, attend, dense, normalise, up, down. They overlap as those of mamba_decode.cu do.
//
// check: -DTYPE=bf16 -DWEIGHTS_16 -DB=1 -DSMS=132 -DV=50304 -DLAYER_NORM=true -DFOLD_NORM=false -DD=2560 -DH=32 -DK=80 -DR=20 -DM=10240 -DTANH_GELU=false
// check: -DTYPE=f16 -DWEIGHTS_16 -DB=16 -DSMS=40 -DV=101 -DLAYER_NORM=true -DFOLD_NORM=false -DD=57 -DH=3 -DK=19 -DR=6 -DM=91 -DTANH_GELU=true
// check: -DTYPE=float -DB=4 -DSMS=132 -DV=20011 -DLAYER_NORM=true -DFOLD_NORM=false -DD=768 -DH=12 -DK=64 -DR=16 -DM=3072 -DTANH_GELU=false
#include "decode_head.cuh"

struct Layer {
    const TYPE *qkv, *qkv_bias;      // (3d, d): of each head its query, its key, its value; (3d) or null
    const TYPE *dense, *dense_bias;  // (d, d), (d) or null
    const TYPE *up, *up_bias;        // (m, d), (m)
    const TYPE *down, *down_bias;    // (d, m), (d)
    TYPE* const* keys;               // B of (h, room, k), turned by their positions
    TYPE* const* values;
    const float *cosines, *sines;    // (positions, r / 2), rounded to the precision of the weights
    const Control* control;
    const Words *x, *x2;             // (B, d)
    float* residual;                 // (B, d)
    float* projected;                // (B, 3d)
    float* parts;                    // (B, h, parts, 2 + k): the greatest score, the sum of weights, the weighed values
    int* arrived;                    // (B, h): parts that are done; zeros between the kernels
    Words *attended, *wide;          // (B, d), (B, m)
};

typedef Product<3 * D, D> Qkv;
typedef Product<M, D> Up;
typedef Product<D, D, M> DenseDown;
typedef Product<D, D> Dense;
typedef Product<D, M> Down;
SPREAD(qkv, Qkv::BLOCKS, Qkv::WORDS)
SPREAD(up, Up::BLOCKS, Up::WORDS)
SPREAD(dense_down, DenseDown::BLOCKS, DenseDown::WORDS)
SPREAD(dense, Dense::BLOCKS, Dense::WORDS)
SPREAD(down, Down::BLOCKS, Down::WORDS)

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) qkv(const __grid_constant__ Layer a) {
    Qkv product;
    product.begin(blockIdx.x, a.qkv, nullptr);
    wait_for_previous_kernel();
    let_next_kernel_start();
    product.run(a.x, nullptr, dynamic, [&](int row, int b, float sum) { a.projected[b * 3 * D + row] = a.qkv_bias ? sum + to_float(a.qkv_bias[row]) : sum; });
}

DEVICE float gelu(float x) {
    return TANH_GELU ? 0.5f * x * (1.0f + tanhf(0.7978845608028654f * fmaf(0.044715f * x * x, x, x)))
                     : 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
}

DEVICE void project_up(Up& product, const Layer& a, const Words* x) {
    product.run(x, nullptr, dynamic, [&](int row, int b, float sum) { pack(a.wide, M, b, row, gelu(sum + to_float(a.up_bias[row]))); });
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) up(const __grid_constant__ Layer a) {
    Up product;
    product.begin(blockIdx.x, a.up, nullptr);
    wait_for_previous_kernel();
    let_next_kernel_start();
    project_up(product, a, a.x);
}

// --- Attention ---
constexpr int HEAD_VECTOR = K % VECTOR == 0 ? VECTOR : 1;  // values of a head in one access
constexpr int HEAD_LANES = K / HEAD_VECTOR;                // threads that weigh one position's value
constexpr int HEAD_GROUPS = THREADS / HEAD_LANES;          // positions whose values are weighed at once
constexpr int KEY_LANES = 4;                               // threads that score one position
constexpr int COLUMN_THREADS = divide_up(K, 32) * 32, COLUMN_SETS = THREADS / COLUMN_THREADS;  // that add up the groups' sums

// A head's positions are divided into parts, by their number alone: PARTS at most, each a multiple of PART_STEP. The last part to
// be done puts them together, in their order.
constexpr int MOST_PARTS = 16, PART_STEP = 32;
COUNTED constexpr int parts_for(int blocks) { int parts = 1; while (parts < MOST_PARTS && 2 * parts * H <= blocks) parts *= 2; return parts; }
constexpr int PARTS = parts_for(SMS), ITEMS = B * H * PARTS;
constexpr int ATTENTION_WORDS = divide_up(THREADS + K + HEAD_GROUPS * K, 4);

struct HeadVector { TYPE values[HEAD_VECTOR]; };

DEVICE HeadVector read_head(const TYPE* p) {
    union { HeadVector vector; Words words; } u;
    if (HEAD_VECTOR == VECTOR) u.words = *(const Words*)p;
    else u.vector = *(const HeadVector*)p;
    return u.vector;
}

struct Part {
    int head, b, part, parts, position, first, end;
    TYPE *keys, *values;

    DEVICE Part(const Layer& a, int item) {
        part = item % PARTS;
        head = item / PARTS % H;
        b = item / PARTS / H;
        const int room = a.control->room[b];
        position = min(a.control->positions[b], room - 1);
        const int length = position + 1, each = divide_up(divide_up(length, PARTS), PART_STEP) * PART_STEP;
        parts = divide_up(length, each);
        first = part * each;
        end = min(first + each, length);
        keys = a.keys[b] + (i64)head * room * K;
        values = a.values[b] + (i64)head * room * K;
    }
};

// The cache of earlier positions, which no kernel of this step writes.
DEVICE void prefetch(const Part& p) {
#if __CUDA_ARCH__ >= 900
    if (HEAD_VECTOR == VECTOR && p.part < p.parts && threadIdx.x < 2) {
        const TYPE* from = (threadIdx.x == 0 ? p.keys : p.values) + (i64)p.first * K;
        const u32 bytes = (u32)(p.end - p.first) * K * (u32)sizeof(TYPE);
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" :: "l"(from), "r"(bytes) : "memory");
    }
#endif
}

// shared: ATTENTION_WORDS. The order of all sums depends on the row's length only.
DEVICE void attend_part(const Layer& a, const Part& p, float* shared, float* scratch) {
    float* weights = shared;                    // (THREADS)
    float* query = weights + THREADS;           // (K)
    float* sums = query + K;                    // (HEAD_GROUPS, K), then (COLUMN_SETS, K)
    __shared__ int arrived;
    const int position = p.position;

    const float* own = a.projected + p.b * 3 * D + p.head * 3 * K;
    const bool last = p.part == p.parts - 1;
    for (int i = threadIdx.x; i < K; i += THREADS) {
        float q = read_fresh(own + i), k = read_fresh(own + K + i);
        if (i < R) {
            const int pair = i < R / 2 ? i : i - R / 2, other = i < R / 2 ? i + R / 2 : i - R / 2;
            const float c = a.cosines[(i64)position * (R / 2) + pair], s = a.sines[(i64)position * (R / 2) + pair];
            const float turn = i < R / 2 ? -s : s;
            q = fmaf(read_fresh(own + other), turn, q * c);
            k = fmaf(read_fresh(own + K + other), turn, k * c);
        }
        query[i] = q * (LOG2_E / sqrtf((float)K));
        if (last) {
            p.keys[(i64)position * K + i] = from_float<TYPE>(k);
            p.values[(i64)position * K + i] = from_float<TYPE>(read_fresh(own + 2 * K + i));
        }
    }
    __syncthreads();

    const int group = threadIdx.x / HEAD_LANES, lane = threadIdx.x % HEAD_LANES;
    float greatest = -INFINITE, total = 0, weighed[HEAD_VECTOR];
#pragma unroll
    for (int j = 0; j < HEAD_VECTOR; j++) weighed[j] = 0;
    for (int base = p.first; base < p.end; base += THREADS) {
        const int count = min(THREADS, p.end - base);
        for (int at = threadIdx.x / KEY_LANES; at < divide_up(count, THREADS / KEY_LANES) * (THREADS / KEY_LANES); at += THREADS / KEY_LANES) {
            const TYPE* key = p.keys + (i64)(base + min(at, count - 1)) * K;
            float dot = 0;
#pragma unroll 4
            for (int i = threadIdx.x % KEY_LANES; i < HEAD_LANES; i += KEY_LANES) {
                const HeadVector vector = read_head(key + i * HEAD_VECTOR);
#pragma unroll
                for (int j = 0; j < HEAD_VECTOR; j++) dot = fmaf(to_float(vector.values[j]), query[i * HEAD_VECTOR + j], dot);
            }
            dot += __shfl_xor_sync(0xffffffffu, dot, 1);
            dot += __shfl_xor_sync(0xffffffffu, dot, 2);
            if (threadIdx.x % KEY_LANES == 0) weights[at] = dot;
        }
        __syncthreads();
        const float score = threadIdx.x < count ? weights[threadIdx.x] : -INFINITE, warps = warp_max(score);
        if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = warps;
        __syncthreads();
        float most = greatest;
#pragma unroll
        for (int w = 0; w < WARPS; w++) most = fmaxf(most, scratch[w]);
        const float rescale = exp2_fast(greatest - most), weight = threadIdx.x < count ? exp2_fast(score - most) : 0;
        greatest = most;
        total = fmaf(total, rescale, weight);
        weights[threadIdx.x] = weight;
        __syncthreads();

#pragma unroll
        for (int j = 0; j < HEAD_VECTOR; j++) weighed[j] *= rescale;
        if (group < HEAD_GROUPS)
#pragma unroll 4
            for (int i = group; i < count; i += HEAD_GROUPS) {
                const HeadVector vector = read_head(p.values + (i64)(base + i) * K + lane * HEAD_VECTOR);
#pragma unroll
                for (int j = 0; j < HEAD_VECTOR; j++) weighed[j] = fmaf(weights[i], to_float(vector.values[j]), weighed[j]);
            }
        __syncthreads();
    }

    total = warp_sum(total);
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = total;
    if (group < HEAD_GROUPS)
#pragma unroll
        for (int j = 0; j < HEAD_VECTOR; j++) sums[group * K + lane * HEAD_VECTOR + j] = weighed[j];
    __syncthreads();
    total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += scratch[w];
    const int set = threadIdx.x / COLUMN_THREADS, column = threadIdx.x % COLUMN_THREADS;
    float sum = 0;
    if (set < COLUMN_SETS && column < K)
        for (int g = set; g < HEAD_GROUPS; g += COLUMN_SETS) sum += sums[g * K + column];
    __syncthreads();
    if (set < COLUMN_SETS && column < K) sums[set * K + column] = sum;
    __syncthreads();
    float* out = a.parts + (i64)((p.b * H + p.head) * PARTS) * (K + 2);
    if (threadIdx.x < K) {
        sum = 0;
#pragma unroll
        for (int s = 0; s < COLUMN_SETS; s++) sum += sums[s * K + threadIdx.x];
        if (p.parts == 1) pack(a.attended, D, p.b, p.head * K + threadIdx.x, sum / total);
        else out[p.part * (K + 2) + 2 + threadIdx.x] = sum;
    }
    if (p.parts == 1) return;
    if (threadIdx.x == 0) {
        out[p.part * (K + 2)] = greatest;
        out[p.part * (K + 2) + 1] = total;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) arrived = atomicAdd(a.arrived + p.b * H + p.head, 1);
    __syncthreads();
    if (arrived != p.parts - 1) return;
    __threadfence();
    if (threadIdx.x == 0) a.arrived[p.b * H + p.head] = 0;
    if (threadIdx.x >= K) return;
    greatest = -INFINITE;
    for (int i = 0; i < p.parts; i++) greatest = fmaxf(greatest, read_fresh(out + i * (K + 2)));
    sum = total = 0;
    for (int i = 0; i < p.parts; i++) {
        const float scale = exp2_fast(read_fresh(out + i * (K + 2)) - greatest);
        total = fmaf(read_fresh(out + i * (K + 2) + 1), scale, total);
        sum = fmaf(read_fresh(out + i * (K + 2) + 2 + threadIdx.x), scale, sum);
    }
    pack(a.attended, D, p.b, p.head * K + threadIdx.x, sum / total);
}

DEVICE void attend_item(const Layer& a, int item) {
    __shared__ float scratch[WARPS];
    prefetch(Part(a, item));
    wait_for_previous_kernel();
    let_next_kernel_start();
    const Part p(a, item);
    if (p.part < p.parts) attend_part(a, p, (float*)dynamic, scratch);
}

SPREAD(attend, Up::BLOCKS + ITEMS, most(Up::WORDS, ATTENTION_WORDS))
SPREAD(attend_alone, ITEMS, ATTENTION_WORDS)

// Attention and `up` by turns, while there are blocks of both: attention waits more than it reads. `up` reads what was there before
// `qkv`, which lets this kernel start only when it has waited for it itself: no wait.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) attend(const __grid_constant__ Layer a) {
    constexpr int TURNS = least(ITEMS, Up::BLOCKS);
    const int block = blockIdx.x, turn = block / 2;
    const bool attends = turn < TURNS ? block % 2 == 0 : ITEMS > Up::BLOCKS, rest = turn >= TURNS;
    if (attends) attend_item(a, rest ? block - TURNS : turn);
    else {
        Up product;
        product.begin(rest ? block - TURNS : turn, a.up, nullptr);
        let_next_kernel_start();
        project_up(product, a, a.x2);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) attend_alone(const __grid_constant__ Layer a) { attend_item(a, blockIdx.x); }

// --- What is added to the residual ---
template <bool DENSE, bool DOWN, class P> DEVICE void add_output(const Layer& a) {
    P product;
    product.begin(blockIdx.x, DENSE ? a.dense : a.down, a.down);
    wait_for_previous_kernel();
    let_next_kernel_start();
    product.run(DENSE ? a.attended : a.wide, a.wide, dynamic, [&](int row, int b, float sum) {
        if (DENSE && a.dense_bias) sum += to_float(a.dense_bias[row]);
        if (DOWN) sum += to_float(a.down_bias[row]);
        a.residual[b * D + row] += sum;
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) dense_down(const __grid_constant__ Layer a) { add_output<true, true, DenseDown>(a); }
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) dense(const __grid_constant__ Layer a) { add_output<true, false, Dense>(a); }
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) down(const __grid_constant__ Layer a) { add_output<false, true, Down>(a); }
