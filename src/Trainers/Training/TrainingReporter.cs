using System.Diagnostics;
using System.Globalization;
using MambaVL.Transforms;

namespace MambaVL.Training;

/// <summary>Tells everybody who asked how training goes: the MLContext's log and progress channel, the caller, the console, and
/// the logs of the output directory. The one place where reports are made.</summary>
internal sealed class TrainingReporter : IDisposable
{
    /// <summary>What the picture of the curves is called.</summary>
    public const string PlotName = "loss.png";

    private readonly StepHost _host;
    private readonly TrainingOptions _options;
    private readonly int _total, _stepsPerEpoch;
    private readonly IDisposable _channel;
    private readonly ConsoleProgress? _console;
    private TensorBoardWriter? _board;
    private readonly Stopwatch _elapsed = Stopwatch.StartNew();
    private int _step, _reported;
    private long _rows, _tokens;
    private TimeSpan _since;
    private TrainingProgress? _last;

    public TrainingReporter(StepHost host, TrainingOptions options, int total, int stepsPerEpoch, int firstStep)
    {
        (_host, _options, _total, _stepsPerEpoch, _step, _reported) = (host, options, total, stepsPerEpoch, firstStep, firstStep);
        if (options is { OutputDirectory: { } folder, WriteLogs: true }) _board = new(folder, firstStep == 0 ? null : firstStep + 1);
        if (options.ShowProgress) _console = new(total, firstStep);
        _channel = host.StartProgress("Training", "steps", () => Volatile.Read(ref _step));
    }

    /// <summary>A step was begun: on a GPU it may not have ended.</summary>
    public void Begin(int rows, long tokens)
    {
        Volatile.Write(ref _step, _step + 1);
        (_rows, _tokens) = (_rows + rows, _tokens + tokens);
    }

    /// <summary>What came of a step.</summary>
    public void Add(TrainingPoint point, int rows)
    {
        Write(board => board.Write(point));
        _console?.Report(point, rows);
    }

    /// <summary>Reports on the steps since the last report.</summary>
    public void Report(double loss, double learningRate, double gradientNorm, TrainingState state, bool isLast)
    {
        var seconds = Math.Max(1e-9, (_elapsed.Elapsed - _since).TotalSeconds);
        var perStep = seconds / Math.Max(1, _step - _reported);
        _last = new()
        {
            Step = _step, TotalSteps = _total, Epoch = (double)_step / _stepsPerEpoch, Loss = loss, LearningRate = learningRate, GradientNorm = gradientNorm,
            RowsPerSecond = _rows / seconds, TokensPerSecond = _tokens / seconds, Elapsed = _elapsed.Elapsed,
            Remaining = TimeSpan.FromSeconds(perStep * (_total - _step)), BestValidation = state.Best, IsLast = isLast,
        };
        (_rows, _tokens, _reported, _since) = (0, 0, _step, _elapsed.Elapsed);
        Write(board =>
        {
            board.Write("train/gradient_norm", gradientNorm, _step);
            board.Write("train/rows_per_second", _last.RowsPerSecond, _step);
        });
        Send(_last, string.Create(CultureInfo.InvariantCulture,
            $"Step {_step}/{_total}, epoch {_last.Epoch:0.00}: loss {loss:0.0000}, learning rate {learningRate:0.00e+0}, gradients {gradientNorm:0.00}, {_last.RowsPerSecond:0.0} rows/s, {_last.TokensPerSecond:0} ids/s, {_last.Remaining:d\\.hh\\:mm\\:ss} to go."));
    }

    /// <summary>Reports a validation, with the numbers of the report on training before it.</summary>
    public void Validated(double result, TrainingState state, TimeSpan took, bool isLast)
    {
        _since += took; // the speed is that of training
        var point = state.Curve[^1];
        Write(board => board.Write(TensorBoardWriter.MetricTag, result, _step));
        var before = _last ?? new TrainingProgress
        {
            Step = _step, TotalSteps = _total, Epoch = 0, Loss = point.Loss, LearningRate = point.LearningRate, GradientNorm = 0, RowsPerSecond = 0,
            TokensPerSecond = 0, Elapsed = default, Remaining = default,
        };
        Send(before with
        {
            Step = _step, Epoch = (double)_step / _stepsPerEpoch, Elapsed = _elapsed.Elapsed,
            Metric = _options.Metric, Validation = result, BestValidation = state.Best, IsLast = isLast,
        }, string.Create(CultureInfo.InvariantCulture, $"Step {_step}/{_total}: validation {_options.Metric} {result:g5}, the best {state.Best:g5} of step {state.BestStep}."));
    }

    /// <summary>Draws the curves. A picture that cannot be written is no reason to stop.</summary>
    public void Plot(TrainingState state)
    {
        if (!_options.WriteLogs || _options.OutputDirectory is null || state.Curve.Count == 0) return;
        try
        {
            TrainingPlot.Save(Path.Combine(_options.OutputDirectory, PlotName), state.Curve, new() { MetricName = $"validation {_options.Metric}" });
        }
        catch (IOException e)
        {
            _host.Warning($"The curves could not be drawn: {e.Message}");
        }
    }

    public void Dispose()
    {
        _console?.Dispose();
        _board?.Dispose();
        _channel.Dispose();
    }

    // A log that can no longer be written is no reason to stop.
    private void Write(Action<TensorBoardWriter> write)
    {
        if (_board is null) return;
        try
        {
            write(_board);
        }
        catch (IOException e)
        {
            _host.Warning($"The log '{_board.Path}' can no longer be written: {e.Message}");
            _board = null;
        }
    }

    private void Send(TrainingProgress progress, string text)
    {
        _host.Info(text);
        _options.OnProgress?.Invoke(progress);
    }
}
