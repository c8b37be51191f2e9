using System.Diagnostics;
using System.Globalization;
using MambaVL.Models;
using MambaVL.Transforms;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Training;

/// <summary>A run: steps, reports, validations and checkpoints, until the end or until it is stopped.</summary>
/// <remarks>
/// On a GPU the host runs ahead of the device: nothing in a step reads a value back. Losses and norms gather in a small tensor
/// there and are read when something depends on them: a report, a validation, a checkpoint, the end.
/// </remarks>
internal sealed class TrainingLoop : IDisposable
{
    // Where the loss is looked at after each step anyway.
    private const int OnCpu = 1;

    private readonly TrainingOptions _options;
    private readonly StepHost _host;
    private readonly TrainingData _train;
    private readonly Validator? _validator;
    private readonly TrainingModel _model;
    private readonly AdamW _optimizer;
    private readonly TrainingCheckpoints? _checkpoints;
    private readonly BatchPlan _plan;
    private readonly int _total;
    private readonly LearningRateSchedule _schedule;
    private readonly TrainingState _state;
    private readonly Tensor _window; // (steps since the last look, 2) of float32: loss and norm
    private readonly List<long[]> _rowsOfWindow = [];
    private readonly List<double> _losses = [];
    private Tensor? _best;
    private double _norm;

    public TrainingLoop(TrainingOptions options, StepHost host, TrainingData train, TrainingData? validation)
    {
        (_options, _host, _train) = (options, host, train);
        if (validation is not null) _validator = new(options, validation);
        _plan = new(Array.ConvertAll(train.Rows, train.Length), Array.ConvertAll(train.Rows, r => r.Picture), options.BatchSize, options.RowsPerImage, options.Seed);
        _total = options.MaxSteps ?? checked(options.Epochs * _plan.StepsPerEpoch);
        _schedule = new(options.LearningRate, _total, options.WarmupShare, options.FinalShare);
        // With one look at each picture, keeping what the encoder made of it would be work for nothing.
        var seesPicturesAgain = validation is not null || (long)_total * options.BatchSize > train.Pictures.Count;
        _model = Guarded(() => new TrainingModel(options, TrainingModel.ConfigOf(options), seesPicturesAgain), "a copy of the model, its gradients and float32 weights");
        try
        {
            _optimizer = Guarded(() => new AdamW(_model.Parameters.Master.shape[0], _model.Device, options.Beta1, options.Beta2, options.Epsilon, options.WeightDecay, _model.Parameters.CreateKernels()), "the two means of AdamW");
            _window = zeros([_model.Device.type == DeviceType.CPU ? OnCpu : options.ReportSteps, 2], ScalarType.Float32, _model.Device).DetachFromDisposeScope();
            _state = new();
            if (options.OutputDirectory is not { } folder) return;
            _checkpoints = new(folder, options.KeepCheckpoints, RunDescription.Of(options, _model, train, validation), host);
            if (_checkpoints.Read(_model.Parameters, _optimizer) is { } stored) (_state, _best) = stored;
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>Trains, and gives the model; the caller owns it.</summary>
    /// <param name="stop">Ends it after the step that runs.</param>
    /// <exception cref="TrainingException">A loss is no number, or memory does not suffice.</exception>
    public VisionLanguageModel Run(CancellationToken stop)
    {
        if (_state.HasEnded) return Result(_best ?? _model.Parameters.Master);
        _host.Info(string.Create(CultureInfo.InvariantCulture, $"Training {_model.Parameters.Names.Count} parameters of {_model.Parameters.Master.shape[0]:N0} numbers on {_train.Rows.Length:N0} rows about {_train.Pictures.Count:N0} pictures: {_total:N0} steps of {_options.BatchSize} rows, {_options.RowsAtOnce} at once, in {_model.Precision} on {_model.Device}."));
        using var reporter = new TrainingReporter(_host, _options, _total, _plan.StepsPerEpoch, _state.Step);
        using var feeder = new BatchFeeder(_train, _model, _plan, _options.RowsAtOnce, _state.Step, _total);
        var sinceCheckpoint = Stopwatch.StartNew();
        var wasCancelled = false;
        try
        {
            // Cancelled while it validated: the run goes on with that.
            var ends = IsValidation && _state.LastValidation != _state.Step && Validate(reporter, stop);
            while (!ends && _state.Step < _total)
            {
                // The token learns of the context's cancellation from a timer, which a busy machine lets wait.
                if (wasCancelled = stop.IsCancellationRequested || _host.IsCanceled) break;
                using (var batch = feeder.Next())
                {
                    Step(batch);
                    reporter.Begin(batch.Rows.Length, batch.Tokens);
                }

                var isLast = _state.Step == _total;
                var isReport = isLast || _state.Step % _options.ReportSteps == 0;
                var isCheckpoint = _checkpoints is not null && !isLast
                    && (_state.Step % (_options.CheckpointSteps ?? int.MaxValue) == 0 || sinceCheckpoint.Elapsed >= (_options.CheckpointInterval ?? TimeSpan.MaxValue));
                if (isReport || isCheckpoint || IsValidation || _rowsOfWindow.Count == _window.shape[0]) Look(reporter);
                if (isReport)
                {
                    reporter.Report(_losses.Average(), _schedule.At(_state.Step - 1), _norm, _state, isLast && !IsValidation);
                    _losses.Clear();
                }
                if (IsValidation) ends = Validate(reporter, stop);
                if (isCheckpoint && !ends)
                {
                    Write();
                    reporter.Plot(_state);
                    sinceCheckpoint.Restart();
                }
            }
        }
        catch (OperationCanceledException) when (stop.IsCancellationRequested)
        {
            wasCancelled = true;
        }
        Look(reporter); // before anything is kept
        if (wasCancelled) _host.Info($"Training was cancelled after step {_state.Step} of {_total}; the model is as it was then.");
        else _state.HasEnded = true;
        if (_state.Step > 0) Write();
        reporter.Plot(_state);
        return Result(wasCancelled || _best is null ? _model.Parameters.Master : _best);
    }

    public void Dispose()
    {
        _checkpoints?.Dispose();
        _best?.Dispose();
        _window?.Dispose();
        _optimizer?.Dispose();
        _model.Dispose();
    }

    private void Step(StepBatch batch)
    {
        var parameters = _model.Parameters;
        using var scope = NewDisposeScope();
        // Dropout draws from torch's own generator: from a seed of the step's own, so that a run that goes on draws the same.
        if (_options.Adapters is { Dropout: > 0 }) manual_seed(unchecked(_options.Seed * 1_000_003 + _state.Step));
        var sum = zeros([], ScalarType.Float32, _model.Device);
        foreach (var micro in batch.Batches)
            Guarded(() =>
            {
                if (!ReferenceEquals(micro, batch.Batches[0])) parameters.Gather();
                using var inner = NewDisposeScope();
                var loss = _model.Loss(micro);
                BackwardErrors.Backward(loss);
                sum.add_(loss.detach());
                return true;
            }, $"learning from {micro.Rows} rows of {micro.Length} ids about {micro.PictureIndices.Length} pictures of {_model.Model.Config.Images.ImageSize} x {_model.Model.Config.Images.ImageSize} pixels");

        using var noGradients = no_grad();
        var norm = Guarded(() => _optimizer.Step(parameters, _options.ClipNorm, _state.Step, _schedule.At(_state.Step)), "an update of the weights");
        _window[_rowsOfWindow.Count].copy_(stack([sum, norm]));
        _rowsOfWindow.Add(batch.Rows);
        _state.Step++;
    }

    // Reads what has gathered on the device; a loss or norm that is no number ends the run before anything is kept of it.
    private void Look(TrainingReporter reporter)
    {
        if (_rowsOfWindow.Count == 0) return;
        using var host = _window.cpu();
        var values = host.data<float>().ToArray();
        for (var i = 0; i < _rowsOfWindow.Count; i++)
        {
            var (loss, norm) = (values[2 * i], values[2 * i + 1]);
            if (!float.IsFinite(loss) || !float.IsFinite(norm))
                throw new TrainingException(string.Create(CultureInfo.InvariantCulture,
                    $"The {(float.IsFinite(loss) ? $"norm of the gradients is {norm}" : $"loss is {loss}")} at step {_state.Step - _rowsOfWindow.Count + i + 1} of {_total}, on the rows {string.Join(", ", _rowsOfWindow[i])}. ")
                    + "A lower learning rate, a longer warm-up (WarmupShare) or a lower ClipNorm are what helps as a rule. "
                    + (_checkpoints?.Newest is { } good ? $"The last good checkpoint is '{good}'." : "There is no checkpoint to go back to" + (_options.OutputDirectory is null ? "; OutputDirectory would have kept some." : " yet.")));
            _losses.Add(loss);
            _norm = norm;
            var step = _state.Step - _rowsOfWindow.Count + i;
            _state.Curve.Add(new(step + 1, loss, _schedule.At(step)));
            reporter.Add(_state.Curve[^1], _rowsOfWindow[i].Length);
        }
        _rowsOfWindow.Clear();
    }

    private bool IsValidation => _validator is not null && _state.Step > 0
        && (_state.Step == _total || _state.Step % (_options.ValidationSteps ?? _plan.StepsPerEpoch) == 0);

    // Whether training ends with it, for want of anything better.
    private bool Validate(TrainingReporter reporter, CancellationToken stop)
    {
        var began = Stopwatch.GetTimestamp();
        var result = Guarded(() => _validator!.Measure(_model, stop), "validating");
        _state.LastValidation = _state.Step;
        _state.Curve[^1] = _state.Curve[^1] with { Metric = result };
        if (_state.Best is not { } best || _validator!.IsBetter(result, best))
        {
            (_state.Best, _state.BestStep, _state.SinceBest) = (result, _state.Step, 0);
            _best ??= empty_like(_model.Parameters.Master, device: CPU).DetachFromDisposeScope(); // on the host: it is read once
            using var noGradients = no_grad();
            _best.copy_(_model.Parameters.Master);
        }
        else _state.SinceBest++;
        var ends = _state.SinceBest >= (_options.Patience ?? int.MaxValue);
        reporter.Validated(result, _state, Stopwatch.GetElapsedTime(began), ends || _state.Step == _total);
        if (ends) _host.Info(string.Create(CultureInfo.InvariantCulture, $"Training ends at step {_state.Step}: the last {_state.SinceBest} validations were no better than {_options.Metric} {_state.Best:g5} of step {_state.BestStep}."));
        return ends;
    }

    private void Write() => _checkpoints?.Write(_state, _model.Parameters, _optimizer, _best);

    private VisionLanguageModel Result(Tensor weights)
        => _model.Result(weights, _options.OutputDirectory is { } folder ? Path.Combine(folder, "lora.safetensors") : null);

    private T Guarded<T>(Func<T> work, string what)
    {
        try
        {
            return work();
        }
        catch (Exception e) when (TrainingMemory.IsShort(e))
        {
            throw TrainingMemory.Explain(e, what, _options, _options.Model.Device);
        }
    }
}
