namespace MambaVL;

/// <summary>TorchSharp's native libraries cannot be used on this machine. The message says what was looked for, where,
/// and what to install or to set.</summary>
public sealed class NativeRuntimeException : Exception
{
    internal NativeRuntimeException(string problem, string lookedFor, IEnumerable<string> where, string cure, Exception? inner = null)
        : base(Compose(problem, lookedFor, where as IReadOnlyList<string> ?? where.ToList(), cure), inner)
    {
        LookedFor = lookedFor;
        Where = where.ToList();
        Cure = cure;
    }

    /// <summary>The file, version or device that was looked for.</summary>
    public string LookedFor { get; }

    /// <summary>The folders and files that were looked at, in order; may be empty.</summary>
    public IReadOnlyList<string> Where { get; }

    /// <summary>What to install, to set or to rebuild.</summary>
    public string Cure { get; }

    private static string Compose(string problem, string lookedFor, IReadOnlyList<string> where, string cure)
    {
        var places = where.Count == 0 ? "" : $"\n  where:      {string.Join("\n              ", where)}";
        return $"{problem}\n  looked for: {lookedFor}{places}\n  what to do: {cure}";
    }
}
