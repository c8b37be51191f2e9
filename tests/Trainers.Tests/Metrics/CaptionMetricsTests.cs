using System.Globalization;
using System.Text.Json;
using CsCheck;
using MambaVL.Metrics;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Tests.Metrics;

public class CaptionMetricsTests
{
    private static readonly MLContext s_ml = new(seed: 1);

    // Four words at least, so that every n-gram length has one.
    private static readonly Gen<string> s_sentence = Gen.OneOfConst("a", "cat", "dog", "sits", "on", "red", "mat", "the").Array[4, 12].Select(w => string.Join(' ', w));

    private static readonly Gen<CaptionRow[]> s_rows = Gen.Select(s_sentence, s_sentence.Array[1, 4])
        .Select((caption, references) => new CaptionRow(caption, references)).Array[1, 8];

    [SkippableFact, Trait("Category", "Parity")]
    public void Equals_pycocoevalcap_on_the_fixtures()
    {
        using var file = JsonDocument.Parse(File.ReadAllText(Fixtures.Path("metrics", "captioning.json")));
        var examples = file.RootElement.GetProperty("examples").EnumerateArray().ToList();
        var metrics = Evaluate([.. examples.Select(e => new CaptionRow(
            e.GetProperty("prediction").GetString()!, [.. e.GetProperty("references").EnumerateArray().Select(r => r.GetString()!)]))]);

        var bleu = file.RootElement.GetProperty("bleu").EnumerateArray().Select(b => b.GetDouble()).ToArray();
        Near("BLEU", [metrics.Bleu1, metrics.Bleu2, metrics.Bleu3, metrics.Bleu4], bleu);
        Near("CIDEr", [metrics.Cider, .. metrics.PerRow.Select(r => r.Cider)], [Number(file.RootElement, "cider"), .. examples.Select(e => Number(e, "cider"))]);
        Near("ROUGE-L", [metrics.RougeL, .. metrics.PerRow.Select(r => r.RougeL)], [Number(file.RootElement, "rouge_l"), .. examples.Select(e => Number(e, "rouge_l"))]);

        static double Number(JsonElement e, string name) => e.GetProperty(name).GetDouble();
        static void Near(string name, double[] found, double[] expected)
        {
            found.Should().HaveSameCount(expected);
            var greatest = found.Zip(expected, (a, b) => Math.Abs(a - b)).Max();
            greatest.Should().BeLessThanOrEqualTo(1e-6, $"{name}: greatest difference {greatest:g3}, tolerance 1e-6");
        }
    }

    [Fact]
    public void Bleu_by_hand()
    {
        // Clipped: "the" counts twice, as often as in one reference. The length is nearer to 7 than to 6 words.
        var row = Evaluate([new("the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"])]).PerRow[0];
        row.Bleu1.Should().BeApproximately(2.0 / 7, 1e-8);
        row.Bleu2.Should().BeLessThan(1e-6);

        // 3 of 3 words, 2 of 2 pairs, but 4 words were wanted: exp(1 - 4/3).
        row = Evaluate([new("a cat sits", ["a cat sits down"])]).PerRow[0];
        row.Bleu1.Should().BeApproximately(Math.Exp(1 - 4 / 3.0), 1e-8);
        row.Bleu2.Should().BeApproximately(Math.Exp(1 - 4 / 3.0), 1e-8);

        // Nearer to 6 words than to 2.
        Evaluate([new("a b c d e", ["a b", "a b c d e f"])]).PerRow[0].Bleu1.Should().BeApproximately(Math.Exp(1 - 6 / 5.0), 1e-8);

        // Of lengths equally near, the shorter: no penalty.
        Evaluate([new("a b c", ["a b", "a b c d"])]).PerRow[0].Bleu1.Should().BeApproximately(1, 1e-8);
    }

    [Fact]
    public void Corpus_bleu_adds_counts_and_not_scores()
    {
        var metrics = Evaluate([new("a b c d", ["a b c d"]), new("x", ["y"])]);
        metrics.Bleu1.Should().BeApproximately(4 / 5.0, 1e-8);
        metrics.PerRow.Average(r => r.Bleu1).Should().BeApproximately(0.5, 1e-8);
    }

    [Fact]
    public void Rouge_by_hand()
    {
        // Common: a sits (2). Precision 2/3, recall 2/4.
        var (p, r, b) = (2 / 3.0, 2 / 4.0, 1.44);
        Evaluate([new("a dog sits", ["a cat sits down"])]).RougeL.Should().BeApproximately((1 + b) * p * r / (r + b * p), 1e-12);

        // Best precision from one reference (2/2), best recall from another (1/1).
        Evaluate([new("a b", ["a b c d", "a"])]).RougeL.Should().BeApproximately(1, 1e-12);
    }

    [Theory]
    [InlineData("abcbdab", "bdcaba", 4)]
    [InlineData("abc", "def", 0)]
    [InlineData("", "a", 0)]
    [InlineData("aaa", "aa", 2)]
    public void Longest_common_subsequence(string a, string b, int expected)
        => RougeL.LongestCommonSubsequence([.. a.Select(c => (int)c)], [.. b.Select(c => (int)c)]).Should().Be(expected);

    [Fact]
    public void Cider_by_hand()
    {
        // Two rows with no word in common: each weight is log 2. Row 1: of the pairs "a b", "b c" one is found, of the words two of
        // three, of three words none; same length, so no penalty.
        var row = Evaluate([new("a b d", ["a b c"]), new("x y z", ["x y z"])]).PerRow;
        row[0].Cider.Should().BeApproximately(10 * (2 / 3.0 + 1 / 2.0) / 4, 1e-12);
        row[1].Cider.Should().BeApproximately(10 * 3 / 4.0, 1e-12, "three words have no four");

        // Two words more than the reference: exp(-2^2 / (2 * 6^2)).
        row = Evaluate([new("a b c", ["a"]), new("x", ["x"])]).PerRow;
        row[0].Cider.Should().BeApproximately(10 * Math.Exp(-4 / 72.0) / Math.Sqrt(3) / 4, 1e-12);
    }

    [Fact]
    public void Cider_of_what_all_rows_say_is_nothing()
    {
        Evaluate([new("a cat sits here", ["a cat sits here"])]).Cider.Should().Be(0, "one row has nothing to be rarer than");
        Evaluate([new("a cat", ["a cat"]), new("a cat", ["a cat"])]).Cider.Should().Be(0);
    }

    [Fact]
    public void An_equal_caption_is_perfect() => s_rows.Sample(rows =>
    {
        var metrics = Evaluate([.. rows.Select(r => new CaptionRow(r.References[0], r.References))]);
        metrics.Bleu4.Should().BeApproximately(1, 1e-8);
        metrics.RougeL.Should().BeApproximately(1, 1e-12);
        metrics.PerRow.Should().OnlyContain(r => Math.Abs(r.Bleu4 - 1) < 1e-8 && Math.Abs(r.RougeL - 1) < 1e-12);
    }, iter: 50);

    [Fact]
    public void Equal_captions_of_one_reference_that_no_other_row_has_are_ten()
        => Evaluate([new("a b c d", ["a b c d"]), new("v w x y z", ["v w x y z"])]).Cider.Should().BeApproximately(10, 1e-12);

    [Fact]
    public void Scores_are_in_range_whatever_the_captions() => s_rows.Sample(rows =>
    {
        var metrics = Evaluate(rows);
        foreach (var row in metrics.PerRow.Append(new(metrics.Bleu1, metrics.Bleu2, metrics.Bleu3, metrics.Bleu4, metrics.RougeL, metrics.Cider)))
        {
            new[] { row.Bleu1, row.Bleu2, row.Bleu3, row.Bleu4, row.RougeL }.Should().OnlyContain(s => s >= 0 && s <= 1);
            row.Cider.Should().BeInRange(0, 10 + 1e-9);
        }
    }, iter: 50);

    [Fact]
    public void The_order_of_rows_and_references_does_not_matter() => s_rows.Sample(rows =>
    {
        var (one, other) = (Evaluate(rows), Evaluate([.. rows.Reverse().Select(r => r with { References = [.. r.References.Reverse()] })]));
        for (var i = 0; i < rows.Length; i++)
            foreach (var (a, b) in Scores(one.PerRow[i]).Zip(Scores(other.PerRow[^(i + 1)]))) a.Should().BeApproximately(b, 1e-12);
        one.Cider.Should().BeApproximately(other.Cider, 1e-12);
        one.Bleu4.Should().BeApproximately(other.Bleu4, 1e-12);

        static double[] Scores(CaptionScores s) => [s.Bleu1, s.Bleu2, s.Bleu3, s.Bleu4, s.RougeL, s.Cider];
    }, iter: 50);

    [Fact]
    public void An_empty_caption_scores_nothing()
    {
        var metrics = Evaluate([new("", ["a cat"]), new("a dog", ["a dog"])]);
        metrics.PerRow[0].Should().Be(new CaptionScores(0, 0, 0, 0, 0, 0));
        metrics.PerRow[1].RougeL.Should().Be(1);
    }

    [Fact]
    public void Raw_captions_are_tokenised()
        => Evaluate([new("A dog's bowl, on the mat!", ["a dog's bowl on the mat."])], tokenized: false).Bleu4.Should().BeApproximately(1, 1e-8);

    [Fact]
    public void Blank_references_are_skipped_but_one_must_be_left()
    {
        Evaluate([new("a cat", ["", "a cat", " "])]).RougeL.Should().Be(1);
        FluentActions.Invoking(() => Evaluate([new("a cat", ["a cat"]), new("a cat", ["", " "])])).Should().Throw<InvalidDataException>().WithMessage("*'References', row 1*no text*");
        FluentActions.Invoking(() => Evaluate([new("a cat", [])])).Should().Throw<InvalidDataException>();
        FluentActions.Invoking(() => Evaluate([new("a cat", ["..."])], tokenized: false)).Should().Throw<InvalidDataException>().WithMessage("*row 0*punctuation*");
    }

    [Fact]
    public void No_rows_are_an_error()
        => FluentActions.Invoking(() => Evaluate([])).Should().Throw<InvalidDataException>().WithMessage("*no rows*");

    [Fact]
    public void Columns_are_checked()
    {
        var data = s_ml.Data.LoadFromEnumerable([new CaptionRow("a", ["a"])]);
        var catalog = s_ml.VisionLanguage();
        FluentActions.Invoking(() => catalog.EvaluateCaptions(data, captionColumnName: "Text")).Should().Throw<ArgumentOutOfRangeException>()
            .WithMessage("Could not find caption column 'Text'.*'Caption', 'References'*");
        FluentActions.Invoking(() => catalog.EvaluateCaptions(data, captionColumnName: "References")).Should().Throw<ArgumentOutOfRangeException>()
            .WithMessage("Schema mismatch for caption column 'References': expected String, got Vector<String>*");
        FluentActions.Invoking(() => catalog.EvaluateCaptions(data, referencesColumnName: "")).Should().Throw<ArgumentException>();
        FluentActions.Invoking(() => catalog.EvaluateCaptions(null!)).Should().Throw<ArgumentNullException>();
        catalog.EvaluateCaptions(data, referencesColumnName: "Caption").RougeL.Should().Be(1, "one text is one reference");
    }

    [Fact]
    public void Rows_become_columns()
    {
        var metrics = Evaluate([new("a b", ["a b"]), new("c", ["a"])]);
        metrics.PerRow.Index().MinBy(row => row.Item.RougeL).Index.Should().Be(1);
        var view = s_ml.Data.LoadFromEnumerable(metrics.PerRow);
        view.GetColumn<double>(nameof(CaptionScores.RougeL)).Should().Equal(1, 0);
    }

    internal static CaptionMetrics Evaluate(CaptionRow[] rows, bool tokenized = true)
        => s_ml.VisionLanguage().EvaluateCaptions(s_ml.Data.LoadFromEnumerable(rows), tokenized: tokenized);

    internal sealed record CaptionRow(string Caption, string[] References);
}
