// Between two parts of a transformer: what they computed is added to the residual stream, and the next parts' LayerNorms of the
// sum are taken at once. GPT-NeoX's parallel layers add two results and have two norms of one sum.
//
//   ADDENDS   how many results are added, 0 to 2; with none the sum is not written
//   NORMS     1 or 2 norms of the sum
//
// A block has a row, which stays in registers. Mean first, then the squares about it; the norms are of the sum before it is
// rounded. Expected: 8 (WIDTH / VECTOR / THREADS rounded up) + 30 registers; bound by memory.
//
// check: -DTYPE=bf16 -DWIDTH=1024 -DVECTOR=8 -DTHREADS=128 -DADDENDS=1 -DNORMS=1
// check: -DTYPE=bf16 -DWIDTH=2560 -DVECTOR=8 -DTHREADS=160 -DADDENDS=2 -DNORMS=2
// check: -DTYPE=float -DWIDTH=192 -DVECTOR=4 -DTHREADS=64 -DADDENDS=1 -DNORMS=1
// check: -DTYPE=bf16 -DWIDTH=1024 -DVECTOR=8 -DTHREADS=128 -DADDENDS=0 -DNORMS=1
// check: -DTYPE=f16 -DWIDTH=57 -DVECTOR=1 -DTHREADS=64 -DADDENDS=2 -DNORMS=2
#include "rows.cuh"

struct Norm { const TYPE* weight; const TYPE* bias; TYPE* to; };  // (WIDTH), (WIDTH), (rows, WIDTH)

struct Arguments {
    const TYPE* x;       // (rows, WIDTH), as all of these
    const TYPE* first;
    const TYPE* second;  // with two addends
    TYPE* sum;           // this and one norm may be the memory of any of the above
    Norm norms[2];
    float eps;
};

constexpr int Each = (WIDTH / VECTOR + THREADS - 1) / THREADS;  // vectors of a thread

extern "C" __global__ void __launch_bounds__(THREADS) add_norms(const __grid_constant__ Arguments a) {
    const i64 row = (i64)blockIdx.x * WIDTH;
    float x[Each][VECTOR];
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < Each; i++) {
        const int at = (i * THREADS + threadIdx.x) * VECTOR;
        float first[VECTOR] = {}, second[VECTOR] = {};
#pragma unroll
        for (int j = 0; j < VECTOR; j++) x[i][j] = 0.0f;
        if (at < WIDTH) {
            load_vector<VECTOR>(a.x + row + at, x[i]);
            if (ADDENDS >= 1) load_vector<VECTOR>(a.first + row + at, first);
            if (ADDENDS == 2) load_vector<VECTOR>(a.second + row + at, second);
        }
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            if (ADDENDS >= 1) x[i][j] += ADDENDS == 2 ? first[j] + second[j] : first[j];
            total += x[i][j];
        }
        if (ADDENDS >= 1 && at < WIDTH) store_vector<VECTOR>(a.sum + row + at, x[i]);
    }
    __shared__ float sums[2][THREADS / 32];
    const float mean = block_sum<THREADS>(total, sums[0]) * (1.0f / WIDTH);
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < Each; i++) {
        const bool exists = (i * THREADS + threadIdx.x) * VECTOR < WIDTH;
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            x[i][j] -= mean;
            if (exists) squares += x[i][j] * x[i][j];
        }
    }
    const float scale = rsqrtf(block_sum<THREADS>(squares, sums[1]) * (1.0f / WIDTH) + a.eps);
#pragma unroll
    for (int i = 0; i < Each; i++) {
        const int at = (i * THREADS + threadIdx.x) * VECTOR;
        if (at >= WIDTH) continue;
#pragma unroll
        for (int n = 0; n < NORMS; n++) {
            float w[VECTOR], b[VECTOR];
            load_vector<VECTOR>(a.norms[n].weight + at, w);
            load_vector<VECTOR>(a.norms[n].bias + at, b);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) w[j] = x[i][j] * scale * w[j] + b[j];
            store_vector<VECTOR>(a.norms[n].to + row + at, w);
        }
    }
}
