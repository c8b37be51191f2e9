using System.Globalization;
using System.Text.RegularExpressions;
using MambaVL.Checkpoints;
using MambaVL.Images;
using TorchSharp;

namespace MambaVL.Tests.Images;

public partial class ImageProcessorTests
{
    [SkippableFact, Trait("Category", "Parity")]
    public void ResizedPixelsEqualTheReference()
    {
        var tested = 0;
        foreach (var (key, image, size, file) in Cases("resized_u8"))
        {
            using var _ = image;
            using var expected = file.Read(key);
            var actual = new ImageProcessor(new() { ImageSize = size }).Resize(image);
            var (greatest, count) = Pictures.Difference(actual, expected.bytes);
            greatest.Should().BeLessThanOrEqualTo(1, "{0}: greatest difference {1}, tolerance 1", key, greatest);
            count.Should().BeLessThanOrEqualTo(actual.Length / 1000, "{0}: {1} of {2} values differ, tolerance 0.1 %", key, count, actual.Length);
            tested++;
        }
        tested.Should().BePositive("the fixtures hold resized pictures");
    }

    [SkippableFact, Trait("Category", "Parity")]
    public void PixelValuesEqualTheReference()
    {
        var tested = 0;
        foreach (var (key, image, size, file) in Cases("pixel_values"))
        {
            using var _ = image;
            using var scope = torch.NewDisposeScope();
            var expected = file.Read(key);
            var actual = new ImageProcessor(new() { ImageSize = size }).Process(image);
            actual.shape.Should().Equal(expected.shape);
            actual.dtype.Should().Be(torch.ScalarType.Float32);
            var greatest = (actual - expected).abs().max().item<float>();
            var tolerance = 2e-4f * expected.abs().max().item<float>();
            greatest.Should().BeLessThanOrEqualTo(tolerance, "{0}: greatest difference {1}, tolerance {2}", key, greatest, tolerance);
            tested++;
        }
        tested.Should().BePositive("the fixtures hold pixel values");
    }

    /// <summary>Every "{name}.{kind}.{size}" of the fixtures with its picture, whatever the picture's format.</summary>
    private static IEnumerable<(string Key, DecodedImage Image, int Size, Checkpoint File)> Cases(string kind)
    {
        var folder = Fixtures.Path("images");
        using var file = Checkpoint.Open(Fixtures.Path("images", "expected.safetensors"));
        foreach (var key in file.Tensors.Keys)
        {
            if (Key().Match(key) is not { Success: true } m || m.Groups["kind"].Value != kind) continue;
            var path = Directory.GetFiles(folder).Single(f => Path.GetFileNameWithoutExtension(f) == m.Groups["name"].Value);
            yield return (key, DecodedImage.Decode(path), int.Parse(m.Groups["size"].Value, CultureInfo.InvariantCulture), file);
        }
    }

    [GeneratedRegex(@"^(?<name>.+)\.(?<kind>resized_u8|pixel_values)\.(?<size>\d+)$")]
    private static partial Regex Key();

    public static TheoryData<string> OddShapes() => [.. Pictures.Resizable];

    [Theory, MemberData(nameof(OddShapes))]
    public void OddShapesEqualPillow(string name)
    {
        var (w, h, pixels) = Pictures.Ppm(Pictures.Resize(name + ".in.ppm"));
        var (size, _, expected) = Pictures.Ppm(Pictures.Resize(name + ".out.ppm"));
        using var image = DecodedImage.FromPixels(w, h, pixels);
        Pictures.Difference(new ImageProcessor(new() { ImageSize = size }).Resize(image), expected).Should().Be((0, 0));
    }

    [Fact]
    public void ALargePictureEqualsPillow()
    {
        foreach (var path in Pictures.Large())
        {
            var (size, _, expected) = Pictures.Ppm(path);
            var sides = Path.GetFileName(path).Split('-')[1].Split('x').Select(int.Parse).ToArray();
            using var image = Formula(sides[0], sides[1]);
            Pictures.Difference(new ImageProcessor(new() { ImageSize = size }).Resize(image), expected).Should().Be((0, 0));
        }
        Pictures.Large().Should().NotBeEmpty();
    }

    // As in eng/make_image_expectations.py.
    private static DecodedImage Formula(int w, int h)
    {
        var pixels = new byte[w * h * 3];
        for (int y = 0, i = 0; y < h; y++)
            for (var x = 0; x < w; x++)
                for (var c = 0; c < 3; c++)
                    pixels[i++] = (byte)(x * x * 3 + y * y * (c + 2) + x * y >> 4);
        return DecodedImage.FromPixels(w, h, pixels);
    }

    [Theory]
    [InlineData(1, 70_000)]
    [InlineData(70_000, 1)]
    [InlineData(1, 1)]
    public void ThinPicturesOfOneColourKeepIt(int width, int height)
    {
        var pixels = new byte[width * height * 3];
        for (var i = 0; i < pixels.Length; i++) pixels[i] = (byte)(i % 3 * 100 + 55);
        using var image = DecodedImage.FromPixels(width, height, pixels);
        var square = new ImageProcessor(new() { ImageSize = 50 }).Resize(image);
        square.Where((v, i) => v != i % 3 * 100 + 55).Should().BeEmpty();
    }

    [Fact]
    public void PixelValuesArePlanesOfNormalisedColours()
    {
        var options = new ImageProcessorOptions { ImageSize = 2, Mean = [0.5f, 0.25f, 0], Std = [0.5f, 2, 1] };
        using var image = DecodedImage.FromPixels(2, 2, [255, 0, 51, 0, 255, 51, 255, 0, 51, 0, 255, 51]);
        using var values = new ImageProcessor(options).Process(image);
        values.shape.Should().Equal(3, 2, 2);
        values.data<float>().ToArray().Should().Equal(1, -1, 1, -1, -0.125f, 0.375f, -0.125f, 0.375f, 0.2f, 0.2f, 0.2f, 0.2f);
    }

    [Fact]
    public void TheDefaultsAreThePublishedCheckpoints()
    {
        var options = new ImageProcessor().Options;
        options.ImageSize.Should().Be(336);
        options.Mean.Should().Equal(0.48145466f, 0.4578275f, 0.40821073f);
        options.Std.Should().Equal(0.26862954f, 0.26130258f, 0.27577711f);
    }

    [Fact]
    public void ABatchIsItsPicturesOneByOne()
    {
        var processor = new ImageProcessor(new() { ImageSize = 30 });
        using var a = Pictures.Noise(40, 7, 1);
        using var b = Pictures.Noise(3, 90, 2);
        using var batch = processor.ProcessBatch([a, b, a]);
        batch.shape.Should().Equal(3, 3, 30, 30);
        using var first = processor.Process(a);
        using var second = processor.Process(b);
        using var expected = torch.stack([first, second, first]);
        batch.data<float>().ToArray().Should().Equal(expected.data<float>().ToArray());
    }

    [Fact]
    public void TheResultOutlivesADisposeScopeOnlyWhenMovedOut()
    {
        using var image = Pictures.Noise(5, 5, 3);
        torch.Tensor kept;
        using (torch.NewDisposeScope()) kept = new ImageProcessor(new() { ImageSize = 4 }).Process(image).MoveToOuterDisposeScope();
        kept.IsInvalid.Should().BeFalse();
        kept.Dispose();
    }

    [Fact]
    public void OptionsKeepTheirOwnCopies()
    {
        float[] mean = [0, 0, 0];
        var options = new ImageProcessorOptions { Mean = mean };
        mean[0] = 1;
        options.Mean.Should().Equal(0, 0, 0);
    }

    [Fact]
    public void BadArgumentsAreRefused()
    {
        var processor = new ImageProcessor();
        Invoking(() => processor.Process(null!)).Should().Throw<ArgumentNullException>();
        Invoking(() => processor.ProcessBatch([])).Should().Throw<ArgumentException>().WithMessage("Found no picture*");
        Invoking(() => processor.Resize(null!)).Should().Throw<ArgumentNullException>();
        Invoking(() => new ImageProcessorOptions { ImageSize = 0 }).Should().Throw<ArgumentOutOfRangeException>().WithMessage("*from 1 to 16,384*");
        Invoking(() => new ImageProcessorOptions { Mean = [1, 2] }).Should().Throw<ArgumentException>().WithMessage("Found [1, 2]; expected three finite values for red*");
        Invoking(() => new ImageProcessorOptions { Std = [1, 0, 1] }).Should().Throw<ArgumentException>().WithMessage("*above 0*");
        Invoking(() => new ImageProcessorOptions { Mean = [float.NaN, 0, 0] }).Should().Throw<ArgumentException>();
        var disposed = Pictures.Noise(2, 2, 4);
        disposed.Dispose();
        Invoking(() => processor.Process(disposed)).Should().Throw<ObjectDisposedException>();
    }

    private static Action Invoking(Func<object?> f) => () => (f() as IDisposable)?.Dispose();
}
