using System.Diagnostics;

namespace MambaVL.Transforms;

/// <summary>Tells the MLContext how far a cursor has come: its progress channel while it runs, a line in its log at the end.</summary>
internal sealed class StepProgress : IDisposable
{
    private readonly StepHost _host;
    private readonly StepSettings _settings;
    private readonly IDisposable _channel;
    private readonly long _start = Stopwatch.GetTimestamp();
    private long _rows;

    public StepProgress(StepHost host, StepSettings settings)
    {
        (_host, _settings) = (host, settings);
        _channel = host.StartProgress(settings.Kind.ToString(), "rows", () => Interlocked.Read(ref _rows));
    }

    /// <summary>A batch is done.</summary>
    public void Add(int rows)
    {
        if (rows == 0) return;
        Interlocked.Add(ref _rows, rows);
        _host.Trace($"{_settings.Kind} '{_settings.Output}': {_rows:N0} rows in {Stopwatch.GetElapsedTime(_start).TotalSeconds:f1} s.");
    }

    public void Dispose()
    {
        _channel.Dispose();
        _host.Info($"{_settings.Kind} '{_settings.Output}' has ended: {_rows:N0} rows in {Stopwatch.GetElapsedTime(_start).TotalSeconds:f1} s.");
    }
}
