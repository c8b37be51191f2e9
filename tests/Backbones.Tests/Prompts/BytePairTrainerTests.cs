using System.Diagnostics;
using System.Text;
using System.Text.Json.Nodes;
using CsCheck;
using MambaVL.Generation;
using MambaVL.Models;
using MambaVL.Prompts;
using MambaVL.Tests.Checkpoints;
using MambaVL.Tests.Models;
using Microsoft.ML.Tokenizers;
using Tokenizer = MambaVL.Prompts.Tokenizer;

namespace MambaVL.Tests.Prompts;

public class BytePairTrainerTests
{
    private const int Size = 350; // 353 would hold every word

    // Sentences as a data set of pictures has them, boxes included.
    private static readonly string[] Texts =
    [
        .. from color in new[] { "red", "green", "blue", "white", "yellow" }
           from thing in new[] { "square", "circle", "triangle", "cat", "airplane", "cup" }
           from side in new[] { "left of", "right of", "above", "below" }
           from text in new[]
           {
               $"A {color} {thing} is {side} the dog.", $"\nQuestion: Is there a {color} {thing}?\nAnswer: ", "Yes.", "No.", "2.",
               $"[0.{color.Length}2,0.34,0.5{thing.Length},0.78].", "Locate the region that is described by:", $"\nThe {thing} {side} the {color} cup.\n",
           }
           select text,
    ];

    private static readonly Tokenizer Learnt = BytePairTrainer.Train(Texts, new() { VocabularySize = Size });

    // The example of the Hugging Face course (chapter 6.5): hug 10, pug 5, pun 12, bun 4, hugs 5.
    [Fact]
    public void MergesAreThoseOfTheExampleThatIsTaught()
    {
        string[] texts = [.. Times("hug", 10), .. Times("pug", 5), .. Times("pun", 12), .. Times("bun", 4), .. Times("hugs", 5)];
        var tokenizer = BytePairTrainer.Train(texts, new() { VocabularySize = BytePairTrainer.LeastVocabulary + 3 });
        Merges(tokenizer).Should().Equal("# #", "## #", "& &", "u g", "u n", "h ug");
        Pieces(tokenizer, "bug").Should().Equal("b", "ug");
        Pieces(tokenizer, "hugun").Should().Equal("hug", "un");

        static IEnumerable<string> Times(string text, int count) => Enumerable.Repeat(text, count);
    }

    // Everything counted anew for each merge: slow, and hard to get wrong.
    [Fact]
    public void MergesAreThoseOfThePlainAlgorithm()
        => Gen.Char["aaab cd#&."].Array[0, 60].Select(c => new string(c)).List[1, 8].Sample(texts =>
        {
            var tokenizer = BytePairTrainer.Train(texts, new() { VocabularySize = BytePairTrainer.LeastVocabulary + 20 });
            Merges(tokenizer).Should().Equal(Plain(texts, BytePairTrainer.LeastVocabulary + 20, tokenizer));
        }, iter: 300);

    [Fact]
    public void AnyTextIsRoundTripped() => TokenizerTests.AnyText.Sample(text =>
        UnicodeComposition.Compose(Learnt.Decode(Learnt.Encode(text))) == UnicodeComposition.Compose(Encoding.UTF8.GetString(Encoding.UTF8.GetBytes(text))), iter: 2000);

    [Fact]
    public void IdsAreThoseOfMicrosoftsBytePairEncoding()
    {
        var tree = JsonNode.Parse(Learnt.Source.Span)!["model"]!;
        var theirs = BpeTokenizer.Create(new BpeOptions(tree["vocab"]!.AsObject().Select(v => new KeyValuePair<string, int>(v.Key, (int)v.Value!)))
        {
            Merges = [.. tree["merges"]!.AsArray().Select(m => (string)m!)],
            ByteLevel = true,
        });
        // Word by word: the two differ in how they cut words beyond U+FFFF, which other tests look at.
        foreach (var word in Texts.SelectMany(Words).Distinct())
            Learnt.Encode(word).Should().Equal(theirs.EncodeToIds(word, considerPreTokenization: false), word);
    }

    [Fact]
    public void WordsThatAreFrequentAreOneToken()
    {
        Learnt.VocabularySize.Should().Be(Size);
        Pieces(Learnt, "A red square is left of the dog.").Should().Equal("A", "Ġred", "Ġsquare", "Ġis", "Ġleft", "Ġof", "Ġthe", "Ġdog", ".");
        Texts.Sum(t => Learnt.Encode(t).Count).Should().BeLessThan(Texts.Sum(t => t.Length) * 2 / 5);
    }

    [Fact]
    public void IdsHaveNoGapsAndTheEndTokenIsTheFirst()
    {
        Learnt.EndOfTextId.Should().Be(0);
        Learnt.IsSpecial(0).Should().BeTrue();
        Learnt.Encode("a<|endoftext|>b").Should().HaveCount(3).And.Contain(0);
        var vocabulary = JsonNode.Parse(Learnt.Source.Span)!["model"]!["vocab"]!.AsObject();
        vocabulary.Select(v => (int)v.Value!).Should().Equal(Enumerable.Range(0, Size));
        Enumerable.Range(0, Size).Select(id => Learnt.Decode([id])).Should().NotContain("");
    }

    [Fact]
    public void ImagesAreMarkedByOneTokenEach()
    {
        foreach (var tokenizer in new[] { Learnt, BytePairTrainer.Train([]), BytePairTrainer.Train(["## ##", "&# #&", "####"], new() { MinFrequency = 1 }) })
        {
            tokenizer.Encode(ImageTokens.Mark).Should().Equal(tokenizer.IdOf("###")!.Value);
            tokenizer.Encode(ImageTokens.RowEnd).Should().Equal(tokenizer.IdOf("&&")!.Value);
        }
        ImageTokens.Sequence(Learnt, 32, 32, 8).Should().HaveCount(1 + 4 * 5);
    }

    [Fact]
    public void DigitsStayAlone()
    {
        Pieces(Learnt, "[0.12,0.34,0.56,0.78].").Count(p => p.Length == 1 && char.IsAsciiDigit(p[0])).Should().Be(12);
        Pieces(Learnt, "\n 2024 3").Where(p => p.Any(char.IsAsciiDigit)).Should().Equal("2", "0", "2", "4", "3");
        Tokens(Learnt).Should().NotContain(t => t.Length > 1 && t.Any(char.IsAsciiDigit));

        var joined = BytePairTrainer.Train(Texts, new() { VocabularySize = 400, SingleDigits = false });
        Tokens(joined).Should().Contain(t => t.Length > 1 && t.All(char.IsAsciiDigit));
        Pieces(joined, "78").Should().Equal("78");
    }

    [Fact]
    public void TheSameTextsGiveTheSameFileInAnyOrder()
    {
        var reversed = BytePairTrainer.Train(Texts.Reverse(), new() { VocabularySize = Size });
        reversed.Source.ToArray().Should().Equal(Learnt.Source.ToArray());
        BytePairTrainer.Train(Texts.Skip(1000), new() { VocabularySize = Size }).Source.ToArray().Should().NotEqual(Learnt.Source.ToArray());
    }

    [Fact]
    public void PairsThatAreRareAreNotMerged()
    {
        BytePairTrainer.Train(["abc", "abd"]).VocabularySize.Should().Be(BytePairTrainer.LeastVocabulary + 1, "ab alone occurs twice");
        BytePairTrainer.Train(["abc", "abd"], new() { MinFrequency = 1 }).VocabularySize.Should().Be(BytePairTrainer.LeastVocabulary + 3);
        BytePairTrainer.Train(["abc", "abd"], new() { MinFrequency = 3 }).VocabularySize.Should().Be(BytePairTrainer.LeastVocabulary);
    }

    [Fact]
    public void TheEndTokenAndFormsThatAreComposedTeachNothing()
    {
        Tokens(BytePairTrainer.Train(Enumerable.Repeat("<|endoftext|>", 9))).Should().HaveCount(BytePairTrainer.LeastVocabulary);
        BytePairTrainer.Train(Enumerable.Repeat("cafe\u0301 \ud800", 3)).Source.ToArray()
            .Should().Equal(BytePairTrainer.Train(Enumerable.Repeat("caf\u00e9 \ufffd", 3)).Source.ToArray());
    }

    [Theory, MemberData(nameof(TinyVisionLanguage.Backbones), MemberType = typeof(TinyVisionLanguage))]
    public void AModelWorksWithIt(string backbone)
    {
        using var folder = new TemporaryFolder();
        var config = TinyVisionLanguage.Config(backbone);
        config = config with { Language = config.Language with { VocabularySize = Learnt.VocabularySize } };
        var options = new GenerationOptions { MaxNewTokens = 5, IgnoreEndToken = true };
        string answer;
        using (var model = VisionLanguageModel.Create(config, Learnt, seed: 1))
        {
            using var image = model.Encode(1);
            var row = model.Sequence.Build(Conversation.Caption("a red square."));
            row.Ids.Should().OnlyContain(id => id == ImageTokens.Placeholder || id >= 0 && id < Size).And.EndWith(0L);
            row.Labels.Count(l => l != SequenceBuilder.Ignore).Should().Be(Learnt.Encode("A red square.").Count + 1);
            answer = model.Answer(image, "What is it?", options);
            model.Save(folder.Root);
        }
        using var loaded = VisionLanguageModel.FromPretrained(folder.Root);
        using var again = loaded.Encode(1);
        loaded.Answer(again, "What is it?", options).Should().Be(answer);
        loaded.Tokenizer.Source.ToArray().Should().Equal(Learnt.Source.ToArray());
    }

    [Fact]
    public void ALargeCorpusTakesNoLongTime()
    {
        var random = new Random(1);
        var words = Enumerable.Range(0, 5_000).Select(_ => string.Concat(Enumerable.Range(0, random.Next(2, 12)).Select(_ => (char)('a' + random.Next(26) * random.Next(26) / 25)))).ToArray();
        var texts = Enumerable.Range(0, 10_000).Select(_ => string.Join(' ', Enumerable.Range(0, 10).Select(_ => words[random.Next(words.Length)]))).Append(new string('a', 50_000));
        var watch = Stopwatch.StartNew();
        BytePairTrainer.Train(texts, new() { VocabularySize = 1024 }).VocabularySize.Should().Be(1024);
        watch.Elapsed.Should().BeLessThan(TimeSpan.FromSeconds(20), "100,000 words take about a second where nothing else runs");
    }

    [Fact]
    public void WhatCannotBeLearntIsNamed()
    {
        BytePairTrainer.LeastVocabulary.Should().Be(1 + 243 + 3);
        Fails(() => BytePairTrainer.Train([], new() { VocabularySize = 246 }), "*VocabularySize is 246*at least 247*");
        Fails(() => BytePairTrainer.Train([], new() { MinFrequency = 0 }), "*MinFrequency is 0*at least 1*");
        Fails(() => BytePairTrainer.Train(["a", null!]), "*null*");
        BytePairTrainer.Train(Texts, new() { VocabularySize = 247 }).VocabularySize.Should().Be(247);

        static void Fails(Action call, string message) => call.Should().Throw<ArgumentException>().WithMessage(message);
    }

    private static string[] Plain(IReadOnlyList<string> texts, int size, Tokenizer ids)
    {
        var words = texts.SelectMany(Words).Select(w => w.Select(c => c == ' ' ? "Ġ" : c.ToString()).ToList()).ToList();
        var (merges, tokens) = (new List<string>(), BytePairTrainer.LeastVocabulary - 3);
        foreach (var (left, right) in new[] { ("#", "#"), ("##", "#"), ("&", "&") }) Merge(left, right);
        while (tokens < size)
        {
            var best = words.SelectMany(w => w.Zip(w.Skip(1))).GroupBy(p => p)
                .Select(g => (Pair: g.Key, Count: g.Count())).Where(g => g.Count >= 2)
                .OrderByDescending(g => g.Count).ThenBy(g => ids.IdOf(g.Pair.First)).ThenBy(g => ids.IdOf(g.Pair.Second)).FirstOrDefault();
            if (best.Count == 0) break;
            Merge(best.Pair.First, best.Pair.Second);
        }
        return [.. merges];

        void Merge(string left, string right)
        {
            merges.Add($"{left} {right}");
            tokens++;
            foreach (var word in words)
                for (var i = 0; i + 1 < word.Count; i++)
                {
                    if (word[i] != left || word[i + 1] != right) continue;
                    word[i] += right;
                    word.RemoveAt(i + 1);
                }
        }
    }

    private static IEnumerable<string> Words(string text)
    {
        for (var rest = text; rest.Length > 0;)
        {
            var length = WordSplitter.FirstWord(rest);
            yield return rest[..length];
            rest = rest[length..];
        }
    }

    private static List<string> Merges(Tokenizer tokenizer)
        => [.. JsonNode.Parse(tokenizer.Source.Span)!["model"]!["merges"]!.AsArray().Select(m => (string)m!)];

    private static List<string> Tokens(Tokenizer tokenizer)
        => [.. JsonNode.Parse(tokenizer.Source.Span)!["model"]!["vocab"]!.AsObject().Select(v => v.Key)];

    private static List<string> Pieces(Tokenizer tokenizer, string text)
    {
        var tokens = Tokens(tokenizer);
        return [.. tokenizer.Encode(text).Select(id => tokens[id])];
    }
}
