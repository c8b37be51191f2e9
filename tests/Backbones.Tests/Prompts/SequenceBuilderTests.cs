using System.Text.Json.Nodes;
using MambaVL.Prompts;

namespace MambaVL.Tests.Prompts;

public class SequenceBuilderTests
{
    private const long P = ImageTokens.Placeholder;
    private static readonly Tokenizer Tiny = TinyTokenizer.Load();
    private static readonly long Mark = Tiny.IdOf("###")!.Value, RowEnd = Tiny.IdOf("&&")!.Value;

    [Fact]
    public void AnImageIsItsRowsBetweenMarks()
    {
        ImageTokens.Sequence(Tiny, 28, 42, 14).Should().Equal(Mark, P, P, P, RowEnd, P, P, P, Mark);
        ImageTokens.Sequence(Tiny, 14, 14, 14).Should().Equal(Mark, P, Mark);
        ImageTokens.Sequence(Tiny, 30, 29, 14).Should().Equal([Mark, P, P, RowEnd, P, P, Mark], "rests of a patch count for nothing");
    }

    [Fact]
    public void AMarkMayHaveSeveralIds()
    {
        var tree = TinyTokenizer.Tree();
        var merges = tree["model"]!["merges"]!.AsArray();
        foreach (var merge in merges.Where(m => (string)m! is "## #" or "& &").ToList()) merges.Remove(merge);
        var tokenizer = TinyTokenizer.Load(tree);
        long two = tokenizer.IdOf("##")!.Value, one = tokenizer.IdOf("#")!.Value, and = tokenizer.IdOf("&")!.Value;
        ImageTokens.Sequence(tokenizer, 28, 14, 14).Should().Equal(two, one, P, and, and, P, two, one);
    }

    [Fact]
    public void ATokenizerWithoutTheMarksIsRefused()
    {
        var tree = TinyTokenizer.Tree();
        tree["model"]!["merges"] = new JsonArray();
        tree["model"]!["vocab"]!.AsObject().Remove("&");
        var tokenizer = TinyTokenizer.Load(tree);
        ((Action)(() => ImageTokens.Sequence(tokenizer, 14, 14, 14))).Should().Throw<ArgumentException>().WithMessage("*'&&'*");
    }

    [Theory]
    [InlineData(0, 14)]
    [InlineData(14, 0)]
    [InlineData(13, 14)]
    [InlineData(int.MaxValue, 1)]
    public void SizesThatGiveNoImageAreRefused(int imageSize, int patchSize)
        => ((Action)(() => new SequenceBuilder(Tiny, imageSize, patchSize))).Should().Throw<ArgumentOutOfRangeException>();

    [Fact]
    public void TheImageComesFirstOrAfterTheInstruction()
    {
        var conversation = Conversation.Ask("is it red", "no");
        long[] image = [Mark, P, Mark];
        long[][] turns = [.. conversation.Turns.Select(t => Tiny.Encode(t.Text).Select(i => (long)i).ToArray())];
        long[] answer = [.. turns[2], Tiny.EndOfTextId];

        var first = new SequenceBuilder(Tiny, 14, 14).Build(conversation);
        first.Ids.Should().Equal([.. image, .. turns[0], .. turns[1], .. answer]);
        first.Labels.Should().Equal([.. Enumerable.Repeat(SequenceBuilder.Ignore, first.Ids.Length - answer.Length), .. answer]);

        var after = new SequenceBuilder(Tiny, 14, 14) { InstructionFirst = true }.Build(conversation);
        after.Ids.Should().Equal([.. turns[0], .. image, .. turns[1], .. answer]);
        after.Labels.Should().Equal(first.Labels);
    }

    [Fact]
    public void TurnsAreTokenisedByThemselves()
    {
        // " the" would be one token; "Answer: " keeps its space, and "the" follows.
        var ids = new SequenceBuilder(Tiny, 14, 14).Build(Conversation.Ask("a", "the", keepCase: true)).Ids;
        ids.Should().EndWith([(long)Tiny.IdOf("Ġ")!, .. Tiny.Encode("the.").Select(i => (long)i), 0]);
    }

    [Fact]
    public void LongSequencesAreCutButNeverWithinTheImage()
    {
        var builder = new SequenceBuilder(Tiny, 28, 14) { InstructionFirst = true };
        var conversation = Conversation.Caption("a dog");
        var whole = builder.Build(conversation);
        var cut = builder.Build(conversation, whole.Ids.Length - 2);
        cut.Ids.Should().Equal(whole.Ids[..^2]);
        cut.Labels.Should().Equal(whole.Labels[..^2]);

        var image = Array.LastIndexOf(whole.Ids, Mark) + 1;
        builder.Build(conversation, image).Ids.Should().HaveCount(image);
        ((Action)(() => builder.Build(conversation, image - 1))).Should().Throw<ArgumentException>().WithMessage($"*{image - 1} ids*ends at {image}*");
    }
}
