using System.Text;
using MambaVL.Images;

namespace MambaVL.Tests.Images;

/// <summary>The pictures in tests/data/images, and Pillow's pixels of them.</summary>
internal static class Pictures
{
    private static readonly string Root = Path.Combine(Fixtures.Repository, "tests/data/images");

    public static readonly string[] Decodable =
        [.. Directory.GetFiles(Path.Combine(Root, "decode")).Where(f => !f.EndsWith(".ppm")).Select(f => Path.GetFileName(f)!).Order(StringComparer.Ordinal)];

    public static readonly string[] Resizable =
        [.. Directory.GetFiles(Path.Combine(Root, "resize"), "*.in.ppm").Select(f => Path.GetFileName(f)[..^".in.ppm".Length]).Order(StringComparer.Ordinal)];

    public static string File(string name) => Path.Combine(Root, "decode", name);

    public static byte[] Bytes(string name) => System.IO.File.ReadAllBytes(File(name));

    public static (int Width, int Height, byte[] Pixels) Expected(string name) => Ppm(Path.ChangeExtension(File(name), ".ppm"));

    public static string Resize(string name) => Path.Combine(Root, "resize", name);

    public static string[] Large() => Directory.GetFiles(Path.Combine(Root, "resize"), "large-*.out.ppm");

    public static (int Width, int Height, byte[] Pixels) Ppm(string path)
    {
        var data = System.IO.File.ReadAllBytes(path);
        var header = Encoding.ASCII.GetString(data, 0, Math.Min(data.Length, 40)).Split('\n');
        var size = header[1].Split(' ').Select(int.Parse).ToArray();
        return (size[0], size[1], data[^(size[0] * size[1] * 3)..]);
    }

    /// <summary>The greatest difference of two pictures' bytes, and how many differ.</summary>
    public static (int Greatest, int Count) Difference(ReadOnlySpan<byte> actual, ReadOnlySpan<byte> expected)
    {
        actual.Length.Should().Be(expected.Length);
        var (greatest, count) = (0, 0);
        for (var i = 0; i < actual.Length; i++)
        {
            var d = Math.Abs(actual[i] - expected[i]);
            greatest = Math.Max(greatest, d);
            if (d > 0) count++;
        }
        return (greatest, count);
    }

    public static DecodedImage Noise(int width, int height, int seed)
    {
        var pixels = new byte[width * height * 3];
        new Random(seed).NextBytes(pixels);
        return DecodedImage.FromPixels(width, height, pixels);
    }
}
