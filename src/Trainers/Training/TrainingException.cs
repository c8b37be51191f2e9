namespace MambaVL.Training;

/// <summary>Training could not go on: a loss that is no number, memory that does not suffice, or checkpoints of another run.</summary>
public class TrainingException : Exception
{
    /// <summary>Makes the exception.</summary>
    /// <param name="message">What was found, and what to do.</param>
    /// <param name="innerException">The cause, where there is one.</param>
    public TrainingException(string message, Exception? innerException = null) : base(message, innerException)
    {
    }
}

/// <summary>A row of the data that cannot be trained on.</summary>
public sealed class TrainingRowException : TrainingException
{
    /// <summary>Makes the exception.</summary>
    /// <param name="column">The column that is to blame.</param>
    /// <param name="row">The row's position in the data, the first is 0.</param>
    /// <param name="imagePath">The path of the row's image, or null.</param>
    /// <param name="problem">What was found and what was expected.</param>
    /// <param name="innerException">The cause, where there is one.</param>
    public TrainingRowException(string column, long row, string? imagePath, string problem, Exception? innerException = null)
        : base($"Column '{column}', row {row}{(imagePath is null ? "" : $", image '{imagePath}'")}: {problem} (OnBadRow and OnLongRow = RowTreatment.Skip leave such rows out.)", innerException)
        => (Column, Row, ImagePath) = (column, row, imagePath);

    /// <summary>The column that is to blame.</summary>
    public string Column { get; }

    /// <summary>The row's position in the data, the first is 0.</summary>
    public long Row { get; }

    /// <summary>The path of the row's image, or null.</summary>
    public string? ImagePath { get; }
}
