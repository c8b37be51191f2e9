using System.Globalization;
using System.Threading.RateLimiting;

namespace MambaVL.Samples;

/// <summary>Lets as many requests at the model as it can work on, makes some wait, and tells the others to come back.</summary>
/// <remarks>A filter rather than the rate limiter's middleware: it stands behind the reading of the request, so a slow upload
/// keeps nobody from the model.</remarks>
internal sealed class Gate(ServiceSettings settings) : IEndpointFilter, IDisposable
{
    private readonly ConcurrencyLimiter _limiter = new(new()
    {
        PermitLimit = settings.Concurrency, QueueLimit = settings.Queue, QueueProcessingOrder = QueueProcessingOrder.OldestFirst,
    });

    public long Running => settings.Concurrency - _limiter.GetStatistics()!.CurrentAvailablePermits;

    public long Waiting => _limiter.GetStatistics()!.CurrentQueuedCount;

    public async ValueTask<object?> InvokeAsync(EndpointFilterInvocationContext invocation, EndpointFilterDelegate next)
    {
        var context = invocation.HttpContext;
        var lease = await _limiter.AcquireAsync(1, context.RequestAborted); // who leaves the queue is not worked for
        context.Response.RegisterForDispose(lease);                         // when the response has ended, a streamed one too
        if (lease.IsAcquired) return await next(invocation);
        context.Response.Headers.RetryAfter = settings.RetryAfter.ToString(CultureInfo.InvariantCulture);
        return Results.Problem($"{settings.Concurrency} requests are being worked on and {settings.Queue} wait; come back later.", statusCode: StatusCodes.Status503ServiceUnavailable);
    }

    public void Dispose() => _limiter.Dispose();
}
