using MambaVL.Checkpoints;
using MambaVL.Cuda;
using MambaVL.Models;
using TorchSharp;
using TorchSharp.Modules;
using Xunit.Abstractions;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

namespace MambaVL.Tests.Cuda;

public class AddNormsKernelTests(ITestOutputHelper output)
{
    private const double Epsilon = 1e-6;

    [SkippableTheory]
    [InlineData(577, 1024), InlineData(65, 2560), InlineData(3, 57), InlineData(1, 1), InlineData(7, 192), InlineData(2, 8192), InlineData(5, 4100)]
    public void EqualsTheReference(int rows, int width)
    {
        var gpu = CudaTesting.Gpu();
        foreach (var type in new[] { ScalarType.Float32, ScalarType.BFloat16, ScalarType.Float16 })
        foreach (var (two, both) in new[] { (false, false), (true, true), (true, false), (false, true) })
        {
            if (width == 1 && type != ScalarType.Float32) continue; // a norm of one number is its bias
            using var scope = NewDisposeScope();
            using var random = new Generator((ulong)width);
            var x = CudaNumbers.Normal(random, type, 1, rows, width) + 3; // far from zero, so that a variance from a difference of sums would show
            var (first, second) = (CudaNumbers.Normal(random, type, 1, rows, width), two ? CudaNumbers.Normal(random, type, 1, rows, width) : null);
            using var norm = Layer(random, type, width);
            using var other = both ? Layer(random, type, width) : null;
            var what = $"{type}, {(two ? "two addends" : "one addend")}, {(both ? "two norms" : "one norm")}";

            var exact = Wide(x) + Wide(first);
            if (second is not null) exact = exact + Wide(second);
            var before = x.clone();
            var (sum, normed, otherNormed) = AddNormsKernel.Run(gpu, x, first, second, norm, other);
            output.Close(sum, exact, CudaNumbers.Tolerance(type), $"{what}: sum");
            output.Close(normed, Normed(norm), CudaNumbers.Tolerance(type), $"{what}: normed");
            (otherNormed is null).Should().Be(!both);
            if (otherNormed is not null) output.Close(otherNormed, Normed(other!), CudaNumbers.Tolerance(type), $"{what}: the other norm");
            CudaNumbers.SameBits(x, before, "what was added to");
            var (sum2, normed2, other2) = AddNormsKernel.Run(gpu, x, first, second, norm, other);
            CudaNumbers.SameBits(sum2, sum, "the sum");
            CudaNumbers.SameBits(normed2, normed, "the norm");
            if (otherNormed is not null) CudaNumbers.SameBits(other2!, otherNormed, "the other norm");
            if (two || both) continue;

            var (stream, to) = (x.clone(), empty_like(x));
            AddNormsKernel.AddTo(gpu, stream, first, norm, to);
            CudaNumbers.SameBits(stream, sum, "the sum in place");
            CudaNumbers.SameBits(to, normed, "its norm");
            AddNormsKernel.Normalise(gpu, stream, norm);
            output.Close(stream, F.layer_norm(Wide(sum), [width], Wide(norm.weight), Wide(norm.bias!), Epsilon), CudaNumbers.Tolerance(type), $"{what}: normalised in place");

            Tensor Normed(Norm n) => F.layer_norm(exact, [width], Wide(n.weight), Wide(n.bias!), Epsilon);
        }

        static Tensor Wide(Tensor t) => t.to(ScalarType.Float64).cpu();
    }

    [SkippableFact]
    public void WrongArgumentsAreNamedBeforeAnyLaunch()
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        using var random = new Generator(1);
        var x = zeros(3, 32, device: CUDA);
        using Norm norm = Layer(random, ScalarType.Float32, 32), narrow = Layer(random, ScalarType.Float32, 31), half = Layer(random, ScalarType.BFloat16, 32);
        using var rms = new Norm(new OnGpu(random, ScalarType.Float32).Root, 32, Epsilon, NormKind.RmsNorm);
        using var finer = new Norm(new OnGpu(random, ScalarType.Float32).Root, 32, 1e-9, NormKind.LayerNorm);
        Refused(() => AddNormsKernel.Run(gpu, x.cpu(), x, null, norm), "x", "*cpu*");
        Refused(() => AddNormsKernel.Run(gpu, x, x[..2], null, norm), "first", "*[2, 32]*[3, 32]*");
        Refused(() => AddNormsKernel.Run(gpu, x, x, x.to(ScalarType.BFloat16), norm), "second", "*BFloat16*");
        Refused(() => AddNormsKernel.Run(gpu, x, x, null, narrow), "norm", "*[31]*[32]*");
        Refused(() => AddNormsKernel.Run(gpu, x, x, null, norm, half), "other", "*BFloat16*");
        Refused(() => AddNormsKernel.Run(gpu, x, x, null, rms), "norm", "*RMSNorm*");
        Refused(() => AddNormsKernel.Run(gpu, x, x, null, norm, finer), "other", "*1E-09*");
        Refused(() => AddNormsKernel.AddTo(gpu, x, x, norm, zeros(32, 3, device: CUDA)), "normed", "*[32, 3]*[3, 32]*");
        Refused(() => AddNormsKernel.Normalise(gpu, zeros(32, 3, device: CUDA).t(), norm), "x", "*strided*");

        static void Refused(Action call, string argument, string message) => call.Should().Throw<ArgumentException>().WithParameterName(argument).WithMessage(message);
    }

    private static Norm Layer(Generator random, ScalarType type, int width) => new(new OnGpu(random, type).Root, width, Epsilon, NormKind.LayerNorm);

    private sealed class OnGpu(Generator random, ScalarType type) : ParameterSource
    {
        public override Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32)
            => new(CudaNumbers.Normal(random, type, shape).DetachFromDisposeScope(), requires_grad: false);
    }
}
