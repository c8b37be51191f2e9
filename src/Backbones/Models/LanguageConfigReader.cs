using System.Globalization;
using MambaVL.Checkpoints;

namespace MambaVL.Models;

/// <summary>The dialects of config.json, beside the names and shapes of the checkpoint's tensors. The first layer's
/// tensors stand for all: that the others are there and alike is checked when they are loaded.</summary>
internal sealed class LanguageConfigReader(LanguageConfigSection config, IReadOnlyDictionary<string, TensorEntry> tensors)
{
    // Far above any model there is; they keep products of sizes in range.
    private const long MostWidth = 1 << 20, MostLayers = 1 << 16, MostVocabulary = 1 << 28;

    public LanguageConfig Read()
    {
        var (mamba, neoX) = (HasPrefix("backbone."), HasPrefix("gpt_neox."));
        // vl_mamba writes an empty type for Mamba and GPT-NeoX's for Pythia; state-spaces has no such key.
        var type = config.Text("model_type") ?? "";
        config.MustBe(type is "" or "mamba" or "gpt_neox", "model_type", "\"mamba\", \"gpt_neox\" or nothing");
        if (mamba == neoX || (type == "mamba" && neoX) || (type == "gpt_neox" && mamba))
            throw config.Error($"'model_type' is '{type}', and the checkpoint has {(mamba ? "" : "no ")}'backbone.*' and " +
                $"{(neoX ? "" : "no ")}'gpt_neox.*'; expected the first of a Mamba, or the second of a GPT-NeoX.");
        return mamba ? ReadMamba() : ReadNeoX();
    }

    private MambaConfig ReadMamba()
    {
        const string mixer = "backbone.layers.0.mixer";
        // state-spaces' dialect, and vl_mamba's, which adds a hidden_size; else transformers'.
        var ssm = config.Has("d_model");
        var d = ReadWidth(ssm ? "d_model" : "hidden_size", "backbone.embedding.weight", "backbone.embeddings.weight", "lm_head.weight");
        config.MustAgree("hidden_size", config.Size("hidden_size", MostWidth), d.Columns, d.Name);

        var e = Shape($"{mixer}.A_log", 2)[0];
        var n = Shape($"{mixer}.A_log", 2)[1];
        var k = Shape($"{mixer}.conv1d.weight", 3)[2];
        var r = Shape($"{mixer}.dt_proj.weight", 2)[1];
        var (inner, names) = ssm
            ? (config.Section("ssm_cfg"), (N: "d_state", K: "d_conv", R: "dt_rank", Bias: "bias", ConvBias: "conv_bias"))
            : (config, (N: "state_size", K: "conv_kernel", R: "time_step_rank", Bias: "use_bias", ConvBias: "use_conv_bias"));
        var expand = inner.Size("expand", 1 << 10) ?? 2;
        inner.MustAgree("expand", expand * d.Columns, e, $"{mixer}.A_log");
        inner.MustAgree(names.N, inner.Size(names.N, MostWidth), n, $"{mixer}.A_log");
        inner.MustAgree(names.K, inner.Size(names.K, MostWidth), k, $"{mixer}.conv1d.weight");
        if (!inner.IsText(names.R, "auto")) inner.MustAgree(names.R, inner.Size(names.R, MostWidth), r, $"{mixer}.dt_proj.weight");
        inner.MustAgree(names.Bias, Has($"{mixer}.in_proj.bias"), $"{mixer}.in_proj.bias");
        inner.MustAgree(names.ConvBias, Has($"{mixer}.conv1d.bias"), $"{mixer}.conv1d.bias");
        inner.MustBe(!inner.Has("layer") || inner.IsText("layer", "Mamba1"), "layer", "\"Mamba1\": Mamba-2 is another architecture");
        config.MustAgree("intermediate_size", config.Size("intermediate_size", MostWidth), e, $"{mixer}.A_log");
        config.MustBe((config.Size("d_intermediate", MostWidth, least: 0) ?? 0) == 0, "d_intermediate", "0: layers without an MLP");
        config.MustBe(config.IsEmptyList("attn_layer_idx"), "attn_layer_idx", "an empty list: layers without attention");
        config.MustBe((config.Text("hidden_act") ?? "silu") is "silu" or "swish", "hidden_act", "\"silu\"");

        return new()
        {
            HiddenSize = d.Columns,
            LayerCount = ReadLayerCount(ssm ? "n_layer" : "num_hidden_layers", "backbone.layers."),
            VocabularySize = ReadVocabulary(d),
            StateSize = n,
            ConvolutionSize = k,
            Expand = expand,
            TimeStepRank = r,
            // config.json cannot be trusted here: the authors' loader lost rms_norm, and trained LayerNorm.
            Norm = Has("backbone.layers.0.norm.bias") ? NormKind.LayerNorm : NormKind.RmsNorm,
            NormEpsilon = config.OneOf(config.Number("norm_epsilon", 0, 1), "norm_epsilon",
                config.Number("layer_norm_epsilon", 0, 1), "layer_norm_epsilon") ?? 1e-5,
            ResidualInFloat32 = config.Flag("residual_in_fp32") ?? true,
            ProjectionBias = Has($"{mixer}.in_proj.bias"),
            ConvolutionBias = Has($"{mixer}.conv1d.bias"),
            InitializerRange = config.Number("initializer_range", 0, 10) ?? 0.02,
            TieEmbeddings = ReadTied(ssm ? "tie_embeddings" : "tie_word_embeddings", true, d, "lm_head.weight"),
        };
    }

    private GptNeoXConfig ReadNeoX()
    {
        const string layer = "gpt_neox.layers.0";
        var d = ReadWidth("hidden_size", "gpt_neox.embed_in.weight", "embed_out.weight", "lm_head.weight");
        var intermediate = Shape($"{layer}.mlp.dense_h_to_4h.weight", 2)[0];
        config.MustAgree("intermediate_size", config.Size("intermediate_size", MostWidth), intermediate,
            $"{layer}.mlp.dense_h_to_4h.weight");
        config.MustAgree("attention_bias", Has($"{layer}.attention.dense.bias"), $"{layer}.attention.dense.bias");
        var heads = config.RequiredSize("num_attention_heads", MostWidth);
        config.MustBe(d.Columns % heads == 0, "num_attention_heads", $"a divisor of the hidden size {d.Columns}");

        var rope = config.Section("rope_parameters");
        rope.MustBe((rope.Text("rope_type") ?? "default") == "default", "rope_type", "\"default\"");
        config.MustBe(!config.Has("rope_scaling"), "rope_scaling", "nothing: rescaled positions are not here");
        var fraction = config.OneOf(rope.Number("partial_rotary_factor", 0, 1), "rope_parameters.partial_rotary_factor",
            config.Number("rotary_pct", 0, 1), "rotary_pct") ?? 0.25;
        var frequencyBase = config.OneOf(rope.Number("rope_theta", 1, 1e12), "rope_parameters.rope_theta",
            config.Number("rotary_emb_base", 1, 1e12), "rotary_emb_base") ?? 10000;
        var rotary = (long)(d.Columns / heads * fraction);
        if (rotary < 2 || rotary % 2 != 0)
            throw config.Error(string.Create(CultureInfo.InvariantCulture,
                $"the rotary part {fraction} of a head of {d.Columns / heads} is {rotary} values; expected an even number from 2."));

        var activation = config.Text("hidden_act") ?? "gelu";
        config.MustBe(activation is "gelu" or "gelu_new" or "gelu_fast" or "gelu_pytorch_tanh", "hidden_act",
            "\"gelu\" (exact), or \"gelu_new\", \"gelu_fast\" or \"gelu_pytorch_tanh\" (by tanh)");

        return new()
        {
            HiddenSize = d.Columns,
            LayerCount = ReadLayerCount("num_hidden_layers", "gpt_neox.layers."),
            VocabularySize = ReadVocabulary(d),
            HeadCount = heads,
            IntermediateSize = intermediate,
            RotaryFraction = fraction,
            RotaryBase = frequencyBase,
            ParallelResidual = config.Flag("use_parallel_residual") ?? true,
            AttentionBias = Has($"{layer}.attention.dense.bias"),
            TanhGelu = activation != "gelu",
            NormEpsilon = config.Number("layer_norm_eps", 0, 1) ?? 1e-5,
            InitializerRange = config.Number("initializer_range", 0, 10) ?? 0.02,
            TieEmbeddings = ReadTied("tie_word_embeddings", false, d, "embed_out.weight", "lm_head.weight"),
        };
    }

    private (string Name, long Rows, long Columns) ReadWidth(string key, params string[] tables)
    {
        var width = config.RequiredSize(key, MostWidth);
        var name = tables.FirstOrDefault(Has)
            ?? throw config.Error($"the checkpoint has none of '{string.Join("', '", tables)}'.");
        var shape = Shape(name, 2);
        config.MustAgree(key, width, shape[1], name);
        return (name, shape[0], shape[1]);
    }

    // The table may have more rows than there are tokens: state-spaces pads it to a multiple of 8, Pythia of 128.
    private long ReadVocabulary((string Name, long Rows, long) table)
    {
        if (config.Size("vocab_size", MostVocabulary) is { } tokens && tokens > table.Rows)
            throw config.Error($"'vocab_size' asks for {tokens}, but '{table.Name}' has {table.Rows} rows.");
        return table.Rows <= MostVocabulary ? table.Rows
            : throw config.Error($"'{table.Name}' has {table.Rows} rows; expected at most {MostVocabulary}.");
    }

    private long ReadLayerCount(string key, string prefix)
    {
        var count = config.RequiredSize(key, MostLayers);
        var found = tensors.Keys.Where(name => name.StartsWith(prefix, StringComparison.Ordinal))
            .Select(name => name[prefix.Length..].Split('.')[0]).Distinct().Count();
        config.MustAgree(key, count, found, $"{prefix}*");
        return count;
    }

    // A tied head is one with the embedding table, and a file holds either or both. Untied, it needs a table of its own.
    private bool ReadTied(string key, bool otherwise, (string Name, long Rows, long Columns) table, params string[] heads)
    {
        var tied = config.Flag(key) ?? otherwise;
        var head = heads.FirstOrDefault(Has);
        if (head is null && !tied)
            throw config.Error($"'{key}' is {(config.Has(key) ? "" : "taken as ")}false, but the checkpoint has no '{heads[0]}'.");
        if (head is not null && (Shape(head, 2)[0] != table.Rows || Shape(head, 2)[1] != table.Columns))
            throw config.Error($"'{head}' is [{string.Join(", ", Shape(head, 2))}], but '{table.Name}' is " +
                $"[{table.Rows}, {table.Columns}]; expected the same.");
        return tied;
    }

    private IReadOnlyList<long> Shape(string name, int rank)
    {
        if (!tensors.TryGetValue(name, out var tensor)) throw config.Error($"the checkpoint has no '{name}'.");
        return tensor.Shape.Count == rank && tensor.Shape.All(s => s > 0) ? tensor.Shape
            : throw config.Error($"'{name}' is [{string.Join(", ", tensor.Shape)}]; expected {rank} sizes, none of them 0.");
    }

    private bool Has(string name) => tensors.ContainsKey(name);

    private bool HasPrefix(string prefix) => tensors.Keys.Any(name => name.StartsWith(prefix, StringComparison.Ordinal));
}
