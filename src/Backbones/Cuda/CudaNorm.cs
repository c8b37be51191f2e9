using System.Runtime.InteropServices;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>The sum of residual stream and a layer's output, and its norm, on a GPU (norm.cu), for one width.</summary>
internal sealed class CudaNorm
{
    private readonly CudaKernel?[] _forward = new CudaKernel?[2], _backward = new CudaKernel?[2]; // by whether accesses are of 4 numbers
    private CudaKernel? _sum;
    private readonly CudaGpu _gpu;
    private readonly ScalarType _type, _residualType;
    private readonly int _width, _threads;
    private readonly bool _layerNorm;

    /// <param name="gpu">Where it runs.</param>
    /// <param name="type">Of weights, of what is added and of what comes out: Float32, BFloat16 or Float16. Sums are float32.</param>
    /// <param name="residualType">Of the residual stream: Float32, or <paramref name="type"/>.</param>
    /// <param name="width">Numbers of a row (d), up to 12,288.</param>
    /// <param name="kind">RMSNorm or LayerNorm.</param>
    /// <exception cref="ArgumentException">The kernel has no such type or width.</exception>
    public CudaNorm(CudaGpu gpu, ScalarType type, ScalarType residualType, long width, NormKind kind)
    {
        if (!Takes(width)) throw new ArgumentException($"A row of {width} numbers does not fit a block; expected 1 to {MaxThreads * Accesses * (width % 4 == 0 ? 4 : 1)}.", nameof(width));
        if (residualType != ScalarType.Float32 && residualType != type) throw new ArgumentException($"The residual stream is {residualType}; expected Float32 or {type}.", nameof(residualType));
        (_gpu, _type, _residualType, _width, _layerNorm) = (gpu, type, residualType, (int)width, kind == NormKind.LayerNorm);
        _threads = Math.Max(32, ((_width / (_width % 4 == 0 ? 4 : 1) + Accesses - 1) / Accesses + 31) / 32 * 32);
        PartBlocks = 6 * gpu.Multiprocessors;
    }

    private const int MaxThreads = 1024, Accesses = 3;

    /// <summary>Whether a row of that width fits a block.</summary>
    public static bool Takes(long width) => width >= 1 && width <= MaxThreads * Accesses * (width % 4 == 0 ? 4 : 1);

    /// <summary>The most blocks of the backward pass, each with a share of the weights' gradients of its own.</summary>
    public int PartBlocks { get; }

    /// <summary>What norm_forward takes, see there.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct ForwardArguments
    {
        public nint Residual, X, Weight, Bias, Sum, Normed;
        public long Rows;
        public float Epsilon;
    }

    /// <summary>What norm_backward takes, see there.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct BackwardArguments
    {
        public nint Sum, Weight, Bias, GradNormed, GradSum, GradResidual, GradX, Normed, PartWeight, PartBias;
        public long Rows;
        public float Epsilon;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct SumArguments
    {
        public nint PartWeight, PartBias, Weight, Bias;
        public int Blocks, Add;
    }

    /// <summary>Unchecked: the caller answers for the addresses.</summary>
    public void Forward(nint stream, in ForwardArguments a) =>
        Kernel(_forward, "norm_forward", a.Residual | a.X | a.Weight | a.Bias | a.Sum | a.Normed).Run(stream, new Launch((int)a.Rows, _threads), a);

    /// <summary>Unchecked, as the forward pass.</summary>
    /// <param name="stream">Where it runs.</param>
    /// <param name="a">The arguments; the parts are (<see cref="PartBlocks"/>, d) float32.</param>
    /// <param name="gradWeight">Where the sum of the parts goes, if there are any.</param>
    /// <param name="gradBias">The same for the bias.</param>
    /// <param name="add">Whether these are added to.</param>
    public void Backward(nint stream, in BackwardArguments a, nint gradWeight, nint gradBias, bool add)
    {
        var blocks = (int)Math.Min(a.Rows, PartBlocks);
        Kernel(_backward, "norm_backward", a.Sum | a.Weight | a.Bias | a.GradNormed | a.GradSum | a.GradResidual | a.GradX | a.Normed | a.PartWeight | a.PartBias)
            .Run(stream, new Launch(blocks, _threads), a);
        if (a.PartWeight == 0 && a.PartBias == 0) return;
        _sum ??= Kernel("norm_sum_parts", 1);
        _sum.Run(stream, new Launch(((_width + 31) / 32, 2, 1), (1024, 1)),
            new SumArguments { PartWeight = a.PartWeight, PartBias = a.PartBias, Weight = gradWeight, Bias = gradBias, Blocks = blocks, Add = add ? 1 : 0 });
    }

    /// <summary>sum = residual + x, normed = norm(sum).</summary>
    /// <param name="residual">[r, d] of the residual's type; null: zeros.</param>
    /// <param name="x">[r, d]; null: nothing is added.</param>
    /// <param name="weight">[d].</param>
    /// <param name="bias">[d], for LayerNorm.</param>
    /// <param name="epsilon">Added to the mean of squares.</param>
    /// <param name="sum">Receives [r, d] of the residual's type; may be <paramref name="residual"/>; null: not wanted.</param>
    /// <param name="normed">Receives [r, d].</param>
    /// <exception cref="ArgumentException">A tensor has another device, type, shape or stride, or the bias is amiss.</exception>
    public void Forward(Tensor? residual, Tensor? x, Tensor weight, Tensor? bias, double epsilon, Tensor? sum, Tensor normed)
    {
        var rows = Rows(normed, nameof(normed));
        if (residual is not null) Fits(residual, nameof(residual), _residualType, rows);
        if (x is not null) Fits(x, nameof(x), _type, rows);
        if (sum is not null) Fits(sum, nameof(sum), _residualType, rows);
        Fits(normed, nameof(normed), _type, rows);
        CheckWeights(weight, bias);
        if (rows == 0) return;
        Forward(CudaStream.Current(_gpu.Index), new ForwardArguments
        {
            Residual = CudaTensor.Pointer(residual), X = CudaTensor.Pointer(x), Weight = CudaTensor.Pointer(weight), Bias = CudaTensor.Pointer(bias),
            Sum = CudaTensor.Pointer(sum), Normed = CudaTensor.Pointer(normed), Rows = rows, Epsilon = (float)epsilon,
        });
    }

    /// <summary>The gradients.</summary>
    /// <param name="sum">What was normalised, [r, d] of the residual's type.</param>
    /// <param name="weight">[d].</param>
    /// <param name="bias">[d], for LayerNorm.</param>
    /// <param name="epsilon">As in the forward pass.</param>
    /// <param name="gradNormed">[r, d].</param>
    /// <param name="gradSum">What reaches the sum past the norm, [r, d] of the residual's type; null: nothing.</param>
    /// <param name="gradResidual">Receives [r, d] of the residual's type; may be <paramref name="gradSum"/>.</param>
    /// <param name="gradX">Receives the same in the type of x; null: not wanted.</param>
    /// <param name="normed">Receives what the forward pass gave; null: not wanted.</param>
    /// <param name="gradWeight">Receives [d]; null: not wanted.</param>
    /// <param name="gradBias">Receives [d], for LayerNorm; null: not wanted.</param>
    /// <param name="add">Whether the gradients of weight and bias are added to what is there.</param>
    /// <exception cref="ArgumentException">A tensor has another device, type, shape or stride, or the bias is amiss.</exception>
    public void Backward(Tensor sum, Tensor weight, Tensor? bias, double epsilon, Tensor gradNormed, Tensor? gradSum, Tensor gradResidual,
        Tensor? gradX = null, Tensor? normed = null, Tensor? gradWeight = null, Tensor? gradBias = null, bool add = false)
    {
        var rows = Rows(sum, nameof(sum));
        Fits(sum, nameof(sum), _residualType, rows);
        Fits(gradNormed, nameof(gradNormed), _type, rows);
        if (gradSum is not null) Fits(gradSum, nameof(gradSum), _residualType, rows);
        Fits(gradResidual, nameof(gradResidual), _residualType, rows);
        if (gradX is not null) Fits(gradX, nameof(gradX), _type, rows);
        if (normed is not null) Fits(normed, nameof(normed), _type, rows);
        CheckWeights(weight, bias);
        if (gradWeight is not null) CudaArguments.FitsContiguous(gradWeight, nameof(gradWeight), _gpu, _type, "(d)", _width);
        if (gradBias is not null) CudaArguments.FitsContiguous(gradBias, nameof(gradBias), _gpu, _type, "(d)", _width);
        if (gradBias is not null && !_layerNorm) throw new ArgumentException("A gradient of the bias is asked of an RMSNorm, which has none.", nameof(gradBias));
        if (rows == 0) throw new ArgumentException("sum has no rows; expected at least one.", nameof(sum));
        using var parts = gradWeight is null && gradBias is null ? null : empty([2, PartBlocks, _width], dtype: ScalarType.Float32, device: sum.device);
        var part = CudaTensor.Pointer(parts);
        Backward(CudaStream.Current(_gpu.Index), new BackwardArguments
        {
            Sum = CudaTensor.Pointer(sum), Weight = CudaTensor.Pointer(weight), Bias = CudaTensor.Pointer(bias), GradNormed = CudaTensor.Pointer(gradNormed),
            GradSum = CudaTensor.Pointer(gradSum), GradResidual = CudaTensor.Pointer(gradResidual), GradX = CudaTensor.Pointer(gradX), Normed = CudaTensor.Pointer(normed),
            PartWeight = gradWeight is null ? 0 : part, PartBias = gradBias is null ? 0 : part + PartBytes, Rows = rows, Epsilon = (float)epsilon,
        }, CudaTensor.Pointer(gradWeight), CudaTensor.Pointer(gradBias), add);
    }

    /// <summary>Bytes of one set of parts.</summary>
    public nint PartBytes => (nint)PartBlocks * _width * sizeof(float);

    // Addresses that are all multiples of 16 have no lower bits together.
    private CudaKernel Kernel(CudaKernel?[] kernels, string entry, nint addresses)
    {
        var wide = _width % 4 == 0 && (addresses & 15) == 0;
        return kernels[wide ? 1 : 0] ??= Kernel(entry, wide ? 4 : 1);
    }

    private CudaKernel Kernel(string entry, int numbers) => _gpu.Kernel("norm.cu", entry, $"TYPE={CudaTensor.TypeName(_type)}",
        $"RESIDUAL={CudaTensor.TypeName(_residualType)}", $"WIDTH={_width}", $"THREADS={_threads}", $"VEC={numbers}", $"LAYER={(_layerNorm ? 1 : 0)}");

    private long Rows(Tensor t, string name)
    {
        ArgumentNullException.ThrowIfNull(t, name);
        if (t.dim() != 2) throw new ArgumentException($"{name} has shape [{string.Join(", ", t.shape)}]; expected 2 axes (r, d).", name);
        return t.shape[0];
    }

    private void Fits(Tensor t, string name, ScalarType type, long rows) => CudaArguments.FitsContiguous(t, name, _gpu, type, "(r, d)", rows, _width);

    private void CheckWeights(Tensor weight, Tensor? bias)
    {
        CudaArguments.FitsContiguous(weight, nameof(weight), _gpu, _type, "(d)", _width);
        if (bias is null != !_layerNorm) throw new ArgumentException($"There is {(bias is null ? "no" : "a")} bias for {(_layerNorm ? "a LayerNorm" : "an RMSNorm")}.", nameof(bias));
        if (bias is not null) CudaArguments.FitsContiguous(bias, nameof(bias), _gpu, _type, "(d)", _width);
    }
}
