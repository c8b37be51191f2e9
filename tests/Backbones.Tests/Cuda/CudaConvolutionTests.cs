using MambaVL.Cuda;
using TorchSharp;
using Xunit.Abstractions;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

namespace MambaVL.Tests.Cuda;

public class CudaConvolutionTests(ITestOutputHelper output)
{
    public static TheoryData<int, int, int, int, ScalarType> Cases => new()
    {
        // b, e, l, k: short and long rows, rows whose addresses are no multiples of 16, and every size of window.
        { 1, 3, 1, 4, ScalarType.Float32 }, { 2, 5, 7, 4, ScalarType.Float32 }, { 1, 6, 248, 2, ScalarType.Float32 },
        { 3, 4, 249, 3, ScalarType.Float32 }, { 16, 33, 640, 4, ScalarType.Float32 }, { 1, 2, 8193, 8, ScalarType.Float32 }, { 2, 3, 65, 1, ScalarType.Float32 },
        { 1, 3, 1, 4, ScalarType.BFloat16 }, { 2, 5, 7, 4, ScalarType.BFloat16 }, { 16, 33, 640, 4, ScalarType.BFloat16 }, { 3, 7, 643, 4, ScalarType.BFloat16 },
        { 1, 2, 8193, 3, ScalarType.BFloat16 }, { 4, 9, 640, 4, ScalarType.Float16 }, { 2, 5, 255, 2, ScalarType.Float16 },
    };

    [SkippableTheory, MemberData(nameof(Cases))]
    public void EqualsTheReferenceForwardAndBackward(int b, int e, int l, int k, ScalarType type)
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        using var random = new Generator((ulong)(l + k));
        // As in a layer: channel by channel, the rows inside.
        Tensor Activation() => CudaNumbers.Normal(random, type, e, b, l).transpose(0, 1);
        var (u, gradY, weight, bias) = (Activation(), Activation(), CudaNumbers.Normal(random, type, e, k), CudaNumbers.Normal(random, type, e));
        var expected = Reference(u, weight, bias, gradY, null);
        var first = Run();
        var second = Run();
        var tolerance = CudaNumbers.Tolerance(type);
        foreach (var (name, actual, again, reference) in new[]
        {
            ("y", first.Y, second.Y, expected.Y), ("gradient of u", first.U, second.U, expected.U),
            ("gradient of weight", first.Weight, second.Weight, expected.Weight), ("gradient of bias", first.Bias, second.Bias, expected.Bias),
        })
        {
            output.Close(actual, reference, tolerance, name);
            CudaNumbers.SameBits(again, actual, name);
        }

        (Tensor Y, Tensor U, Tensor Weight, Tensor Bias) Run()
        {
            var convolution = new CudaConvolution(gpu, type, k);
            Tensor Out() => CudaNumbers.Poisoned(type, e, b, l).transpose(0, 1);
            var (y, gradU, gradWeight, gradBias) = (Out(), Out(), CudaNumbers.Poisoned(type, e, k), CudaNumbers.Poisoned(type, e));
            convolution.Forward(u, weight, bias, y);
            convolution.Backward(u, weight, bias, gradY, gradU, gradWeight, gradBias);
            return (y, gradU, gradWeight, gradBias);
        }
    }

    [SkippableTheory]
    [InlineData(1, 1), InlineData(1, 2), InlineData(3, 1), InlineData(2, 300), InlineData(16, 640)]
    public void GoesOnFromAStateAndLeavesOne(int b, int l)
    {
        var gpu = CudaTesting.Gpu();
        const int E = 37, K = 4;
        foreach (var type in new[] { ScalarType.Float32, ScalarType.BFloat16 })
        {
            using var scope = NewDisposeScope();
            using var random = new Generator((ulong)l);
            var u = CudaNumbers.Normal(random, type, b, E, l);
            var (weight, bias) = (CudaNumbers.Normal(random, type, E, K), CudaNumbers.Normal(random, type, E));
            var state = CudaNumbers.Normal(random, type, b, E, K).to(ScalarType.Float32);
            var (expected, _, _, _) = Reference(u, weight, bias, null, state);
            var last = cat([state, u.to(ScalarType.Float32)], 2).narrow(2, l, K);

            var (y, next) = (CudaNumbers.Poisoned(type, b, E, l), CudaNumbers.Poisoned(ScalarType.Float32, b, E, K));
            var convolution = new CudaConvolution(gpu, type, K);
            convolution.Forward(u, weight, bias, y, state, next);
            output.Close(y, expected, CudaNumbers.Tolerance(type), $"y of {l} positions");
            CudaNumbers.SameBits(next, last, "the next state");

            var again = CudaNumbers.Poisoned(type, b, E, l);
            convolution.Forward(u, weight, bias, again, state, state); // in place
            CudaNumbers.SameBits(again, y, "y");
            CudaNumbers.SameBits(state, last, "the state in place");
        }
    }

    [SkippableFact]
    public void GradientsAreAddedOrLeftOut()
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        using var random = new Generator(5);
        var (u, gradY) = (CudaNumbers.Normal(random, ScalarType.Float32, 2, 6, 50), CudaNumbers.Normal(random, ScalarType.Float32, 2, 6, 50));
        var weight = CudaNumbers.Normal(random, ScalarType.Float32, 6, 4);
        var expected = Reference(u, weight, null, gradY, null);
        var sum = ones_like(weight);
        var convolution = new CudaConvolution(gpu, ScalarType.Float32, 4);
        convolution.Backward(u, weight, null, gradY, null, sum, null, add: true);
        output.Close(sum - 1, expected.Weight, 1e-5, "gradient of weight, added to ones");

        // gradY in two parts.
        var (part, whole, gradU) = (CudaNumbers.Normal(random, ScalarType.Float32, 2, 6, 50), zeros_like(weight), CudaNumbers.Poisoned(ScalarType.Float32, 2, 6, 50));
        convolution.Backward(u, weight, null, gradY - part, gradU, whole, null, gradYMore: part);
        output.Close(gradU, expected.U, 1e-5, "gradient of u, from two parts");
        output.Close(whole, expected.Weight, 1e-5, "gradient of weight, from two parts");
    }

    [SkippableFact]
    public void WhatDoesNotFitIsNamed()
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        Tensor Of(params long[] shape) => zeros(shape, dtype: ScalarType.Float32, device: CUDA);
        var convolution = new CudaConvolution(gpu, ScalarType.Float32, 4);
        var (u, weight, y) = (Of(2, 6, 10), Of(6, 4), Of(2, 6, 10));
        Act(() => convolution.Forward(u.cpu(), weight, null, y)).Should().Throw<ArgumentException>().WithParameterName("u").WithMessage("*cpu*cuda:0*");
        Act(() => convolution.Forward(u, weight.to(ScalarType.BFloat16), null, y)).Should().Throw<ArgumentException>().WithParameterName("weight").WithMessage("*BFloat16*Float32*");
        Act(() => convolution.Forward(u, Of(6, 3), null, y)).Should().Throw<ArgumentException>().WithParameterName("weight").WithMessage("*[6, 3]*[6, 4]*");
        Act(() => convolution.Forward(u, weight, null, Of(10, 6, 2).transpose(0, 2))).Should().Throw<ArgumentException>().WithParameterName("y").WithMessage("*strides*");
        Act(() => convolution.Backward(u, weight, null, y, null, null, null, gradYMore: Of(6, 2, 10).transpose(0, 1))).Should().Throw<ArgumentException>().WithParameterName("gradYMore").WithMessage("*strides*");
        Act(() => new CudaConvolution(gpu, ScalarType.Float32, 9)).Should().Throw<ArgumentException>().WithMessage("*9*1 to 8*");

        static Action Act(Action action) => action;
    }

    private static (Tensor Y, Tensor U, Tensor Weight, Tensor Bias) Reference(Tensor u, Tensor weight, Tensor? bias, Tensor? gradY, Tensor? state)
    {
        Tensor Leaf(Tensor t) => t.detach().cpu().to(ScalarType.Float64).clone().requires_grad_();
        var (wideU, wideWeight, wideBias) = (Leaf(u), Leaf(weight), Leaf(bias ?? zeros(weight.shape[0])));
        var k = weight.shape[1];
        var before = state is null ? zeros(u.shape[0], u.shape[1], k - 1, ScalarType.Float64) : state.cpu().to(ScalarType.Float64).narrow(2, 1, k - 1);
        var y = F.silu(F.conv1d(cat([before, wideU], 2), wideWeight.unsqueeze(1), wideBias, groups: weight.shape[0]));
        if (gradY is null) return (y, wideU, wideWeight, wideBias);
        y.backward([gradY.cpu().to(ScalarType.Float64)]);
        return (y, wideU.grad!, wideWeight.grad!, wideBias.grad!);
    }
}
