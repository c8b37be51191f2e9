using CsCheck;
using MambaVL.Generation;

namespace MambaVL.Tests.Generation;

public class StopFilterTests
{
    [Theory]
    [InlineData("a cat.|\n|B", "\n", "a cat.||", true)]
    [InlineData("a cat.\nB|C", "\n", "a cat.|", true)]
    [InlineData("a |<e|nd|>", "<end>", "a |||", true)]
    [InlineData("a |<e|nx", "<end>", "a ||<enx", false)]
    [InlineData("a |<e", "<end>", "a |", false)]
    [InlineData("aa|ab", "aab", "|a", true)]
    [InlineData("xab|c", "bd,abc", "x|", true)]
    public void TextEndsBeforeTheFirstSequence(string pieces, string sequences, string expected, bool reached)
    {
        var filter = new StopFilter(sequences.Split(','));
        string.Join('|', pieces.Split('|').Select(filter.Append)).Should().Be(expected);
        filter.Reached.Should().Be(reached);
    }

    [Fact]
    public void WhateverThePiecesTheTextIsTheSame()
        => Gen.Select(Gen.String[Gen.Char["ab"], 0, 5].Array[0, 8], Gen.String[Gen.Char["ab"], 3, 3].Array[0, 3]).Sample((pieces, sequences) =>
        {
            var filter = new StopFilter(sequences);
            var text = string.Concat(pieces.Select(filter.Append)) + filter.Flush();
            var whole = string.Concat(pieces);
            var end = StopFilter.Find(whole, sequences);
            text.Should().Be(end < 0 ? whole : whole[..end]);
            filter.Reached.Should().Be(end >= 0);
        });
}
