using System.Collections.Concurrent;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Training;

/// <summary>The rows of one step, ready for the model.</summary>
/// <param name="Index">The step, the first of the run is 0.</param>
/// <param name="Rows">Each row's position in the data.</param>
/// <param name="Batches">What goes through the model one after the other; disposed of with this.</param>
internal sealed record StepBatch(int Index, long[] Rows, IReadOnlyList<MicroBatch> Batches) : IDisposable
{
    public long Tokens { get; } = Batches.Sum(b => b.Tokens);

    public void Dispose()
    {
        foreach (var batch in Batches) batch.Dispose();
    }
}

/// <summary>Prepares steps on a thread of its own, some steps ahead: reading pictures takes as long as learning from them.</summary>
internal sealed class BatchFeeder : IDisposable
{
    private const int StepsAhead = 3;

    private readonly BlockingCollection<StepBatch> _ready = new(StepsAhead);
    private readonly CancellationTokenSource _stop = new();
    private readonly Task _producer;
    private readonly TrainingData _data;
    private readonly TrainingModel _model;
    private readonly int _rowsAtOnce;

    /// <param name="data">The rows.</param>
    /// <param name="model">For whom.</param>
    /// <param name="plan">Which rows each step has.</param>
    /// <param name="rowsAtOnce">Rows of a micro-batch.</param>
    /// <param name="firstStep">Where to begin.</param>
    /// <param name="totalSteps">Where to end.</param>
    public BatchFeeder(TrainingData data, TrainingModel model, BatchPlan plan, int rowsAtOnce, int firstStep, int totalSteps)
    {
        (_data, _model, _rowsAtOnce) = (data, model, rowsAtOnce);
        _producer = Task.Factory.StartNew(() => Produce(plan, firstStep, totalSteps), CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default);
    }

    /// <summary>The next step's rows, which the caller disposes of.</summary>
    public StepBatch Next()
    {
        if (_ready.TryTake(out var batch, Timeout.Infinite)) return batch;
        _producer.GetAwaiter().GetResult(); // its own exception
        throw new InvalidOperationException("There are no more steps.");
    }

    /// <summary>Rows in the given order as micro-batches.</summary>
    public static IReadOnlyList<MicroBatch> Batches(TrainingData data, TrainingModel model, IReadOnlyList<TrainingRow> rows, int rowsOfStep, int rowsAtOnce)
    {
        var batches = new List<MicroBatch>();
        try
        {
            foreach (var part in rows.Chunk(rowsAtOnce))
            {
                var batch = new MicroBatch(data, part, rowsOfStep, model.Tokenizer.EndOfTextId, model.Device);
                batches.Add(batch);
                if (!model.HasFeatures(batch)) batch.Pixels = Pixels(data.Pictures, batch.PictureIndices, model.Device);
            }
            return batches;
        }
        catch
        {
            foreach (var batch in batches) batch.Dispose();
            throw;
        }
    }

    public void Dispose()
    {
        _stop.Cancel();
        try
        {
            _producer.Wait();
        }
        catch (AggregateException)
        {
            // Whoever asked for the next step was told; nobody needs it any more.
        }
        while (_ready.TryTake(out var batch)) batch.Dispose();
        _ready.Dispose();
        _stop.Dispose();
    }

    private void Produce(BatchPlan plan, int firstStep, int totalSteps)
    {
        try
        {
            for (var step = firstStep; step < totalSteps;)
            {
                var (epoch, at) = Math.DivRem(step, plan.StepsPerEpoch);
                foreach (var indices in plan.Epoch(epoch).Skip(at))
                {
                    if (step == totalSteps) break;
                    var rows = Array.ConvertAll(indices, i => _data.Rows[i]);
                    var batch = new StepBatch(step, Array.ConvertAll(rows, r => r.Position), Batches(_data, _model, rows, rows.Length, _rowsAtOnce));
                    try
                    {
                        _ready.Add(batch, _stop.Token);
                    }
                    catch
                    {
                        batch.Dispose();
                        throw;
                    }
                    step++;
                }
            }
        }
        catch (OperationCanceledException) when (_stop.IsCancellationRequested)
        {
        }
        finally
        {
            _ready.CompleteAdding();
        }
    }

    private static Tensor Pixels(PictureStore pictures, int[] indices, Device device)
    {
        var side = (long)Math.Sqrt(pictures.SquareBytes / 3);
        var squares = new byte[indices.Length][];
        // Decoding wants all cores; where nothing has to be decoded, waking them costs more than it gives.
        if (Array.TrueForAll(indices, pictures.IsKept)) squares = Array.ConvertAll(indices, pictures.Square);
        else Parallel.For(0, indices.Length, i => squares[i] = pictures.Square(indices[i]));
        var pixels = HostTensor.Empty([indices.Length, side, side, 3], ScalarType.Byte, device);
        for (var i = 0; i < squares.Length; i++)
        {
            using var one = pixels[i];
            squares[i].CopyTo(one.bytes);
        }
        return pixels;
    }
}
