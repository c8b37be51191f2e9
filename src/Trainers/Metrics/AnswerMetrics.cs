using MambaVL.Prompts;

namespace MambaVL.Metrics;

/// <summary>How many answers agree with what people answered.</summary>
/// <remarks>docs/metrics.md has the formulas.</remarks>
public sealed record AnswerMetrics
{
    /// <summary>The official VQA accuracy, 0 to 1: the mean over the rows of the mean of min(1, n/3), each human answer left out
    /// in turn; n of the others agree.</summary>
    /// <remarks>Antol et al. 2015 and VQA's evaluation code. It wants about ten answers a row: of one answer, none is
    /// left, and the row scores 0. Where rows have one answer, see <see cref="ExactMatch"/>.</remarks>
    public required double Accuracy { get; init; }

    /// <summary>The accuracy of Mamba-VL's authors, 0 to 1: the mean over the rows of min(1, 0.3 n), n human answers agree.</summary>
    /// <remarks>vl_mamba, evaluate_vqav2.py. With <c>normalizeAnswers: false</c> it compares, as they do, with the human
    /// answers as they were written.</remarks>
    public required double AuthorsAccuracy { get; init; }

    /// <summary>The share of rows whose answer equals a human one, 0 to 1: ignoring case, space around it and a full stop
    /// behind it, and with no other normalisation.</summary>
    /// <remarks>GQA's metric, and that of options and letters.</remarks>
    public required double ExactMatch { get; init; }

    /// <summary>The number of rows, 1 or more.</summary>
    public int RowCount => PerRow.Count;

    /// <summary>Each row's scores, in the data's order; <c>mlContext.Data.LoadFromEnumerable(PerRow)</c> has them as columns.</summary>
    public required IReadOnlyList<AnswerScores> PerRow { get; init; }

    internal static AnswerMetrics Of(IReadOnlyList<AnswerScores> rows) => new()
    {
        Accuracy = rows.Average(r => r.Accuracy),
        AuthorsAccuracy = rows.Average(r => r.AuthorsAccuracy),
        ExactMatch = rows.Average(r => r.IsExactMatch ? 1.0 : 0),
        PerRow = rows.ToArray().AsReadOnly(),
    };
}

/// <summary>One answer's scores.</summary>
/// <param name="Accuracy">The official VQA accuracy, 0 to 1.</param>
/// <param name="AuthorsAccuracy">The authors' accuracy: 0, 0.3, 0.6, 0.9 or 1.</param>
/// <param name="IsExactMatch">Whether it equals a human answer.</param>
/// <param name="NormalizedAnswer">The model's answer after <see cref="AnswerNormalizer"/>: what the accuracies compare.</param>
public sealed record AnswerScores(double Accuracy, double AuthorsAccuracy, bool IsExactMatch, string NormalizedAnswer)
{
    /// <param name="answer">The model's text.</param>
    /// <param name="answers">The human answers, at least one.</param>
    /// <param name="normalizeAnswers">Whether the human answers are normalised as well.</param>
    internal static AnswerScores Of(string answer, IReadOnlyList<string> answers, bool normalizeAnswers)
    {
        var normalized = AnswerNormalizer.Normalize(answer);
        var plain = AnswerText.Short(answer);
        // The article alone ("A.", a letter) normalises to nothing; that agrees, but an answer that was never given does not.
        var agree = plain.Length == 0 ? 0 : answers.Count(a => (normalizeAnswers ? AnswerNormalizer.Normalize(a) : a) == normalized);
        var others = answers.Count - agree;
        // Leaving out one that agrees leaves one less to agree with.
        var official = (agree * Math.Min(1, (agree - 1) / 3.0) + others * Math.Min(1, agree / 3.0)) / answers.Count;
        return new(official, Math.Min(10, 3 * agree) / 10.0,
            plain.Length > 0 && answers.Any(a => string.Equals(AnswerText.Short(a), plain, StringComparison.OrdinalIgnoreCase)), normalized);
    }
}
