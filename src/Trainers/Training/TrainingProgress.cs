namespace MambaVL.Training;

/// <summary>How training goes, at one step.</summary>
public sealed record TrainingProgress
{
    /// <summary>Updates of the weights so far.</summary>
    public required int Step { get; init; }

    /// <summary>Updates in all, unless training ends early.</summary>
    public required int TotalSteps { get; init; }

    /// <summary>Passes over the data so far, in parts: 1.5 is the middle of the second.</summary>
    public required double Epoch { get; init; }

    /// <summary>The mean loss of the steps since the last report, in nats a token.</summary>
    public required double Loss { get; init; }

    /// <summary>The learning rate of the last step.</summary>
    public required double LearningRate { get; init; }

    /// <summary>The norm of all gradients of the last step, before clipping.</summary>
    public required double GradientNorm { get; init; }

    /// <summary>Rows a second since the last report.</summary>
    public required double RowsPerSecond { get; init; }

    /// <summary>Ids a second since the last report, the images' places included and padding not.</summary>
    public required double TokensPerSecond { get; init; }

    /// <summary>Time since this process began to train.</summary>
    public required TimeSpan Elapsed { get; init; }

    /// <summary>What the rest will take, at the speed since the last report.</summary>
    public required TimeSpan Remaining { get; init; }

    /// <summary>The validation's name, where this report is about one.</summary>
    public ValidationMetric? Metric { get; init; }

    /// <summary>The validation's result, over all validation rows; null where this report is about training.</summary>
    public double? Validation { get; init; }

    /// <summary>The best result of a validation so far.</summary>
    public double? BestValidation { get; init; }

    /// <summary>Whether it is the last report.</summary>
    public bool IsLast { get; init; }
}
