using System.Text;

namespace MambaVL.Prompts;

/// <summary>Turns text into the ids of a language model, and ids into text.</summary>
/// <remarks>
/// Reads a <c>tokenizer.json</c> of GPT-NeoX's kind: byte-level byte-pair encoding, the composed form (NFC), added
/// tokens. Ids and texts are those of the tokenizers library. Nothing changes after <see cref="Load"/>: any number of
/// threads may use one instance.
/// </remarks>
public sealed class Tokenizer
{
    /// <summary>The file that <see cref="Load"/> looks for in a folder.</summary>
    public const string FileName = "tokenizer.json";

    /// <summary>The token that ends a text in GPT-NeoX's vocabulary, and in those made after it.</summary>
    public const string DefaultEndOfText = "<|endoftext|>";

    private readonly byte[]?[] _bytes;
    private readonly HashSet<int> _special;
    private readonly Dictionary<string, int> _ids;
    private readonly BytePairEncoding _encoding;
    private readonly AddedTokens _raw, _composed;
    private readonly bool _compose, _addPrefixSpace, _splitWords;

    private Tokenizer(TokenizerFile file, int endOfTextId, ReadOnlyMemory<byte> source)
    {
        (EndOfTextId, Source) = (endOfTextId, source);
        (_compose, _addPrefixSpace, _splitWords) = (file.Compose, file.AddPrefixSpace, file.SplitWords);

        _ids = new(file.Vocabulary);
        foreach (var token in file.Added) _ids[token.Content] = token.Id;
        _special = [.. file.Added.Where(t => t.Special).Select(t => t.Id)];

        _bytes = new byte[]?[_ids.Values.Max() + 1];
        foreach (var (content, id) in file.Vocabulary) _bytes[id] = ByteAlphabet.Bytes(content);
        foreach (var token in file.Added) _bytes[token.Id] = ByteAlphabet.Bytes(Pattern(token));

        var byteIds = new int[256];
        for (var b = 0; b < 256; b++)
            byteIds[b] = file.Vocabulary.TryGetValue(ByteAlphabet.Char((byte)b).ToString(), out var id) ? id : -1;
        _encoding = new(byteIds, file.Merges);

        _raw = new(file.Added.Where(t => !t.Normalized).Select(t => (Pattern(t), t)));
        _composed = new(file.Added.Where(t => t.Normalized).Select(t => (Pattern(t), t)));
    }

    /// <summary>Reads a tokenizer.json.</summary>
    /// <param name="path">The file, or a folder that holds a <c>tokenizer.json</c>.</param>
    /// <param name="endOfText">The token that ends a text; it must be in the vocabulary or among the added tokens.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="InvalidDataException">The file is damaged, or needs what is not supported: the message names
    /// what was found and what was expected.</exception>
    public static Tokenizer Load(string path, string endOfText = DefaultEndOfText)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        ArgumentException.ThrowIfNullOrEmpty(endOfText);
        if (Directory.Exists(path)) path = Path.Combine(path, FileName);
        if (!File.Exists(path)) throw new FileNotFoundException($"There is no tokenizer at '{path}'; expected a {FileName}.", path);

        return Parse(TokenizerFile.ReadBytes(path), path, endOfText);
    }

    /// <summary>Reads the text of a tokenizer.json.</summary>
    /// <param name="json">The bytes of the file, UTF-8. They must not change afterwards.</param>
    /// <param name="name">What errors call the file.</param>
    /// <param name="endOfText">The token that ends a text.</param>
    /// <exception cref="InvalidDataException">As <see cref="Load"/>.</exception>
    public static Tokenizer Parse(ReadOnlyMemory<byte> json, string name = FileName, string endOfText = DefaultEndOfText)
    {
        ArgumentNullException.ThrowIfNull(name);
        ArgumentException.ThrowIfNullOrEmpty(endOfText);
        var file = TokenizerFile.Parse(json, name);
        var end = file.Added.Find(t => t.Content == endOfText)?.Id
            ?? (file.Vocabulary.TryGetValue(endOfText, out var id) ? id : (int?)null)
            ?? throw new InvalidDataException($"'{name}' has no token '{endOfText}' to end a text with; name the token it has.");
        return new(file, end, json);
    }

    /// <summary>The bytes of the tokenizer.json, as they were read: what saving a model writes.</summary>
    public ReadOnlyMemory<byte> Source { get; }

    /// <summary>The greatest id plus one: the rows that an embedding table needs at least.</summary>
    public int VocabularySize => _bytes.Length;

    /// <summary>The id that ends a text, and that batches are padded with.</summary>
    public int EndOfTextId { get; }

    /// <summary>The id of a token by its content, or null. A byte-level token is written in its printable alphabet (Ġ for a space).</summary>
    public int? IdOf(string token)
    {
        ArgumentNullException.ThrowIfNull(token);
        return _ids.TryGetValue(token, out var id) ? id : null;
    }

    /// <summary>Whether the id is of a special token, which <see cref="Decode"/> can leave out.</summary>
    public bool IsSpecial(int id) => _special.Contains(id);

    /// <summary>The ids of a text.</summary>
    /// <remarks>
    /// Added tokens are found in the text too: <c>&lt;|endoftext|&gt;</c> becomes its one id. A lone surrogate counts as
    /// U+FFFD. No token is added at either end.
    /// </remarks>
    public IReadOnlyList<int> Encode(ReadOnlySpan<char> text) => Encode(text.ToString());

    /// <inheritdoc cref="Encode(ReadOnlySpan{char})"/>
    public IReadOnlyList<int> Encode(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        var ids = new List<int>(text.Length / 3 + 4);
        var work = new Workspace();
        foreach (var (rawToken, rawPart) in _raw.Split(ReplaceLoneSurrogates(text)))
        {
            if (rawToken is not null)
            {
                ids.Add(rawToken.Id);
                continue;
            }
            foreach (var (token, part) in _composed.Split(_compose ? UnicodeComposition.Compose(rawPart) : rawPart))
            {
                if (token is not null) ids.Add(token.Id);
                else EncodePart(part, ids, work);
            }
        }
        return ids;
    }

    /// <summary>The text of ids.</summary>
    /// <param name="ids">Ids without a token (padding rows of a vocabulary, image placeholders) give no text.</param>
    /// <param name="skipSpecialTokens">Whether special tokens are left out.</param>
    /// <returns>The text; bytes that are not valid UTF-8 become U+FFFD.</returns>
    public string Decode(IEnumerable<int> ids, bool skipSpecialTokens = false)
    {
        ArgumentNullException.ThrowIfNull(ids);
        using var bytes = new MemoryStream();
        foreach (var id in ids) bytes.Write(BytesOf(id, skipSpecialTokens));
        return Encoding.UTF8.GetString(bytes.GetBuffer(), 0, (int)bytes.Length);
    }

    /// <summary>The bytes of one id, empty where it has none or is left out.</summary>
    internal ReadOnlySpan<byte> BytesOf(int id, bool skipSpecialTokens)
        => (uint)id >= (uint)_bytes.Length || skipSpecialTokens && _special.Contains(id) ? [] : _bytes[id];

    private string Pattern(AddedToken token)
        => token.Normalized && _compose ? UnicodeComposition.Compose(ReplaceLoneSurrogates(token.Content)) : token.Content;

    private sealed class Workspace
    {
        public readonly BytePairEncoding.Workspace Merging = new();
        public byte[] Bytes = [];
    }

    private void EncodePart(string part, List<int> ids, Workspace work)
    {
        if (_addPrefixSpace && part[0] != ' ') part = " " + part;
        for (var rest = part.AsSpan(); !rest.IsEmpty;)
        {
            var length = _splitWords ? WordSplitter.FirstWord(rest) : rest.Length;
            var most = Encoding.UTF8.GetMaxByteCount(length);
            if (work.Bytes.Length < most) work.Bytes = new byte[Math.Max(most, 2 * work.Bytes.Length)];
            var count = Encoding.UTF8.GetBytes(rest[..length], work.Bytes);
            _encoding.Encode(work.Bytes.AsSpan(0, count), ids, work.Merging);
            rest = rest[length..];
        }
    }

    private static string ReplaceLoneSurrogates(string text)
    {
        if (!text.AsSpan().ContainsAnyInRange('\uD800', '\uDFFF')) return text;
        var valid = new StringBuilder(text.Length);
        Span<char> buffer = stackalloc char[2];
        foreach (var rune in text.EnumerateRunes()) valid.Append(buffer[..rune.EncodeToUtf16(buffer)]);
        return valid.ToString();
    }
}
