using System.Text.Json;
using MambaVL.Checkpoints;
using MambaVL.Models;
using MambaVL.Prompts;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL;

/// <summary>How a model is loaded.</summary>
public sealed record LoadOptions
{
    /// <summary>Where the weights go, as torch names it: <c>cpu</c>, <c>cuda</c>, <c>cuda:1</c>. Default: the CPU.</summary>
    public string Device { get; init; } = "cpu";

    /// <summary>The precision of the weights: float32 or bfloat16. Null: float32 on the CPU, bfloat16 on a GPU. Weights that
    /// the file has in that precision are used where it is mapped, without a copy; others are converted.</summary>
    public ScalarType? DType { get; init; }

    /// <summary>A tokenizer.json, or the folder that holds one. Null: the model's own, and for the published models, which
    /// have none, that of <see cref="VisionLanguageModel.PublishedTokenizer"/> from the hub.</summary>
    public string? TokenizerPath { get; init; }

    /// <summary>Pixels on a side of the square that pictures are squashed to; a multiple of the patch size. Null: the
    /// model's own. With another the encoder resamples its positions, and the sequence has other rows.</summary>
    public int? ImageSize { get; init; }

    /// <summary>Whether the instruction stands before the picture. Null: as the model was trained.</summary>
    public bool? InstructionFirst { get; init; }

    /// <summary>How models are fetched by name.</summary>
    public HubOptions Hub { get; init; } = new();
}

public sealed partial class VisionLanguageModel
{
    /// <summary>The repository whose tokeniser the published models use (both backbones).</summary>
    public const string PublishedTokenizer = "EleutherAI/gpt-neox-20b";

    internal const string VisionPrefix = "vision_encoder.", ConnectorPrefix = "vision_embed_tokens.";

    /// <summary>Loads a model as it is published.</summary>
    /// <param name="nameOrFolder">A folder with config.json and weights, or <c>owner/name</c> of a model on the hub, such as
    /// <c>gpantaz/finetuned_mambavl_790m</c>, which is fetched into the cache first.</param>
    /// <param name="options">Device, precision, tokeniser; the defaults when null.</param>
    /// <param name="cancellationToken">Stops a download; loading itself is short.</param>
    /// <returns>The model; the caller owns it.</returns>
    /// <exception cref="DirectoryNotFoundException">There is no such folder, and it is no name either.</exception>
    /// <exception cref="HubException">The model is not to be had from the hub.</exception>
    /// <exception cref="CheckpointException">The weights are damaged, or are not those of the configuration; all that is
    /// missing, unexpected or misshapen is listed.</exception>
    /// <exception cref="InvalidDataException">config.json or tokenizer.json is damaged or of another kind of model.</exception>
    /// <exception cref="NativeRuntimeException">libtorch or the GPU cannot be used on this machine.</exception>
    public static VisionLanguageModel FromPretrained(string nameOrFolder, LoadOptions? options = null, CancellationToken cancellationToken = default)
    {
        ArgumentException.ThrowIfNullOrEmpty(nameOrFolder);
        options ??= new();
        Place(options); // before a long download

        string folder;
        if (Directory.Exists(nameOrFolder)) folder = nameOrFolder;
        else if (ModelHub.IsModelName(nameOrFolder)) folder = ModelHub.Download(nameOrFolder, options.Hub, cancellationToken);
        else throw new DirectoryNotFoundException($"There is no folder '{nameOrFolder}', and it is no name on the hub (owner/name) either.");

        using var checkpoint = Checkpoint.Open(folder);
        var config = VisionLanguageConfig.Load(Path.Combine(folder, "config.json"), checkpoint.Tensors);
        return FromCheckpoint(checkpoint, config, LoadTokenizer(folder, options, cancellationToken), options);
    }

    /// <summary>Builds a model from a checkpoint that is open.</summary>
    /// <param name="checkpoint">The weights. It stays the caller's, and may be closed when the model is built.</param>
    /// <param name="config">The sizes, from <see cref="VisionLanguageConfig.Resolve"/>.</param>
    /// <param name="tokenizer">The tokeniser that the model was trained with.</param>
    /// <param name="options">Device, precision, image size; the defaults when null.</param>
    /// <returns>The model; the caller owns it.</returns>
    /// <exception cref="CheckpointException">The weights are damaged, or are not those of the configuration.</exception>
    /// <exception cref="ArgumentException">The configuration contradicts itself, the options or the tokeniser.</exception>
    public static VisionLanguageModel FromCheckpoint(Checkpoint checkpoint, VisionLanguageConfig config, Tokenizer tokenizer, LoadOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(checkpoint);
        ArgumentNullException.ThrowIfNull(config);
        ArgumentNullException.ThrowIfNull(tokenizer);
        options ??= new();
        var (device, dtype) = Place(options);
        if (options.ImageSize is { } size) config = config with { Images = config.Images with { ImageSize = size } };
        if (options.InstructionFirst is { } first) config = config with { InstructionFirst = first };
        Check(config, tokenizer);

        // The parts ask for their parameters under their own names; the prefixes belong to the file.
        var sources = CheckpointParameters.ForParts(checkpoint,
            new(Shapes(p => config.Vision.Create(p.Root)), VisionNames(checkpoint), dtype, device),
            new(Shapes(p => new Connector(config.Connector, p.Root)), new() { Prefix = ConnectorPrefix }, dtype, device),
            new(Shapes(p => config.Language.Create(p.Root)), config.Language.Names, dtype, device));
        return new(config, config.Vision.Create(sources[0].Root), new(config.Connector, sources[1].Root), config.Language.Create(sources[2].Root), tokenizer);

        static IReadOnlyDictionary<string, long[]> Shapes(Func<ParameterSource, nn.Module> build)
        {
            var recorder = new ShapeRecorder();
            build(recorder).Dispose();
            return recorder.Shapes;
        }
    }

    /// <summary>Makes a model with first values, the start of training.</summary>
    /// <param name="config">The sizes.</param>
    /// <param name="tokenizer">Its ids must have rows in the embedding table.</param>
    /// <param name="seed">The same seed gives the same weights.</param>
    /// <param name="dtype">float32, the default, or bfloat16.</param>
    /// <returns>The model on the CPU, without gradients; the caller owns it.</returns>
    /// <exception cref="ArgumentException">The configuration contradicts itself or the tokeniser.</exception>
    public static VisionLanguageModel Create(VisionLanguageConfig config, Tokenizer tokenizer, long seed, ScalarType dtype = ScalarType.Float32)
    {
        ArgumentNullException.ThrowIfNull(config);
        ArgumentNullException.ThrowIfNull(tokenizer);
        Runtime.EnsureLoaded();
        CheckPrecision(dtype);
        Check(config, tokenizer);
        return Build(config, tokenizer, new RandomParameters(seed, dtype));
    }

    /// <summary>Builds a model over a source that knows each parameter by the name of <see cref="NamedParameters"/>.</summary>
    internal static VisionLanguageModel Build(VisionLanguageConfig config, Tokenizer tokenizer, ParameterSource parameters)
        => new(config, config.Vision.Create(parameters.Root["vision_encoder"]),
            new(config.Connector, parameters.Root["vision_embed_tokens"]), config.Language.Create(parameters.Root), tokenizer);

    /// <summary>Writes the model to a folder that <see cref="FromPretrained"/> loads: config.json, tokenizer.json and the
    /// weights as safetensors, in shards above 5 GB.</summary>
    /// <remarks>Each file gets its name only when it is whole, config.json last: a folder without one is not yet a
    /// model.</remarks>
    /// <param name="folder">The folder; made if it is not there.</param>
    /// <param name="dtype">The precision of the weights in the file: float32, bfloat16 or float16, to which they are rounded; null
    /// for the model's own. What a model keeps in float32 (Mamba's A_log, D and dt_proj.bias) stays so.</param>
    /// <exception cref="ArgumentException">The precision is another.</exception>
    /// <exception cref="IOException">A file could not be written, or the folder holds weights of another layout.</exception>
    /// <exception cref="InvalidOperationException">Adapters are attached.</exception>
    public void Save(string folder, ScalarType? dtype = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(folder);
        if (dtype is not (null or ScalarType.Float32 or ScalarType.BFloat16 or ScalarType.Float16))
            throw new ArgumentException($"The precision is {dtype}; expected Float32, BFloat16 or Float16, or null for the model's own.", nameof(dtype));
        if (Language.HasAdapters)
            throw new InvalidOperationException("The model has adapters that are not merged, and would be saved without them; merge them, or dispose of them, first.");
        var parameters = NamedParameters().ToDictionary(p => p.Name, p => (Tensor)p.Parameter);
        if (dtype is { } precision)
        {
            var recorder = new ShapeRecorder();
            Build(Config, Tokenizer, recorder).Dispose();
            SafetensorsWriter.WriteFolder(folder,
                parameters.Select(p => new TensorEntry(p.Key, recorder.KeptFloat32.Contains(p.Key) ? ScalarType.Float32 : precision, p.Value.shape)),
                e => parameters[e.Name].detach().to(e.DType));
        }
        else SafetensorsWriter.WriteFolder(folder, parameters);
        AtomicFile.Write(Path.Combine(folder, Tokenizer.FileName), Tokenizer.Source.Span);
        AtomicFile.Write(Path.Combine(folder, "config.json"), JsonSerializer.SerializeToUtf8Bytes(Config.ToJson(), Indented));
    }

    private static readonly JsonSerializerOptions Indented = new() { WriteIndented = true };

    private static CheckpointNames VisionNames(Checkpoint checkpoint) => new()
    {
        Prefix = VisionPrefix,
        Ignored = [.. checkpoint.Tensors.Keys.Where(n => VisionConfig.IsIgnored(n)).Select(n => n[VisionPrefix.Length..])],
    };

    private static void Check(VisionLanguageConfig config, Tokenizer tokenizer)
    {
        if (tokenizer.VocabularySize > config.Language.VocabularySize && tokenizer.EndOfTextId >= config.Language.VocabularySize)
            throw new ArgumentException($"The tokeniser's end token is {tokenizer.EndOfTextId}, and the model has ids 0 to {config.Language.VocabularySize - 1}; give the tokeniser that the model was trained with.");
        if (config.Images.ImageSize % config.Vision.PatchSize != 0)
            throw new ArgumentException($"The image size is {config.Images.ImageSize}; expected a multiple of the patch size {config.Vision.PatchSize}.");
    }

    private static (Device, ScalarType) Place(LoadOptions options)
    {
        Runtime.EnsureLoaded();
        ArgumentNullException.ThrowIfNull(options.Device);
        Device device;
        try
        {
            device = new Device(options.Device);
        }
        catch (Exception e) when (e is ArgumentException or FormatException or NotSupportedException)
        {
            throw new ArgumentException($"LoadOptions.Device is '{options.Device}'; expected cpu, cuda or cuda:N.", e);
        }
        if (device.type is not (DeviceType.CPU or DeviceType.CUDA))
            throw new ArgumentException($"LoadOptions.Device is '{options.Device}'; expected cpu, cuda or cuda:N.");
        if (device.type == DeviceType.CUDA) Runtime.EnsureCuda(Math.Max(device.index, 0));
        var dtype = options.DType ?? (device.type == DeviceType.CPU ? ScalarType.Float32 : ScalarType.BFloat16);
        CheckPrecision(dtype);
        return (device, dtype);
    }

    private static void CheckPrecision(ScalarType dtype)
    {
        if (dtype is not (ScalarType.Float32 or ScalarType.BFloat16))
            throw new ArgumentException($"The precision is {dtype}; expected Float32 or BFloat16.", nameof(dtype));
    }

    private static Tokenizer LoadTokenizer(string folder, LoadOptions options, CancellationToken cancellation)
    {
        if (options.TokenizerPath is { } given) return Tokenizer.Load(given);
        var own = Path.Combine(folder, Tokenizer.FileName);
        if (File.Exists(own)) return Tokenizer.Load(own);
        try
        {
            return Tokenizer.Load(ModelHub.DownloadFile(PublishedTokenizer, Tokenizer.FileName, options.Hub, cancellation));
        }
        catch (HubException e)
        {
            throw new FileNotFoundException($"'{folder}' has no {Tokenizer.FileName}, and that of {PublishedTokenizer}, which the published models use, is not to be had: {e.Message} Or name one in LoadOptions.TokenizerPath.", own, e);
        }
    }
}
