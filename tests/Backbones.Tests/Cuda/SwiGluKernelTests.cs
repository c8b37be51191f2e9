using MambaVL.Cuda;
using TorchSharp;
using Xunit.Abstractions;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

namespace MambaVL.Tests.Cuda;

public class SwiGluKernelTests(ITestOutputHelper output)
{
    private const double Epsilon = 1e-6;

    [SkippableTheory]
    [InlineData(577, 2730, 2752), InlineData(65, 512, 512), InlineData(3, 250, 256), InlineData(7, 37, 37), InlineData(1, 1, 8), InlineData(2, 8192, 8192), InlineData(5, 33, 64)]
    public void EqualsTheReference(int rows, int width, int padded)
    {
        var gpu = CudaTesting.Gpu();
        foreach (var type in new[] { ScalarType.Float32, ScalarType.BFloat16, ScalarType.Float16 })
        foreach (var norm in new[] { true, false })
        {
            using var scope = NewDisposeScope();
            using var random = new Generator((ulong)width);
            var x = CudaNumbers.Normal(random, type, rows, 2 * padded);
            var (weight, bias) = (CudaNumbers.Normal(random, type, padded), CudaNumbers.Normal(random, type, padded));
            foreach (var behind in new[] { x[.., width..padded], x[.., (padded + width)..], weight[width..], bias[width..] }) behind.fill_(float.NaN); // never read into a result

            var exact = x.to(ScalarType.Float64).cpu();
            var expected = F.silu(exact[.., ..width]) * exact[.., padded..(padded + width)];
            if (norm) expected = F.layer_norm(expected, [width], weight[..width].to(ScalarType.Float64).cpu(), bias[..width].to(ScalarType.Float64).cpu(), Epsilon);
            var y = Run();
            output.Close(y[.., ..width], expected, CudaNumbers.Tolerance(type), $"{type}, {(norm ? "normed" : "gated alone")}");
            y[.., width..].eq(0).all().item<bool>().Should().BeTrue("zeros pad the result");
            CudaNumbers.SameBits(Run(), y, "the result");

            Tensor Run() => SwiGluKernel.Run(gpu, x, width, norm ? weight : null, norm ? bias : null, Epsilon);
        }
    }

    [SkippableFact]
    public void FarFromZeroTheVarianceStaysExact()
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        using var random = new Generator(2);
        var x = cat([full([4, 640], 30f), 100 + randn([4, 640], generator: random)], 1).to(CUDA);
        var (weight, bias) = (ones(640, device: CUDA), zeros(640, device: CUDA));
        var gated = F.silu(x[.., ..640].to(ScalarType.Float64)) * x[.., 640..].to(ScalarType.Float64);
        output.Close(SwiGluKernel.Run(gpu, x, 640, weight, bias, Epsilon), F.layer_norm(gated, [640], eps: Epsilon), 1e-4, "mean 100 times the deviation"); // of which float32 holds 7 digits
    }

    [SkippableFact]
    public void WrongArgumentsAreNamedBeforeAnyLaunch()
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var (x, weight) = (zeros(3, 32, device: CUDA), zeros(16, device: CUDA));
        Refused(() => SwiGluKernel.Run(gpu, x.cpu(), 16), "x", "*cpu*");
        Refused(() => SwiGluKernel.Run(gpu, x, 17), "x", "*at least 17*");
        Refused(() => SwiGluKernel.Run(gpu, x[.., ..31], 15), "x", "*31*");
        Refused(() => SwiGluKernel.Run(gpu, x.transpose(0, 1), 1), "x", "*strided*");
        Refused(() => SwiGluKernel.Run(gpu, x, 16, weight, null), "bias", "*both*");
        Refused(() => SwiGluKernel.Run(gpu, x, 16, weight[..15], weight), "weight", "*[15]*[16]*");
        Refused(() => SwiGluKernel.Run(gpu, x, 16, weight, weight.to(ScalarType.BFloat16)), "bias", "*BFloat16*");
        Refused(() => SwiGluKernel.Run(gpu, x.to(ScalarType.Float64), 16), "type", "*Float64*");
        Refused(() => SwiGluKernel.Run(gpu, zeros(1, 400_000, device: CUDA), 200_000), "x", "*registers*");

        static void Refused(Action call, string argument, string message) => call.Should().Throw<ArgumentException>().WithParameterName(argument).WithMessage(message);
    }
}
