using MambaVL.Cuda;
using TorchSharp;
using Xunit.Abstractions;
using static TorchSharp.torch;

namespace MambaVL.Tests.Cuda;

public class CudaAdamWTests(ITestOutputHelper output)
{
    private const double LearningRate = 1e-2, Beta1 = 0.9, Beta2 = 0.95, Epsilon = 1e-8, Decay = 0.1;

    [SkippableTheory]
    [InlineData(1, 0, false), InlineData(1000, 1000, false), InlineData(100_003, 1_001, false), InlineData(100_003, 1_001, true), InlineData(2_000_000, 8, true)]
    public void EqualsTheFormulaOverSeveralSteps(long count, long kept, bool isWide)
    {
        var gpu = CudaTesting.Gpu();
        foreach (var most in new double?[] { null, 0.5 })
        {
            using var scope = NewDisposeScope();
            using var random = new Generator((ulong)count);
            Tensor Of(long n) => CudaNumbers.Normal(random, ScalarType.Float32, n);
            var (weights, mean, square) = (Of(count), zeros(count, dtype: ScalarType.Float32, device: CUDA), zeros(count, dtype: ScalarType.Float32, device: CUDA));
            var working = CudaNumbers.Poisoned(ScalarType.BFloat16, count - kept);
            var (w, m, v) = (Wide(weights), Wide(mean), Wide(square));
            using var adam = new CudaAdamW(gpu, count, kept);
            for (var step = 0; step < 3; step++)
            {
                var gradients = Of(isWide ? count : kept);
                var narrow = CudaNumbers.Normal(random, ScalarType.BFloat16, count - kept);
                var g = Wide(gradients);
                g = isWide ? g + cat([zeros(kept, ScalarType.Float64), Wide(narrow)], 0) : cat([g, Wide(narrow)], 0);
                var norm = g.norm().item<double>();
                var factor = most is { } limit ? Math.Min(1, limit / (norm + 1e-6)) : 1;

                adam.Measure(gradients, narrow, most);
                output.Close(adam.Norm, tensor(new[] { norm, factor }), 1e-6, "norm and factor");
                // Two ranges: the second at half the rate, without decay. The border is anywhere.
                var border = count / 3;
                adam.Update(weights, mean, square, gradients, narrow, working, 0, border, new(step, LearningRate, Beta1, Beta2, Epsilon, Decay));
                adam.Update(weights, mean, square, gradients, narrow, working, border, count - border, new(step, LearningRate / 2, Beta1, Beta2, Epsilon, 0));

                g *= factor;
                var rates = cat([full(border, LearningRate, ScalarType.Float64), full(count - border, LearningRate / 2, ScalarType.Float64)], 0);
                var decays = cat([full(border, LearningRate * Decay, ScalarType.Float64), zeros(count - border, ScalarType.Float64)], 0);
                m = m * Beta1 + g * (1 - Beta1);
                v = v * Beta2 + g * g * (1 - Beta2);
                w = w * (1 - decays) - rates * (m / (1 - Math.Pow(Beta1, step + 1))) / ((v / (1 - Math.Pow(Beta2, step + 1))).sqrt() + Epsilon);
                output.Close(weights, w, 1e-6, $"weights after {step + 1}");
                output.Close(mean, m, 1e-6, "mean");
                output.Close(square, v, 1e-6, "square");
                CudaNumbers.SameBits(working, weights.narrow(0, kept, count - kept).to(ScalarType.BFloat16), "the working copy");
                ((gradients.numel() == 0 || gradients.eq(0).all().item<bool>()) && (narrow.numel() == 0 || narrow.eq(0).all().item<bool>())).Should().BeTrue("the gradients are used up");
            }
        }

        static Tensor Wide(Tensor t) => t.cpu().to(ScalarType.Float64);
    }

    [SkippableFact]
    public void AGradientThatIsNoNumberChangesNoWeight()
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        using var random = new Generator(1);
        Tensor Of(long n) => CudaNumbers.Normal(random, ScalarType.Float32, n);
        var (weights, mean, square, gradients) = (Of(100), Of(100), Of(100).square(), Of(100));
        gradients[99] = float.NaN;
        var before = weights.clone();
        using var adam = new CudaAdamW(gpu, 100, 100);
        adam.Measure(gradients, null, 1);
        adam.Update(weights, mean, square, gradients, null, null, 0, 100, new(0, LearningRate, Beta1, Beta2, Epsilon, Decay));
        CudaNumbers.SameBits(weights, before, "the weights");
        float.IsNaN(adam.Norm.cpu()[0].item<float>()).Should().BeTrue();
        gradients.eq(0).all().item<bool>().Should().BeTrue();
    }

    [SkippableFact]
    public void WhatDoesNotFitIsNamed()
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        Tensor Of(long n) => zeros(n, dtype: ScalarType.Float32, device: CUDA);
        using var adam = new CudaAdamW(gpu, 10, 4);
        Act(() => adam.Measure(Of(3), null, null)).Should().Throw<ArgumentException>().WithParameterName("gradients").WithMessage("*[3]*[4]*");
        Act(() => adam.Measure(Of(4), null, null)).Should().Throw<ArgumentException>().WithParameterName("narrow").WithMessage("*other 6*");
        Act(() => adam.Measure(Of(4), Of(6), null)).Should().Throw<ArgumentException>().WithParameterName("narrow").WithMessage("*Float32*BFloat16*");
        Act(() => adam.Update(Of(10), Of(10), Of(10), Of(10), null, null, 5, 6, default)).Should().Throw<ArgumentException>().WithParameterName("start");

        static Action Act(Action action) => action;
    }
}
