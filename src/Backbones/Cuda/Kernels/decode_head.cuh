// The norms and the head of both models.
//
//   D  hidden size     V  vocabulary     LAYER_NORM  LayerNorm, else RMSNorm
//   FOLD_NORM  the norm, an RMSNorm, has no kernel of its own
#pragma once
#include "decode.cuh"

#define NORM_THREADS 512
#define NORM_WARPS (NORM_THREADS / 32)

struct Norm {
    const TYPE *weight, *bias;    // (d), the bias null in an RMSNorm
    const TYPE *weight2, *bias2;  // of a second norm of the same rows, or null
    const float* residual;        // (B, d)
    Words *x, *x2;                // (B, d)
    float epsilon;
};

struct Head {
    const TYPE* weight;    // (v, d)
    const Words* x;        // (B, d)
    const float* squares;  // (B, SQUARES), with FOLD_NORM
    float* logits;         // (B, v)
    Control* control;      // takes the greatest of each row
    float epsilon;
};

// The total over the block, to every thread. scratch: NORM_WARPS floats, free again at the end.
DEVICE float block_sum(float value, float* scratch) {
    value = warp_sum(value);
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = value;
    __syncthreads();
    value = 0;
#pragma unroll
    for (int w = 0; w < NORM_WARPS; w++) value += scratch[w];
    __syncthreads();
    return value;
}

// A block a row. A kernel of its own rather than a part of each product: the products' blocks, which are there already and wait for
// their weights, would each do it again.
extern "C" __global__ void __launch_bounds__(NORM_THREADS) normalise(const __grid_constant__ Norm a) {
    __shared__ float scratch[NORM_WARPS];
    constexpr int EACH = divide_up(D, NORM_THREADS);
    const int b = blockIdx.x;
    float v[EACH], mean = 0, square = 0;
    let_next_kernel_start();
    wait_for_previous_kernel();
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int c = threadIdx.x + i * NORM_THREADS;
        v[i] = c < D ? read_fresh(a.residual + b * D + c) : 0;
        mean += v[i];
    }
    mean = LAYER_NORM ? block_sum(mean, scratch) * (1.0f / D) : 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        v[i] = (int)threadIdx.x + i * NORM_THREADS < D ? v[i] - mean : 0;
        square = fmaf(v[i], v[i], square);
    }
    const float scale = 1.0f / sqrtf(block_sum(square, scratch) * (1.0f / D) + a.epsilon);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int c = threadIdx.x + i * NORM_THREADS;
        if (c >= D) continue;
        pack(a.x, D, b, c, fmaf(v[i] * scale, to_float(a.weight[c]), LAYER_NORM ? to_float(a.bias[c]) : 0));
        if (a.weight2) pack(a.x2, D, b, c, fmaf(v[i] * scale, to_float(a.weight2[c]), LAYER_NORM ? to_float(a.bias2[c]) : 0));
    }
}

// --- RMSNorm without a kernel of its own, FOLD_NORM ---
// W (f g r) = f (W (g r)) for the norm's weights g and a row's factor f = 1 / sqrt(mean(r^2) + epsilon). Whatever writes the residual r
// leaves x = g r for the products to come and, for each tile of columns, the sum of squares. The products work out f while they are
// under way and multiply their sums by it: a layer waits for one kernel less. g r may be beyond float16, so float16 keeps `normalise`.
//
// Squares are added in parts of 128 tiles, a warp each: the four of a lane, then the lanes; then the parts. None of that depends on B.
// What is multiplied is rounded before it is added: left to itself the compiler may fuse the two, and for another B not.
constexpr int PART_TILES = 128, SQUARE_PARTS = divide_up(tiles(D), PART_TILES);
constexpr int SQUARES = SQUARE_PARTS * PART_TILES;  // of a row: one a tile, zeros behind the last
static_assert(!FOLD_NORM || !LAYER_NORM, "a LayerNorm takes a mean away as well");

// Leaves a new value of the residual for the products to come. Returns its square.
DEVICE float leave_value(Words* x, float weight, int b, int c, float value) {
    pack(x, D, b, c, __fmul_rn(weight, value));
    return __fmul_rn(value, value);
}

// Leaves the sum of a tile's squares, which TILE neighbouring threads hold. Every thread of a warp has to come here.
DEVICE void leave_squares(float* squares, int b, int tile, float square) {
#pragma unroll
    for (int distance = TILE / 2; distance > 0; distance >>= 1) square += __shfl_xor_sync(0xffffffffu, square, distance);
    if (threadIdx.x % TILE == 0 && b < B && tile < tiles(D)) squares[b * SQUARES + tile] = square;
}

// A warp's parts: asked for before the products, so that they do not wait for it, and added up behind them.
struct Squares {
    static constexpr int EACH = divide_up(B * SQUARE_PARTS, WARPS);
    Quad<float> own[EACH];

    DEVICE void load(const float* squares) {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int part = i * WARPS + (threadIdx.x >> 5);
            own[i] = Quad<float>{0, 0, 0, 0};
            if (part < B * SQUARE_PARTS) own[i] = ((const Quad<float>*)squares)[part * (PART_TILES / 4) + (threadIdx.x & 31)];
        }
    }

    // To (B, SQUARE_PARTS).
    DEVICE void add(float* parts) const {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int part = i * WARPS + (threadIdx.x >> 5);
            const float sum = warp_sum((own[i].x + own[i].y) + (own[i].z + own[i].w));
            if ((threadIdx.x & 31) == 0 && part < B * SQUARE_PARTS) parts[part] = sum;
        }
    }
};

extern __shared__ Words dynamic[];

// W times the norm of the residual: x is that norm, or g r with FOLD_NORM.
template <class P, class Finish> DEVICE void run_normed(P& product, const Words* x, const float* squares, float epsilon, Finish finish) {
    if (!FOLD_NORM) {
        product.run(x, nullptr, dynamic, finish);
        return;
    }
    __shared__ float parts[B * SQUARE_PARTS];
    Squares own;
    own.load(squares);
    product.run(x, nullptr, dynamic, [&](int row, int b, float sum) {
        float square = 0;
#pragma unroll
        for (int part = 0; part < SQUARE_PARTS; part++) square += parts[b * SQUARE_PARTS + part];
        finish(row, b, __fmul_rn(sum, rsqrtf(fmaf(square, 1.0f / D, epsilon))));
    }, [&] { own.add(parts); });
}

typedef Product<V, D> HeadProduct;
SPREAD(head, HeadProduct::BLOCKS, HeadProduct::WORDS)

extern "C" __global__ void __launch_bounds__(THREADS, HeadProduct::AT_ONCE) head(const __grid_constant__ Head a) {
    HeadProduct product;
    product.begin(blockIdx.x, a.weight, nullptr);
    wait_for_previous_kernel();
    let_next_kernel_start();
    u64 greatest = 0;
    run_normed(product, a.x, a.squares, a.epsilon, [&](int row, int b, float sum) {
        a.logits[(i64)b * V + row] = sum;
        greatest = ranked(sum, row);
    });
    if (threadIdx.x >= divide_up(TILE * B, 32) * 32) return;  // whole warps
#pragma unroll
    for (int distance = TILE / 2; distance > 0; distance >>= 1) {
        const u64 other = __shfl_xor_sync(0xffffffffu, greatest, distance);
        if (other > greatest) greatest = other;
    }
    if (threadIdx.x % TILE == 0 && threadIdx.x < TILE * B) atomicMax(a.control->greatest + threadIdx.x / TILE, greatest);
}
