using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Transforms;

/// <summary>The values of a step's columns for one batch. Its buffers are used again for the next one.</summary>
internal sealed class StepResults
{
    private readonly Array[] _columns;
    private readonly Exception?[] _errors;

    public StepResults(IReadOnlyList<DataViewSchema.DetachedColumn> columns, int rows)
    {
        _columns = [.. columns.Select(c => Array.CreateInstance(c.Type.RawType, rows))];
        _errors = new Exception?[rows];
    }

    public bool HasColumn(int column) => column < _columns.Length;

    public void Set<T>(int column, int row, T value) => ((T[])_columns[column])[row] = value;

    /// <summary>The place for a row's numbers, as many as <paramref name="length"/>.</summary>
    public Span<float> Vector(int column, int row, int length)
    {
        var vectors = (VBuffer<float>[])_columns[column];
        var editor = VBufferEditor.Create(ref vectors[row], length);
        vectors[row] = editor.Commit();
        return editor.Values;
    }

    public T[] Column<T>(int column) => (T[])_columns[column];

    public Exception? Error(int row) => _errors[row];

    public void Clear() => Array.Clear(_errors);

    public void Fail(int row, Exception error) => _errors[row] = error;

    /// <summary>Does a row's part; what goes wrong with the row alone becomes its error.</summary>
    public void Try(RowInput row, Action compute)
    {
        try
        {
            compute();
        }
        catch (Exception e) when (IsRowError(e))
        {
            _errors[row.Index] = e;
        }
    }

    /// <summary>Errors that a row's image or text may cause. Others (memory, a broken installation) stop the whole.</summary>
    public static bool IsRowError(Exception e)
        => e is IOException or UnauthorizedAccessException or ArgumentException or InvalidDataException or NotSupportedException
            || (e is InvalidOperationException && e is not ObjectDisposedException);
}
