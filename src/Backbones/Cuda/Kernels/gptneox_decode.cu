// One layer of GPT-NeoX for one token of B rows. The names of the sizes are those of Models/GptNeoX.cs; M is the width inside
// the MLP. With the parallel residual, three kernels:
//
//   qkv          the query, key and value of every head
//   attend       attention, a block for a head of a row; and on other blocks wide = gelu(up(norm(x))), which reads the same x:
//                memory does not rest while attention, which is small, is waited for
//   dense_down   x += dense(attended) + down(wide)
//
// and without it five: qkv, attend, dense, up, down. They overlap as those of mamba_decode.cu do.
//
// check: -DTYPE=bf16 -DWEIGHTS_16 -DB=1 -DSMS=132 -DSTAGED=98304 -DD=2560 -DH=32 -DK=80 -DR=20 -DM=10240 -DTANH_GELU=false
// check: -DTYPE=f16 -DWEIGHTS_16 -DB=16 -DSMS=40 -DSTAGED=20000 -DD=57 -DH=3 -DK=19 -DR=6 -DM=91 -DTANH_GELU=true
// check: -DTYPE=float -DB=4 -DSMS=132 -DSTAGED=98304 -DD=768 -DH=12 -DK=64 -DR=16 -DM=3072 -DTANH_GELU=false
#include "decode.cuh"

struct Layer {
    const TYPE *attention_norm, *attention_norm_bias, *mlp_norm, *mlp_norm_bias;  // (d)
    const TYPE *qkv, *qkv_bias;      // (3d, d): of each head its query, its key, its value; (3d) or null
    const TYPE *dense, *dense_bias;  // (d, d), (d) or null
    const TYPE *up, *up_bias;        // (m, d), (m)
    const TYPE *down, *down_bias;    // (d, m), (d)
    TYPE* const* keys;               // B of (h, room, k), turned by their positions
    TYPE* const* values;
    const float *cosines, *sines;    // (positions, r / 2), rounded to the precision of the weights
    const Control* control;
    float* residual;                 // (B, d)
    float* projected;                // (B, 3d)
    Words *attended, *wide;          // (B, d), (B, m)
    float epsilon;
};

constexpr int QKV_SLICES = slices(3 * D, D, SMS);
constexpr int UP_SLICES = slices(M, D, SMS);
constexpr int OUTPUT_SLICES = slices(D, D < M ? D : M, SMS);
constexpr int OUTPUT_COLUMNS = (groups(D) + groups(M)) * GROUP;

extern __shared__ Words dynamic[];  // (B, d) or (B, d) and (B, m), packed; or what attention needs

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) qkv(const __grid_constant__ Layer a) {
    __shared__ float partial[WARPS * TILE * B], scratch[(WARPS + 1) * B];
    constexpr int WIDTH = rows_at_once<QKV_SLICES>();
    let_next_kernel_start();
    prefetch<3 * D, D>(a.qkv, blockIdx.x * WIDTH, WIDTH);
    wait_for_previous_kernel();
    normalise<D, true>(a.residual, a.attention_norm, a.attention_norm_bias, a.epsilon, dynamic, scratch);
    project<3 * D, QKV_SLICES>(blockIdx.x, gridDim.x, partial,
        [&](Sums& sums, int row, int slice) { accumulate<D, QKV_SLICES>(sums, a.qkv + (i64)row * D, slice, dynamic); },
        [&](int row, int b, float sum) { a.projected[b * 3 * D + row] = a.qkv_bias ? sum + to_float(a.qkv_bias[row]) : sum; });
}

DEVICE float gelu(float x) {
    return TANH_GELU ? 0.5f * x * (1.0f + tanhf(0.7978845608028654f * fmaf(0.044715f * x * x, x, x)))
                     : 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
}

DEVICE void project_up(const Layer& a, int block, int blocks, float* partial, float* scratch) {
    constexpr int WIDTH = rows_at_once<UP_SLICES>();
    prefetch<M, D>(a.up, block * WIDTH, WIDTH);
    wait_for_previous_kernel();
    normalise<D, true>(a.residual, a.mlp_norm, a.mlp_norm_bias, a.epsilon, dynamic, scratch);
    project<M, UP_SLICES>(block, blocks, partial,
        [&](Sums& sums, int row, int slice) { accumulate<D, UP_SLICES>(sums, a.up + (i64)row * D, slice, dynamic); },
        [&](int row, int b, float sum) { pack(a.wide, M, b, row, gelu(sum + to_float(a.up_bias[row]))); });
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) up(const __grid_constant__ Layer a) {
    __shared__ float partial[WARPS * TILE * B], scratch[(WARPS + 1) * B];
    let_next_kernel_start();
    project_up(a, blockIdx.x, gridDim.x, partial, scratch);
}

// --- Attention ---
constexpr int HEAD_VECTOR = K % VECTOR == 0 ? VECTOR : 1;  // values of a head in one access
constexpr int HEAD_LANES = K / HEAD_VECTOR;                // threads that weigh one position's value
constexpr int HEAD_GROUPS = THREADS / HEAD_LANES;          // positions whose values are weighed at once

struct HeadVector { TYPE values[HEAD_VECTOR]; };

DEVICE HeadVector read_head(const TYPE* p) {
    union { HeadVector vector; Words words; } u;
    if (HEAD_VECTOR == VECTOR) u.words = *(const Words*)p;
    else u.vector = *(const HeadVector*)p;
    return u.vector;
}

// Every thread scores one of 512 positions, then every HEAD_LANES threads weigh the value of one; the running maximum is the
// block's. The order of all sums depends on the row's length only.
DEVICE void attend_head(const Layer& a, int head, int b, float* shared, float* scratch) {
    float* weights = shared;          // (THREADS)
    float* query = weights + THREADS; // (K)
    float* sums = query + K;          // (HEAD_GROUPS, K)
    const int room = a.control->room[b], position = min(a.control->positions[b], room - 1), length = position + 1;
    TYPE* keys = a.keys[b] + (i64)head * room * K;
    TYPE* values = a.values[b] + (i64)head * room * K;

    const float* own = a.projected + b * 3 * D + head * 3 * K;
    for (int i = threadIdx.x; i < K; i += THREADS) {
        float q = own[i], k = own[K + i];
        if (i < R) {
            const int pair = i < R / 2 ? i : i - R / 2, other = i < R / 2 ? i + R / 2 : i - R / 2;
            const float c = a.cosines[(i64)position * (R / 2) + pair], s = a.sines[(i64)position * (R / 2) + pair];
            const float turn = i < R / 2 ? -s : s;
            q = fmaf(own[other], turn, q * c);
            k = fmaf(own[K + other], turn, k * c);
        }
        query[i] = q * (LOG2_E / sqrtf((float)K));
        keys[(i64)position * K + i] = from_float<TYPE>(k);
        values[(i64)position * K + i] = from_float<TYPE>(own[2 * K + i]);
    }
    __syncthreads();

    const int group = threadIdx.x / HEAD_LANES, lane = threadIdx.x % HEAD_LANES;
    float greatest = -INFINITE, total = 0, weighed[HEAD_VECTOR];
#pragma unroll
    for (int j = 0; j < HEAD_VECTOR; j++) weighed[j] = 0;
    for (int base = 0; base < length; base += THREADS) {
        const int t = base + threadIdx.x;
        float score = -INFINITE;
        if (t < length) {
            const TYPE* key = keys + (i64)t * K;
            float dot = 0;
#pragma unroll 4
            for (int i = 0; i < K; i += HEAD_VECTOR) {
                const HeadVector vector = read_head(key + i);
#pragma unroll
                for (int j = 0; j < HEAD_VECTOR; j++) dot = fmaf(to_float(vector.values[j]), query[i + j], dot);
            }
            score = dot;
        }
        const float warps = warp_max(score);
        if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = warps;
        __syncthreads();
        float most = greatest;
#pragma unroll
        for (int w = 0; w < WARPS; w++) most = fmaxf(most, scratch[w]);
        const float rescale = exp2_fast(greatest - most), weight = t < length ? exp2_fast(score - most) : 0;
        greatest = most;
        total = fmaf(total, rescale, weight);
        weights[threadIdx.x] = weight;
        __syncthreads();

        const int count = min(THREADS, length - base);
#pragma unroll
        for (int j = 0; j < HEAD_VECTOR; j++) weighed[j] *= rescale;
        if (group < HEAD_GROUPS)
#pragma unroll 4
            for (int i = group; i < count; i += HEAD_GROUPS) {
                const HeadVector vector = read_head(values + (i64)(base + i) * K + lane * HEAD_VECTOR);
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
    for (int i = threadIdx.x; i < K; i += THREADS) {
        float sum = 0;
        for (int g = 0; g < HEAD_GROUPS; g++) sum += sums[g * K + i];
        pack(a.attended, D, b, head * K + i, sum / total);
    }
}

// The first blocks project up, where there are more than heads of rows.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) attend(const __grid_constant__ Layer a) {
    __shared__ float partial[WARPS * TILE * B], scratch[(WARPS + 1) * B];
    let_next_kernel_start();
    const int up_blocks = gridDim.x - H * B;
    if ((int)blockIdx.x < up_blocks) {
        project_up(a, blockIdx.x, up_blocks, partial, scratch);
        return;
    }
    wait_for_previous_kernel();
    const int i = blockIdx.x - up_blocks;
    attend_head(a, i % H, i / H, (float*)dynamic, scratch);
}

// --- What is added to the residual ---
template <bool DENSE, bool DOWN> DEVICE void add_output(const Layer& a) {
    __shared__ float partial[WARPS * TILE * B];
    constexpr int WIDTH = rows_at_once<OUTPUT_SLICES>();
    let_next_kernel_start();
    if (DENSE) prefetch<D, D>(a.dense, blockIdx.x * WIDTH, WIDTH);
    if (DOWN) prefetch<D, M>(a.down, blockIdx.x * WIDTH, WIDTH);
    wait_for_previous_kernel();
    const Words *attended = a.attended, *wide = a.wide;
    if (is_staged(OUTPUT_COLUMNS)) {
        if (DENSE) stage(attended, D, dynamic);
        if (DOWN) stage(wide, M, dynamic + packed_words(D));
        attended = dynamic;
        wide = dynamic + packed_words(D);
        __syncthreads();
    }
    project<D, OUTPUT_SLICES>(blockIdx.x, gridDim.x, partial,
        [&](Sums& sums, int row, int slice) {
            if (DENSE) accumulate<D, OUTPUT_SLICES>(sums, a.dense + (i64)row * D, slice, attended);
            if (DOWN) accumulate<M, OUTPUT_SLICES>(sums, a.down + (i64)row * M, slice, wide);
        },
        [&](int row, int b, float sum) {
            if (DENSE && a.dense_bias) sum += to_float(a.dense_bias[row]);
            if (DOWN) sum += to_float(a.down_bias[row]);
            a.residual[b * D + row] += sum;
        });
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) dense_down(const __grid_constant__ Layer a) { add_output<true, true>(a); }
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) dense(const __grid_constant__ Layer a) { add_output<true, false>(a); }
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) down(const __grid_constant__ Layer a) { add_output<false, true>(a); }
