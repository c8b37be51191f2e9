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
    public JsonObject ToJson()
    {
        var json = Language.ToJson();
        json["image_size"] = Images.ImageSize; // the encoder's own size is in vision_config
        json["image_mean"] = new JsonArray([.. Images.Mean.Select(v => JsonValue.Create(v))]);
        json["image_std"] = new JsonArray([.. Images.Std.Select(v => JsonValue.Create(v))]);
        json["instruction_first"] = InstructionFirst;
        json["vision_config"] = Vision.ToJson();
        return json;
    }

    /// <summary>Learns what the model of a checkpoint is, from config.json and from the names and shapes of its tensors.</summary>
    /// <param name="config">The root of config.json, in any of the dialects of docs/checkpoints.md.</param>
    /// <param name="tensors">What the checkpoint holds: <see cref="Checkpoint.Tensors"/>.</param>
    /// <param name="file">What to call the file in an error.</param>
    /// <exception cref="InvalidDataException">It is no vision-language model that is here, or contradicts the tensors.</exception>
    public static VisionLanguageConfig Resolve(JsonElement config, IReadOnlyDictionary<string, TensorEntry> tensors, string file = "config.json")
    {
        var language = LanguageConfig.Resolve(config, tensors, file);
        var vision = VisionConfig.Resolve(config, tensors);
        var connector = ConnectorConfig.Resolve(tensors);
        if (connector.FeatureWidth != vision.FeatureWidth || connector.HiddenSize != language.HiddenSize)
            throw new InvalidDataException($"'{file}': the connector goes from {connector.FeatureWidth} to {connector.HiddenSize}; the vision encoder gives {vision.FeatureWidth} and the language model takes {language.HiddenSize}.");
        return new()
        {
            Vision = vision,
            Language = language,
            ConnectorNorm = connector.Norm,
            Images = ReadImages(config, vision, file),
            InstructionFirst = config.TryGetProperty("instruction_first", out var first) && first.ValueKind switch
            {
                JsonValueKind.True => true,
                JsonValueKind.False => false,
                _ => throw new InvalidDataException($"'{file}': 'instruction_first' is {first.ValueKind}; expected true or false."),
            },
        };
    }

    /// <summary>As <see cref="Resolve"/>, from a file.</summary>
    /// <exception cref="InvalidDataException">As <see cref="Resolve"/>; or the file is not JSON, or above 16 MB.</exception>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    public static VisionLanguageConfig Load(string path, IReadOnlyDictionary<string, TensorEntry> tensors)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        if (!File.Exists(path)) throw new FileNotFoundException($"There is no '{path}'; expected the model's config.json beside its weights.", path);
        if (new FileInfo(path).Length is > LargestFile and var length)
            throw new InvalidDataException($"'{path}' has {length:N0} bytes; expected a configuration of at most {LargestFile:N0}.");
        try
        {
            using var json = JsonDocument.Parse(File.ReadAllBytes(path));
            return Resolve(json.RootElement, tensors, path);
        }
        catch (JsonException e)
        {
            throw new InvalidDataException($"'{path}' is not JSON: {e.Message}", e);
        }
    }

    private static ImageProcessorOptions ReadImages(JsonElement root, VisionConfig vision, string file)
    {
        var size = vision.ImageSize;
        if (root.TryGetProperty("image_size", out var told)
            && (told.ValueKind != JsonValueKind.Number || !told.TryGetInt32(out size) || size < vision.PatchSize
                || size > VisionConfig.MostPixels || size % vision.PatchSize != 0))
            throw new InvalidDataException($"'{file}': 'image_size' is {told.ValueKind} {size}; expected a multiple of the patch size {vision.PatchSize}, at most {VisionConfig.MostPixels}.");
        var images = new ImageProcessorOptions { ImageSize = size };
        try
        {
            if (root.TryGetProperty("image_mean", out var mean)) images = images with { Mean = mean.Deserialize<float[]>()! };
            if (root.TryGetProperty("image_std", out var std)) images = images with { Std = std.Deserialize<float[]>()! };
        }
        catch (Exception e) when (e is JsonException or ArgumentException)
        {
            throw new InvalidDataException($"'{file}': 'image_mean' and 'image_std' must be three numbers each: {e.Message}", e);
        }
        return images;
    }
}
