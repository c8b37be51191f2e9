using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>The inside of a gated MLP, silu(gate) value and the LayerNorm over it, in one pass (Kernels/swiglu.cu). Inference only.</summary>
internal static class SwiGluKernel
{
    [StructLayout(LayoutKind.Sequential)]
    private struct Arguments
    {
        public nint X, Weight, Bias, Y;
        public float Eps;
    }

    private static readonly ConcurrentDictionary<(CudaGpu, ScalarType, long Width, long Padded, int Vector, bool Norm), (CudaKernel, int Threads)> Kernels = new();

    /// <summary>[..., 2 padded], gate and value, -> [..., padded], zeros from <paramref name="width"/> on. The caller owns the result.</summary>
    /// <param name="gpu">Of the tensors.</param>
    /// <param name="x">Contiguous.</param>
    /// <param name="width">How many numbers count.</param>
    /// <param name="weight">The norm's, [padded]; null: no norm.</param>
    /// <param name="bias">The norm's, [padded].</param>
    /// <param name="eps">The norm's.</param>
    public static Tensor Run(CudaGpu gpu, Tensor x, long width, Tensor? weight = null, Tensor? bias = null, double eps = 0)
    {
        var twice = x.size(-1);
        var padded = twice / 2;
        if (twice % 2 != 0 || padded < width || width < 1 || x.device_type != DeviceType.CUDA || x.device_index != gpu.Index || !x.is_contiguous())
            throw new ArgumentException($"Gate and value are [{string.Join(", ", x.shape)}] of {x.dtype} on {x.device}{(x.is_contiguous() ? "" : ", strided")}; expected a contiguous [..., 2 n], n at least {width}, on cuda:{gpu.Index}.", nameof(x));
        Check(weight, nameof(weight));
        Check(bias, nameof(bias));
        if ((weight is null) != (bias is null)) throw new ArgumentException("A norm has both weight and bias; one of them is null.", nameof(bias));
        var vector = RowSpread.Vector(padded, (int)x.element_size(), x, weight, bias);
        var (kernel, threads) = Kernels.GetOrAdd((gpu, x.dtype, width, padded, vector, weight is not null), static key =>
        {
            var (gpu, type, width, padded, vector, norm) = key;
            var threads = RowSpread.Threads(padded, vector) ?? throw new ArgumentException($"Rows of {padded} numbers do not fit into a block's registers.", nameof(x));
            return (gpu.Kernel("swiglu.cu", "swiglu", $"TYPE={CudaTensor.TypeName(type)}", $"WIDTH={width}", $"PADDED={padded}", $"VECTOR={vector}", $"THREADS={threads}", $"NORM={(norm ? 1 : 0)}"), threads);
        });
        var rows = x.numel() / twice;
        if (rows > int.MaxValue) throw new ArgumentException($"{rows} rows are more than one launch takes.", nameof(x));
        var y = x.dim() == 2 ? empty(rows, padded, dtype: x.dtype, device: x.device) : empty([.. x.shape[..^1], padded], dtype: x.dtype, device: x.device);
        if (rows == 0) return y;
        kernel.Run(CudaStream.Current(gpu.Index), new Launch((int)rows, threads), new Arguments
        {
            X = CudaTensor.Pointer(x), Weight = CudaTensor.Pointer(weight), Bias = CudaTensor.Pointer(bias), Y = CudaTensor.Pointer(y), Eps = (float)eps,
        });
        return y;

        void Check(Tensor? t, string name)
        {
            if (t is null) return;
            if (t.dim() != 1 || t.size(0) != padded || t.dtype != x.dtype || t.device_type != DeviceType.CUDA || t.device_index != gpu.Index || !t.is_contiguous())
                throw new ArgumentException($"The norm's {name} is [{string.Join(", ", t.shape)}] of {t.dtype} on {t.device}; expected a contiguous [{padded}] of {x.dtype} on cuda:{gpu.Index}.", name);
        }
    }
}
