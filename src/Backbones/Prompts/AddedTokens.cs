using System.Buffers;
using System.Globalization;
using System.Text;

namespace MambaVL.Prompts;

/// <summary>An entry of <c>added_tokens</c>: a string that is one token wherever it stands.</summary>
internal sealed record AddedToken(
    string Content, int Id, bool Special, bool Normalized, bool SingleWord, bool LStrip, bool RStrip);

/// <summary>Finds added tokens: the leftmost first, and the longest of those that start together.</summary>
internal sealed class AddedTokens
{
    /// <summary>The longest content, in characters. It bounds the work at each position of a text.</summary>
    public const int MaxLength = 1024;

    private readonly Dictionary<(int Node, char Next), int> _children = [];
    private readonly List<AddedToken?> _ends = [null];
    private readonly SearchValues<char> _firsts;

    /// <param name="tokens">The tokens and the text that each is looked for as.</param>
    public AddedTokens(IEnumerable<(string Pattern, AddedToken Token)> tokens)
    {
        var firsts = new HashSet<char>();
        foreach (var (pattern, token) in tokens)
        {
            firsts.Add(pattern[0]);
            var node = 0;
            foreach (var c in pattern)
            {
                if (!_children.TryGetValue((node, c), out var child))
                {
                    child = _ends.Count;
                    _ends.Add(null);
                    _children.Add((node, c), child);
                }
                node = child;
            }
            _ends[node] ??= token;
        }
        _firsts = SearchValues.Create(firsts.ToArray());
    }

    /// <summary>The parts of a text, in order: an added token, or null and the text between two of them.</summary>
    public IEnumerable<(AddedToken? Token, string Text)> Split(string text)
    {
        var done = 0;
        var stripped = 0;
        for (var from = 0; Find(text, from) is { } found; from = found.End)
        {
            var (token, start, end) = found;
            if (token.SingleWord && (EndsInWord(text.AsSpan(0, start)) || StartsWithWord(text.AsSpan(end)))) continue;
            if (token.LStrip) start = done + (done < start ? text.AsSpan(done, start - done).TrimEnd().Length : 0);
            // White space that was walked through for the match before is not walked through again.
            if (token.RStrip) end = end < stripped ? stripped : stripped = text.Length - text.AsSpan(end).TrimStart().Length;
            if (done < start) yield return (null, text[done..start]);
            yield return (token, "");
            done = end;
        }
        if (done < text.Length) yield return (null, text[done..]);
    }

    private (AddedToken Token, int Start, int End)? Find(string text, int from)
    {
        for (var start = from; start < text.Length; start++)
        {
            var skip = text.AsSpan(start).IndexOfAny(_firsts);
            if (skip < 0) return null;
            start += skip;

            AddedToken? longest = null;
            var (node, end) = (0, start);
            for (var i = start; i < text.Length && _children.TryGetValue((node, text[i]), out node); i++)
                if (_ends[node] is { } token) (longest, end) = (token, i + 1);
            if (longest is not null) return (longest, start, end);
        }
        return null;
    }

    private static bool EndsInWord(ReadOnlySpan<char> text)
        => !text.IsEmpty && Rune.DecodeLastFromUtf16(text, out var last, out _) == OperationStatus.Done && IsWord(last);

    private static bool StartsWithWord(ReadOnlySpan<char> text)
        => !text.IsEmpty && Rune.DecodeFromUtf16(text, out var first, out _) == OperationStatus.Done && IsWord(first);

    // \w of Unicode's regular expressions: alphabetic, marks, decimal digits, connectors, joiners. The four ranges are
    // the symbols that count as alphabetic: circled, squared and negative letters.
    private static bool IsWord(Rune rune) => Rune.GetUnicodeCategory(rune) switch
    {
        <= UnicodeCategory.LetterNumber or UnicodeCategory.ConnectorPunctuation => true,
        UnicodeCategory.OtherSymbol => rune.Value is >= 0x24B6 and <= 0x24E9 or >= 0x1F130 and <= 0x1F149
            or >= 0x1F150 and <= 0x1F169 or >= 0x1F170 and <= 0x1F189,
        _ => rune.Value is 0x200C or 0x200D,
    };
}
