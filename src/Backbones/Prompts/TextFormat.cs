using System.Collections.Frozen;
using System.Globalization;
using System.Text;

namespace MambaVL.Prompts;

/// <summary>The form in which the models saw every question, caption and phrase in training.</summary>
public static class TextFormat
{
    /// <summary>Without white space at its ends, capitalised, and with a full stop unless it ends in <c>.</c>, <c>?</c> or <c>!</c>: F(x).</summary>
    /// <param name="text">A question, caption, phrase or answer as a person writes it.</param>
    /// <param name="keepCase">Whether letters stay as they are: for texts that quote what is written in the image.</param>
    public static string Sentence(string text, bool keepCase = false)
    {
        var phrase = Phrase(text, keepCase);
        return phrase is [.., '.' or '?' or '!'] ? phrase : phrase + ".";
    }

    /// <summary>Without white space at its ends, and capitalised, as the options of a multiple choice are: F'(x).</summary>
    /// <inheritdoc cref="Sentence" path="/param"/>
    public static string Phrase(string text, bool keepCase = false)
    {
        ArgumentNullException.ThrowIfNull(text);
        var stripped = Strip(text);
        return keepCase ? stripped : Capitalize(stripped);
    }

    /// <summary>Removes white space from both ends, as Python's <c>str.strip()</c> does.</summary>
    internal static string Strip(string text)
    {
        var (start, end) = (0, text.Length);
        while (start < end && IsSpace(text[start])) start++;
        while (start < end && IsSpace(text[end - 1])) end--;
        return text[start..end];
    }

    // Python counts the four separators of ASCII as white space; .NET does not.
    private static bool IsSpace(char c) => char.IsWhiteSpace(c) || c is >= '\x1C' and <= '\x1F';

    /// <summary>The first character in title case, all others in lower case, as Python's <c>str.capitalize()</c> does.</summary>
    /// <remarks>With the mappings that lengthen a text (ß to Ss, İ to i and a dot), and the final sigma. Characters whose
    /// case mapping is newer than the .NET runtime's or the Python's Unicode version may differ.</remarks>
    internal static string Capitalize(string text)
    {
        if (text.Length == 0) return text;
        var result = new StringBuilder(text.Length);
        var runes = text.EnumerateRunes().ToArray();
        AppendTitle(runes[0], result);
        for (var i = 1; i < runes.Length; i++)
        {
            if (runes[i].Value == 0x3A3) result.Append(IsFinal(runes, i) ? 'ς' : 'σ');
            else if (runes[i].Value == 0x130) result.Append("i\u0307");
            else Append(Rune.ToLowerInvariant(runes[i]), result);
        }
        return result.ToString();
    }

    private static void AppendTitle(Rune rune, StringBuilder to)
    {
        // Georgian has capitals, but no title case.
        if (rune.Value is >= 0x10D0 and <= 0x10FF) Append(rune, to);
        else if (TitleCase.TryGetValue(rune.Value, out var title)) to.Append(title);
        else Append(Rune.ToUpperInvariant(rune), to);
    }

    private static void Append(Rune rune, StringBuilder to)
    {
        Span<char> buffer = stackalloc char[2];
        to.Append(buffer[..rune.EncodeToUtf16(buffer)]);
    }

    // Unicode Standard, section 3.13: a letter with case comes before, none after; what case ignores is stepped over.
    // Each run of ignored characters is walked through once for each sigma at its ends, so the whole stays linear.
    private static bool IsFinal(Rune[] runes, int sigma)
    {
        var before = sigma - 1;
        while (before >= 0 && IsCaseIgnorable(runes[before])) before--;
        if (before < 0 || !IsCased(runes[before])) return false;
        var after = sigma + 1;
        while (after < runes.Length && IsCaseIgnorable(runes[after])) after++;
        return after == runes.Length || !IsCased(runes[after]);
    }

    private static bool IsCased(Rune rune) => Rune.GetUnicodeCategory(rune) switch
    {
        UnicodeCategory.UppercaseLetter or UnicodeCategory.LowercaseLetter or UnicodeCategory.TitlecaseLetter => true,
        // Ordinal indicators, Roman numerals, circled and squared letters.
        _ => rune.Value is 0xAA or 0xBA or >= 0x2160 and <= 0x217F or >= 0x24B6 and <= 0x24E9
            or >= 0x1F130 and <= 0x1F149 or >= 0x1F150 and <= 0x1F169 or >= 0x1F170 and <= 0x1F189,
    };

    private static bool IsCaseIgnorable(Rune rune) => Rune.GetUnicodeCategory(rune) switch
    {
        UnicodeCategory.NonSpacingMark or UnicodeCategory.EnclosingMark or UnicodeCategory.Format
            or UnicodeCategory.ModifierLetter or UnicodeCategory.ModifierSymbol => true,
        // Punctuation that stands within words.
        _ => rune.Value is '\'' or '.' or ':' or 0xB7 or 0x387 or 0x55F or 0x5F4 or 0x2018 or 0x2019 or 0x2024 or 0x2027
            or 0xFE13 or 0xFE52 or 0xFE55 or 0xFF07 or 0xFF0E or 0xFF1A,
    };

    /// <summary>Title case where it is not the one character that .NET gives as upper case (SpecialCasing.txt, UnicodeData.txt).</summary>
    private static readonly FrozenDictionary<int, string> TitleCase = new Dictionary<int, string>
    {
        [0xDF] = "\u0053\u0073", [0x131] = "\u0049", [0x149] = "\u02BC\u004E", [0x17F] = "\u0053",
        [0x1C4] = "\u01C5", [0x1C5] = "\u01C5", [0x1C6] = "\u01C5", [0x1C7] = "\u01C8", [0x1C8] = "\u01C8",
        [0x1C9] = "\u01C8", [0x1CA] = "\u01CB", [0x1CB] = "\u01CB", [0x1CC] = "\u01CB", [0x1F0] = "\u004A\u030C",
        [0x1F1] = "\u01F2", [0x1F2] = "\u01F2", [0x1F3] = "\u01F2", [0x390] = "\u0399\u0308\u0301",
        [0x3B0] = "\u03A5\u0308\u0301", [0x587] = "\u0535\u0582", [0x1E96] = "\u0048\u0331",
        [0x1E97] = "\u0054\u0308", [0x1E98] = "\u0057\u030A", [0x1E99] = "\u0059\u030A", [0x1E9A] = "\u0041\u02BE",
        [0x1F50] = "\u03A5\u0313", [0x1F52] = "\u03A5\u0313\u0300", [0x1F54] = "\u03A5\u0313\u0301",
        [0x1F56] = "\u03A5\u0313\u0342", [0x1FB2] = "\u1FBA\u0345", [0x1FB4] = "\u0386\u0345",
        [0x1FB6] = "\u0391\u0342", [0x1FB7] = "\u0391\u0342\u0345", [0x1FC2] = "\u1FCA\u0345",
        [0x1FC4] = "\u0389\u0345", [0x1FC6] = "\u0397\u0342", [0x1FC7] = "\u0397\u0342\u0345",
        [0x1FD2] = "\u0399\u0308\u0300", [0x1FD3] = "\u0399\u0308\u0301", [0x1FD6] = "\u0399\u0342",
        [0x1FD7] = "\u0399\u0308\u0342", [0x1FE2] = "\u03A5\u0308\u0300", [0x1FE3] = "\u03A5\u0308\u0301",
        [0x1FE4] = "\u03A1\u0313", [0x1FE6] = "\u03A5\u0342", [0x1FE7] = "\u03A5\u0308\u0342",
        [0x1FF2] = "\u1FFA\u0345", [0x1FF4] = "\u038F\u0345", [0x1FF6] = "\u03A9\u0342",
        [0x1FF7] = "\u03A9\u0342\u0345", [0xFB00] = "\u0046\u0066", [0xFB01] = "\u0046\u0069",
        [0xFB02] = "\u0046\u006C", [0xFB03] = "\u0046\u0066\u0069", [0xFB04] = "\u0046\u0066\u006C",
        [0xFB05] = "\u0053\u0074", [0xFB06] = "\u0053\u0074", [0xFB13] = "\u0544\u0576", [0xFB14] = "\u0544\u0565",
        [0xFB15] = "\u0544\u056B", [0xFB16] = "\u054E\u0576", [0xFB17] = "\u0544\u056D",
    }.ToFrozenDictionary();
}
