using System.Text;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace MambaVL.Prompts;

/// <summary>How large a vocabulary <see cref="BytePairTrainer"/> learns, and of what.</summary>
public sealed record BytePairTrainerOptions
{
    /// <summary>The number of tokens, <see cref="BytePairTrainer.LeastVocabulary"/> at least. Texts in which too few pairs repeat
    /// give fewer. Default 1024.</summary>
    public int VocabularySize { get; init; } = 1024;

    /// <summary>Pairs that occur less often than this are not merged; 1 at least. Default 2.</summary>
    public int MinFrequency { get; init; } = 2;

    /// <summary>Whether each digit is a token by itself, so that 0.12 and 0.13 differ in one token of four. Default true: boxes are
    /// numbers, and a small model learns what digits mean faster than what a thousand numbers do.</summary>
    public bool SingleDigits { get; init; } = true;

    internal void Check()
    {
        if (VocabularySize < BytePairTrainer.LeastVocabulary)
            throw new ArgumentException($"{nameof(BytePairTrainerOptions)}.{nameof(VocabularySize)} is {VocabularySize}; expected at least {BytePairTrainer.LeastVocabulary}: the end token, a token for each byte of UTF-8, and those that mark an image.");
        if (MinFrequency < 1) throw new ArgumentException($"{nameof(BytePairTrainerOptions)}.{nameof(MinFrequency)} is {MinFrequency}; expected at least 1.");
    }
}

/// <summary>Learns a tokeniser from texts: byte-level byte-pair encoding of GPT-NeoX's kind, for a model with a vocabulary of its own.</summary>
/// <remarks>
/// Texts are composed (NFC) and cut into words as <see cref="Tokenizer"/> does. Then the pair of neighbours that occurs most often
/// within words becomes a token, again and again; of pairs that occur equally often, the one of lower ids. So the same texts, in
/// any order, give the same file. Id 0 is <see cref="Tokenizer.DefaultEndOfText"/>; the bytes that UTF-8 can hold follow, so that
/// any text can be encoded; then <c>###</c> and <c>&amp;&amp;</c>, which mark an image and are one token each, and what was learnt.
/// </remarks>
/// <example><code>
/// Tokenizer tokenizer = BytePairTrainer.Train(captions, new() { VocabularySize = 512 });
/// File.WriteAllBytes("tokenizer.json", tokenizer.Source.ToArray());
/// </code></example>
public static class BytePairTrainer
{
    // What an image is marked with, learnt before anything else: the same tokens whatever the texts are.
    private static readonly (string Left, string Right)[] Marks = [("#", "#"), ("##", "#"), ("&", "&")];

    private static readonly char[] Alphabet =
        [.. Enumerable.Range(0, 256).Select(b => (byte)b).Where(ByteAlphabet.OccursInUtf8).Select(ByteAlphabet.Char).Order()];

    /// <summary>The tokens that every vocabulary has.</summary>
    public static int LeastVocabulary { get; } = 1 + Alphabet.Length + Marks.Length;

    /// <summary>Learns a tokeniser.</summary>
    /// <param name="texts">What models of it will read and write: prompts and answers, turn by turn. Read once.</param>
    /// <param name="options">Size and kind; the defaults when null.</param>
    /// <returns>The tokeniser; its <see cref="Tokenizer.Source"/> is a tokenizer.json, which other libraries read too.</returns>
    /// <exception cref="ArgumentException">An option is out of its range, or a text is null.</exception>
    public static Tokenizer Train(IEnumerable<string> texts, BytePairTrainerOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(texts);
        options ??= new();
        options.Check();
        var learner = new Learner(CountWords(texts, options.SingleDigits));
        foreach (var (left, right) in Marks) learner.Merge(learner.IdOf(left), learner.IdOf(right));
        while (learner.Tokens.Count < options.VocabularySize && learner.MostFrequent(options.MinFrequency) is var (a, b)) learner.Merge(a, b);
        return Tokenizer.Parse(Json(learner));
    }

    /// <summary>How often each word occurs, as characters of the byte alphabet.</summary>
    private static Dictionary<string, long> CountWords(IEnumerable<string> texts, bool singleDigits)
    {
        var words = new Dictionary<string, long>();
        foreach (var text in texts)
        {
            if (text is null) throw new ArgumentException("One of the texts is null.", nameof(texts));
            foreach (var part in text.Split(Tokenizer.DefaultEndOfText))
                for (var rest = UnicodeComposition.Compose(Encoding.UTF8.GetString(Encoding.UTF8.GetBytes(part))).AsSpan(); !rest.IsEmpty;)
                {
                    var word = rest[..WordSplitter.FirstWord(rest)];
                    rest = rest[word.Length..];
                    // Of a number nothing is learnt, so nothing of it is ever merged: no other word has digits.
                    if (singleDigits && Rune.IsNumber(LastRune(word))) continue;
                    var key = ByteAlphabetText(word);
                    words[key] = words.GetValueOrDefault(key) + 1;
                }
        }
        return words;
    }

    private static Rune LastRune(ReadOnlySpan<char> word)
    {
        Rune.DecodeLastFromUtf16(word, out var rune, out _);
        return rune;
    }

    private static string ByteAlphabetText(ReadOnlySpan<char> word)
    {
        var bytes = new byte[Encoding.UTF8.GetByteCount(word)];
        Encoding.UTF8.GetBytes(word, bytes);
        return string.Create(bytes.Length, bytes, (chars, from) =>
        {
            for (var i = 0; i < chars.Length; i++) chars[i] = ByteAlphabet.Char(from[i]);
        });
    }

    /// <summary>Words as ids, and how often each pair of neighbours occurs in them.</summary>
    private sealed class Learner
    {
        private readonly Dictionary<string, int> _ids = [];
        private readonly List<(int[] Ids, long Count)> _words = [];
        private readonly Dictionary<(int, int), long> _counts = [];
        private readonly Dictionary<(int, int), HashSet<int>> _places = []; // the words that have the pair, or had it

        // An entry may be out of date; it is put right when it comes to the top. Counts are negative: the least is first.
        private readonly PriorityQueue<(int Left, int Right), (long Count, int Left, int Right)> _queue = new();

        public Learner(Dictionary<string, long> words)
        {
            Add(Tokenizer.DefaultEndOfText);
            foreach (var c in Alphabet) Add(c.ToString());
            var changes = new Dictionary<(int, int), long>();
            foreach (var (word, count) in words)
            {
                var ids = word.Select(c => _ids[c.ToString()]).ToArray();
                Count(ids, count, _words.Count, changes);
                _words.Add((ids, count));
            }
            Apply(changes);
        }

        public List<string> Tokens { get; } = [];

        public List<(int Left, int Right)> Merges { get; } = [];

        public int IdOf(string token) => _ids[token];

        /// <summary>The pair that occurs most often, or null where none occurs often enough.</summary>
        public (int Left, int Right)? MostFrequent(long least)
        {
            while (_queue.TryDequeue(out var pair, out var priority))
            {
                var count = _counts.GetValueOrDefault(pair);
                if (count == -priority.Count) return count >= least ? pair : null;
                if (count < -priority.Count && count > 0) _queue.Enqueue(pair, (-count, pair.Left, pair.Right));
            }
            return null;
        }

        /// <summary>Makes a token of a pair, wherever it stands.</summary>
        public void Merge(int left, int right)
        {
            Merges.Add((left, right));
            var merged = Add(Tokens[left] + Tokens[right]);
            if (!_places.Remove((left, right), out var places)) return;
            var changes = new Dictionary<(int, int), long>();
            foreach (var place in places)
            {
                var (ids, count) = _words[place];
                Count(ids, -count, place, changes);
                ids = Join(ids, left, right, merged);
                Count(ids, count, place, changes);
                _words[place] = (ids, count);
            }
            Apply(changes);
        }

        // No token is made twice: the merges within a stretch of text depend on that stretch alone, so two that are alike were
        // merged in the same way, and "ab" + "c" does not meet "a" + "bc".
        private int Add(string token)
        {
            _ids.Add(token, Tokens.Count);
            Tokens.Add(token);
            return Tokens.Count - 1;
        }

        private void Count(int[] ids, long count, int place, Dictionary<(int, int), long> changes)
        {
            for (var i = 0; i + 1 < ids.Length; i++)
            {
                var pair = (ids[i], ids[i + 1]);
                changes[pair] = changes.GetValueOrDefault(pair) + count;
                if (count < 0) continue;
                if (!_places.TryGetValue(pair, out var places)) _places.Add(pair, places = []);
                places.Add(place);
            }
        }

        private void Apply(Dictionary<(int Left, int Right), long> changes)
        {
            foreach (var (pair, change) in changes)
            {
                if (change == 0) continue;
                var count = _counts.GetValueOrDefault(pair) + change;
                if (count == 0) _counts.Remove(pair);
                else _counts[pair] = count;
                if (change > 0) _queue.Enqueue(pair, (-count, pair.Left, pair.Right));
            }
        }

        private static int[] Join(int[] ids, int left, int right, int merged)
        {
            var joined = new List<int>(ids.Length);
            for (var i = 0; i < ids.Length; i++)
            {
                if (ids[i] != left || i + 1 == ids.Length || ids[i + 1] != right) joined.Add(ids[i]);
                else
                {
                    joined.Add(merged);
                    i++;
                }
            }
            return [.. joined];
        }
    }

    private static byte[] Json(Learner learner)
    {
        var tree = new JsonObject
        {
            ["version"] = "1.0",
            ["truncation"] = null,
            ["padding"] = null,
            ["added_tokens"] = new JsonArray(new JsonObject
            {
                ["id"] = 0, ["content"] = Tokenizer.DefaultEndOfText, ["single_word"] = false, ["lstrip"] = false, ["rstrip"] = false,
                ["normalized"] = false, ["special"] = true,
            }),
            ["normalizer"] = new JsonObject { ["type"] = "NFC" },
            ["pre_tokenizer"] = ByteLevel(),
            ["post_processor"] = ByteLevel(),
            ["decoder"] = ByteLevel(),
            ["model"] = new JsonObject
            {
                ["type"] = "BPE",
                ["dropout"] = null,
                ["unk_token"] = null,
                ["continuing_subword_prefix"] = null,
                ["end_of_word_suffix"] = null,
                ["fuse_unk"] = false,
                ["byte_fallback"] = false,
                ["vocab"] = new JsonObject(learner.Tokens.Select((token, id) => KeyValuePair.Create(token, (JsonNode?)id))),
                ["merges"] = new JsonArray([.. learner.Merges.Select(m => (JsonNode)$"{learner.Tokens[m.Left]} {learner.Tokens[m.Right]}")]),
            },
        };
        return Encoding.UTF8.GetBytes(tree.ToJsonString(new JsonSerializerOptions
        {
            WriteIndented = true, IndentSize = 1, NewLine = "\n", Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
        }) + "\n");

        static JsonObject ByteLevel() => new() { ["type"] = "ByteLevel", ["add_prefix_space"] = false, ["trim_offsets"] = true, ["use_regex"] = true };
    }
}
