using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

/// <summary>The loss as tensor operations; CrossEntropyKernelTests has that of the kernel.</summary>
public class TokenLossTests
{
    [Fact]
    public void WithoutWeightsItIsTheMeanAndWithThemTheirSum()
    {
        using var scope = NewDisposeScope();
        var logits = tensor(new[] { 0f, 1, 2, 3, 1, 0 }, [2, 3]).requires_grad_();
        var targets = tensor(new long[] { 2, 1 });
        double[] losses = [Loss(2, 0, 1, 2), Loss(1, 3, 1, 0)];
        TokenLoss.Of(logits, targets).item<float>().Should().BeApproximately((float)losses.Average(), 1e-6f);
        var weighted = TokenLoss.Of(logits, targets, tensor(new[] { 2f, 0.5f }), overwrites: true);
        weighted.item<float>().Should().BeApproximately((float)(2 * losses[0] + 0.5 * losses[1]), 1e-6f);
        weighted.backward();
        logits.grad!.sum(1).abs().max().item<float>().Should().BeLessThan(1e-6f, "probabilities add up to one");
        logits.cpu().data<float>().ToArray().Should().Equal([0, 1, 2, 3, 1, 0], "tensor operations overwrite nothing");
    }

    [Fact]
    public void LogitsOf16BitsAreAddedUpInFloat32()
    {
        using var scope = NewDisposeScope();
        var loss = TokenLoss.Of(zeros(1, 3000, dtype: ScalarType.BFloat16), zeros(1, dtype: ScalarType.Int64));
        loss.dtype.Should().Be(ScalarType.Float32);
        loss.item<float>().Should().BeApproximately(MathF.Log(3000), 1e-5f);
    }

    private static double Loss(int target, params double[] logits) => Math.Log(logits.Sum(Math.Exp)) - logits[target];
}
