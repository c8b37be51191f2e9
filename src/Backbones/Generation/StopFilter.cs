namespace MambaVL.Generation;

/// <summary>Ends a text that comes in pieces before the first of some sequences; what may be the start of one is held
/// back until it is known.</summary>
internal sealed class StopFilter(IReadOnlyList<string> sequences)
{
    private string _held = "";

    /// <summary>Whether a sequence came: the text has ended.</summary>
    public bool Reached { get; private set; }

    /// <summary>What is sure to be the text's, now that the piece is there.</summary>
    public string Append(string piece)
    {
        if (Reached) return "";
        if (sequences.Count == 0) return piece;
        var text = _held + piece;
        var end = Find(text, sequences);
        Reached = end >= 0;
        if (!Reached) end = text.Length - StartOfAny(text);
        _held = Reached ? "" : text[end..];
        return text[..end];
    }

    /// <summary>What was held back, where the text ends without a sequence.</summary>
    public string Flush()
    {
        var rest = _held;
        _held = "";
        return rest;
    }

    /// <summary>Where the first of the sequences begins, or -1.</summary>
    public static int Find(string text, IReadOnlyList<string> sequences)
        => sequences.Select(s => text.IndexOf(s, StringComparison.Ordinal)).Where(i => i >= 0).DefaultIfEmpty(-1).Min();

    // How many characters at the end may be the start of a sequence.
    private int StartOfAny(string text)
    {
        var length = Math.Min(text.Length, sequences.Max(s => s.Length) - 1);
        while (length > 0 && !sequences.Any(s => s.AsSpan().StartsWith(text.AsSpan(text.Length - length), StringComparison.Ordinal))) length--;
        return length;
    }
}
