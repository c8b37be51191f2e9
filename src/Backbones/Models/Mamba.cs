using System.Text.Json.Nodes;
using MambaVL.Checkpoints;
using MambaVL.Cuda;
using MambaVL.Kernels;
using MambaVL.Scan;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

namespace MambaVL.Models;

// Mamba (arXiv 2312.00752). Figure 3 of the paper is one layer; a model is an embedding, layers with a norm before each
// and a residual around each, a norm, and a head that is the embedding table again.
//
//   here      paper   what it is
//   b         B       rows
//   l         L       positions read by this call
//   d                 d_model, the width of the residual stream
//   e         D = ED  expand * d, the channels inside a layer
//   n         N       d_state, values that each channel remembers
//   r         R       dt_rank, the width that step sizes are projected through
//   k                 d_conv, positions that the convolution sees
//   v                 rows of the vocabulary
//   delta     Δ       step sizes
//   A, B, C   A, B, C what the state keeps, what enters it, what is read from it
//   D         D       what of the input goes past the state
//   z                 the gate: the figure's right branch
//
// Modules are named as the checkpoint's keys are.

/// <summary>The sizes and switches of a Mamba. <see cref="LanguageConfig"/> reads them from config.json.</summary>
public sealed record MambaConfig : LanguageConfig
{
    /// <summary>Values that each channel remembers (d_state, n). Default 16.</summary>
    public long StateSize { get; init; } = 16;

    /// <summary>Positions that the convolution sees (d_conv, k). Default 4.</summary>
    public long ConvolutionSize { get; init; } = 4;

    /// <summary>Channels inside a layer, as a multiple of the hidden size. Default 2.</summary>
    public long Expand { get; init; } = 2;

    /// <summary>The width that step sizes are projected through (dt_rank, r). Default: a sixteenth of the hidden size,
    /// rounded up.</summary>
    public long TimeStepRank { get => field > 0 ? field : (HiddenSize + 15) / 16; init; }

    /// <summary>The kind of every norm. Default RMSNorm; Mamba-VL was trained with LayerNorm.</summary>
    public NormKind Norm { get; init; } = NormKind.RmsNorm;

    /// <summary>Added inside every norm. Default 1e-5.</summary>
    public double NormEpsilon { get; init; } = 1e-5;

    /// <summary>Whether the residual stream is float32 in a model of a lower precision. Default true.</summary>
    public bool ResidualInFloat32 { get; init; } = true;

    /// <summary>Whether the projections into and out of a layer have a bias. Default false.</summary>
    public bool ProjectionBias { get; init; }

    /// <summary>Whether the convolution has a bias. Default true.</summary>
    public bool ConvolutionBias { get; init; } = true;

    /// <inheritdoc/>
    public override bool TieEmbeddings { get; init; } = true;

    /// <summary>The standard deviation of the embeddings that training starts from. Default 0.02.</summary>
    public double InitializerRange { get; init; } = 0.02;

    /// <summary>Channels inside a layer (d_inner, e).</summary>
    public long InnerSize => Expand * HiddenSize;

    /// <inheritdoc/>
    public override CheckpointNames Names => CheckpointNames.Mamba;

    /// <inheritdoc/>
    public override LanguageModel Create(ParameterScope p) => new Mamba(this, p);

    /// <inheritdoc/>
    /// <remarks>In the dialect of state-spaces.</remarks>
    public override JsonObject ToJson() => new()
    {
        ["d_model"] = HiddenSize,
        ["n_layer"] = LayerCount,
        ["vocab_size"] = VocabularySize,
        ["ssm_cfg"] = new JsonObject
        {
            ["d_state"] = StateSize,
            ["d_conv"] = ConvolutionSize,
            ["expand"] = Expand,
            ["dt_rank"] = TimeStepRank,
            ["bias"] = ProjectionBias,
            ["conv_bias"] = ConvolutionBias,
        },
        ["rms_norm"] = Norm == NormKind.RmsNorm,
        ["norm_epsilon"] = NormEpsilon,
        ["residual_in_fp32"] = ResidualInFloat32,
        ["tie_embeddings"] = TieEmbeddings,
        ["initializer_range"] = InitializerRange,
    };

    internal void Check()
    {
        CheckSizes();
        Positive(StateSize);
        Positive(ConvolutionSize);
        Positive(Expand);
        Positive(NormEpsilon);
    }
}

/// <summary>Mamba with its head: the language model of Mamba-VL.</summary>
public sealed class Mamba : LanguageModel
{
    internal readonly MambaBackbone backbone;
    internal readonly Linear? lm_head; // absent where the head is the embedding table
    private readonly MambaDecoder _decoder;
    private readonly MambaCudaDecoder _cudaDecoder;

    /// <summary>Builds the model over the parameters of <paramref name="p"/>: a checkpoint's, or first values.</summary>
    /// <exception cref="ArgumentException">A size is not positive.</exception>
    public Mamba(MambaConfig config, ParameterScope p) : base(nameof(Mamba))
    {
        ArgumentNullException.ThrowIfNull(config);
        config.Check();
        Config = config;
        backbone = new(p[nameof(backbone)], config);
        if (!config.TieEmbeddings)
            lm_head = new(p[nameof(lm_head)], config.HiddenSize, config.VocabularySize, hasBias: false);
        (_decoder, _cudaDecoder) = (new(this), new(this));
        RegisterComponents();
    }

    /// <summary>What the model was built from.</summary>
    public MambaConfig Config { get; }

    /// <inheritdoc/>
    public override long HiddenSize => Config.HiddenSize;

    /// <inheritdoc/>
    public override long VocabularySize => Config.VocabularySize;

    /// <inheritdoc/>
    public override Tensor Embed(Tensor ids)
    {
        CheckIds(ids, rank: 2);
        return backbone.embedding.forward(ids);
    }

    internal override Tensor EmbedTrusted(Tensor ids) => backbone.embedding.forward(ids);

    internal override Tensor LogitsAt(Tensor embeddings, Tensor positions)
    {
        using var scope = NewDisposeScope();
        var x = backbone.Layers(embeddings, null, null).flatten(0, 1);                       // (b * l, d)
        return Head(backbone.norm_f.forward(x.index_select(0, positions))).MoveToOuterDisposeScope(); // (p, v)
    }

    /// <inheritdoc/>
    public override Tensor Forward(Tensor embeddings, Tensor? attentionMask = null, IList<Tensor>? hiddenStates = null)
    {
        CheckEmbeddings(embeddings, oneRow: false);
        CheckMask(attentionMask, embeddings);
        using var scope = NewDisposeScope();
        if (attentionMask is not null) CheckPaddingIsOnTheRight(attentionMask);
        var x = backbone.norm_f.forward(backbone.Layers(embeddings, null, hiddenStates));
        hiddenStates?.Add(x.alias().MoveToOuterDisposeScope());
        return Head(x).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    /// <remarks>The state of a Mamba has the same size however long the row is.</remarks>
    public override DecoderState CreateState(int maxLength) => MambaState.Create(this, 1, maxLength)[0];

    /// <inheritdoc/>
    public override IReadOnlyList<DecoderState> CreateStates(int count, int maxLength) => MambaState.Create(this, count, maxLength);

    /// <inheritdoc/>
    public override Tensor Prefill(Tensor embeddings, DecoderState state)
    {
        CheckEmbeddings(embeddings, oneRow: true);
        return PrefillTogether(embeddings, [state]);
    }

    internal override bool CopiesStates => true;

    internal override Tensor PrefillTogether(Tensor embeddings, IReadOnlyList<DecoderState> states)
    {
        var l = embeddings.shape[1];
        foreach (var state in states) CheckState<MambaState>(state, this, l);
        using var noGrad = no_grad();
        using var scope = NewDisposeScope();
        var x = backbone.Layers(embeddings, MambaMemory.Of(states), null); // (b, l, d)
        foreach (var state in states) state.Length += (int)l;
        var last = backbone.norm_f.forward(x.select(1, l - 1));            // (b, d)
        return Head(last).to(ScalarType.Float32).MoveToOuterDisposeScope(); // (b, v)
    }

    /// <inheritdoc/>
    public override Tensor Decode(Tensor ids, IReadOnlyList<DecoderState> states)
    {
        CheckIds(ids, rank: 1);
        CheckStates<MambaState>(ids, states);
        if (CudaDecoder?.Decode(ids, states) is { } near) return near;
        if (UseKernels && _decoder.Decode(ids, states) is { } logits) return logits;
        using var noGrad = no_grad();
        using var scope = NewDisposeScope();
        // Row by row: a matrix product of b rows adds in another order than one of a single row.
        var rows = new Tensor[states.Count];
        for (var i = 0; i < rows.Length; i++)
            rows[i] = Prefill(backbone.embedding.forward(ids.narrow(0, i, 1).unsqueeze(0)), states[i]); // (1, v)
        return cat(rows, 0).MoveToOuterDisposeScope(); // (b, v)
    }

    private protected override CudaDecoder OwnCudaDecoder => _cudaDecoder;

    private Tensor Head(Tensor x) => F.linear(x, lm_head?.weight ?? backbone.embedding.weight);

    private static void CheckPaddingIsOnTheRight(Tensor attentionMask)
    {
        var isToken = attentionMask.ne(0).to(ScalarType.Int8);
        if (attentionMask.shape[1] > 1 && isToken.diff(dim: 1).gt(0).any().item<bool>())
            throw new ArgumentException("The attention mask has padding on the left of a token, which Mamba would read; " +
                "pad on the right.", nameof(attentionMask));
    }
}

/// <summary>What the layers of a Mamba remember of one row.</summary>
internal sealed class MambaState : DecoderState
{
    private MambaState(Mamba model, int maxLength, Tensor[] convolution, Tensor[] scan)
        => (Model, MaxLength, Convolution, Scan) = (model, maxLength, convolution, scan);

    /// <summary>(1, e, k) for each layer, float32: the last k inputs of the convolution, the oldest first.</summary>
    public Tensor[] Convolution { get; }

    /// <summary>(1, e, n) for each layer, float32: the state of the scan.</summary>
    public Tensor[] Scan { get; }

    /// <summary>Empty states, side by side.</summary>
    public static MambaState[] Create(Mamba model, int count, int maxLength)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(count);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(maxLength);
        var (config, device, group) = (model.Config, model.backbone.embedding.weight.device, new object());
        var convolution = StateTensors.Empty(count, config.LayerCount, [config.InnerSize, config.ConvolutionSize], ScalarType.Float32, device, zero: true);
        var scan = StateTensors.Empty(count, config.LayerCount, [config.InnerSize, config.StateSize], ScalarType.Float32, device, zero: true);
        return [.. Enumerable.Range(0, count).Select(i => new MambaState(model, maxLength, convolution[i], scan[i]) { Group = group, Row = i })];
    }

    public override DecoderState Clone()
    {
        ObjectDisposedException.ThrowIf(IsDisposed, this);
        var copy = Create((Mamba)Model!, 1, MaxLength)[0];
        copy.CopyFrom(this);
        return copy;
    }

    internal override void CopyFrom(DecoderState other)
    {
        var from = (MambaState)other;
        foreach (var (theirs, ours) in from.Convolution.Concat(from.Scan).Zip(Convolution.Concat(Scan))) ours.copy_(theirs);
        Length = from.Length;
    }

    protected override void Dispose(bool disposing)
    {
        IsDisposed = true;
        foreach (var t in Convolution.Concat(Scan)) t.Dispose();
    }
}

/// <summary>What layers that read several rows at once move on.</summary>
/// <param name="Convolution">(b, e, k) for each layer.</param>
/// <param name="Scan">(b, e, n) for each layer.</param>
internal sealed record MambaMemory(Tensor[] Convolution, Tensor[] Scan)
{
    /// <summary>That of states which lie side by side. In the caller's dispose scope.</summary>
    public static MambaMemory Of(IReadOnlyList<DecoderState> states)
    {
        var first = (MambaState)states[0];
        return new(StateTensors.Together(first.Convolution, states.Count), StateTensors.Together(first.Scan, states.Count));
    }
}

internal sealed class MambaBackbone : nn.Module
{
    public readonly Embedding embedding;
    public readonly ModuleList<MambaLayer> layers = new();
    public readonly Norm norm_f;
    private readonly MambaConfig _config;
    private FusedOn? _fused;

    /// <summary>Whether the layers may run as one operation (<see cref="FusedMamba"/>); the tests compare with and without.</summary>
    public bool UseKernels { get; set; } = true;

    /// <summary>Kernels to use whatever the device; null: those of the device.</summary>
    public IMambaKernels? ForcedKernels { get; set; }

    public MambaBackbone(ParameterScope p, MambaConfig config) : base(nameof(MambaBackbone))
    {
        _config = config;
        embedding = new(p[nameof(embedding)], config.VocabularySize, config.HiddenSize, config.InitializerRange);
        for (var i = 0; i < config.LayerCount; i++) layers.Add(new(p[nameof(layers)][i], config));
        norm_f = new(p[nameof(norm_f)], config.HiddenSize, config.NormEpsilon, config.Norm);
        RegisterComponents();
    }

    /// <summary>All layers, without the final norm: (b, l, d) -> (b, l, d).</summary>
    /// <param name="embeddings">(b, l, d).</param>
    /// <param name="state">The rows' memory, moved on; null: each row starts from nothing.</param>
    /// <param name="hiddenStates">Receives the input of each layer, and the output of the last.</param>
    public Tensor Layers(Tensor embeddings, MambaMemory? state, IList<Tensor>? hiddenStates)
    {
        var dtype = embedding.weight.dtype;
        var x = embeddings.to(dtype).to(_config.ResidualInFloat32 ? ScalarType.Float32 : dtype); // (b, l, d)
        if (Fused(x, hiddenStates) is { } fused)
        {
            using var input = x;
            var known = hiddenStates?.Count ?? 0;
            x = fused.Run(input, state, hiddenStates);
            for (var i = known; i < hiddenStates?.Count; i++) hiddenStates[i].MoveToOuterDisposeScope();
            hiddenStates?.Add(x.alias().MoveToOuterDisposeScope());
            return x;
        }
        for (var i = 0; i < layers.Count; i++)
        {
            hiddenStates?.Add(x.alias().MoveToOuterDisposeScope());
            using var input = x;
            x = layers[i].Run(input, state is null ? null : (state.Convolution[i], state.Scan[i]));
        }
        hiddenStates?.Add(x.alias().MoveToOuterDisposeScope());
        return x;
    }

    // The kernels, where there are any for this device and these sizes. Hidden states with gradients are autograd's affair.
    private FusedMamba? Fused(Tensor x, IList<Tensor>? hiddenStates)
    {
        // As one operation the projections are plain products, which adapters beside them are not part of.
        if (!UseKernels || (hiddenStates is not null && is_grad_enabled()) || layers.Any(l => l.mixer.HasAdapter || !l.HasTypes(embedding.weight.dtype))) return null;
        if (ForcedKernels is { } forced) return new(this, _config, forced);
        if (FusedChoice.For(x) is not { } gpu || ScanBackend.For(x.device_type, embedding.weight.dtype, x.device_index) != ScanBackend.Cuda || !CudaMambaKernels.Take(_config)) return null;
        if (_fused is { } known && known.Device == x.device_index && known.Type == embedding.weight.dtype) return known.Layers;
        var fused = new FusedMamba(this, _config, new CudaMambaKernels(gpu, embedding.weight.dtype, _config));
        _fused = new(x.device_index, embedding.weight.dtype, fused);
        return fused;
    }

    private sealed record FusedOn(int Device, ScalarType Type, FusedMamba Layers);
}

internal sealed class MambaLayer : nn.Module
{
    public readonly Norm norm;
    public readonly MambaMixer mixer;

    public MambaLayer(ParameterScope p, MambaConfig config) : base(nameof(MambaLayer))
    {
        norm = new(p[nameof(norm)], config.HiddenSize, config.NormEpsilon, config.Norm);
        mixer = new(p[nameof(mixer)], config);
        RegisterComponents();
    }

    /// <summary>Whether parameters are of the types that the model was built with, which a call of <c>to</c> may have changed: kernels
    /// read them as these.</summary>
    public bool HasTypes(ScalarType dtype) => mixer.A_log.dtype == ScalarType.Float32 && mixer.D.dtype == ScalarType.Float32 && mixer.dt_proj.bias!.dtype == ScalarType.Float32
        && norm.weight.dtype == dtype && mixer.in_proj.weight.dtype == dtype && mixer.conv1d.weight.dtype == dtype;

    public Tensor Run(Tensor x, (Tensor Convolution, Tensor Scan)? state)
    {
        using var scope = NewDisposeScope();
        return (x + mixer.Run(norm.forward(x), state)).MoveToOuterDisposeScope(); // (b, l, d), in the residual's precision
    }
}

internal sealed class MambaMixer : nn.Module
{
    public readonly Linear in_proj;      // (2e, d)
    public readonly CausalConvolution conv1d;
    public readonly Linear x_proj;       // (r + 2n, e)
    public readonly Linear dt_proj;      // (e, r)
    public readonly Parameter A_log;     // (e, n)
    public readonly Parameter D;         // (e)
    public readonly Linear out_proj;     // (d, e)
    private readonly MambaConfig _config;

    /// <summary>Whether a projection has an adapter beside it (<see cref="LoraAdapters"/>).</summary>
    public bool HasAdapter => (in_proj.Adapter ?? x_proj.Adapter ?? dt_proj.Adapter ?? out_proj.Adapter) is not null;

    // A_log, D and the bias of dt_proj stay float32 in every precision: they act through exponentials, at every step.
    public MambaMixer(ParameterScope p, MambaConfig config) : base(nameof(MambaMixer))
    {
        _config = config;
        var (d, e, n, r) = (config.HiddenSize, config.InnerSize, config.StateSize, config.TimeStepRank);
        in_proj = new(p[nameof(in_proj)], d, 2 * e, config.ProjectionBias);
        conv1d = new(p[nameof(conv1d)], e, config.ConvolutionSize, config.ConvolutionBias);
        x_proj = new(p[nameof(x_proj)], e, r + 2 * n, hasBias: false);
        dt_proj = new(p[nameof(dt_proj)], r, e, true, MambaInitial.StepWeight(r), MambaInitial.StepBias, biasFloat32: true);
        A_log = p.Take(nameof(A_log), [e, n], MambaInitial.StateMatrixLog, keepFloat32: true);
        D = p.Take(nameof(D), [e], Initial.Ones, keepFloat32: true);
        out_proj = new(p[nameof(out_proj)], e, d, config.ProjectionBias, MambaInitial.Output(e, config.LayerCount));
        RegisterComponents();
    }

    // The scan walks along l for each channel, so activations lie channel by channel from the first product to the last:
    // a weight times inputs in columns gives that layout without a transposition.
    public Tensor Run(Tensor x, (Tensor Convolution, Tensor Scan)? state)
    {
        using var scope = NewDisposeScope();
        var (b, l, e, n, r) = (x.shape[0], x.shape[1], _config.InnerSize, _config.StateSize, _config.TimeStepRank);

        var uz = in_proj.Columns(x.reshape(b * l, -1).t()).view(2 * e, b, l).transpose(0, 1);   // (b, 2e, l)
        if (in_proj.bias is not null) uz = uz + in_proj.bias.unsqueeze(-1);
        var (u, z) = (uz.narrow(1, 0, e), uz.narrow(1, e, e));                                  // (b, e, l) each

        u = F.silu(conv1d.Run(u, state?.Convolution));                                          // (b, e, l)

        var selected = x_proj.Columns(u);                                                       // (b, r + 2n, l)
        var delta = dt_proj.Columns(selected.narrow(1, 0, r));                                  // (b, e, l)
        var (B, C) = (selected.narrow(1, r, n), selected.narrow(1, r + n, n));                  // (b, n, l) each
        var A = A_log.exp().neg();                                                              // (e, n)

        var (y, last) = SelectiveScan.Run(u, delta, A, B, C, D, z, dt_proj.bias, deltaSoftplus: true,
            state?.Scan);                                                                       // (b, e, l), (b, e, n)
        state?.Scan.copy_(last);
        return out_proj.forward(y.transpose(1, 2)).MoveToOuterDisposeScope();                   // (b, l, d)
    }
}

/// <summary>A convolution along l that looks back only, each channel by itself.</summary>
internal sealed class CausalConvolution : nn.Module
{
    public readonly Parameter weight; // (e, 1, k)
    public readonly Parameter? bias;  // (e)

    public CausalConvolution(ParameterScope p, long channels, long size, bool hasBias) : base(nameof(CausalConvolution))
    {
        weight = p.Take(nameof(weight), [channels, 1, size], Initial.FanIn(size));
        if (hasBias) bias = p.Take(nameof(bias), [channels], Initial.FanIn(size));
        RegisterComponents();
    }

    /// <summary>(b, e, l) -> (b, e, l).</summary>
    /// <param name="u">(b, e, l).</param>
    /// <param name="state">The last k inputs before these, (b, e, k), moved on by l; null: zeros before, and nothing kept.</param>
    public Tensor Run(Tensor u, Tensor? state)
    {
        using var scope = NewDisposeScope();
        var (e, k, l) = (weight.shape[0], weight.shape[2], u.shape[2]);
        if (state is null)
            return F.conv1d(u, weight, bias, padding: k - 1, groups: e).narrow(2, 0, l).MoveToOuterDisposeScope();
        var seen = cat([state.to(u.dtype), u], 2);                                  // (b, e, k + l)
        state.copy_(seen.narrow(2, l, k));
        // The window that ends before the first new input is of no use.
        return F.conv1d(seen, weight, bias, groups: e).narrow(2, 1, l).MoveToOuterDisposeScope();
    }
}

/// <summary>What training starts from (section 3.6 of the paper, and mamba_ssm's modules/mamba_simple.py).</summary>
internal static class MambaInitial
{
    // Step sizes that training starts from lie between these, evenly in their logarithm; none below the floor.
    private const double LeastStep = 1e-3, GreatestStep = 1e-1, StepFloor = 1e-4;

    /// <summary>A = -1, -2, ... -n in every channel (S4D-Real).</summary>
    public static void StateMatrixLog(Tensor t, Generator random)
    {
        using var scope = NewDisposeScope();
        t.copy_(arange(1, t.shape[1] + 1, dtype: ScalarType.Float32).log().expand(t.shape));
    }

    /// <summary>Keeps the variance of the projected step sizes.</summary>
    public static ParameterInitializer StepWeight(long rank) 
        => (t, random) => t.uniform_(-Math.Pow(rank, -0.5), Math.Pow(rank, -0.5), random);

    /// <summary>What softplus turns into the wanted step sizes.</summary>
    public static void StepBias(Tensor t, Generator random)
    {
        using var scope = NewDisposeScope();
        var step = t.uniform_(Math.Log(LeastStep), Math.Log(GreatestStep), random).exp().clamp(min: StepFloor);
        t.copy_(step + step.neg().expm1().neg().log());
    }

    /// <summary>A Linear's own values over the root of the number of layers, for that many add up in the residual.</summary>
    public static ParameterInitializer Output(long fanIn, long layerCount)
    {
        var bound = 1 / Math.Sqrt(fanIn) / Math.Sqrt(layerCount);
        return (t, random) => t.uniform_(-bound, bound, random);
    }
}
