using MambaVL.Generation;
using MambaVL.Images;

namespace MambaVL.Transforms;

/// <summary>What a step does with a row that it cannot compute: its image is absent, broken or too large, or its text is
/// empty.</summary>
public enum RowErrors
{
    /// <summary>Asking for the row's value throws a <see cref="RowException"/>; the rows before it have come out.</summary>
    Fail,

    /// <summary>The row has an empty value, and a column <c>{output}.Error</c> says why; it is empty in all other rows.</summary>
    EmptyResult,
}

/// <summary>Where the weights go when a pipeline is saved. See docs/persistence.md.</summary>
public enum WeightStorage
{
    /// <summary>Into the zip below 1 GiB, else beside it; into the zip whatever their size where a pipeline is saved to a
    /// stream that is no file.</summary>
    Auto,

    /// <summary>Into the zip.</summary>
    InZip,

    /// <summary>Beside the zip, as <c>{zip}.{hash}.safetensors</c>. The pipeline is then saved to and loaded from a file.</summary>
    Beside,
}

/// <summary>What a vector column of numbers holds.</summary>
public enum FeatureKind
{
    /// <summary>Told by the column's annotation, else by its size. Where both sizes are the same and there is no annotation,
    /// it is patch features.</summary>
    Auto,

    /// <summary>Patch features, of <c>EncodeImages</c>: patches x the encoder's width.</summary>
    Patches,

    /// <summary>Embeddings, of <c>ConnectImages</c>: patches x the language model's width.</summary>
    Embeddings,
}

/// <summary>What every step can be told. Immutable; a saved pipeline keeps it.</summary>
public record ImageStepOptions
{
    /// <summary>Rows that the model is given at once, at least 1. Null, the default: chosen from the memory that is free when
    /// the first row is asked for, at most 16. It changes speed and memory; on the CPU never a result, on a GPU one by rounding,
    /// because there the images of a batch are encoded together.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is less than 1 or above 4,096.</exception>
    public int? BatchSize
    {
        get;
        init => field = value is null or (>= 1 and <= 4096) ? value : throw new ArgumentOutOfRangeException(nameof(value), value,
            $"Found a batch size of {value}; expected one from 1 to 4096, or null for one that fits the memory.");
    }

    /// <summary>What becomes of a row that cannot be computed. Default: <see cref="RowErrors.Fail"/>.</summary>
    public RowErrors OnError { get; init; } = RowErrors.Fail;

    /// <summary>How images are read, and how large they may be. <see cref="ImageDecoderOptions.MaxPixels"/> holds for MLImage
    /// columns as well.</summary>
    public ImageDecoderOptions Images { get; init; } = ImageDecoderOptions.Default;

    /// <summary>Where the weights go when the pipeline is saved. Default: <see cref="WeightStorage.Auto"/>. Of several steps
    /// with the same model, the first one decides.</summary>
    public WeightStorage Weights { get; init; } = WeightStorage.Auto;

    /// <summary>What a vector column holds that stands in place of the images. Default: <see cref="FeatureKind.Auto"/>.</summary>
    public FeatureKind Features { get; init; } = FeatureKind.Auto;
}

/// <summary>What a step can be told that writes text. Immutable; a saved pipeline keeps it.</summary>
public sealed record TextStepOptions : ImageStepOptions
{
    /// <summary>How tokens are chosen, and how many. Default: greedy, at most 128 tokens. When sampling, a row draws from its
    /// own random numbers, which its id in the data and <see cref="GenerationOptions.Seed"/> give.</summary>
    public GenerationOptions Generation { get; init; } = new();
}
