using CsCheck;
using MambaVL.Prompts;

namespace MambaVL.Tests.Prompts;

// Expected values: Python 3.11's str.strip().capitalize().
public class TextFormatTests
{
    [Theory]
    [InlineData("  a red BUS\t\n", "A red bus.")]
    [InlineData("What is it?", "What is it?")]
    [InlineData("no!", "No!")]
    [InlineData("done.", "Done.")]
    [InlineData("USD 12.50", "Usd 12.50.")]
    [InlineData("", ".")]
    [InlineData("\u001c\u001f\u0085\u00a0\u3000x\u2028\u001d", "X.")]
    [InlineData("\u200bx", "\u200bx.")]
    public void SentencesAreStrippedCapitalisedAndEnded(string text, string expected) => TextFormat.Sentence(text).Should().Be(expected);

    [Fact]
    public void PhrasesGetNoFullStop() => TextFormat.Phrase(" big Bird ").Should().Be("Big bird");

    [Fact]
    public void TheCaseCanBeKept()
    {
        TextFormat.Sentence(" the TOTAL for ACME ", keepCase: true).Should().Be("the TOTAL for ACME.");
        TextFormat.Phrase(" iPhone ", keepCase: true).Should().Be("iPhone");
    }

    [Theory]
    [InlineData("ß", "Ss")]
    [InlineData("ŉ", "ʼN")]
    [InlineData("ﬁn", "Fin")]
    [InlineData("ﬃ", "Ffi")]
    [InlineData("ǆ", "ǅ")]
    [InlineData("Ǆ", "ǅ")]
    [InlineData("ı", "I")]
    [InlineData("ſ", "S")]
    [InlineData("İSTANBUL İ", "İstanbul i\u0307")]
    [InlineData("საქართველო", "საქართველო")]
    [InlineData("ΌΔΥΣΣΕΎΣ", "Όδυσσεύς")]
    [InlineData("ΟΔΟΣ. Σ", "Οδος. σ")]
    [InlineData("AΣ'B", "Aσ'b")]
    [InlineData("Σ", "Σ")]
    [InlineData("ᾳ", "ᾼ")]
    [InlineData("ᾲ", "Ὰͅ")]
    [InlineData("և", "Եւ")]
    [InlineData("𐐨𐐀", "𐐀𐐨")]
    [InlineData("日本 ABC", "日本 abc")]
    [InlineData("1ST Place", "1st place")]
    [InlineData("👍 OK", "👍 ok")]
    public void CapitalsAreThoseOfPython(string text, string expected) => TextFormat.Phrase(text).Should().Be(expected);

    [Fact]
    public void AnyTextCanBeFormatted() => TokenizerTests.AnyText.Sample(text =>
    {
        var sentence = TextFormat.Sentence(text);
        return sentence.Length > 0 && ".?!".Contains(sentence[^1]);
    });

    [Fact]
    public void LongTextsTakeNoLongTime()
    {
        var watch = System.Diagnostics.Stopwatch.StartNew();
        foreach (var unit in new[] { "Σ", "'", "Σ'", " ", "A" }) TextFormat.Sentence("A" + string.Concat(Enumerable.Repeat(unit, 200_000)) + "Σ");
        watch.Elapsed.Should().BeLessThan(TimeSpan.FromSeconds(20));
    }
}
