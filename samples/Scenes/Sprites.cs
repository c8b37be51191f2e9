using System.Collections.Concurrent;
using SkiaSharp;

namespace MambaVL.Samples.Scenes;

/// <summary>An object's pixels: no row or column at its edges is without a visible one.</summary>
/// <param name="Width">Pixels.</param>
/// <param name="Height">Pixels.</param>
/// <param name="Rgba">[height, width, 4], the colours multiplied by alpha.</param>
internal sealed record Sprite(int Width, int Height, byte[] Rgba);

/// <summary>The pictures of the kinds, at any size.</summary>
internal sealed class Sprites : IDisposable
{
    /// <summary>A pixel of less alpha is not part of the object: the eye does not see it.</summary>
    public const byte VisibleAlpha = 48;

    private readonly Dictionary<Kind, SKImage> _images = [];
    private readonly ConcurrentDictionary<(Kind, int), Sprite> _scaled = new();

    /// <summary>Reads the pictures.</summary>
    /// <param name="folder">Null: the assets beside the program.</param>
    /// <exception cref="FileNotFoundException">One is missing.</exception>
    public Sprites(string? folder = null)
    {
        folder ??= Path.Combine(AppContext.BaseDirectory, "assets");
        foreach (var kind in Kind.All)
        {
            var path = Path.Combine(folder, kind.Name + ".png");
            if (!File.Exists(path)) throw new FileNotFoundException($"There is no '{path}'; expected a picture of each of {Kind.All.Count} kinds beside the program.", path);
            using var encoded = SKData.Create(path);
            using var whole = SKBitmap.Decode(encoded) ?? throw new InvalidDataException($"'{path}' is no picture.");
            using var visible = new SKBitmap();
            if (!whole.ExtractSubset(visible, VisibleBounds(whole))) throw new InvalidDataException($"'{path}' has no visible pixel.");
            _images[kind] = SKImage.FromBitmap(visible);
            Colors[kind] = MeanColor(visible);
        }
    }

    /// <summary>The mean colour of each kind's visible pixels.</summary>
    public Dictionary<Kind, SKColor> Colors { get; } = [];

    /// <summary>The kind's picture, its longer side <paramref name="side"/> pixels (one less where what remains at the edge cannot be
    /// seen).</summary>
    public Sprite Get(Kind kind, int side) => _scaled.GetOrAdd((kind, side), static (key, self) => self.Scale(key.Item1, key.Item2), this);

    public void Dispose()
    {
        foreach (var image in _images.Values) image.Dispose();
    }

    private Sprite Scale(Kind kind, int side)
    {
        var image = _images[kind];
        var scale = (double)side / Math.Max(image.Width, image.Height);
        var (width, height) = (Math.Max(1, (int)Math.Round(image.Width * scale)), Math.Max(1, (int)Math.Round(image.Height * scale)));
        var info = new SKImageInfo(width, height, SKColorType.Rgba8888, SKAlphaType.Premul);
        using var scaled = new SKBitmap(info);
        using (var pixels = scaled.PeekPixels())
            if (!image.ScalePixels(pixels, SKFilterQuality.High)) throw new InvalidOperationException($"The picture of '{kind.Name}' cannot be scaled to {width} x {height}.");
        var bounds = VisibleBounds(scaled);
        var rgba = new byte[bounds.Width * bounds.Height * 4];
        for (var y = 0; y < bounds.Height; y++)
            scaled.GetPixelSpan().Slice(((y + bounds.Top) * width + bounds.Left) * 4, bounds.Width * 4).CopyTo(rgba.AsSpan(y * bounds.Width * 4));
        return new(bounds.Width, bounds.Height, rgba);
    }

    private static SKRectI VisibleBounds(SKBitmap bitmap)
    {
        var (left, top, right, bottom) = (bitmap.Width, bitmap.Height, 0, 0);
        for (var y = 0; y < bitmap.Height; y++)
            for (var x = 0; x < bitmap.Width; x++)
            {
                if (bitmap.GetPixel(x, y).Alpha < VisibleAlpha) continue;
                (left, top, right, bottom) = (Math.Min(left, x), Math.Min(top, y), Math.Max(right, x + 1), Math.Max(bottom, y + 1));
            }
        return new(left, top, right, bottom);
    }

    private static SKColor MeanColor(SKBitmap bitmap)
    {
        long red = 0, green = 0, blue = 0, alpha = 0;
        foreach (var p in bitmap.Pixels)
            (red, green, blue, alpha) = (red + p.Red * p.Alpha, green + p.Green * p.Alpha, blue + p.Blue * p.Alpha, alpha + p.Alpha);
        return new((byte)(red / alpha), (byte)(green / alpha), (byte)(blue / alpha));
    }
}
