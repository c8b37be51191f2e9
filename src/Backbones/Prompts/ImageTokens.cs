namespace MambaVL.Prompts;

/// <summary>The ids that stand for an image in a model's input.</summary>
public static class ImageTokens
{
    /// <summary>Stands where the embedding of a patch goes. It is no token: a model replaces it.</summary>
    public const long Placeholder = -200;

    internal const string Mark = "###", RowEnd = "&&";

    private const long MostIds = 1 << 24;

    /// <summary><c>###</c>, then for each row of patches its placeholders and <c>&amp;&amp;</c>, but <c>###</c> after the last row.</summary>
    /// <remarks>Both marks are encoded by the tokenizer. GPT-NeoX's has one id for each (4118, 10494); where another needs
    /// several ids for one, all of them stand there.</remarks>
    /// <param name="tokenizer">The tokenizer of the model.</param>
    /// <param name="imageHeight">The height in pixels that the encoder sees.</param>
    /// <param name="imageWidth">The width in pixels that the encoder sees.</param>
    /// <param name="patchSize">The side of a patch in pixels. Pixels that fill no patch count for nothing.</param>
    /// <exception cref="ArgumentOutOfRangeException">The image is smaller than a patch, or has millions of them.</exception>
    /// <exception cref="ArgumentException">The tokenizer has no ids for a mark.</exception>
    public static long[] Sequence(Tokenizer tokenizer, int imageHeight, int imageWidth, int patchSize)
    {
        ArgumentNullException.ThrowIfNull(tokenizer);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(patchSize);
        ArgumentOutOfRangeException.ThrowIfLessThan(imageHeight, patchSize);
        ArgumentOutOfRangeException.ThrowIfLessThan(imageWidth, patchSize);
        var (rows, columns) = (imageHeight / patchSize, imageWidth / patchSize);
        var (mark, rowEnd) = (Encode(tokenizer, Mark), Encode(tokenizer, RowEnd));
        var length = (long)rows * (columns + rowEnd.Length) - rowEnd.Length + 2 * mark.Length;
        ArgumentOutOfRangeException.ThrowIfGreaterThan(length, MostIds);

        var ids = new List<long>((int)length);
        ids.AddRange(mark);
        for (var row = 0; row < rows; row++)
        {
            ids.AddRange(Enumerable.Repeat(Placeholder, columns));
            ids.AddRange(row == rows - 1 ? mark : rowEnd);
        }
        return [.. ids];
    }

    private static long[] Encode(Tokenizer tokenizer, string mark)
    {
        var ids = tokenizer.Encode(mark);
        return ids.Count > 0 ? [.. ids.Select(id => (long)id)]
            : throw new ArgumentException($"The tokenizer has no ids for '{mark}', which marks an image; its vocabulary lacks the characters.", nameof(tokenizer));
    }
}
