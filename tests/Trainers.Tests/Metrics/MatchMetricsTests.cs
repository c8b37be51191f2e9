using CsCheck;
using MambaVL.Metrics;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Tests.Metrics;

public class MatchMetricsTests
{
    private static readonly MLContext s_ml = new(seed: 1);

    [Fact]
    public void By_hand()
    {
        // 3 true positives, 1 false positive, 4 true negatives, 2 false negatives.
        var metrics = Evaluate([.. Rows(3, true, "Yes."), .. Rows(1, false, "yes"), .. Rows(4, false, "No."), .. Rows(2, true, "False.")]);
        (metrics.TruePositives, metrics.FalsePositives, metrics.TrueNegatives, metrics.FalseNegatives).Should().Be((3, 1, 4, 2));
        metrics.Accuracy.Should().BeApproximately(0.7, 1e-12);
        metrics.Precision.Should().BeApproximately(0.75, 1e-12);
        metrics.Recall.Should().BeApproximately(0.6, 1e-12);
        metrics.F1.Should().BeApproximately(2 * 0.75 * 0.6 / (0.75 + 0.6), 1e-12);
        metrics.YesRatio.Should().BeApproximately(0.4, 1e-12);
        (metrics.UnreadableShare, metrics.RowCount).Should().Be((0, 10));
    }

    [Theory]
    [InlineData("no", false, true)]
    [InlineData("No.", false, true)] // the reference counts this as yes
    [InlineData(" FALSE . ", false, true)]
    [InlineData("True.", true, true)]
    [InlineData("yes", true, true)]
    [InlineData("no, there is none", true, false)]
    [InlineData("maybe", true, false)]
    [InlineData("", true, false)]
    public void What_text_counts_as(string text, bool predicted, bool readable)
    {
        var metrics = Evaluate([new(true, text)]);
        metrics.PerRow[0].Should().Be(new MatchScores(true, predicted, readable));
        metrics.UnreadableShare.Should().Be(readable ? 0 : 1);
    }

    [Fact]
    public void Shares_of_nothing_are_0()
    {
        var metrics = Evaluate(Rows(2, false, "no"));
        (metrics.Accuracy, metrics.Precision, metrics.Recall, metrics.F1, metrics.YesRatio).Should().Be((1, 0, 0, 0, 0));
        metrics = Evaluate(Rows(2, true, "no"));
        (metrics.Accuracy, metrics.Precision, metrics.Recall, metrics.F1, metrics.YesRatio).Should().Be((0, 0, 0, 0, 0));
    }

    [Fact]
    public void Bool_answers_have_their_readable_column()
    {
        var data = s_ml.Data.LoadFromEnumerable([
            new BoolRow { Label = 1, Matches = true, IsReadable = true }, new BoolRow { Label = 0, Matches = false, IsReadable = true },
            new BoolRow { Label = 0, Matches = false, IsReadable = false }]);
        var metrics = s_ml.VisionLanguage().EvaluateMatches(data);
        metrics.PerRow.Should().Equal(new MatchScores(true, true, true), new MatchScores(false, false, true), new MatchScores(false, true, false));
        s_ml.VisionLanguage().EvaluateMatches(data, labelColumnName: "Matches.Readable").TruePositives.Should().Be(1);
    }

    [Fact]
    public void Labels_are_yes_or_no()
    {
        s_ml.VisionLanguage().EvaluateMatches(s_ml.Data.LoadFromEnumerable([new TextRow("Yes", "yes"), new TextRow("false", "no")])).Accuracy.Should().Be(1);
        FluentActions.Invoking(() => s_ml.VisionLanguage().EvaluateMatches(s_ml.Data.LoadFromEnumerable([new TextRow("perhaps", "yes")])))
            .Should().Throw<InvalidDataException>().WithMessage("*'Label', row 0*'perhaps'*");
        foreach (var bad in new[] { float.NaN, 2, 0.5f })
            FluentActions.Invoking(() => s_ml.VisionLanguage().EvaluateMatches(s_ml.Data.LoadFromEnumerable([new BoolRow { Label = bad }])))
                .Should().Throw<InvalidDataException>().WithMessage("*'Label', row 0*");
        FluentActions.Invoking(() => Evaluate([])).Should().Throw<InvalidDataException>().WithMessage("*no rows*");
    }

    [Fact]
    public void Columns_are_checked()
    {
        var data = s_ml.Data.LoadFromEnumerable([new BoolRow()]);
        FluentActions.Invoking(() => s_ml.VisionLanguage().EvaluateMatches(data, matchesColumnName: "Answer")).Should().Throw<ArgumentOutOfRangeException>().WithMessage("Could not find matches column 'Answer'*");
        FluentActions.Invoking(() => s_ml.VisionLanguage().EvaluateMatches(data, matchesColumnName: "Label")).Should().Throw<ArgumentOutOfRangeException>().WithMessage("Schema mismatch for matches column 'Label': expected Boolean or String, got Single*");
    }

    [Fact]
    public void Shares_are_in_range_in_any_order_and_the_truth_is_perfect() => Gen.Select(Gen.Bool, Gen.OneOfConst("yes", "no", "True.", "?")).Array[1, 12].Sample(pairs =>
    {
        var rows = pairs.Select(p => new Row(p.Item1, p.Item2)).ToArray();
        var (metrics, reversed) = (Evaluate(rows), Evaluate([.. rows.Reverse()]));
        Shares(metrics).Should().OnlyContain(s => s >= 0 && s <= 1).And.Equal(Shares(reversed));
        Evaluate([.. rows.Select(r => r with { Matches = r.Label ? "yes" : "no" })]).Accuracy.Should().Be(1);

        static double[] Shares(MatchMetrics m) => [m.Accuracy, m.Precision, m.Recall, m.F1, m.YesRatio, m.UnreadableShare];
    }, iter: 50);

    private static Row[] Rows(int count, bool label, string text) => [.. Enumerable.Repeat(new Row(label, text), count)];

    private static MatchMetrics Evaluate(Row[] rows) => s_ml.VisionLanguage().EvaluateMatches(s_ml.Data.LoadFromEnumerable(rows));

    private sealed record Row(bool Label, string Matches);

    private sealed record TextRow(string Label, string Matches);

    private sealed class BoolRow
    {
        public float Label { get; set; }

        public bool Matches { get; set; }

        [ColumnName("Matches.Readable")]
        public bool IsReadable { get; set; } = true;
    }
}
