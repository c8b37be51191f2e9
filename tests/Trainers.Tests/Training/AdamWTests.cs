using MambaVL.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Training;

public sealed class AdamWTests
{
    [Theory]
    [InlineData(0.0, null), InlineData(0.1, null), InlineData(0.1, 0.5)]
    public void ItIsTorchsOwnAdamW(double decay, double? scale)
    {
        MambaVL.Runtime.EnsureLoaded();
        using var scope = NewDisposeScope();
        using var random = new Generator(3);
        var start = randn([100], ScalarType.Float32, generator: random);
        var parameter = new TorchSharp.Modules.Parameter(start.clone());
        var torchs = optim.AdamW([parameter], lr: 0.01, beta1: 0.8, beta2: 0.95, eps: 1e-6, weight_decay: decay);
        var weights = start.clone();
        using var ours = new AdamW(100, CPU, 0.8, 0.95, 1e-6, decay);
        for (var step = 0; step < 5; step++)
        {
            var gradient = randn([100], ScalarType.Float32, generator: random);
            parameter.grad = gradient * (scale ?? 1);
            torchs.step();
            ours.Update(weights, gradient.clone(), [new(0, 60, 1, true), new(60, 40, 1, true)], scale is { } s ? tensor((float)s) : null, step, 0.01);
            (weights - parameter).abs().max().item<float>().Should().BeLessThan(1e-6f);
        }
        (weights - start).abs().min().item<float>().Should().BePositive();
    }

    [Fact]
    public void EachSegmentHasItsOwnRateAndDecay()
    {
        MambaVL.Runtime.EnsureLoaded();
        using var scope = NewDisposeScope();
        var weights = ones(3);
        using var optimizer = new AdamW(3, CPU, 0.9, 0.999, 1e-12, 0.5);
        optimizer.Update(weights, ones(3), [new(0, 1, 1, false), new(1, 1, 0.5, false), new(2, 1, 1, true)], null, 0, 0.1);
        // The first step moves by the rate itself, whatever the gradient.
        weights.data<float>().ToArray().Zip([0.9f, 0.95f, 1 - 0.05f - 0.1f]).Should().OnlyContain(p => Math.Abs(p.First - p.Second) < 1e-6f);
    }
}
