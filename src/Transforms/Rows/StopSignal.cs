namespace MambaVL.Transforms;

/// <summary>Whether what runs should stop: the MLContext was cancelled, or the scope of <see cref="StepCancellation"/>.</summary>
/// <remarks>The context has a flag and no event. It is looked at where <see cref="Check"/> is called, with each piece of
/// text; and by a timer, for the time in between (long prompts, tokens without text).</remarks>
internal sealed class StopSignal : IDisposable
{
    private static readonly TimeSpan Interval = TimeSpan.FromMilliseconds(10);

    private readonly StepHost _host;
    private readonly CancellationToken _ambient = StepCancellation.Token;
    private readonly CancellationTokenSource _source;
    private readonly Timer _timer;

    public StopSignal(StepHost host)
    {
        _host = host;
        _source = CancellationTokenSource.CreateLinkedTokenSource(_ambient);
        _timer = new(_ => Look(), null, Interval, Interval);
    }

    public CancellationToken Token => _source.Token;

    /// <exception cref="OperationCanceledException">It should stop.</exception>
    public void Check()
    {
        Look();
        _source.Token.ThrowIfCancellationRequested();
    }

    /// <summary>The exception for the caller: it carries the caller's own token, or says that it was the context.</summary>
    public OperationCanceledException Exception(OperationCanceledException inner)
        => _ambient.IsCancellationRequested ? new("The step was cancelled.", inner, _ambient)
            : new("The MLContext was cancelled.", inner);

    public void Dispose()
    {
        using (var stopped = new ManualResetEvent(false))
            if (_timer.Dispose(stopped)) stopped.WaitOne();
        _source.Dispose();
    }

    private void Look()
    {
        if (_host.IsCanceled && !_source.IsCancellationRequested) _source.Cancel();
    }
}
