using SkiaSharp;

namespace MambaVL.Samples.Scenes;

internal enum Pattern { Flat, Gradient, Noise, Stripes, Dots }

/// <summary>What lies behind the objects: one colour with a name, in two shades.</summary>
/// <param name="Name">The colour's name.</param>
/// <param name="Shade">The colour.</param>
/// <param name="Other">A neighbouring shade of it.</param>
/// <param name="Pattern">How the two are mixed.</param>
/// <param name="Seed">Direction, width and so on.</param>
internal sealed record Background(string Name, SKColor Shade, SKColor Other, Pattern Pattern, ulong Seed)
{
    // Hue in degrees; saturation and lightness in percent, in a range in which nobody would give another name.
    private static readonly (string Name, int Hue, int HueSpread, int Saturation, int Lightness, int Spread)[] s_colors =
    [
        ("red", 0, 4, 68, 50, 5), ("orange", 29, 4, 88, 56, 4), ("yellow", 52, 4, 85, 66, 5), ("green", 125, 18, 45, 52, 8),
        ("blue", 213, 10, 65, 58, 8), ("purple", 274, 8, 48, 54, 7), ("pink", 338, 7, 80, 82, 4), ("gray", 220, 20, 4, 62, 10),
    ];

    // How far a background's colour and an object's mean colour are apart, at least: else the object could not be seen.
    private const int LeastDistance = 50;

    public static IReadOnlyList<string> Names { get; } = [.. s_colors.Select(c => c.Name)];

    /// <summary>A background before which objects of these colours can be seen.</summary>
    public static Background Create(SceneRandom random, IReadOnlyList<SKColor> objects)
    {
        foreach (var c in random.Shuffled(s_colors))
        {
            var (hue, saturation, lightness) = (c.Hue + random.Between(-(double)c.HueSpread, c.HueSpread), c.Saturation + random.Between(-3.0, 3), c.Lightness + random.Between(-(double)c.Spread, c.Spread));
            var shade = Color(hue, saturation, lightness);
            if (objects.Any(o => Distance(o, shade) < LeastDistance) && c.Name != "gray") continue;
            var other = Color(hue, saturation, lightness + random.Between(3.0, 6) * (random.Chance(0.5) ? 1 : -1));
            var pattern = random.Pick((Pattern.Flat, 3), (Pattern.Gradient, 2), (Pattern.Noise, 1), (Pattern.Stripes, 2), (Pattern.Dots, 2));
            return new(c.Name, shade, other, pattern, random.Next());
        }
        throw new InvalidOperationException("Gray is taken whatever the objects.");
    }

    /// <summary>Fills a square.</summary>
    /// <param name="rgbx">[size, size, 4]; the fourth byte is left alone.</param>
    /// <param name="size">Pixels on a side.</param>
    public void Paint(Span<byte> rgbx, int size)
    {
        var random = new SceneRandom(Seed);
        var angle = random.Between(0, Math.PI);
        var (cos, sin) = (Math.Cos(angle), Math.Sin(angle));
        var period = size / 192.0 * random.Between(10.0, 28);
        var share = random.Between(0.25, 0.5);
        Span<(byte, byte, byte)> mixed = stackalloc (byte, byte, byte)[65]; // shades from one to the other
        for (var i = 0; i < mixed.Length; i++) mixed[i] = Mix((double)i / (mixed.Length - 1));

        var at = 0;
        for (var y = 0; y < size; y++)
            for (var x = 0; x < size; x++)
            {
                var weight = Pattern switch
                {
                    Pattern.Gradient => 0.5 + ((x - size / 2.0) * cos + (y - size / 2.0) * sin) / size * 0.7,
                    // Grains of 2 x 2 pixels: a grain a pixel would double the file and be gone when the picture is shrunk.
                    Pattern.Noise => (Grain(Seed, x >> 1, y >> 1) & 63) / 63.0,
                    Pattern.Stripes => Fraction((x * cos + y * sin) / period) < share ? 1 : 0,
                    Pattern.Dots => Dot(Fraction(x / period), Fraction(y / period)),
                    _ => 0,
                };
                (rgbx[at], rgbx[at + 1], rgbx[at + 2]) = mixed[(int)(Math.Clamp(weight, 0, 1) * (mixed.Length - 1))];
                at += 4;
            }

        static double Fraction(double value) => value - Math.Floor(value);

        double Dot(double x, double y) => (x - 0.5) * (x - 0.5) + (y - 0.5) * (y - 0.5) < share * share ? 1 : 0;
    }

    private static uint Grain(ulong seed, int x, int y)
    {
        var h = (uint)seed ^ ((uint)x * 0x9E3779B1) ^ ((uint)y * 0x85EBCA77);
        h = (h ^ (h >> 15)) * 0x2C1B3C6D;
        h = (h ^ (h >> 12)) * 0x297A2D39;
        return h ^ (h >> 15);
    }

    private (byte, byte, byte) Mix(double weight)
    {
        return (One(Shade.Red, Other.Red), One(Shade.Green, Other.Green), One(Shade.Blue, Other.Blue));

        byte One(byte a, byte b) => (byte)Math.Round(a + (b - a) * weight);
    }

    private static SKColor Color(double hue, double saturation, double lightness)
        => SKColor.FromHsl((float)((hue + 360) % 360), (float)Math.Clamp(saturation, 0, 100), (float)Math.Clamp(lightness, 0, 100));

    // Thiadmer Riemersma's approximation of a perceived distance.
    private static double Distance(SKColor a, SKColor b)
    {
        var red = (a.Red + b.Red) / 2.0;
        var (dr, dg, db) = (a.Red - b.Red, a.Green - b.Green, a.Blue - b.Blue);
        return Math.Sqrt(((512 + red) * dr * dr / 256) + 4 * dg * dg + ((767 - red) * db * db / 256)) / 2;
    }
}
