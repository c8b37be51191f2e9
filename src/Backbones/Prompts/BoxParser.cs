using System.Globalization;

namespace MambaVL.Prompts;

/// <summary>A box that was read from a model's answer.</summary>
/// <param name="IsReadable">Whether the answer held a box; if not, both boxes are empty.</param>
/// <param name="Raw">What the model wrote: shares of the image as a rule, but whatever it wrote.</param>
/// <param name="Pixels">In pixels of the original image: within it, edges in order.</param>
public readonly record struct ParsedBox(bool IsReadable, BoundingBox Raw, BoundingBox Pixels);

/// <summary>Reads boxes from the answers of a grounding model.</summary>
public static class BoxParser
{
    /// <summary>Reads the first <c>[...]</c> of an answer.</summary>
    /// <remarks>
    /// Readable is: four finite numbers between the brackets, comma between them, point before decimals, whatever their
    /// order and size. Any other content makes the answer unreadable, even if a good box follows: so the reference
    /// evaluates. Its score compares <c>Raw.ToPixels(...)</c>, neither clamped nor ordered, with the true box.
    /// </remarks>
    /// <param name="text">The answer, decoded.</param>
    /// <param name="imageWidth">The width of the original image in pixels.</param>
    /// <param name="imageHeight">The height of the original image in pixels.</param>
    /// <exception cref="ArgumentOutOfRangeException">A side of the image is not positive.</exception>
    public static ParsedBox Parse(ReadOnlySpan<char> text, int imageWidth, int imageHeight)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(imageWidth);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(imageHeight);
        return TryParse(text, out var raw)
            ? new(true, raw, raw.ToPixels(imageWidth, imageHeight).Within(imageWidth, imageHeight))
            : default;
    }

    /// <summary>Reads the first <c>[...]</c> of an answer, as the model wrote it.</summary>
    public static bool TryParse(ReadOnlySpan<char> text, out BoundingBox raw)
    {
        raw = default;
        var open = text.IndexOf('[');
        if (open < 0) return false;
        text = text[(open + 1)..];
        var close = text.IndexOf(']');
        if (close < 0) return false;

        Span<double> edges = stackalloc double[4];
        var count = 0;
        foreach (var range in text[..close].Split(','))
        {
            if (count == edges.Length) return false;
            if (!double.TryParse(text[range], NumberStyles.Float, CultureInfo.InvariantCulture, out edges[count])) return false;
            if (!double.IsFinite(edges[count++])) return false;
        }
        if (count < edges.Length) return false;
        raw = new(edges[0], edges[1], edges[2], edges[3]);
        return true;
    }
}
