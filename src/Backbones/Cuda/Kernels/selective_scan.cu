// The selective scan (arXiv 2312.00752, algorithm 2), forward:
//
//   step[t] = softplus(delta[t] + bias)
//   h[t]    = exp(step[t] A) h[t-1] + step[t] B[t] u[t]      N numbers, in registers from the first step to the last
//   out[t]  = (C[t] . h[t] + D u[t]) silu(z[t])
//
// A warp walks time for 32 / LANES channels. Bound by two things about alike: exponentials, N + 3 a step and channel and 16 a clock on a
// multiprocessor, and shared memory, which gives a lane 4 bytes a clock: 2 + 2 / STATES clocks for the exponential of a warp, or 1 + 2 / STATES
// where B and C lie there in their 16 bits (PACKED), which costs two instructions more. Each tile is loaded into registers while the one
// before it is computed.
//
// Where so few channels are so long that most of the GPU would be idle, time is cut into pieces. PASS 1 walks each piece but
// the last from a state of zero, without outputs, and keeps where it ends and the sum of its step sizes; as the decay over
// a piece is exp(A sum), PASS 2 can enter each piece with the right state. PASS 0 is all of time at once.
//
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=16 -DLANES=2 -DSTATES=8 -DSTEPS=32 -DTHREADS=128 -DBLOCKS=3 -DPACKED=false -DUNROLL=2 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=16 -DLANES=4 -DSTATES=4 -DSTEPS=32 -DTHREADS=128 -DBLOCKS=5 -DPACKED=true -DUNROLL=2 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=16 -DLANES=8 -DSTATES=2 -DSTEPS=64 -DTHREADS=128 -DBLOCKS=4 -DPACKED=true -DUNROLL=8 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=16 -DLANES=8 -DSTATES=2 -DSTEPS=64 -DTHREADS=320 -DBLOCKS=1 -DPACKED=true -DUNROLL=8 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=float -DDELTA_TYPE=float -DZ_TYPE=float -DB_TYPE=float -DC_TYPE=float -DN=16 -DLANES=2 -DSTATES=8 -DSTEPS=16 -DTHREADS=64 -DBLOCKS=6 -DPACKED=false -DUNROLL=1 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=float -DDELTA_TYPE=float -DZ_TYPE=float -DB_TYPE=float -DC_TYPE=float -DN=16 -DLANES=8 -DSTATES=2 -DSTEPS=64 -DTHREADS=64 -DBLOCKS=5 -DPACKED=false -DUNROLL=1 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=f16 -DDELTA_TYPE=float -DZ_TYPE=bf16 -DB_TYPE=f16 -DC_TYPE=float -DN=3 -DLANES=1 -DSTATES=4 -DSTEPS=8 -DTHREADS=64 -DBLOCKS=5 -DPACKED=false -DUNROLL=1 -DSOFTPLUS=0 -DALIGNED=false -DALIGNED_INPUTS=false -DPASS=0
// check: -DU_TYPE=f16 -DDELTA_TYPE=f16 -DZ_TYPE=bf16 -DB_TYPE=f16 -DC_TYPE=bf16 -DN=5 -DLANES=4 -DSTATES=2 -DSTEPS=32 -DTHREADS=128 -DBLOCKS=4 -DPACKED=true -DUNROLL=8 -DSOFTPLUS=0 -DALIGNED=false -DALIGNED_INPUTS=false -DPASS=0
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=64 -DLANES=32 -DSTATES=2 -DSTEPS=32 -DTHREADS=128 -DBLOCKS=4 -DPACKED=true -DUNROLL=8 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=float -DDELTA_TYPE=float -DZ_TYPE=float -DB_TYPE=float -DC_TYPE=float -DN=256 -DLANES=32 -DSTATES=8 -DSTEPS=8 -DTHREADS=64 -DBLOCKS=5 -DPACKED=false -DUNROLL=1 -DSOFTPLUS=1 -DALIGNED=false -DALIGNED_INPUTS=true -DPASS=0
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=16 -DLANES=8 -DSTATES=2 -DSTEPS=64 -DTHREADS=128 -DBLOCKS=4 -DPACKED=true -DUNROLL=8 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=1
// check: -DU_TYPE=bf16 -DDELTA_TYPE=bf16 -DZ_TYPE=bf16 -DB_TYPE=bf16 -DC_TYPE=bf16 -DN=16 -DLANES=8 -DSTATES=2 -DSTEPS=64 -DTHREADS=128 -DBLOCKS=4 -DPACKED=true -DUNROLL=8 -DSOFTPLUS=1 -DALIGNED=true -DALIGNED_INPUTS=true -DPASS=2
#include "selective_scan.cuh"

#define TILE_CHANNELS (THREADS / LANES)                  // of a block
#define PARTIAL_PITCH (STEPS + 4)
// Step sizes and what enters, for the steps of a channel: blocks of 8 steps {step, step u} and padding, so that neither the
// owners' writes nor the reads of the channels of a warp meet in a bank.
#define BLOCK_PITCH 20
#define CHANNEL_PITCH (STEPS / 8 * BLOCK_PITCH + 4)
DEVICE int step_at(int t) { return t / 8 * BLOCK_PITCH + t % 8 * 2; }
#define AHEAD (HELD_OCTETS <= 4)                         // whether registers can hold the next tile
#define AT_ONCE (E < 8 ? E : 8)                          // steps that an owner prepares at once

struct Arguments {
    const U_TYPE* u; const DELTA_TYPE* delta; const Z_TYPE* z; const B_TYPE* B; const C_TYPE* C;
    const float *A, *D, *bias, *initial;
    U_TYPE* out; float *last, *checkpoints;
    float *piece_states, *piece_steps;                   // (pieces - 1, b, d, n) and (pieces - 1, b, d), of PASS 1
    Strides by_u, by_delta, by_z, by_B, by_C, by_out;
    int batch, channels, length;
    int piece;                                           // steps of a piece, a multiple of CHUNK
};

template <bool PACK> struct Input { typedef float Type; };
template <> struct Input<true> { typedef u16 Type; };
typedef Input<PACKED>::Type INPUT;

struct alignas(16) Shared {
    INPUT inputs[2][STEPS * WIDTH];                      // two tiles take turns
    float steps[TILE_CHANNELS * CHANNEL_PITCH];
    float partial[PASS == 1 ? 4 : THREADS * PARTIAL_PITCH];          // what each thread has of y, by step
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
    extern __shared__ Words memory[];
    Shared& shared = *(Shared*)memory;
    if (PASS == 1) let_next_kernel_start();

    const int blocks = (a.channels + TILE_CHANNELS - 1) / TILE_CHANNELS;
    const int row = blockIdx.x / blocks;
    const int q = threadIdx.x % LANES, group = threadIdx.x / LANES;
    const bool owner = q * E < STEPS;
    const int piece = PASS == 0 ? 0 : blockIdx.y;
    const int begin = piece * a.piece, end = PASS == 0 ? a.length : min(a.length, begin + a.piece);
    const B_TYPE* B = a.B + row * a.by_B.row + begin * a.by_B.time;
    const C_TYPE* C = a.C + row * a.by_C.row + begin * a.by_C.time;

    // Neighbouring groups have neighbouring channels.
    const int channel = blockIdx.x % blocks * TILE_CHANNELS + group;
    const bool exists = channel < a.channels;
    const i64 c = exists ? channel : 0, first = begin + q * E;
    // Where this lane's steps of the tile are.
    const U_TYPE* u = a.u + row * a.by_u.row + c * a.by_u.channel + first * a.by_u.time;
    const DELTA_TYPE* delta = a.delta + row * a.by_delta.row + c * a.by_delta.channel + first * a.by_delta.time;
    const Z_TYPE* z = a.z + row * a.by_z.row + c * a.by_z.channel + first * a.by_z.time;
    U_TYPE* out = a.out + row * a.by_out.row + c * a.by_out.channel + first * a.by_out.time;
    Raw<U_TYPE, E> now_u, next_u;
    Raw<Z_TYPE, E> now_z, next_z;
    Raw<DELTA_TYPE, E> next_delta;
    Octet next_inputs[HELD_OCTETS];
    // A channel that does not exist reads channel 0: nothing of it is written.
    auto load_tile = [&](int left, auto whole) {
        constexpr bool WHOLE = decltype(whole)::value;
        const int mine = WHOLE ? E : owner ? left - q * E : 0;
        load_tile_inputs<B_TYPE, C_TYPE, ALIGNED_INPUTS, WHOLE>(next_inputs, B, a.by_B, C, a.by_C, left, PASS != 1);
        load_steps<DELTA_TYPE, E, ALIGNED>(next_delta.words, delta, a.by_delta.time, mine);
        load_steps<U_TYPE, E, ALIGNED>(next_u.words, u, a.by_u.time, mine);
        if (PASS != 1 && a.z) load_steps<Z_TYPE, E, ALIGNED>(next_z.words, z, a.by_z.time, mine);
    };
    auto load = [&](int start) {                         // the tile from start on
        if (STEPS % LANES == 0 && end - start >= STEPS) load_tile(STEPS, Flag<true>());
        else load_tile(end - start, Flag<false>());
        B += STEPS * a.by_B.time;
        C += STEPS * a.by_C.time;
        delta += STEPS * a.by_delta.time;
        u += STEPS * a.by_u.time;
        z += STEPS * a.by_z.time;
    };
    if (AHEAD && begin < end) load(begin);
    if (PASS == 2) wait_for_previous_kernel();           // PASS 1

    float A[STATES], h[STATES];                          // A times log2(e)
    const bool given = a.initial && piece == 0;
    load_states(a.A + c * N, q, 0, A);
    if (given) load_states(a.initial + (row * (i64)a.channels + c) * N, q, 0, h);
    const float D = a.D ? a.D[c] : 0.0f, bias = a.bias ? a.bias[c] : 0.0f;
#pragma unroll
    for (int s = 0; s < STATES; s++) {
        A[s] = exists ? A[s] * LOG2_E : 0.0f;
        if (!given || !exists) h[s] = 0.0f;
    }
    if (PASS == 2 && exists) {
        for (int before = 0; before < piece; before++) {
            const i64 at = ((i64)before * a.batch + row) * a.channels + c;
            float entered[STATES];
            load_states(a.piece_states + at * N, q, 0, entered);
#pragma unroll
            for (int s = 0; s < STATES; s++) h[s] = fmaf(exp2_fast(a.piece_steps[at] * A[s]), h[s], entered[s]);
        }
    }
    float total = 0.0f;                                  // of step sizes, those of this lane

    constexpr int unrolled = UNROLL;
    const int chunks = (a.length + CHUNK - 1) / CHUNK;
    float* own_steps = shared.steps + group * CHANNEL_PITCH;
    int turn = 0;
#pragma unroll 1
    for (int start = begin; start < end; start += STEPS, turn ^= 1) {
        if (!AHEAD) load(start);
        const int left = end - start - q * E;            // steps that exist, of those that this lane owns
        const INPUT* inputs = shared.inputs[turn] + q * (PACKED ? 4 : 2) * STATES;
        store_tile_inputs<B_TYPE, C_TYPE>(shared.inputs[turn], next_inputs);
        if (owner) {
#pragma unroll
            for (int o = 0; o < E; o += AT_ONCE) {
                float pairs[2 * AT_ONCE];
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) {
                    float dt = get<DELTA_TYPE>(next_delta.words, o + i) + bias;
                    if (SOFTPLUS) dt = softplus(dt);
                    pairs[2 * i] = dt;
                }
                if (left < E) {                          // behind the end nothing decays and nothing enters
#pragma unroll
                    for (int i = 0; i < AT_ONCE; i++)
                        if (o + i >= left) pairs[2 * i] = 0.0f;
                }
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) {
                    if (PASS == 1) total += pairs[2 * i];
                    pairs[2 * i + 1] = pairs[2 * i] * get<U_TYPE>(next_u.words, o + i);
                }
                write_vector<2 * AT_ONCE>(own_steps + step_at(q * E + o), pairs);
            }
        }
        now_u = next_u;
        if (PASS != 1) now_z = next_z;
        __syncthreads();                                 // the one barrier of a tile: B and C have two places, the rest is the warp's own
        if (AHEAD && start + STEPS < end) load(start + STEPS);

        if (PASS != 1 && a.checkpoints && start % CHUNK == 0 && exists)
            store_states(a.checkpoints + ((row * (i64)chunks + start / CHUNK) * a.channels + channel) * N, q, 0, h);

#pragma unroll unrolled
        for (int block = 0; block < STEPS / 8; block++) {
            float y[8];
#pragma unroll
            for (int i = 0; i < 8; i += 2) {
                float dt[2], du[2], Bt[2][STATES], Ct[2][STATES];
                read_steps<2>(own_steps + step_at(block * 8 + i), dt, du);
                read_two_steps(inputs, block * 8 + i, Bt, Ct);
#pragma unroll
                for (int j = 0; j < 2; j++) {
#pragma unroll
                    for (int s = 0; s < STATES; s++) {
                        h[s] = fmaf(exp2_fast(dt[j] * A[s]), h[s], du[j] * Bt[j][s]);
                        if (PASS != 1) y[i + j] = s == 0 ? h[s] * Ct[j][s] : fmaf(h[s], Ct[j][s], y[i + j]);
                    }
                }
            }
            if (PASS != 1) write_vector<8>(shared.partial + threadIdx.x * PARTIAL_PITCH + block * 8, y);
        }
        __syncwarp();

        if (PASS != 1 && owner) {
            float y[E];
            sum_partial<LANES>(shared.partial + (threadIdx.x - q) * PARTIAL_PITCH, q, 0, y);
#pragma unroll
            for (int i = 0; i < E; i++) y[i] = fmaf(D, get<U_TYPE>(now_u.words, i), y[i]);
            if (a.z) {
#pragma unroll
                for (int i = 0; i < E; i++) y[i] *= silu(get<Z_TYPE>(now_z.words, i));
            }
            if (exists) store_steps<U_TYPE, ALIGNED>(out, a.by_out.time, left, y);
            out += STEPS * a.by_out.time;
        }
    }
    if (PASS == 1) {
#pragma unroll
        for (int distance = LANES / 2; distance > 0; distance /= 2) total += __shfl_xor_sync(0xffffffffu, total, distance);
    }
    if (!exists) return;
    const i64 at = row * (i64)a.channels + channel;
    if (PASS == 1) {
        const i64 here = (i64)piece * a.batch * a.channels + at;
        store_states(a.piece_states + here * N, q, 0, h);
        if (q == 0) a.piece_steps[here] = total;
    } else if (end == a.length) {
        store_states(a.last + at * N, q, 0, h);
    }
}
