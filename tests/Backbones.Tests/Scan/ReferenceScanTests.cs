using MambaVL.Scan;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Scan;

public class ReferenceScanTests
{
    [Theory]
    [InlineData(true, "")]
    [InlineData(false, "")]
    [InlineData(true, "Dzbh")]
    public void GradientsEqualFiniteDifferences(bool softplus, string without)
    {
        using var scope = NewDisposeScope();
        using var random = new Generator(7);
        var x = ScanTesting.Arguments(2, 3, 6, 4, softplus: softplus, without: without).Leaves(ScalarType.Float64);
        var toOutput = randn([2, 3, 6], dtype: ScalarType.Float64, generator: random);
        var toState = randn([2, 3, 4], dtype: ScalarType.Float64, generator: random);
        double Loss()
        {
            using var inner = NewDisposeScope();
            using var _ = no_grad();
            var (output, state) = ReferenceScan.Run(x);
            return ((output * toOutput).sum() + (state * toState).sum()).item<double>();
        }

        var (y, last) = ReferenceScan.Run(x);
        autograd.backward([y, last], [toOutput, toState]);
        const double h = 1e-5;
        for (var i = 0; i < ScanTesting.Names.Length; i++)
        {
            if (x.Tensors[i] is not { } t) continue;
            using var _ = no_grad();
            var flat = t.detach().reshape(-1); // a view of the leaf's memory
            var numeric = zeros_like(flat);
            for (var k = 0L; k < flat.shape[0]; k++)
            {
                var value = flat[k].item<double>();
                flat[k] = value + h;
                var above = Loss();
                flat[k] = value - h;
                var below = Loss();
                flat[k] = value;
                numeric[k] = (above - below) / (2 * h);
            }
            ScanTesting.Close(t.grad!.reshape(-1), numeric, 1e-7, $"gradient of {ScanTesting.Names[i]}");
        }
    }

    [Fact]
    public void EqualsTheRecurrenceWrittenOut()
    {
        using var scope = NewDisposeScope();
        var x = ScanTesting.Arguments(1, 1, 5, 2).With(t => t.to(ScalarType.Float64));
        double At(Tensor t, params long[] i) => i.Aggregate(t, (part, k) => part[k]).item<double>();
        double[] h = [At(x.initialState!, 0, 0, 0), At(x.initialState!, 0, 0, 1)];
        var (output, state) = ReferenceScan.Run(x);
        for (var t = 0; t < 5; t++)
        {
            var step = Math.Log(1 + Math.Exp(At(x.delta, 0, 0, t) + At(x.deltaBias!, 0)));
            for (var n = 0; n < 2; n++)
                h[n] = Math.Exp(step * At(x.A, 0, n)) * h[n] + step * At(x.B, 0, n, t) * At(x.u, 0, 0, t);
            var y = h[0] * At(x.C, 0, 0, t) + h[1] * At(x.C, 0, 1, t) + At(x.D!, 0) * At(x.u, 0, 0, t);
            var z = At(x.z!, 0, 0, t);
            At(output, 0, 0, t).Should().BeApproximately(y * z / (1 + Math.Exp(-z)), 1e-12);
        }
        At(state, 0, 0, 1).Should().BeApproximately(h[1], 1e-12);
    }

    [Fact]
    public void TypesFollowTheInput()
    {
        using var scope = NewDisposeScope();
        var x = ScanTesting.Arguments(1, 3, 4, 2);
        ReferenceScan.Run(x).output.dtype.Should().Be(ScalarType.Float32);
        var narrow = ReferenceScan.Run((x with { u = x.u.to(ScalarType.BFloat16) }).Checked());
        narrow.output.dtype.Should().Be(ScalarType.BFloat16);
        narrow.lastState.dtype.Should().Be(ScalarType.Float32);
        var wide = ReferenceScan.Run(x.With(t => t.to(ScalarType.Float64)).Checked());
        wide.output.dtype.Should().Be(ScalarType.Float64);
        wide.lastState.dtype.Should().Be(ScalarType.Float64);
    }
}
