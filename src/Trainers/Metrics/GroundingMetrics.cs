using MambaVL.Prompts;

namespace MambaVL.Metrics;

/// <summary>How well boxes cover what they should.</summary>
public sealed record GroundingMetrics
{
    /// <summary>The share of rows whose box overlaps the true one by more than <see cref="IouThreshold"/>, 0 to 1. A row without a
    /// readable box is a miss.</summary>
    /// <remarks>vl_mamba, evaluate_refcoco.py: more than, not as much as.</remarks>
    public required double Accuracy { get; init; }

    /// <summary>The mean over all rows of the intersection's area over the union's, 0 to 1; 0 for a row without a readable box.</summary>
    public required double MeanIou { get; init; }

    /// <summary>The share of rows without a readable box, 0 to 1.</summary>
    public required double UnreadableShare { get; init; }

    /// <summary>The overlap that a box must exceed to be right, 0 to less than 1.</summary>
    public required double IouThreshold { get; init; }

    /// <summary>The number of rows, 1 or more.</summary>
    public int RowCount => PerRow.Count;

    /// <summary>Each row's scores, in the data's order; <c>mlContext.Data.LoadFromEnumerable(PerRow)</c> has them as columns.</summary>
    public required IReadOnlyList<GroundingScores> PerRow { get; init; }

    internal static GroundingMetrics Of(IReadOnlyList<GroundingScores> rows, double iouThreshold) => new()
    {
        Accuracy = rows.Average(r => r.IsCorrect ? 1.0 : 0),
        MeanIou = rows.Average(r => r.Iou),
        UnreadableShare = rows.Average(r => r.IsReadable ? 0.0 : 1),
        IouThreshold = iouThreshold,
        PerRow = rows.ToArray().AsReadOnly(),
    };
}

/// <summary>One box's scores.</summary>
/// <param name="Iou">The intersection's area over the union's, 0 to 1; 0 where no box can be read.</param>
/// <param name="IsCorrect">Whether that is more than the threshold.</param>
/// <param name="IsReadable">Whether there is a box.</param>
public sealed record GroundingScores(double Iou, bool IsCorrect, bool IsReadable)
{
    internal static GroundingScores Of(BoundingBox truth, BoundingBox? predicted, double iouThreshold)
    {
        var iou = predicted?.IntersectionOverUnion(truth) ?? 0;
        return new(iou, iou > iouThreshold, predicted is not null);
    }
}
