// Queries, keys and values on their way from the projection to attention: queries and keys are turned by their positions,
// and each of the three is left where it is or written to another place (its own tensor, or a cache).
//
//   HEADS, WIDTH    heads, and the numbers of one
//   TURNED          how many of a head's first numbers turn: pairs (2i, 2i + 1), or with HALVES (i, i + TURNED / 2)
//   VECTOR          numbers of one access; divides every length and distance here
//   COPY_Q, _K, _V  whether it goes to another place; where not, only what turns is touched (and of the values nothing)
//
// Backward is the same with the angles negated: a rotation's transpose. A thread has VECTOR pairs (HALVES), VECTOR / 2 pairs,
// or VECTOR numbers to copy; a warp's are neighbours in memory. Expected: under 40 registers; bound by memory.
//
// check: -DTYPE=bf16 -DHEADS=16 -DWIDTH=64 -DTURNED=64 -DHALVES=0 -DVECTOR=8 -DCOPY_Q=0 -DCOPY_K=0 -DCOPY_V=0
// check: -DTYPE=f16 -DHEADS=6 -DWIDTH=32 -DTURNED=32 -DHALVES=0 -DVECTOR=8 -DCOPY_Q=1 -DCOPY_K=1 -DCOPY_V=1
// check: -DTYPE=float -DHEADS=3 -DWIDTH=20 -DTURNED=20 -DHALVES=0 -DVECTOR=4 -DCOPY_Q=1 -DCOPY_K=1 -DCOPY_V=1
// check: -DTYPE=bf16 -DHEADS=32 -DWIDTH=80 -DTURNED=20 -DHALVES=1 -DVECTOR=2 -DCOPY_Q=0 -DCOPY_K=1 -DCOPY_V=1
// check: -DTYPE=bf16 -DHEADS=12 -DWIDTH=64 -DTURNED=16 -DHALVES=1 -DVECTOR=8 -DCOPY_Q=0 -DCOPY_K=0 -DCOPY_V=0
// check: -DTYPE=float -DHEADS=3 -DWIDTH=19 -DTURNED=6 -DHALVES=1 -DVECTOR=1 -DCOPY_Q=1 -DCOPY_K=1 -DCOPY_V=1
#include "vectors.cuh"

struct Heads { TYPE* first; i64 row, token, head; };  // distances in numbers; those of a head are neighbours

struct Arguments {
    Heads q, k, v, q_to, k_to, v_to;
    const float* table;  // (tokens, TURNED / 2, 2): cosine and sine
    int tokens;
    float sign;          // of the angles
};

constexpr int TurnedUnits = TURNED / (HALVES ? 2 : 1) / VECTOR, RestUnits = (WIDTH - TURNED) / VECTOR;
constexpr int QUnits = TurnedUnits + (COPY_Q ? RestUnits : 0), KUnits = TurnedUnits + (COPY_K ? RestUnits : 0);
constexpr int VUnits = WIDTH / VECTOR;
constexpr int Units = HEADS * (QUnits + KUnits + (COPY_V ? VUnits : 0));  // of one token

DEVICE TYPE* head_at(const Heads& h, int token, int head) { return h.first + blockIdx.y * h.row + token * h.token + head * h.head; }

DEVICE void turn(float& x, float& y, float cosine, float sine) {
    const float first = x * cosine - y * sine;
    y = y * cosine + x * sine;
    x = first;
}

// Unit `unit` of one head's query or key; table is the token's.
DEVICE void turn_or_copy(const TYPE* from, TYPE* to, const float* table, float sign, int unit) {
    if (unit >= TurnedUnits) {
        const int at = TURNED + (unit - TurnedUnits) * VECTOR;
        copy_vector<VECTOR>(from + at, to + at);
        return;
    }
    const int at = unit * VECTOR;
    float x[VECTOR];
    load_vector<VECTOR>(from + at, x);
#if HALVES
    float y[VECTOR];
    load_vector<VECTOR>(from + TURNED / 2 + at, y);
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        const Pair<float> angle = ((const Pair<float>*)table)[at + i];
        turn(x[i], y[i], angle.x, sign * angle.y);
    }
    store_vector<VECTOR>(to + TURNED / 2 + at, y);
#else
#pragma unroll
    for (int i = 0; i < VECTOR; i += 2) {
        const Pair<float> angle = ((const Pair<float>*)table)[(at + i) / 2];
        turn(x[i], x[i + 1], angle.x, sign * angle.y);
    }
#endif
    store_vector<VECTOR>(to + at, x);
}

extern "C" __global__ void __launch_bounds__(256) rotary(const __grid_constant__ Arguments a) {
    const u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    const int token = index / Units;
    int unit = index % Units;
    if (token >= a.tokens) return;
    const float* table = a.table + (i64)token * TURNED;
    if (unit < HEADS * QUnits) {
        const int head = unit / QUnits;
        turn_or_copy(head_at(a.q, token, head), head_at(a.q_to, token, head), table, a.sign, unit % QUnits);
        return;
    }
    unit -= HEADS * QUnits;
    if (unit < HEADS * KUnits) {
        const int head = unit / KUnits;
        turn_or_copy(head_at(a.k, token, head), head_at(a.k_to, token, head), table, a.sign, unit % KUnits);
        return;
    }
#if COPY_V
    unit -= HEADS * KUnits;
    const int head = unit / VUnits, at = unit % VUnits * VECTOR;
    copy_vector<VECTOR>(head_at(a.v, token, head) + at, head_at(a.v_to, token, head) + at);
#endif
}
