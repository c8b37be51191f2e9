namespace MambaVL.Prompts;

/// <summary>What a model's text says, for the tasks whose answers have a form. Boxes: <see cref="BoxParser"/>.</summary>
/// <remarks>Models learn answers as sentences (<c>Airplane.</c>, <c>B.</c>, <c>True.</c>); these take them back to what was
/// asked for. None of them throws on any text.</remarks>
public static class AnswerText
{
    /// <summary>A word or phrase without the space around it and the full stop behind it: <c>Airplane.</c> is
    /// <c>Airplane</c>.</summary>
    public static string Short(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        var trimmed = text.AsSpan().Trim();
        return (trimmed.EndsWith('.') ? trimmed[..^1].TrimEnd() : trimmed).ToString();
    }

    /// <summary>The option that a letter names: 0 for <c>A.</c>; null where the text is none of the first
    /// <paramref name="count"/> letters.</summary>
    /// <param name="text">The model's text.</param>
    /// <param name="count">How many options there were, 1 to 26.</param>
    public static int? Choice(string text, int count)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(count, 1);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(count, 26);
        var letter = Short(text);
        if (letter.Length != 1) return null;
        var index = char.ToUpperInvariant(letter[0]) - 'A';
        return index >= 0 && index < count ? index : null;
    }

    /// <summary>Whether the text says that a description fits; null where it says neither <c>True</c> nor <c>False</c>.</summary>
    /// <remarks>The reference's evaluation counts all but <c>False</c> as true (see the metrics); here what cannot be
    /// read is not guessed.</remarks>
    public static bool? TrueOrFalse(string text) => Short(text).ToUpperInvariant() switch
    {
        "TRUE" => true,
        "FALSE" => false,
        _ => null,
    };
}
