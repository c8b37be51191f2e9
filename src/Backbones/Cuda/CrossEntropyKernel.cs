using System.Collections.Concurrent;
using System.Numerics;
using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>The cross-entropy of logits in any precision, and its gradient, which may lie where the logits were
/// (Kernels/cross_entropy.cu).</summary>
internal static class CrossEntropyKernel
{
    [StructLayout(LayoutKind.Sequential)]
    private struct ForwardArguments
    {
        public nint Logits, Targets, Weights, Lse, Losses;
        public long Rows;
        public int Width;
        public float Weight;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct SumArguments
    {
        public nint Losses, Sum;
        public long Rows;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct BackwardArguments
    {
        public nint Logits, GradLogits, Targets, Weights, Lse, Grad;
        public long Rows;
        public int Width;
        public float Weight;
    }

    private static readonly ConcurrentDictionary<(CudaGpu, ScalarType, int Threads, string Entry), CudaKernel> Kernels = new();

    /// <summary>The weighted sum of the rows' losses, a scalar of float32, and the logarithm of each row's sum of exponentials, [r]
    /// of float32, which the backward pass needs. The caller owns both.</summary>
    /// <param name="gpu">Of the tensors.</param>
    /// <param name="logits">[r, v], contiguous; Float32, BFloat16 or Float16.</param>
    /// <param name="targets">[r], int64. One that is no column makes the loss NaN.</param>
    /// <param name="weights">[r], float32; null: each row weighs 1 / r.</param>
    /// <exception cref="ArgumentException">A tensor has another device, type, shape or stride.</exception>
    public static (Tensor Loss, Tensor Lse) Forward(CudaGpu gpu, Tensor logits, Tensor targets, Tensor? weights)
    {
        var (rows, width) = Check(gpu, logits, targets, weights);
        var lse = empty([rows], dtype: ScalarType.Float32, device: logits.device);
        using var losses = empty([rows], dtype: ScalarType.Float32, device: logits.device);
        var loss = empty([], dtype: ScalarType.Float32, device: logits.device);
        var stream = CudaStream.Current(gpu.Index);
        var threads = Threads(width);
        Kernel(gpu, logits.dtype, threads, "cross_entropy_forward").Run(stream, new Launch((int)rows, threads), new ForwardArguments
        {
            Logits = CudaTensor.Pointer(logits), Targets = CudaTensor.Pointer(targets), Weights = CudaTensor.Pointer(weights), Lse = CudaTensor.Pointer(lse),
            Losses = CudaTensor.Pointer(losses), Rows = rows, Width = width, Weight = 1f / rows,
        });
        Kernel(gpu, logits.dtype, threads, "cross_entropy_sum").Run(stream, new Launch(1, 256), new SumArguments { Losses = CudaTensor.Pointer(losses), Sum = CudaTensor.Pointer(loss), Rows = rows });
        return (loss, lse);
    }

    /// <summary>The gradient of the logits.</summary>
    /// <param name="gpu">Of the tensors.</param>
    /// <param name="logits">As in the forward pass.</param>
    /// <param name="targets">As in the forward pass.</param>
    /// <param name="weights">As in the forward pass.</param>
    /// <param name="lse">What that gave.</param>
    /// <param name="grad">The gradient of the loss, a scalar of float32.</param>
    /// <param name="gradLogits">Receives [r, v] of the logits' type; may be <paramref name="logits"/>.</param>
    /// <exception cref="ArgumentException">A tensor has another device, type, shape or stride.</exception>
    public static void Backward(CudaGpu gpu, Tensor logits, Tensor targets, Tensor? weights, Tensor lse, Tensor grad, Tensor gradLogits)
    {
        var (rows, width) = Check(gpu, logits, targets, weights);
        CudaArguments.FitsContiguous(lse, nameof(lse), gpu, ScalarType.Float32, "(r)", rows);
        CudaArguments.Fits(grad, nameof(grad), gpu, ScalarType.Float32, "()");
        CudaArguments.FitsContiguous(gradLogits, nameof(gradLogits), gpu, logits.dtype, "(r, v)", rows, width);
        var threads = Threads(width);
        Kernel(gpu, logits.dtype, threads, "cross_entropy_backward").Run(CudaStream.Current(gpu.Index), new Launch((int)rows, threads), new BackwardArguments
        {
            Logits = CudaTensor.Pointer(logits), GradLogits = CudaTensor.Pointer(gradLogits), Targets = CudaTensor.Pointer(targets), Weights = CudaTensor.Pointer(weights),
            Lse = CudaTensor.Pointer(lse), Grad = CudaTensor.Pointer(grad), Rows = rows, Width = width, Weight = 1f / rows,
        });
    }

    // 64 numbers a thread or more: a block of a short row has little to add up at its end.
    private static int Threads(int width) => (int)Math.Clamp(BitOperations.RoundUpToPowerOf2((uint)(width + 63) / 64), 64, 512);

    private static CudaKernel Kernel(CudaGpu gpu, ScalarType type, int threads, string entry) => Kernels.GetOrAdd((gpu, type, threads, entry),
        static key => key.Item1.Kernel("cross_entropy.cu", key.Entry, $"TYPE={CudaTensor.TypeName(key.Item2)}", $"THREADS={key.Threads}"));

    private static (long Rows, int Width) Check(CudaGpu gpu, Tensor logits, Tensor targets, Tensor? weights)
    {
        ArgumentNullException.ThrowIfNull(logits);
        if (logits.dim() != 2 || logits.shape[0] is < 1 or > int.MaxValue || logits.shape[1] is < 1 or > int.MaxValue - 8192)
            throw new ArgumentException($"logits has shape [{string.Join(", ", logits.shape)}]; expected 2 axes (r, v), neither of them empty.", nameof(logits));
        var (rows, width) = (logits.shape[0], logits.shape[1]);
        CudaArguments.FitsContiguous(logits, nameof(logits), gpu, logits.dtype, "(r, v)", rows, width);
        CudaArguments.FitsContiguous(targets, nameof(targets), gpu, ScalarType.Int64, "(r)", rows);
        if (weights is not null) CudaArguments.FitsContiguous(weights, nameof(weights), gpu, ScalarType.Float32, "(r)", rows);
        return (rows, (int)width);
    }
}
