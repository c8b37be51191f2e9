using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;
using static TorchSharp.torch;

namespace MambaVL.Models;

/// <summary>Brings an error of a backward pass of this library to the caller.</summary>
/// <remarks>
/// An exception must not cross libtorch's frames: the process would end. So a backward pass that fails gives a gradient that
/// cannot fit, and autograd complains of that, to whoever called backward. The reason waits here meanwhile.
/// </remarks>
internal static class BackwardErrors
{
    private static Exception? _last;

    /// <summary>Keeps the reason, on autograd's thread.</summary>
    public static void Keep(Exception e) => Volatile.Write(ref _last, e);

    /// <summary>loss.backward(), which throws the reason.</summary>
    public static void Backward(Tensor loss)
    {
        Volatile.Write(ref _last, null);
        try
        {
            loss.backward();
        }
        catch (ExternalException) when (Volatile.Read(ref _last) is not null)
        {
            ExceptionDispatchInfo.Throw(Interlocked.Exchange(ref _last, null)!);
        }
    }
}
