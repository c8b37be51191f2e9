using System.Runtime.ExceptionServices;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Transforms;

/// <summary>Reads a batch of rows ahead, and runs the step on them when the first of their values is asked for.</summary>
/// <remarks>The columns that are passed on are copied when they are read ahead. Objects (an MLImage) cannot be: the source
/// uses them again, or disposes of them. Where one is asked for, batches have one row, and it is the source's own.</remarks>
internal sealed class BatchCursor : DataViewRowCursor
{
    private readonly DataViewRowCursor _source;
    private readonly BoundStep _step;
    private readonly bool[] _active;
    private readonly int _size;
    private readonly RowReader _reader;
    private readonly StepExecution _execution;
    private readonly ColumnBuffer?[] _passed;
    private readonly ValueGetter<DataViewRowId> _getId;
    private readonly DataViewRowId[] _ids;
    private readonly long[] _batches;
    private StepProgress? _progress;
    private bool _hasRun, _ended, _disposed;
    private int _count, _at = -1;
    private long _position = -1;

    public BatchCursor(DataViewRowCursor source, BoundStep step, bool[] active)
    {
        (_source, _step, _active) = (source, step, active);
        var passed = step.Input.Where(c => active[c.Index]).ToList();
        _size = passed.TrueForAll(c => c.Type.RawType.IsValueType) ? BatchSize.Choose(step) : 1;
        _passed = new ColumnBuffer?[step.Input.Count];
        if (_size > 1)
            foreach (var column in passed) _passed[column.Index] = ColumnBuffer.Create(source, column, _size);
        _reader = new(step, source);
        _execution = new(step, step.Wanted(active), _size);
        _getId = source.GetIdGetter();
        (_ids, _batches) = (new DataViewRowId[_size], new long[_size]);
    }

    public override DataViewSchema Schema => _step.Output;

    public override long Position => _position;

    public override long Batch => _at >= 0 ? _batches[_at] : 0;

    public override bool IsColumnActive(DataViewSchema.Column column) => _active[column.Index];

    public override bool MoveNext()
    {
        if (_disposed) return false;
        if (_at + 1 >= _count && !ReadAhead())
        {
            Dispose();
            return false;
        }
        _at++;
        _position++;
        return true;
    }

    public override ValueGetter<DataViewRowId> GetIdGetter() => (ref DataViewRowId id) => id = _ids[Row()];

    public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
    {
        if (column.Index >= _active.Length || !_active[column.Index]) throw NotActive(column);
        CheckType<TValue>(column);
        var output = column.Index - _step.Input.Count;
        if (output >= 0) return _execution.Getter<TValue>(output, ComputedRow);
        if (_passed[column.Index] is not ColumnBuffer<TValue> buffer) return _source.GetGetter<TValue>(_step.Input[column.Index]);
        return (ref TValue value) => buffer.CopyTo(Row(), ref value);
    }

    internal static InvalidOperationException NotActive(DataViewSchema.Column column)
        => new($"Column '{column.Name}' was not asked for when the cursor was made; name it among the columns needed.");

    internal static void CheckType<TValue>(DataViewSchema.Column column)
    {
        if (column.Type.RawType != typeof(TValue))
            throw new InvalidOperationException($"Column '{column.Name}' has values of {column.Type.RawType}; a getter of {typeof(TValue)} was asked for.");
    }

    protected override void Dispose(bool disposing)
    {
        if (!_disposed && disposing)
        {
            _progress?.Dispose();
            _source.Dispose();
        }
        _disposed = true;
        (_position, _at) = (-1, -1);
        base.Dispose(disposing);
    }

    private bool ReadAhead()
    {
        _progress?.Add(_hasRun ? _count : 0);
        (_hasRun, _count, _at) = (false, 0, -1);
        while (_count < _size && !_ended)
        {
            _step.Transformer.Host.CheckAlive();
            if (!_source.MoveNext())
            {
                _ended = true;
                break;
            }
            var row = _execution.Rows[_count];
            _reader.Fetch(row);
            _getId(ref _ids[_count]);
            (row.Position, row.Seed, _batches[_count]) = (_position + 1 + _count, SeedOf(_ids[_count]), _source.Batch);
            foreach (var column in _passed) column?.Fetch(_count);
            _count++;
        }
        return _count > 0;
    }

    // A row keeps its id whatever the batches, the threads and the order in which rows come.
    private static long SeedOf(DataViewRowId id) => (long)(id.Low ^ (id.High * 0x9E3779B97F4A7C15));

    private int Row() => _at >= 0 ? _at : throw new InvalidOperationException("The cursor stands on no row; call MoveNext first.");

    private int ComputedRow()
    {
        var row = Row();
        if (!_hasRun)
        {
            _progress ??= new(_step.Transformer.Host, _step.Transformer.Settings);
            _execution.Run(_count);
            _hasRun = true;
        }
        return row;
    }
}

/// <summary>The values of one column that were read ahead.</summary>
internal abstract class ColumnBuffer
{
    public static ColumnBuffer Create(DataViewRow source, DataViewSchema.Column column, int size)
        => (ColumnBuffer)Activator.CreateInstance(typeof(ColumnBuffer<>).MakeGenericType(column.Type.RawType), source, column, size)!;

    public abstract void Fetch(int row);
}

/// <inheritdoc/>
internal sealed class ColumnBuffer<T>(DataViewRow source, DataViewSchema.Column column, int size) : ColumnBuffer
{
    private readonly ValueGetter<T> _get = source.GetGetter<T>(column);
    private readonly T[] _values = new T[size];
    private readonly ExceptionDispatchInfo?[] _failures = new ExceptionDispatchInfo?[size];

    // A value that its source cannot give is missed when its own row is read, not by the rows before it in the batch.
    public override void Fetch(int row)
    {
        _failures[row] = null;
        try
        {
            _get(ref _values[row]);
        }
        catch (Exception e) when (e is not (OperationCanceledException or OutOfMemoryException))
        {
            _failures[row] = ExceptionDispatchInfo.Capture(e);
        }
    }

    public void CopyTo(int row, ref T value)
    {
        _failures[row]?.Throw();
        ValueCopier<T>.Copy(in _values[row], ref value);
    }
}
