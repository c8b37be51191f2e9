namespace MambaVL.Cuda;

/// <summary>A kernel of this project could not be compiled, loaded or run. The message names it.</summary>
public sealed class CudaException : InvalidOperationException
{
    internal CudaException(string message, Exception? inner = null) : base(message, inner)
    {
    }
}
