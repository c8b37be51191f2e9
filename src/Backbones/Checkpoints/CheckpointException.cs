namespace MambaVL.Checkpoints;

/// <summary>A checkpoint that cannot be read, or that does not fit the model. The message names the file and, where
/// there is one, the tensor.</summary>
/// <remarks>An <see cref="IOException"/>, so that one <c>catch</c> covers it and a file that is missing or locked.</remarks>
public sealed class CheckpointException : IOException
{
    /// <summary>Makes the exception.</summary>
    /// <param name="file">The file or folder.</param>
    /// <param name="tensor">The tensor that the problem is about, or null.</param>
    /// <param name="problem">What was found, what was expected, what to do.</param>
    /// <param name="inner">What caused it, or null.</param>
    public CheckpointException(string file, string? tensor, string problem, Exception? inner = null)
        : base(tensor is null ? $"{file}: {problem}" : $"{file}: tensor {Quote(tensor)}: {problem}", inner)
        => (File, Tensor) = (file, tensor);

    /// <summary>The file or folder.</summary>
    public string File { get; }

    /// <summary>The tensor that the problem is about, or null.</summary>
    public string? Tensor { get; }

    /// <summary>Text from a file, fit for a message: in quotes, control characters escaped, cut after 200 characters.</summary>
    internal static string Quote(string text)
    {
        var shown = text.Length <= 200 ? text : $"{text.AsSpan(0, 200)}...";
        return shown.AsSpan().ContainsAnyInRange('\0', '\x1f') || shown.AsSpan().ContainsAnyInRange('\x7f', '\x9f')
            ? $"'{string.Concat(shown.Select(c => char.IsControl(c) ? $"\\u{(int)c:x4}" : c.ToString()))}'"
            : $"'{shown}'";
    }
}
