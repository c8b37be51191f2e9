using System.Diagnostics;
using System.Globalization;
using MambaVL.Transforms;

namespace MambaVL.Training;

/// <summary>Tells everybody who asked how training goes. The one place where reports are made.</summary>
internal sealed class TrainingReporter : IDisposable
{
    private readonly StepHost _host;
    private readonly TrainingOptions _options;
    private readonly int _total, _stepsPerEpoch;
    private readonly IDisposable _channel;
    private readonly Stopwatch _elapsed = Stopwatch.StartNew();
    private int _step, _reported;
    private long _rows, _tokens;
    private TimeSpan _since;

    public TrainingReporter(StepHost host, TrainingOptions options, int total, int stepsPerEpoch, int firstStep)
    {
        (_host, _options, _total, _stepsPerEpoch, _step, _reported) = (host, options, total, stepsPerEpoch, firstStep, firstStep);
        _channel = host.StartProgress("Training", "steps", () => Volatile.Read(ref _step));
    }

    /// <summary>A step was begun: on a GPU it may not have ended.</summary>
    public void Add(int rows, long tokens)
    {
        Volatile.Write(ref _step, _step + 1);
        (_rows, _tokens) = (_rows + rows, _tokens + tokens);
    }

    /// <summary>Reports on the steps since the last report.</summary>
    public void Report(double loss, double learningRate, double gradientNorm, TrainingState state, bool isLast)
    {
        var seconds = Math.Max(1e-9, (_elapsed.Elapsed - _since).TotalSeconds);
        var perStep = seconds / Math.Max(1, _step - _reported);
        Send(new()
        {
            Step = _step, TotalSteps = _total, Epoch = (double)_step / _stepsPerEpoch, Loss = loss, LearningRate = learningRate, GradientNorm = gradientNorm,
            RowsPerSecond = _rows / seconds, TokensPerSecond = _tokens / seconds, Elapsed = _elapsed.Elapsed,
            Remaining = TimeSpan.FromSeconds(perStep * (_total - _step)), BestValidation = state.Best, IsLast = isLast,
        });
        (_rows, _tokens, _reported, _since) = (0, 0, _step, _elapsed.Elapsed);
    }

    /// <summary>Reports a validation.</summary>
    public void Validated(double result, double loss, double learningRate, TrainingState state, TimeSpan took)
    {
        _since += took; // the speed is that of training
        Send(new()
        {
            Step = _step, TotalSteps = _total, Epoch = (double)_step / _stepsPerEpoch, Loss = loss, LearningRate = learningRate, GradientNorm = 0,
            RowsPerSecond = 0, TokensPerSecond = 0, Elapsed = _elapsed.Elapsed, Remaining = TimeSpan.Zero,
            Metric = _options.Metric, Validation = result, BestValidation = state.Best,
        });
    }

    public void Dispose() => _channel.Dispose();

    private void Send(TrainingProgress progress)
    {
        _host.Info(Text(progress));
        _options.OnProgress?.Invoke(progress);
    }

    private static string Text(TrainingProgress p) => p.Validation is { } result
        ? string.Create(CultureInfo.InvariantCulture, $"Step {p.Step}/{p.TotalSteps}: validation {p.Metric} {result:g5}, the best {p.BestValidation:g5}.")
        : string.Create(CultureInfo.InvariantCulture, $"Step {p.Step}/{p.TotalSteps}, epoch {p.Epoch:0.00}: loss {p.Loss:0.0000}, learning rate {p.LearningRate:0.00e+0}, gradients {p.GradientNorm:0.00}, {p.RowsPerSecond:0.0} rows/s, {p.TokensPerSecond:0} ids/s, {p.Remaining:hh\\:mm\\:ss} to go.");
}
