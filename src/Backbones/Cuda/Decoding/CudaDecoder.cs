using System.Collections.Concurrent;
using System.Diagnostics;
using MambaVL.Kernels;
using MambaVL.Models;
using Microsoft.Extensions.Logging;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>Decodes one model on the GPU that its weights are on. Any number of threads may rent batches at a time.</summary>
internal abstract class CudaDecoder : IDisposable
{
    private readonly ConcurrentBag<DecodeBatch> _idle = [];
    private string? _logged;

    /// <summary>A batch to decode with, to be given back; null where the model is not on a GPU, where
    /// <see cref="DecoderChoice"/> wants another way, or where the kernels cannot do it, which is logged once.</summary>
    /// <exception cref="InvalidOperationException">The environment asks for the kernels, and they cannot do it.</exception>
    public DecodeBatch? Rent()
    {
        if (!DecoderChoice.UseCuda) return null;
        var table = Table;
        var problem = $"the model is on {table.device}";
        if (table.device_type == DeviceType.CUDA && TryRent(table, out problem) is { } batch) return batch;
        if (DecoderChoice.MustUseCuda)
            throw new InvalidOperationException($"{DecoderChoice.Variable} asks for the CUDA kernels, which cannot decode this model: {problem}.");
        if (table.device_type == DeviceType.CUDA && Interlocked.Exchange(ref _logged, problem) != problem)
            CudaGpu.Logger.LogWarning("Decoding by tensor operations on {Device}: {Problem}.", table.device, problem);
        return null;
    }

    /// <summary>Takes a batch back once its steps are done.</summary>
    public void GiveBack(DecodeBatch batch)
    {
        try
        {
            batch.Drain();
            _idle.Add(batch);
        }
        catch (CudaException) // the GPU is lost, and whoever waits for a step is told why
        {
            batch.Dispose();
        }
    }

    /// <summary>One token for each row: the logits [b, vocabulary], float32, which the caller owns; null, and nothing done, where
    /// <see cref="Rent"/> gives nothing.</summary>
    /// <param name="ids">[b], int64, each a row of the embedding table.</param>
    /// <param name="states">This model's, one a row, none twice.</param>
    public Tensor? Decode(Tensor ids, IReadOnlyList<DecoderState> states)
    {
        if (Rent() is not { } batch) return null;
        try
        {
            using var scope = NewDisposeScope();
            var values = ids.cpu().data<long>().ToArray().Select(id => (int)id).ToArray();
            var parts = new List<Tensor>();
            Span<int> chosen = stackalloc int[DecodeControl.MostRows];
            for (var at = 0; at < values.Length; at += DecodeControl.MostRows)
            {
                var rows = states.Skip(at).Take(DecodeControl.MostRows).ToList();
                batch.Load(rows, values.AsSpan(at, rows.Count), null, null);
                batch.Enqueue();
                parts.Add(batch.Logits.narrow(0, 0, rows.Count).clone());
                batch.Wait(chosen);
                foreach (var state in rows) state.Length++;
            }
            return (parts.Count == 1 ? parts[0] : cat(parts, 0)).MoveToOuterDisposeScope();
        }
        finally
        {
            GiveBack(batch);
        }
    }

    /// <summary>Times steps and nothing else: rows decode greedily on from states that hold nothing in particular. The host puts
    /// steps into the stream as a session does, and reads their tokens.</summary>
    /// <param name="model">The decoder's own.</param>
    /// <param name="rows">1 to <see cref="DecodeControl.MostRows"/>.</param>
    /// <param name="length">Positions that each row has read.</param>
    /// <param name="steps">Steps of a run.</param>
    /// <param name="runs">Runs, after one that does not count.</param>
    /// <returns>Milliseconds a step, for each run.</returns>
    /// <exception cref="CudaException">The kernels cannot decode the model.</exception>
    public IReadOnlyList<double> Time(LanguageModel model, int rows, int length, int steps, int runs)
    {
        var batch = Rent() ?? throw new CudaException($"The kernels cannot decode this model: {_logged ?? "it is not on a GPU"}.");
        var states = new List<DecoderState>();
        try
        {
            var times = new List<double>();
            for (var row = 0; row < rows; row++) states.Add(model.CreateState(length + steps));
            Span<int> ids = stackalloc int[DecodeControl.MostRows];
            for (var run = -1; run < runs; run++)
            {
                foreach (var state in states) state.Length = length;
                batch.Load(states, new int[rows], null, null);
                batch.Enqueue(); // the graph is there, and the stream has come this far
                batch.Wait(ids);
                var start = Stopwatch.GetTimestamp();
                for (var (put, read) = (1, 1); read < steps; read++)
                {
                    while (put < steps && batch.InFlight < Generation.DeviceSteps.Ahead)
                    {
                        batch.Enqueue();
                        put++;
                    }
                    batch.Wait(ids);
                }
                if (run >= 0) times.Add(Stopwatch.GetElapsedTime(start).TotalMilliseconds / (steps - 1));
            }
            return times;
        }
        finally
        {
            GiveBack(batch);
            foreach (var state in states) state.Dispose();
        }
    }

    public void Dispose()
    {
        while (_idle.TryTake(out var batch)) batch.Dispose();
    }

    /// <summary>The embedding table: where it is, the model is.</summary>
    protected abstract Tensor Table { get; }

    /// <summary>A batch over the weights as they lie now, or why there can be none.</summary>
    protected abstract DecodeBatch? Create(CudaGpu gpu, DecoderWeights weights);

    /// <summary>Takes down where the weights lie.</summary>
    protected abstract void Read(DecoderWeights weights);

    private DecodeBatch? TryRent(Tensor table, out string? problem)
    {
        if (CudaGpu.TryGet(table.device_index, out problem) is not { } gpu) return null;
        var weights = new DecoderWeights(table.device_index, table.dtype);
        if (table.dtype is not (ScalarType.Float32 or ScalarType.BFloat16 or ScalarType.Float16))
        {
            problem = $"the weights are {table.dtype}";
            return null;
        }
        Read(weights);
        problem = weights.Problem;
        if (problem is not null) return null;
        while (_idle.TryTake(out var idle))
        {
            if (idle.Weights.Same(weights)) return idle;
            idle.Dispose(); // of weights that are there no more
        }
        var batch = Create(gpu, weights);
        if (batch is null) problem = "its sizes are beyond what they take";
        return batch;
    }
}
