using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

public class BackwardErrorsTests
{
    [Fact]
    public void TheReasonComesOutInsteadOfAutogradsComplaint()
    {
        using var scope = NewDisposeScope();
        var x = ones(3).requires_grad_();
        FluentActions.Invoking(() => BackwardErrors.Backward(Failing.Record(x).sum())).Should().Throw<DivideByZeroException>();
        // Another error is itself, even after that one.
        FluentActions.Invoking(() => BackwardErrors.Backward(x)).Should().Throw<Exception>().Which.Should().NotBeOfType<DivideByZeroException>();
        BackwardErrors.Backward((x * 2).sum());
        x.grad!.sum().item<float>().Should().Be(6);
    }

    // As the backward passes of this library do it.
    private sealed class Failing : autograd.MultiTensorFunction<Failing>
    {
        public override string Name => nameof(Failing);

        public static Tensor Record(Tensor x) => apply(x)[0];

        public override List<Tensor> forward(autograd.AutogradContext ctx, params object[] vars) => [((Tensor)vars[0]).clone()];

        public override List<Tensor> backward(autograd.AutogradContext ctx, List<Tensor> grad_outputs)
        {
            BackwardErrors.Keep(new DivideByZeroException());
            return [zeros(0)];
        }
    }
}
