namespace MambaVL.Transforms;

/// <summary>Stops the steps that run within a scope, as when the client of a web request has left.</summary>
/// <remarks>
/// A prediction engine takes no cancellation token. <code>using (StepCancellation.Use(request.Aborted)) engine.Predict(question);</code>
/// throws an <see cref="OperationCanceledException"/> within one token. The scope holds for everything that its code calls,
/// on other threads as well; not for what runs beside it.
/// </remarks>
public static class StepCancellation
{
    private static readonly AsyncLocal<CancellationToken> Ambient = new();

    /// <summary>The token of the innermost scope around the caller; one that is never cancelled where there is none.</summary>
    public static CancellationToken Token => Ambient.Value;

    /// <summary>Begins a scope; disposing of the result ends it. Within a scope of another token, both count.</summary>
    public static IDisposable Use(CancellationToken cancellationToken) => new Scope(cancellationToken);

    private sealed class Scope : IDisposable
    {
        private readonly CancellationToken _outer = Ambient.Value;
        private readonly CancellationTokenSource _both;

        public Scope(CancellationToken inner)
        {
            _both = CancellationTokenSource.CreateLinkedTokenSource(_outer, inner);
            Ambient.Value = _both.Token;
        }

        public void Dispose()
        {
            Ambient.Value = _outer;
            _both.Dispose();
        }
    }
}
