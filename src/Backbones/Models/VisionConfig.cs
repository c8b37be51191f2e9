using System.Text.Json;
using System.Text.Json.Nodes;
using MambaVL.Checkpoints;

namespace MambaVL.Models;

/// <summary>The sizes and choices that make an image encoder.</summary>
/// <remarks><see cref="Resolve"/> reads them from a checkpoint. Nearly all of them stand in the shapes of its tensors; the few
/// that do not (heads, the activation, the chosen layer) come from config.json, or from the rule beside each of them here.</remarks>
public abstract record VisionConfig
{
    // Beyond these an encoder is no longer one that anybody has made, and the number rather a mistake or an attack.
    internal const int MostPixels = 1 << 14, MostWidth = 1 << 16, MostLayers = 1 << 10, MostPatchPixels = 1 << 10;

    private protected VisionConfig() { }

    /// <summary>Pixels on a side of one square patch; 1 to 1024.</summary>
    public required int PatchSize { get; init; }

    /// <summary>Pixels on a side of the square images that the positions were made for; a multiple of
    /// <see cref="PatchSize"/>, at most 16384.</summary>
    public required int ImageSize { get; init; }

    /// <summary>The width of a patch feature, which a connector takes.</summary>
    public abstract int FeatureWidth { get; }

    /// <summary>Builds the encoder from the parameters of <paramref name="p"/>, the scope of the encoder's own names:
    /// <c>source.Root["vision_encoder"]</c> for a vision-language model. The caller owns it.</summary>
    /// <exception cref="ArgumentException">The configuration contradicts itself, or holds an impossible size.</exception>
    public abstract VisionEncoder Create(ParameterScope p);

    /// <summary>The <c>vision_config</c> object of a config.json from which <see cref="Resolve"/> reads the same again.</summary>
    public abstract JsonObject ToJson();

    /// <summary>What is wrong with the numbers, one sentence each.</summary>
    internal abstract IEnumerable<string> Problems();

    /// <summary>Learns what the encoder of a checkpoint is.</summary>
    /// <param name="config">The root of config.json. An object <c>vision_config</c> in it wins over the rest of the file.</param>
    /// <param name="tensors">What the checkpoint holds; <see cref="Checkpoint.Tensors"/>.</param>
    /// <param name="prefix">What the encoder's names begin with; empty for a checkpoint that is an encoder and nothing else.</param>
    /// <exception cref="InvalidDataException">There is no encoder that this project knows, or the tensors and the configuration
    /// contradict each other; the message has every contradiction.</exception>
    public static VisionConfig Resolve(JsonElement config, IReadOnlyDictionary<string, TensorEntry> tensors, string prefix = "vision_encoder.")
    {
        ArgumentNullException.ThrowIfNull(tensors);
        ArgumentNullException.ThrowIfNull(prefix);
        return new VisionConfigResolver(config, tensors, prefix).Resolve();
    }

    /// <summary>Whether a tensor of a checkpoint is no parameter of an encoder but something that older versions of the
    /// reference libraries stored beside them: position ids, rotary tables, a classifier's head.</summary>
    /// <param name="name">The tensor's full name.</param>
    /// <param name="prefix">What the encoder's names begin with.</param>
    public static bool IsIgnored(string name, string prefix = "vision_encoder.")
    {
        ArgumentNullException.ThrowIfNull(name);
        ArgumentNullException.ThrowIfNull(prefix);
        return name.StartsWith(prefix, StringComparison.Ordinal) && name[prefix.Length..] is
            "embeddings.position_ids" or "vision_model.embeddings.position_ids" or "head.weight" or "head.bias"
            or "rope.bands" or "rope.pos_embed" or "mask_token";
    }

    private protected IEnumerable<string> SizeProblems()
    {
        if (PatchSize is < 1 or > MostPatchPixels)
            yield return $"A patch has {PatchSize} pixels on a side; 1 to {MostPatchPixels} are expected.";
        else if (ImageSize < PatchSize || ImageSize > MostPixels || ImageSize % PatchSize != 0)
            yield return $"An image has {ImageSize} pixels on a side; a multiple of the patch size {PatchSize}, at most {MostPixels}, is expected.";
    }

    private protected static IEnumerable<string> TransformerProblems(int depth, int width, int heads, int mlpWidth, int multiple)
    {
        if (depth is < 1 or > MostLayers) yield return $"There are {depth} layers; 1 to {MostLayers} are expected.";
        if (width is < 1 or > MostWidth) yield return $"The width is {width}; 1 to {MostWidth} is expected.";
        if (mlpWidth is < 1 or > MostWidth) yield return $"The inner width of the MLP is {mlpWidth}; 1 to {MostWidth} is expected.";
        if (heads < 1 || width % heads != 0 || width / heads % multiple != 0)
            yield return $"There are {heads} attention heads for the width {width}; the width divided by the heads must be a whole multiple of {multiple}. "
                + "Put the right number into vision_config of config.json.";
    }

    private protected void ThrowIfImpossible(string argument)
    {
        var problems = string.Join(" ", Problems());
        if (problems.Length > 0) throw new ArgumentException($"This is no {GetType().Name}: {problems}", argument);
    }

    internal void ThrowIfImpossible() => ThrowIfImpossible("config");
}

/// <summary>The sizes of an EVA-02 encoder. The flags tell apart the forms that timm gives the family.</summary>
public sealed record Eva02Config : VisionConfig
{
    /// <summary>The epsilon of every LayerNorm (timm/layers/norm.py).</summary>
    internal const double NormEps = 1e-6;

    /// <summary>Blocks.</summary>
    public required int Depth { get; init; }

    /// <summary>The width of a token.</summary>
    public required int Width { get; init; }

    /// <summary>Attention heads; <see cref="Width"/> / Heads is a multiple of 4, which the rotary positions need.</summary>
    public required int Heads { get; init; }

    /// <summary>The inner width of the gated MLP; timm rounds 8/3 of the width down.</summary>
    public required int MlpWidth { get; init; }

    /// <summary>Whether queries, keys and values come from one matrix (Ti, S); by default from three (B, L).</summary>
    public bool FusedQkv { get; init; }

    /// <summary>Whether gate and value of the MLP come from one matrix, without a norm (Ti, S); by default from two, with the
    /// norm (B, L).</summary>
    public bool PackedMlp { get; init; }

    /// <summary>Whether attention has an inner norm: by default, as in the CLIP-trained B and L; no in the others.</summary>
    public bool AttentionNorm { get; init; } = true;

    /// <summary>Whether a norm ends the encoder: by default, as in the CLIP-trained ones. In the others the same norm belongs
    /// to a classifier (<c>fc_norm</c>), and the features are not normalised.</summary>
    public bool FinalNorm { get; init; } = true;

    /// <summary>Rows and columns that the rotary positions span whatever the grid: 16 by default, the 224 pixels of
    /// pre-training over patches of 14.</summary>
    public int ReferenceGrid { get; init; } = 16;

    /// <inheritdoc/>
    public override int FeatureWidth => Width;

    /// <inheritdoc/>
    public override VisionEncoder Create(ParameterScope p) => new Eva02(this, p);

    /// <inheritdoc/>
    public override JsonObject ToJson() => new()
    {
        ["model_type"] = VisionConfigResolver.Eva02Type,
        ["img_size"] = ImageSize,
        ["patch_size"] = PatchSize,
        ["embed_dim"] = Width,
        ["depth"] = Depth,
        ["num_heads"] = Heads,
        ["ref_feat_shape"] = new JsonArray(ReferenceGrid, ReferenceGrid),
    };

    internal override IEnumerable<string> Problems()
    {
        if (ReferenceGrid is < 1 or > MostPixels)
            yield return $"The rotary reference grid is {ReferenceGrid}; 1 to {MostPixels} is expected.";
        foreach (var problem in SizeProblems().Concat(TransformerProblems(Depth, Width, Heads, MlpWidth, multiple: 4)))
            yield return problem;
    }
}

/// <summary>The sizes of a CLIP vision transformer.</summary>
public sealed record ClipVisionConfig : VisionConfig
{
    /// <summary>Layers, all of them: those after <see cref="SelectLayer"/> too.</summary>
    public required int Depth { get; init; }

    /// <summary>The width of a token.</summary>
    public required int Width { get; init; }

    /// <summary>Attention heads.</summary>
    public required int Heads { get; init; }

    /// <summary>The inner width of the MLP.</summary>
    public required int MlpWidth { get; init; }

    /// <summary>The MLP's activation; OpenAI's own by default.</summary>
    public ClipActivation Activation { get; init; } = ClipActivation.QuickGelu;

    /// <summary>The epsilon of every LayerNorm; 1e-5 by default, as in transformers.</summary>
    public double NormEps { get; init; } = 1e-5;

    /// <summary>Which hidden state the patches are taken from: 0 is what enters the first layer, <see cref="Depth"/> or -1 what
    /// leaves the last. -2 by default: the last layer was trained for the class token alone.</summary>
    public int SelectLayer { get; init; } = -2;

    /// <summary>Whether the checkpoint has <c>vision_model.</c> before each name, as transformers wrote it before version 5.</summary>
    public bool OldNames { get; init; }

    /// <inheritdoc/>
    public override int FeatureWidth => Width;

    /// <inheritdoc/>
    public override VisionEncoder Create(ParameterScope p) => new ClipVision(this, p);

    /// <inheritdoc/>
    public override JsonObject ToJson() => new()
    {
        ["model_type"] = VisionConfigResolver.ClipType,
        ["image_size"] = ImageSize,
        ["patch_size"] = PatchSize,
        ["hidden_size"] = Width,
        ["num_hidden_layers"] = Depth,
        ["num_attention_heads"] = Heads,
        ["intermediate_size"] = MlpWidth,
        ["hidden_act"] = Activation == ClipActivation.QuickGelu ? VisionConfigResolver.QuickGelu : VisionConfigResolver.Gelu,
        ["layer_norm_eps"] = NormEps,
        ["select_layer"] = SelectLayer,
    };

    internal override IEnumerable<string> Problems()
    {
        if (!(NormEps is >= 0 and < 1)) yield return $"The epsilon of the norms is {NormEps}; 0 to 1 is expected.";
        if (SelectLayer < -(Depth + 1L) || SelectLayer > Depth)
            yield return $"Hidden state {SelectLayer} is selected; {-(Depth + 1L)} to {Depth} exist.";
        foreach (var problem in SizeProblems().Concat(TransformerProblems(Depth, Width, Heads, MlpWidth, multiple: 1)))
            yield return problem;
    }
}

/// <summary>The activations that CLIP checkpoints were trained with.</summary>
public enum ClipActivation
{
    /// <summary>x sigmoid(1.702 x).</summary>
    QuickGelu,

    /// <summary>The exact GELU.</summary>
    Gelu,
}

/// <summary>The pixel-based variant: no encoder, the connector reads the patches' pixels.</summary>
public sealed record PixelConfig : VisionConfig
{
    /// <inheritdoc/>
    public override int FeatureWidth => 3 * PatchSize * PatchSize;

    /// <inheritdoc/>
    public override VisionEncoder Create(ParameterScope p) => new PixelEncoder(this);

    /// <inheritdoc/>
    public override JsonObject ToJson() => new()
    {
        ["model_type"] = VisionConfigResolver.PixelType,
        ["image_size"] = ImageSize,
        ["patch_size"] = PatchSize,
    };

    internal override IEnumerable<string> Problems() => SizeProblems();
}
