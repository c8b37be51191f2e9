using System.Text.Json.Nodes;
using MambaVL.Checkpoints;
using MambaVL.Cuda;
using MambaVL.Kernels;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

namespace MambaVL.Models;

// GPT-NeoX (arXiv 2204.06745), the architecture of Pythia (arXiv 2304.01373): a decoder-only transformer with partial
// rotary positions and, in every published Pythia, attention and MLP side by side.
//
//   b  rows
//   l  positions read by this call
//   t  positions that attention sees: those in the cache, then the l new ones
//   d  hidden_size
//   h  num_attention_heads
//   k  d / h, the width of a head
//   r  rotary_pct * k: how much of each head turns with its position
//   v  rows of the vocabulary
//
// Modules are named as the checkpoint's keys are.

/// <summary>The sizes and switches of a GPT-NeoX. <see cref="LanguageConfig"/> reads them from config.json.</summary>
public sealed record GptNeoXConfig : LanguageConfig
{
    /// <summary>Heads of the attention; divides <see cref="LanguageConfig.HiddenSize"/>.</summary>
    public required long HeadCount { get; init; }

    /// <summary>The width inside the MLP. Default: four times the hidden size.</summary>
    public long IntermediateSize { get => field > 0 ? field : 4 * HiddenSize; init; }

    /// <summary>The part of each head that turns with its position, above 0 to 1. Default 0.25, Pythia's.</summary>
    public double RotaryFraction { get; init; } = 0.25;

    /// <summary>The base of the rotary frequencies. Default 10000.</summary>
    public double RotaryBase { get; init; } = 10000;

    /// <summary>Whether a layer's MLP reads what its attention reads, and both are added at once, or comes after it.
    /// Default true, as in Pythia.</summary>
    public bool ParallelResidual { get; init; } = true;

    /// <summary>Whether the attention's two projections have a bias. Default true.</summary>
    public bool AttentionBias { get; init; } = true;

    /// <summary>Whether the MLP's GELU is the approximation by tanh. Default false: the exact one, by erf.</summary>
    public bool TanhGelu { get; init; }

    /// <summary>Added to the variance in every LayerNorm. Default 1e-5.</summary>
    public double NormEpsilon { get; init; } = 1e-5;

    /// <inheritdoc/>
    public override bool TieEmbeddings { get; init; }

    /// <summary>The standard deviation of the weights that training starts from. Default 0.02.</summary>
    public double InitializerRange { get; init; } = 0.02;

    /// <inheritdoc/>
    public override CheckpointNames Names => !TieEmbeddings ? CheckpointNames.GptNeoX
        : CheckpointNames.GptNeoX with { SameParameter = [["gpt_neox.embed_in.weight", "embed_out.weight", "lm_head.weight"]] };

    /// <inheritdoc/>
    public override LanguageModel Create(ParameterScope p) => new GptNeoX(this, p);

    /// <inheritdoc/>
    /// <remarks>In the dialect of transformers.</remarks>
    public override JsonObject ToJson() => new()
    {
        ["model_type"] = "gpt_neox",
        ["hidden_size"] = HiddenSize,
        ["num_hidden_layers"] = LayerCount,
        ["vocab_size"] = VocabularySize,
        ["num_attention_heads"] = HeadCount,
        ["intermediate_size"] = IntermediateSize,
        ["rotary_pct"] = RotaryFraction,
        ["rotary_emb_base"] = RotaryBase,
        ["use_parallel_residual"] = ParallelResidual,
        ["attention_bias"] = AttentionBias,
        ["hidden_act"] = TanhGelu ? "gelu_new" : "gelu",
        ["layer_norm_eps"] = NormEpsilon,
        ["tie_word_embeddings"] = TieEmbeddings,
        ["initializer_range"] = InitializerRange,
    };

    internal long HeadSize => HiddenSize / HeadCount;

    // Truncated, as the reference does; only pairs can turn.
    internal long RotarySize => (long)(HeadSize * RotaryFraction);

    /// <summary>By what each pair turns from one position to the next: (r/2), float32.</summary>
    internal Tensor RotaryFrequencies(Device device)
    {
        using var scope = NewDisposeScope();
        var exponents = arange(0, RotarySize, 2, dtype: ScalarType.Float32, device: device) / RotarySize;
        return pow(RotaryBase, exponents).reciprocal().MoveToOuterDisposeScope();
    }

    internal void Check()
    {
        CheckSizes();
        Positive(HeadCount);
        Positive(IntermediateSize);
        if (HiddenSize % HeadCount != 0)
            throw new ArgumentException($"{nameof(HiddenSize)} {HiddenSize} is no multiple of {nameof(HeadCount)} {HeadCount}.");
        if (!(RotaryFraction is > 0 and <= 1) || RotarySize < 2 || RotarySize % 2 != 0)
            throw new ArgumentException($"{nameof(RotaryFraction)} {RotaryFraction} of a head of {HeadSize} is {RotarySize} " +
                $"values; expected an even number from 2 to {HeadSize}.");
        Positive(RotaryBase);
        Positive(NormEpsilon);
    }
}

/// <summary>GPT-NeoX with its head: the language model of Pythia-VL.</summary>
public sealed class GptNeoX : LanguageModel
{
    internal readonly GptNeoXBody gpt_neox;
    internal readonly Linear? embed_out; // absent where the head is the embedding table
    private readonly GptNeoXDecoder _decoder;
    private readonly GptNeoXCudaDecoder _cudaDecoder;

    /// <summary>Builds the model over the parameters of <paramref name="p"/>: a checkpoint's, or first values.</summary>
    /// <exception cref="ArgumentException">The sizes contradict each other.</exception>
    public GptNeoX(GptNeoXConfig config, ParameterScope p) : base(nameof(GptNeoX))
    {
        ArgumentNullException.ThrowIfNull(config);
        config.Check();
        Config = config;
        gpt_neox = new(p[nameof(gpt_neox)], config);
        if (!config.TieEmbeddings)
            embed_out = new(p[nameof(embed_out)], config.HiddenSize, config.VocabularySize, false, Initial.Normal(config.InitializerRange));
        (_decoder, _cudaDecoder) = (new(this), new(this));
        RegisterComponents();
    }

    /// <summary>What the model was built from.</summary>
    public GptNeoXConfig Config { get; }

    /// <inheritdoc/>
    public override long HiddenSize => Config.HiddenSize;

    /// <inheritdoc/>
    public override long VocabularySize => Config.VocabularySize;

    /// <inheritdoc/>
    public override Tensor Embed(Tensor ids)
    {
        CheckIds(ids, rank: 2);
        return gpt_neox.embed_in.forward(ids);
    }

    internal override Tensor EmbedTrusted(Tensor ids) => gpt_neox.embed_in.forward(ids);

    internal override Tensor LogitsAt(Tensor embeddings, Tensor positions)
    {
        using var scope = NewDisposeScope();
        var x = gpt_neox.Layers(embeddings, null, null, null).flatten(0, 1);                 // (b * l, d)
        return Head(gpt_neox.final_layer_norm.forward(x.index_select(0, positions))).MoveToOuterDisposeScope(); // (p, v)
    }

    /// <inheritdoc/>
    public override Tensor Forward(Tensor embeddings, Tensor? attentionMask = null, IList<Tensor>? hiddenStates = null)
    {
        CheckEmbeddings(embeddings, oneRow: false);
        CheckMask(attentionMask, embeddings);
        using var scope = NewDisposeScope();
        var x = gpt_neox.Layers(embeddings, attentionMask is null ? null : AttentionPattern(attentionMask), null, hiddenStates);
        x = gpt_neox.final_layer_norm.forward(x);
        hiddenStates?.Add(x.alias().MoveToOuterDisposeScope());
        return Head(x).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public override DecoderState CreateState(int maxLength) => GptNeoXState.Create(this, 1, maxLength)[0];

    /// <inheritdoc/>
    public override IReadOnlyList<DecoderState> CreateStates(int count, int maxLength) => GptNeoXState.Create(this, count, maxLength);

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
        foreach (var state in states) CheckState<GptNeoXState>(state, this, l);
        using var noGrad = no_grad();
        using var scope = NewDisposeScope();
        // One new token sees every position; a first piece is causal, which attention knows by itself.
        var memory = GptNeoXMemory.Of(states);
        Tensor? pattern = null;
        if (l > 1 && memory.Length > 0)
            pattern = ones(l, memory.Length + l, dtype: ScalarType.Bool, device: embeddings.device).tril(memory.Length); // (l, t)
        var x = gpt_neox.Layers(embeddings, pattern, memory, null);
        foreach (var state in states) state.Length += (int)l;
        return LastLogits(x).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public override Tensor Decode(Tensor ids, IReadOnlyList<DecoderState> states)
    {
        CheckIds(ids, rank: 1);
        CheckStates<GptNeoXState>(ids, states);
        if (CudaDecoder?.Decode(ids, states) is { } near) return near;
        if (UseKernels && _decoder.Decode(ids, states) is { } logits) return logits;
        using var noGrad = no_grad();
        using var scope = NewDisposeScope();
        // Row by row: a matrix product of b rows adds in another order than one of a single row.
        var rows = new Tensor[states.Count];
        for (var i = 0; i < rows.Length; i++)
            rows[i] = Prefill(gpt_neox.embed_in.forward(ids.narrow(0, i, 1).unsqueeze(0)), states[i]); // (1, v)
        return cat(rows, 0).MoveToOuterDisposeScope(); // (b, v)
    }

    private protected override CudaDecoder OwnCudaDecoder => _cudaDecoder;

    private Tensor LastLogits(Tensor x)
    {
        x = gpt_neox.final_layer_norm.forward(x.select(1, x.shape[1] - 1)); // (b, d)
        return Head(x).to(ScalarType.Float32);                             // (b, v)
    }

    private Tensor Head(Tensor x) => F.linear(x, embed_out?.weight ?? gpt_neox.embed_in.weight);

    // (b, l) of tokens -> (b, 1, l, l) of who sees whom. Padding on the left sees nothing at all; the attention gives it zeros.
    private static Tensor AttentionPattern(Tensor attentionMask)
    {
        var l = attentionMask.shape[1];
        var causal = ones(l, l, dtype: ScalarType.Bool, device: attentionMask.device).tril();
        return causal.logical_and(attentionMask.ne(0).unsqueeze(1).unsqueeze(1));
    }
}

/// <summary>The keys and values of one row, a pair of tensors for each layer.</summary>
internal sealed class GptNeoXState : DecoderState
{
    private GptNeoXState(GptNeoX model, int maxLength, Tensor[] keys, Tensor[] values)
        => (Model, MaxLength, Keys, Values) = (model, maxLength, keys, values);

    /// <summary>(1, h, maxLength, k) for each layer, in the precision of the weights, already turned by their position; the
    /// first <see cref="DecoderState.Length"/> positions hold something.</summary>
    public Tensor[] Keys { get; }

    /// <summary>As <see cref="Keys"/>, not turned.</summary>
    public Tensor[] Values { get; }

    /// <summary>Empty states, side by side.</summary>
    public static GptNeoXState[] Create(GptNeoX model, int count, int maxLength)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(count);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(maxLength);
        var (config, weight, group) = (model.Config, model.gpt_neox.embed_in.weight, new object());
        long[] shape = [config.HeadCount, maxLength, config.HeadSize];
        var keys = StateTensors.Empty(count, config.LayerCount, shape, weight.dtype, weight.device, zero: false);
        var values = StateTensors.Empty(count, config.LayerCount, shape, weight.dtype, weight.device, zero: false);
        return [.. Enumerable.Range(0, count).Select(i => new GptNeoXState(model, maxLength, keys[i], values[i]) { Group = group, Row = i })];
    }

    public override DecoderState Clone()
    {
        ObjectDisposedException.ThrowIf(IsDisposed, this);
        var copy = Create((GptNeoX)Model!, 1, MaxLength)[0];
        copy.CopyFrom(this);
        return copy;
    }

    internal override void CopyFrom(DecoderState other)
    {
        var from = (GptNeoXState)other;
        foreach (var (theirs, ours) in from.Keys.Concat(from.Values).Zip(Keys.Concat(Values)))
        {
            using var source = theirs.narrow(2, 0, from.Length);
            using var target = ours.narrow(2, 0, from.Length);
            target.copy_(source);
        }
        Length = from.Length;
    }

    protected override void Dispose(bool disposing)
    {
        IsDisposed = true;
        foreach (var t in Keys.Concat(Values)) t.Dispose();
    }
}

/// <summary>The caches that layers which read several rows at once move on.</summary>
/// <param name="Keys">(b, h, maxLength, k) for each layer.</param>
/// <param name="Values">As these.</param>
/// <param name="Length">The positions that each row holds already.</param>
internal sealed record GptNeoXMemory(Tensor[] Keys, Tensor[] Values, int Length)
{
    /// <summary>That of states which lie side by side and hold equally many positions. In the caller's dispose scope.</summary>
    public static GptNeoXMemory Of(IReadOnlyList<DecoderState> states)
    {
        var first = (GptNeoXState)states[0];
        return new(StateTensors.Together(first.Keys, states.Count), StateTensors.Together(first.Values, states.Count), first.Length);
    }
}

internal sealed class GptNeoXBody : nn.Module
{
    public readonly Embedding embed_in;
    public readonly ModuleList<GptNeoXLayer> layers = new();
    public readonly Norm final_layer_norm;
    private readonly GptNeoXConfig _config;
    private readonly GptNeoXRotaryTables _tables;

    public GptNeoXBody(ParameterScope p, GptNeoXConfig config) : base(nameof(GptNeoXBody))
    {
        _config = config;
        _tables = new(config);
        embed_in = new(p[nameof(embed_in)], config.VocabularySize, config.HiddenSize, config.InitializerRange);
        for (var i = 0; i < config.LayerCount; i++) layers.Add(new(p[nameof(layers)][i], config));
        final_layer_norm = new(p[nameof(final_layer_norm)], config.HiddenSize, config.NormEpsilon, NormKind.LayerNorm);
        RegisterComponents();
    }

    /// <summary>All layers, without the final norm: (b, l, d) -> (b, l, d).</summary>
    /// <param name="embeddings">(b, l, d).</param>
    /// <param name="pattern">Who sees whom, to broadcast to (b, h, l, t); null: causal.</param>
    /// <param name="state">The rows' caches, which the new keys and values join; null: none.</param>
    /// <param name="hiddenStates">Receives the input of each layer, and the output of the last.</param>
    public Tensor Layers(Tensor embeddings, Tensor? pattern, GptNeoXMemory? state, IList<Tensor>? hiddenStates)
    {
        var (first, l) = (state?.Length ?? 0, embeddings.shape[1]);
        var x = embeddings.to(embed_in.weight.dtype);
        if (FusedChoice.For(x) is { } gpu) return OnGpu(gpu, x, pattern, state, hiddenStates);
        var (cos, sin) = RotaryTables(first, l);
        for (var i = 0; i < layers.Count; i++)
        {
            hiddenStates?.Add(x.alias().MoveToOuterDisposeScope());
            using var input = x;
            x = layers[i].Run(input, cos, sin, pattern, Cache(state, i));
        }
        hiddenStates?.Add(x.alias().MoveToOuterDisposeScope());
        return x;
    }

    // The same in few launches, and all tokens in one matrix: (b, l, d) -> (b, l, d).
    private Tensor OnGpu(CudaGpu gpu, Tensor embeddings, Tensor? pattern, GptNeoXMemory? state, IList<Tensor>? hiddenStates)
    {
        var (b, l, d) = (embeddings.size(0), embeddings.size(1), embeddings.size(2));
        var table = _tables.Get(embeddings.device, (state?.Length ?? 0) + l);
        var x = embeddings.reshape(b * l, d);
        if (RowSpread.Takes(d) && !is_grad_enabled()) return Infer(gpu, x, b, table, pattern, state, hiddenStates).view(b, l, d);
        for (var i = 0; i < layers.Count; i++)
        {
            hiddenStates?.Add(x.view(b, l, d).MoveToOuterDisposeScope());
            using var input = x;
            x = layers[i].Fused(gpu, input, b, table, pattern, Cache(state, i));
        }
        hiddenStates?.Add(x.view(b, l, d).MoveToOuterDisposeScope());
        return x.view(b, l, d);
    }

    // The layers without gradients: each addition is one with the norms that come next.
    private Tensor Infer(CudaGpu gpu, Tensor x, long b, Tensor rotary, Tensor? pattern, GptNeoXMemory? state, IList<Tensor>? hiddenStates)
    {
        var (normed, other) = (layers[0].input_layernorm.forward(x), _config.ParallelResidual ? layers[0].post_attention_layernorm.forward(x) : null);
        for (var i = 0; i < layers.Count; i++)
        {
            hiddenStates?.Add(x.view(b, -1, _config.HiddenSize).MoveToOuterDisposeScope());
            using Tensor input = x, normedInput = normed;
            using var otherInput = other;
            (x, normed, other) = layers[i].Infer(gpu, input, normedInput, otherInput, i + 1 < layers.Count ? layers[i + 1] : null, b, rotary, pattern, Cache(state, i));
        }
        hiddenStates?.Add(x.view(b, -1, _config.HiddenSize).MoveToOuterDisposeScope());
        return x;
    }

    private static GptNeoXCache? Cache(GptNeoXMemory? state, int layer) => state is null ? null : new(state.Keys[layer], state.Values[layer], state.Length);

    // Position p turns the pair (i, i + r/2) of a head by the angle p / base^(2i/r). Positions and angles are float32 in
    // every precision, for bfloat16 does not tell position 257 from 258; only the tables are rounded to the model's.
    // Padding on the left takes part in the count, as in transformers: only differences of positions matter.
    internal (Tensor Cos, Tensor Sin) RotaryTables(long first, long l)
    {
        var (r, device, dtype) = (_config.RotarySize, embed_in.weight.device, embed_in.weight.dtype);
        var frequencies = _config.RotaryFrequencies(device);                                 // (r/2)
        var positions = arange(first, first + l, dtype: ScalarType.Float32, device: device); // (l)
        var angles = outer(positions, frequencies).view(l, 1, 1, r / 2);                     // (l, 1, 1, r/2)
        return (angles.cos().to(dtype), angles.sin().to(dtype));
    }

    protected override void Dispose(bool disposing)
    {
        if (disposing) _tables.Dispose();
        base.Dispose(disposing);
    }
}

/// <summary>The rotary tables that kernels read, one for each device; owned by the model.</summary>
internal sealed class GptNeoXRotaryTables(GptNeoXConfig config) : IDisposable
{
    private const long LeastLength = 2048; // as long as Pythia was trained

    private readonly Dictionary<(DeviceType, int), Tensor> _tables = [];
    private bool _disposed;

    /// <summary>Cosine and sine of each pair at each position from 0 on: (at least <paramref name="length"/>, r / 2, 2), float32.
    /// The caller owns it; a table that is dropped here for a longer one lives on in it.</summary>
    public Tensor Get(Device device, long length)
    {
        lock (_tables)
        {
            ObjectDisposedException.ThrowIf(_disposed, typeof(GptNeoX));
            var key = (device.type, device.index);
            if (_tables.TryGetValue(key, out var table) && table.shape[0] >= length) return table.alias();
            table?.Dispose();
            _tables[key] = table = Build(device, Math.Max(LeastLength, (long)System.Numerics.BitOperations.RoundUpToPowerOf2((ulong)length)));
            return table.alias();
        }
    }

    private Tensor Build(Device device, long length)
    {
        using var ordinary = inference_mode(false); // a table made while inferring may be used again while training
        using var noGrad = no_grad();
        using var scope = NewDisposeScope();
        var positions = arange(0, length, dtype: ScalarType.Float32, device: device);   // (n)
        var angles = outer(positions, config.RotaryFrequencies(device));                // (n, r/2)
        return stack([angles.cos(), angles.sin()], -1).DetachFromDisposeScope();        // (n, r/2, 2)
    }

    public void Dispose()
    {
        lock (_tables)
        {
            foreach (var table in _tables.Values) table.Dispose();
            _tables.Clear();
            _disposed = true;
        }
    }
}

internal sealed class GptNeoXLayer : nn.Module
{
    public readonly Norm input_layernorm;
    public readonly GptNeoXAttention attention;
    public readonly Norm post_attention_layernorm;
    public readonly GptNeoXMlp mlp;
    private readonly bool _parallel;

    public GptNeoXLayer(ParameterScope p, GptNeoXConfig config) : base(nameof(GptNeoXLayer))
    {
        _parallel = config.ParallelResidual;
        var (d, eps) = (config.HiddenSize, config.NormEpsilon);
        input_layernorm = new(p[nameof(input_layernorm)], d, eps, NormKind.LayerNorm);
        attention = new(p[nameof(attention)], config);
        post_attention_layernorm = new(p[nameof(post_attention_layernorm)], d, eps, NormKind.LayerNorm);
        mlp = new(p[nameof(mlp)], config);
        RegisterComponents();
    }

    public Tensor Run(Tensor x, Tensor cos, Tensor sin, Tensor? pattern, GptNeoXCache? cache)
    {
        using var scope = NewDisposeScope();
        var attended = attention.Run(input_layernorm.forward(x), cos, sin, pattern, cache);
        if (_parallel) return (mlp.forward(post_attention_layernorm.forward(x)) + attended + x).MoveToOuterDisposeScope();
        x = x + attended;
        return (mlp.forward(post_attention_layernorm.forward(x)) + x).MoveToOuterDisposeScope();
    }

    /// <summary>The same without gradients, in fewer still: from the stream and its norms (the second where the MLP reads it
    /// too) to the stream and the norms of the next layer (after the last one, none).</summary>
    public (Tensor X, Tensor Normed, Tensor? Other) Infer(CudaGpu gpu, Tensor x, Tensor normed, Tensor? other, GptNeoXLayer? next, long b, Tensor rotary, Tensor? pattern, GptNeoXCache? cache)
    {
        using var scope = NewDisposeScope();
        var attended = attention.Fused(gpu, normed, b, rotary, pattern, cache);
        if (other is null) (x, other, _) = AddNormsKernel.Run(gpu, x, attended, null, post_attention_layernorm);
        var y = mlp.forward(other);
        var second = _parallel ? attended : null;
        if (next is not null) (x, normed, other) = AddNormsKernel.Run(gpu, x, y, second, next.input_layernorm, _parallel ? next.post_attention_layernorm : null);
        else (x, other) = (second is null ? y + x : y + second + x, null);
        x.MoveToOuterDisposeScope();
        if (next is not null) normed.MoveToOuterDisposeScope();
        return (x, normed, other?.MoveToOuterDisposeScope()); // (b l, d) each
    }

    /// <summary>The same in few launches: (b l, d) -> (b l, d).</summary>
    public Tensor Fused(CudaGpu gpu, Tensor x, long b, Tensor rotary, Tensor? pattern, GptNeoXCache? cache)
    {
        using var scope = NewDisposeScope();
        var attended = attention.Fused(gpu, input_layernorm.forward(x), b, rotary, pattern, cache);
        if (_parallel) return (mlp.forward(post_attention_layernorm.forward(x)) + attended + x).MoveToOuterDisposeScope();
        x = x + attended;
        return (mlp.forward(post_attention_layernorm.forward(x)) + x).MoveToOuterDisposeScope();
    }
}

/// <summary>One layer's share of a <see cref="GptNeoXMemory"/>.</summary>
internal readonly record struct GptNeoXCache(Tensor Keys, Tensor Values, int Length);

internal sealed class GptNeoXAttention : nn.Module
{
    public readonly Linear query_key_value; // rows of each head: its query, its key, its value
    public readonly Linear dense;
    private readonly GptNeoXConfig _config;
    private readonly RotaryShape _shape;

    public GptNeoXAttention(ParameterScope p, GptNeoXConfig config) : base(nameof(GptNeoXAttention))
    {
        _config = config;
        _shape = new((int)config.HeadCount, (int)config.HeadSize, (int)config.RotarySize, Halves: true, ByHead: true);
        var (d, normal) = (config.HiddenSize, Initial.Normal(config.InitializerRange));
        query_key_value = new(p[nameof(query_key_value)], d, 3 * d, config.AttentionBias, normal);
        dense = new(p[nameof(dense)], d, d, config.AttentionBias, normal);
        RegisterComponents();
    }

    public Tensor Run(Tensor x, Tensor cos, Tensor sin, Tensor? pattern, GptNeoXCache? cache)
    {
        using var scope = NewDisposeScope();
        var (b, l) = (x.shape[0], x.shape[1]);
        var qkv = query_key_value.forward(x).view(b, l, _config.HeadCount, 3, _config.HeadSize); // (b, l, h, 3, k)
        var turned = Turn(qkv.narrow(3, 0, 2), cos, sin);                                       // (b, l, h, 2, k)
        var query = turned.select(3, 0).transpose(1, 2);                                        // (b, h, l, k)
        var key = turned.select(3, 1).transpose(1, 2);                                          // (b, h, l, k)
        var value = qkv.select(3, 2).transpose(1, 2);                                           // (b, h, l, k)
        if (cache is { } c)
        {
            c.Keys.narrow(2, c.Length, l).copy_(key);
            c.Values.narrow(2, c.Length, l).copy_(value);
            key = c.Keys.narrow(2, 0, c.Length + l);                                            // (b, h, t, k)
            value = c.Values.narrow(2, 0, c.Length + l);                                        // (b, h, t, k)
        }
        var causal = pattern is null && l > 1;
        var y = F.scaled_dot_product_attention(query, key, value, pattern, is_casual: causal); // (b, h, l, k)
        return dense.forward(y.transpose(1, 2).reshape(b, l, -1)).MoveToOuterDisposeScope();    // (b, l, d)
    }

    /// <summary>The same in few launches, of all tokens in one matrix: (b l, d) -> (b l, d).</summary>
    public Tensor Fused(CudaGpu gpu, Tensor x, long b, Tensor rotary, Tensor? pattern, GptNeoXCache? cache)
    {
        using var scope = NewDisposeScope();
        var packed = query_key_value.forward(x).view(b, -1, _shape.Packed);                     // (b, l, 3 d)
        var (query, key, value) = cache is { } c                                                // (b, h, l, k), (b, h, t, k) twice
            ? RotaryKernel.SplitToCache(gpu, _shape, packed, rotary, c.Keys, c.Values, c.Length)
            : RotaryKernel.Split(gpu, _shape, packed, rotary);
        var causal = pattern is null && packed.size(1) > 1;
        var y = F.scaled_dot_product_attention(query, key, value, pattern, is_casual: causal);  // (b, h, l, k)
        return dense.forward(y.transpose(1, 2).reshape(-1, x.size(1))).MoveToOuterDisposeScope(); // (b l, d)
    }

    private static Tensor Turn(Tensor x, Tensor cos, Tensor sin)
    {
        var half = cos.shape[^1];
        var (first, second) = (x.narrow(-1, 0, half), x.narrow(-1, half, half));
        var rest = x.narrow(-1, 2 * half, x.shape[^1] - 2 * half);
        return cat([first * cos - second * sin, second * cos + first * sin, rest], -1);
    }
}

internal sealed class GptNeoXMlp : nn.Module<Tensor, Tensor>
{
    public readonly Linear dense_h_to_4h;
    public readonly Linear dense_4h_to_h;
    private readonly bool _tanh;

    public GptNeoXMlp(ParameterScope p, GptNeoXConfig config) : base(nameof(GptNeoXMlp))
    {
        _tanh = config.TanhGelu;
        var normal = Initial.Normal(config.InitializerRange);
        dense_h_to_4h = new(p[nameof(dense_h_to_4h)], config.HiddenSize, config.IntermediateSize, true, normal);
        dense_4h_to_h = new(p[nameof(dense_4h_to_h)], config.IntermediateSize, config.HiddenSize, true, normal);
        RegisterComponents();
    }

    public override Tensor forward(Tensor x)
    {
        using var scope = NewDisposeScope();
        var wide = dense_h_to_4h.forward(x); // (b, l, 4d)
        wide = _tanh ? wide.gelu(TorchSharp.Modules.GELU.Approximate.tanh) : wide.gelu();
        return dense_4h_to_h.forward(wide).MoveToOuterDisposeScope(); // (b, l, d)
    }
}
