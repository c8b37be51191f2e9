using MambaVL.Prompts;

namespace MambaVL.Transforms;

/// <summary>Boxes in the columns of <c>GroundPhrases</c> and <c>DescribeRegions</c>: four numbers, the left, top, right and
/// bottom edge in pixels of the original image.</summary>
/// <remarks>In a class for a prediction engine: <c>[ColumnName("Box"), VectorType(4)] public float[] Box { get; set; }</c>.</remarks>
public static class BoxColumn
{
    /// <summary>The numbers of a column's value.</summary>
    public const int Length = 4;

    internal static readonly string[] SlotNames = ["x0", "y0", "x1", "y1"];

    /// <summary>The box; null where the row has none (its numbers are not finite), because the model's text was
    /// unreadable.</summary>
    /// <param name="values">The four edges.</param>
    /// <exception cref="ArgumentException">There are not four numbers.</exception>
    public static BoundingBox? Read(ReadOnlySpan<float> values)
    {
        if (values.Length != Length) throw new ArgumentException($"Found {values.Length} numbers; expected {Length}: x0, y0, x1, y1.", nameof(values));
        foreach (var value in values)
            if (!float.IsFinite(value)) return null;
        return new BoundingBox(values[0], values[1], values[2], values[3]);
    }

    /// <inheritdoc cref="Read(ReadOnlySpan{float})"/>
    public static BoundingBox? ToBoundingBox(this float[] values)
    {
        ArgumentNullException.ThrowIfNull(values);
        return Read(values);
    }

    /// <summary>The four edges of a box; of null, four times NaN.</summary>
    public static float[] Write(BoundingBox? box)
        => box is { } b ? [(float)b.X0, (float)b.Y0, (float)b.X1, (float)b.Y1] : [float.NaN, float.NaN, float.NaN, float.NaN];
}
