using System.Globalization;
using System.Numerics;
using System.Runtime.InteropServices;
using MambaVL.Cuda;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Scan;

/// <summary>Tensors of the caller's that results are written to, in any strides: a layer writes into slices of larger
/// buffers. Null: a new tensor is made.</summary>
/// <param name="u">The output of the forward pass, or u's gradient [b, d, l].</param>
/// <param name="delta">delta's gradient [b, d, l].</param>
/// <param name="z">z's gradient [b, d, l].</param>
/// <param name="B">B's gradient [b, n, l].</param>
/// <param name="C">C's gradient [b, n, l].</param>
internal sealed record ScanTargets(Tensor? u = null, Tensor? delta = null, Tensor? z = null, Tensor? B = null, Tensor? C = null);

/// <summary>The selective scan on an NVIDIA GPU: the kernels of Cuda/Kernels/selective_scan*.cu, and how they are spread.
/// Results are in the caller's dispose scope; everything runs in libtorch's stream, and nothing is waited for.</summary>
internal static class CudaScan
{
    /// <summary>Steps between two states that the forward pass keeps for the backward pass.</summary>
    public const int Chunk = 64;

    /// <summary>What the sums of B's and C's gradients over parts of the channels may take while a backward pass runs, in
    /// bytes. With more parts than fit, the pass is launched several times, and adds to the sums.</summary>
    public const long WorkspaceBytes = 256L << 20;

    /// <summary>Output and last state, recorded by autograd where a tensor asks for it.</summary>
    public static (Tensor output, Tensor lastState) Run(ScanArguments x)
    {
        using var scope = NewDisposeScope();
        var (output, lastState) = x.NeedGradient ? ScanFunction.Record(x, Kernel) : Forward(x, keepCheckpoints: false) is var r ? (r.output, r.lastState) : default;
        return (output.MoveToOuterDisposeScope(), lastState.MoveToOuterDisposeScope());
    }

    private static ScanKernel Kernel { get; } = new("CUDA",
        x => Forward(x, keepCheckpoints: true)!,
        (x, checkpoints, gradOutput, gradLastState) => Backward(x, checkpoints, gradOutput, gradLastState));

    /// <summary>The forward pass, without autograd.</summary>
    /// <param name="x">Checked arguments on a GPU.</param>
    /// <param name="keepCheckpoints">Whether a backward pass is to follow.</param>
    /// <param name="into">Where the output goes (<see cref="ScanTargets.u"/>, of u's type); null: a new tensor in u's layout.</param>
    /// <returns>The output [b, d, l], the last state [b, d, n] in float32, and the states that a backward pass starts from,
    /// [b, chunks, d, n] in float32, n / 64 floats a token and channel; null where they are not kept.</returns>
    public static (Tensor output, Tensor lastState, Tensor? checkpoints) Forward(ScanArguments x, bool keepCheckpoints, ScanTargets? into = null)
    {
        throw new NotImplementedException();
    }

    /// <summary>The gradients of all nine tensors, in the order of <see cref="ScanArguments.Tensors"/>; null where there is no
    /// such tensor. Without autograd.</summary>
    /// <param name="x">The arguments of Forward.</param>
    /// <param name="checkpoints">What Forward gave.</param>
    /// <param name="gradOutput">[b, d, l] in any type that u may have, or null.</param>
    /// <param name="gradLastState">[b, d, n] in float32, or null.</param>
    /// <param name="into">Where gradients go, of the types of their tensors; null: new tensors.</param>
    public static Tensor?[] Backward(ScanArguments x, Tensor checkpoints, Tensor? gradOutput, Tensor? gradLastState, ScanTargets? into = null)
    {
        throw new NotImplementedException();
    }
}
