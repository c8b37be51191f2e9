using System.Text.Json;
using System.Text.Json.Nodes;
using MambaVL.Checkpoints;
using MambaVL.Images;
using MambaVL.Models;

namespace MambaVL;

/// <summary>The sizes of a <see cref="VisionLanguageModel"/>.</summary>
public sealed record VisionLanguageConfig
{
    private const long LargestFile = 16 << 20;

    /// <summary>The vision encoder.</summary>
    public required VisionConfig Vision { get; init; }

    /// <summary>The language model.</summary>
    public required LanguageConfig Language { get; init; }

    /// <summary>Whether a norm ends the connector; see <see cref="ConnectorConfig.Norm"/>. Default: no.</summary>
    public bool ConnectorNorm { get; init; }

    /// <summary>How pictures become pixels. Default: squares of the vision encoder's own size, with CLIP's mean and
    /// deviation. Another size is taken as well: the encoder resamples its positions.</summary>
    public ImageProcessorOptions Images
    {
        get => field ?? new() { ImageSize = Vision.ImageSize };
        init;
    }

    /// <summary>Whether the model was trained with the instruction before the picture ("task-aware encoding"). Default:
    /// no, as the published models.</summary>
    public bool InstructionFirst { get; init; }

    /// <summary>The connector between the two.</summary>
    public ConnectorConfig Connector => new(Vision.FeatureWidth, checked((int)Language.HiddenSize), ConnectorNorm);

    /// <summary>A config.json from which the same is read again: vl_mamba's dialect, with the vision encoder's own settings
    /// in <c>vision_config</c>.</summary>
    internal JsonObject ToJson()
    {
        JsonObject json = Language switch
        {
            MambaConfig m => new()
            {
                ["model_type"] = "mamba",
                ["d_model"] = m.HiddenSize,
                ["n_layer"] = m.LayerCount,
                ["vocab_size"] = m.VocabularySize,
                ["ssm_cfg"] = new JsonObject
                {
                    ["d_state"] = m.StateSize,
                    ["d_conv"] = m.ConvolutionSize,
                    ["expand"] = m.Expand,
                    ["dt_rank"] = m.TimeStepRank,
                    ["bias"] = m.ProjectionBias,
                    ["conv_bias"] = m.ConvolutionBias,
                },
                ["rms_norm"] = m.Norm == NormKind.RmsNorm,
                ["norm_epsilon"] = m.NormEpsilon,
                ["residual_in_fp32"] = m.ResidualInFloat32,
                ["tie_embeddings"] = m.TieEmbeddings,
            },
            GptNeoXConfig g => new()
            {
                ["model_type"] = "gpt_neox",
                ["hidden_size"] = g.HiddenSize,
                ["num_hidden_layers"] = g.LayerCount,
                ["num_attention_heads"] = g.HeadCount,
                ["intermediate_size"] = g.IntermediateSize,
                ["vocab_size"] = g.VocabularySize,
                ["hidden_act"] = g.TanhGelu ? "gelu_new" : "gelu",
                ["rotary_pct"] = g.RotaryFraction,
                ["rotary_emb_base"] = g.RotaryBase,
                ["use_parallel_residual"] = g.ParallelResidual,
                ["attention_bias"] = g.AttentionBias,
                ["layer_norm_eps"] = g.NormEpsilon,
                ["tie_word_embeddings"] = g.TieEmbeddings,
            },
            var other => throw new NotSupportedException($"There is no config.json for a {other.GetType().Name}."),
        };
        json["image_size"] = Images.ImageSize;
        json["image_mean"] = new JsonArray([.. Images.Mean.Select(v => JsonValue.Create(v))]);
        json["image_std"] = new JsonArray([.. Images.Std.Select(v => JsonValue.Create(v))]);
        json["instruction_first"] = InstructionFirst;
        json["vision_config"] = Vision.ToJson();
        return json;
    }

    /// <summary>Reads config.json beside the names and shapes of the tensors.</summary>
    /// <exception cref="InvalidDataException">The file is damaged, is no vision-language model's, or contradicts the tensors.</exception>
    internal static VisionLanguageConfig Load(string path, IReadOnlyDictionary<string, TensorEntry> tensors)
    {
        if (!File.Exists(path)) throw new FileNotFoundException($"There is no '{path}'; expected the model's config.json beside its weights.", path);
        if (new FileInfo(path).Length > LargestFile)
            throw new InvalidDataException($"'{path}' has {new FileInfo(path).Length:N0} bytes; expected a configuration of at most {LargestFile:N0}.");
        try
        {
            using var json = JsonDocument.Parse(File.ReadAllBytes(path));
            var language = LanguageConfig.Parse(json.RootElement.GetRawText(), tensors, path);
            var vision = VisionConfig.Resolve(json.RootElement, tensors);
            var connector = ConnectorConfig.Resolve(tensors);
            if (connector.FeatureWidth != vision.FeatureWidth || connector.HiddenSize != language.HiddenSize)
                throw new InvalidDataException($"'{path}': the connector goes from {connector.FeatureWidth} to {connector.HiddenSize}; the vision encoder gives {vision.FeatureWidth} and the language model takes {language.HiddenSize}.");

            return new()
            {
                Vision = vision,
                Language = language,
                ConnectorNorm = connector.Norm,
                Images = ReadImages(json.RootElement, vision, path),
                InstructionFirst = json.RootElement.TryGetProperty("instruction_first", out var first) && first.ValueKind switch
                {
                    JsonValueKind.True => true,
                    JsonValueKind.False => false,
                    _ => throw new InvalidDataException($"'{path}': 'instruction_first' is {first.ValueKind}; expected true or false."),
                },
            };
        }
        catch (JsonException e)
        {
            throw new InvalidDataException($"'{path}' is not JSON: {e.Message}", e);
        }
    }

    private static ImageProcessorOptions ReadImages(JsonElement root, VisionConfig vision, string path)
    {
        var size = vision.ImageSize;
        if (root.TryGetProperty("image_size", out var told)
            && (told.ValueKind != JsonValueKind.Number || !told.TryGetInt32(out size) || size < vision.PatchSize
                || size > VisionConfig.MostPixels || size % vision.PatchSize != 0))
            throw new InvalidDataException($"'{path}': 'image_size' is {told.ValueKind} {size}; expected a multiple of the patch size {vision.PatchSize}, at most {VisionConfig.MostPixels}.");
        var images = new ImageProcessorOptions { ImageSize = size };
        try
        {
            if (root.TryGetProperty("image_mean", out var mean)) images = images with { Mean = mean.Deserialize<float[]>()! };
            if (root.TryGetProperty("image_std", out var std)) images = images with { Std = std.Deserialize<float[]>()! };
        }
        catch (Exception e) when (e is JsonException or ArgumentException)
        {
            throw new InvalidDataException($"'{path}': 'image_mean' and 'image_std' must be three numbers each: {e.Message}", e);
        }
        return images;
    }
}
