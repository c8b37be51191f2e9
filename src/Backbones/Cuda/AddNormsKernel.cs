using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>One or two results added to the residual stream, and one or two LayerNorms of the sum, in one pass
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
        var shape = x.shape;
        var width = shape[^1];
        CheckRows(x, nameof(x));
        CheckRows(first, nameof(first));
        if (second is not null) CheckRows(second, nameof(second));
        CheckNorm(norm, nameof(norm));
        if (other is not null) CheckNorm(other, nameof(other));
        if (other is not null && other.eps != norm.eps) throw new ArgumentException($"The norms have the epsilons {norm.eps} and {other.eps}; one is expected.", nameof(other));
        Tensor sum = empty(shape, dtype: x.dtype, device: x.device), normed = empty(shape, dtype: x.dtype, device: x.device);
        var otherNormed = other is null ? null : empty(shape, dtype: x.dtype, device: x.device);
        var rows = x.numel() / width;
        if (rows == 0) return (sum, normed, otherNormed);
        if (rows > int.MaxValue) throw new ArgumentException($"{rows} rows are more than one launch takes.", nameof(x));
        var vector = RowSpread.Vector(width, (int)x.element_size(), x, first, second, norm.weight, norm.bias, other?.weight, other?.bias);
        var (kernel, threads) = Kernels.GetOrAdd((gpu, x.dtype, width, vector, second is null ? 1 : 2, other is null ? 1 : 2), static key =>
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
        return (sum, normed, otherNormed);

        static NormArguments Of(Norm norm, Tensor? to) => new() { Weight = CudaTensor.Pointer(norm.weight), Bias = CudaTensor.Pointer(norm.bias), To = CudaTensor.Pointer(to) };

        void CheckRows(Tensor t, string name)
        {
            if (!t.shape.SequenceEqual(shape) || t.dtype != x.dtype || t.device_type != DeviceType.CUDA || t.device_index != gpu.Index || !t.is_contiguous())
                throw new ArgumentException($"It is [{string.Join(", ", t.shape)}] of {t.dtype} on {t.device}{(t.is_contiguous() ? "" : ", strided")}; expected a contiguous [{string.Join(", ", shape)}] of {x.dtype} on cuda:{gpu.Index}.", name);
        }

        void CheckNorm(Norm n, string name)
        {
            Tensor weight = n.weight, bias = n.bias ?? throw new ArgumentException("It is an RMSNorm; expected a LayerNorm.", name);
            foreach (var t in new[] { weight, bias })
                if (t.dim() != 1 || t.shape[0] != width || t.dtype != x.dtype || t.device_type != DeviceType.CUDA || t.device_index != gpu.Index || !t.is_contiguous())
                    throw new ArgumentException($"Its weights are [{string.Join(", ", t.shape)}] of {t.dtype} on {t.device}; expected a contiguous [{width}] of {x.dtype} on cuda:{gpu.Index}.", name);
        }
    }
}
