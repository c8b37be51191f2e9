using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Transforms;

/// <summary>One row at a time, for prediction engines.</summary>
/// <remarks>When sampling, every row draws the numbers that the first row of a data view draws: the same input gives the same
/// answer, on whatever engine and however many predictions came before.</remarks>
internal sealed class StepRowMapper(BoundStep step) : IRowToRowMapper
{
    public DataViewSchema InputSchema => step.Input;

    public DataViewSchema OutputSchema => step.Output;

    public IEnumerable<DataViewSchema.Column> GetDependencies(IEnumerable<DataViewSchema.Column> dependingColumns)
    {
        ArgumentNullException.ThrowIfNull(dependingColumns);
        return step.Dependencies(step.Active(dependingColumns));
    }

    public DataViewRow GetRow(DataViewRow input, IEnumerable<DataViewSchema.Column> activeColumns)
    {
        ArgumentNullException.ThrowIfNull(input);
        ArgumentNullException.ThrowIfNull(activeColumns);
        if (!ReferenceEquals(input.Schema, step.Input)) throw new ArgumentException("The row's schema is not the one that the mapper was made for.", nameof(input));
        return new Row(input, step, step.Active(activeColumns));
    }

    private sealed class Row : DataViewRow
    {
        private readonly DataViewRow _input;
        private readonly BoundStep _step;
        private readonly bool[] _active;
        private readonly RowReader? _reader;
        private readonly StepExecution? _execution;
        private long _computed = -1;

        public Row(DataViewRow input, BoundStep step, bool[] active)
        {
            (_input, _step, _active) = (input, step, active);
            var wanted = step.Wanted(active);
            if (!wanted.Contains(true)) return;
            (_reader, _execution) = (new(step, input), new(step, wanted, rows: 1));
        }

        public override DataViewSchema Schema => _step.Output;

        public override long Position => _input.Position;

        public override long Batch => _input.Batch;

        public override ValueGetter<DataViewRowId> GetIdGetter() => _input.GetIdGetter();

        public override bool IsColumnActive(DataViewSchema.Column column) => _active[column.Index];

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        {
            if (!_active[column.Index]) throw BatchCursor.NotActive(column);
            BatchCursor.CheckType<TValue>(column);
            var output = column.Index - _step.Input.Count;
            return output < 0 ? _input.GetGetter<TValue>(_step.Input[column.Index]) : _execution!.Getter<TValue>(output, ComputedRow);
        }

        protected override void Dispose(bool disposing)
        {
            if (disposing) _input.Dispose();
            base.Dispose(disposing);
        }

        private int ComputedRow()
        {
            if (_computed == _input.Position) return 0;
            var row = _execution!.Rows[0];
            row.Position = _input.Position;
            _reader!.Fetch(row);
            _execution.Run(1);
            _computed = _input.Position;
            return 0;
        }
    }
}
