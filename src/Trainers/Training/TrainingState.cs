namespace MambaVL.Training;

/// <summary>Where a run stands, its weights aside. All of it is in a checkpoint.</summary>
internal sealed record TrainingState
{
    /// <summary>Steps that were done. The rows of the next follow from it and the seed.</summary>
    public int Step { get; set; }

    /// <summary>The best validation, and after how many steps it was.</summary>
    public double? Best { get; set; }

    public int BestStep { get; set; }

    /// <summary>After how many steps the last validation was.</summary>
    public int LastValidation { get; set; }

    /// <summary>Validations since the best.</summary>
    public int SinceBest { get; set; }

    /// <summary>Whether the run came to its end.</summary>
    public bool HasEnded { get; set; }

    /// <summary>Every step so far: the picture of a run that goes on shows all of it.</summary>
    public List<TrainingPoint> Curve { get; init; } = [];
}
