using MambaVL.Images;
using MambaVL.Transforms;
using Microsoft.AspNetCore.Diagnostics;

namespace MambaVL.Samples;

/// <summary>What is the client's fault is told to the client; all else is a 500 without details.</summary>
internal sealed class Errors : IExceptionHandler
{
    public async ValueTask<bool> TryHandleAsync(HttpContext context, Exception exception, CancellationToken cancellationToken)
    {
        var (status, message) = exception switch
        {
            BadHttpRequestException e => (e.StatusCode, e.Message),
            RowException row when row.GetBaseException() is ImageException e => (StatusCodes.Status400BadRequest, e.Message),
            ImageException e => (StatusCodes.Status400BadRequest, e.Message),
            _ => (0, ""),
        };
        if (status == 0) return false;
        await Results.Problem(message, statusCode: status).ExecuteAsync(context);
        return true;
    }
}
