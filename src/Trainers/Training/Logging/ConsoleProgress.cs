using System.Globalization;
using System.Text;

namespace MambaVL.Training;

/// <summary>Shows how far training has come: one line that is rewritten in place where there is a console, else a plain line
/// every so often, fit for a log file.</summary>
/// <remarks>It writes to the standard error stream, so that what a program prints stays apart. One thread at a time.</remarks>
public sealed class ConsoleProgress : IDisposable
{
    /// <summary>The time between two plain lines, where the output is redirected.</summary>
    public static readonly TimeSpan PlainInterval = TimeSpan.FromSeconds(10);

    // Ten a second is what an eye can follow; a console costs more than a step of a small model.
    private static readonly TimeSpan ConsoleInterval = TimeSpan.FromMilliseconds(100);

    private const int MostBar = 24, LeastBar = 8, WidthWhereUnknown = 80;

    private readonly TextWriter _writer;
    private readonly TimeProvider _time;
    private readonly Func<int>? _width; // of the console; null: there is none
    private readonly long _totalSteps, _doneSteps, _start;
    private long _rows, _shown;
    private TrainingPoint? _last;
    private bool _isShown;

    /// <summary>Starts the clock.</summary>
    /// <param name="totalSteps">The steps of the whole run.</param>
    /// <param name="doneSteps">Of these, the steps that were made before this start, where a run goes on. Default 0.</param>
    /// <param name="writer">Where to; it gets plain lines, and stays the caller's. Null: the standard error stream.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number of steps is negative, or more are done than there are.</exception>
    public ConsoleProgress(long totalSteps, long doneSteps = 0, TextWriter? writer = null)
        : this(totalSteps, doneSteps, writer ?? Console.Error, writer is null && !Console.IsErrorRedirected ? WindowWidth : null, TimeProvider.System) { }

    internal ConsoleProgress(long totalSteps, long doneSteps, TextWriter writer, Func<int>? width, TimeProvider time)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(totalSteps);
        ArgumentOutOfRangeException.ThrowIfNegative(doneSteps);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(doneSteps, totalSteps);
        (_totalSteps, _doneSteps, _writer, _width, _time) = (totalSteps, doneSteps, writer, width, time);
        _start = time.GetTimestamp();
    }

    /// <summary>A step was made.</summary>
    /// <param name="point">What came of it.</param>
    /// <param name="rows">The rows that it read.</param>
    public void Report(TrainingPoint point, int rows)
    {
        _rows += rows;
        _last = point;
        _isShown = false;
        var interval = _width is null ? PlainInterval : ConsoleInterval;
        if (_shown == 0 || _time.GetElapsedTime(_shown) >= interval) Show();
    }

    /// <summary>Shows the last step, if it was not, and ends the line.</summary>
    public void Dispose()
    {
        if (_last is null) return;
        if (!_isShown) Show();
        if (_width is not null) _writer.WriteLine();
        _writer.Flush();
        _last = null;
    }

    private void Show()
    {
        var text = Text(_last!.Value);
        if (_width is null) _writer.WriteLine(text);
        else
        {
            // One column is left free: a full line would scroll some consoles. The blanks wipe a longer line before this one.
            var room = Math.Max(1, _width() - 1);
            text = Bar(Share(_last.Value), room - text.Length) + text;
            _writer.Write('\r' + (text.Length > room ? text[..room] : text.PadRight(room)));
        }
        _writer.Flush();
        _isShown = true;
        _shown = Math.Max(1, _time.GetTimestamp());
    }

    private string Text(TrainingPoint point)
    {
        var invariant = CultureInfo.InvariantCulture;
        var seconds = _time.GetElapsedTime(_start).TotalSeconds;
        var made = point.Step - _doneSteps;

        var text = new StringBuilder();
        text.Append(invariant, $"step {point.Step}/{_totalSteps} {Math.Floor(Share(point) * 100)}%  loss {point.Loss:0.0000}  lr {point.LearningRate:0.00e-0}");
        if (point.Metric is { } metric) text.Append(invariant, $"  metric {metric:0.0000}");
        // The first step says little about those that follow, but something.
        if (seconds > 0 && made > 0)
            text.Append(invariant, $"  {_rows / seconds:0.0} rows/s  ETA {Duration(Math.Max(0, _totalSteps - point.Step) * seconds / made)}");
        return text.ToString();
    }

    // The bar has what the numbers leave.
    private static string Bar(double share, int room)
    {
        var width = Math.Min(room - "[] ".Length, MostBar);
        var full = (int)(share * width);
        return width < LeastBar ? "" : $"[{new string('#', full)}{new string('.', width - full)}] ";
    }

    private double Share(TrainingPoint point) => _totalSteps == 0 ? 1 : Math.Clamp((double)point.Step / _totalSteps, 0, 1);

    private static string Duration(double seconds)
    {
        var time = TimeSpan.FromSeconds(Math.Min(Math.Round(seconds), 1e9));
        return string.Create(CultureInfo.InvariantCulture, $"{(long)time.TotalHours}:{time.Minutes:d2}:{time.Seconds:d2}");
    }

    private static int WindowWidth()
    {
        try
        {
            return Console.WindowWidth is > 0 and var width ? width : WidthWhereUnknown;
        }
        catch (Exception e) when (e is IOException or PlatformNotSupportedException)
        {
            return WidthWhereUnknown; // a terminal that does not tell
        }
    }
}
