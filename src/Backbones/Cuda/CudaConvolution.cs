using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>The causal convolution of a Mamba layer and its SiLU on a GPU (causal_conv.cu), for one type and one d_conv.</summary>
internal sealed class CudaConvolution
{
    /// <summary>The largest d_conv.</summary>
    public const int MaxSize = 8;

    private const int Threads = 160, StepThreads = 256;
    private readonly CudaKernel _forward, _step, _backward;
    private readonly CudaGpu _gpu;
    private readonly ScalarType _type;
    private readonly int _size;

    /// <param name="gpu">Where it runs.</param>
    /// <param name="type">Of inputs, weights and outputs: Float32, BFloat16 or Float16. Sums are float32, and so is the state.</param>
    /// <param name="size">Positions that it sees (d_conv, k), 1 to 8.</param>
    /// <exception cref="ArgumentException">The kernel has no such type or size.</exception>
    public CudaConvolution(CudaGpu gpu, ScalarType type, int size)
    {
        if (size is < 1 or > MaxSize) throw new ArgumentException($"d_conv is {size}; expected 1 to {MaxSize}.", nameof(size));
        (_gpu, _type, _size) = (gpu, type, size);
        string[] defines = [$"TYPE={CudaTensor.TypeName(type)}", $"K={size}"];
        _forward = gpu.Kernel("causal_conv.cu", "conv_forward", defines);
        _step = gpu.Kernel("causal_conv.cu", "conv_step", defines);
        _backward = gpu.Kernel("causal_conv.cu", "conv_backward", defines);
    }

    /// <summary>What conv_forward and conv_step take, see there.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct ForwardArguments
    {
        public nint U, Weight, Bias, Y, State, NextState;
        public long URow, UChannel, YRow, YChannel, StateRow;
        public int Rows, Channels, Length;
    }

    /// <summary>What conv_backward takes, see there.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct BackwardArguments
    {
        public nint U, Weight, Bias, GradY, GradYMore, GradU, GradWeight, GradBias;
        public long URow, UChannel, GradYRow, GradYChannel, GradURow, GradUChannel;
        public int Rows, Channels, Length, Add;
    }

    /// <summary>Unchecked: the caller answers for the addresses.</summary>
    public void Forward(nint stream, in ForwardArguments a)
    {
        if (a.Length == 1) _step.Run(stream, new Launch((a.Rows * a.Channels + StepThreads - 1) / StepThreads, StepThreads), a);
        else _forward.Run(stream, new Launch(a.Channels, Threads), a);
    }

    /// <inheritdoc cref="Forward(nint, in ForwardArguments)"/>
    public void Backward(nint stream, in BackwardArguments a) => _backward.Run(stream, new Launch(a.Channels, Threads), a);

    /// <summary>silu(conv(u) + bias).</summary>
    /// <param name="u">[b, e, l], l contiguous.</param>
    /// <param name="weight">[e, k].</param>
    /// <param name="bias">[e], or null.</param>
    /// <param name="y">Receives the result, [b, e, l], l contiguous.</param>
    /// <param name="state">The k inputs before these, [b, e, k] float32, the oldest first; null: zeros.</param>
    /// <param name="nextState">Receives the last k inputs, [b, e, k] float32; may be <paramref name="state"/>; null: not wanted.</param>
    /// <exception cref="ArgumentException">A tensor has another device, type, shape or stride.</exception>
    public void Forward(Tensor u, Tensor weight, Tensor? bias, Tensor y, Tensor? state = null, Tensor? nextState = null)
    {
        var (rows, channels, length) = Sizes(u, weight, bias);
        CudaArguments.FitsInTime(y, nameof(y), _gpu, _type, "(b, e, l)", rows, channels, length);
        if (state is not null) CudaArguments.FitsContiguous(state, nameof(state), _gpu, ScalarType.Float32, "(b, e, k)", rows, channels, _size);
        if (nextState is not null) CudaArguments.FitsContiguous(nextState, nameof(nextState), _gpu, ScalarType.Float32, "(b, e, k)", rows, channels, _size);
        if (u.numel() == 0) return;
        Forward(CudaStream.Current(_gpu.Index), new ForwardArguments
        {
            U = CudaTensor.Pointer(u), Weight = CudaTensor.Pointer(weight), Bias = CudaTensor.Pointer(bias), Y = CudaTensor.Pointer(y),
            State = CudaTensor.Pointer(state), NextState = CudaTensor.Pointer(nextState),
            URow = u.stride(0), UChannel = u.stride(1), YRow = y.stride(0), YChannel = y.stride(1), StateRow = (long)channels * _size,
            Rows = rows, Channels = channels, Length = length,
        });
    }

    /// <summary>The gradients for inputs that start from zeros.</summary>
    /// <param name="u">As in the forward pass.</param>
    /// <param name="weight">As in the forward pass.</param>
    /// <param name="bias">As in the forward pass.</param>
    /// <param name="gradY">[b, e, l], l contiguous.</param>
    /// <param name="gradU">Receives [b, e, l], l contiguous; null: not wanted.</param>
    /// <param name="gradWeight">Receives [e, k]; null: not wanted.</param>
    /// <param name="gradBias">Receives [e]; null: not wanted.</param>
    /// <param name="add">Whether the gradients of weight and bias are added to what is there.</param>
    /// <param name="gradYMore">A part of gradY that is still to be added to it, of the same shape and strides; or null.</param>
    /// <exception cref="ArgumentException">A tensor has another device, type, shape or stride.</exception>
    public void Backward(Tensor u, Tensor weight, Tensor? bias, Tensor gradY, Tensor? gradU, Tensor? gradWeight, Tensor? gradBias, bool add = false, Tensor? gradYMore = null)
    {
        var (rows, channels, length) = Sizes(u, weight, bias);
        CudaArguments.FitsInTime(gradY, nameof(gradY), _gpu, _type, "(b, e, l)", rows, channels, length);
        if (gradYMore is not null)
        {
            CudaArguments.FitsInTime(gradYMore, nameof(gradYMore), _gpu, _type, "(b, e, l)", rows, channels, length);
            if (!gradYMore.stride().AsSpan().SequenceEqual(gradY.stride()))
                throw new ArgumentException($"gradYMore has strides [{string.Join(", ", gradYMore.stride())}]; expected those of gradY, [{string.Join(", ", gradY.stride())}].", nameof(gradYMore));
        }
        if (gradU is not null) CudaArguments.FitsInTime(gradU, nameof(gradU), _gpu, _type, "(b, e, l)", rows, channels, length);
        if (gradWeight is not null) CudaArguments.FitsContiguous(gradWeight, nameof(gradWeight), _gpu, _type, "(e, k)", channels, _size);
        if (gradBias is not null) CudaArguments.FitsContiguous(gradBias, nameof(gradBias), _gpu, _type, "(e)", channels);
        if (channels == 0) return;
        Backward(CudaStream.Current(_gpu.Index), new BackwardArguments
        {
            U = CudaTensor.Pointer(u), Weight = CudaTensor.Pointer(weight), Bias = CudaTensor.Pointer(bias), GradY = CudaTensor.Pointer(gradY), GradYMore = CudaTensor.Pointer(gradYMore),
            GradU = CudaTensor.Pointer(gradU), GradWeight = CudaTensor.Pointer(gradWeight), GradBias = CudaTensor.Pointer(gradBias),
            URow = u.stride(0), UChannel = u.stride(1), GradYRow = gradY.stride(0), GradYChannel = gradY.stride(1),
            GradURow = gradU?.stride(0) ?? 0, GradUChannel = gradU?.stride(1) ?? 0,
            Rows = rows, Channels = channels, Length = length, Add = add ? 1 : 0,
        });
    }

    private (int Rows, int Channels, int Length) Sizes(Tensor u, Tensor weight, Tensor? bias)
    {
        ArgumentNullException.ThrowIfNull(u);
        if (u.dim() != 3) throw new ArgumentException($"u has shape [{string.Join(", ", u.shape)}]; expected 3 axes (b, e, l).", nameof(u));
        var (rows, channels, length) = ((int)u.shape[0], (int)u.shape[1], (int)u.shape[2]);
        CudaArguments.FitsInTime(u, nameof(u), _gpu, _type, "(b, e, l)", rows, channels, length);
        CudaArguments.FitsContiguous(weight, nameof(weight), _gpu, _type, "(e, k)", channels, _size);
        if (bias is not null) CudaArguments.FitsContiguous(bias, nameof(bias), _gpu, _type, "(e)", channels);
        return (rows, channels, length);
    }
}
