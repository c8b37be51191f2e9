using System.Globalization;
using System.Text;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using CsCheck;
using MambaVL.Prompts;
using Microsoft.ML.Tokenizers;
using Tokenizer = MambaVL.Prompts.Tokenizer;

namespace MambaVL.Tests.Prompts;

public class TokenizerTests
{
    /// <summary>Texts that mix scripts, white space, marks, emoji, added tokens and lone surrogates.</summary>
    public static readonly Gen<string> AnyText = Gen.Frequency(
        (6, Gen.Char[' ', '~'].Select(c => c.ToString())),
        (2, Gen.OneOfConst(" ", "  ", "\n", "\t", "\r\n", "\u00A0", "\u3000", "'s", "'ll", "the", " image", "###", "&&")),
        (2, Gen.OneOfConst("<|endoftext|>", "<|padding|>", "    ", "   ")),
        (2, Gen.Int[0x80, 0xFFFF].Select(c => ((char)c).ToString())),
        (2, Gen.Int[0x300, 0x36F].Select(c => ((char)c).ToString())),
        (2, Gen.Int[0xAC00, 0xD7A3].Select(c => ((char)c).ToString())),
        (2, Gen.Int[0x10000, 0x10FFFF].Select(char.ConvertFromUtf32)),
        (1, Gen.OneOfConst("👩‍👩‍👧", "🇯🇵", "𝔘", "𠀀", "e\u0301", "é", "ﬁ", "\0")))
        .List[0, 40].Select(string.Concat);

    private static readonly Tokenizer Tiny = TinyTokenizer.Load();

    [Fact]
    public void WhatIsEncodedIsDecoded() => AnyText.Sample(text =>
        UnicodeComposition.Compose(Tiny.Decode(Tiny.Encode(text)))
        == UnicodeComposition.Compose(Encoding.UTF8.GetString(Encoding.UTF8.GetBytes(text))), iter: 3000);

    [Fact]
    public void ASpanGivesTheIdsOfItsString() => AnyText.Sample(text => Tiny.Encode(text.AsSpan()).SequenceEqual(Tiny.Encode(text)), iter: 300);

    [Fact]
    public void PairsAreMergedInTheOrderLearnt()
    {
        Ids("the").Should().Equal(Id("t"), Id("he"));
        Ids(" the").Should().Equal(Id("Ġthe"));
        Ids("####").Should().Equal([Id("##"), Id("##")], "## was learnt before ###");
        Ids("### #").Should().Equal(Id("###"), Id("Ġ"), Id("#"));
        Ids("a&&&").Should().Equal(Id("a"), Id("&&"), Id("&"));
    }

    [Fact]
    public void IdsAreThoseOfMicrosoftsBytePairEncoding()
    {
        var tree = TinyTokenizer.Tree();
        var options = new BpeOptions(tree["model"]!["vocab"]!.AsObject().Select(v => new KeyValuePair<string, int>(v.Key, (int)v.Value!)))
        {
            Merges = TinyTokenizer.Merges.Split(", "),
            ByteLevel = true,
        };
        var theirs = BpeTokenizer.Create(options);
        var ours = new BytePairEncoding(
            [.. Enumerable.Range(0, 256).Select(b => Id(ByteAlphabet.Char((byte)b).ToString()))],
            [.. options.Merges.Select(m => m.Split(' ')).Select(m => (Id(m[0]), Id(m[1]), Id(m[0] + m[1])))]);

        Gen.Char["abcdeghilmnoprstuvw #&."].Array[1, 40].Select(c => new string(c)).Sample(word =>
        {
            var ids = new List<int>();
            ours.Encode(Encoding.UTF8.GetBytes(word), ids, new());
            ids.Should().Equal(theirs.EncodeToIds(word, considerPreTokenization: false));
        }, iter: 2000);
    }

    [Fact]
    public void WordsAreThoseOfTheRegularExpression()
    {
        // Within the characters that .NET's regular expressions can tell apart: no pairs of surrogates.
        var pattern = new Regex(@"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+");
        AnyText.Select(t => string.Concat(t.Where(c => !char.IsSurrogate(c)))).Sample(text =>
        {
            var words = new List<string>();
            for (var rest = text; rest.Length > 0; rest = rest[words[^1].Length..]) words.Add(rest[..WordSplitter.FirstWord(rest)]);
            words.Should().Equal(pattern.Matches(text).Select(m => m.Value));
        }, iter: 3000);
    }

    [Theory]
    [InlineData("𝔘𝔫𝔦", 6)] // letters
    [InlineData("𠀀𠀁.", 4)]
    [InlineData("𝟘𝟙𝟚a", 6)] // digits
    [InlineData(" 🙂🙂a", 5)]
    public void LettersBeyondTheFirstPlaneAreLetters(string text, int length) => WordSplitter.FirstWord(text).Should().Be(length);

    [Fact]
    public void AddedTokensAreOneIdWhereverTheyStand()
    {
        Ids("a<|endoftext|>b").Should().Equal(Id("a"), 0, Id("b"));
        Ids("<|endoftext|><|endoftext|>").Should().Equal(0, 0);
        Ids("a   b").Should().Equal(Id("a"), Id("   "), Id("b"));
        Ids("a      b").Should().Equal([Id("a"), Id("    "), Id("  "), Id("b")], "the longest run of spaces comes first");
    }

    [Fact]
    public void ARawAddedTokenIsFoundBeforeAComposedOne()
    {
        var tokenizer = With(("e\u0301x", "normalized", true), ("e\u0301y", "normalized", false));
        tokenizer.Encode("éx").Should().Equal(1000);
        tokenizer.Encode("e\u0301x").Should().Equal(1000);
        tokenizer.Encode("e\u0301y").Should().Equal(1001);
        tokenizer.Encode("éy").Should().NotContain(1001);
    }

    [Fact]
    public void FlagsOfAddedTokensCount()
    {
        var whole = With(("cat", "single_word", true));
        whole.Encode("cat").Should().Equal(1000);
        whole.Encode("a cat.").Should().Contain(1000);
        foreach (var text in new[] { "cats", "tomcat", "cat_", "cat1", "cat\u0301s" }) whole.Encode(text).Should().NotContain(1000, text);

        With(("<t>", "lstrip", true)).Encode("a \n <t> b").Should().Equal(Id("a"), 1000, Id("Ġb"));
        With(("<t>", "rstrip", true)).Encode("a <t> \n b").Should().Equal(Id("a"), Id("Ġ"), 1000, Id("b"));
        With(("<t>", "rstrip", true), ("<u>", "lstrip", true)).Encode("<t>  <u>").Should().Equal(1000, 1001);
    }

    [Fact]
    public void SpecialTokensCanBeLeftOut()
    {
        Tiny.Decode([Id("a"), 0, Id("    "), 1, Id("b")], skipSpecialTokens: true).Should().Be("a    b");
        Tiny.Decode([Id("a"), 0]).Should().Be("a<|endoftext|>");
        Tiny.IsSpecial(0).Should().BeTrue();
        Tiny.IsSpecial(Id("    ")).Should().BeFalse();
    }

    [Fact]
    public void IdsWithoutATokenGiveNoText() => Tiny.Decode([-200, Id("a"), int.MaxValue, int.MinValue, Tiny.VocabularySize]).Should().Be("a");

    [Fact]
    public void InvalidBytesBecomeReplacementCharacters()
        => Tiny.Decode([Id("a"), Id("Ã"), Id("Ã"), Id("¶"), Id("ð"), Id("Ł")]).Should().Be("a\uFFFDö\uFFFD");

    [Fact]
    public void LoneSurrogatesCountAsReplacementCharacters()
    {
        foreach (var text in new[] { "\ud800", "a\udc00b", "\ude00\ud83d", "e\ud800\u0301" })
            Tiny.Encode(text).Should().Equal(Tiny.Encode(Regex.Replace(text, "[\ud800-\udfff]", "\uFFFD")));
    }

    [Fact]
    public void BothDialectsOfMergesAreRead()
    {
        var tree = TinyTokenizer.Tree();
        tree["model"]!["merges"] = new JsonArray([.. TinyTokenizer.Merges.Split(", ").Select(m => new JsonArray([.. m.Split(' ').Select(p => (JsonNode)p)]))]);
        var pairs = TinyTokenizer.Load(tree);
        AnyText.Sample(text => pairs.Encode(text).SequenceEqual(Tiny.Encode(text)), iter: 300);
    }

    [Fact]
    public void APrefixSpaceIsAddedWhereTheFileSaysSo()
    {
        var tree = TinyTokenizer.Tree();
        tree["pre_tokenizer"]!["add_prefix_space"] = true;
        var tokenizer = TinyTokenizer.Load(tree);
        tokenizer.Encode("the<|endoftext|>the").Should().Equal(Id("Ġthe"), 0, Id("Ġthe"));
        tokenizer.Encode(" the").Should().Equal(Id("Ġthe"));
    }

    [Fact]
    public void WithoutANormalizerTextStaysAsItIs()
    {
        var tree = TinyTokenizer.Tree();
        tree["normalizer"] = null;
        var tokenizer = TinyTokenizer.Load(tree);
        tokenizer.Decode(tokenizer.Encode("e\u0301")).Should().Be("e\u0301");
        Tiny.Decode(Tiny.Encode("e\u0301")).Should().Be("\u00E9");
    }

    [Fact]
    public void ABytesTokenThatIsMissingIsLeftOut()
    {
        var tree = TinyTokenizer.Tree();
        tree["model"]!["vocab"]!.AsObject().Remove("z");
        TinyTokenizer.Load(tree).Encode("azb").Should().Equal(Id("a"), Id("b"));
    }

    [Fact]
    public void AnotherTokenCanEndTexts()
    {
        Tiny.EndOfTextId.Should().Be(0);
        Tokenizer.Load(TinyTokenizer.Folder, "<|padding|>").EndOfTextId.Should().Be(1);
        ((Action)(() => Tokenizer.Load(TinyTokenizer.Folder, "</s>"))).Should().Throw<InvalidDataException>().WithMessage("*'</s>'*");
    }

    [Fact]
    public void ATokenizerIsItsFilesBytes()
    {
        var bytes = File.ReadAllBytes(Path.Combine(TinyTokenizer.Folder, Tokenizer.FileName));
        Tiny.Source.ToArray().Should().Equal(bytes);
        Tokenizer.Parse(Tiny.Source).Encode("the image").Should().Equal(Tiny.Encode("the image"));
        ((Action)(() => Tokenizer.Parse("{"u8.ToArray(), "model.zip/tokenizer.json"))).Should().Throw<InvalidDataException>()
            .WithMessage("'model.zip/tokenizer.json'*");
    }

    [Fact]
    public void TheVocabularyEndsAtTheGreatestId()
    {
        Tiny.VocabularySize.Should().Be(Id("  ") + 1);
        With(("<t>", "special", true)).VocabularySize.Should().Be(1001);
        Tiny.IdOf("no such token").Should().BeNull();
    }

    [Fact]
    public void ThreadsShareATokenizer()
    {
        var texts = Enumerable.Range(0, 64).Select(i => $"{i} the image é ### <|endoftext|>    {(char)(0x4E00 + i)}").ToArray();
        var alone = texts.Select(t => Tiny.Encode(t)).ToArray();
        Parallel.For(0, 2000, i => Tiny.Encode(texts[i % 64]).Should().Equal(alone[i % 64]));
    }

    public static TheoryData<string, string, int> LongTexts => new()
    {
        { "one letter", "A", 200_000 },
        { "letters that merge", "the", 70_000 },
        { "spaces", " ", 100_000 },
        { "line breaks", "\n ", 100_000 },
        { "apostrophes", "'s", 100_000 },
        { "emoji", "🙂", 100_000 },
        { "lone surrogates", "\ude00\ud83d", 100_000 },
        { "marks out of order", "\u0301\u0323", 100_000 },
        { "Hangul", "\u1100\u1161\u11A8", 100_000 },
        { "special tokens", "<|endoftext|>", 30_000 },
        { "beginnings of special tokens", "<|endoftext|", 30_000 },
        { "mixed scripts", "aж漢ع1 ", 70_000 },
    };

    // A quadratic step would take minutes here; all cases together take a second or two.
    [Theory]
    [MemberData(nameof(LongTexts))]
    public void LongTextsTakeNoLongTime(string what, string unit, int times)
    {
        var text = string.Concat(Enumerable.Repeat(unit, times));
        var watch = System.Diagnostics.Stopwatch.StartNew();
        Tiny.Encode(text).Should().NotBeEmpty();
        watch.Elapsed.Should().BeLessThan(TimeSpan.FromSeconds(20), what);
    }

    [Fact]
    public void StrippingTokensTakeNoLongTime()
    {
        var tokenizer = With((" ", "lstrip", true), ("\n", "rstrip", true));
        var watch = System.Diagnostics.Stopwatch.StartNew();
        foreach (var unit in new[] { " ", "\n", "\n " }) tokenizer.Encode(string.Concat(Enumerable.Repeat(unit, 200_000)));
        watch.Elapsed.Should().BeLessThan(TimeSpan.FromSeconds(20));
    }

    private static Tokenizer With(params (string Content, string Flag, bool Value)[] added)
    {
        var tree = TinyTokenizer.Tree();
        foreach (var (token, i) in added.Select((a, i) => (a, i)))
        {
            var entry = TinyTokenizer.Added(1000 + i, token.Content, special: false);
            entry["normalized"] = false;
            entry[token.Flag] = token.Value;
            tree["added_tokens"]!.AsArray().Add(entry);
        }
        return TinyTokenizer.Load(tree);
    }

    private static IReadOnlyList<int> Ids(string text) => Tiny.Encode(text);

    private static int Id(string token) => Tiny.IdOf(token) ?? throw new ArgumentException(string.Create(CultureInfo.InvariantCulture, $"no token {token}"));
}
