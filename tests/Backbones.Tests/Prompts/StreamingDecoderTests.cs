using CsCheck;
using MambaVL.Prompts;

namespace MambaVL.Tests.Prompts;

public class StreamingDecoderTests
{
    private static readonly Tokenizer Tiny = TinyTokenizer.Load();

    [Fact]
    public void PiecesOfAnyIdsMakeTheTextThatDecodeGives()
        => Gen.Select(Gen.Int[-3, Tiny.VocabularySize + 2].Array[0, 30], Gen.Bool).Sample((ids, skip) => Check(ids, skip), iter: 5000);

    [Fact]
    public void PiecesOfTextsMakeThoseTexts()
        => Gen.Select(TokenizerTests.AnyText, Gen.Bool).Sample((text, skip) => Check(Tiny.Encode(text), skip), iter: 3000);

    [Fact]
    public void ACharacterComesWhole()
    {
        var decoder = new StreamingDecoder(Tiny);
        Tiny.Encode("🙂é").Select(decoder.Append).Should().Equal("", "", "", "🙂", "", "é");
        decoder.Flush().Should().BeEmpty();
    }

    [Fact]
    public void AnUnfinishedCharacterIsReplacedAtTheEnd()
    {
        var decoder = new StreamingDecoder(Tiny);
        Tiny.Encode("🙂").Take(3).Select(decoder.Append).Should().OnlyContain(piece => piece.Length == 0);
        decoder.Flush().Should().Be("\uFFFD");
        decoder.Append(Tiny.IdOf("a")!.Value).Should().Be("a", "the next id starts a new text");
    }

    [Fact]
    public void SpecialTokensAreLeftOutUnlessAskedFor()
    {
        new StreamingDecoder(Tiny).Append(0).Should().BeEmpty();
        new StreamingDecoder(Tiny, skipSpecialTokens: false).Append(0).Should().Be("<|endoftext|>");
    }

    private static bool Check(IReadOnlyList<int> ids, bool skip)
    {
        var decoder = new StreamingDecoder(Tiny, skip);
        var pieces = ids.Select(decoder.Append).ToList();
        pieces.Add(decoder.Flush());
        // No piece starts or ends within a pair of surrogates.
        return string.Concat(pieces) == Tiny.Decode(ids, skip)
            && pieces.All(p => p.Length == 0 || !char.IsLowSurrogate(p[0]) && !char.IsHighSurrogate(p[^1]));
    }
}
