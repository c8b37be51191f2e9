using System.Globalization;
using CsCheck;
using MambaVL.Metrics;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Tests.Metrics;

public class AnswerMetricsTests
{
    private static readonly MLContext s_ml = new(seed: 1);

    private static readonly Gen<string> s_answer = Gen.OneOfConst("2", "two", "Two.", "a dog", "the dogs!", "dont", "red/blue");

    [Theory]
    [InlineData("", "")]
    [InlineData("Airplane.", "airplane")]
    [InlineData("The two dogs!", "2 dogs")]
    [InlineData("None", "0")]
    [InlineData("an apple a day", "apple day")]
    [InlineData("dont know", "don't know")]
    [InlineData("isnt it, twas", "isn't it 'twas")]
    [InlineData("what's up", "what 's up")]
    [InlineData("whats up", "what's up")]
    [InlineData("3.5", "3.5")]
    [InlineData("3.5.", "3.5")]
    [InlineData("1,000", "1000")]
    [InlineData("red/blue", "red blue")] // no space beside the mark: a space
    [InlineData("red / blue", "red blue")] // a space beside it: nothing
    [InlineData("t-shirt", "t shirt")]
    [InlineData("- t-shirt", "tshirt")] // one of them stands beside a space, so all go
    [InlineData("  yes\n", "yes")]
    [InlineData("10:30", "10:30")] // no colon in the reference's list
    public void Normalisation(string answer, string expected) => AnswerNormalizer.Normalize(answer).Should().Be(expected);

    [Fact]
    public void Normalising_does_not_depend_on_the_culture()
    {
        var before = CultureInfo.CurrentCulture;
        try
        {
            CultureInfo.CurrentCulture = new CultureInfo("tr-TR");
            AnswerNormalizer.Normalize("SIX I").Should().Be("6 i");
        }
        finally
        {
            CultureInfo.CurrentCulture = before;
        }
    }

    [Theory]
    [InlineData(0, 0.0, 0.0)]
    [InlineData(1, 0.3, 0.3)] // 9 of the 10 left-out sets have 1 that agrees: 9/10 * 1/3
    [InlineData(2, 0.6, 0.6)] // (8 * 2/3 + 2 * 1/3) / 10
    [InlineData(3, 0.9, 0.9)] // (7 * 1 + 3 * 2/3) / 10
    [InlineData(4, 1.0, 1.0)]
    [InlineData(10, 1.0, 1.0)]
    public void Of_ten_answers_both_accuracies_are_the_same(int agree, double authors, double official)
    {
        var row = Evaluate([new("Yes.", [.. Enumerable.Repeat("yes", agree), .. Enumerable.Repeat("no", 10 - agree)])]).PerRow[0];
        row.AuthorsAccuracy.Should().Be(authors);
        row.Accuracy.Should().BeApproximately(official, 1e-12);
    }

    [Fact]
    public void Of_other_numbers_of_answers_they_are_not()
    {
        var row = Evaluate([new("yes", ["yes", "yes", "no", "no"])]).PerRow[0];
        row.AuthorsAccuracy.Should().Be(0.6);
        row.Accuracy.Should().BeApproximately((2 * (1 / 3.0) + 2 * (2 / 3.0)) / 4, 1e-12);

        row = Evaluate([new("yes", ["yes"])]).PerRow[0];
        row.Should().Be(new AnswerScores(0, 0.3, true, "yes"), "the only answer left out, none is left");
    }

    [Fact]
    public void The_formula_is_leaving_out_each_answer() => Gen.Select(s_answer, s_answer.Array[1, 12]).Sample((answer, answers) =>
    {
        var normalized = answers.Select(AnswerNormalizer.Normalize).ToList();
        var expected = answers.Select((_, left) => Math.Min(1, normalized.Where((a, i) => i != left && a == AnswerNormalizer.Normalize(answer)).Count() / 3.0)).Average();
        var row = Evaluate([new(answer, answers)]).PerRow[0];
        row.Accuracy.Should().BeApproximately(expected, 1e-12);
        row.Accuracy.Should().BeInRange(0, 1);
        row.AuthorsAccuracy.Should().BeInRange(0, 1);
        Evaluate([new(answer, [.. answers.Reverse()])]).PerRow[0].Should().Be(row);
    }, iter: 50);

    [Fact]
    public void The_authors_compare_with_answers_as_they_are_written()
    {
        var rows = new[] { new Row("Two dogs.", ["two dogs", "2 dogs", "2 dogs", "The 2 dogs"]) };
        Evaluate(rows).AuthorsAccuracy.Should().Be(1);
        Evaluate(rows, normalize: false).AuthorsAccuracy.Should().Be(0.6);
    }

    [Fact]
    public void Exact_match_ignores_case_and_the_full_stop_but_not_articles()
    {
        Evaluate([new(" Dog.", ["dog"]), new("the dog", ["dog"]), new("B.", ["b"])]).PerRow.Select(r => r.IsExactMatch).Should().Equal(true, false, true);
        Evaluate([new("A.", ["A"]), new("A", ["B"])]).ExactMatch.Should().Be(0.5);
    }

    [Fact]
    public void An_empty_answer_agrees_with_none()
        => Evaluate([new("", ["a", "the", "a", "an"])]).PerRow[0].Should().Be(new AnswerScores(0, 0, false, ""));

    [Fact]
    public void Means_are_over_rows()
    {
        var metrics = Evaluate([new("yes", ["yes", "yes", "yes", "yes"]), new("no", ["yes", "yes"]), new("no", ["yes"]), new("no", ["x"])]);
        (metrics.Accuracy, metrics.AuthorsAccuracy, metrics.ExactMatch, metrics.RowCount).Should().Be((0.25, 0.25, 0.25, 4));
        s_ml.Data.LoadFromEnumerable(metrics.PerRow).GetColumn<bool>(nameof(AnswerScores.IsExactMatch)).Should().Equal(true, false, false, false);
    }

    [Fact]
    public void Rows_without_human_answers_and_no_rows_are_errors()
    {
        FluentActions.Invoking(() => Evaluate([new("a", ["a"]), new("a", ["", ""])])).Should().Throw<InvalidDataException>().WithMessage("*'Answers', row 1*");
        FluentActions.Invoking(() => Evaluate([])).Should().Throw<InvalidDataException>().WithMessage("*no rows*");
    }

    [Fact]
    public void Columns_are_checked()
    {
        var data = s_ml.Data.LoadFromEnumerable([new Row("a", ["a"])]);
        FluentActions.Invoking(() => s_ml.VisionLanguage().EvaluateAnswers(data, "Missing")).Should().Throw<ArgumentOutOfRangeException>().WithMessage("*Could not find answers column 'Missing'*");
        FluentActions.Invoking(() => s_ml.VisionLanguage().EvaluateAnswers(data, answerColumnName: "Answers")).Should().Throw<ArgumentOutOfRangeException>().WithMessage("*Schema mismatch for answer column*");
    }

    private static AnswerMetrics Evaluate(Row[] rows, bool normalize = true)
        => s_ml.VisionLanguage().EvaluateAnswers(s_ml.Data.LoadFromEnumerable(rows), normalizeAnswers: normalize);

    private sealed record Row(string Answer, string[] Answers);
}
