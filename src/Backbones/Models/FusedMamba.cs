using MambaVL.Cuda;
using MambaVL.Scan;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

namespace MambaVL.Models;

// All layers of a Mamba as one operation: what MambaLayer computes in some thirty operations a layer, of which autograd would
// keep every result, in four matrix products and four kernels. For autograd the whole stack is one node.
//
// The backward pass keeps of each layer, for each token and in the model's precision: the residual stream (d numbers, in its own
// precision), uz (2e), selected (r + 2n), y (e), and the scan's states (e n / 64 of float32); and of each layer A (e n of float32).
// The input of in_proj, the convolution's output and delta are computed again from these: they are cheap, and would double what is
// kept. The weights are not kept: the backward pass takes them as they are then, but for A. Autograd would refuse a weight that was
// changed in place between the two; here that is the caller's affair.
//
// Memory of activations, R = b * l:
//   normed, out     (R, d)        a row for each token
//   uz, u, delta, y (2e, R), (e, R)   a row for each channel, the rows of the batch inside
// so that every product is a plain one of two matrices, and the scan finds time contiguous.
//
// Gradients of parameters are added to Parameter.grad by the products that make them, or become it where there is none: in the
// place that a PlacedParameter has for it, whatever lies there. They do not pass through autograd: hooks of parameters and
// autograd.grad for parameters see nothing of them. That saves a copy of all gradients, in memory and in time.

/// <summary>The layers of a Mamba by kernels, without autograd in between.</summary>
/// <param name="model">The layers; they stay the model's.</param>
/// <param name="config">Their sizes.</param>
/// <param name="kernels">What runs them.</param>
internal sealed class FusedMamba(MambaBackbone model, MambaConfig config, IMambaKernels kernels)
{
    /// <summary>Lengths are padded to multiples of this: rows of 16 bytes, which the fast matrix products ask for.</summary>
    public const int Alignment = 8;

    /// <summary>What a layer leaves behind for its backward pass.</summary>
    public const int KeptTensors = 6;

    private int Layers => model.layers.Count;

    /// <summary>All layers, without the final norm: (b, l, d) -> (b, l, d), in the residual's precision.</summary>
    /// <param name="x">The embeddings, in the residual's precision.</param>
    /// <param name="state">The rows' memory, moved on by l; null: each row starts from nothing.</param>
    /// <param name="hiddenStates">Receives the input of each layer; null where gradients are recorded.</param>
    public Tensor Run(Tensor x, MambaMemory? state, IList<Tensor>? hiddenStates)
    {
        using var scope = NewDisposeScope();
        var (b, l, d, known) = (x.shape[0], x.shape[1], x.shape[2], hiddenStates?.Count ?? 0);
        // Padding on the right changes nothing before it. Where it would move the state on, the kernels stop at l.
        var padded = (l + Alignment - 1) / Alignment * Alignment;
        var input = (padded > l ? F.pad(x, [0, 0, 0, padded - l]) : x).contiguous();
        var anchor = is_grad_enabled() ? model.layers.parameters().FirstOrDefault(p => p.requires_grad) : null;
        var sum = is_grad_enabled() && (anchor is not null || x.requires_grad)
            ? FusedMambaFunction.Record(this, input, anchor)
            : Forward(input, (int)l, state, hiddenStates, null);
        sum = sum.view(b, padded, d);
        for (var i = known; i < hiddenStates?.Count; i++)
            hiddenStates[i] = hiddenStates[i].view(b, padded, d).narrow(1, 0, l).alias().MoveToOuterDisposeScope();
        return sum.narrow(1, 0, l).MoveToOuterDisposeScope();
    }

    /// <summary>The forward pass. Everything is in the caller's dispose scope.</summary>
    /// <param name="x">(b, l, d), contiguous, l a multiple of <see cref="Alignment"/>.</param>
    /// <param name="length">The positions that count.</param>
    /// <param name="state">The rows' memory, or null.</param>
    /// <param name="hiddenStates">Receives the input of each layer, (R, d).</param>
    /// <param name="kept">Receives what the backward pass needs, <see cref="KeptTensors"/> a layer; null: nothing is kept, and
    /// layers write over each other's results.</param>
    /// <returns>(R, d).</returns>
    public Tensor Forward(Tensor x, int length, MambaMemory? state, IList<Tensor>? hiddenStates, List<Tensor>? kept)
    {
        var w = new Workspace(this, x, length, backward: false);
        var residual = x.view(w.Tokens, w.Width);
        var sum = residual;
        for (var i = 0; i < Layers; i++)
        {
            var mixer = model.layers[i].mixer;
            if (i > 0 && (i == 1 || kept is not null || hiddenStates is not null)) sum = w.New(sum.dtype, w.Tokens, w.Width);
            Norm(w, model.layers[i].norm, residual, i > 0 ? w.Out : null, i > 0 ? sum : null);
            residual = sum;
            hiddenStates?.Add(sum);

            if (kept is not null || i == 0) w.NewResults();
            kernels.StateMatrix(new() { Log = CudaTensor.Pointer(mixer.A_log), A = CudaTensor.Pointer(w.A), Count = (int)(w.Channels * config.StateSize) });
            w.UZ.addmm_(mixer.in_proj.weight, w.NormedT, beta: 0);                                  // (2e, R)
            if (mixer.in_proj.bias is { } inBias) w.UZ.add_(inBias.unsqueeze(1));
            Convolve(w, mixer, state?.Convolution[i]);                                              // (e, R)
            w.Selected.addmm_(mixer.x_proj.weight, w.U, beta: 0);                                   // (r + 2n, R)
            w.Delta.addmm_(mixer.dt_proj.weight, w.Steps, beta: 0);                                 // (e, R)
            var (_, last, checkpoints) = kernels.Scan(Arguments(w, mixer, state?.Scan[i]), kept is not null, w.YTarget);
            state?.Scan[i].copy_(last);
            w.Out.addmm_(w.YT, mixer.out_proj.weight.t(), beta: 0);                                 // (R, d)
            if (mixer.out_proj.bias is { } outBias) w.Out.add_(outBias);
            if (kept is not null) kept.AddRange([sum, w.UZ, w.Selected, w.Y, w.A, checkpoints!]);
            else last.Dispose();
        }
        return residual + w.Out;
    }

    /// <summary>The backward pass: adds to the gradients of the parameters that want one.</summary>
    /// <param name="x">As in the forward pass.</param>
    /// <param name="kept">What that one kept.</param>
    /// <param name="gradient">(R, d).</param>
    /// <returns>The gradient of x, (b, l, d), in the caller's dispose scope.</returns>
    public Tensor Backward(Tensor x, IReadOnlyList<Tensor> kept, Tensor gradient)
    {
        var w = new Workspace(this, x, (int)x.shape[1], backward: true);
        w.Stream.copy_(gradient.view(w.Tokens, w.Width));
        if (!ReferenceEquals(w.OutGradient, w.Stream)) w.OutGradient.copy_(w.Stream);
        for (var i = Layers - 1; i >= 0; i--)
        {
            using var scope = NewDisposeScope();
            var (norm, mixer) = (model.layers[i].norm, model.layers[i].mixer);
            var at = i * KeptTensors;
            var (sum, checkpoints) = (kept[at], kept[at + 5]);
            w.Take(kept[at + 1], kept[at + 2], kept[at + 3], kept[at + 4]);

            // What the forward pass did not keep.
            Convolve(w, mixer, null);
            w.Delta.addmm_(mixer.dt_proj.weight, w.Steps, beta: 0);

            // out_proj and the scan, with the gate.
            Add(mixer.out_proj.weight, w.OutGradientT, w.YT);
            if (mixer.out_proj.bias is { requires_grad: true } outBias) Add(outBias, w.OutGradient.sum([0L]));
            w.YGradient.addmm_(mixer.out_proj.weight.t(), w.OutGradientT, beta: 0);                 // (e, R)
            var gradients = kernels.ScanBackward(Arguments(w, mixer, null), checkpoints, w.YGradientInTime, w.ScanTargets);
            AddFloats(w, mixer, gradients[2]!, gradients[5]!, gradients[7]!);

            // dt_proj and x_proj.
            Add(mixer.dt_proj.weight, w.DeltaGradient, w.Steps.t());
            w.StepsGradient.addmm_(mixer.dt_proj.weight.t(), w.DeltaGradient, beta: 0);             // (r, R)
            Add(mixer.x_proj.weight, w.SelectedGradient, w.UT);
            // The convolution adds this to the scan's gradient of u as it reads both. Delta's memory, which has done its work.
            w.Delta.addmm_(mixer.x_proj.weight.t(), w.SelectedGradient, beta: 0);                   // (e, R)

            // The convolution, in_proj, and the norm, which gives its output once more for in_proj's weight.
            ConvolveBackward(w, mixer);
            if (mixer.in_proj.bias is { requires_grad: true } inBias) Add(inBias, w.UZGradient.sum([1L]));
            w.NormedGradient.addmm_(w.UZGradientT, mixer.in_proj.weight, beta: 0);                  // (R, d)
            NormBackward(w, norm, sum, mixer.in_proj.weight.requires_grad);
            Add(mixer.in_proj.weight, w.UZGradient, w.Normed);
        }
        return w.Stream.view(x.shape);
    }

    private void Norm(Workspace w, Norm norm, Tensor residual, Tensor? added, Tensor? sum) => kernels.Norm(new()
    {
        Residual = CudaTensor.Pointer(residual), X = CudaTensor.Pointer(added), Weight = CudaTensor.Pointer(norm.weight), Bias = CudaTensor.Pointer(norm.bias),
        Sum = CudaTensor.Pointer(sum), Normed = CudaTensor.Pointer(w.Normed), Rows = w.Tokens, Epsilon = (float)norm.eps,
    });

    private void NormBackward(Workspace w, Norm norm, Tensor sum, bool again)
    {
        var (weight, bias) = (new Target(norm.weight), new Target(norm.bias));
        var (part, add) = (CudaTensor.Pointer(w.NormParts), Target.AddToBoth(weight, bias));
        kernels.NormBackward(new()
        {
            Sum = CudaTensor.Pointer(sum), Weight = CudaTensor.Pointer(norm.weight), Bias = CudaTensor.Pointer(norm.bias),
            GradNormed = CudaTensor.Pointer(w.NormedGradient), GradSum = CudaTensor.Pointer(w.Stream), GradResidual = CudaTensor.Pointer(w.Stream),
            GradX = ReferenceEquals(w.OutGradient, w.Stream) ? 0 : CudaTensor.Pointer(w.OutGradient), Normed = again ? CudaTensor.Pointer(w.Normed) : 0,
            PartWeight = weight.Memory is null ? 0 : part, PartBias = bias.Memory is null ? 0 : part + (nint)(kernels.NormBlocks * w.Width * sizeof(float)),
            Rows = w.Tokens, Epsilon = (float)norm.eps,
        }, weight.Pointer, bias.Pointer, add);
        weight.Written();
        bias.Written();
    }

    // u of uz.
    private void Convolve(Workspace w, MambaMixer mixer, Tensor? state)
    {
        var address = CudaTensor.Pointer(state);
        kernels.Convolve(new()
        {
            U = CudaTensor.Pointer(w.UZ), Weight = CudaTensor.Pointer(mixer.conv1d.weight), Bias = CudaTensor.Pointer(mixer.conv1d.bias), Y = CudaTensor.Pointer(w.U),
            State = address, NextState = address, StateRow = state?.stride(0) ?? 0,
            URow = w.Padded, UChannel = w.Tokens, YRow = w.Padded, YChannel = w.Tokens, Rows = (int)w.Rows, Channels = (int)w.Channels, Length = w.Length,
        });
    }

    private void ConvolveBackward(Workspace w, MambaMixer mixer)
    {
        var (weight, bias) = (new Target(mixer.conv1d.weight), new Target(mixer.conv1d.bias));
        var add = Target.AddToBoth(weight, bias);
        kernels.ConvolveBackward(new()
        {
            U = CudaTensor.Pointer(w.UZ), Weight = CudaTensor.Pointer(mixer.conv1d.weight), Bias = CudaTensor.Pointer(mixer.conv1d.bias),
            GradY = CudaTensor.Pointer(w.UGradient), GradYMore = CudaTensor.Pointer(w.Delta), GradU = CudaTensor.Pointer(w.UZGradient), GradWeight = weight.Pointer, GradBias = bias.Pointer,
            URow = w.Padded, UChannel = w.Tokens, GradYRow = w.Padded, GradYChannel = w.Tokens, GradURow = w.Padded, GradUChannel = w.Tokens,
            Rows = (int)w.Rows, Channels = (int)w.Channels, Length = w.Length, Add = add ? 1 : 0,
        });
        weight.Written();
        bias.Written();
    }

    private static ScanArguments Arguments(Workspace w, MambaMixer mixer, Tensor? state)
        => new(w.UInTime, w.DeltaInTime, w.A, w.B, w.C, mixer.D, w.Z, mixer.dt_proj.bias, true, state);

    private void AddFloats(Workspace w, MambaMixer mixer, Tensor gradA, Tensor gradD, Tensor gradBias)
    {
        var (log, d, bias) = (new Target(mixer.A_log), new Target(mixer.D), new Target(mixer.dt_proj.bias));
        if (log.Memory is null && d.Memory is null && bias.Memory is null) return;
        kernels.FloatGradients(new()
        {
            A = CudaTensor.Pointer(w.A), GradA = CudaTensor.Pointer(gradA), GradD = CudaTensor.Pointer(gradD), GradBias = CudaTensor.Pointer(gradBias),
            Log = log.Pointer, D = d.Pointer, Bias = bias.Pointer, Channels = (int)w.Channels, States = (int)config.StateSize,
            AddLog = log.Adds ? 1 : 0, AddD = d.Adds ? 1 : 0, AddBias = bias.Adds ? 1 : 0,
        });
        log.Written();
        d.Written();
        bias.Written();
    }

    // Adds a b to the gradient.
    private static void Add(Parameter parameter, Tensor a, Tensor b)
    {
        var target = new Target(parameter);
        target.Memory?.addmm_(a, b, beta: target.Adds ? 1 : 0);
        target.Written();
    }

    private static void Add(Parameter parameter, Tensor value)
    {
        var target = new Target(parameter);
        if (target.Adds) target.Memory!.add_(value);
        else target.Memory?.copy_(value);
        target.Written();
    }

    /// <summary>The memory of a parameter's gradient, to write to or to add to. Only what was written becomes the gradient: a pass
    /// that fails before leaves none, and not what lay there.</summary>
    private readonly struct Target
    {
        private readonly Parameter? _parameter;

        /// <param name="parameter">None, or one that wants no gradient: there is no memory.</param>
        public Target(Parameter? parameter)
        {
            if (parameter is not { requires_grad: true }) return;
            _parameter = parameter;
            Memory = parameter.grad;
            Adds = Memory is not null;
            Memory ??= parameter is PlacedParameter placed ? placed.Place : empty_like(parameter);
        }

        /// <summary>In the caller's dispose scope, or its owner's.</summary>
        public Tensor? Memory { get; }

        /// <summary>Whether it holds a gradient.</summary>
        public bool Adds { get; }

        /// <summary>For a kernel; 0 where no gradient is wanted.</summary>
        public nint Pointer => Memory is null || (Memory.dtype == _parameter!.dtype && Memory.is_contiguous()) ? CudaTensor.Pointer(Memory)
            : throw new InvalidOperationException($"A gradient is {Memory.dtype} with strides [{string.Join(", ", Memory.stride())}]; expected {_parameter.dtype} and contiguous, to be added to.");

        /// <summary>For a kernel that adds to both or to none: whether it adds. Where one of two is there, the other becomes zero.</summary>
        public static bool AddToBoth(Target a, Target b)
        {
            if (a.Memory is not null && b.Memory is not null && a.Adds != b.Adds) (a.Adds ? b : a).Memory!.zero_();
            return a.Adds || b.Adds;
        }

        /// <summary>What writes the memory was launched: it is the gradient.</summary>
        public void Written()
        {
            if (_parameter is PlacedParameter placed)
            {
                // A gradient elsewhere stays there, and was added to.
                if (!Adds || placed.IsInPlace) placed.Written(anew: !Adds);
            }
            else if (!Adds && _parameter is not null) _parameter.grad = Memory;
        }
    }

    /// <summary>The activations of one layer, and of the next, and of the next: memory and views of it that are made once. In the
    /// dispose scope of whoever makes it.</summary>
    private sealed class Workspace
    {
        private readonly Device _device;
        private readonly ScalarType _type;
        private readonly long _states, _rank;
        private Tensor? _uz, _selected, _y, _a;

        public Workspace(FusedMamba owner, Tensor x, int length, bool backward)
        {
            var config = owner.Config;
            (_device, _type) = (x.device, owner.Model.embedding.weight.dtype);
            (Rows, Padded, Length, Tokens, Width, Channels) = (x.shape[0], x.shape[1], length, x.shape[0] * x.shape[1], x.shape[2], config.InnerSize);
            (_states, _rank) = (config.StateSize, config.TimeStepRank);
            Normed = New(_type, Tokens, Width);
            NormedT = Normed.t();
            U = New(_type, Channels, Tokens);
            Delta = New(_type, Channels, Tokens);
            (UInTime, DeltaInTime) = (InTime(U, 0, Channels), InTime(Delta, 0, Channels));
            Out = Normed;
            if (!backward)
            {
                Out = New(_type, Tokens, Width);
                return;
            }
            UT = U.t();
            Stream = New(x.dtype, Tokens, Width);
            OutGradient = x.dtype == _type ? Stream : New(_type, Tokens, Width);
            OutGradientT = OutGradient.t();
            YGradient = New(_type, Channels, Tokens);
            YGradientInTime = InTime(YGradient, 0, Channels);
            UGradient = New(_type, Channels, Tokens);
            DeltaGradient = New(_type, Channels, Tokens);
            UZGradient = New(_type, 2 * Channels, Tokens);
            UZGradientT = UZGradient.t();
            SelectedGradient = New(_type, _rank + 2 * _states, Tokens);
            StepsGradient = SelectedGradient.narrow(0, 0, _rank);
            ScanTargets = new(InTime(UGradient, 0, Channels), InTime(DeltaGradient, 0, Channels), InTime(UZGradient, Channels, Channels),
                InTime(SelectedGradient, _rank, _states), InTime(SelectedGradient, _rank + _states, _states));
            NormedGradient = New(_type, Tokens, Width);
            NormParts = New(ScalarType.Float32, 2, owner.Kernels.NormBlocks, Width);
        }

        // b, l with padding, l, R, d, e
        public long Rows { get; }
        public long Padded { get; }
        public int Length { get; }
        public long Tokens { get; }
        public long Width { get; }
        public long Channels { get; }

        // What any layer computes anew.
        public Tensor Normed { get; }           // (R, d)
        public Tensor NormedT { get; }          // (d, R)
        public Tensor U { get; }                // (e, R)
        public Tensor UInTime { get; }          // (b, e, l)
        public Tensor Delta { get; }            // (e, R)
        public Tensor DeltaInTime { get; }      // (b, e, l)
        public Tensor Out { get; }              // (R, d)

        // What the backward pass needs of a layer.
        public Tensor UZ => _uz!;               // (2e, R)
        public Tensor Selected => _selected!;   // (r + 2n, R)
        public Tensor Y => _y!;                 // (e, R)
        public Tensor A => _a!;                 // (e, n)
        public Tensor YT { get; private set; } = null!;          // (R, e)
        public Tensor Z { get; private set; } = null!;           // (b, e, l)
        public Tensor Steps { get; private set; } = null!;       // (r, R)
        public Tensor B { get; private set; } = null!;           // (b, n, l)
        public Tensor C { get; private set; } = null!;           // (b, n, l)
        public ScanTargets YTarget { get; private set; } = null!; // (b, e, l)

        // Gradients, each of what it is called after.
        public Tensor UT { get; } = null!;                // (R, e), of u itself
        public Tensor Stream { get; } = null!;            // (R, d), of the residual stream
        public Tensor OutGradient { get; } = null!;       // (R, d), the same in the model's precision
        public Tensor OutGradientT { get; } = null!;      // (d, R)
        public Tensor YGradient { get; } = null!;         // (e, R)
        public Tensor YGradientInTime { get; } = null!;   // (b, e, l)
        public Tensor UGradient { get; } = null!;         // (e, R)
        public Tensor DeltaGradient { get; } = null!;     // (e, R)
        public Tensor UZGradient { get; } = null!;        // (2e, R)
        public Tensor UZGradientT { get; } = null!;       // (R, 2e)
        public Tensor SelectedGradient { get; } = null!;  // (r + 2n, R)
        public Tensor StepsGradient { get; } = null!;     // (r, R)
        public ScanTargets ScanTargets { get; } = null!;
        public Tensor NormedGradient { get; } = null!;    // (R, d)
        public Tensor NormParts { get; } = null!;         // (2, blocks, d)

        public Tensor New(ScalarType type, params long[] shape) => empty(shape, dtype: type, device: _device);

        /// <summary>New memory for what a backward pass will need.</summary>
        public void NewResults() => Take(New(_type, 2 * Channels, Tokens), New(_type, _rank + 2 * _states, Tokens), New(_type, Channels, Tokens),
            New(ScalarType.Float32, Channels, _states));

        /// <summary>Makes these the layer's.</summary>
        public void Take(Tensor uz, Tensor selected, Tensor y, Tensor a)
        {
            (_uz, _selected, _y, _a) = (uz, selected, y, a);
            YT = y.t();
            Z = InTime(uz, Channels, Channels);
            Steps = selected.narrow(0, 0, _rank);
            (B, C) = (InTime(selected, _rank, _states), InTime(selected, _rank + _states, _states));
            YTarget = new(InTime(y, 0, Channels));
        }

        // (.., R) -> (b, count, l) of the rows from `first` on.
        private Tensor InTime(Tensor t, long first, long count) => t.as_strided([Rows, count, Length], [Padded, Tokens, 1], first * Tokens);
    }

    private MambaConfig Config => config;
    private MambaBackbone Model => model;
    private IMambaKernels Kernels => kernels;
}
