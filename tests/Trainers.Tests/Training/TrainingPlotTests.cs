using System.Diagnostics;
using MambaVL.Training;
using SkiaSharp;

namespace MambaVL.Tests.Training;

public sealed class TrainingPlotTests : IDisposable
{
    // Where the default size has the loss's panel if there is no metric.
    private const int Left = 90, Right = 1170, Top = 40, Bottom = 505;

    private readonly string _folder = Directory.CreateTempSubdirectory("mambavl-plot-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void ItIsAPngOfTheSizeAskedFor()
    {
        using var standard = Draw(Line(10));
        (standard.Width, standard.Height).Should().Be((1200, 800));
        using var small = Draw(Line(10), new() { Width = 640, Height = 400 });
        (small.Width, small.Height).Should().Be((640, 400));
        File.ReadAllBytes(Path.Combine(_folder, "loss.png")).AsSpan(0, 8).ToArray().Should().Equal(0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A);
    }

    [Fact]
    public void PointsStandWhereTheirStepAndTheirValueSay()
    {
        // From 4 down to 0: a diagonal through the whole panel.
        using var picture = Draw(Line(101, i => 4 - i / 25.0));
        foreach (var share in new[] { 0.1, 0.25, 0.5, 0.75, 0.9 })
        {
            var (x, y) = (Left + share * (Right - Left), Top + share * (Bottom - Top));
            Near(picture, x, y, TrainingPlot.Dark).Should().BeTrue($"the line runs through {share}");
            Near(picture, x, y - 30, TrainingPlot.Dark).Should().BeFalse("and nowhere else");
            Near(picture, x, y + 30, TrainingPlot.Dark).Should().BeFalse("and nowhere else");
        }
    }

    [Fact]
    public void ASpikeIsSeenAndHardlyMovesTheMean()
    {
        using var picture = Draw(Line(1001, i => i == 500 ? 4 : 1));
        var x = (Left + Right) / 2;
        Near(picture, x, Top + 60, TrainingPlot.Light).Should().BeTrue();
        Near(picture, x, Top + 60, TrainingPlot.Dark).Should().BeFalse();
        Near(picture, x, Bottom - (Bottom - Top) * (1 + 3 / 21.0) / 4, TrainingPlot.Dark).Should().BeTrue("the mean of 21 steps");
        TrainingPlot.Smoothed([.. Enumerable.Range(0, 200).Select(i => new TrainingPlot.Value(i, i))])[100].Y.Should().BeApproximately(100, 1e-9, "it does not trail");
    }

    [Fact]
    public void TheLearningRateIsBelow()
    {
        // It falls from 2e-5 to 0 in the lowest panel.
        using var picture = Draw([.. Enumerable.Range(0, 101).Select(i => new TrainingPoint(i, 1, 2e-5 * (100 - i) / 100))]);
        Near(picture, Left + 0.5 * (Right - Left), 748 - 99, TrainingPlot.Rate).Should().BeTrue();
        Near(picture, Left + 0.25 * (Right - Left), 748 - 149, TrainingPlot.Rate).Should().BeTrue();
        Near(picture, Left + 0.25 * (Right - Left), 748 - 50, TrainingPlot.Rate).Should().BeFalse();
    }

    [Fact]
    public void TheMetricHasAPanelWhereThereIsOne()
    {
        using var without = Draw(Line(100));
        Count(without, TrainingPlot.Metric).Should().Be(0);
        using var with = Draw([.. Line(100).Select(p => p.Step % 20 == 0 ? p with { Metric = p.Step / 100.0 } : p)]);
        Count(with, TrainingPlot.Metric).Should().BeGreaterThan(500);
    }

    [Fact]
    public void ALossThatIsNotFiniteIsMarked()
    {
        using var well = Draw(Line(101));
        Count(well, TrainingPlot.Bad).Should().Be(0);
        using var picture = Draw(Line(101, i => i switch { 25 => double.NaN, 50 => double.PositiveInfinity, 75 => double.NegativeInfinity, _ => 1 + i }));
        foreach (var share in new[] { 0.25, 0.5, 0.75 }) Near(picture, Left + share * (Right - Left), Bottom - 6, TrainingPlot.Bad).Should().BeTrue();
        Near(picture, Left + 0.6 * (Right - Left), Bottom - 6, TrainingPlot.Bad).Should().BeFalse();
        Count(picture, TrainingPlot.Dark).Should().BeGreaterThan(500, "the others are drawn");
        using var nothing = Draw(Line(10, _ => double.NaN));
        Count(nothing, TrainingPlot.Bad).Should().BeGreaterThan(100);
    }

    [Fact]
    public void OnePointAndNoneWillDo()
    {
        using var none = Draw([]);
        using var one = Draw([new(7, 0.5, 1e-4, 0.25)]);
        Count(one, TrainingPlot.Dark).Should().BeGreaterThan(Count(none, TrainingPlot.Dark) + 20);
        Count(one, TrainingPlot.Rate).Should().BeGreaterThan(Count(none, TrainingPlot.Rate) + 20);
        Count(one, TrainingPlot.Metric).Should().BeGreaterThan(20);
        using var same = Draw([new(3, 2, 0), new(3, 2, 0), new(3, -2, 0)]);
        Count(same, TrainingPlot.Light).Should().BeGreaterThan(20);
    }

    [Fact]
    public void AMillionPointsTakeNoLongTime()
    {
        var random = new Random(1);
        var points = Line(1_000_000, i => i switch { 300_123 => 4, 700_321 => 0, _ => 1.5 + random.NextDouble() });
        var watch = Stopwatch.StartNew();
        using var picture = Draw(points);
        watch.Elapsed.Should().BeLessThan(TimeSpan.FromSeconds(20), "it takes half a second where nothing else runs");
        Near(picture, 600, Bottom - (Bottom - Top) * 0.5, TrainingPlot.Light).Should().BeTrue();
        Near(picture, Left + 0.300123 * (Right - Left), Top + 20, TrainingPlot.Light).Should().BeTrue("one of a thousand in its column, and the greatest");
        Near(picture, Left + 0.700321 * (Right - Left), Bottom - 20, TrainingPlot.Light).Should().BeTrue("the least");
    }

    [Fact]
    public void AxesHaveNumbersAndNamesWithoutAnyFont()
    {
        using var picture = Draw(Line(100));
        var ink = 0;
        for (var y = Top; y < Bottom; y++)
            for (var x = 0; x < Left - 8; x++)
                if (picture.GetPixel(x, y).Red < 0x80) ink++;
        ink.Should().BeGreaterThan(200, "numbers stand left of the axis");

        var letters = Enumerable.Range('a', 26).Concat(Enumerable.Range('A', 26)).Concat(Enumerable.Range('0', 10)).Select(c => (char)c).Concat(".,:-+/=_()%<>#&").ToList();
        letters.Select(c => Convert.ToHexString(Glyph(c))).Distinct().Should().HaveCount(letters.Count, "each looks like no other");
        Glyph('é').Should().Equal(Glyph('&'), "what is not there is a box");
        StrokeFont.Width("", 12).Should().Be(0);
        StrokeFont.Width("11", 12).Should().Be(2 + 4 + 2, "one unit of 2 pixels, two between, one");

        static byte[] Glyph(char c)
        {
            using var bitmap = new SKBitmap(new SKImageInfo(40, 40, SKColorType.Gray8));
            using var canvas = new SKCanvas(bitmap);
            canvas.Clear(SKColors.White);
            StrokeFont.Draw(canvas, c.ToString(), 8, 28, 18, SKColors.Black);
            return bitmap.Bytes;
        }
    }

    [Theory]
    [InlineData(0, 4, 10, 0.5, "0.5")]
    [InlineData(0, 2e-5, 4, 5e-6, "5e-6")]
    [InlineData(0, 2_000_000, 9, 500_000, "0.5M")]
    [InlineData(0, 20_000, 9, 5_000, "5k")]
    [InlineData(0, 950, 9, 200, "200")]
    [InlineData(0, 0.03, 5, 0.01, "0.01")]
    public void TicksAreRoundNumbers(double from, double to, int count, double step, string first)
    {
        Ticks.Step(from, to, count).Should().BeApproximately(step, step * 1e-9);
        Ticks.Text(step, step, to).Should().Be(first);
        Ticks.Between(from, to, step).Should().HaveCountLessThan(2 * count + 2).And.OnlyHaveUniqueItems();
    }

    [Fact]
    public void TheFileIsThereWholeOrAsItWas()
    {
        var path = Path.Combine(_folder, "loss.png");
        using (Draw(Line(10))) { }
        var before = File.ReadAllBytes(path);
        Fails(() => TrainingPlot.Save(path, [new(2, 1, 1), new(1, 1, 1)]), "*Point 1*step 1*step 2*");
        Fails(() => TrainingPlot.Save(path, [], new() { Width = 20 }), "*Width is 20*300*");
        Fails(() => TrainingPlot.Save(path, [], new() { Height = 20_000 }), "*Height is 20000*");
        File.ReadAllBytes(path).Should().Equal(before);
        Directory.GetFiles(_folder).Should().Equal(path);
        ((Action)(() => TrainingPlot.Save(Path.Combine(_folder, "none", "loss.png"), []))).Should().Throw<IOException>();

        static void Fails(Action call, string message) => call.Should().Throw<ArgumentException>().WithMessage(message);
    }

    private static TrainingPoint[] Line(int count, Func<int, double>? loss = null)
        => [.. Enumerable.Range(0, count).Select(i => new TrainingPoint(i, loss?.Invoke(i) ?? 5.0 / (1 + i), 1e-4))];

    private SKBitmap Draw(IReadOnlyList<TrainingPoint> points, TrainingPlotOptions? options = null)
    {
        var path = Path.Combine(_folder, "loss.png");
        TrainingPlot.Save(path, points, options);
        return SKBitmap.Decode(path);
    }

    // Lines are smoothed at their edges; within two pixels one has the whole colour.
    private static bool Near(SKBitmap picture, double x, double y, SKColor color)
    {
        for (var j = -2; j <= 2; j++)
            for (var i = -2; i <= 2; i++)
                if (picture.GetPixel((int)Math.Round(x) + i, (int)Math.Round(y) + j) == color) return true;
        return false;
    }

    private static int Count(SKBitmap picture, SKColor color) => picture.Pixels.Count(p => p == color);
}
