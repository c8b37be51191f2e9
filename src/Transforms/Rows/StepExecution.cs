using System.Runtime.ExceptionServices;
using MambaVL.Cuda;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Transforms;

/// <summary>Runs a step on batches of rows, and hands out their values. For one cursor or one row: not thread-safe.</summary>
internal sealed class StepExecution
{
    private readonly BoundStep _step;
    private readonly bool[] _wanted;
    private readonly StepResults _results;
    private readonly int _errorColumn;

    public StepExecution(BoundStep step, bool[] wanted, int rows)
    {
        (_step, _wanted) = (step, wanted);
        _results = new(step.Outputs, rows);
        Rows = [.. Enumerable.Range(0, rows).Select(i => new RowInput(i, step.Inputs.Image))];
        _errorColumn = step.Transformer.Settings.OnError == RowErrors.EmptyResult ? step.Outputs.Count - 1 : -1;
    }

    public RowInput[] Rows { get; }

    /// <summary>Computes the first <paramref name="count"/> rows.</summary>
    public void Run(int count)
    {
        var transformer = _step.Transformer;
        using var stop = new StopSignal(transformer.Host);
        stop.Check();
        using var use = transformer.UseModel();
        _results.Clear();
        foreach (var row in Rows.AsSpan(0, count))
            if (row.FetchError is { } error) _results.Fail(row.Index, error);
        var rows = Rows.Take(count).Where(r => r.FetchError is null).ToList();
        try
        {
            if (rows.Count > 0 && _wanted.AsSpan().ContainsAnyExcept(false)) transformer.Step.Run(use.Model, rows, _results, _wanted, stop);
        }
        catch (OperationCanceledException e)
        {
            throw stop.Exception(e);
        }
        catch (Exception e) when (CudaFaults.Behind(e) is { } fault)
        {
            throw fault;
        }
        if (_errorColumn < 0) return;
        for (var i = 0; i < count; i++)
        {
            if (_results.Error(i) is not null) transformer.Step.SetEmpty(_results, i);
            _results.Set(_errorColumn, i, (_results.Error(i)?.Message ?? "").AsMemory());
        }
    }

    /// <summary>A getter of an output column, for the row that <paramref name="current"/> names when it is called; it sees to
    /// it that the batch was run.</summary>
    public ValueGetter<T> Getter<T>(int output, Func<int> current)
    {
        var values = _results.Column<T>(output);
        var copy = ValueCopier<T>.Copy;
        return (ref T value) =>
        {
            var row = current();
            if (_errorColumn < 0 && _results.Error(row) is { } error)
            {
                if (error is RowException) ExceptionDispatchInfo.Throw(error); // a step before this one says all already
                var path = Rows[row].Path;
                throw new RowException(_step.Transformer.Settings.Output, Rows[row].Position, path.Length > 0 ? path : null, error);
            }
            copy(in values[row], ref value);
        };
    }
}

/// <summary>How a value gets from a buffer to a caller, who may change it: vectors are copied deep.</summary>
internal static class ValueCopier<T>
{
    public delegate void Copier(in T source, ref T destination);

    public static readonly Copier Copy = Make();

    private static Copier Make()
    {
        if (!typeof(T).IsGenericType || typeof(T).GetGenericTypeDefinition() != typeof(VBuffer<>))
            return (in T source, ref T destination) => destination = source;
        return typeof(ValueCopier<T>).GetMethod(nameof(CopyVector), System.Reflection.BindingFlags.NonPublic | System.Reflection.BindingFlags.Static)!
            .MakeGenericMethod(typeof(T).GetGenericArguments()).CreateDelegate<Copier>();
    }

    private static void CopyVector<TItem>(in VBuffer<TItem> source, ref VBuffer<TItem> destination) => source.CopyTo(ref destination);
}
