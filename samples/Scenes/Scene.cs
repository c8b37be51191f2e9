namespace MambaVL.Samples.Scenes;

internal enum Layout
{
    /// <summary>One kind, once or several times.</summary>
    Alone,

    /// <summary>Two kinds, all of the one beside or above all of the other.</summary>
    Pair,

    /// <summary>Three or four kinds, their order from left to right beyond doubt.</summary>
    Line,

    /// <summary>Several kinds anywhere. No caption could say where.</summary>
    Scattered,
}

/// <summary>An object of a scene.</summary>
/// <param name="Kind">What it is.</param>
/// <param name="Box">The tight box of its visible pixels.</param>
/// <param name="Side">What <see cref="Sprites.Get"/> made it of.</param>
internal sealed record SceneObject(Kind Kind, PixelBox Box, int Side);

/// <summary>The objects of one kind.</summary>
internal readonly record struct Group(Kind Kind, int Count)
{
    public override string ToString() => Kind.Counted(Count);
}

/// <summary>A picture before it is drawn.</summary>
/// <param name="Size">Pixels on a side.</param>
/// <param name="Layout">How the objects lie.</param>
/// <param name="Relation">Of a <see cref="Layout.Pair"/>: where the first group is, seen from the second: left or above.</param>
/// <param name="Background">What lies behind.</param>
/// <param name="Groups">Every kind with its count; the first is that on the left, or at the top.</param>
/// <param name="Objects">Every object; no two touch.</param>
internal sealed record Scene(int Size, Layout Layout, Side? Relation, Background Background, IReadOnlyList<Group> Groups, IReadOnlyList<SceneObject> Objects)
{
    /// <summary>The pixels, [size, size, 4]: red, green, blue, 255.</summary>
    public byte[] Paint(Sprites sprites)
    {
        var pixels = new byte[Size * Size * 4];
        for (var i = 3; i < pixels.Length; i += 4) pixels[i] = byte.MaxValue;
        Background.Paint(pixels, Size);
        foreach (var o in Objects)
        {
            var sprite = sprites.Get(o.Kind, o.Side);
            for (var y = 0; y < sprite.Height; y++)
            {
                var from = sprite.Rgba.AsSpan(y * sprite.Width * 4, sprite.Width * 4);
                var to = pixels.AsSpan(((o.Box.Y0 + y) * Size + o.Box.X0) * 4, from.Length);
                for (var i = 0; i < from.Length; i += 4)
                {
                    var rest = 255 - from[i + 3];
                    for (var c = i; c < i + 3; c++) to[c] = (byte)Math.Min(255, from[c] + (to[c] * rest + 127) / 255);
                }
            }
        }
        return pixels;
    }
}
