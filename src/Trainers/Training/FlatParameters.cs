using MambaVL.Checkpoints;
using MambaVL.Cuda;
using MambaVL.Models;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MambaVL.Training;

/// <summary>A range of the flat weights that the optimiser treats alike.</summary>
/// <param name="Start">The first element.</param>
/// <param name="Count">Elements.</param>
/// <param name="Share">The share of the learning rate.</param>
/// <param name="Decays">Whether weight decay acts on it.</param>
internal readonly record struct ParameterSegment(long Start, long Count, double Share, bool Decays);

/// <summary>All weights that learn, one after the other in one tensor, and their gradients in another.</summary>
/// <remarks>
/// A model has hundreds of parameters, and an operation through TorchSharp costs some 10 us however small it is. So a
/// parameter is a view of a flat tensor, and its gradient, set before the first backward pass, a view of another, into which
/// autograd then adds in place. Setting to zero, measuring, clipping and updating take a dozen operations in all.
/// <code>
/// master     float32   [ kept in float32 | the rest ]      what learns
/// working    bfloat16                    [ the rest ]      what the model computes with; where that is float32, the master
/// gradients  float32   [ kept in float32 | the rest ]      of the whole step
/// narrow     bfloat16                    [ the rest ]      of one micro-batch, added to the above after it
/// </code>
/// Adding the micro-batches in float32 keeps what bfloat16's 8 bits would lose. Where a kernel updates the weights, it adds the
/// last micro-batch itself, and the rest of the float32 gradients is there only once a step has more than one.
///
/// A gradient that the layers of a Mamba wrote as one operation (<see cref="FusedMamba"/>) is not set to zero once it was used,
/// which would be a pass over memory: it is released (<see cref="PlacedParameter"/>), <c>grad</c> is null, and the next backward
/// pass writes over what lies in its place. If that pass is another one, or none, <see cref="Settle"/> finds it: before anything
/// here reads gradients, those that autograd has made elsewhere come to their places, and where there is none the place becomes
/// zero. So <c>grad</c> never shows a used gradient; only <see cref="Gradients"/>, between a step and that, may.
/// </remarks>
internal sealed class FlatParameters : ParameterSource, IDisposable
{
    // Rows of matrices then lie at multiples of 256 bytes, as libtorch's own tensors do and matrix products like.
    private const long Alignment = 64;

    private readonly Dictionary<string, (PlannedParameter Planned, int Index)> _places = [];
    private readonly long[] _starts;             // of each parameter, as they lie; and the end
    private readonly PlacedParameter?[] _taken;  // null: not taken, or adopted
    private readonly Dictionary<string, Tensor> _frozen = [];
    private readonly Tensor? _working, _narrow;
    private Tensor? _earlier;    // of earlier micro-batches, the rest, for the kernel
    private readonly long _kept; // elements of the first part
    private readonly ScalarType _precision;

    /// <param name="plan">The model's parameters.</param>
    /// <param name="shareOf">By name: the share of the learning rate, 0 where it does not learn.</param>
    /// <param name="initial">By name: the first value, which stays the giver's; null for zeros.</param>
    /// <param name="precision">What the model computes in.</param>
    /// <param name="device">Where.</param>
    public FlatParameters(IReadOnlyList<PlannedParameter> plan, Func<string, double> shareOf, Func<string, Tensor?> initial, ScalarType precision, Device device)
    {
        _precision = precision;
        using var scope = NewDisposeScope();
        using var noGradients = no_grad();
        var learning = plan.Where(p => shareOf(p.Name) > 0)
            .OrderByDescending(p => p.KeepFloat32 || precision == ScalarType.Float32).ThenBy(p => shareOf(p.Name)).ThenBy(Decays).ToList(); // stable
        var (segments, starts) = (new List<ParameterSegment>(), new List<long>());
        long at = 0;
        foreach (var p in learning)
        {
            _places.Add(p.Name, (p, _places.Count));
            starts.Add(at);
            var length = (p.Count + Alignment - 1) / Alignment * Alignment;
            if (segments.Count > 0 && segments[^1] is var last && last.Share == shareOf(p.Name) && last.Decays == Decays(p))
                segments[^1] = last with { Count = last.Count + length };
            else segments.Add(new(at, length, shareOf(p.Name), Decays(p)));
            at += length;
            if (p.KeepFloat32 || precision == ScalarType.Float32) _kept = at;
        }
        if (at == 0) throw new ArgumentException("No parameter of the model is to learn.", nameof(shareOf));
        (Names, Segments, Device) = ([.. learning.Select(p => p.Name)], segments, device);
        (_starts, _taken) = ([.. starts, at], new PlacedParameter?[learning.Count]);
        Master = Zeros(at, ScalarType.Float32);
        Gpu = FusedChoice.For(Master);
        Gradients = Zeros(Gpu is null ? at : _kept, ScalarType.Float32);
        if (_kept < at)
        {
            _working = Zeros(at - _kept, precision);
            _narrow = Zeros(at - _kept, precision);
        }
        foreach (var p in learning)
        {
            using var one = NewDisposeScope(); // values that are made as they are asked for are not to gather here
            if (initial(p.Name) is { } value) View(Master, p.Name).copy_(value);
        }
        foreach (var p in plan.Where(p => shareOf(p.Name) == 0))
        {
            var type = p.KeepFloat32 ? ScalarType.Float32 : precision;
            var value = initial(p.Name);
            _frozen.Add(p.Name, (value is null ? zeros(p.Shape, type, device) : value.detach().to(type, device)).DetachFromDisposeScope());
        }
        Refresh();

        Tensor Zeros(long count, ScalarType type) => zeros([count], type, device).DetachFromDisposeScope();
    }

    public Device Device { get; }

    /// <summary>The parameters that learn.</summary>
    public IReadOnlyList<string> Names { get; }

    /// <summary>Ranges with one learning rate and decay; they cover everything, in order.</summary>
    public IReadOnlyList<ParameterSegment> Segments { get; }

    /// <summary>The weights, [N] of float32. Some elements between parameters are always zero.</summary>
    public Tensor Master { get; }

    /// <summary>The GPU whose kernel updates the weights; null: tensor operations do.</summary>
    public CudaGpu? Gpu { get; }

    /// <summary>The gradients of the step, as the weights lie; for a kernel, of those kept in float32. To be read after
    /// <see cref="Gather"/> or <see cref="Settle"/>.</summary>
    public Tensor Gradients { get; }

    /// <summary>A parameter's part of a flat tensor that lies as the weights do; the caller owns the view.</summary>
    public Tensor View(Tensor flat, string name)
    {
        var (planned, index) = _places[name];
        using var part = flat.narrow(0, _starts[index], planned.Count);
        return part.view(planned.Shape);
    }

    /// <inheritdoc/>
    /// <remarks>Each parameter can be taken once: the model that is built over this owns its views.</remarks>
    public override Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32)
    {
        using var noGradients = no_grad();
        if (_frozen.TryGetValue(name, out var value)) return new Parameter(value.detach(), requires_grad: false);
        var (planned, index) = _places[name];
        var start = _starts[index];
        var isNarrow = start >= _kept;
        return _taken[index] = new(Part(isNarrow ? _working! : Master), Part(isNarrow ? _narrow! : Gradients).DetachFromDisposeScope());

        // Detached: a view by itself, of the same memory.
        Tensor Part(Tensor flat)
        {
            using var scope = NewDisposeScope();
            return flat.narrow(0, start - (isNarrow ? _kept : 0), planned.Count).view(shape).detach().MoveToOuterDisposeScope();
        }
    }

    /// <summary>Makes a parameter that was built elsewhere, float32 as its plan says, a view of the weights; its values come along.</summary>
    public void Adopt(string name, Parameter parameter)
    {
        using var noGradients = no_grad();
        using var scope = NewDisposeScope();
        var view = View(Master, name);
        view.copy_(parameter);
        parameter.set_(view.detach());
        parameter.grad = View(Gradients, name).detach().DetachFromDisposeScope();
    }

    /// <summary>After a backward pass, before anything reads the flat gradients: every gradient is in its place.</summary>
    public void Settle()
    {
        foreach (var p in _taken) p?.Settle();
    }

    /// <summary>After the backward pass of a micro-batch: its gradients are part of the step's.</summary>
    public void Gather()
    {
        Settle();
        if (_narrow is null) return;
        if (Gpu is null)
        {
            using var part = Gradients.narrow(0, _kept, _narrow.shape[0]);
            part.add_(_narrow);
        }
        else (_earlier ??= zeros(_narrow.shape, ScalarType.Float32, Device).DetachFromDisposeScope()).add_(_narrow);
        Clear(_narrow, _kept, _starts[^1]);
    }

    /// <summary>After a step of tensor operations: there are no gradients.</summary>
    public void Clear()
    {
        Clear(Gradients, 0, _kept);
        if (Gradients.shape[0] == _kept) return;
        using var rest = Gradients.narrow(0, _kept, Gradients.shape[0] - _kept); // of all micro-batches: always added to
        rest.zero_();
    }

    /// <summary>What the kernel needs to update these.</summary>
    public CudaAdamW? CreateKernels() => Gpu is null ? null : new(Gpu, Master.shape[0], _kept, _narrow?.dtype ?? ScalarType.BFloat16);

    /// <summary>After the last backward pass of a step, by kernels: clips the gradients, updates the weights and what the model
    /// computes with, and begins with no gradients again.</summary>
    /// <returns>The norm of the gradients, a scalar on the device.</returns>
    public Tensor Update(CudaAdamW kernels, AdamW optimizer, double? clip, Func<ParameterSegment, AdamWStep> step)
    {
        Settle();
        kernels.Measure(Gradients, _earlier, _narrow, clip);
        foreach (var segment in Segments)
        {
            var now = step(segment);
            foreach (var (start, count, stays) in Pieces(segment.Start, segment.Start + segment.Count))
                kernels.Update(Master, optimizer.Mean, optimizer.Square, Gradients, _earlier, _narrow, _working, start, count, now, clears: !stays);
        }
        Release(0, _starts[^1]);
        return kernels.Norm.select(0, 0);
    }

    /// <summary>After the weights were changed: the model computes with the new ones.</summary>
    public void Refresh()
    {
        if (_working is null) return;
        using var part = Master.narrow(0, _kept, _working.shape[0]);
        _working.copy_(part);
    }

    /// <summary>The values of a model that outlives this: copies of the given weights and of what did not learn.</summary>
    /// <param name="weights">Flat, as <see cref="Master"/>.</param>
    /// <param name="precision">The model's; parameters that are kept in float32 stay so.</param>
    public ParameterSource Copies(Tensor weights, ScalarType precision) => new Copy(this, weights, precision);

    public void Dispose()
    {
        Master.Dispose();
        Gradients.Dispose();
        _working?.Dispose();
        _narrow?.Dispose();
        _earlier?.Dispose();
        foreach (var t in _frozen.Values) t.Dispose();
        foreach (var p in _taken) p?.Place.Dispose();
    }

    // Without the gradients from start on to end, which begin the given tensor: zeros, where they are not released.
    private void Clear(Tensor flat, long start, long end)
    {
        foreach (var (from, count, stays) in Pieces(start, end))
        {
            if (stays) continue;
            using var part = flat.narrow(0, from - start, count);
            part.zero_();
        }
        Release(start, end);
    }

    private void Release(long start, long end)
    {
        for (var i = 0; i < _taken.Length; i++)
            if (_starts[i] >= start && _starts[i] < end && _taken[i] is { IsWritten: true } p) p.Release();
    }

    // The weights from start on to end in as few pieces as can be, each with whether its gradients may stay as they are when they
    // were used, for they are released then.
    private List<(long Start, long Count, bool Stays)> Pieces(long start, long end)
    {
        var pieces = new List<(long Start, long Count, bool Stays)>();
        for (var i = 0; i < _taken.Length; i++)
        {
            if (_starts[i] < start || _starts[i] >= end) continue;
            var (length, stays) = (_starts[i + 1] - _starts[i], _taken[i] is { IsWritten: true });
            if (pieces.Count > 0 && pieces[^1] is var last && last.Stays == stays) pieces[^1] = last with { Count = last.Count + length };
            else pieces.Add((_starts[i], length, stays));
        }
        return pieces;
    }

    // As in most recipes: norms, biases and D have no reason to be small, nor has A_log, of which Mamba's authors say so.
    private static bool Decays(PlannedParameter p) => p.Shape.Length >= 2 && !p.Name.EndsWith("A_log", StringComparison.Ordinal);

    private sealed class Copy(FlatParameters owner, Tensor weights, ScalarType precision) : ParameterSource
    {
        public override Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32)
        {
            using var noGradients = no_grad();
            using var scope = NewDisposeScope();
            var value = owner._frozen.TryGetValue(name, out var frozen) ? frozen : owner.View(weights, name);
            var copy = value.to(keepFloat32 ? ScalarType.Float32 : precision, owner.Device, copy: true);
            return new Parameter(copy.MoveToOuterDisposeScope(), requires_grad: false);
        }
    }
}
