using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>AdamW over flat tensors on a GPU (adamw.cu): the norm of the gradients, the clipping, the update, the model's own copy
/// of the weights and the zeroing of the gradients, with one pass over memory for the norm and one for the rest. The host waits
/// for nothing.</summary>
/// <remarks>
/// The tensors lie as the trainers' do: the first weights are the model's own, in float32; the rest have a narrow working copy.
/// <code>
/// weights    float32   [ kept in float32 | the rest ]
/// gradients  float32   [ kept in float32 ]
/// earlier    float32                     [ the rest ]   of earlier micro-batches, if there were any
/// narrow                                 [ the rest ]   of the last
/// working                                [ the rest ]
/// </code>
/// </remarks>
internal sealed class CudaAdamW : IDisposable
{
    // Blocks of the partial sums: fixed, so that the order of the sum is the same on every GPU.
    private const int Blocks = 2048, Threads = 256, Numbers = 8;

    private readonly CudaGpu _gpu;
    private readonly CudaKernel _squares, _norm, _step;
    private readonly long _count, _kept;
    private readonly ScalarType _narrowType;
    private readonly Tensor _sums; // (2, blocks) of float64

    /// <param name="gpu">Where the weights are.</param>
    /// <param name="count">All weights (N).</param>
    /// <param name="kept">Of these, the first, which have no narrow copy.</param>
    /// <param name="narrowType">The type of narrow gradients and of the working copy.</param>
    public CudaAdamW(CudaGpu gpu, long count, long kept, ScalarType narrowType = ScalarType.BFloat16)
    {
        if (kept < 0 || kept > count) throw new ArgumentException($"{kept} of {count} weights are kept in float32; expected 0 to {count}.", nameof(kept));
        (_gpu, _count, _kept, _narrowType) = (gpu, count, kept, narrowType);
        var define = $"NARROW={CudaTensor.TypeName(narrowType)}";
        (_squares, _norm, _step) = (gpu.Kernel("adamw.cu", "gradient_squares", define), gpu.Kernel("adamw.cu", "gradient_norm", define), gpu.Kernel("adamw.cu", "adamw", define));
        _sums = zeros([2, Blocks], dtype: ScalarType.Float64, device: new Device(DeviceType.CUDA, gpu.Index)).DetachFromDisposeScope();
        Norm = zeros([2], dtype: ScalarType.Float32, device: _sums.device).DetachFromDisposeScope();
    }

    /// <summary>The norm of the gradients as it was measured last, and what they are multiplied by so that it is not above the
    /// limit: [2] of float32, on the GPU. It stays this object's.</summary>
    public Tensor Norm { get; }

    [StructLayout(LayoutKind.Sequential)]
    private struct SquaresArguments
    {
        public nint Wide, Narrow;
        public long Count;
        public nint Sums;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct NormArguments
    {
        public nint Sums, Result;
        public int Count;
        public float Most;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct StepArguments
    {
        public nint Weights, Mean, Square, Wide, Narrow, Working, Norm;
        public long Count;
        public float Rate, Decay, Beta1, Beta2, Rest1, Rest2, RootScale, Epsilon;
        public int ClearWide, ClearNarrow;
    }

    /// <summary>Measures the gradients, before the first <see cref="Update"/> of a step.</summary>
    /// <param name="gradients">[kept] of float32.</param>
    /// <param name="earlier">[N - kept] of float32, or null.</param>
    /// <param name="narrow">[N - kept] of the narrow type, or null.</param>
    /// <param name="most">The greatest norm that is not clipped; null: any.</param>
    /// <exception cref="ArgumentException">A tensor has another device, type or shape, or there is no gradient of some weights.</exception>
    public void Measure(Tensor gradients, Tensor? earlier, Tensor? narrow, double? most)
    {
        Check(gradients, earlier, narrow, null);
        var stream = CudaStream.Current(_gpu.Index);
        var sums = CudaTensor.Pointer(_sums);
        _squares.Run(stream, new Launch(Blocks, Threads), new SquaresArguments { Wide = CudaTensor.Pointer(gradients), Count = _kept, Sums = sums });
        // With nothing narrow the second half of the sums stays zero.
        if (_count > _kept)
            _squares.Run(stream, new Launch(Blocks, Threads), new SquaresArguments
            {
                Wide = CudaTensor.Pointer(earlier), Narrow = CudaTensor.Pointer(narrow), Count = _count - _kept, Sums = sums + Blocks * sizeof(double),
            });
        _norm.Run(stream, new Launch(1, Threads), new NormArguments { Sums = sums, Result = CudaTensor.Pointer(Norm), Count = 2 * Blocks, Most = (float)(most ?? 0) });
    }

    /// <summary>Changes a range of the weights by their gradients, which are then zero, and of the working copy. Where the norm is
    /// no number, only the gradients change.</summary>
    /// <remarks>Without <paramref name="clears"/>, the gradients of the last micro-batch stay as they are: for whoever writes over
    /// them next. Those of earlier ones, which are always added to, are zero in any case.</remarks>
    /// <param name="weights">[N] of float32.</param>
    /// <param name="mean">The mean of the gradients, [N] of float32.</param>
    /// <param name="square">The mean of their squares, [N] of float32.</param>
    /// <param name="gradients">As they were measured.</param>
    /// <param name="earlier">As they were measured.</param>
    /// <param name="narrow">As they were measured.</param>
    /// <param name="working">[N - kept] of the narrow type, or null.</param>
    /// <param name="start">The first weight of the range.</param>
    /// <param name="count">Weights of the range.</param>
    /// <param name="step">What is done to them.</param>
    /// <param name="clears">Whether <paramref name="gradients"/> and <paramref name="narrow"/> are set to zero.</param>
    /// <exception cref="ArgumentException">A tensor has another device, type or shape, or the range is outside.</exception>
    public void Update(Tensor weights, Tensor mean, Tensor square, Tensor gradients, Tensor? earlier, Tensor? narrow, Tensor? working, long start, long count, in AdamWStep step, bool clears = true)
    {
        Check(gradients, earlier, narrow, working);
        CudaArguments.FitsContiguous(weights, nameof(weights), _gpu, ScalarType.Float32, "(N)", _count);
        CudaArguments.FitsContiguous(mean, nameof(mean), _gpu, ScalarType.Float32, "(N)", _count);
        CudaArguments.FitsContiguous(square, nameof(square), _gpu, ScalarType.Float32, "(N)", _count);
        if (start < 0 || count < 0 || start + count > _count) throw new ArgumentException($"The range {start} to {start + count} is not inside the {_count} weights.", nameof(start));

        var (correct1, correct2) = (1 - Math.Pow(step.Beta1, step.Step + 1), 1 - Math.Pow(step.Beta2, step.Step + 1));
        var stream = CudaStream.Current(_gpu.Index);
        // What is kept in float32 and what is not, one after the other.
        foreach (var (from, to) in new[] { (start, Math.Min(start + count, _kept)), (Math.Max(start, _kept), start + count) })
        {
            if (from >= to) continue;
            _step.Run(stream, new Launch(checked((int)((to - from + Threads * Numbers - 1) / (Threads * Numbers))), Threads), new StepArguments
            {
                Weights = Floats(weights), Mean = Floats(mean), Square = Floats(square), Wide = from < _kept ? Floats(gradients) : Rest(earlier),
                Narrow = Rest(narrow), Working = Rest(working), Norm = CudaTensor.Pointer(Norm), Count = to - from,
                Rate = (float)(step.LearningRate / correct1), Decay = (float)(step.LearningRate * step.WeightDecay), Beta1 = (float)step.Beta1, Beta2 = (float)step.Beta2,
                Rest1 = (float)(1 - step.Beta1), Rest2 = (float)(1 - step.Beta2), RootScale = (float)(1 / Math.Sqrt(correct2)), Epsilon = (float)step.Epsilon,
                ClearWide = clears || from >= _kept ? 1 : 0, ClearNarrow = clears ? 1 : 0,
            });

            nint Floats(Tensor t) => CudaTensor.Pointer(t) + (nint)from * sizeof(float);
            nint Rest(Tensor? t) => t is null || from < _kept ? 0 : CudaTensor.Pointer(t) + (nint)((from - _kept) * t.element_size());
        }
    }

    public void Dispose()
    {
        _sums.Dispose();
        Norm.Dispose();
    }

    private void Check(Tensor gradients, Tensor? earlier, Tensor? narrow, Tensor? working)
    {
        CudaArguments.FitsContiguous(gradients, nameof(gradients), _gpu, ScalarType.Float32, "(kept)", _kept);
        if (earlier is not null) CudaArguments.FitsContiguous(earlier, nameof(earlier), _gpu, ScalarType.Float32, "(N - kept)", _count - _kept);
        if (narrow is not null) CudaArguments.FitsContiguous(narrow, nameof(narrow), _gpu, _narrowType, "(N - kept)", _count - _kept);
        if (working is not null) CudaArguments.FitsContiguous(working, nameof(working), _gpu, _narrowType, "(N - kept)", _count - _kept);
        if (earlier is null && narrow is null && _count > _kept) throw new ArgumentException($"There are no gradients of {_count - _kept} weights.", nameof(narrow));
    }
}

/// <summary>What one step of AdamW does to a range of weights.</summary>
/// <param name="Step">The steps before this one.</param>
/// <param name="LearningRate">Of this range, in this step.</param>
/// <param name="Beta1">The memory of gradients.</param>
/// <param name="Beta2">The memory of their squares.</param>
/// <param name="Epsilon">Added to the root of the squares.</param>
/// <param name="WeightDecay">The decay of this range.</param>
internal readonly record struct AdamWStep(int Step, double LearningRate, double Beta1, double Beta2, double Epsilon, double WeightDecay);
