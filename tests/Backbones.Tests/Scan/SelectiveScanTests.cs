using MambaVL.Scan;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Scan;

public class SelectiveScanTests
{
    private static (Tensor output, Tensor lastState) Run(ScanArguments x) =>
        SelectiveScan.Run(x.u, x.delta, x.A, x.B, x.C, x.D, x.z, x.deltaBias, x.deltaSoftplus, x.initialState);

    private static void Fails(Func<ScanArguments, ScanArguments> change, string parameter, string message)
    {
        using var scope = NewDisposeScope();
        FluentActions.Invoking(() => Run(change(ScanTesting.Arguments(2, 5, 7, 16))))
            .Should().Throw<ArgumentException>().WithParameterName(parameter).WithMessage(message + "*");
    }

    [Fact]
    public void RunsTheChosenBackend()
    {
        using var scope = NewDisposeScope();
        var x = ScanTesting.Arguments(2, 5, 7, 16);
        ScanTesting.SameBits(Run(x).output, ScanBackend.For(DeviceType.CPU, ScalarType.Float32).Run(x).output, "output");
        ScanTesting.EqualsTheReference(Run, x, "SelectiveScan.Run");
    }

    [Fact]
    public void Float64RunsThroughTheReference()
    {
        using var scope = NewDisposeScope();
        var x = ScanTesting.Arguments(2, 5, 7, 16).With(t => t.to(ScalarType.Float64));
        ScanTesting.SameBits(Run(x).output, ReferenceScan.Run(x).output, "output");
    }

    [Fact]
    public void TheCallerOwnsBothResultsAndKeepsItsTensors()
    {
        var x = ScanTesting.Arguments(2, 5, 7, 16);
        Tensor output, state;
        using (var scope = NewDisposeScope())
        {
            (output, state) = Run(x);
            scope.DisposablesCount.Should().Be(2);
            scope.MoveToOuter(output, state);
        }
        output.IsInvalid.Should().BeFalse();
        x.Tensors.Should().AllSatisfy(t => t!.IsInvalid.Should().BeFalse());
        foreach (var t in x.Tensors) t!.Dispose();
        output.Dispose();
        state.Dispose();
    }

    [Fact]
    public void NullIsAnError()
    {
        Fails(x => x with { u = null! }, "u", "Value cannot be null");
        Fails(x => x with { delta = null! }, "delta", "Value cannot be null");
        Fails(x => x with { A = null! }, "A", "Value cannot be null");
        Fails(x => x with { B = null! }, "B", "Value cannot be null");
        Fails(x => x with { C = null! }, "C", "Value cannot be null");
    }

    [Fact]
    public void AnotherRankIsAnError()
    {
        Fails(x => x with { u = zeros(5, 7) }, "u", "u has shape [5, 7]; expected 3 axes (b, d, l).");
        Fails(x => x with { A = zeros(5) }, "A", "A has shape [5]; expected 2 axes (d, n).");
        Fails(x => x with { B = zeros(2, 16) }, "B", "B has shape [2, 16]; expected 3 axes (b, n, l).");
        Fails(x => x with { D = zeros(5, 1) }, "D", "D has shape [5, 1]; expected 1 axes (d).");
        Fails(x => x with { initialState = zeros(5, 16) }, "initialState", "initialState has shape [5, 16]; expected 3 axes (b, d, n).");
    }

    [Fact]
    public void AnotherShapeIsAnError()
    {
        const string From = "from u [2, 5, 7] (b, d, l) and A [5, 16] (d, n).";
        Fails(x => x with { delta = zeros(2, 5, 8) }, "delta", $"delta has shape [2, 5, 8]; expected [2, 5, 7] (b, d, l), {From}");
        Fails(x => x with { A = zeros(6, 16) }, "A", "A has shape [6, 16]; expected [5, 16] (d, n), from u [2, 5, 7] (b, d, l) and A [6, 16] (d, n).");
        Fails(x => x with { B = zeros(2, 7, 16) }, "B", $"B has shape [2, 7, 16]; expected [2, 16, 7] (b, n, l), {From}");
        Fails(x => x with { C = zeros(1, 16, 7) }, "C", $"C has shape [1, 16, 7]; expected [2, 16, 7] (b, n, l), {From}");
        Fails(x => x with { D = zeros(6) }, "D", $"D has shape [6]; expected [5] (d), {From}");
        Fails(x => x with { z = zeros(2, 5, 6) }, "z", $"z has shape [2, 5, 6]; expected [2, 5, 7] (b, d, l), {From}");
        Fails(x => x with { deltaBias = zeros(4) }, "deltaBias", $"deltaBias has shape [4]; expected [5] (d), {From}");
        Fails(x => x with { initialState = zeros(2, 5, 15) }, "initialState", $"initialState has shape [2, 5, 15]; expected [2, 5, 16] (b, d, n), {From}");
    }

    [Theory]
    [InlineData(0)]
    [InlineData(257)]
    public void TooFewOrTooManyStatesAreAnError(int n) =>
        Fails(x => x with { A = zeros(5, n) }, "A", $"A has shape [5, {n}], so d_state {n}; expected 1 to 256.");

    [Fact]
    public void AnotherTypeIsAnError()
    {
        Fails(x => x with { u = x.u.to(ScalarType.Float16) }, "u", "u is Float16; expected Float32, BFloat16 or Float64 (Float16 on a GPU only).");
        Fails(x => x with { B = x.B.to(ScalarType.Float16) }, "B", "B is Float16; expected Float32 or BFloat16 where u is Float32 (Float16 on a GPU only).");
        Fails(x => x with { delta = x.delta.to(ScalarType.Int64) }, "delta", "delta is Int64; expected Float32 or BFloat16 where u is Float32.");
        Fails(x => x with { A = x.A.to(ScalarType.BFloat16) }, "A", "A is BFloat16; expected Float32 where u is Float32.");
        Fails(x => x with { initialState = x.initialState!.to(ScalarType.BFloat16) }, "initialState", "initialState is BFloat16; expected Float32 where u is Float32.");
        Fails(x => x with { u = x.u.to(ScalarType.Float64) }, "delta", "delta is Float32; expected Float64 where u is Float64.");
    }

    [Fact]
    public void AnotherDeviceIsAnError() =>
        Fails(x => x with { B = x.B.to(META) }, "B", "B is on meta; expected cpu, where u is.");
}
