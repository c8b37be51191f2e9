using System.Globalization;
using System.Text;

namespace MambaVL.Prompts;

/// <summary>Cuts a text into the words that byte pairs are merged within.</summary>
/// <remarks>
/// GPT-2's pattern, <c>'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+</c>. It is written
/// out because .NET's regular expressions see UTF-16 units: letters and digits beyond U+FFFF would count as symbols.
/// </remarks>
internal static class WordSplitter
{
    private enum Kind { Letter, Number, Space, Other }

    /// <summary>The length of the first word of a text that is not empty.</summary>
    public static int FirstWord(ReadOnlySpan<char> text)
    {
        if (text[0] == '\'' && Contraction(text[1..]) is var suffix && suffix > 0) return 1 + suffix;

        var start = text[0] == ' ' ? 1 : 0;
        if (start < text.Length && KindAt(text[start..], out _) is var kind && kind != Kind.Space)
            return start + Run(text[start..], kind);

        // White space leaves its last character to the word that follows, unless that is all there is of it.
        var spaces = Run(text, Kind.Space);
        return spaces == text.Length || spaces == 1 ? spaces : spaces - 1;
    }

    private static int Contraction(ReadOnlySpan<char> text) => text switch
    {
        ['s' or 't' or 'm' or 'd', ..] => 1,
        ['r', 'e', ..] or ['v', 'e', ..] or ['l', 'l', ..] => 2,
        _ => 0,
    };

    private static int Run(ReadOnlySpan<char> text, Kind kind)
    {
        var length = 0;
        while (length < text.Length && KindAt(text[length..], out var units) == kind) length += units;
        return length;
    }

    private static Kind KindAt(ReadOnlySpan<char> text, out int units)
    {
        if (char.IsAscii(text[0]))
        {
            units = 1;
            var c = text[0];
            return char.IsAsciiLetter(c) ? Kind.Letter : char.IsAsciiDigit(c) ? Kind.Number
                : char.IsWhiteSpace(c) ? Kind.Space : Kind.Other;
        }
        Rune.DecodeFromUtf16(text, out var rune, out units);
        if (Rune.IsWhiteSpace(rune)) return Kind.Space;
        return Rune.GetUnicodeCategory(rune) switch
        {
            <= UnicodeCategory.OtherLetter => Kind.Letter,
            UnicodeCategory.DecimalDigitNumber or UnicodeCategory.LetterNumber or UnicodeCategory.OtherNumber => Kind.Number,
            _ => Kind.Other,
        };
    }
}
