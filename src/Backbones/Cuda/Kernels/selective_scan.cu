// The selective scan (arXiv 2312.00752, algorithm 2), forward:
//
//   step[t] = softplus(delta[t] + bias)
//   h[t]    = exp(step[t] A) h[t-1] + step[t] B[t] u[t]      N numbers, in registers from the first step to the last
//   out[t]  = (C[t] . h[t] + D u[t]) silu(z[t])
//
// A warp walks time for 32 / LANES groups of K = CHANNELS channels; the channels of a thread share what it reads of B and C.
// Bound by two things about alike: exponentials, N + 3 a step and channel and 16 a clock on a multiprocessor, and shared memory, which
// gives a lane 4 bytes a clock: 2 / K + 2 / STATES clocks for the exponential of a warp. Each tile is loaded into registers while the
// one before it is computed.
//
// Where so few channels are so long that most of the GPU would be idle, time is cut into pieces. PASS 1 walks each piece but
// the last from a state of zero, without outputs, and keeps where it ends and the sum of its step sizes; as the decay over
// a piece is exp(A sum), PASS 2 can enter each piece with the right state. PASS 0 is all of time at once.
//
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=16 -DLANES=2 -DSTATES=8 -DCHANNELS=1 -DSTEPS=16 -DTHREADS=64 -DBLOCKS=8 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=16 -DLANES=8 -DSTATES=2 -DCHANNELS=1 -DSTEPS=64 -DTHREADS=64 -DBLOCKS=5 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=float -DDELTA_TYPE=float -DZ_TYPE=float -DB_TYPE=float -DC_TYPE=float -DN=16 -DLANES=2 -DSTATES=8 -DCHANNELS=1 -DSTEPS=16 -DTHREADS=64 -DBLOCKS=6 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=f16 -DDELTA_TYPE=float -DZ_TYPE=bf16 -DB_TYPE=f16 -DC_TYPE=float -DN=3 -DLANES=1 -DSTATES=4 -DCHANNELS=1 -DSTEPS=8 -DTHREADS=64 -DBLOCKS=5 -DSOFTPLUS=0 -DALIGNED=false -DALIGNED_INPUTS=false -DPASS=0
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=64 -DLANES=32 -DSTATES=2 -DCHANNELS=1 -DSTEPS=32 -DTHREADS=64 -DBLOCKS=5 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=float -DDELTA_TYPE=float -DZ_TYPE=float -DB_TYPE=float -DC_TYPE=float -DN=256 -DLANES=32 -DSTATES=8 -DCHANNELS=1 -DSTEPS=8 -DTHREADS=64 -DBLOCKS=5 -DSOFTPLUS=1 -DALIGNED=false -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=16 -DLANES=8 -DSTATES=2 -DCHANNELS=1 -DSTEPS=64 -DTHREADS=64 -DBLOCKS=5 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=1
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=16 -DLANES=8 -DSTATES=2 -DCHANNELS=1 -DSTEPS=64 -DTHREADS=64 -DBLOCKS=5 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=2
#include "selective_scan.cuh"

#define K CHANNELS
#define TILE_CHANNELS (THREADS / LANES * K)              // of a block
#define PARTIAL_PITCH (STEPS + 4)
// Step sizes and what enters, for the steps of a channel: blocks of 8 steps {step, step u} and padding, so that neither the
// owners' writes nor the reads of the channels of a warp meet in a bank.
#define BLOCK_PITCH 20
#define CHANNEL_PITCH (STEPS / 8 * BLOCK_PITCH + 4)
DEVICE int step_at(int t) { return t / 8 * BLOCK_PITCH + t % 8 * 2; }
#define AHEAD (HELD_OCTETS <= 4)                         // whether registers can hold the next tile

struct Arguments {
    const U_TYPE* u; const DELTA_TYPE* delta; const Z_TYPE* z; const B_TYPE* B; const C_TYPE* C;
    const float *A, *D, *bias, *initial;
    U_TYPE* out; float *last, *checkpoints;
    float *piece_states, *piece_steps;                   // (pieces - 1, b, d, n) and (pieces - 1, b, d), of PASS 1
    Strides by_u, by_delta, by_z, by_B, by_C, by_out;
    int batch, channels, length;
    int piece;                                           // steps of a piece, a multiple of CHUNK
};

struct alignas(16) Shared {
    float inputs[2][STEPS * WIDTH];                      // two tiles take turns
    float steps[TILE_CHANNELS * CHANNEL_PITCH];
    float partial[PASS == 1 ? 4 : K * THREADS * PARTIAL_PITCH];      // what each thread has of y, by step
};

// The sums over COUNT lanes from `first` on, of the steps from t on that lane q owns. Lanes are taken as q ^ lane: so the owners
// meet in no bank, and as pairs are added, the bits do not depend on the owner.
template <int COUNT> DEVICE void sum_partial(const float* channel, int q, int first, float (&y)[E]) {
    if constexpr (COUNT == 1) read_vector<E>(channel + (q ^ first) * PARTIAL_PITCH + q * E, y);
    else {
        float other[E];
        sum_partial<COUNT / 2>(channel, q, first, y);
        sum_partial<COUNT / 2>(channel, q, first + COUNT / 2, other);
#pragma unroll
        for (int i = 0; i < E; i++) y[i] += other[i];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) selective_scan(const __grid_constant__ Arguments a) {
    __shared__ Shared shared;
    if (PASS == 1) let_next_kernel_start();

    const int blocks = (a.channels + TILE_CHANNELS - 1) / TILE_CHANNELS;
    const int row = blockIdx.x / blocks;
    const int q = threadIdx.x % LANES, group = threadIdx.x / LANES;
    const bool owner = q * E < STEPS;
    const int piece = PASS == 0 ? 0 : blockIdx.y;
    const int begin = piece * a.piece, end = PASS == 0 ? a.length : min(a.length, begin + a.piece);
    const B_TYPE* B = a.B + row * a.by_B.row + begin * a.by_B.time;
    const C_TYPE* C = a.C + row * a.by_C.row + begin * a.by_C.time;

    int channel[K];                                      // neighbouring groups have neighbouring channels
    const U_TYPE* u[K]; const DELTA_TYPE* delta[K]; const Z_TYPE* z[K]; U_TYPE* out[K];       // where this lane's steps of the tile are
    Raw<U_TYPE, E> now_u[K], next_u[K];
    Raw<Z_TYPE, E> now_z[K], next_z[K];
    Raw<DELTA_TYPE, E> next_delta[K];
    Octet next_inputs[HELD_OCTETS];
#pragma unroll
    for (int k = 0; k < K; k++) {
        channel[k] = blockIdx.x % blocks * TILE_CHANNELS + k * (THREADS / LANES) + group;
        if (channel[k] >= a.channels) channel[k] = -1;
        const i64 c = channel[k] >= 0 ? channel[k] : 0, first = begin + q * E;
        u[k] = a.u + row * a.by_u.row + c * a.by_u.channel + first * a.by_u.time;
        delta[k] = a.delta + row * a.by_delta.row + c * a.by_delta.channel + first * a.by_delta.time;
        if (PASS != 1 && a.z) z[k] = a.z + row * a.by_z.row + c * a.by_z.channel + first * a.by_z.time;
        out[k] = a.out + row * a.by_out.row + c * a.by_out.channel + first * a.by_out.time;
    }
    auto load = [&](int start) {                         // the tile from start on
        load_tile_inputs<B_TYPE, C_TYPE, ALIGNED_INPUTS>(next_inputs, B, a.by_B, C, a.by_C, end - start, PASS != 1);
        B += STEPS * a.by_B.time;
        C += STEPS * a.by_C.time;
#pragma unroll
        for (int k = 0; k < K; k++) {
            const int mine = owner && channel[k] >= 0 ? end - start - q * E : 0;
            load_steps<DELTA_TYPE, E, ALIGNED>(next_delta[k].words, delta[k], a.by_delta.time, mine);
            load_steps<U_TYPE, E, ALIGNED>(next_u[k].words, u[k], a.by_u.time, mine);
            if (PASS != 1 && a.z) load_steps<Z_TYPE, E, ALIGNED>(next_z[k].words, z[k], a.by_z.time, mine);
            delta[k] += STEPS * a.by_delta.time;
            u[k] += STEPS * a.by_u.time;
            if (PASS != 1 && a.z) z[k] += STEPS * a.by_z.time;
        }
    };
    if (AHEAD && begin < end) load(begin);
    if (PASS == 2) wait_for_previous_kernel();           // PASS 1

    float A[K][STATES], h[K][STATES], D[K], bias[K];     // A times log2(e)
#pragma unroll
    for (int k = 0; k < K; k++) {
        const bool exists = channel[k] >= 0;
        const i64 c = exists ? channel[k] : 0;
        load_states(a.A + c * N, q, 0, A[k]);
        const bool given = a.initial && piece == 0;
        if (given) load_states(a.initial + (row * (i64)a.channels + c) * N, q, 0, h[k]);
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
                load_states(a.piece_states + at * N, q, 0, entered);
#pragma unroll
                for (int s = 0; s < STATES; s++) h[k][s] = fmaf(exp2_fast(a.piece_steps[at] * A[k][s]), h[k][s], entered[s]);
            }
        }
    }
    float total[K];                                      // of step sizes, those of this lane
#pragma unroll
    for (int k = 0; k < K; k++) total[k] = 0.0f;

    const int chunks = (a.length + CHUNK - 1) / CHUNK;
    int turn = 0;
#pragma unroll 1
    for (int start = begin; start < end; start += STEPS, turn ^= 1) {
        if (!AHEAD) load(start);
        const int left = end - start - q * E;            // steps that exist, of those that this lane owns
        const float* inputs = shared.inputs[turn] + q * 2 * STATES;
        store_tile_inputs<B_TYPE, C_TYPE>(shared.inputs[turn], next_inputs);
        if (owner) {
#pragma unroll
            for (int k = 0; k < K; k++) {
                float* to = shared.steps + (k * (THREADS / LANES) + group) * CHANNEL_PITCH;
                float pairs[2 * E];
#pragma unroll
                for (int i = 0; i < E; i++) {
                    float dt = get<DELTA_TYPE>(next_delta[k].words, i) + bias[k];
                    if (SOFTPLUS) dt = softplus(dt);
                    pairs[2 * i] = dt;
                }
                if (left < E) {                          // behind the end nothing decays and nothing enters
#pragma unroll
                    for (int i = 0; i < E; i++)
                        if (i >= left) pairs[2 * i] = 0.0f;
                }
#pragma unroll
                for (int i = 0; i < E; i++) {
                    if (PASS == 1) total[k] += pairs[2 * i];
                    pairs[2 * i + 1] = pairs[2 * i] * get<U_TYPE>(next_u[k].words, i);
                }
                write_vector<2 * E>(to + step_at(q * E), pairs);
            }
        }
#pragma unroll
        for (int k = 0; k < K; k++) { now_u[k] = next_u[k]; if (PASS != 1) now_z[k] = next_z[k]; }
        __syncthreads();                                 // the one barrier of a tile: B and C have two places, the rest is the warp's own
        if (AHEAD && start + STEPS < end) load(start + STEPS);

        if (PASS != 1 && a.checkpoints && start % CHUNK == 0) {
#pragma unroll
            for (int k = 0; k < K; k++)
                if (channel[k] >= 0) store_states(a.checkpoints + ((row * (i64)chunks + start / CHUNK) * a.channels + channel[k]) * N, q, 0, h[k]);
        }

#pragma unroll 1
        for (int block = 0; block < STEPS / 8; block++) {
            float y[K][8];
#pragma unroll
            for (int i = 0; i < 8; i += 2) {
                float dt[K][2], du[K][2];
#pragma unroll
                for (int k = 0; k < K; k++) read_steps<2>(shared.steps + (k * (THREADS / LANES) + group) * CHANNEL_PITCH + step_at(block * 8 + i), dt[k], du[k]);
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    float Bt[STATES], Ct[STATES];
                    if (PASS == 1) read_B(inputs, block * 8 + i + j, Bt);
                    else read_inputs(inputs, block * 8 + i + j, Bt, Ct);
#pragma unroll
                    for (int k = 0; k < K; k++) {
#pragma unroll
                        for (int s = 0; s < STATES; s++) {
                            h[k][s] = fmaf(exp2_fast(dt[k][j] * A[k][s]), h[k][s], du[k][j] * Bt[s]);
                            if (PASS != 1) y[k][i + j] = s == 0 ? h[k][s] * Ct[s] : fmaf(h[k][s], Ct[s], y[k][i + j]);
                        }
                    }
                }
            }
            if (PASS != 1) {
#pragma unroll
                for (int k = 0; k < K; k++) write_vector<8>(shared.partial + (k * THREADS + threadIdx.x) * PARTIAL_PITCH + block * 8, y[k]);
            }
        }
        __syncwarp();

        if (PASS != 1 && owner) {
#pragma unroll
            for (int k = 0; k < K; k++) {
                float y[E];
                sum_partial<LANES>(shared.partial + (k * THREADS + threadIdx.x - q) * PARTIAL_PITCH, q, 0, y);
#pragma unroll
                for (int i = 0; i < E; i++) y[i] = fmaf(D[k], get<U_TYPE>(now_u[k].words, i), y[i]);
                if (a.z) {
#pragma unroll
                    for (int i = 0; i < E; i++) y[i] *= silu(get<Z_TYPE>(now_z[k].words, i));
                }
                if (channel[k] >= 0) store_steps<U_TYPE, ALIGNED>(out[k], a.by_out.time, left, y);
                out[k] += STEPS * a.by_out.time;
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
            store_states(a.piece_states + here * N, q, 0, h[k]);
            if (q == 0) a.piece_steps[here] = total[k];
        } else if (end == a.length) {
            store_states(a.last + at * N, q, 0, h[k]);
        }
    }
}
