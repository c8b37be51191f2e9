using System.Globalization;
using CsCheck;
using MambaVL.Metrics;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Tests.Metrics;

public class GroundingMetricsTests
{
    private static readonly MLContext s_ml = new(seed: 1);

    private static readonly Gen<float[]> s_box = Gen.Select(Gen.Int[0, 50], Gen.Int[0, 50], Gen.Int[1, 50], Gen.Int[1, 50])
        .Select((x, y, w, h) => new float[] { x, y, x + w, y + h });

    [Fact]
    public void By_hand()
    {
        var metrics = Evaluate([
            new([0, 0, 10, 10], [0, 0, 10, 10]), // 1
            new([0, 0, 10, 10], [0, 0, 10, 6]), // 0.6
            new([0, 0, 10, 10], [5, 0, 15, 10]), // 50 of 150
            new([0, 0, 10, 10], [20, 20, 30, 30])]); // 0
        metrics.PerRow.Select(r => r.Iou).Should().Equal([1, 0.6, 1 / 3.0, 0], (a, b) => Math.Abs(a - b) < 1e-12);
        (metrics.Accuracy, metrics.UnreadableShare, metrics.IouThreshold, metrics.RowCount).Should().Be((0.5, 0, 0.5, 4));
        metrics.MeanIou.Should().BeApproximately((1 + 0.6 + 1 / 3.0) / 4, 1e-12);
    }

    [Fact]
    public void Right_is_more_than_the_threshold()
    {
        Row[] half = [new([0, 0, 10, 10], [0, 0, 10, 5])];
        Evaluate(half).Accuracy.Should().Be(0);
        Evaluate(half, 0.49).Accuracy.Should().Be(1);
        foreach (var bad in new[] { -0.1, 1, double.NaN, double.PositiveInfinity })
            FluentActions.Invoking(() => Evaluate(half, bad)).Should().Throw<ArgumentOutOfRangeException>();
    }

    [Fact]
    public void A_box_that_is_not_finite_is_unreadable_and_a_miss()
    {
        var metrics = Evaluate([new([0, 0, 1, 1], [float.NaN, float.NaN, float.NaN, float.NaN]), new([0, 0, 1, 1], [0, 0, 1, 1])]);
        (metrics.Accuracy, metrics.MeanIou, metrics.UnreadableShare).Should().Be((0.5, 0.5, 0.5));
        metrics.PerRow[0].Should().Be(new GroundingScores(0, false, false));
    }

    [Fact]
    public void The_readable_column_is_found_beside_the_box_or_named()
    {
        var data = s_ml.Data.LoadFromEnumerable([new ReadableRow { IsReadable = false, Other = true }]);
        s_ml.VisionLanguage().EvaluateGrounding(data).UnreadableShare.Should().Be(1);
        s_ml.VisionLanguage().EvaluateGrounding(data, readableColumnName: "Other").UnreadableShare.Should().Be(0);
        FluentActions.Invoking(() => s_ml.VisionLanguage().EvaluateGrounding(data, readableColumnName: "None")).Should().Throw<ArgumentOutOfRangeException>().WithMessage("*readable column 'None'*");
        FluentActions.Invoking(() => s_ml.VisionLanguage().EvaluateGrounding(data, readableColumnName: "Box")).Should().Throw<ArgumentOutOfRangeException>().WithMessage("*expected Boolean*");
    }

    [Fact]
    public void Text_is_read_as_shares_of_the_image()
    {
        var before = CultureInfo.CurrentCulture;
        try
        {
            CultureInfo.CurrentCulture = new CultureInfo("de-DE");
            var metrics = Text([new([64, 0, 320, 240], "[0.10,0.00,0.50,0.50]."), new([0, 0, 1, 1], "no box"), new([0, 0, 64, 48], "[0.10,0.10,0.00,0.00].")], "Size");
            metrics.PerRow.Should().Equal(new GroundingScores[] { new(1, true, true), new(0, false, false), new(0, false, true) },
                (a, b) => Math.Abs(a.Iou - b.Iou) < 1e-12 && (a.IsCorrect, a.IsReadable) == (b.IsCorrect, b.IsReadable));
            metrics.UnreadableShare.Should().BeApproximately(1 / 3.0, 1e-12);
        }
        finally
        {
            CultureInfo.CurrentCulture = before;
        }
    }

    [Fact]
    public void Text_and_true_boxes_of_other_units_are_an_error()
    {
        Text([new([0.1f, 0, 0.5f, 0.5f], "[0.10,0.00,0.50,0.50].")], null).MeanIou.Should().BeApproximately(1, 1e-6);
        FluentActions.Invoking(() => Text([new([64, 0, 320, 240], "[0.10,0.00,0.50,0.50].")], null)).Should().Throw<InvalidDataException>().WithMessage("*row 0*imageSizeColumnName*");
        FluentActions.Invoking(() => Text([new([0, 0, 1, 1], "") { Size = [0, 480] }], "Size")).Should().Throw<InvalidDataException>().WithMessage("*'Size', row 0*");
        FluentActions.Invoking(() => s_ml.VisionLanguage().EvaluateGrounding(s_ml.Data.LoadFromEnumerable([new Row([0, 0, 1, 1], [0, 0, 1, 1])]), imageSizeColumnName: "TrueBox"))
            .Should().Throw<ArgumentException>().WithMessage("*for boxes in text*");
    }

    [Fact]
    public void A_true_box_must_be_one()
    {
        FluentActions.Invoking(() => Evaluate([new([float.NaN, 0, 1, 1], [0, 0, 1, 1])])).Should().Throw<InvalidDataException>().WithMessage("*'TrueBox', row 0*not finite*");
        FluentActions.Invoking(() => Evaluate([new([50, 50, 20, 10], [0, 0, 1, 1])])).Should().Throw<InvalidDataException>().WithMessage("*no area*width*");
        FluentActions.Invoking(() => Evaluate([])).Should().Throw<InvalidDataException>().WithMessage("*no rows*");
    }

    [Fact]
    public void Columns_are_checked()
    {
        var data = s_ml.Data.LoadFromEnumerable([new TextRow([0, 0, 1, 1], "")]);
        FluentActions.Invoking(() => s_ml.VisionLanguage().EvaluateGrounding(data, trueBoxColumnName: "Box")).Should().Throw<ArgumentOutOfRangeException>().WithMessage("*Schema mismatch for true box column 'Box'*");
        FluentActions.Invoking(() => s_ml.VisionLanguage().EvaluateGrounding(data, boxColumnName: "Size")).Should().Throw<ArgumentOutOfRangeException>().WithMessage("*Schema mismatch for box column 'Size'*");
        FluentActions.Invoking(() => s_ml.VisionLanguage().EvaluateGrounding(data, imageSizeColumnName: "TrueBox")).Should().Throw<ArgumentOutOfRangeException>().WithMessage("*image size column 'TrueBox'*");
    }

    [Fact]
    public void Overlaps_are_in_range_and_alike_both_ways() => Gen.Select(s_box, s_box).Sample((a, b) =>
    {
        var iou = Evaluate([new(a, b)]).MeanIou;
        iou.Should().BeInRange(0, 1);
        Evaluate([new(b, a)]).MeanIou.Should().Be(iou);
        Evaluate([new(a, a)]).Should().Match<GroundingMetrics>(m => m.MeanIou == 1 && m.Accuracy == 1);
    }, iter: 30);

    [Fact]
    public void A_vector_of_any_length_must_have_four_numbers()
    {
        var data = s_ml.Data.LoadFromEnumerable([new AnyLengthRow()]);
        FluentActions.Invoking(() => s_ml.VisionLanguage().EvaluateGrounding(data)).Should().Throw<InvalidDataException>().WithMessage("*'Box', row 0*found 3 numbers; expected 4*");
    }

    private static GroundingMetrics Evaluate(Row[] rows, double threshold = 0.5)
        => s_ml.VisionLanguage().EvaluateGrounding(s_ml.Data.LoadFromEnumerable(rows), iouThreshold: threshold);

    private static GroundingMetrics Text(TextRow[] rows, string? size)
        => s_ml.VisionLanguage().EvaluateGrounding(s_ml.Data.LoadFromEnumerable(rows), imageSizeColumnName: size);

    private sealed class Row(float[] trueBox, float[] box)
    {
        [VectorType(4)]
        public float[] TrueBox { get; } = trueBox;

        [VectorType(4)]
        public float[] Box { get; } = box;
    }

    private sealed class TextRow(float[] trueBox, string box)
    {
        [VectorType(4)]
        public float[] TrueBox { get; } = trueBox;

        public string Box { get; } = box;

        [VectorType(2)]
        public int[] Size { get; init; } = [640, 480];
    }

    private sealed class AnyLengthRow
    {
        public float[] TrueBox { get; set; } = [0, 0, 1, 1];

        public float[] Box { get; set; } = [0, 0, 1];
    }

    private sealed class ReadableRow
    {
        [VectorType(4)]
        public double[] TrueBox { get; set; } = [0, 0, 1, 1];

        [VectorType(4)]
        public float[] Box { get; set; } = [0, 0, 1, 1];

        [ColumnName("Box.Readable")]
        public bool IsReadable { get; set; }

        public bool Other { get; set; }
    }
}
