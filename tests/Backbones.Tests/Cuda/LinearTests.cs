using MambaVL.Models;
using TorchSharp;
using Xunit.Abstractions;
using static TorchSharp.torch;

namespace MambaVL.Tests.Cuda;

public class LinearTests(ITestOutputHelper output)
{
    [SkippableFact]
    public void AProductOfAnyNumberOfAxesIsThatOfTheRows()
    {
        CudaTesting.Gpu();
        foreach (var shape in new long[][] { [24], [5, 24], [2, 5, 24], [2, 3, 5, 24], [0, 5, 24] })
        {
            using var scope = NewDisposeScope();
            var (x, weight, bias) = (randn(shape), randn(17, 24), randn(17));
            var expected = x.matmul(weight.t()) + bias;
            var actual = Linear.Product(x.to(CUDA), weight.to(CUDA), bias.to(CUDA));
            actual.shape.Should().Equal(expected.shape);
            if (x.numel() > 0) output.Close(actual, expected, 1e-4, $"[{string.Join(", ", shape)}]");
        }
    }

    [SkippableFact]
    public void GradientsGoThroughIt()
    {
        CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var near = new[] { randn(2, 5, 24), randn(17, 24), randn(17) };
        var far = near.Select(t => t.to(CUDA)).ToArray();
        foreach (var t in near.Concat(far)) t.requires_grad_();
        Linear.Product(near[0], near[1], near[2]).square().sum().backward();
        Linear.Product(far[0], far[1], far[2]).square().sum().backward();
        for (var i = 0; i < near.Length; i++) output.Close(far[i].grad!, near[i].grad!, 1e-4, $"gradient {i}");
    }
}
