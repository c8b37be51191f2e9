// The selective scan (arXiv 2312.00752, algorithm 2), forward:
//
//   step[t] = softplus(delta[t] + bias)
//   h[t]    = exp(step[t] A) h[t-1] + step[t] B[t] u[t]      N numbers, in registers from the first step to the last
//   out[t]  = (C[t] . h[t] + D u[t]) silu(z[t])
//
// A warp walks time for 32 / LANES groups of K = CHANNELS channels; the channels of a thread share what it reads of B and C.
// Bound by exponentials: N + 4 a step and channel, 16 a clock on a multiprocessor.
//
// Where so few channels are so long that most of the GPU would be idle, time is cut into pieces. PASS 1 walks each piece but
// the last from a state of zero, without outputs, and keeps where it ends and the sum of its step sizes; as the decay over
// a piece is exp(A sum), PASS 2 can enter each piece with the right state. PASS 0 is all of time at once.
//
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=16 -DLANES=4 -DSTATES=4 -DCHANNELS=2 -DSTEPS=32 -DTHREADS=64 -DBLOCKS=10 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=16 -DLANES=8 -DSTATES=2 -DCHANNELS=1 -DSTEPS=64 -DTHREADS=64 -DBLOCKS=8 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=float -DDELTA_TYPE=float -DZ_TYPE=float -DB_TYPE=float -DC_TYPE=float -DN=16 -DLANES=4 -DSTATES=4 -DCHANNELS=2 -DSTEPS=32 -DTHREADS=64 -DBLOCKS=8 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=f16 -DDELTA_TYPE=float -DZ_TYPE=bf16 -DB_TYPE=f16 -DC_TYPE=float -DN=3 -DLANES=1 -DSTATES=4 -DCHANNELS=1 -DSTEPS=8 -DTHREADS=64 -DBLOCKS=8 -DSOFTPLUS=0 -DALIGNED=false -DALIGNED_INPUTS=false -DPASS=0
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=64 -DLANES=32 -DSTATES=2 -DCHANNELS=1 -DSTEPS=32 -DTHREADS=64 -DBLOCKS=4 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=float -DDELTA_TYPE=float -DZ_TYPE=float -DB_TYPE=float -DC_TYPE=float -DN=256 -DLANES=32 -DSTATES=8 -DCHANNELS=1 -DSTEPS=16 -DTHREADS=64 -DBLOCKS=2 -DSOFTPLUS=1 -DALIGNED=false -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=16 -DLANES=8 -DSTATES=2 -DCHANNELS=1 -DSTEPS=64 -DTHREADS=64 -DBLOCKS=8 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=1
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=16 -DLANES=8 -DSTATES=2 -DCHANNELS=1 -DSTEPS=64 -DTHREADS=64 -DBLOCKS=8 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=2
#include "selective_scan.cuh"

#define K CHANNELS
#define TILE_CHANNELS (THREADS / LANES * K)              // of a block

struct Arguments {
    const U_TYPE* u; const DELTA_TYPE* delta; const Z_TYPE* z; const B_TYPE* B; const C_TYPE* C;
    const float *A, *D, *bias, *initial;
    U_TYPE* out; float *last, *checkpoints;
    float *piece_states, *piece_steps;                   // (pieces - 1, b, d, n) and (pieces - 1, b, d), of PASS 1
    Strides by_u, by_delta, by_z, by_B, by_C, by_out;
    int batch, channels, length;
    int piece;                                           // steps of a piece, a multiple of CHUNK
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) selective_scan(const __grid_constant__ Arguments a) {
    __shared__ struct alignas(16) { float inputs[STEPS * 2 * PADDED], steps[TILE_CHANNELS * CHANNEL_PITCH]; } shared;
    float *inputs = shared.inputs, *steps = shared.steps;

    const int blocks = (a.channels + TILE_CHANNELS - 1) / TILE_CHANNELS;
    const int row = blockIdx.x / blocks;
    const int q = threadIdx.x % LANES, group = threadIdx.x / LANES;
    const bool owner = q * E < STEPS;
    const int piece = PASS == 0 ? 0 : blockIdx.y;
    const int begin = piece * a.piece, end = PASS == 0 ? a.length : min(a.length, begin + a.piece);
    const B_TYPE* B = a.B + row * a.by_B.row;
    const C_TYPE* C = a.C + row * a.by_C.row;

    int channel[K];                                      // neighbouring groups have neighbouring channels
    float A[K][STATES], h[K][STATES], D[K], bias[K];     // A times log2(e)
#pragma unroll
    for (int k = 0; k < K; k++) {
        channel[k] = blockIdx.x % blocks * TILE_CHANNELS + k * (THREADS / LANES) + group;
        const bool exists = channel[k] < a.channels;
        if (!exists) channel[k] = -1;
        const i64 c = exists ? channel[k] : 0;
        load_states(a.A + c * N, q, A[k]);
        const bool given = a.initial && piece == 0;
        if (given) load_states(a.initial + (row * (i64)a.channels + c) * N, q, h[k]);
        D[k] = a.D ? a.D[c] : 0.0f;
        bias[k] = a.bias ? a.bias[c] : 0.0f;
#pragma unroll
        for (int s = 0; s < STATES; s++) {
            A[k][s] = exists ? A[k][s] * LOG2_E : 0.0f;
            if (!given || !exists) h[k][s] = 0.0f;
        }
        if (PASS == 2 && exists) {
            for (int before = 0; before < piece; before++) {
                const i64 at = ((i64)before * a.batch + row) * a.channels + c;
                float entered[STATES];
                load_states(a.piece_states + at * N, q, entered);
#pragma unroll
                for (int s = 0; s < STATES; s++) h[k][s] = fmaf(exp2_fast(a.piece_steps[at] * A[k][s]), h[k][s], entered[s]);
            }
        }
    }
    float total[K];                                      // of step sizes, those of this lane
#pragma unroll
    for (int k = 0; k < K; k++) total[k] = 0.0f;

    const int chunks = (a.length + CHUNK - 1) / CHUNK;
    for (int start = begin; start < end; start += STEPS) {
        const int left = end - start - q * E;       // steps that exist, of those that this lane owns
        const i64 first = start + q * E;
        Raw<U_TYPE> u[K];
        Raw<Z_TYPE> z[K];
        Raw<DELTA_TYPE> delta[K];
#pragma unroll
        for (int k = 0; k < K; k++) {
            const int mine = owner && channel[k] >= 0 ? left : 0;
            const i64 c = channel[k] >= 0 ? channel[k] : 0;
            delta[k] = load_steps<DELTA_TYPE, ALIGNED>(a.delta + row * a.by_delta.row + c * a.by_delta.channel + first * a.by_delta.time, a.by_delta.time, mine);
            u[k] = load_steps<U_TYPE, ALIGNED>(a.u + row * a.by_u.row + c * a.by_u.channel + first * a.by_u.time, a.by_u.time, mine);
            if (PASS != 1 && a.z) z[k] = load_steps<Z_TYPE, ALIGNED>(a.z + row * a.by_z.row + c * a.by_z.channel + first * a.by_z.time, a.by_z.time, mine);
        }

        __syncthreads();                                 // all have read the last tile's B and C
        load_tile_inputs<B_TYPE, C_TYPE, ALIGNED_INPUTS>(inputs, B + start * a.by_B.time, a.by_B, C + start * a.by_C.time, a.by_C, end - start);
        if (PASS != 1 && a.checkpoints && start % CHUNK == 0) {
#pragma unroll
            for (int k = 0; k < K; k++)
                if (channel[k] >= 0) store_states(a.checkpoints + ((row * (i64)chunks + start / CHUNK) * a.channels + channel[k]) * N, q, h[k]);
        }
        if (owner) {
#pragma unroll
            for (int k = 0; k < K; k++) {
                float* to = steps + (k * (THREADS / LANES) + group) * CHANNEL_PITCH;
                float pairs[2 * E];
#pragma unroll
                for (int i = 0; i < E; i++) {
                    float dt = get(delta[k], i) + bias[k];
                    if (SOFTPLUS) dt = softplus(dt);
                    if (i >= left) dt = 0.0f;            // behind the end nothing decays and nothing enters
                    if (PASS == 1) total[k] += dt;
                    pairs[2 * i] = dt;
                    pairs[2 * i + 1] = dt * get(u[k], i);
                }
                write_steps(to, q * E, pairs);
            }
        }
        __syncthreads();

        if (ALIGNED && left > STEPS) {                   // the next tile's memory on its way while this one is computed
#pragma unroll
            for (int k = 0; k < K; k++) {
                if (!owner || channel[k] < 0) continue;
                prefetch(a.delta + row * a.by_delta.row + channel[k] * a.by_delta.channel + first + STEPS);
                prefetch(a.u + row * a.by_u.row + channel[k] * a.by_u.channel + first + STEPS);
                if (PASS != 1 && a.z) prefetch(a.z + row * a.by_z.row + channel[k] * a.by_z.channel + first + STEPS);
            }
        }

#pragma unroll 1
        for (int block = 0; block < STEPS / 8; block++) {
            float y[K][8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float Bt[STATES], Ct[STATES];
                read_inputs(inputs, block * 8 + i, q, Bt, Ct);
#pragma unroll
                for (int k = 0; k < K; k++) {
                    Pair<float> step = *(const Pair<float>*)(steps + (k * (THREADS / LANES) + group) * CHANNEL_PITCH + block * BLOCK_PITCH + 2 * i);
                    y[k][i] = 0.0f;
#pragma unroll
                    for (int s = 0; s < STATES; s++) {
                        h[k][s] = fmaf(exp2_fast(step.x * A[k][s]), h[k][s], step.y * Bt[s]);
                        if (PASS != 1) y[k][i] = fmaf(h[k][s], Ct[s], y[k][i]);
                    }
                }
            }
            if (PASS == 1) continue;
            __syncwarp();                                // the sums take the place of the block's step sizes
#pragma unroll
            for (int k = 0; k < K; k++) {
                sum_lanes<8, LANES, 1>(y[k], q);
                float* to = steps + (k * (THREADS / LANES) + group) * CHANNEL_PITCH + block * BLOCK_PITCH + first_sum<8, LANES>(q);
#pragma unroll
                for (int i = 0; i < sums_held<8, LANES>(); i++) to[i] = y[k][i];
            }
        }
        if (PASS == 1) continue;
        __syncwarp();

        if (owner) {
#pragma unroll
            for (int k = 0; k < K; k++) {
                const float* from = steps + (k * (THREADS / LANES) + group) * CHANNEL_PITCH;
                float out[E];
#pragma unroll
                for (int i = 0; i < E; i++) {
                    const int t = q * E + i;
                    out[i] = fmaf(D[k], get(u[k], i), from[t / 8 * BLOCK_PITCH + t % 8]);
                    if (a.z) out[i] *= silu(get(z[k], i));
                }
                if (channel[k] >= 0)
                    store_steps<U_TYPE, ALIGNED>(a.out + row * a.by_out.row + channel[k] * a.by_out.channel + first * a.by_out.time, a.by_out.time, left, out);
            }
        }
    }
#pragma unroll
    for (int k = 0; k < K; k++) {
        if (PASS == 1) {
#pragma unroll
            for (int distance = LANES / 2; distance > 0; distance /= 2) total[k] += __shfl_xor_sync(0xffffffffu, total[k], distance);
        }
        if (channel[k] < 0) continue;
        const i64 at = row * (i64)a.channels + channel[k];
        if (PASS == 1) {
            const i64 here = (i64)piece * a.batch * a.channels + at;
            store_states(a.piece_states + here * N, q, h[k]);
            if (q == 0) a.piece_steps[here] = total[k];
        } else if (end == a.length) {
            store_states(a.last + at * N, q, h[k]);
        }
    }
}
