using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>Up to two results added to the residual stream, and one or two LayerNorms of the sum, in one pass
/// (Kernels/add_norms.cu). Inference only.</summary>
internal static class AddNormsKernel
{
    [StructLayout(LayoutKind.Sequential)]
    private struct NormArguments
    {
        public nint Weight, Bias, To;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct Arguments
    {
        public nint X, First, Second, Sum;
        public NormArguments Norm, Other;
        public float Eps;
    }

    private static readonly ConcurrentDictionary<(CudaGpu, ScalarType, long Width, int Vector, int Addends, int Norms), (CudaKernel, int Threads)> Kernels = new();

    /// <summary>x + first + second, and the norms of that, all of the shape of x. The caller owns the results.</summary>
    /// <param name="gpu">Of the tensors.</param>
    /// <param name="x">[..., d], contiguous.</param>
    /// <param name="first">The same.</param>
    /// <param name="second">The same, or null.</param>
    /// <param name="norm">A LayerNorm of the type of x.</param>
    /// <param name="other">Another with the same epsilon, or null.</param>
    public static (Tensor Sum, Tensor Normed, Tensor? Other) Run(CudaGpu gpu, Tensor x, Tensor first, Tensor? second, Norm norm, Norm? other = null)
    {
        Check(gpu, x, first, second, norm, other);
        Tensor sum = empty_like(x), normed = empty_like(x);
        var otherNormed = other is null ? null : empty_like(x);
        Launch(gpu, x, first, second, sum, norm, normed, other, otherNormed);
        return (sum, normed, otherNormed);
    }

    /// <summary>Adds to x, and writes the norm of the sum.</summary>
    /// <param name="gpu">Of the tensors.</param>
    /// <param name="x">[..., d], contiguous; becomes the sum.</param>
    /// <param name="addend">The same.</param>
    /// <param name="norm">A LayerNorm of the type of x.</param>
    /// <param name="normed">Receives it; of the same shape.</param>
    public static void AddTo(CudaGpu gpu, Tensor x, Tensor addend, Norm norm, Tensor normed)
    {
        Check(gpu, x, addend, null, norm, null);
        CheckRows(gpu, x, normed, nameof(normed));
        Launch(gpu, x, addend, null, x, norm, normed, null, null);
    }

    /// <summary>Replaces x by its norm.</summary>
    /// <param name="gpu">Of the tensors.</param>
    /// <param name="x">[..., d], contiguous.</param>
    /// <param name="norm">A LayerNorm of the type of x.</param>
    public static void Normalise(CudaGpu gpu, Tensor x, Norm norm)
    {
        Check(gpu, x, null, null, norm, null);
        Launch(gpu, x, null, null, null, norm, x, null, null);
    }

    private static void Launch(CudaGpu gpu, Tensor x, Tensor? first, Tensor? second, Tensor? sum, Norm norm, Tensor normed, Norm? other, Tensor? otherNormed)
    {
        var width = x.size(-1);
        var rows = x.numel() / width;
        if (rows == 0) return;
        if (rows > int.MaxValue) throw new ArgumentException($"{rows} rows are more than one launch takes.", nameof(x));
        var vector = RowSpread.Vector(width, (int)x.element_size(), x, first, second, sum, normed, otherNormed, norm.weight, norm.bias, other?.weight, other?.bias);
        var addends = first is null ? 0 : second is null ? 1 : 2;
        var (kernel, threads) = Kernels.GetOrAdd((gpu, x.dtype, width, vector, addends, other is null ? 1 : 2), static key =>
        {
            var (gpu, type, width, vector, addends, norms) = key;
            var threads = RowSpread.Threads(width, vector) ?? throw new ArgumentException($"Rows of {width} numbers do not fit into a block's registers.", nameof(x));
            return (gpu.Kernel("add_norms.cu", "add_norms", $"TYPE={CudaTensor.TypeName(type)}", $"WIDTH={width}", $"VECTOR={vector}", $"THREADS={threads}",
                $"ADDENDS={addends}", $"NORMS={norms}"), threads);
        });
        kernel.Run(CudaStream.Current(gpu.Index), new Launch((int)rows, threads), new Arguments
        {
            X = CudaTensor.Pointer(x), First = CudaTensor.Pointer(first), Second = CudaTensor.Pointer(second), Sum = CudaTensor.Pointer(sum),
            Norm = Of(norm, normed), Other = other is null ? default : Of(other, otherNormed), Eps = (float)norm.eps,
        });

        static NormArguments Of(Norm norm, Tensor? to) => new() { Weight = CudaTensor.Pointer(norm.weight), Bias = CudaTensor.Pointer(norm.bias), To = CudaTensor.Pointer(to) };
    }

    private static void Check(CudaGpu gpu, Tensor x, Tensor? first, Tensor? second, Norm norm, Norm? other)
    {
        CheckRows(gpu, x, x, nameof(x));
        if (first is not null) CheckRows(gpu, x, first, nameof(first));
        if (second is not null) CheckRows(gpu, x, second, nameof(second));
        CheckNorm(gpu, x, norm, nameof(norm));
        if (other is null) return;
        CheckNorm(gpu, x, other, nameof(other));
        if (other.eps != norm.eps) throw new ArgumentException($"The norms have the epsilons {norm.eps} and {other.eps}; one is expected.", nameof(other));
    }

    private static void CheckRows(CudaGpu gpu, Tensor x, Tensor t, string name)
    {
        if (!CudaTensor.SameShape(t, x) || t.dtype != x.dtype || t.device_type != DeviceType.CUDA || t.device_index != gpu.Index || !t.is_contiguous())
            throw new ArgumentException($"It is [{string.Join(", ", t.shape)}] of {t.dtype} on {t.device}{(t.is_contiguous() ? "" : ", strided")}; expected a contiguous [{string.Join(", ", x.shape)}] of {x.dtype} on cuda:{gpu.Index}.", name);
    }

    private static void CheckNorm(CudaGpu gpu, Tensor x, Norm norm, string name)
    {
        CheckWeight(norm.weight);
        CheckWeight(norm.bias ?? throw new ArgumentException("It is an RMSNorm; expected a LayerNorm.", name));

        void CheckWeight(Tensor t)
        {
            if (t.dim() != 1 || t.size(0) != x.size(-1) || t.dtype != x.dtype || t.device_type != DeviceType.CUDA || t.device_index != gpu.Index || !t.is_contiguous())
                throw new ArgumentException($"Its weights are [{string.Join(", ", t.shape)}] of {t.dtype} on {t.device}; expected a contiguous [{x.size(-1)}] of {x.dtype} on cuda:{gpu.Index}.", name);
        }
    }
}
