// What stands before and behind the layers of a decode step, for both models: the embedding of the last ids, and the choice of the
// next ids, which stay on the GPU for the next step and go to the host's memory beside it. Compiled once for all models of a type.
//
//   TYPE  of the embedding table
//
// check: -DTYPE=bf16
// check: -DTYPE=f16
// check: -DTYPE=float
#include "common.cuh"
#include "decode_control.cuh"

#define RING 64  // steps that the host may lag behind

struct Ends {
    const TYPE* table;   // (v, d)
    float* residual;     // (rows, d)
    float* logits;       // (rows, v)
    Control* control;
    int* listed;         // (rows, v)
    u32* seen;           // (rows, words of v bits): the tokens that the penalty is for
    volatile u64* ring;  // (RING, MOST_ROWS), the host's memory: step << 32 | id
    int d, v;
};

extern "C" __global__ void __launch_bounds__(256) embed(const __grid_constant__ Ends a) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const int b = blockIdx.y, id = a.control->ids[b];
    const TYPE* row = a.table + (i64)(id < 0 || id >= a.v ? 0 : id) * a.d;
    for (int c = blockIdx.x * 256 + threadIdx.x; c < a.d; c += gridDim.x * 256) a.residual[b * a.d + c] = to_float(row[c]);
}

// --- The choice of the next id, a block for a row ---
#define CHOOSERS 1024
#define NONE 0x7fffffff

// The greater logit, of equal ones the first.
struct Best {
    float logit;
    int id;
    DEVICE void take(float other, int other_id) {
        if (other > logit || (other == logit && other_id < id)) {
            logit = other;
            id = other_id;
        }
    }
};

DEVICE Best best_of_warp(Best best) {
#pragma unroll
    for (int distance = 16; distance > 0; distance >>= 1) {
        const float logit = __shfl_xor_sync(0xffffffffu, best.logit, distance);
        const int id = __shfl_xor_sync(0xffffffffu, best.id, distance);
        best.take(logit, id);
    }
    return best;
}

// The CPU sorts the tokens, the likeliest first and equal ones by id, and sums up from there. Here nothing is sorted: whatever is
// asked (the first k tokens, the fewest that hold a share, the token that a random number falls on) is where the running sum of
// counts or probabilities reaches a target, and that place is searched for. Probabilities, not yet divided by their sum, lie in
// (0, 1]; they are summed as whole numbers, so that the order of a sum does not matter.
DEVICE u32 mass(float p) { return (u32)(p * 1073741824.0f + 0.5f); }

#define BINS CHOOSERS  // of the upper bits of a probability: at most those of 1.0f
#define BIN_SHIFT 20
static_assert((0x3f800000 >> BIN_SHIFT) < BINS, "every probability has a bin");

struct Search {
    const float* p;          // (v)
    int* listed;             // (v): the tokens of one bin
    u32 *counts, *low, *high; // (BINS): tokens, and the halves of their mass, 15 bits each
    u64* sums;               // (32)
    u64* found;              // (3)
    int v;

    DEVICE u64 total(u64 x) const {
#pragma unroll
        for (int distance = 16; distance > 0; distance >>= 1) x += __shfl_xor_sync(0xffffffffu, x, distance);
        __syncthreads();
        if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = x;
        __syncthreads();
        x = sums[threadIdx.x & 31];
#pragma unroll
        for (int distance = 16; distance > 0; distance >>= 1) x += __shfl_xor_sync(0xffffffffu, x, distance);
        return x;
    }

    // The sum of the threads before this one.
    DEVICE u64 sum_before(u64 x) const {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        u64 sum = x;
#pragma unroll
        for (int distance = 1; distance < 32; distance <<= 1) {
            const u64 other = __shfl_up_sync(0xffffffffu, sum, distance);
            if (lane >= distance) sum += other;
        }
        __syncthreads();
        if (lane == 31) sums[warp] = sum;
        __syncthreads();
        u64 warps = 0;
        for (int w = 0; w < warp; w++) warps += sums[w];
        return warps + sum - x;
    }

    DEVICE void count_bins() const {
        counts[threadIdx.x] = low[threadIdx.x] = high[threadIdx.x] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < v; i += CHOOSERS) {
            const float x = p[i];
            if (x <= 0) continue;
            const u32 bin = __float_as_uint(x) >> BIN_SHIFT, m = mass(x);
            atomicAdd(counts + bin, 1u);
            atomicAdd(low + bin, m & 0x7fff);
            atomicAdd(high + bin, m >> 15);
        }
        __syncthreads();
    }

    DEVICE u64 bin(int bin, bool by_count) const { return by_count ? counts[bin] : ((u64)high[bin] << 15) + low[bin]; }

    DEVICE u64 weight(float x, bool by_count) const { return by_count ? 1 : mass(x); }

    // Where the running sum reaches a target, from 1 to the sum of all: the token, and its probability's bits.
    __device__ __noinline__ Best find(u64 target, bool by_count) const {
        const int own = BINS - 1 - threadIdx.x;
        const u64 here = bin(own, by_count), ahead = sum_before(here);
        if (ahead < target && target <= ahead + here) {
            found[0] = own;
            found[1] = target - ahead;
            found[2] = 0;
        }
        __syncthreads();
        const u32 chosen = (u32)found[0];
        u64 rest = found[1];
        u32* n = (u32*)(found + 2);
        for (int i = threadIdx.x; i < v; i += CHOOSERS)
            if (p[i] > 0 && __float_as_uint(p[i]) >> BIN_SHIFT == chosen) listed[atomicAdd(n, 1u)] = i;
        __syncthreads();
        const int count = (int)*n;

        // The greatest bits at which those above, and at, them reach the target.
        u32 bits = chosen << BIN_SHIFT;
        for (int bit = BIN_SHIFT - 1; bit >= 0; bit--)
            if (sum_from(bits | 1u << bit, count, by_count) >= rest) bits |= 1u << bit;
        rest -= sum_from(bits + 1, count, by_count);
        // Among equals: the first id up to which enough of them lie.
        const u64 each = weight(__uint_as_float(bits), by_count), needed = (rest + each - 1) / each;
        int least = 0, most = v - 1;
        while (least < most) {
            const int middle = (least + most) / 2;
            u64 equals = 0;
            for (int i = threadIdx.x; i < count; i += CHOOSERS)
                equals += listed[i] <= middle && __float_as_uint(p[listed[i]]) == bits;
            if (total(equals) >= needed) most = middle;
            else least = middle + 1;
        }
        __syncthreads();
        return {__uint_as_float(bits), least};
    }

    // Of the listed tokens, those of at least such bits.
    DEVICE u64 sum_from(u32 bits, int count, bool by_count) const {
        u64 sum = 0;
        for (int i = threadIdx.x; i < count; i += CHOOSERS) {
            const float x = p[listed[i]];
            if (__float_as_uint(x) >= bits) sum += weight(x, by_count);
        }
        return total(sum);
    }

    // The mass of all tokens up to one.
    DEVICE u64 mass_up_to(Best last) const {
        u64 sum = 0;
        for (int i = threadIdx.x; i < v; i += CHOOSERS)
            if (p[i] > last.logit || (p[i] == last.logit && i <= last.id)) sum += mass(p[i]);
        return total(sum);
    }

    // Where the running sum over ids reaches a target.
    DEVICE int find_by_id(u64 target) const {
        const int each = (v + CHOOSERS - 1) / CHOOSERS;
        const int from = min((int)threadIdx.x * each, v), to = min(from + each, v);
        u64 here = 0;
        for (int i = from; i < to; i++) here += mass(p[i]);
        u64 sum = sum_before(here);
        if (sum < target && target <= sum + here) {
            int i = from;
            while ((sum += mass(p[i])) < target) i++;
            found[0] = i;
        }
        __syncthreads();
        return (int)found[0];
    }
};

// SplitMix64, as in Generation/Sampler.cs: a number from 0 to below 1.
DEVICE double next_random(u64& state) {
    u64 z = state += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return (double)((z ^ (z >> 31)) >> 11) * (1.0 / 9007199254740992.0);
}

// Kept out of the way of a greedy choice.
__device__ __noinline__ int sample(const Search& search, const Control& control, u64& random) {
    search.count_bins();
    const u64 all = search.total(search.counts[threadIdx.x]);
    const bool limited = control.top_k > 0 && (u64)control.top_k < all;
    u64 total = limited ? search.mass_up_to(search.find(control.top_k, true)) : search.total(search.bin(threadIdx.x, false));
    if (control.top_p < 1) {
        const u64 target = (u64)ceil(control.top_p * (double)total);
        total = search.mass_up_to(search.find(target < 1 ? 1 : target > total ? total : target, false));
    }
    u64 target = (u64)(next_random(random) * (double)total) + 1;
    if (target > total) target = total;
    return control.top_k > 0 || control.top_p < 1 ? search.find(target, false).id : search.find_by_id(target);
}

// Where the logits are not finite, the host reads -1.
extern "C" __global__ void __launch_bounds__(CHOOSERS) choose(const __grid_constant__ Ends a) {
    __shared__ float logits_of[32];
    __shared__ int ids_of[32];
    __shared__ u32 counts[BINS], low[BINS], high[BINS];
    __shared__ u64 sums[32], found[3];
    __shared__ u64 greatest;
    const int b = blockIdx.x, v = a.v;
    Control& control = *a.control;
    // What the host or the step before wrote.
    const float penalty = control.penalty, inverse = control.inverse_temperature;
    const int count = control.count, position = control.positions[b] + 1;
    const u32 step = control.steps[b] + 1;
    u64 random = control.random[b];
    let_next_kernel_start();
    wait_for_previous_kernel();
    if (b >= count) return;
    if (threadIdx.x == 0) greatest = atomicExch(control.greatest + b, 0ull);

    float* logits = a.logits + (i64)b * v;
    u32* seen = a.seen + b * ((v + 31) / 32);
    Best best = {-INFINITE, NONE};
    int broken = 0;
    if (penalty != 1.0f) {
#pragma unroll 8
        for (int i = threadIdx.x; i < v; i += CHOOSERS) {
            float logit = logits[i];
            if (seen[i >> 5] >> (i & 31) & 1) {
                logit = logit > 0 ? logit / penalty : logit * penalty;
                logits[i] = logit;
            }
            broken |= logit != logit;
            best.take(logit, i);
        }
        best = best_of_warp(best);
        if ((threadIdx.x & 31) == 0) {
            logits_of[threadIdx.x >> 5] = best.logit;
            ids_of[threadIdx.x >> 5] = best.id;
        }
        broken = __syncthreads_or(broken);
        best.logit = logits_of[threadIdx.x & 31];
        best.id = ids_of[threadIdx.x & 31];
        best = best_of_warp(best);
    } else {
        __syncthreads();
        best = {ranked_logit(greatest), ranked_id(greatest)};
    }
    broken |= !(fabsf(best.logit) < INFINITE);

    int id = broken ? -1 : best.id;
    if (!broken && inverse > 0) {
        for (int i = threadIdx.x; i < v; i += CHOOSERS) logits[i] = expf((logits[i] - best.logit) * inverse);
        __syncthreads();
        id = sample(Search{logits, a.listed + (i64)b * v, counts, low, high, sums, found, v}, control, random);
    }

    if (threadIdx.x != 0) return;
    if (!broken && penalty != 1.0f) seen[id >> 5] |= 1u << (id & 31);
    control.random[b] = random;
    control.steps[b] = step;
    control.positions[b] = position;
    control.ids[b] = id;
    a.ring[step % RING * MOST_ROWS + b] = (u64)step << 32 | (u32)id;
}
