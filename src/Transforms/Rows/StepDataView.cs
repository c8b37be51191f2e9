using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Transforms;

/// <summary>What <see cref="VisionLanguageTransformer.Transform"/> gives.</summary>
internal sealed class StepDataView(IDataView source, BoundStep step) : IDataView
{
    public DataViewSchema Schema => step.Output;

    // Rows are computed each by itself, so their order does not matter.
    public bool CanShuffle => source.CanShuffle;

    public long? GetRowCount() => source.GetRowCount();

    public DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random? rand = null)
    {
        ArgumentNullException.ThrowIfNull(columnsNeeded);
        var active = step.Active(columnsNeeded);
        return Cursor(source.GetRowCursor(step.Dependencies(active), rand), active);
    }

    // As many as the source gives. One cursor is not split further: the model itself uses all cores.
    public DataViewRowCursor[] GetRowCursorSet(IEnumerable<DataViewSchema.Column> columnsNeeded, int n, Random? rand = null)
    {
        ArgumentNullException.ThrowIfNull(columnsNeeded);
        var active = step.Active(columnsNeeded);
        return [.. source.GetRowCursorSet(step.Dependencies(active), n, rand).Select(c => Cursor(c, active))];
    }

    private DataViewRowCursor Cursor(DataViewRowCursor cursor, bool[] active)
    {
        try
        {
            return step.Wanted(active).Contains(true) ? new BatchCursor(cursor, step, active) : new PassingCursor(cursor, step, active);
        }
        catch
        {
            cursor.Dispose();
            throw;
        }
    }
}

/// <summary>A cursor that none of the step's columns is asked of: the source's own, under the longer schema. Nothing is read
/// ahead and the model is not touched.</summary>
internal sealed class PassingCursor(DataViewRowCursor source, BoundStep step, bool[] active) : DataViewRowCursor
{
    public override DataViewSchema Schema => step.Output;

    public override long Position => source.Position;

    public override long Batch => source.Batch;

    public override bool MoveNext() => source.MoveNext();

    public override ValueGetter<DataViewRowId> GetIdGetter() => source.GetIdGetter();

    public override bool IsColumnActive(DataViewSchema.Column column) => active[column.Index];

    public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        => active[column.Index] ? source.GetGetter<TValue>(step.Input[column.Index]) : throw BatchCursor.NotActive(column);

    protected override void Dispose(bool disposing)
    {
        if (disposing) source.Dispose();
        base.Dispose(disposing);
    }
}
