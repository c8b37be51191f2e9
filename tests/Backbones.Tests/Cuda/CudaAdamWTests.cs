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
                var (gradients, earlier) = (Of(kept), isWide ? Of(count - kept) : null);
                var narrow = CudaNumbers.Normal(random, ScalarType.BFloat16, count - kept);
                var g = cat([Wide(gradients), earlier is null ? Wide(narrow) : Wide(narrow) + Wide(earlier)], 0);
                var norm = g.norm().item<double>();
                var factor = most is { } limit ? Math.Min(1, limit / (norm + 1e-6)) : 1;

                adam.Measure(gradients, earlier, narrow, most);
                output.Close(adam.Norm, tensor(new[] { norm, factor }), 1e-6, "norm and factor");
                // Two ranges: the second at half the rate, without decay. The border is anywhere.
                var border = count / 3;
                adam.Update(weights, mean, square, gradients, earlier, narrow, working, 0, border, new(step, LearningRate, Beta1, Beta2, Epsilon, Decay));
                adam.Update(weights, mean, square, gradients, earlier, narrow, working, border, count - border, new(step, LearningRate / 2, Beta1, Beta2, Epsilon, 0));

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
                foreach (var used in new[] { gradients, earlier, narrow })
                    (used is null || used.numel() == 0 || used.eq(0).all().item<bool>()).Should().BeTrue("the gradients are used up");
            }
        }

        static Tensor Wide(Tensor t) => t.cpu().to(ScalarType.Float64);
    }

    [SkippableTheory]
    [InlineData(1_000, 1_000, false), InlineData(100_003, 1_001, false), InlineData(100_003, 1_001, true)]
    public void GradientsThatAreNotToBeClearedStay(long count, long kept, bool isWide)
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        using var random = new Generator(2);
        Tensor Of(long n) => CudaNumbers.Normal(random, ScalarType.Float32, n);
        var (weights, mean, square) = (Of(count), Of(count), Of(count).square());
        var (gradients, earlier, narrow) = (Of(kept), isWide ? Of(count - kept) : null, CudaNumbers.Normal(random, ScalarType.BFloat16, count - kept));
        using var adam = new CudaAdamW(gpu, count, kept);
        adam.Measure(gradients, earlier, narrow, 1);
        var (expected, cleared) = (Copies(), Copies());
        Update(cleared, clears: true);
        var results = Copies();
        // The end of the first range is inside a thread's share.
        Update(results, clears: false, end: count / 3);
        Update(results, clears: true, start: count / 3);
        foreach (var (result, reference, what) in new[] { (results.Weights, cleared.Weights, "weights"), (results.Mean, cleared.Mean, "mean"), (results.Square, cleared.Square, "square"), (results.Working, cleared.Working, "the working copy") })
            CudaNumbers.SameBits(result, reference, what);
        var (stayed, stayedNarrow) = (Math.Min(count / 3, kept), Math.Max(0, count / 3 - kept));
        CudaNumbers.SameBits(results.Gradients.narrow(0, 0, stayed), expected.Gradients.narrow(0, 0, stayed), "gradients");
        CudaNumbers.SameBits(results.Narrow.narrow(0, 0, stayedNarrow), expected.Narrow.narrow(0, 0, stayedNarrow), "narrow gradients");
        foreach (var rest in new[] { results.Gradients.narrow(0, stayed, kept - stayed), results.Narrow.narrow(0, stayedNarrow, count - kept - stayedNarrow), results.Earlier })
            (rest is null || rest.numel() == 0 || rest.eq(0).all().item<bool>()).Should().BeTrue("these are zero");

        (Tensor Weights, Tensor Mean, Tensor Square, Tensor Gradients, Tensor? Earlier, Tensor Narrow, Tensor Working) Copies()
            => (weights.clone(), mean.clone(), square.clone(), gradients.clone(), earlier?.clone(), narrow.clone(), CudaNumbers.Poisoned(ScalarType.BFloat16, count - kept));
        void Update((Tensor Weights, Tensor Mean, Tensor Square, Tensor Gradients, Tensor? Earlier, Tensor Narrow, Tensor Working) x, bool clears, long start = 0, long? end = null)
            => adam.Update(x.Weights, x.Mean, x.Square, x.Gradients, x.Earlier, x.Narrow, x.Working, start, (end ?? count) - start, new(3, LearningRate, Beta1, Beta2, Epsilon, Decay), clears);
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
        adam.Measure(gradients, null, null, 1);
        adam.Update(weights, mean, square, gradients, null, null, null, 0, 100, new(0, LearningRate, Beta1, Beta2, Epsilon, Decay));
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
        Act(() => adam.Measure(Of(3), null, null, null)).Should().Throw<ArgumentException>().WithParameterName("gradients").WithMessage("*[3]*[4]*");
        Act(() => adam.Measure(Of(4), null, null, null)).Should().Throw<ArgumentException>().WithParameterName("narrow").WithMessage("*6 weights*");
        Act(() => adam.Measure(Of(4), null, Of(6), null)).Should().Throw<ArgumentException>().WithParameterName("narrow").WithMessage("*Float32*BFloat16*");
        Act(() => adam.Update(Of(10), Of(10), Of(10), Of(4), Of(6), null, null, 5, 6, default)).Should().Throw<ArgumentException>().WithParameterName("start");

        static Action Act(Action action) => action;
    }
}
