using CsCheck;
using MambaVL.Generation;

namespace MambaVL.Tests.Generation;

public class SamplerTests
{
    [Fact]
    public void GreedyTakesTheGreatestAndTheFirstOfEquals()
    {
        Next(new(), [1, 3, 2]).Should().Be(1);
        Next(new(), [2, 5, 5, 1]).Should().Be(1);
        Next(new(), [-3, -1, -2]).Should().Be(1);
        Next(new() { Seed = 99 }, [float.NegativeInfinity, 0]).Should().Be(1);
    }

    [Theory]
    [InlineData(float.NaN)]
    [InlineData(float.PositiveInfinity)]
    public void LogitsThatAreNotFiniteAreAnError(float broken)
    {
        var act = () => Next(new(), [1, broken, 2]);
        act.Should().Throw<InvalidOperationException>().WithMessage("*not finite*");
    }

    [Fact]
    public void WhenAllLogitsAreMinusInfinityThereIsNothingToChoose()
    {
        var act = () => Next(new(), [float.NegativeInfinity, float.NegativeInfinity]);
        act.Should().Throw<InvalidOperationException>();
    }

    [Fact]
    public void SamplingFollowsTheSoftmaxOfTheLogits()
    {
        float[] logits = [0, MathF.Log(2), MathF.Log(5), float.NegativeInfinity];
        Shares(new() { Temperature = 1 }, logits).Should().Equal([1 / 8.0, 2 / 8.0, 5 / 8.0, 0], Near(0.015));
    }

    [Fact]
    public void TemperatureDividesTheLogits()
    {
        float[] logits = [0, MathF.Log(9)];
        Shares(new() { Temperature = 2 }, logits).Should().Equal([1 / 4.0, 3 / 4.0], Near(0.015));
        Shares(new() { Temperature = 1e-30 }, logits).Should().Equal([0, 1.0], Near(0));
    }

    [Fact]
    public void TopKKeepsTheLikeliestAndTheFirstOfEquals()
    {
        float[] logits = [0, MathF.Log(3), 0, MathF.Log(2), 0];
        Shares(new() { Temperature = 1, TopK = 2 }, logits).Should().Equal([0, 0.6, 0, 0.4, 0], Near(0.015));
        Shares(new() { Temperature = 1, TopK = 3 }, logits).Should().Equal([1 / 6.0, 3 / 6.0, 0, 2 / 6.0, 0], Near(0.015));
    }

    [Fact]
    public void TopPKeepsTheFewestThatReachIt()
    {
        float[] logits = [MathF.Log(0.5f), MathF.Log(0.3f), MathF.Log(0.15f), MathF.Log(0.05f)];
        Shares(new() { Temperature = 1, TopP = 0.4 }, logits).Should().Equal([1.0, 0, 0, 0], Near(0));
        Shares(new() { Temperature = 1, TopP = 0.7 }, logits).Should().Equal([0.625, 0.375, 0, 0], Near(0.015));
        Shares(new() { Temperature = 1, TopP = 0.9, TopK = 2 }, logits).Should().Equal([0.625, 0.375, 0, 0], Near(0.015));
    }

    [Fact]
    public void TheRepetitionPenaltyCountsThePromptAndTheAnswer()
    {
        var sampler = new Sampler(new() { RepetitionPenalty = 2 }, 0, [-200L, 1]);
        sampler.Next([1.5f, 2, 1.2f]).Should().Be(0); // 1 is in the prompt: 2 / 2
        sampler.Next([1.5f, 2, 1.2f]).Should().Be(2); // and 0 in the answer: 1.5 / 2
        sampler.Next([-1f, -1.5f, -2]).Should().Be(0); // negative ones are multiplied: -2, -3, -4
    }

    [Fact]
    public void TheSameSeedsGiveTheSameTokensAndOthersDoNot()
    {
        int[] Draw(long seed, long row)
        {
            var sampler = new Sampler(new() { Temperature = 1, Seed = seed }, row, []);
            return [.. Enumerable.Range(0, 20).Select(_ => sampler.Next(new float[100]))];
        }

        Draw(1, 0).Should().Equal(Draw(1, 0));
        Draw(1, 0).Should().NotEqual(Draw(2, 0));
        Draw(1, 0).Should().NotEqual(Draw(1, 1));
    }

    [Fact]
    public void WhateverTheOptionsTheTokenIsOneThatCanBe()
    {
        var options = Gen.Select(Gen.Double[0.01, 5], Gen.Int[0, 12], Gen.Double[0.01, 1], Gen.Double[0.5, 2], Gen.Long)
            .Select((t, k, p, r, s) => new GenerationOptions { Temperature = t, TopK = k, TopP = p, RepetitionPenalty = r, Seed = s });
        Gen.Select(options, Gen.Float[-30, 30].Array[1, 10]).Sample((o, logits) =>
            new Sampler(o, 0, [0]).Next([.. logits, float.NegativeInfinity]) < logits.Length);
    }

    [Fact]
    public void OptionsOutOfRangeAreNamed()
    {
        Check(new() { MaxNewTokens = 0 }, "MaxNewTokens");
        Check(new() { Temperature = -1 }, "Temperature");
        Check(new() { Temperature = double.NaN }, "Temperature");
        Check(new() { TopK = -1 }, "TopK");
        Check(new() { TopP = 0 }, "TopP");
        Check(new() { TopP = 1.1 }, "TopP");
        Check(new() { RepetitionPenalty = 0 }, "RepetitionPenalty");

        static void Check(GenerationOptions options, string name)
        {
            var act = () => options.Checked();
            act.Should().Throw<ArgumentOutOfRangeException>().WithParameterName(name);
        }
    }

    private static int Next(GenerationOptions options, float[] logits) => new Sampler(options, 0, []).Next(logits);

    private static double[] Shares(GenerationOptions options, float[] logits)
    {
        const int draws = 20_000;
        var counts = new double[logits.Length];
        var sampler = new Sampler(options, 0, []);
        for (var i = 0; i < draws; i++) counts[sampler.Next(logits.ToArray())]++;
        return [.. counts.Select(c => c / draws)];
    }

    private static Func<double, double, bool> Near(double tolerance) => (a, b) => Math.Abs(a - b) <= tolerance;
}
