namespace MambaVL.Metrics;

/// <summary>How near captions come to what people wrote. Equal to what pycocoevalcap gives for the same tokens.</summary>
/// <remarks>Shares, not percent: papers print BLEU, ROUGE-L and CIDEr times 100. docs/metrics.md has the formulas.</remarks>
public sealed record CaptionMetrics
{
    /// <summary>BLEU of words, 0 to 1: the corpus's clipped precision times its brevity penalty.</summary>
    /// <remarks>Papineni et al. 2002. All rows' counts are added up first, so this is not the mean of the rows.</remarks>
    public required double Bleu1 { get; init; }

    /// <summary>BLEU of 1 and 2 words, 0 to 1: the geometric mean of both precisions times the brevity penalty.</summary>
    public required double Bleu2 { get; init; }

    /// <summary>BLEU of 1 to 3 words, 0 to 1.</summary>
    public required double Bleu3 { get; init; }

    /// <summary>BLEU of 1 to 4 words, 0 to 1.</summary>
    public required double Bleu4 { get; init; }

    /// <summary>ROUGE-L, 0 to 1: the mean of the rows.</summary>
    /// <remarks>Lin 2004, with beta 1.2: recall counts more than precision.</remarks>
    public required double RougeL { get; init; }

    /// <summary>CIDEr, 0 to 10: the mean of the rows.</summary>
    /// <remarks>Vedantam et al. 2015; with clipping and the penalty on length of CIDEr-D, as pycocoevalcap's <c>Cider</c> has
    /// them. How rare a phrase is comes from the references of these very rows: scores of different data do not compare, and
    /// one row alone scores 0.</remarks>
    public required double Cider { get; init; }

    /// <summary>The number of rows, 1 or more.</summary>
    public int RowCount => PerRow.Count;

    /// <summary>Each row's scores, in the data's order; <c>mlContext.Data.LoadFromEnumerable(PerRow)</c> has them as columns.</summary>
    public required IReadOnlyList<CaptionScores> PerRow { get; init; }
}

/// <summary>One caption's scores.</summary>
/// <param name="Bleu1">BLEU of words, 0 to 1.</param>
/// <param name="Bleu2">BLEU of 1 and 2 words, 0 to 1. A caption shorter than n words has an n-gram precision of 0.000001, as in
/// pycocoevalcap, even where it equals its reference.</param>
/// <param name="Bleu3">BLEU of 1 to 3 words, 0 to 1.</param>
/// <param name="Bleu4">BLEU of 1 to 4 words, 0 to 1.</param>
/// <param name="RougeL">ROUGE-L, 0 to 1.</param>
/// <param name="Cider">CIDEr, 0 to 10; depends on the references of all rows.</param>
public sealed record CaptionScores(double Bleu1, double Bleu2, double Bleu3, double Bleu4, double RougeL, double Cider);
