using System.Globalization;
using TorchSharp;
using Xunit.Abstractions;
using static TorchSharp.torch;

namespace MambaVL.Tests.Cuda;

/// <summary>Numbers for the tests of kernels, and comparisons of them.</summary>
internal static class CudaNumbers
{
    /// <summary>The error in norm that a result of this type may have.</summary>
    public static double Tolerance(ScalarType type) => type == ScalarType.Float32 ? 1e-5 : 1e-2;

    /// <summary>Memory that a kernel has to write: NaN everywhere.</summary>
    public static Tensor Poisoned(ScalarType type, params long[] shape) => full(shape, float.NaN, dtype: type, device: CUDA);

    /// <summary>Normal numbers on the GPU that the type holds exactly.</summary>
    public static Tensor Normal(Generator random, ScalarType type, params long[] shape) => randn(shape, dtype: ScalarType.Float32, generator: random).to(type).to(CUDA);

    /// <summary>||actual - reference|| is at most the tolerance times ||reference||; both figures are printed.</summary>
    public static void Close(this ITestOutputHelper output, Tensor actual, Tensor reference, double tolerance, string what)
    {
        using var scope = NewDisposeScope();
        actual.shape.Should().Equal(reference.shape, what);
        var wide = reference.detach().to(ScalarType.Float64).cpu();
        var norm = wide.norm().item<double>();
        var error = (actual.detach().to(ScalarType.Float64).cpu() - wide).norm().item<double>() / (norm > 0 ? norm : 1);
        var line = string.Create(CultureInfo.InvariantCulture, $"{what}: error {error:e2}, tolerance {tolerance:e0}");
        output.WriteLine(line);
        (error <= tolerance).Should().BeTrue(line); // NaN fails too
    }

    /// <summary>Equal to the last bit.</summary>
    public static void SameBits(Tensor actual, Tensor expected, string what)
    {
        using var scope = NewDisposeScope();
        actual.detach().cpu().contiguous().bytes.SequenceEqual(expected.detach().cpu().contiguous().bytes).Should().BeTrue($"{what} should have the same bits in two runs");
    }
}
