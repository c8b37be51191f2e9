// The selective scan's gradients. With g[t] the gradient of h[t] and gy[t] = gradOut[t] silu(z[t]):
//
//   g[t]      = C[t] gy[t] + a[t+1] g[t+1]                  a[t] = exp(step[t] A)
//   gradC[t]  = sum over channels of gy[t] h[t]             gradB[t] = sum over channels of g[t] step[t] u[t]
//   gradStep  = sum over states of g[t] (A a[t] h[t-1] + B[t] u[t])
//   gradU     = step[t] (g[t] . B[t]) + D gy[t]             gradA    = sum over time of step[t] g[t] a[t] h[t-1]
//
// A block takes TILE_CHANNELS channels of a row through all of time, from the last chunk to the first. A chunk begins with the
// state that the forward pass kept; a first sweep keeps the state before each segment of R steps in shared memory, and each
// segment, from the last to the first, is computed once more into registers and walked back.
//
// The sums over channels are made within a warp by shuffles, within a block through shared memory, and over blocks by a
// kernel of their own from the workspace, always in the same order.
//
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DG_TYPE=bf16 -DN=16 -DLANES=8 -DSTATES=2 -DSTEPS=64 -DSEGMENT=8 -DTHREADS=256 -DBLOCKS=2 -DSOFTPLUS=1 -DGATED=1 -DALIGNED=true -DALIGNED_INPUTS=true
// check: -DU_TYPE=float -DDELTA_TYPE=float -DZ_TYPE=float -DB_TYPE=float -DC_TYPE=float -DG_TYPE=float -DN=16 -DLANES=8 -DSTATES=2 -DSTEPS=64 -DSEGMENT=8 -DTHREADS=128 -DBLOCKS=2 -DSOFTPLUS=1 -DGATED=1 -DALIGNED=true -DALIGNED_INPUTS=true
// check: -DU_TYPE=float -DDELTA_TYPE=bf16 -DZ_TYPE=f16 -DB_TYPE=float -DC_TYPE=f16 -DG_TYPE=float -DN=3 -DLANES=2 -DSTATES=2 -DSTEPS=16 -DSEGMENT=8 -DTHREADS=256 -DBLOCKS=1 -DSOFTPLUS=0 -DGATED=0 -DALIGNED=false -DALIGNED_INPUTS=false
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DG_TYPE=bf16 -DN=1 -DLANES=1 -DSTATES=1 -DSTEPS=8 -DSEGMENT=8 -DTHREADS=256 -DBLOCKS=1 -DSOFTPLUS=1 -DGATED=1 -DALIGNED=true -DALIGNED_INPUTS=true
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DG_TYPE=bf16 -DN=64 -DLANES=32 -DSTATES=2 -DSTEPS=32 -DSEGMENT=8 -DTHREADS=128 -DBLOCKS=1 -DSOFTPLUS=1 -DGATED=1 -DALIGNED=true -DALIGNED_INPUTS=true
// check: -DU_TYPE=float -DDELTA_TYPE=float -DZ_TYPE=float -DB_TYPE=float -DC_TYPE=float -DG_TYPE=float -DN=256 -DLANES=32 -DSTATES=8 -DSTEPS=8 -DSEGMENT=4 -DTHREADS=32 -DBLOCKS=1 -DSOFTPLUS=1 -DGATED=1 -DALIGNED=false -DALIGNED_INPUTS=true
#include "selective_scan.cuh"

#define R SEGMENT
#define TILE_CHANNELS (THREADS / LANES)                  // of a block
#define GROUPS (32 / LANES)                              // channels of a warp
#define TILES (CHUNK / STEPS)                            // of a chunk
#define SEGMENTS (STEPS / R)                             // of a tile
#define GY_PITCH (STEPS + 8)

struct Arguments {
    const U_TYPE* u; const DELTA_TYPE* delta; const Z_TYPE* z; const B_TYPE* B; const C_TYPE* C; const G_TYPE* grad_out;
    const float *A, *D, *bias, *checkpoints, *grad_last;
    U_TYPE* grad_u; DELTA_TYPE* grad_delta; Z_TYPE* grad_z;
    float *grad_A, *grad_D, *grad_bias, *grad_initial;   // A, D and bias: one for each row
    float* workspace;                                    // (parts, b, l, 2 PADDED)
    Strides by_u, by_delta, by_z, by_B, by_C, by_grad_out, by_grad_u, by_grad_delta, by_grad_z;
    int batch, channels, length;
    int first_channel, parts, add;                       // of this launch; whether it adds to the workspace
};

struct alignas(16) Shared {
    float inputs[STEPS * 2 * PADDED];
    float steps[TILE_CHANNELS * CHANNEL_PITCH];          // then y and the first part of gradStep, by step
    float gy[TILE_CHANNELS * GY_PITCH];                  // then g . B
    float states[CHUNK / R][STATES][THREADS];            // before each segment of the chunk
    float sums[2][WARPS][R][2 * PADDED];                 // gradB and gradC of each warp, as `inputs`; two take turns
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) selective_scan_backward(const __grid_constant__ Arguments a) {
    extern __shared__ Words memory[];
    Shared& shared = *(Shared*)memory;

    const int row = blockIdx.x / a.parts, part = blockIdx.x % a.parts;
    const int q = threadIdx.x % LANES, group = threadIdx.x / LANES;
    const bool owner = q * E < STEPS;
    const int channel = a.first_channel + part * TILE_CHANNELS + group;
    const bool exists = channel < a.channels;
    const i64 c = exists ? channel : 0;
    const B_TYPE* B = a.B + row * a.by_B.row;
    const C_TYPE* C = a.C + row * a.by_C.row;
    const U_TYPE* u = a.u + row * a.by_u.row + c * a.by_u.channel;
    const DELTA_TYPE* delta = a.delta + row * a.by_delta.row + c * a.by_delta.channel;
    const Z_TYPE* z = GATED ? a.z + row * a.by_z.row + c * a.by_z.channel : nullptr;
    const G_TYPE* grad_out = a.grad_out ? a.grad_out + row * a.by_grad_out.row + c * a.by_grad_out.channel : nullptr;
    float* steps = shared.steps + group * CHANNEL_PITCH;
    float* gy = shared.gy + group * GY_PITCH;

    float A[STATES], A2[STATES], g[STATES], grad_A[STATES];                       // A2: times log2(e); g: a[t+1] g[t+1]
    load_states(a.A + c * N, q, A);
#pragma unroll
    for (int s = 0; s < STATES; s++) {
        if (!exists) A[s] = 0.0f;
        A2[s] = A[s] * LOG2_E;
        g[s] = grad_A[s] = 0.0f;
    }
    if (a.grad_last && exists) load_states(a.grad_last + (row * (i64)a.channels + channel) * N, q, g);
    const float D = a.D ? a.D[c] : 0.0f, bias = a.bias ? a.bias[c] : 0.0f;
    float grad_D = 0.0f, grad_bias = 0.0f;

    const int chunks = (a.length + CHUNK - 1) / CHUNK;
    int turn = 0;
#pragma unroll 1
    for (int chunk = chunks - 1; chunk >= 0; chunk--) {
        float h[STATES];
        load_states(a.checkpoints + ((row * (i64)chunks + chunk) * a.channels + c) * N, q, h);
        if (!exists) {
#pragma unroll
            for (int s = 0; s < STATES; s++) h[s] = 0.0f;
        }
        // Forward over the tiles of the chunk, then back over them. With one tile of a chunk, what is loaded serves both.
#pragma unroll 1
        for (int visit = TILES == 1 ? 1 : 0; visit < 2 * TILES; visit++) {
            const bool back = visit >= TILES;
            const int tile = back ? 2 * TILES - 1 - visit : visit;
            const int start = chunk * CHUNK + tile * STEPS;
            const int left = a.length - start - q * E, mine = owner && exists ? left : 0;
            const i64 first = start + q * E;

            Raw<U_TYPE> raw_u = load_steps<U_TYPE, ALIGNED>(u + first * a.by_u.time, a.by_u.time, mine);
            Raw<DELTA_TYPE> raw_delta = load_steps<DELTA_TYPE, ALIGNED>(delta + first * a.by_delta.time, a.by_delta.time, mine);
            Raw<Z_TYPE> raw_z;
            if (GATED) raw_z = load_steps<Z_TYPE, ALIGNED>(z + first * a.by_z.time, a.by_z.time, mine);
            Raw<G_TYPE> raw_g = load_steps<G_TYPE, ALIGNED>(grad_out + first * a.by_grad_out.time, a.by_grad_out.time, grad_out ? mine : 0);
            __syncthreads();                             // all are done with the tile before
            load_tile_inputs<B_TYPE, C_TYPE, ALIGNED_INPUTS>(shared.inputs, B + start * a.by_B.time, a.by_B, C + start * a.by_C.time, a.by_C, a.length - start);
            if (owner) {
                float pairs[2 * E];
#pragma unroll
                for (int i = 0; i < E; i++) {
                    float dt = get(raw_delta, i) + bias;
                    if (SOFTPLUS) dt = softplus(dt);
                    if (i >= left) dt = 0.0f;
                    pairs[2 * i] = dt;
                    pairs[2 * i + 1] = dt * get(raw_u, i);
                    float x = get(raw_g, i);
                    if (GATED) x *= silu(get(raw_z, i));
                    gy[q * E + i] = x;
                }
                write_steps(steps, q * E, pairs);
            }
            __syncthreads();

            if (ALIGNED && back && first >= CHUNK && owner && exists) {      // the tile before this one, which comes next
                prefetch(u + first - STEPS);
                prefetch(delta + first - STEPS);
                if (GATED) prefetch(z + first - STEPS);
                if (grad_out) prefetch(grad_out + first - STEPS);
            }

            if (!back || TILES == 1) {
#pragma unroll 1
                for (int segment = 0; segment < SEGMENTS; segment++) {
#pragma unroll
                    for (int s = 0; s < STATES; s++) shared.states[tile * SEGMENTS + segment][s][threadIdx.x] = h[s];
#pragma unroll
                    for (int r = 0; r < R; r++) {
                        const int t = segment * R + r;
                        float Bt[STATES], Ct[STATES];
                        read_inputs(shared.inputs, t, q, Bt, Ct);
                        Pair<float> step = *(const Pair<float>*)(steps + step_at(t));
#pragma unroll
                        for (int s = 0; s < STATES; s++) h[s] = fmaf(exp2_fast(step.x * A2[s]), h[s], step.y * Bt[s]);
                    }
                }
            }
            if (!back) continue;

#pragma unroll 1
            for (int segment = SEGMENTS - 1; segment >= 0; segment--) {
                float before[R + 1][STATES], decay[R][STATES], y[R], by_A[R], by_B[R];
#pragma unroll
                for (int s = 0; s < STATES; s++) before[0][s] = shared.states[tile * SEGMENTS + segment][s][threadIdx.x];
#pragma unroll
                for (int r = 0; r < R; r++) {
                    const int t = segment * R + r;
                    float Bt[STATES], Ct[STATES];
                    read_inputs(shared.inputs, t, q, Bt, Ct);
                    Pair<float> step = *(const Pair<float>*)(steps + step_at(t));
                    y[r] = 0.0f;
#pragma unroll
                    for (int s = 0; s < STATES; s++) {
                        decay[r][s] = exp2_fast(step.x * A2[s]);
                        before[r + 1][s] = fmaf(decay[r][s], before[r][s], step.y * Bt[s]);
                        y[r] = fmaf(before[r + 1][s], Ct[s], y[r]);
                    }
                }
                if (GATED) sum_lanes<R, LANES, 1>(y, q);

                float(*sums)[2 * PADDED] = shared.sums[turn][threadIdx.x / 32];
#pragma unroll
                for (int r = R - 1; r >= 0; r--) {
                    const int t = segment * R + r;
                    float Bt[STATES], Ct[STATES], inputs[2 * STATES];
                    read_inputs(shared.inputs, t, q, Bt, Ct);
                    Pair<float> step = *(const Pair<float>*)(steps + step_at(t));
                    const float gyt = gy[t];
                    by_A[r] = by_B[r] = 0.0f;
#pragma unroll
                    for (int s = 0; s < STATES; s++) {
                        const float gt = fmaf(Ct[s], gyt, g[s]);
                        by_B[r] = fmaf(gt, Bt[s], by_B[r]);
                        inputs[s] = gt * step.y;
                        inputs[STATES + s] = gyt * before[r + 1][s];
                        g[s] = gt * decay[r][s];
                        const float p = g[s] * before[r][s];
                        by_A[r] = fmaf(A[s], p, by_A[r]);
                        grad_A[s] = fmaf(step.x, p, grad_A[s]);
                    }
                    // Over the channels of the warp.
                    constexpr int HELD = sums_held<2 * STATES, GROUPS>();
                    sum_lanes<2 * STATES, GROUPS, LANES>(inputs, threadIdx.x % 32 / LANES);
                    float* to = sums[r] + q * 2 * STATES + first_sum<2 * STATES, GROUPS>(threadIdx.x % 32 / LANES);
#pragma unroll
                    for (int i = 0; i < HELD; i++) to[i] = inputs[i];
                }
                sum_lanes<R, LANES, 1>(by_A, q);
                sum_lanes<R, LANES, 1>(by_B, q);
                __syncwarp();                            // every lane has read the steps of this segment
                const int t = segment * R + first_sum<R, LANES>(q);
#pragma unroll
                for (int i = 0; i < sums_held<R, LANES>(); i++) {
                    *(Pair<float>*)(steps + step_at(t + i)) = Pair<float>{y[i], by_A[i]};
                    gy[t + i] = by_B[i];
                }

                __syncthreads();                         // over the warps of the block
                for (int i = threadIdx.x; i < R * 2 * PADDED; i += THREADS) {
                    const int at = start + segment * R + i / (2 * PADDED);
                    if (at >= a.length) continue;
                    const float* from = &shared.sums[turn][0][0][0] + i;
                    float sum = from[0];
#pragma unroll
                    for (int w = 1; w < WARPS; w++) sum += from[w * R * 2 * PADDED];
                    float* to = a.workspace + (((i64)part * a.batch + row) * a.length + at) * (2 * PADDED) + i % (2 * PADDED);
                    *to = a.add ? *to + sum : sum;
                }
                turn ^= 1;
            }
            __syncwarp();

            if (owner && exists) {
                float out_u[E], out_delta[E], out_z[E];
#pragma unroll
                for (int i = 0; i < E; i++) {
                    const Pair<float> sums = *(const Pair<float>*)(steps + step_at(q * E + i));       // C . h; part of gradStep
                    const float by_B = gy[q * E + i], ui = get(raw_u, i), gi = get(raw_g, i);
                    float dt = get(raw_delta, i) + bias, slope = 1.0f;
                    if (SOFTPLUS) { slope = sigmoid(dt); dt = softplus(dt); }
                    float gyt = gi;
                    if (GATED) {
                        const float zi = get(raw_z, i), open = sigmoid(zi);
                        gyt = gi * zi * open;
                        out_z[i] = gi * fmaf(D, ui, sums.x) * open * fmaf(zi, 1.0f - open, 1.0f);
                    }
                    out_u[i] = fmaf(dt, by_B, D * gyt);
                    out_delta[i] = fmaf(ui, by_B, sums.y) * slope;
                    if (i < left) {
                        grad_D = fmaf(gyt, ui, grad_D);
                        grad_bias += out_delta[i];
                    }
                }
                store_steps<U_TYPE, ALIGNED>(a.grad_u + row * a.by_grad_u.row + c * a.by_grad_u.channel + first * a.by_grad_u.time, a.by_grad_u.time, left, out_u);
                store_steps<DELTA_TYPE, ALIGNED>(a.grad_delta + row * a.by_grad_delta.row + c * a.by_grad_delta.channel + first * a.by_grad_delta.time, a.by_grad_delta.time, left, out_delta);
                if (GATED) store_steps<Z_TYPE, ALIGNED>(a.grad_z + row * a.by_grad_z.row + c * a.by_grad_z.channel + first * a.by_grad_z.time, a.by_grad_z.time, left, out_z);
            }
        }
    }

#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        grad_D += __shfl_xor_sync(0xffffffffu, grad_D, distance);
        grad_bias += __shfl_xor_sync(0xffffffffu, grad_bias, distance);
    }
    if (!exists) return;
    const i64 at = row * (i64)a.channels + channel;
    store_states(a.grad_A + at * N, q, grad_A);
    if (a.grad_initial) store_states(a.grad_initial + at * N, q, g);
    if (q == 0 && a.grad_D) a.grad_D[at] = grad_D;
    if (q == 0 && a.grad_bias) a.grad_bias[at] = grad_bias;
}
