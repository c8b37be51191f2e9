using System.Globalization;
using CsCheck;
using MambaVL.Prompts;

namespace MambaVL.Tests.Prompts;

public class BoundingBoxTests
{
    // Expected values: Python's f"{x:.2f}".
    [Theory]
    [InlineData(0.755, "0.76")]
    [InlineData(0.125, "0.12")]
    [InlineData(0.375, "0.38")]
    [InlineData(0.625, "0.62")]
    [InlineData(0.875, "0.88")]
    [InlineData(0.005, "0.01")]
    [InlineData(0.015, "0.01")]
    [InlineData(0.285, "0.28")]
    [InlineData(0.995, "0.99")]
    [InlineData(0.996, "1.00")]
    [InlineData(1.005, "1.00")]
    [InlineData(-0.001, "-0.00")]
    [InlineData(-0.125, "-0.12")]
    [InlineData(12.3456, "12.35")]
    public void EdgesAreRoundedAsPythonDoes(double edge, string expected)
        => new BoundingBox(edge, 0, 1, 0.5).ToText().Should().Be($"[{expected},0.00,1.00,0.50].");

    [Fact]
    public void RoundingIsExact() => Gen.OneOf(Gen.Double[0, 1], Gen.Int[0, 8000].Select(i => i / 8000.0), Gen.Int[0, 800].Select(i => i / 800.0)).Sample(x =>
    {
        var exact = decimal.Parse(x.ToString("F28", CultureInfo.InvariantCulture), CultureInfo.InvariantCulture);
        var rounded = decimal.Round(exact, 2, MidpointRounding.ToEven).ToString("F2", CultureInfo.InvariantCulture);
        return new BoundingBox(x, x, x, x).ToText(fullStop: false) == $"[{rounded},{rounded},{rounded},{rounded}]";
    }, iter: 3000);

    [Theory]
    [InlineData(double.NaN)]
    [InlineData(double.PositiveInfinity)]
    [InlineData(1e10)]
    public void AnEdgeThatIsNoShareIsRefused(double edge)
        => ((Action)(() => new BoundingBox(0, edge, 0, 0).ToText())).Should().Throw<InvalidOperationException>().WithMessage("*0 to 1*");

    [Fact]
    public void OverlapIsIntersectionOverUnion()
    {
        var box = new BoundingBox(0, 0, 2, 2);
        box.IntersectionOverUnion(box).Should().Be(1);
        box.IntersectionOverUnion(new(1, 0, 3, 2)).Should().BeApproximately(1.0 / 3, 1e-12);
        box.IntersectionOverUnion(new(2, 2, 3, 3)).Should().Be(0);
        box.IntersectionOverUnion(new(2, 2, 0, 0)).Should().Be(0, "its edges are out of order");
        new BoundingBox(1, 1, 1, 1).IntersectionOverUnion(new(1, 1, 1, 1)).Should().Be(0);
        box.IntersectionOverUnion(new(double.NaN, 0, 1, 1)).Should().Be(0);
        box.IntersectionOverUnion(new(double.NegativeInfinity, double.NegativeInfinity, double.PositiveInfinity, double.PositiveInfinity)).Should().Be(0);
    }

    [Fact]
    public void OverlapIsSymmetricAndAShare() => Gen.Select(Gen.Double, Gen.Double, Gen.Double, Gen.Double)
        .Select((a, b, c, d) => new BoundingBox(a, b, c, d)).Array[2].Sample(boxes =>
        {
            var share = boxes[0].IntersectionOverUnion(boxes[1]);
            return share is >= 0 and <= 1 && share == boxes[1].IntersectionOverUnion(boxes[0]);
        });

    [Fact]
    public void WithinAnImageMeansInOrderAndInside()
    {
        new BoundingBox(120, -5, 10, 30).Within(100, 50).Should().Be(new BoundingBox(10, 0, 100, 30));
        new BoundingBox(0.1, 0.2, 0.3, 0.4).ToPixels(640, 480).ToShares(640, 480).X1.Should().BeApproximately(0.3, 1e-12);
        ((Action)(() => default(BoundingBox).ToPixels(0, 480))).Should().Throw<ArgumentOutOfRangeException>();
        ((Action)(() => default(BoundingBox).ToShares(640, -1))).Should().Throw<ArgumentOutOfRangeException>();
        ((Action)(() => default(BoundingBox).Within(0, 1))).Should().Throw<ArgumentOutOfRangeException>();
    }
}
