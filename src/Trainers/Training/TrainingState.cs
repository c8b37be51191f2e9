namespace MambaVL.Training;

/// <summary>One point of the curves.</summary>
/// <param name="Step">After how many steps.</param>
/// <param name="Loss">The mean loss since the point before.</param>
/// <param name="LearningRate">Of that step.</param>
internal sealed record TrainingPoint(int Step, double Loss, double LearningRate);

/// <summary>Where a run stands, its weights aside. All of it is in a checkpoint.</summary>
internal sealed record TrainingState
{
    /// <summary>Steps that were done. The rows of the next follow from it and the seed.</summary>
    public int Step { get; set; }

    /// <summary>The best validation, and after how many steps it was.</summary>
    public double? Best { get; set; }

    public int BestStep { get; set; }

    /// <summary>Validations since.</summary>
    public int SinceBest { get; set; }

    /// <summary>Whether the run came to its end.</summary>
    public bool HasEnded { get; set; }

    public List<TrainingPoint> Curve { get; init; } = [];
}
