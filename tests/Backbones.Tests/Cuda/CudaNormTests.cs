using MambaVL.Cuda;
using MambaVL.Models;
using TorchSharp;
using Xunit.Abstractions;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

namespace MambaVL.Tests.Cuda;

public class CudaNormTests(ITestOutputHelper output)
{
    private const double Epsilon = 1e-5;

    [SkippableTheory]
    [InlineData(1, 1, ScalarType.Float32, ScalarType.Float32), InlineData(5, 77, ScalarType.Float32, ScalarType.Float32)]
    [InlineData(640, 768, ScalarType.Float32, ScalarType.Float32), InlineData(3, 12288, ScalarType.Float32, ScalarType.Float32)]
    [InlineData(1000, 1536, ScalarType.BFloat16, ScalarType.Float32), InlineData(7, 2560, ScalarType.BFloat16, ScalarType.BFloat16)]
    [InlineData(7, 77, ScalarType.BFloat16, ScalarType.Float32), InlineData(65, 2560, ScalarType.Float16, ScalarType.Float32)]
    public void EqualsTheReferenceForwardAndBackward(int rows, int width, ScalarType type, ScalarType residualType)
    {
        var gpu = CudaTesting.Gpu();
        foreach (var kind in new[] { NormKind.RmsNorm, NormKind.LayerNorm })
        {
            if (width == 1 && kind == NormKind.LayerNorm) continue; // of one number it is zero, and so are its gradients
            using var scope = NewDisposeScope();
            using var random = new Generator((ulong)width);
            // Far from zero, so that a variance from a difference of sums would show.
            var residual = CudaNumbers.Normal(random, residualType, rows, width) + 3;
            var x = CudaNumbers.Normal(random, type, rows, width);
            var weight = CudaNumbers.Normal(random, type, width);
            var bias = kind == NormKind.LayerNorm ? CudaNumbers.Normal(random, type, width) : null;
            var (gradNormed, gradSum) = (CudaNumbers.Normal(random, type, rows, width), CudaNumbers.Normal(random, residualType, rows, width));
            var norm = new CudaNorm(gpu, type, residualType, width, kind);
            var first = Run();
            var second = Run();
            var sum = (residual.to(ScalarType.Float64) + x.to(ScalarType.Float64)).cpu();
            var (tolerance, wideTolerance) = (CudaNumbers.Tolerance(type), CudaNumbers.Tolerance(residualType));
            output.Close(first[0]!, sum, wideTolerance, $"{kind} sum");
            var expected = Reference(first[0]!, weight, bias, gradNormed, gradSum);
            string[] names = ["sum", "normed", "gradient of residual", "gradient of x", "normed again", "gradient of weight", "gradient of bias"];
            Tensor?[] references = [null, expected[0], expected[1], expected[1], expected[0], expected[2], expected[3]];
            for (var i = 0; i < names.Length; i++)
            {
                if (references[i] is { } reference) output.Close(first[i]!, reference, i == 2 ? wideTolerance : tolerance, $"{kind} {names[i]}");
                if (first[i] is { } actual) CudaNumbers.SameBits(second[i]!, actual, names[i]);
            }

            Tensor?[] Run()
            {
                Tensor Out(ScalarType t) => CudaNumbers.Poisoned(t, rows, width);
                var (sums, normed, gradResidual, gradX, again) = (Out(residualType), Out(type), Out(residualType), Out(type), Out(type));
                var (gradWeight, gradBias) = (CudaNumbers.Poisoned(type, width), bias is null ? null : CudaNumbers.Poisoned(type, width));
                norm.Forward(residual, x, weight, bias, Epsilon, sums, normed);
                norm.Backward(sums, weight, bias, Epsilon, gradNormed, gradSum, gradResidual, gradX, again, gradWeight, gradBias);
                return [sums, normed, gradResidual, gradX, again, gradWeight, gradBias];
            }
        }
    }

    [SkippableFact]
    public void TheFirstLayerAddsNothingAndAFrozenOneHasNoGradients()
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        using var random = new Generator(3);
        var (x, weight, gradNormed) = (CudaNumbers.Normal(random, ScalarType.Float32, 9, 64), CudaNumbers.Normal(random, ScalarType.Float32, 64), CudaNumbers.Normal(random, ScalarType.Float32, 9, 64));
        var norm = new CudaNorm(gpu, ScalarType.Float32, ScalarType.Float32, 64, NormKind.RmsNorm);
        var (normed, gradResidual) = (empty_like(x), empty_like(x));
        norm.Forward(x, null, weight, null, Epsilon, null, normed);
        norm.Backward(x, weight, null, Epsilon, gradNormed, null, gradResidual);
        var expected = Reference(x, weight, null, gradNormed, null);
        output.Close(normed, expected[0]!, 1e-5, "normed");
        output.Close(gradResidual, expected[1]!, 1e-5, "gradient");
        var sum = ones_like(weight);
        norm.Backward(x, weight, null, Epsilon, gradNormed, null, gradResidual, gradWeight: sum, add: true);
        output.Close(sum - 1, expected[2]!, 1e-5, "gradient of weight, added to ones");
    }

    [SkippableFact]
    public void AddressesThatAreNoMultiplesOf16WorkToo()
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        using var random = new Generator(4);
        var all = CudaNumbers.Normal(random, ScalarType.BFloat16, 64 * 3 + 1);
        var (x, weight) = (all.narrow(0, 1, 128).view(2, 64), all.narrow(0, 129, 64));
        var norm = new CudaNorm(gpu, ScalarType.BFloat16, ScalarType.BFloat16, 64, NormKind.RmsNorm);
        var normed = empty_like(x);
        norm.Forward(x, null, weight, null, Epsilon, null, normed);
        output.Close(normed, Reference(x, weight, null, x, null)[0]!, 1e-2, "normed");
    }

    [SkippableFact]
    public void WhatDoesNotFitIsNamed()
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        Tensor Of(params long[] shape) => zeros(shape, dtype: ScalarType.Float32, device: CUDA);
        var norm = new CudaNorm(gpu, ScalarType.Float32, ScalarType.Float32, 8, NormKind.RmsNorm);
        Act(() => norm.Forward(Of(2, 9), null, Of(8), null, Epsilon, null, Of(2, 8))).Should().Throw<ArgumentException>().WithParameterName("residual").WithMessage("*[2, 9]*[2, 8]*");
        Act(() => norm.Forward(Of(8, 2).t(), null, Of(8), null, Epsilon, null, Of(2, 8))).Should().Throw<ArgumentException>().WithParameterName("residual").WithMessage("*contiguous*");
        Act(() => norm.Forward(Of(2, 8), null, Of(8), Of(8), Epsilon, null, Of(2, 8))).Should().Throw<ArgumentException>().WithParameterName("bias");
        Act(() => new CudaNorm(gpu, ScalarType.Float32, ScalarType.BFloat16, 8, NormKind.RmsNorm)).Should().Throw<ArgumentException>().WithMessage("*BFloat16*Float32*");
        Act(() => new CudaNorm(gpu, ScalarType.Float32, ScalarType.Float32, 20000, NormKind.RmsNorm)).Should().Throw<ArgumentException>().WithMessage("*20000*12288*");

        static Action Act(Action action) => action;
    }

    // normed, and the gradients of what is normalised, of weight and of bias.
    private static Tensor?[] Reference(Tensor sum, Tensor weight, Tensor? bias, Tensor gradNormed, Tensor? gradSum)
    {
        Tensor Leaf(Tensor t) => t.detach().cpu().to(ScalarType.Float64).clone().requires_grad_();
        var (x, w, b) = (Leaf(sum), Leaf(weight), bias is null ? null : Leaf(bias));
        var y = b is null ? x * rsqrt(x.square().mean([-1], keepdim: true) + Epsilon) * w : F.layer_norm(x, [x.shape[1]], w, b, Epsilon);
        y.backward([gradNormed.cpu().to(ScalarType.Float64)]);
        return [y, gradSum is null ? x.grad : x.grad! + gradSum.cpu().to(ScalarType.Float64), w.grad, b?.grad];
    }
}
