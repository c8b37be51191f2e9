using System.Collections.Frozen;
using System.Globalization;
using System.Text;

namespace MambaVL.Prompts;

/// <summary>Unicode's composed form (NFC) of a text.</summary>
/// <remarks>
/// <see cref="string.Normalize()"/> is not used: it returns its input unchanged where the runtime has no ICU
/// (<c>InvariantGlobalization</c>), so that the ids would depend on the machine; it throws for U+FFFE; and ICU's time
/// grows with the square of a run of combining marks (5 s for 100,000 of them).
/// </remarks>
internal static partial class UnicodeComposition
{
    // Hangul syllables: Unicode Standard, section 3.12.
    private const int SBase = 0xAC00, LBase = 0x1100, VBase = 0x1161, TBase = 0x11A7;
    private const int LCount = 19, VCount = 21, TCount = 28, SCount = LCount * VCount * TCount;

    /// <summary>Below it, every character is its own composed form, and nothing before it composes with what is there.</summary>
    private const char FirstAffected = '\u0300';

    private static readonly Lazy<Tables> Data = new(Tables.Parse);

    private sealed record Tables(
        FrozenDictionary<int, int[]> Decompose, FrozenDictionary<long, int> Compose, FrozenDictionary<int, byte> Class)
    {
        public static Tables Parse()
        {
            var decompose = new Dictionary<int, int[]>();
            var compose = new Dictionary<long, int>();
            foreach (var entry in Entries(Decompositions))
            {
                var mark = entry.AsSpan().IndexOfAny('=', '!');
                var parts = entry[(mark + 1)..].Split('+').Select(Hex).ToArray();
                var c = Hex(entry[..mark]);
                decompose[c] = parts;
                if (parts.Length == 2 && entry[mark] == '=') compose[Pair(parts[0], parts[1])] = c;
            }
            var classes = new Dictionary<int, byte>();
            foreach (var entry in Entries(CombiningClasses))
            {
                var parts = entry.Split('-', ':');
                for (var c = Hex(parts[0]); c <= Hex(parts[1]); c++)
                    classes[c] = byte.Parse(parts[2], CultureInfo.InvariantCulture);
            }
            return new(decompose.ToFrozenDictionary(), compose.ToFrozenDictionary(), classes.ToFrozenDictionary());
        }

        private static string[] Entries(string data) => data.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries);

        private static int Hex(string s) => int.Parse(s, NumberStyles.HexNumber, CultureInfo.InvariantCulture);
    }

    /// <summary>The composed form of a text without lone surrogates. Time: n log n at worst.</summary>
    public static string Compose(string text)
    {
        if (text.AsSpan().IndexOfAnyExceptInRange('\0', (char)(FirstAffected - 1)) < 0) return text;

        var data = Data.Value;
        var runes = new List<int>(text.Length + 16);
        foreach (var rune in text.EnumerateRunes()) Decompose(rune.Value, runes, data);
        var span = System.Runtime.InteropServices.CollectionsMarshal.AsSpan(runes);
        SortMarks(span, data);
        var length = ComposeInPlace(span, data);

        var result = new StringBuilder(text.Length);
        Span<char> buffer = stackalloc char[2];
        foreach (var c in span[..length]) result.Append(buffer[..new Rune(c).EncodeToUtf16(buffer)]);
        return result.ToString();
    }

    private static void Decompose(int c, List<int> to, Tables data)
    {
        if ((uint)(c - SBase) < SCount)
        {
            var s = c - SBase;
            to.Add(LBase + s / (VCount * TCount));
            to.Add(VBase + s % (VCount * TCount) / TCount);
            if (s % TCount != 0) to.Add(TBase + s % TCount);
        }
        else if (data.Decompose.TryGetValue(c, out var parts))
        {
            foreach (var part in parts) Decompose(part, to, data);
        }
        else
        {
            to.Add(c);
        }
    }

    /// <summary>Brings each run of combining marks into the order of their classes; equal classes keep their order.</summary>
    private static void SortMarks(Span<int> runes, Tables data)
    {
        for (var start = 0; start < runes.Length; start++)
        {
            if (ClassOf(runes[start], data) == 0) continue;
            var end = start + 1;
            var ordered = true;
            for (; end < runes.Length && ClassOf(runes[end], data) is var c && c != 0; end++)
                ordered &= ClassOf(runes[end - 1], data) <= c;
            if (!ordered)
            {
                var run = runes[start..end];
                var keys = new long[run.Length];
                for (var i = 0; i < keys.Length; i++) keys[i] = (long)ClassOf(run[i], data) << 32 | (uint)i;
                keys.AsSpan().Sort(run);
            }
            start = end;
        }
    }

    /// <summary>Unicode Standard, section 3.11, D117: each character joins the last starter unless something blocks it.</summary>
    private static int ComposeInPlace(Span<int> runes, Tables data)
    {
        var length = 0;
        var starter = -1;
        var lastClass = 0;
        foreach (var c in runes)
        {
            var k = ClassOf(c, data);
            var adjacent = starter >= 0 && starter == length - 1;
            if (starter >= 0 && (adjacent || lastClass < k) && Join(runes[starter], c, data) is { } joined)
            {
                runes[starter] = joined;
                continue;
            }
            if (k == 0) starter = length;
            lastClass = k;
            runes[length++] = c;
        }
        return length;
    }

    private static int? Join(int first, int second, Tables data)
    {
        if ((uint)(first - LBase) < LCount && (uint)(second - VBase) < VCount)
            return SBase + ((first - LBase) * VCount + (second - VBase)) * TCount;
        if ((uint)(first - SBase) < SCount && (first - SBase) % TCount == 0 && second - TBase is > 0 and < TCount)
            return first + (second - TBase);
        return data.Compose.TryGetValue(Pair(first, second), out var c) ? c : null;
    }

    private static int ClassOf(int c, Tables data)
        => c < FirstAffected ? 0 : data.Class.TryGetValue(c, out var k) ? k : 0;

    private static long Pair(int first, int second) => (long)first << 32 | (uint)second;
}
