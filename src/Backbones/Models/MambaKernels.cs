using MambaVL.Cuda;
using MambaVL.Scan;
using static TorchSharp.torch;

namespace MambaVL.Models;

/// <summary>What a Mamba layer computes beside matrix products, on memory addresses: the kernels of a GPU, or the plain loops
/// that <see cref="FusedMamba"/> is tested with. Everything is put into one stream, in the order of the calls.</summary>
internal interface IMambaKernels
{
    /// <summary>The most blocks that share the gradients of a norm's weights.</summary>
    int NormBlocks { get; }

    /// <summary>Residual sum and norm, see norm.cu.</summary>
    void Norm(in CudaNorm.ForwardArguments a);

    /// <summary>Its gradients; the parts are (<see cref="NormBlocks"/>, d) float32, and their sums go to the last two.</summary>
    void NormBackward(in CudaNorm.BackwardArguments a, nint gradWeight, nint gradBias, bool add);

    /// <summary>Convolution and SiLU, see causal_conv.cu.</summary>
    void Convolve(in CudaConvolution.ForwardArguments a);

    /// <summary>Its gradients.</summary>
    void ConvolveBackward(in CudaConvolution.BackwardArguments a);

    /// <summary>A of A_log, see mamba_layer.cu.</summary>
    void StateMatrix(in CudaMambaKernels.MatrixArguments a);

    /// <summary>The gradients of A_log, D and the bias of dt_proj from the scan's.</summary>
    void FloatGradients(in CudaMambaKernels.GradientArguments a);

    /// <inheritdoc cref="CudaScan.Forward"/>
    (Tensor output, Tensor lastState, Tensor? checkpoints) Scan(ScanArguments x, bool keepCheckpoints, ScanTargets into);

    /// <inheritdoc cref="CudaScan.Backward"/>
    Tensor?[] ScanBackward(ScanArguments x, Tensor checkpoints, Tensor gradOutput, ScanTargets into);
}
