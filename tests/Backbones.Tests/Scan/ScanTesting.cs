using System.Globalization;
using MambaVL.Scan;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Scan;

internal static class ScanTesting
{
    public delegate (Tensor output, Tensor lastState) Scan(ScanArguments x);

    public static readonly string[] Names = ["u", "delta", "A", "B", "C", "D", "z", "deltaBias", "initialState"];

    /// <summary>The widths of vectors that this machine runs.</summary>
    public static int[] Widths => [.. new[] { 512, 256, 128 }.Where(w => w <= CpuScan.WidestLanes)];

    /// <summary>Normal numbers in every tensor; A negative, the step sizes mostly below 1 as in a trained model.</summary>
    public static ScanArguments Arguments(int b, int d, int l, int n, int seed = 1, bool softplus = true, string without = "")
    {
        using var random = new Generator((ulong)seed);
        Tensor Normal(params long[] shape) => randn(shape, dtype: ScalarType.Float32, generator: random);
        var x = new ScanArguments(Normal(b, d, l), Normal(b, d, l), -exp(Normal(d, n)), Normal(b, n, l), Normal(b, n, l),
            Normal(d), Normal(b, d, l), Normal(d) - 1, softplus, Normal(b, d, n));
        if (!softplus) x = x with { delta = x.delta.abs() * 0.3, deltaBias = x.deltaBias!.abs() * 0.1 };
        return (x with
        {
            D = without.Contains('D') ? null : x.D,
            z = without.Contains('z') ? null : x.z,
            deltaBias = without.Contains('b') ? null : x.deltaBias,
            initialState = without.Contains('h') ? null : x.initialState,
        }).Checked();
    }

    public static ScanArguments With(this ScanArguments x, Func<Tensor, Tensor> f) => new(
        f(x.u), f(x.delta), f(x.A), f(x.B), f(x.C), x.D is null ? null : f(x.D), x.z is null ? null : f(x.z),
        x.deltaBias is null ? null : f(x.deltaBias), x.deltaSoftplus, x.initialState is null ? null : f(x.initialState));

    /// <summary>The same numbers as leaves of a new graph.</summary>
    public static ScanArguments Leaves(this ScanArguments x, ScalarType? type = null) =>
        x.With(t => t.detach().to(type ?? t.dtype).clone().requires_grad_());

    /// <summary>Output, last state, and the gradients of all arguments for these gradients of the two.</summary>
    public static (Tensor output, Tensor lastState, Tensor?[] gradients) Run(
        Scan scan, ScanArguments x, Tensor? gradOutput, Tensor? gradLastState)
    {
        var leaves = x.Leaves();
        var (output, lastState) = scan(leaves);
        var pairs = new[] { (output, gradOutput), (lastState, gradLastState) }.Where(p => p.Item2 is not null).ToArray();
        autograd.backward([.. pairs.Select(p => p.Item1)], [.. pairs.Select(p => p.Item2!.to(p.Item1.dtype))]);
        return (output.detach(), lastState.detach(), [.. leaves.Tensors.Select(t => t?.grad)]);
    }

    public static void EqualsTheReference(Scan scan, ScanArguments x, string what, bool toOutput = true, bool toState = true) =>
        EqualTheReference(x, [(what, scan)], toOutput, toState);

    /// <summary>Forward and gradients of each against the reference in float64.</summary>
    public static void EqualTheReference(ScanArguments x, (string what, Scan scan)[] scans, bool toOutput = true, bool toState = true)
    {
        using var scope = NewDisposeScope();
        using var random = new Generator(99);
        var gradOutput = toOutput ? randn(x.u.shape, dtype: ScalarType.Float32, generator: random) : null;
        var gradState = toState ? randn([x.u.shape[0], x.u.shape[1], x.A.shape[1]], dtype: ScalarType.Float32, generator: random) : null;
        var expected = Run(ReferenceScan.Run, x.With(t => t.to(ScalarType.Float64)), gradOutput, gradState);
        foreach (var (what, scan) in scans)
        {
            var actual = Run(scan, x, gradOutput, gradState);
            Close(actual.output, expected.output, 1e-5, $"{what}: output");
            Close(actual.lastState, expected.lastState, 1e-5, $"{what}: lastState");
            for (var i = 0; i < Names.Length; i++)
            {
                if (expected.gradients[i] is not { } gradient) continue;
                actual.gradients[i].Should().NotBeNull($"{what}: {Names[i]} takes part");
                Close(actual.gradients[i]!, gradient, 1e-4, $"{what}: gradient of {Names[i]}");
            }
        }
    }

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

    /// <summary>Equal to the last bit; NaN equals NaN.</summary>
    public static void SameBits(Tensor actual, Tensor expected, string what)
    {
        actual.dtype.Should().Be(expected.dtype);
        actual.shape.Should().Equal(expected.shape);
        actual.contiguous().bytes.SequenceEqual(expected.contiguous().bytes).Should().BeTrue($"{what} should have the same bits");
    }
}
