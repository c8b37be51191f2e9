using System.Text.RegularExpressions;

namespace MambaVL.Metrics;

/// <summary>Captions to words as the COCO caption evaluation counts them: the Penn Treebank's rules, lower case, no
/// punctuation.</summary>
/// <remarks>
/// COCO's evaluation runs Stanford's tokeniser (CoreNLP 3.4.1, in Java). This is an implementation of its own of the rules that
/// captions meet, and was not compared with it on a corpus; docs/metrics.md lists where the two can differ.
/// For numbers to publish, tokenise with Stanford's and evaluate with <c>tokenized: true</c>.
/// </remarks>
public static partial class CaptionTokenizer
{
    // As the Treebank parts them.
    private static readonly Dictionary<string, string[]> s_parted = new(StringComparer.Ordinal)
    {
        ["cannot"] = ["can", "not"],
        ["gimme"] = ["gim", "me"],
        ["gonna"] = ["gon", "na"],
        ["gotta"] = ["got", "ta"],
        ["lemme"] = ["lem", "me"],
        ["wanna"] = ["wan", "na"],
        ["'tis"] = ["'t", "is"],
        ["'twas"] = ["'t", "was"],
    };

    private static readonly string[] s_clitics = ["n't", "'s", "'re", "'ve", "'ll", "'m", "'d"];

    /// <summary>The words of a caption: <c>The man's dog isn't here.</c> is <c>the man 's dog is n't here</c>.</summary>
    /// <param name="caption">Any text; none is an error.</param>
    public static IReadOnlyList<string> Tokenize(string caption)
    {
        ArgumentNullException.ThrowIfNull(caption);
        var text = caption.Replace('\u2018', '\'').Replace('\u2019', '\'').ToLowerInvariant();
        var words = new List<string>();
        foreach (var match in Token().EnumerateMatches(text))
        {
            var word = text.Substring(match.Index, match.Length);
            if (s_parted.TryGetValue(word, out var parts)) words.AddRange(parts);
            else Part(word, words);
        }
        return words;
    }

    private static void Part(string word, List<string> words)
    {
        var start = words.Count;
        while (Array.Find(s_clitics, c => word.Length > c.Length && word.EndsWith(c, StringComparison.Ordinal)) is { } clitic)
        {
            words.Insert(start, clitic);
            word = word[..^clitic.Length];
        }
        words.Insert(start, word);
    }

    // Numbers with what joins their digits; initials (u.s., p.m.); titles, which keep their full stop; words, with what is
    // inside them; a clitic by itself; a symbol that is no punctuation. What matches none of these is dropped.
    [GeneratedRegex("""
        \d+ (?: [.,:/] \d+ )* [\p{L}\p{M}]* (?: [-'] [\p{L}\p{M}\d]+ )*
        | \p{L} \. (?: \p{L} \. )+
        | (?: mr | mrs | ms | dr | jr | sr | st | prof | vs ) \. (?! [\p{L}\d] )
        | [\p{L}\p{M}\d]+ (?: [-'_] [\p{L}\p{M}\d]+ )*
        | ' (?: s | re | ve | ll | m | d | em | tis | twas ) (?! [\p{L}\p{M}\d] )
        | [\p{S}&%#@*/\\-[`^]]
        """, RegexOptions.IgnorePatternWhitespace | RegexOptions.CultureInvariant)]
    private static partial Regex Token();
}
