// The small float32 parameters of a Mamba layer.
//
// check: -DALONE
#include "common.cuh"

struct MatrixArguments {
    const float* log;   // A_log
    float* a;           // A = -e^A_log
    int count;
};

extern "C" __global__ void state_matrix(const __grid_constant__ MatrixArguments m) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < m.count) m.a[i] = -expf(m.log[i]);
}

struct GradientArguments {
    const float* a;                                     // (e, n)
    const float* grad_a; const float* grad_d; const float* grad_bias;  // (e, n), (e), (e): what the scan gave
    float* log; float* d; float* bias;                  // where the gradients of A_log, D and the bias of dt_proj go, or none
    int channels, states;
    int add_log, add_d, add_bias;                       // whether they are added to
};

extern "C" __global__ void float_gradients(const __grid_constant__ GradientArguments g) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (g.log && i < g.channels * g.states) g.log[i] = g.grad_a[i] * g.a[i] + (g.add_log ? g.log[i] : 0.0f);  // A' = A
    if (g.d && i < g.channels) g.d[i] = g.grad_d[i] + (g.add_d ? g.d[i] : 0.0f);
    if (g.bias && i < g.channels) g.bias[i] = g.grad_bias[i] + (g.add_bias ? g.bias[i] : 0.0f);
}
