namespace MambaVL.Transforms;

/// <summary>A row of the data that a step cannot compute. <see cref="Exception.InnerException"/> is the cause.</summary>
public sealed class RowException : Exception
{
    /// <summary>Makes the exception.</summary>
    /// <param name="column">The step's output column.</param>
    /// <param name="row">The row's position in its cursor, the first is 0.</param>
    /// <param name="imagePath">The path of the row's image, or null where it has none.</param>
    /// <param name="cause">What went wrong.</param>
    public RowException(string column, long row, string? imagePath, Exception cause)
        : base($"Column '{column}', row {row}{(imagePath is null ? "" : $", image '{imagePath}'")}: {cause?.Message} (OnError = RowErrors.EmptyResult keeps the other rows.)", cause)
        => (Column, Row, ImagePath) = (column, row, imagePath);

    /// <summary>The step's output column.</summary>
    public string Column { get; }

    /// <summary>The row's position in its cursor, the first is 0.</summary>
    public long Row { get; }

    /// <summary>The path of the row's image, or null where it has none.</summary>
    public string? ImagePath { get; }
}
