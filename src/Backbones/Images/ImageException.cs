namespace MambaVL.Images;

/// <summary>A picture that cannot be read: the message names it, says what was found and what was expected.</summary>
/// <remarks>Not for a file that is absent or may not be opened: those are the usual exceptions of <see cref="File"/>.
/// An <see cref="IOException"/> like them, so that one handler can skip whatever picture of a data set fails.</remarks>
public sealed class ImageException : IOException
{
    /// <summary>Makes the exception for a picture.</summary>
    /// <param name="source">The picture's path, or what else it is called.</param>
    /// <param name="problem">What was found, what was expected and what to do, to follow the name and a colon.</param>
    /// <param name="innerException">The cause, where there is one.</param>
    public ImageException(string source, string problem, Exception? innerException = null)
        : base($"{source}: {problem}", innerException) => ImageName = source;

    /// <summary>The picture's path, or what else it is called.</summary>
    public string ImageName { get; }
}
