using MambaVL.Prompts;

namespace MambaVL.Metrics;

/// <summary>How well answers of yes or no (true or false) agree with the truth. Yes is the positive class.</summary>
/// <remarks>Where a share has nothing to divide by it is 0, and never NaN; the counts say which it is.</remarks>
public sealed record MatchMetrics
{
    /// <summary>Rows that are yes and were answered yes.</summary>
    public required int TruePositives { get; init; }

    /// <summary>Rows that are no and were answered yes.</summary>
    public required int FalsePositives { get; init; }

    /// <summary>Rows that are no and were answered no.</summary>
    public required int TrueNegatives { get; init; }

    /// <summary>Rows that are yes and were answered no.</summary>
    public required int FalseNegatives { get; init; }

    /// <summary>The share of rows with the right answer, 0 to 1.</summary>
    public double Accuracy => Share(TruePositives + TrueNegatives, RowCount);

    /// <summary>Of the rows answered yes, the share that are yes, 0 to 1; 0 where none was.</summary>
    public double Precision => Share(TruePositives, TruePositives + FalsePositives);

    /// <summary>Of the rows that are yes, the share answered yes, 0 to 1; 0 where none is.</summary>
    public double Recall => Share(TruePositives, TruePositives + FalseNegatives);

    /// <summary>The harmonic mean of precision and recall, 0 to 1; 0 where both are.</summary>
    public double F1 => Share(2 * TruePositives, 2 * TruePositives + FalsePositives + FalseNegatives);

    /// <summary>The share of rows answered yes, 0 to 1: POPE's yes-ratio.</summary>
    public double YesRatio => Share(TruePositives + FalsePositives, RowCount);

    /// <summary>The share of rows whose answer is neither yes nor no, 0 to 1. They count as yes.</summary>
    public required double UnreadableShare { get; init; }

    /// <summary>The number of rows, 1 or more.</summary>
    public int RowCount => PerRow.Count;

    /// <summary>Each row's outcome, in the data's order; <c>mlContext.Data.LoadFromEnumerable(PerRow)</c> has them as columns.</summary>
    public required IReadOnlyList<MatchScores> PerRow { get; init; }

    internal static MatchMetrics Of(IReadOnlyList<MatchScores> rows) => new()
    {
        TruePositives = rows.Count(r => r.Label && r.Predicted),
        FalsePositives = rows.Count(r => !r.Label && r.Predicted),
        TrueNegatives = rows.Count(r => !r.Label && !r.Predicted),
        FalseNegatives = rows.Count(r => r.Label && !r.Predicted),
        UnreadableShare = rows.Average(r => r.IsReadable ? 0.0 : 1),
        PerRow = rows.ToArray().AsReadOnly(),
    };

    private static double Share(int part, int whole) => whole == 0 ? 0 : (double)part / whole;
}

/// <summary>One answer of yes or no.</summary>
/// <param name="Label">The truth.</param>
/// <param name="Predicted">What the answer counts as; yes where it is unreadable.</param>
/// <param name="IsReadable">Whether it is yes or no (true or false) at all.</param>
public sealed record MatchScores(bool Label, bool Predicted, bool IsReadable)
{
    /// <summary>Whether the answer is right.</summary>
    public bool IsCorrect => Label == Predicted;

    /// <summary>What a text says; null where it says neither.</summary>
    /// <remarks>Case, space around it and a full stop behind it do not matter.</remarks>
    internal static bool? Read(string text) => AnswerText.Short(text).ToUpperInvariant() switch
    {
        "YES" or "TRUE" => true,
        "NO" or "FALSE" => false,
        _ => null,
    };

    // The reference counts all but "no" ("False") as yes.
    internal static MatchScores Of(bool label, bool? answer) => new(label, answer ?? true, answer is not null);
}
