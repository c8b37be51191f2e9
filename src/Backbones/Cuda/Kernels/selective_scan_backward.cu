// The selective scan's gradients. With g[t] the gradient of h[t] and gy[t] = gradOut[t] silu(z[t]):
//
//   g[t]      = C[t] gy[t] + a[t+1] g[t+1]                  a[t] = exp(step[t] A)
//   gradC[t]  = sum over channels of gy[t] h[t]             gradB[t] = sum over channels of g[t] step[t] u[t]
//   gradStep  = sum over states of g[t] (A a[t] h[t-1] + B[t] u[t])
//   gradU     = step[t] (g[t] . B[t]) + D gy[t]             gradA    = sum over time of step[t] g[t] a[t] h[t-1]
//
// A block takes TILE_CHANNELS channels of a row through time, from the last chunk to the first. A chunk begins with the state that
// the forward pass kept; a first sweep keeps the state before each segment of R steps in shared memory, and each segment, from
// the last to the first, is computed once more into registers and walked back.
//
// The sums over channels are made within a warp by shuffles, within a block through shared memory, and over blocks by a
// kernel of their own from the workspace, always in the same order.
//
// Where the channels do not fill the GPU, time is cut into pieces. PASS 1 finds g where each piece but the first begins, from zero
// at its end, and the sum of its step sizes; so PASS 2 can enter each piece, from behind, with the right g. PASS 0 is all of time.
//
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DG_TYPE=bf16 -DN=16 -DLANES=4 -DSTATES=4 -DSTEPS=32 -DSEGMENT=4 -DTHREADS=128 -DBLOCKS=3 -DSOFTPLUS=1 -DGATED=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=float -DDELTA_TYPE=float -DZ_TYPE=float -DB_TYPE=float -DC_TYPE=float -DG_TYPE=float -DN=16 -DLANES=4 -DSTATES=4 -DSTEPS=32 -DSEGMENT=4 -DTHREADS=128 -DBLOCKS=3 -DSOFTPLUS=1 -DGATED=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=float -DDELTA_TYPE=bf16 -DZ_TYPE=f16 -DB_TYPE=float -DC_TYPE=f16 -DG_TYPE=float -DN=3 -DLANES=1 -DSTATES=4 -DSTEPS=8 -DSEGMENT=4 -DTHREADS=128 -DBLOCKS=3 -DSOFTPLUS=0 -DGATED=0 -DALIGNED=false -DALIGNED_INPUTS=false -DPASS=0
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DG_TYPE=bf16 -DN=1 -DLANES=1 -DSTATES=1 -DSTEPS=8 -DSEGMENT=4 -DTHREADS=128 -DBLOCKS=3 -DSOFTPLUS=1 -DGATED=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DG_TYPE=bf16 -DN=64 -DLANES=16 -DSTATES=4 -DSTEPS=16 -DSEGMENT=4 -DTHREADS=128 -DBLOCKS=3 -DSOFTPLUS=1 -DGATED=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=float -DDELTA_TYPE=float -DZ_TYPE=float -DB_TYPE=float -DC_TYPE=float -DG_TYPE=float -DN=256 -DLANES=32 -DSTATES=8 -DSTEPS=8 -DSEGMENT=4 -DTHREADS=64 -DBLOCKS=1 -DSOFTPLUS=1 -DGATED=1 -DALIGNED=false -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DG_TYPE=bf16 -DN=16 -DLANES=4 -DSTATES=4 -DSTEPS=32 -DSEGMENT=4 -DTHREADS=128 -DBLOCKS=3 -DSOFTPLUS=1 -DGATED=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=1
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DG_TYPE=bf16 -DN=16 -DLANES=4 -DSTATES=4 -DSTEPS=32 -DSEGMENT=4 -DTHREADS=128 -DBLOCKS=3 -DSOFTPLUS=1 -DGATED=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=2
#include "selective_scan.cuh"

#define R SEGMENT
#define TILE_CHANNELS (THREADS / LANES)                  // of a block
#define GROUPS (32 / LANES)                              // channels of a warp
#define TILES (CHUNK / STEPS)                            // of a chunk
#define VISITS (PASS == 1 ? TILES : 2 * TILES - 1)       // of the tiles of a chunk: up to the last, which is also the first of the way back
#define SEGMENTS (STEPS / R)                             // of a tile
// The pitches keep the channels of a warp apart in the banks.
#define CHANNEL_PITCH (2 * STEPS + 4)
#define GY_PITCH (STEPS + 4)
// A thread of group w of its warp has state s ^ (w % ORDERS) of its lane in register s: then a step of the sums over the channels
// of a warp gives half of the registers and keeps the other half, without choosing between them.
#define ORDERS (STATES < GROUPS ? STATES : GROUPS)       // as many copies of B and C are in shared memory
#define ORDER_PITCH (STEPS * 2 * PADDED + (ORDERS > 1 ? 4 : 0))
#define VECTOR (WIDTH < 4 ? WIDTH : 4)
// The sums of a segment and a warp take the place of its states, which have been read, where they are no more.
#define IN_PLACE (R * WIDTH <= 32 * STATES)
#define WARP_SUMS (IN_PLACE ? 32 * STATES : STEPS * WIDTH)         // from the sums of a warp to those of the next

struct Arguments {
    const U_TYPE* u; const DELTA_TYPE* delta; const Z_TYPE* z; const B_TYPE* B; const C_TYPE* C; const G_TYPE* grad_out;
    const float *A, *D, *bias, *checkpoints, *grad_last;
    U_TYPE* grad_u; DELTA_TYPE* grad_delta; Z_TYPE* grad_z;
    float *grad_A, *grad_D, *grad_bias, *grad_initial;   // A, D and bias: one for each piece and row
    float* workspace;                                    // (parts, b, l, WIDTH)
    Strides by_u, by_delta, by_z, by_B, by_C, by_grad_out, by_grad_u, by_grad_delta, by_grad_z;
    int batch, channels, length;
    int first_channel, parts, add;                       // of this launch; whether it adds to the workspace
    float *piece_states, *piece_steps;                   // (pieces - 1, b, d, n), (pieces - 1, b, d), of pieces 1, 2, ...
    int piece;
};

struct alignas(16) Shared {
    float inputs[ORDERS * ORDER_PITCH];
    float steps[TILE_CHANNELS * CHANNEL_PITCH];          // then y and the first part of gradStep, by step
    float gy[TILE_CHANNELS * GY_PITCH];                  // then g . B
    float states[CHUNK / R][THREADS][STATES];            // before each segment of the chunk
    float sums[IN_PLACE ? 4 : WARPS * STEPS * WIDTH];    // gradB and gradC of a tile and each warp, as `inputs`
};

// R numbers of every thread, of R steps, summed over the lanes of a channel in an order that is always the same. Afterwards lane q
// holds the sums of steps from R q / LANES on, HELD of them, in x[0], x[1], ... A step hands half of the sums over and keeps the
// other half, so that it costs R shuffles in all.
#define HELD (R > LANES ? R / LANES : 1)
DEVICE void sum_lanes(float (&x)[R], int q) {
    int count = R;
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        if (count > 1) {
            count /= 2;
            const bool upper = q & distance;
#pragma unroll
            for (int i = 0; i < R / 2; i++)
                if (i < count) {
                    const float give = upper ? x[i] : x[i + count], keep = upper ? x[i + count] : x[i];
                    x[i] = keep + __shfl_xor_sync(0xffffffffu, give, distance);
                }
        } else {
            x[0] += __shfl_xor_sync(0xffffffffu, x[0], distance);
        }
    }
}

// gradB and gradC of a step over the channels of a warp. Afterwards x[0], or what stands at GROUPS, 2 GROUPS, ... where there are
// more states than channels, has the sums; with more channels than states the upper half of them has those of C in x[0].
DEVICE void sum_channels(float (&x)[2 * STATES], int w) {
#pragma unroll
    for (int bit = STATES / 2; bit > 0; bit /= 2) {
        if (bit >= GROUPS) continue;
#pragma unroll
        for (int i = 0; i < STATES; i++)
            if (i % GROUPS < bit) {
                x[i] += __shfl_xor_sync(0xffffffffu, x[i + bit], bit * LANES);
                x[STATES + i] += __shfl_xor_sync(0xffffffffu, x[STATES + i + bit], bit * LANES);
            }
    }
    if (GROUPS > STATES) {
        const bool upper = w & STATES;
        const float give = upper ? x[0] : x[STATES], keep = upper ? x[STATES] : x[0];
        x[0] = keep + __shfl_xor_sync(0xffffffffu, give, STATES * LANES % 32);
#pragma unroll
        for (int distance = 2 * STATES; distance < GROUPS; distance *= 2) x[0] += __shfl_xor_sync(0xffffffffu, x[0], distance * LANES);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) selective_scan_backward(const __grid_constant__ Arguments a) {
    extern __shared__ Words memory[];
    Shared& shared = *(Shared*)memory;
    let_next_kernel_start();

    const int row = blockIdx.x / a.parts, part = blockIdx.x % a.parts;
    const int q = threadIdx.x % LANES, group = threadIdx.x / LANES, w = threadIdx.x % 32 / LANES, order = w % ORDERS;
    const bool owner = q * E < STEPS;
    const int channel = a.first_channel + part * TILE_CHANNELS + group;
    const bool exists = channel < a.channels;
    const i64 c = exists ? channel : 0;
    const B_TYPE* B = a.B + row * a.by_B.row;
    const C_TYPE* C = a.C + row * a.by_C.row;
    const float* inputs = shared.inputs + order * ORDER_PITCH + q * 2 * STATES;
    float* steps = shared.steps + group * CHANNEL_PITCH;
    float* gy = shared.gy + group * GY_PITCH;
    float* states = shared.states[0][threadIdx.x];

    const int chunks = (a.length + CHUNK - 1) / CHUNK;
    const int pieces = PASS == 0 ? 1 : (a.length + a.piece - 1) / a.piece, piece = PASS == 0 ? 0 : blockIdx.y + (PASS == 1);
    const int first_chunk = PASS == 0 ? 0 : piece * (a.piece / CHUNK), last_chunk = PASS == 0 ? chunks - 1 : min(chunks, first_chunk + a.piece / CHUNK) - 1;

    float A[STATES], g[STATES], grad_A[STATES];          // A: times log2(e); g: a[t+1] g[t+1]
    load_states(a.A + c * N, q, order, A);
#pragma unroll
    for (int s = 0; s < STATES; s++) {
        A[s] = exists ? A[s] * LOG2_E : 0.0f;
        g[s] = grad_A[s] = 0.0f;
    }
    if (a.grad_last && exists && (PASS != 1 || piece == pieces - 1)) load_states(a.grad_last + (row * (i64)a.channels + channel) * N, q, order, g);
    if (PASS == 2) wait_for_previous_kernel();           // PASS 1
    if (PASS == 2 && exists) {
        for (int later = pieces - 1; later > piece; later--) {
            const i64 at = ((i64)(later - 1) * a.batch + row) * a.channels + channel;
            float entered[STATES];
            load_states(a.piece_states + at * N, q, order, entered);
#pragma unroll
            for (int s = 0; s < STATES; s++) g[s] = later == pieces - 1 ? entered[s] : fmaf(exp2_fast(a.piece_steps[at] * A[s]), g[s], entered[s]);
        }
    }
    const float D = a.D ? a.D[c] : 0.0f, bias = a.bias ? a.bias[c] : 0.0f;
    float grad_D = 0.0f, grad_bias = 0.0f, total = 0.0f;

    // What a visit reads of memory is loaded while the one before it is computed.
    Raw<U_TYPE, E> next_u; Raw<DELTA_TYPE, E> next_delta; Raw<Z_TYPE, E> next_z; Raw<G_TYPE, E> next_g;
    Octet next_inputs[HELD_OCTETS];
    float next_h[STATES];
    auto at = [&](auto* p, const Strides& by, int start) {
        return p + row * by.row + c * by.channel + (i64)(start + q * E) * (ALIGNED ? 1 : by.time);
    };
    auto load_tile = [&](int start, bool back, auto whole) {
        constexpr bool WHOLE = decltype(whole)::value;
        const int mine = WHOLE ? E : owner && exists ? a.length - start - q * E : 0;
        load_steps<DELTA_TYPE, E, ALIGNED>(next_delta.words, at(a.delta, a.by_delta, start), a.by_delta.time, mine);
        if (PASS != 1) load_steps<U_TYPE, E, ALIGNED>(next_u.words, at(a.u, a.by_u, start), a.by_u.time, mine);
        load_tile_inputs<B_TYPE, C_TYPE, ALIGNED_INPUTS, WHOLE>(next_inputs, B + (i64)start * (ALIGNED_INPUTS ? 1 : a.by_B.time), a.by_B,
            C + (i64)start * (ALIGNED_INPUTS ? 1 : a.by_C.time), a.by_C, a.length - start, back);
        if (!back) return;
        if (GATED) load_steps<Z_TYPE, E, ALIGNED>(next_z.words, at(a.z, a.by_z, start), a.by_z.time, mine);
        load_steps<G_TYPE, E, ALIGNED>(next_g.words, at(a.grad_out, a.by_grad_out, start), a.by_grad_out.time, a.grad_out ? mine : 0);
    };
    auto load = [&](int chunk, int visit) {
        const int tile = PASS == 1 ? TILES - 1 - visit : visit < TILES ? visit : 2 * TILES - 2 - visit;
        const bool back = PASS == 1 || visit >= TILES - 1;
        const int start = chunk * CHUNK + tile * STEPS;
        if (STEPS % LANES == 0 && exists && a.length - start >= STEPS) load_tile(start, back, Flag<true>());
        else load_tile(start, back, Flag<false>());
        if (PASS != 1 && visit == 0) load_states(a.checkpoints + ((row * (i64)chunks + chunk) * a.channels + c) * N, q, order, next_h);
    };
    // The sums of the block over its warps, of the tile from `start` on.
    auto sum_warps = [&](int start) {
        const float* tile_sums = IN_PLACE ? shared.states[start % CHUNK / R][0] : shared.sums;
        float* to = a.workspace + (((i64)part * a.batch + row) * a.length + start) * WIDTH;
        const int count = min(STEPS, a.length - start) * WIDTH;
        for (int i = threadIdx.x * VECTOR; i < count; i += THREADS * VECTOR) {
            float sum[VECTOR], more[VECTOR];
            // In place, a segment has R WIDTH of the 32 STATES floats of each warp.
            const float* from = tile_sums + (IN_PLACE ? i / (R * WIDTH) * (THREADS * STATES) + i % (R * WIDTH) : i);
            read_vector<VECTOR>(from, sum);
#pragma unroll
            for (int x = 1; x < WARPS; x++) {
                read_vector<VECTOR>(from + x * WARP_SUMS, more);
#pragma unroll
                for (int v = 0; v < VECTOR; v++) sum[v] += more[v];
            }
            if (a.add) {
                read_vector<VECTOR>(to + i, more);
#pragma unroll
                for (int v = 0; v < VECTOR; v++) sum[v] = more[v] + sum[v];
            }
            write_vector<VECTOR>(to + i, sum);
        }
    };

    if (last_chunk >= first_chunk) load(last_chunk, 0);
    int unsummed = -1;                                   // the tile whose sums wait in shared memory
    float h[STATES];
#pragma unroll 1
    for (int chunk = last_chunk, visit = 0; chunk >= first_chunk;) {
        const int tile = PASS == 1 ? TILES - 1 - visit : visit < TILES ? visit : 2 * TILES - 2 - visit;
        const bool back = PASS == 1 || visit >= TILES - 1;
        const int start = chunk * CHUNK + tile * STEPS, left = a.length - start - q * E;
        const Raw<U_TYPE, E> u = next_u; const Raw<DELTA_TYPE, E> delta = next_delta; const Raw<Z_TYPE, E> z = next_z; const Raw<G_TYPE, E> grad_out = next_g;
        if (PASS != 1 && visit == 0) {
#pragma unroll
            for (int s = 0; s < STATES; s++) h[s] = exists ? next_h[s] : 0.0f;
        }
        __syncthreads();                                 // all are done with the tile before
        if (PASS != 1 && unsummed >= 0) {
            sum_warps(unsummed);
            unsummed = -1;
        }
#pragma unroll
        for (int x = 0; x < ORDERS; x++) store_tile_inputs<B_TYPE, C_TYPE>(shared.inputs + x * ORDER_PITCH, next_inputs, x);
        if (owner) {
            float pairs[2 * E];
#pragma unroll
            for (int i = 0; i < E; i++) {
                float dt = get<DELTA_TYPE>(delta.words, i) + bias;
                if (SOFTPLUS) dt = softplus(dt);
                if (i >= left) dt = 0.0f;                // behind the end nothing decays and nothing enters
                if (PASS == 1) total += dt;
                pairs[2 * i] = dt;
                pairs[2 * i + 1] = PASS == 1 ? 0.0f : dt * get<U_TYPE>(u.words, i);
            }
            write_vector<2 * E>(steps + 2 * q * E, pairs);
            if (back) {
                float x[E];
#pragma unroll
                for (int i = 0; i < E; i++) {
                    x[i] = get<G_TYPE>(grad_out.words, i);
                    if (GATED) x[i] *= silu(get<Z_TYPE>(z.words, i));
                }
                write_vector<E>(gy + q * E, x);
            }
        }
        __syncthreads();

        if (PASS == 1) {
#pragma unroll 4
            for (int t = STEPS - 1; t >= 0; t--) {
                float Bt[STATES], Ct[STATES];
                const float dt = steps[2 * t], gyt = gy[t];
                read_inputs(inputs, t, Bt, Ct);
#pragma unroll
                for (int s = 0; s < STATES; s++) g[s] = fmaf(Ct[s], gyt, g[s]) * exp2_fast(dt * A[s]);
            }
        }
        if (PASS != 1 && visit < TILES) {
            float* state = states + tile * SEGMENTS * THREADS * STATES;
            const float *step = steps, *input = inputs;
#pragma unroll 1
            for (int segment = 0; segment < SEGMENTS; segment++) {
                write_vector<STATES>(state, h);
                state += THREADS * STATES;
                if (tile == TILES - 1 && segment == SEGMENTS - 1) break;       // the way back computes it
                float dt[R], du[R];
                read_steps<R>(step, dt, du);
#pragma unroll
                for (int r = 0; r < R; r++) {
                    float Bt[STATES];
                    read_B(input, r, Bt);
#pragma unroll
                    for (int s = 0; s < STATES; s++) h[s] = fmaf(exp2_fast(dt[r] * A[s]), h[s], du[r] * Bt[s]);
                }
                step += 2 * R;
                input += R * WIDTH;
            }
        }
        if (PASS != 1 && back) {
            float* step = steps + 2 * (STEPS - R);
            const float* input = inputs + (STEPS - R) * WIDTH;
            const float* state = states + (tile * SEGMENTS + SEGMENTS - 1) * THREADS * STATES;
            float* gy_now = gy + STEPS - R;
            float* sums = (IN_PLACE ? shared.states[tile * SEGMENTS + SEGMENTS - 1][threadIdx.x / 32 * 32] : shared.sums + threadIdx.x / 32 * WARP_SUMS + (STEPS - R) * WIDTH) + q * 2 * STATES;
#pragma unroll 1
            for (int segment = 0; segment < SEGMENTS; segment++) {             // from the last
                float dt[R], du[R], gyt[R], Bt[R][STATES], Ct[R][STATES], before[R + 1][STATES], decay[R][STATES], y[R], by_A[R], by_B[R];
                read_steps<R>(step, dt, du);
                read_vector<STATES>(state, before[0]);
                read_vector<R>(gy_now, gyt);
#pragma unroll
                for (int r = 0; r < R; r++) {
                    read_inputs(input, r, Bt[r], Ct[r]);
#pragma unroll
                    for (int s = 0; s < STATES; s++) {
                        decay[r][s] = exp2_fast(dt[r] * A[s]);
                        before[r + 1][s] = fmaf(decay[r][s], before[r][s], du[r] * Bt[r][s]);
                        y[r] = s == 0 ? before[r + 1][s] * Ct[r][s] : fmaf(before[r + 1][s], Ct[r][s], y[r]);
                    }
                }
                if (GATED) sum_lanes(y, q);
                if (IN_PLACE) __syncwarp();
#pragma unroll
                for (int r = R - 1; r >= 0; r--) {
                    float over[2 * STATES];              // gradB and gradC
#pragma unroll
                    for (int s = 0; s < STATES; s++) {
                        const float gt = fmaf(Ct[r][s], gyt[r], g[s]);
                        by_B[r] = s == 0 ? gt * Bt[r][s] : fmaf(gt, Bt[r][s], by_B[r]);
                        over[s] = gt * du[r];
                        over[STATES + s] = gyt[r] * before[r + 1][s];
                        g[s] = gt * decay[r][s];
                        const float p = g[s] * before[r][s];
                        by_A[r] = s == 0 ? A[s] * p : fmaf(A[s], p, by_A[r]);
                        grad_A[s] = fmaf(dt[r], p, grad_A[s]);
                    }
                    sum_channels(over, w);
                    if constexpr (GROUPS > STATES) {
                        if (GROUPS == 2 * STATES || w < 2 * STATES) sums[r * WIDTH + (w & STATES) + order] = over[0];
                    } else {
#pragma unroll
                        for (int i = 0; i < STATES; i += GROUPS) {
                            sums[r * WIDTH + (i ^ order)] = over[i];
                            sums[r * WIDTH + STATES + (i ^ order)] = over[STATES + i];
                        }
                    }
                }
                sum_lanes(by_A, q);
                sum_lanes(by_B, q);
                __syncwarp();                            // every lane has read the steps of this segment
                const int t = R * q / LANES;
#pragma unroll
                for (int i = 0; i < HELD; i++) {
                    *(Pair<float>*)(step + 2 * (t + i)) = Pair<float>{y[i], by_A[i]};
                    gy_now[t + i] = by_B[i];
                }
                step -= 2 * R;
                input -= R * WIDTH;
                state -= THREADS * STATES;
                gy_now -= R;
                sums -= IN_PLACE ? THREADS * STATES : R * WIDTH;
            }
            __syncwarp();
        }

        int next_chunk = chunk, next_visit = visit + 1;
        if (next_visit == VISITS) { next_visit = 0; next_chunk--; }
        if (next_chunk >= first_chunk) load(next_chunk, next_visit);

        if (PASS != 1 && back) {
            unsummed = start;
            if (owner && exists) {
                float out_u[E], out_delta[E], out_z[E], pairs[2 * E], by_B[E];
                read_vector<2 * E>(steps + 2 * q * E, pairs);             // C . h and part of gradStep
                read_vector<E>(gy + q * E, by_B);
#pragma unroll
                for (int i = 0; i < E; i++) {
                    const float ui = get<U_TYPE>(u.words, i), gi = get<G_TYPE>(grad_out.words, i);
                    float dt = get<DELTA_TYPE>(delta.words, i) + bias, slope = 1.0f;
                    if (SOFTPLUS) { slope = sigmoid(dt); dt = softplus(dt); }
                    float gyt = gi;
                    if (GATED) {
                        const float zi = get<Z_TYPE>(z.words, i), open = sigmoid(zi);
                        gyt = gi * zi * open;
                        out_z[i] = gi * fmaf(D, ui, pairs[2 * i]) * open * fmaf(zi, 1.0f - open, 1.0f);
                    }
                    out_u[i] = fmaf(dt, by_B[i], D * gyt);
                    out_delta[i] = fmaf(ui, by_B[i], LN_2 * pairs[2 * i + 1]) * slope;
                    if (i < left) {
                        grad_D = fmaf(gyt, ui, grad_D);
                        grad_bias += out_delta[i];
                    }
                }
                store_steps<U_TYPE, ALIGNED>(at(a.grad_u, a.by_grad_u, start), a.by_grad_u.time, left, out_u);
                store_steps<DELTA_TYPE, ALIGNED>(at(a.grad_delta, a.by_grad_delta, start), a.by_grad_delta.time, left, out_delta);
                if (GATED) store_steps<Z_TYPE, ALIGNED>(at(a.grad_z, a.by_grad_z, start), a.by_grad_z.time, left, out_z);
            }
        }
        chunk = next_chunk;
        visit = next_visit;
    }
    if (PASS != 1) {
        __syncthreads();
        if (unsummed >= 0) sum_warps(unsummed);
    }

#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        if (PASS == 1) total += __shfl_xor_sync(0xffffffffu, total, distance);
        else {
            grad_D += __shfl_xor_sync(0xffffffffu, grad_D, distance);
            grad_bias += __shfl_xor_sync(0xffffffffu, grad_bias, distance);
        }
    }
    if (!exists) return;
    if (PASS == 1) {
        const i64 place = ((i64)(piece - 1) * a.batch + row) * a.channels + channel;
        store_states(a.piece_states + place * N, q, order, g);
        if (q == 0) a.piece_steps[place] = total;
        return;
    }
    const i64 place = ((i64)piece * a.batch + row) * a.channels + channel;
    store_states(a.grad_A + place * N, q, order, grad_A);
    if (a.grad_initial && piece == 0) store_states(a.grad_initial + place * N, q, order, g);
    if (q == 0 && a.grad_D) a.grad_D[place] = grad_D;
    if (q == 0 && a.grad_bias) a.grad_bias[place] = grad_bias;
}
