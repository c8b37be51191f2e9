using System.Globalization;
using CsCheck;
using MambaVL.Metrics;

namespace MambaVL.Tests.Metrics;

public class CaptionTokenizerTests
{
    [Theory]
    [InlineData("", "")]
    [InlineData("A man riding a wave, on a surfboard.", "a man riding a wave on a surfboard")]
    [InlineData("The man's dog isn't here.", "the man 's dog is n't here")]
    [InlineData("The dogs' bowls", "the dogs bowls")]
    [InlineData("They'll say we can't, couldn't've or won't", "they 'll say we ca n't could n't 've or wo n't")]
    [InlineData("You cannot. I'm gonna!", "you can not i 'm gon na")]
    [InlineData("a black-and-white t-shirt -- torn", "a black-and-white t-shirt torn")]
    [InlineData("\u201cStop\u201d sign\u2026 it\u2019s \u2018red\u2019 \u2014 really", "stop sign it 's red really")]
    [InlineData("1,000 people at 3.5 km, at 10:30", "1,000 people at 3.5 km at 10:30")]
    [InlineData("The U.S. flag, p.m.", "the u.s. flag p.m.")]
    [InlineData("Mr. Smith on Main St.", "mr. smith on main st.")]
    [InlineData("salt & pepper for $5 (50%)", "salt & pepper for $ 5 50 %")]
    [InlineData("a cat.A dog", "a cat a dog")]
    [InlineData("one\ntwo\tthree", "one two three")]
    [InlineData("un café à Zürich 東京", "un café à zürich 東京")]
    [InlineData("What?! [sic] {x} ...", "what sic x")]
    public void Words(string caption, string expected) => string.Join(' ', CaptionTokenizer.Tokenize(caption)).Should().Be(expected);

    [Fact]
    public void Words_do_not_depend_on_the_culture()
    {
        var before = CultureInfo.CurrentCulture;
        try
        {
            CultureInfo.CurrentCulture = new CultureInfo("tr-TR");
            CaptionTokenizer.Tokenize("I SIT").Should().Equal("i", "sit");
        }
        finally
        {
            CultureInfo.CurrentCulture = before;
        }
    }

    [Fact]
    public void Any_text_has_words_without_spaces_and_none_is_empty() => Gen.String.Sample(text =>
        CaptionTokenizer.Tokenize(text).Should().NotContain(w => w.Length == 0 || w.Any(char.IsWhiteSpace)));

    [Fact]
    public void Null_is_an_error() => FluentActions.Invoking(() => CaptionTokenizer.Tokenize(null!)).Should().Throw<ArgumentNullException>();
}
