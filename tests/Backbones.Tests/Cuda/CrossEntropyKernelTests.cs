using MambaVL.Cuda;
using MambaVL.Models;
using TorchSharp;
using Xunit.Abstractions;
using static TorchSharp.torch;

namespace MambaVL.Tests.Cuda;

public class CrossEntropyKernelTests(ITestOutputHelper output)
{
    [SkippableTheory]
    [InlineData(1, 1), InlineData(3, 7), InlineData(5, 37), InlineData(16, 2048), InlineData(9, 8193), InlineData(64, 50280), InlineData(7, 50277)]
    public void EqualsTheFormula(int rows, int width)
    {
        var gpu = CudaTesting.Gpu();
        foreach (var type in new[] { ScalarType.Float32, ScalarType.BFloat16, ScalarType.Float16 })
        foreach (var isWeighted in new[] { true, false })
        {
            using var scope = NewDisposeScope();
            using var random = new Generator((ulong)(rows * width));
            var logits = CudaNumbers.Normal(random, ScalarType.Float32, rows, width).mul(4).to(type);
            var targets = randint(0, width, [rows], dtype: ScalarType.Int64, generator: random).to(CUDA);
            var weights = isWeighted ? CudaNumbers.Normal(random, ScalarType.Float32, rows).abs() : null;
            var grad = tensor(1.5f, device: CUDA);
            var exact = logits.cpu().to(ScalarType.Float64).requires_grad_();
            var losses = -(exact.log_softmax(1).gather(1, targets.cpu().unsqueeze(1)).squeeze(1));
            var expected = isWeighted ? losses.dot(weights!.cpu().to(ScalarType.Float64)) : losses.mean();
            (expected * 1.5).backward();

            var (loss, lse) = CrossEntropyKernel.Forward(gpu, logits, targets, weights);
            output.Close(loss, expected, 1e-5, $"loss, {type}{(isWeighted ? ", weighted" : "")}"); // float32 whatever the logits
            output.Close(lse, exact.logsumexp(1), 1e-5, "the logarithms");
            var gradient = CudaNumbers.Poisoned(type, rows, width);
            CrossEntropyKernel.Backward(gpu, logits, targets, weights, lse, grad, gradient);
            output.Close(gradient, exact.grad!, CudaNumbers.Tolerance(type), "gradient");

            var (again, lseAgain) = CrossEntropyKernel.Forward(gpu, logits, targets, weights);
            CudaNumbers.SameBits(again, loss, "the loss");
            CudaNumbers.SameBits(lseAgain, lse, "the logarithms");
            CrossEntropyKernel.Backward(gpu, logits, targets, weights, lse, grad, logits);
            CudaNumbers.SameBits(logits, gradient, "the gradient in the logits' place");
        }
    }

    [SkippableFact]
    public void GreatAndInfiniteLogitsGiveWhatTheFormulaGives()
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var logits = tensor(new[] { 1e20f, -1e20f, 0, float.NegativeInfinity, 3, 4, -60_000, -60_001, -60_002 }, [3, 3], device: CUDA);
        var (loss, lse) = CrossEntropyKernel.Forward(gpu, logits, tensor(new long[] { 0, 2, 0 }, device: CUDA), ones(3, device: CUDA));
        output.Close(lse, tensor(new[] { 1e20, 4 + Math.Log(1 + Math.Exp(-1)), -60_000 + Math.Log(1 + Math.Exp(-1) + Math.Exp(-2)) }), 1e-5, "the logarithms");
        loss.item<float>().Should().BeApproximately((float)(Math.Log(1 + Math.Exp(-1)) + Math.Log(1 + Math.Exp(-1) + Math.Exp(-2))), 1e-2f);
    }

    [SkippableTheory]
    [InlineData(-1), InlineData(-100), InlineData(9)]
    public void ATargetThatIsNoColumnMakesNoNumber(long target)
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var (logits, targets) = (zeros(2, 9, device: CUDA), tensor(new[] { 1, target }, device: CUDA));
        var (loss, lse) = CrossEntropyKernel.Forward(gpu, logits, targets, null);
        float.IsNaN(loss.item<float>()).Should().BeTrue();
        CrossEntropyKernel.Backward(gpu, logits, targets, null, lse, tensor(1f, device: CUDA), logits);
        logits.isnan().sum(1).cpu().data<long>().ToArray().Should().Equal(0, 9);
    }

    [SkippableTheory]
    [InlineData(true), InlineData(false)]
    public void AutogradGivesTheGradientsOfTensorOperations(bool overwrites)
    {
        CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        using var random = new Generator(5);
        var (x, head) = (CudaNumbers.Normal(random, ScalarType.Float32, 33, 16), CudaNumbers.Normal(random, ScalarType.Float32, 77, 16));
        var targets = randint(0, 77, [33], dtype: ScalarType.Int64, generator: random).to(CUDA);
        var weights = CudaNumbers.Normal(random, ScalarType.Float32, 33);
        var (w, expected) = (head.clone().requires_grad_(), head.clone().requires_grad_());
        nn.functional.cross_entropy(x.matmul(expected.t()), targets, reduction: nn.Reduction.None).dot(weights).backward();

        var loss = TokenLoss.Of(x.matmul(w.t()), targets, weights, overwrites);
        loss.backward(retain_graph: true);
        output.Close(w.grad!, expected.grad!, 1e-5, "the weights' gradient");
        var again = FluentActions.Invoking(() => loss.backward());
        if (overwrites) again.Should().Throw<Exception>("the logits are gone");
        else
        {
            again.Should().NotThrow();
            output.Close(w.grad!, expected.grad! * 2, 1e-5, "twice the gradient");
        }
        using (no_grad()) output.Close(TokenLoss.Of(x.matmul(w.t()), targets, weights), loss, 1e-6, "without gradients");
    }

    [SkippableFact]
    public void WrongArgumentsAreNamedBeforeAnyLaunch()
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var (logits, targets, floats) = (zeros(3, 8, device: CUDA), zeros(3, ScalarType.Int64, CUDA), zeros(3, device: CUDA));
        Refused(() => CrossEntropyKernel.Forward(gpu, logits.cpu(), targets, null), "logits", "*cpu*");
        Refused(() => CrossEntropyKernel.Forward(gpu, logits[0], targets, null), "logits", "*[8]*2 axes*");
        Refused(() => CrossEntropyKernel.Forward(gpu, logits.t(), targets, null), "logits", "*strides*");
        Refused(() => CrossEntropyKernel.Forward(gpu, logits.to(ScalarType.Float64), targets, null), "type", "*Float64*");
        Refused(() => CrossEntropyKernel.Forward(gpu, logits, targets[..2], null), "targets", "*[2]*[3]*");
        Refused(() => CrossEntropyKernel.Forward(gpu, logits, targets.to(ScalarType.Int32), null), "targets", "*Int32*Int64*");
        Refused(() => CrossEntropyKernel.Forward(gpu, logits, targets, floats.to(ScalarType.BFloat16)), "weights", "*BFloat16*Float32*");
        Refused(() => CrossEntropyKernel.Backward(gpu, logits, targets, null, floats[..2], floats[0], logits), "lse", "*[2]*[3]*");
        Refused(() => CrossEntropyKernel.Backward(gpu, logits, targets, null, floats, floats, logits), "grad", "*[3]*[]*");
        Refused(() => CrossEntropyKernel.Backward(gpu, logits, targets, null, floats, floats[0], logits[.., ..7]), "gradLogits", "*[3, 7]*[3, 8]*");

        static void Refused(Action call, string argument, string message) => call.Should().Throw<ArgumentException>().WithParameterName(argument).WithMessage(message);
    }
}
