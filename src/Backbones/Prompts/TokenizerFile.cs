using System.Globalization;
using System.Text.Json;

namespace MambaVL.Prompts;

/// <summary>What a tokenizer.json says, checked.</summary>
/// <param name="Vocabulary">The id of each token of the model.</param>
/// <param name="Merges">The pairs of ids, in the order learnt, and the id that each becomes.</param>
/// <param name="Added">The added tokens, none of them empty, no content twice.</param>
/// <param name="Compose">Whether texts are brought into composed form (NFC) first.</param>
/// <param name="AddPrefixSpace">Whether a text that starts without a space gets one.</param>
/// <param name="SplitWords">Whether texts are cut into words before merging.</param>
internal sealed record TokenizerFile(
    Dictionary<string, int> Vocabulary, List<(int Left, int Right, int Merged)> Merges, List<AddedToken> Added,
    bool Compose, bool AddPrefixSpace, bool SplitWords)
{
    // The largest files in use (vocabularies of 260,000) have about 35 MB.
    private const long MaxBytes = 48L << 20;
    private const int MaxDepth = 32;

    /// <summary>Ids may leave gaps, but tables are as long as the greatest id.</summary>
    private const int MaxUnusedIds = 1 << 16;

    /// <summary>The bytes of a file that is not too large to be a tokenizer.json.</summary>
    public static byte[] ReadBytes(string path)
    {
        using var file = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read);
        CheckLength(file.Length, path);
        var bytes = new byte[file.Length];
        file.ReadExactly(bytes);
        return bytes;
    }

    /// <summary>Reads the text of a tokenizer.json; <paramref name="path"/> is what errors call it.</summary>
    public static TokenizerFile Parse(ReadOnlyMemory<byte> bytes, string path)
    {
        CheckLength(bytes.Length, path);
        try
        {
            // Another byte order mark than UTF-8's is left for the JSON reader to refuse.
            var json = bytes[(bytes.Span.StartsWith("\uFEFF"u8) ? 3 : 0)..];
            using var document = JsonDocument.Parse(json, new() { MaxDepth = MaxDepth, AllowDuplicateProperties = false });
            return new Reader(path).Read(document.RootElement);
        }
        // InvalidOperationException: a string with an escaped lone surrogate.
        catch (Exception e) when (e is JsonException or InvalidOperationException)
        {
            throw Bad(path, $"is not valid JSON for a tokenizer: {e.Message}", e);
        }
    }

    private static void CheckLength(long length, string path)
    {
        if (length > MaxBytes)
            throw Bad(path, $"has {length:N0} bytes; at most {MaxBytes:N0} are read. Is it a tokenizer.json?");
    }

    private static InvalidDataException Bad(string path, string what, Exception? inner = null) => new($"'{path}' {what}", inner);

    private sealed class Reader(string path)
    {
        public TokenizerFile Read(JsonElement root)
        {
            Expect(root, JsonValueKind.Object, "the file");
            var model = Get(root, "model", JsonValueKind.Object, "the file");
            var type = TypeOf(model, "model", "BPE");
            if (type != "BPE") throw Unsupported("model", type, "BPE");
            foreach (var name in new[] { "continuing_subword_prefix", "end_of_word_suffix", "unk_token" })
                if (model.TryGetProperty(name, out var value) && !(IsNull(value) || value.ValueKind == JsonValueKind.String && value.ValueEquals("")))
                    throw Bad($"sets model.{name} to {Show(value)}; a byte-level vocabulary has none (null).");
            foreach (var name in new[] { "byte_fallback", "ignore_merges" })
                if (Flag(model, name, false, "model")) throw Bad($"sets model.{name} to true; only false is supported.");
            if (model.TryGetProperty("dropout", out var dropout) && !IsNull(dropout) && !(dropout.ValueKind == JsonValueKind.Number && dropout.GetDouble() == 0))
                throw Bad($"sets model.dropout to {Show(dropout)}; ids would be random. Expected null.");

            var vocabulary = Vocabulary(Get(model, "vocab", JsonValueKind.Object, "model"));
            var merges = Merges(Get(model, "merges", JsonValueKind.Array, "model"), vocabulary);
            var added = Added(root, vocabulary);
            var most = vocabulary.Values.Concat(added.Select(a => a.Id)).DefaultIfEmpty(0).Max();
            if (most > vocabulary.Count + added.Count + MaxUnusedIds)
                throw Bad($"has an id {most} but only {vocabulary.Count + added.Count} tokens; at most {MaxUnusedIds} ids may be unused.");

            var (addPrefixSpace, splitWords) = PreTokenizer(root);
            CheckDecoderAndPostProcessor(root);
            return new(vocabulary, merges, added, Normalizer(root), addPrefixSpace, splitWords);
        }

        private Dictionary<string, int> Vocabulary(JsonElement vocab)
        {
            var vocabulary = new Dictionary<string, int>();
            var ids = new HashSet<int>();
            foreach (var token in vocab.EnumerateObject())
            {
                var id = Id(token.Value, $"model.vocab[\"{Shorten(token.Name)}\"]");
                if (!ids.Add(id)) throw Bad($"gives the id {id} to several tokens, one of them '{Shorten(token.Name)}'.");
                vocabulary.Add(token.Name, id);
            }
            return vocabulary;
        }

        private List<(int, int, int)> Merges(JsonElement array, Dictionary<string, int> vocabulary)
        {
            var merges = new List<(int, int, int)>(array.GetArrayLength());
            foreach (var merge in array.EnumerateArray())
            {
                // Two dialects: "a b", and since version 0.20 of the tokenizers library ["a", "b"].
                string[] pair = merge.ValueKind switch
                {
                    JsonValueKind.String => merge.GetString()!.Split(' '),
                    JsonValueKind.Array => [.. merge.EnumerateArray().Select(p => p.ValueKind == JsonValueKind.String ? p.GetString()! : "")],
                    _ => [],
                };
                if (pair is not [{ Length: > 0 } left, { Length: > 0 } right])
                    throw Bad($"has {Show(merge)} as merge {merges.Count}; expected two tokens, \"a b\" or [\"a\", \"b\"].");
                merges.Add((Known(left), Known(right), Known(left + right)));
            }
            return merges;

            int Known(string token) => vocabulary.TryGetValue(token, out var id) ? id
                : throw Bad($"has a merge {merges.Count} that names '{Shorten(token)}', which is not in model.vocab.");
        }

        private List<AddedToken> Added(JsonElement root, Dictionary<string, int> vocabulary)
        {
            var added = new Dictionary<string, AddedToken>();
            if (!root.TryGetProperty("added_tokens", out var array) || IsNull(array)) return [];
            Expect(array, JsonValueKind.Array, "added_tokens");
            var contents = vocabulary.ToDictionary(v => v.Value, v => v.Key);
            foreach (var (element, index) in array.EnumerateArray().Select((e, i) => (e, i)))
            {
                var where = $"added_tokens[{index}]";
                Expect(element, JsonValueKind.Object, where);
                var content = Get(element, "content", JsonValueKind.String, where).GetString()!;
                var special = Flag(element, "special", false, where);
                var token = new AddedToken(content, Id(Get(element, "id", JsonValueKind.Number, where), where + ".id"), special,
                    Flag(element, "normalized", !special, where), Flag(element, "single_word", false, where),
                    Flag(element, "lstrip", false, where), Flag(element, "rstrip", false, where));
                if (content.Length == 0) continue;
                if (content.Length > AddedTokens.MaxLength)
                    throw Bad($"has an added token of {content.Length} characters, '{Shorten(content)}'; at most {AddedTokens.MaxLength} are supported.");
                if (contents.TryGetValue(token.Id, out var other) && other != content
                    || vocabulary.TryGetValue(content, out var id) && id != token.Id
                    || added.TryGetValue(content, out var twin) && twin.Id != token.Id)
                    throw Bad($"gives the added token '{Shorten(content)}' the id {token.Id}, which contradicts another entry for that content or id.");
                contents[token.Id] = content;
                added[content] = token;
            }
            return [.. added.Values];
        }

        private bool Normalizer(JsonElement root)
        {
            if (!root.TryGetProperty("normalizer", out var normalizer) || IsNull(normalizer)) return false;
            var type = TypeOf(normalizer, "normalizer");
            return type == "NFC" ? true : throw Unsupported("normalizer", type, "NFC, or null");
        }

        private (bool AddPrefixSpace, bool SplitWords) PreTokenizer(JsonElement root)
        {
            var preTokenizer = Get(root, "pre_tokenizer", JsonValueKind.Object, "the file");
            var type = TypeOf(preTokenizer, "pre_tokenizer");
            if (type != "ByteLevel") throw Unsupported("pre_tokenizer", type, "ByteLevel");
            return (Flag(preTokenizer, "add_prefix_space", true, "pre_tokenizer"), Flag(preTokenizer, "use_regex", true, "pre_tokenizer"));
        }

        private void CheckDecoderAndPostProcessor(JsonElement root)
        {
            var decoder = TypeOf(Get(root, "decoder", JsonValueKind.Object, "the file"), "decoder");
            if (decoder != "ByteLevel") throw Unsupported("decoder", decoder, "ByteLevel");

            if (!root.TryGetProperty("post_processor", out var post) || IsNull(post)) return;
            var type = TypeOf(post, "post_processor");
            if (type == "TemplateProcessing" && AddsNothing(post)) return;
            if (type != "ByteLevel") throw Unsupported("post_processor", type, "ByteLevel, a TemplateProcessing that adds no token, or null");
        }

        /// <summary>Whether the template of a single text is that text alone.</summary>
        private bool AddsNothing(JsonElement post)
            => Get(post, "single", JsonValueKind.Array, "post_processor").EnumerateArray().All(part =>
                part.ValueKind == JsonValueKind.Object && part.TryGetProperty("Sequence", out _));

        private int Id(JsonElement value, string where)
            => value.ValueKind == JsonValueKind.Number && value.TryGetInt32(out var id) && id >= 0 ? id
                : throw Bad($"has {Show(value)} as {where}; expected an id, a whole number from 0 to {int.MaxValue}.");

        private bool Flag(JsonElement parent, string name, bool missing, string where)
        {
            if (!parent.TryGetProperty(name, out var value) || IsNull(value)) return missing;
            return value.ValueKind is JsonValueKind.True or JsonValueKind.False ? value.GetBoolean()
                : throw Bad($"has {Show(value)} as {where}.{name}; expected true or false.");
        }

        private string TypeOf(JsonElement parent, string where, string? missing = null)
        {
            Expect(parent, JsonValueKind.Object, where);
            // Files of before 2020 give the model no type.
            if (missing is not null && !parent.TryGetProperty("type", out _)) return missing;
            return Get(parent, "type", JsonValueKind.String, where).GetString()!;
        }

        private JsonElement Get(JsonElement parent, string name, JsonValueKind kind, string where)
        {
            if (!parent.TryGetProperty(name, out var value))
                throw Bad($"has no '{name}' in {where}; expected {Describe(kind)}. Is it a tokenizer.json of the tokenizers library?");
            Expect(value, kind, $"'{name}' in {where}");
            return value;
        }

        private void Expect(JsonElement value, JsonValueKind kind, string where)
        {
            if (value.ValueKind != kind) throw Bad($"has {Show(value)} as {where}; expected {Describe(kind)}.");
        }

        private InvalidDataException Unsupported(string part, string found, string supported)
            => Bad($"has the {part} '{Shorten(found)}'; supported: {supported}.");

        private InvalidDataException Bad(string what) => TokenizerFile.Bad(path, what);

        private static bool IsNull(JsonElement value) => value.ValueKind == JsonValueKind.Null;

        private static string Describe(JsonValueKind kind) => $"a JSON {kind.ToString().ToLowerInvariant()}";

        private static string Show(JsonElement value) => value.ValueKind is JsonValueKind.Object or JsonValueKind.Array
            ? $"{Describe(value.ValueKind)} ({Shorten(value.GetRawText())})" : Shorten(value.GetRawText());

        private static string Shorten(string text)
            => text.Length <= 60 ? text : string.Create(CultureInfo.InvariantCulture, $"{text.AsSpan(0, 50)}... ({text.Length} characters)");
    }
}
