using System.Globalization;
using CsCheck;
using MambaVL.Prompts;

namespace MambaVL.Tests.Prompts;

public class BoxParserTests
{
    [Fact]
    public void ABoxIsReadInPixelsOfTheOriginalImage()
    {
        var box = BoxParser.Parse("[0.10,0.25,0.50,0.76].", imageWidth: 640, imageHeight: 400);
        box.IsReadable.Should().BeTrue();
        box.Raw.Should().Be(new BoundingBox(0.10, 0.25, 0.50, 0.76));
        box.Pixels.Should().Be(new BoundingBox(64, 100, 320, 304));
    }

    [Theory]
    [InlineData("a dog [0.1,0.2,0.3,0.4] and [0.5,0.6,0.7,0.8]", 0.1, 0.2, 0.3, 0.4)]
    [InlineData("[ 0.1, .2 ,3e-1,1]", 0.1, 0.2, 0.3, 1)]
    [InlineData("[-0.1,0.2,1.3,0.1]", -0.1, 0.2, 1.3, 0.1)]
    [InlineData("[1e300,0,0,0]", 1e300, 0, 0, 0)]
    public void WhatTheModelWroteIsKept(string text, double x0, double y0, double x1, double y1)
    {
        BoxParser.TryParse(text, out var raw).Should().BeTrue();
        raw.Should().Be(new BoundingBox(x0, y0, x1, y1));
    }

    [Theory]
    [InlineData("")]
    [InlineData("no box")]
    [InlineData("[]")]
    [InlineData("0.1,0.2,0.3,0.4]")]
    [InlineData("[0.1,0.2,0.3,0.4")]
    [InlineData("[0.1,0.2,0.3]")]
    [InlineData("[0.1,0.2,0.3,0.4,0.5]")]
    [InlineData("[0.1,0.2,0.3,0.4,]")]
    [InlineData("[0,1,0,2,0,3,0,4]")]
    [InlineData("[0.1;0.2;0.3;0.4]")]
    [InlineData("[0.1,0.2,0.3,x]")]
    [InlineData("[0.1,0.2,,0.4]")]
    [InlineData("[NaN,0.2,0.3,0.4]")]
    [InlineData("[0.1,Infinity,0.3,0.4]")]
    [InlineData("[1e999,0.2,0.3,0.4]")]
    [InlineData("[1.000,5,0.2,0.3,0.4]")]
    [InlineData("[[0.1,0.2,0.3,0.4]]")]
    [InlineData("[?] [0.1,0.2,0.3,0.4]")]
    public void OtherTextIsUnreadable(string text)
    {
        BoxParser.Parse(text, 100, 100).Should().Be(default(ParsedBox));
        BoxParser.TryParse(text, out _).Should().BeFalse();
    }

    [Fact]
    public void PixelsLieWithinTheImageAndInOrder()
        => BoxParser.Parse("[1.5,0.9,-0.5,0.1]", 200, 100).Pixels.Should().Be(new BoundingBox(0, 10, 200, 90));

    [Fact]
    public void TheCultureDoesNotMatter()
    {
        var culture = CultureInfo.CurrentCulture;
        var other = (CultureInfo)CultureInfo.InvariantCulture.Clone();
        (other.NumberFormat.NumberDecimalSeparator, other.NumberFormat.NegativeSign) = (",", "~");
        CultureInfo.CurrentCulture = other;
        try
        {
            new BoundingBox(-0.1, 0.2, 0.3, 0.4).ToText().Should().Be("[-0.10,0.20,0.30,0.40].");
            BoxParser.TryParse("[-0.1,0.2,0.3,0.4]", out _).Should().BeTrue();
        }
        finally
        {
            CultureInfo.CurrentCulture = culture;
        }
    }

    [Fact]
    public void WhatIsWrittenIsRead() => Gen.Int[0, 100].Array[4].Sample(e =>
    {
        var box = new BoundingBox(e[0] / 100.0, e[1] / 100.0, e[2] / 100.0, e[3] / 100.0);
        return BoxParser.TryParse("It is " + box.ToText(), out var read) && read == box;
    });

    [Fact]
    public void AnyTextIsReadOrNot()
    {
        var noise = Gen.Char["[],.0123456789eE+-NnaI \u0660\uFF11\ud800x"].Array[0, 40].Select(c => new string(c));
        Gen.OneOf(noise, noise.Select(t => $"[{t}]"), TokenizerTests.AnyText).Sample(text =>
        {
            var box = BoxParser.Parse(text, 640, 480);
            return box.Pixels is { X0: >= 0, Y0: >= 0, X1: <= 640, Y1: <= 480 } p && p.X0 <= p.X1 && p.Y0 <= p.Y1
                && box.IsReadable == BoxParser.TryParse(text, out _);
        }, iter: 20_000);
    }

    [Fact]
    public void TheImageMustHaveASize()
        => ((Action)(() => BoxParser.Parse("[0,0,1,1]", 0, 10))).Should().Throw<ArgumentOutOfRangeException>().WithParameterName("imageWidth");
}
