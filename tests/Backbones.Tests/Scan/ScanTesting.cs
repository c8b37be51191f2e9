using System.Globalization;
using MambaVL.Scan;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Scan;

internal static class ScanTesting
{
    public static ScanBackend Backend(string name) => ScanBackend.Choose(name, DeviceType.CPU, ScalarType.Float32);

    /// <summary>Greatest difference, relative to the greatest magnitude of what is expected.</summary>
    public static double Difference(Tensor actual, Tensor expected)
    {
        actual.shape.Should().Equal(expected.shape);
        if (expected.numel() == 0) return 0;
        using var scope = NewDisposeScope();
        var wide = expected.detach().to(ScalarType.Float64);
        var scale = wide.abs().max().item<double>();
        var greatest = (actual.detach().to(ScalarType.Float64) - wide).abs().max().item<double>();
        return greatest == 0 ? 0 : greatest / Math.Max(scale, 1e-30);
    }

    public static void Close(Tensor actual, Tensor expected, double tolerance, string what)
    {
        var difference = Difference(actual, expected);
        (difference <= tolerance).Should().BeTrue(string.Create(CultureInfo.InvariantCulture,
            $"{what} may differ by {tolerance:g2} of its greatest value, and differs by {difference:g3}"));
    }
}
