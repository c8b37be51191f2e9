// Takes time and does nothing: a benchmark puts what it times behind it.
// check:
#include "common.cuh"

struct Arguments { i64 ticks; };

extern "C" __global__ void sleep(const __grid_constant__ Arguments a) {
    const i64 begin = clock64();
    while (clock64() - begin < a.ticks) ;
}
