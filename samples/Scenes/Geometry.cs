namespace MambaVL.Samples.Scenes;

/// <summary>A box in pixels: the right and the bottom edge lie behind the last pixel.</summary>
internal readonly record struct PixelBox(int X0, int Y0, int X1, int Y1)
{
    public int Width => X1 - X0;

    public int Height => Y1 - Y0;

    public int Area => Width * Height;

    public double CentreX => (X0 + X1) / 2.0;

    public double CentreY => (Y0 + Y1) / 2.0;

    /// <summary>Whether at least <paramref name="margin"/> pixels lie between the two.</summary>
    public bool IsApartFrom(PixelBox other, int margin)
        => X1 + margin <= other.X0 || other.X1 + margin <= X0 || Y1 + margin <= other.Y0 || other.Y1 + margin <= Y0;

    public PixelBox Union(PixelBox other)
        => new(Math.Min(X0, other.X0), Math.Min(Y0, other.Y0), Math.Max(X1, other.X1), Math.Max(Y1, other.Y1));
}

internal enum Side { Left, Right, Above, Below }

/// <summary>When a word for a place is beyond doubt, and when somebody could use it.</summary>
internal static class Places
{
    private const double Dominates = 1.5, Possible = 0.5;

    // Shares of a side: what lies between them is in the middle, and nobody is asked about it.
    private const double Near = 0.4, Far = 0.6;

    public static Side Opposite(this Side side) => side switch
    {
        Side.Left => Side.Right,
        Side.Right => Side.Left,
        Side.Above => Side.Below,
        _ => Side.Above,
    };

    /// <summary><c>to the left of</c>.</summary>
    public static string Of(this Side side) => side switch
    {
        Side.Left => "to the left of",
        Side.Right => "to the right of",
        Side.Above => "above",
        _ => "below",
    };

    /// <summary>Where <paramref name="a"/> is, seen from <paramref name="b"/>; null where that is open to doubt: the boxes'
    /// centres must lie far more along one axis than along the other, and the boxes must not overlap along it.</summary>
    public static Side? Clear(PixelBox a, PixelBox b)
    {
        var (dx, dy) = (a.CentreX - b.CentreX, a.CentreY - b.CentreY);
        if (Math.Abs(dx) > Dominates * Math.Abs(dy))
            return a.X1 < b.X0 ? Side.Left : b.X1 < a.X0 ? Side.Right : null;
        if (Math.Abs(dy) > Dominates * Math.Abs(dx))
            return a.Y1 < b.Y0 ? Side.Above : b.Y1 < a.Y0 ? Side.Below : null;
        return null;
    }

    /// <summary>Whether somebody could say that <paramref name="a"/> is on that side of <paramref name="b"/>.</summary>
    public static bool CouldBe(this Side side, PixelBox a, PixelBox b)
    {
        var (dx, dy) = (a.CentreX - b.CentreX, a.CentreY - b.CentreY);
        var (along, across) = side switch
        {
            Side.Left => (-dx, dy),
            Side.Right => (dx, dy),
            Side.Above => (-dy, dx),
            _ => (dy, dx),
        };
        return along > 0 && along > Possible * Math.Abs(across);
    }

    /// <summary><c>left</c> or <c>right</c>; null near the middle.</summary>
    public static string? Half(double centre, int size, string before, string behind)
        => centre < Near * size ? before : centre > Far * size ? behind : null;

    public static string? Horizontal(PixelBox box, int size) => Half(box.CentreX, size, "left", "right");

    public static string? Vertical(PixelBox box, int size) => Half(box.CentreY, size, "top", "bottom");

    /// <summary><c>top left</c>; null where it is in no corner.</summary>
    public static string? Corner(PixelBox box, int size)
        => (Vertical(box, size), Horizontal(box, size)) is ({ } vertical, { } horizontal) ? $"{vertical} {horizontal}" : null;

    /// <summary>Whether somebody could say that the box is in that corner: its centre is not beyond the middle's other end.</summary>
    public static bool CouldBeIn(string corner, PixelBox box, int size)
        => (corner.StartsWith("top", StringComparison.Ordinal) ? box.CentreY < Far * size : box.CentreY > Near * size)
            && (corner.EndsWith("left", StringComparison.Ordinal) ? box.CentreX < Far * size : box.CentreX > Near * size);
}
