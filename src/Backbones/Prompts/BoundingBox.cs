using System.Globalization;

namespace MambaVL.Prompts;

/// <summary>A box by its left, top, right and bottom edge: in pixels, or as shares of an image's width and height.</summary>
/// <remarks>Doubles, because two decimals of a single-precision share can differ from the reference's: 0.755 is written
/// <c>0.76</c>, but the nearest single-precision number is less than 0.755.</remarks>
/// <param name="X0">The left edge.</param>
/// <param name="Y0">The top edge.</param>
/// <param name="X1">The right edge.</param>
/// <param name="Y1">The bottom edge.</param>
public readonly record struct BoundingBox(double X0, double Y0, double X1, double Y1)
{
    /// <summary>Numbers of a greater magnitude are no edges of a box.</summary>
    private const double Greatest = 1e9;

    /// <summary>The area; 0 where the right edge is left of the left one, or the bottom above the top.</summary>
    public double Area => Math.Max(0, X1 - X0) * Math.Max(0, Y1 - Y0);

    /// <summary>Shares of an image to pixels.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A side is not positive.</exception>
    public BoundingBox ToPixels(int imageWidth, int imageHeight)
    {
        CheckSize(imageWidth, imageHeight);
        return new(X0 * imageWidth, Y0 * imageHeight, X1 * imageWidth, Y1 * imageHeight);
    }

    /// <summary>Pixels to shares of an image.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A side is not positive.</exception>
    public BoundingBox ToShares(int imageWidth, int imageHeight)
    {
        CheckSize(imageWidth, imageHeight);
        return new(X0 / imageWidth, Y0 / imageHeight, X1 / imageWidth, Y1 / imageHeight);
    }

    /// <summary>The part within 0 to width and 0 to height, its edges in order: a box to draw or to crop.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A side is not positive.</exception>
    public BoundingBox Within(double width, double height)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(width);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(height);
        return new(Inside(Math.Min(X0, X1), width), Inside(Math.Min(Y0, Y1), height),
            Inside(Math.Max(X0, X1), width), Inside(Math.Max(Y0, Y1), height));

        static double Inside(double x, double most) => double.IsNaN(x) ? 0 : Math.Clamp(x, 0, most);
    }

    /// <summary>The intersection's area over the union's, 0 to 1; 0 where they do not overlap.</summary>
    /// <remarks>A box whose edges are out of order overlaps nothing, as in the reference.</remarks>
    public double IntersectionOverUnion(BoundingBox other)
    {
        var intersection = new BoundingBox(
            Math.Max(X0, other.X0), Math.Max(Y0, other.Y0), Math.Min(X1, other.X1), Math.Min(Y1, other.Y1)).Area;
        var share = intersection / (Area + other.Area - intersection);
        return intersection > 0 && double.IsFinite(share) ? share : 0;
    }

    /// <summary>The box as models read and write it: <c>[0.10,0.25,0.50,0.76].</c></summary>
    /// <param name="fullStop">Whether a full stop follows; within a caption none does.</param>
    /// <remarks>Two decimals, rounded as Python does: the number's exact binary value decides, and the even digit when it
    /// lies half-way (0.125 is 0.12). .NET's own format gives 0.13.</remarks>
    /// <exception cref="InvalidOperationException">An edge is not a finite number, or beyond a billion.</exception>
    public string ToText(bool fullStop = true)
        => $"[{Decimals(X0)},{Decimals(Y0)},{Decimals(X1)},{Decimals(Y1)}]{(fullStop ? "." : "")}";

    private static string Decimals(double x)
    {
        if (!(Math.Abs(x) <= Greatest))
            throw new InvalidOperationException($"A box has the edge {x.ToString(CultureInfo.InvariantCulture)}; expected a share of the image, 0 to 1.");
        var magnitude = Math.Abs(x);
        var scaled = magnitude * 100;
        var error = Math.FusedMultiplyAdd(magnitude, 100, -scaled); // what the product lost: scaled + error is exact
        var whole = Math.Floor(scaled);
        var half = scaled - whole;
        var up = half > 0.5 || half == 0.5 && (error > 0 || error == 0 && whole % 2 == 1);
        var hundredths = (long)whole + (up ? 1 : 0);
        return string.Create(CultureInfo.InvariantCulture, $"{(double.IsNegative(x) ? "-" : "")}{hundredths / 100}.{hundredths % 100:00}");
    }

    private static void CheckSize(int imageWidth, int imageHeight)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(imageWidth);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(imageHeight);
    }
}
