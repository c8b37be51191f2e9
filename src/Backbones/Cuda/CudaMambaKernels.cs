using System.Runtime.InteropServices;
using MambaVL.Models;
using MambaVL.Scan;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>The kernels of a Mamba's layers for its sizes and precision, in libtorch's stream.</summary>
internal sealed class CudaMambaKernels : IMambaKernels
{
    private const int Threads = 256;

    private readonly CudaGpu _gpu;
    private readonly CudaNorm _norm;
    private readonly CudaConvolution _convolution;
    private readonly CudaKernel _stateMatrix, _floatGradients;

    /// <param name="gpu">Where they run.</param>
    /// <param name="type">The precision of the weights.</param>
    /// <param name="config">The sizes.</param>
    /// <exception cref="ArgumentException">There is no kernel for one of these.</exception>
    public CudaMambaKernels(CudaGpu gpu, ScalarType type, MambaConfig config)
    {
        _gpu = gpu;
        _norm = new(gpu, type, config.ResidualInFloat32 ? ScalarType.Float32 : type, config.HiddenSize, config.Norm);
        _convolution = new(gpu, type, (int)config.ConvolutionSize);
        _stateMatrix = gpu.Kernel("mamba_layer.cu", "state_matrix");
        _floatGradients = gpu.Kernel("mamba_layer.cu", "float_gradients");
    }

    /// <summary>Whether there are kernels for a model of these sizes.</summary>
    public static bool Take(MambaConfig config) => CudaNorm.Takes(config.HiddenSize) && config.ConvolutionSize <= CudaConvolution.MaxSize && config.StateSize <= ScanArguments.MaxState;

    /// <summary>What state_matrix takes, see there.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct MatrixArguments
    {
        public nint Log, A;
        public int Count;
    }

    /// <summary>What float_gradients takes, see there.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct GradientArguments
    {
        public nint A, GradA, GradD, GradBias, Log, D, Bias;
        public int Channels, States, AddLog, AddD, AddBias;
    }

    public int NormBlocks => _norm.PartBlocks;

    public void Norm(in CudaNorm.ForwardArguments a) => _norm.Forward(Stream, a);

    public void NormBackward(in CudaNorm.BackwardArguments a, nint gradWeight, nint gradBias, bool add) => _norm.Backward(Stream, a, gradWeight, gradBias, add);

    public void Convolve(in CudaConvolution.ForwardArguments a) => _convolution.Forward(Stream, a);

    public void ConvolveBackward(in CudaConvolution.BackwardArguments a) => _convolution.Backward(Stream, a);

    public void StateMatrix(in MatrixArguments a) => _stateMatrix.Run(Stream, new Launch((a.Count + Threads - 1) / Threads, Threads), a);

    public void FloatGradients(in GradientArguments a) => _floatGradients.Run(Stream, new Launch((a.Channels * a.States + Threads - 1) / Threads, Threads), a);

    public (Tensor output, Tensor lastState, Tensor? checkpoints) Scan(ScanArguments x, bool keepCheckpoints, ScanTargets into) => CudaScan.Forward(x, keepCheckpoints, into);

    public Tensor?[] ScanBackward(ScanArguments x, Tensor checkpoints, Tensor gradOutput, ScanTargets into) => CudaScan.Backward(x, checkpoints, gradOutput, null, into);

    private nint Stream => CudaStream.Current(_gpu.Index);
}
