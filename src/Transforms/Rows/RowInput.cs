using Microsoft.ML.Data;

namespace MambaVL.Transforms;

/// <summary>What a step reads of one row, copied out of the source. Its buffers are used again for later rows.</summary>
internal sealed class RowInput(int index, ImageKind kind)
{
    /// <summary>The row's place in its batch.</summary>
    public int Index { get; } = index;

    public ImageKind Kind { get; } = kind;

    public bool IsFeatures => Kind is ImageKind.Patches or ImageKind.Embeddings;

    /// <summary>The row's place in its cursor.</summary>
    public long Position { get; set; }

    /// <summary>Tells rows apart when tokens are sampled.</summary>
    public long Seed { get; set; }

    /// <summary>Why a column could not be read, or null.</summary>
    public Exception? FetchError { get; set; }

    public string Path { get; set; } = "";

    /// <summary>An MLImage, squashed to what the model sees: [s, s, 3]. Its pixels belong to the source, which may use them
    /// again for the next row.</summary>
    public byte[] Square { get; set; } = [];

    public string Text { get; set; } = "";

    public IReadOnlyList<string> Choices { get; set; } = [];

    public string Task { get; set; } = "";

    /// <summary>The original image's, as soon as it is known.</summary>
    public int Width { get; set; }

    public int Height { get; set; }

    // Fields: ML.NET's getters fill them in place.
    public VBuffer<byte> Encoded;
    public VBuffer<float> Features;
    public VBuffer<float> Box;
    public VBuffer<int> Size;

    public bool HasSamePicture(RowInput other) => Kind switch
    {
        ImageKind.Path => Path == other.Path,
        ImageKind.Bytes => Encoded.Dense().SequenceEqual(other.Encoded.Dense()),
        ImageKind.MLImage => Width == other.Width && Height == other.Height && Square.AsSpan().SequenceEqual(other.Square),
        _ => Features.Dense().SequenceEqual(other.Features.Dense()),
    };
}

internal static class VectorValues
{
    /// <summary>All the values, those that are left out of a sparse vector included.</summary>
    public static ReadOnlySpan<T> Dense<T>(this in VBuffer<T> vector)
        => vector.IsDense ? vector.GetValues() : vector.DenseArray();

    private static T[] DenseArray<T>(this in VBuffer<T> vector)
    {
        var values = new T[vector.Length];
        vector.CopyTo(values);
        return values;
    }
}
