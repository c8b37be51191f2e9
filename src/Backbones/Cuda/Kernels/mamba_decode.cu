// One layer of Mamba for one token of B rows, in four kernels, or five where the norm has one of its own. The names of the sizes are
// those of Models/Mamba.cs.
//
//   normalise  x = norm(residual): for LayerNorm and float16. Else (FOLD_NORM) `output`, and before the first layer `embed`, leave
//              x = g residual and its sums of squares, and `input`, `select` and `head` multiply their sums by the norm's factor
//   input      u = silu(conv(in_proj(x)))            the first half of in_proj's rows
//   select     (delta, B, C) = x_proj(u), and the gate z: the second half of in_proj's rows, on the other blocks, so that memory
//              does not rest while x_proj, which is small, is waited for
//   state      delta = softplus(dt_proj(delta)); h = exp(delta A) h + delta B u; y = (C h + D u) silu(z)
//   output     residual += out_proj(y)
//
// Each may start before the one ahead of it has ended (programmatic dependent launch): it asks for its weights, which nothing
// writes, then waits, then reads activations. With FOLD_NORM `output` writes x and squares over those that `input` and `select` read:
// it has waited for `state` to end, which waited for `select`, which waited for `input`, so nothing reads them any more.
//
// check: -DTYPE=bf16 -DWEIGHTS_16 -DB=1 -DSMS=132 -DV=50280 -DD=1536 -DE=3072 -DN=16 -DR=96 -DK=4 -DLAYER_NORM=false -DFOLD_NORM=true
// check: -DTYPE=bf16 -DWEIGHTS_16 -DB=8 -DSMS=132 -DV=50280 -DD=2560 -DE=5120 -DN=16 -DR=160 -DK=4 -DLAYER_NORM=true -DFOLD_NORM=false
// check: -DTYPE=bf16 -DWEIGHTS_16 -DB=16 -DSMS=132 -DV=50280 -DD=2560 -DE=5120 -DN=16 -DR=160 -DK=4 -DLAYER_NORM=false -DFOLD_NORM=true
// check: -DTYPE=bf16 -DWEIGHTS_16 -DB=4 -DSMS=40 -DV=101 -DD=37 -DE=74 -DN=5 -DR=7 -DK=3 -DLAYER_NORM=false -DFOLD_NORM=true
// check: -DTYPE=f16 -DWEIGHTS_16 -DB=16 -DSMS=40 -DV=101 -DD=37 -DE=74 -DN=5 -DR=7 -DK=3 -DLAYER_NORM=false -DFOLD_NORM=false -DSTATE=f16
// check: -DTYPE=float -DB=2 -DSMS=132 -DV=20011 -DD=768 -DE=1536 -DN=16 -DR=48 -DK=4 -DLAYER_NORM=true -DFOLD_NORM=false
// check: -DTYPE=float -DB=8 -DSMS=132 -DV=20011 -DD=768 -DE=1536 -DN=16 -DR=48 -DK=4 -DLAYER_NORM=false -DFOLD_NORM=true
#include "decode_head.cuh"

// A_log, D and the bias of dt_proj are float32 in a model of any precision, unless it was converted as a whole.
#ifndef STATE
#define STATE float
#endif

struct Layer {
    const TYPE *in_proj, *in_bias;   // (2e, d), (2e) or null
    const TYPE *conv, *conv_bias;    // (e, k), (e) or null
    const TYPE* x_proj;              // (r + 2n, e)
    const TYPE* dt_proj;             // (e, r)
    const STATE *dt_bias;            // (e)
    const STATE *a_log, *d;          // (e, n), (e)
    const TYPE *out_proj, *out_bias; // (d, e), (d) or null
    float* const* windows;           // B of (e, k): the last k inputs of the convolution, the oldest first
    float* const* states;            // B of (e, n)
    Words* x;                        // (B, d)
    float* residual;                 // (B, d)
    float *u, *z;                    // (B, e), z after its SiLU
    float* selected;                 // (B, SELECTED_ROW)
    Words *u_packed, *y_packed;      // (B, e)
    // With FOLD_NORM:
    float* squares;                  // (B, SQUARES)
    const TYPE* next_norm;           // (d): the weights of the norm behind this layer
    float epsilon;
};

constexpr int SELECTED = R + 2 * N, SELECTED_ROW = divide_up(SELECTED, 4) * 4;

typedef Product<E, D> Input;
typedef Product<SELECTED, E> Select;
typedef Product<D, E> Output;
SPREAD(input, Input::BLOCKS, Input::WORDS)
SPREAD(select, Input::BLOCKS + Select::BLOCKS, most(Input::WORDS, Select::WORDS))
SPREAD(output, Output::BLOCKS, Output::WORDS)

#if FOLD_NORM
struct Entry {
    const TYPE *table, *norm;  // (v, d), (d): the first layer's
    const Control* control;
    float* residual;           // (B, d)
    Words* x;                  // (B, d)
    float* squares;            // (B, SQUARES)
};

// As `embed` of decode_ends.cu, with what `output` leaves. A thread a value.
extern "C" __global__ void __launch_bounds__(THREADS) embed(const __grid_constant__ Entry a) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const int b = blockIdx.y, c = blockIdx.x * THREADS + threadIdx.x, id = a.control->ids[b];
    float square = 0;
    if (c < D) {
        const float value = to_float(a.table[(i64)(id < 0 || id >= V ? 0 : id) * D + c]);
        a.residual[b * D + c] = value;
        square = leave_value(a.x, to_float(a.norm[c]), b, c, value);
    }
    leave_squares(a.squares, b, c / TILE, square);
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, Input::AT_ONCE) input(const __grid_constant__ Layer a) {
    Input product;
    product.begin(blockIdx.x, a.in_proj, nullptr);
    // What the convolution takes beside its new value is asked for before the products, by the threads that finish them.
    float* window = nullptr;
    float seen[K];
    TYPE taps[K], bias = {};
    if (threadIdx.x < TILE * B) {
        const int c = min(product.first + (int)threadIdx.x % TILE, E - 1);
        window = a.windows[threadIdx.x / TILE] + c * K;
#pragma unroll
        for (int j = 0; j < K; j++) {
            if (j + 1 < K) seen[j] = window[j + 1];
            taps[j] = a.conv[c * K + j];
        }
        if (a.conv_bias) bias = a.conv_bias[c];
    }
    wait_for_previous_kernel();
    let_next_kernel_start();
    run_normed(product, a.x, a.squares, a.epsilon, [&](int c, int b, float u) {
        if (a.in_bias) u += to_float(a.in_bias[c]);
        float sum = to_float(bias);
        seen[K - 1] = u;
#pragma unroll
        for (int j = 0; j < K; j++) {
            window[j] = seen[j];
            sum = fmaf(seen[j], to_float(taps[j]), sum);
        }
        sum = silu(sum);
        a.u[b * E + c] = sum;
        pack(a.u_packed, E, b, c, sum);
    });
}

// The gate reads what was there before `input` (of `normalise`, of the last layer's `output` or of `embed`), which lets this kernel
// start only when it has waited for it itself: no wait.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) select(const __grid_constant__ Layer a) {
    const bool selects = blockIdx.x < Select::BLOCKS;
    const int block = selects ? blockIdx.x : blockIdx.x - Select::BLOCKS;
    if (selects) {
        Select product;
        product.begin(block, a.x_proj, nullptr);
        wait_for_previous_kernel();
        let_next_kernel_start();
        product.run(a.u_packed, nullptr, dynamic, [&](int row, int b, float sum) { a.selected[b * SELECTED_ROW + row] = sum; });
        return;
    }
    Input product;
    product.begin(block, a.in_proj + (i64)E * D, nullptr);
    let_next_kernel_start();
    run_normed(product, a.x, a.squares, a.epsilon, [&](int c, int b, float z) { a.z[b * E + c] = silu(a.in_bias ? z + to_float(a.in_bias[E + c]) : z); });
}

// Eight lanes a channel: each has every eighth value of the state, and every eighth 16 bytes of dt_proj's row. Of many rows a block
// takes several, one after another, so that dt_proj is read less often; fewer where there would be too few blocks.
#define STATE_THREADS 128
#define LANES 8
constexpr int STATE_CHANNELS = STATE_THREADS / LANES, STATE_BLOCKS = divide_up(E, STATE_CHANNELS);
constexpr int STATE_ROWS = B >= 8 && STATE_BLOCKS >= 2 * SMS ? 4 : B >= 4 ? 2 : 1;
SPREAD(state, STATE_BLOCKS * (B / STATE_ROWS), 0)

// One block a multiprocessor is asked for: the registers then hold all that is on its way.
extern "C" __global__ void __launch_bounds__(STATE_THREADS, 1) state(const __grid_constant__ Layer a) {
    constexpr int VALUES = (N + LANES - 1) / LANES, STEPS = (R + LANES * VECTOR - 1) / (LANES * VECTOR);
    const int lane = threadIdx.x % LANES;
    const int first = blockIdx.x / STATE_BLOCKS * STATE_ROWS;  // row
    const int channel = blockIdx.x % STATE_BLOCKS * STATE_CHANNELS + threadIdx.x / LANES, c = min(channel, E - 1);
    let_next_kernel_start();

    // Weights, and the state that the last token left.
    union { Words words; TYPE values[VECTOR]; } step[STEPS];
#pragma unroll
    for (int i = 0; i < STEPS; i++) step[i].words = read_weights<R>(a.dt_proj + (i64)c * R, (i * LANES + lane) * VECTOR);
    float rate[VALUES], h[STATE_ROWS][VALUES];
    float* own[STATE_ROWS];
#pragma unroll
    for (int r = 0; r < STATE_ROWS; r++) own[r] = a.states[first + r] + (i64)c * N;
#pragma unroll
    for (int j = 0; j < VALUES; j++) {
        const int q = lane + j * LANES;
        rate[j] = q < N ? -exp2_fast(to_float(a.a_log[(i64)c * N + q]) * LOG2_E) * LOG2_E : 0;
#pragma unroll
        for (int r = 0; r < STATE_ROWS; r++) h[r][j] = q < N ? own[r][q] : 0;
    }
    const float bias = to_float(a.dt_bias[c]), skip = to_float(a.d[c]);

    wait_for_previous_kernel();
#pragma unroll
    for (int r = 0; r < STATE_ROWS; r++) {
        // All of it is on its way at once.
        const int b = first + r;
        const float* selected = a.selected + b * SELECTED_ROW;
        const float u = a.u[b * E + c], gate = a.z[b * E + c];
        union { Quad<float> quads[VECTOR / 4]; float values[VECTOR]; } low[STEPS];
#pragma unroll
        for (int i = 0; i < STEPS; i++)
#pragma unroll
            for (int j = 0; j < VECTOR / 4; j++) {
                const int column = (i * LANES + lane) * VECTOR + 4 * j;
                low[i].quads[j] = column < R ? *(const Quad<float>*)(selected + column) : Quad<float>{0, 0, 0, 0};  // behind R weights are zero
            }
        float in[VALUES], out[VALUES];
#pragma unroll
        for (int j = 0; j < VALUES; j++) {
            const int q = min(lane + j * LANES, N - 1);
            in[j] = selected[R + q];
            out[j] = selected[R + N + q];
        }
        float dot = 0;
#pragma unroll
        for (int i = 0; i < STEPS; i++)
#pragma unroll
            for (int j = 0; j < VECTOR; j++) dot = fmaf(to_float(step[i].values[j]), low[i].values[j], dot);
#pragma unroll
        for (int distance = LANES / 2; distance > 0; distance >>= 1) dot += __shfl_xor_sync(0xffffffffu, dot, distance);
        const float delta = softplus(dot + bias), entering = delta * u;
        float y = 0;
#pragma unroll
        for (int j = 0; j < VALUES; j++) {
            const int q = lane + j * LANES;
            if (q >= N) continue;
            h[r][j] = fmaf(exp2_fast(delta * rate[j]), h[r][j], entering * in[j]);
            y = fmaf(h[r][j], out[j], y);
            if (channel < E) own[r][q] = h[r][j];
        }
#pragma unroll
        for (int distance = LANES / 2; distance > 0; distance >>= 1) y += __shfl_xor_sync(0xffffffffu, y, distance);
        if (lane == 0 && channel < E) pack(a.y_packed, E, b, c, fmaf(skip, u, y) * gate);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) output(const __grid_constant__ Layer a) {
    Output product;
    product.begin(blockIdx.x, a.out_proj, nullptr);
    // What a thread adds its sum to, and the norm's weight of that place, are asked for before the products.
    const int own_row = product.first + (int)threadIdx.x % TILE, own_b = threadIdx.x / TILE;
    const bool adds = own_b < B && own_row < D;
    TYPE weight = {};
    if (FOLD_NORM && adds) weight = a.next_norm[own_row];
    wait_for_previous_kernel();
    let_next_kernel_start();
    const float before = adds ? a.residual[own_b * D + own_row] : 0;
    float square = 0;
    product.run(a.y_packed, nullptr, dynamic, [&](int row, int b, float sum) {
        const float value = before + (a.out_bias ? sum + to_float(a.out_bias[row]) : sum);
        a.residual[b * D + row] = value;
        if (FOLD_NORM) square = leave_value(a.x, to_float(weight), b, row, value);
    });
    if (FOLD_NORM) leave_squares(a.squares, own_b, blockIdx.x, square);
}
