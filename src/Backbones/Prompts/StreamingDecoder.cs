using System.Text;

namespace MambaVL.Prompts;

/// <summary>Turns ids into text one at a time, as a model generates them.</summary>
/// <remarks>
/// A token may end within a character: its bytes are held back until the character is whole. All pieces and
/// <see cref="Flush"/> together are what <see cref="Tokenizer.Decode"/> gives for all ids. One text, one thread.
/// </remarks>
/// <param name="tokenizer">The tokenizer of the model.</param>
/// <param name="skipSpecialTokens">Whether special tokens are left out.</param>
public sealed class StreamingDecoder(Tokenizer tokenizer, bool skipSpecialTokens = true)
{
    private readonly Tokenizer _tokenizer = tokenizer ?? throw new ArgumentNullException(nameof(tokenizer));
    private readonly Decoder _decoder = Encoding.UTF8.GetDecoder();

    /// <summary>The text that the id completes; often one token, sometimes empty.</summary>
    public string Append(int id) => Convert(_tokenizer.BytesOf(id, skipSpecialTokens), flush: false);

    /// <summary>What was held back: U+FFFD where the ids end within a character, else nothing. The next id starts a new text.</summary>
    public string Flush() => Convert([], flush: true);

    private string Convert(ReadOnlySpan<byte> bytes, bool flush)
    {
        // Held-back bytes may turn out to be invalid and add their U+FFFD to the next piece.
        var most = Encoding.UTF8.GetMaxCharCount(bytes.Length + 4);
        Span<char> chars = most <= 256 ? stackalloc char[256] : new char[most];
        return new(chars[.._decoder.GetChars(bytes, chars, flush)]);
    }
}
