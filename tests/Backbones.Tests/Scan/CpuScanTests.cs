using CsCheck;
using MambaVL.Scan;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Scan;

public class CpuScanTests
{
    [Theory]
    [InlineData(1, 1, 1, 1)]
    [InlineData(2, 5, 1, 16)]
    [InlineData(3, 24, 7, 1)]
    [InlineData(1, 16, 33, 3)]
    [InlineData(2, 17, 64, 16)]
    [InlineData(1, 130, 31, 17)]
    [InlineData(1, 16, 32, 64)]
    [InlineData(2, 9, 20, 256)]
    [InlineData(1, 40, 640, 16)]
    [InlineData(1, 3, 1100, 16)]
    public void EqualsTheFloat64Reference(int b, int d, int l, int n)
    {
        ScanTesting.EqualTheReference(ScanTesting.Arguments(b, d, l, n),
            [.. ScanTesting.Widths.Select(bits => ($"{bits} bits", new ScanTesting.Scan(x => CpuScan.Run(x, bits))))]);
    }

    [Fact]
    public void EqualsTheFloat64ReferenceAtAnyShape() =>
        Gen.Select(Gen.Int[1, 3], Gen.Int[1, 70], Gen.Int[1, 70], Gen.Int[1, 40], Gen.Int[0, 1000], Gen.Bool).Sample((b, d, l, n, seed, softplus) =>
            ScanTesting.EqualsTheReference(CpuScan.Run, ScanTesting.Arguments(b, d, l, n, seed, softplus), $"({b}, {d}, {l}), n {n}, seed {seed}"),
            iter: 25, threads: 1);

    [Theory]
    [InlineData("D")]
    [InlineData("z")]
    [InlineData("b")]
    [InlineData("h")]
    [InlineData("Dzbh")]
    public void OptionalArgumentsMayBeAbsent(string without) =>
        ScanTesting.EqualsTheReference(CpuScan.Run, ScanTesting.Arguments(2, 19, 37, 16, without: without), $"without {without}");

    [Fact]
    public void StepSizesMaySkipSoftplus() =>
        ScanTesting.EqualsTheReference(CpuScan.Run, ScanTesting.Arguments(2, 19, 37, 16, softplus: false), "no softplus");

    [Theory]
    [InlineData(true, false)]
    [InlineData(false, true)]
    public void EitherResultAloneMayHaveAGradient(bool toOutput, bool toState) =>
        ScanTesting.EqualsTheReference(CpuScan.Run, ScanTesting.Arguments(2, 19, 37, 16), "one gradient", toOutput, toState);

    [Theory]
    [InlineData("(b, l, d) in memory")]
    [InlineData("every second of a larger tensor")]
    [InlineData("expanded over the batch")]
    public void StridesDoNotMatter(string layout)
    {
        using var scope = NewDisposeScope();
        var plain = ScanTesting.Arguments(2, 20, 37, 16);
        if (layout.StartsWith("expanded", StringComparison.Ordinal))
            plain = plain.With(t => t.dim() == 3 ? t.select(0, 0).unsqueeze(0).expand(2, -1, -1).contiguous() : t);
        Tensor Strided(Tensor t) => layout switch
        {
            "(b, l, d) in memory" => t.transpose(-1, -2 + (t.dim() == 1 ? 1 : 0)).contiguous().transpose(-1, -2 + (t.dim() == 1 ? 1 : 0)),
            "every second of a larger tensor" => stack([t, t + 1], -1).select(-1, 0),
            _ => t.dim() == 3 ? t.select(0, 0).unsqueeze(0).expand(2, -1, -1) : t,
        };
        var strided = plain.With(Strided);
        var expected = CpuScan.Run(plain);
        var actual = CpuScan.Run(strided);
        ScanTesting.SameBits(actual.output, expected.output, "output");
        ScanTesting.SameBits(actual.lastState, expected.lastState, "lastState");

        var gradient = randn(2, 20, 37);
        Tensor?[] Gradients(Func<Tensor, Tensor> stride)
        {
            var leaves = plain.Leaves();
            var (output, state) = CpuScan.Run(leaves.With(stride));
            autograd.backward([output, state.sum()], [stride(gradient), ones([])]); // sum's gradient has strides of zero
            return [.. leaves.Tensors.Select(t => t!.grad)];
        }
        var (one, other) = (Gradients(t => t), Gradients(Strided));
        if (layout.StartsWith("expanded", StringComparison.Ordinal)) return; // the leaves got sums there
        for (var i = 0; i < ScanTesting.Names.Length; i++) ScanTesting.SameBits(other[i]!, one[i]!, $"gradient of {ScanTesting.Names[i]}");
    }

    [Fact]
    public void TheOutputHasTheLayoutOfU()
    {
        using var scope = NewDisposeScope();
        var x = ScanTesting.Arguments(2, 20, 37, 16);
        CpuScan.Run(x).output.is_contiguous().Should().BeTrue();
        var channelsLast = x with { u = x.u.transpose(1, 2).contiguous().transpose(1, 2) };
        CpuScan.Run(channelsLast).output.transpose(1, 2).is_contiguous().Should().BeTrue();
    }

    [Fact]
    public void BFloat16IsComputedInFloat32()
    {
        using var scope = NewDisposeScope();
        var x = ScanTesting.Arguments(2, 21, 70, 16);
        Tensor Narrow(Tensor t) => t.to(ScalarType.BFloat16);
        var narrow = x with { u = Narrow(x.u), delta = Narrow(x.delta), B = Narrow(x.B), C = Narrow(x.C), z = Narrow(x.z!) };
        var wide = narrow.With(t => t.to(ScalarType.Float32));

        // The same numbers in float32, rounded once at the end: to the bit.
        var (expected, expectedState) = CpuScan.Run(wide);
        var (actual, actualState) = CpuScan.Run(narrow);
        ScanTesting.SameBits(actual, Narrow(expected), "output");
        ScanTesting.SameBits(actualState, expectedState, "lastState");

        var gradient = Narrow(randn(x.u.shape));
        var one = ScanTesting.Run(CpuScan.Run, wide, gradient.to(ScalarType.Float32), null).gradients;
        var other = ScanTesting.Run(CpuScan.Run, narrow, gradient, null).gradients;
        for (var i = 0; i < one.Length; i++)
            ScanTesting.SameBits(other[i]!, one[i]!.to(narrow.Tensors[i]!.dtype), $"gradient of {ScanTesting.Names[i]}");
    }

    [Fact]
    public void BFloat16RoundsAsTorchDoes()
    {
        using var scope = NewDisposeScope();
        // y = D u with D one: the output is u through one rounding. Ties, both signs, denormals, overflow, NaN.
        float[] values =
        [
            1, 1.00390625f, 1.01171875f, -1.00390625f, 3.3e38f, -3.3e38f, float.Epsilon, 1e-40f,
            0, -0.0f, 1.0039063f, 2.7182818f, -3.1415927f, float.NaN, // last, as it stays in the state
        ];
        var u = tensor(values).reshape(1, 1, -1);
        var zeroes = torch.zeros(1, 1, values.Length);
        foreach (var wide in new[] { false, true })
        {
            // Side by side in time, or in channels: the two ways out of a tile.
            var x = wide
                ? new ScanArguments(u.transpose(1, 2).to(ScalarType.BFloat16), zeroes.transpose(1, 2), torch.zeros(values.Length, 1), torch.zeros(1, 1, 1),
                    torch.zeros(1, 1, 1), u.reshape(-1), null, null, false, null)
                : new ScanArguments(u.to(ScalarType.BFloat16), zeroes, torch.zeros(1, 1), zeroes, zeroes, tensor(new[] { 1.2345f }), null, null, false, null);
            var expected = wide
                ? (u.transpose(1, 2).to(ScalarType.BFloat16).to(ScalarType.Float32) * u.transpose(1, 2)).to(ScalarType.BFloat16)
                : (u.to(ScalarType.BFloat16).to(ScalarType.Float32) * 1.2345f).to(ScalarType.BFloat16);
            var actual = CpuScan.Run(x.Checked()).output;
            actual.eq(expected).logical_or(actual.isnan().logical_and(expected.isnan())).all().item<bool>().Should().BeTrue($"wide {wide}");
        }
    }

    [Fact]
    public void PiecesGiveTheBitsOfTheWhole() =>
        Gen.Select(Gen.Int[1, 150], Gen.Int[0, 150].Array[0, 4], Gen.Int[1, 20]).Sample((length, cuts, n) =>
        {
            using var scope = NewDisposeScope();
            var x = ScanTesting.Arguments(1, 18, length, n);
            var (whole, lastState) = CpuScan.Run(x);
            var borders = cuts.Where(c => c < length).Append(0).Append(length).Order().ToArray(); // some pieces are empty
            var state = x.initialState;
            var outputs = new List<Tensor>();
            for (var i = 1; i < borders.Length; i++)
            {
                Tensor Piece(Tensor t) => t.narrow(2, borders[i - 1], borders[i] - borders[i - 1]);
                var (output, next) = CpuScan.Run(
                    (x with { u = Piece(x.u), delta = Piece(x.delta), B = Piece(x.B), C = Piece(x.C), z = Piece(x.z!), initialState = state }).Checked());
                outputs.Add(output);
                state = next;
            }
            ScanTesting.SameBits(cat(outputs, 2), whole, "output");
            ScanTesting.SameBits(state!, lastState, "lastState");
        }, iter: 60, threads: 1);

    [Fact]
    public void GradientsFlowThroughPieces()
    {
        (Tensor output, Tensor lastState) InTwo(ScanArguments x)
        {
            Tensor Piece(Tensor t, int from, int to) => t.narrow(2, from, to - from);
            ScanArguments Of(int from, int to, Tensor? state) => x with
            {
                u = Piece(x.u, from, to), delta = Piece(x.delta, from, to), B = Piece(x.B, from, to), C = Piece(x.C, from, to),
                z = Piece(x.z!, from, to), initialState = state,
            };
            var (first, state) = CpuScan.Run(Of(0, 43, x.initialState));
            var (second, last) = CpuScan.Run(Of(43, 100, state));
            return (cat([first, second], 2), last);
        }
        ScanTesting.EqualsTheReference(InTwo, ScanTesting.Arguments(2, 19, 100, 16), "in two pieces");
    }

    [Fact]
    public void RowsAndChannelsDoNotInfluenceOneAnother()
    {
        using var scope = NewDisposeScope();
        var x = ScanTesting.Arguments(3, 37, 50, 16);
        var (output, state) = CpuScan.Run(x);
        foreach (var row in new[] { 0, 2 })
        {
            var one = CpuScan.Run(x.With(t => t.dim() == 3 ? t.narrow(0, row, 1) : t));
            ScanTesting.SameBits(one.output, output.narrow(0, row, 1), $"row {row}");
            ScanTesting.SameBits(one.lastState, state.narrow(0, row, 1), $"state of row {row}");
        }
        var few = CpuScan.Run(x.With(t => t.shape.Contains(37) ? t.narrow(t.dim() == 3 ? 1 : 0, 5, 9) : t));
        ScanTesting.SameBits(few.output, output.narrow(1, 5, 9), "channels 5 to 13");
    }

    [Fact]
    public void EmptyInputHandsTheStateOn()
    {
        using var scope = NewDisposeScope();
        foreach (var scan in new[] { CpuScan.Run, new ScanTesting.Scan(ReferenceScan.Run) })
        {
            var x = ScanTesting.Arguments(2, 5, 0, 16).Leaves();
            var (output, state) = scan(x);
            output.shape.Should().Equal(2, 5, 0);
            ScanTesting.SameBits(state.detach(), x.initialState!.detach(), "lastState");
            state.sum().backward();
            ScanTesting.SameBits(x.initialState.grad!, ones(2, 5, 16), "gradient of initialState");
            scan(ScanTesting.Arguments(2, 5, 0, 16, without: "h")).lastState.abs().sum().item<float>().Should().Be(0);
        }
    }

    [Theory]
    [InlineData("huge step", 1e4f, null)]
    [InlineData("tiny step", -1e4f, null)]
    [InlineData("endless step", float.PositiveInfinity, null)]
    [InlineData("no step", float.NegativeInfinity, null)]
    [InlineData("a step that is no number", float.NaN, null)]
    [InlineData("no decay", null, 0f)]
    [InlineData("hardly any decay", null, -1e-30f)]
    [InlineData("all decays", null, -1e30f)]
    [InlineData("endless decay", null, float.NegativeInfinity)]
    [InlineData("growth", null, 5f)]
    [InlineData("growth without end", null, 1e30f)]
    [InlineData("a decay that is no number", null, float.NaN)]
    public void ExtremesEqualTheReference(string what, float? delta, float? decay)
    {
        using var scope = NewDisposeScope();
        foreach (var bits in ScanTesting.Widths)
        {
            var x = ScanTesting.Arguments(1, 20, 40, 16);
            if (delta is { } value) x.delta[.., 3, 7..9] = value;
            if (decay is { } a) x.A[3..5, 2] = a;
            var (actual, actualState) = CpuScan.Run(x, bits);
            var (expected, expectedState) = ReferenceScan.Run(x);
            foreach (var (mine, other) in new[] { (actual, expected), (actualState, expectedState) })
            {
                // Equal kinds of numbers everywhere, and the finite ones close, channel by channel.
                ScanTesting.SameBits(mine.isnan(), other.isnan(), $"{what}: the places of NaN at {bits} bits");
                ScanTesting.SameBits(mine.isinf(), other.isinf(), $"{what}: the places of infinities at {bits} bits");
                for (var c = 0; c < 20; c++)
                    ScanTesting.Close(mine[0, c].nan_to_num(0, 0, 0), other[0, c].nan_to_num(0, 0, 0), 2e-5, $"{what}, channel {c}, {bits} bits");
            }
        }
    }

    [Theory]
    [InlineData("u")]
    [InlineData("z")]
    [InlineData("B")]
    [InlineData("initialState")]
    public void NaNReachesWhatDependsOnIt(string where)
    {
        using var scope = NewDisposeScope();
        var x = ScanTesting.Arguments(2, 20, 40, 16);
        x.Tensors[Array.IndexOf(ScanTesting.Names, where)]![0, 3, 5] = float.NaN;
        ScanTesting.SameBits(CpuScan.Run(x).output.isnan(), ReferenceScan.Run(x).output.isnan(), "the places of NaN");
    }

    [Fact]
    public void ALongDecayDoesNotDrift()
    {
        using var scope = NewDisposeScope();
        // Steps so small that the state forgets nothing over 20,000 of them: an exponential with a bias would show.
        var l = 20_000;
        var x = new ScanArguments(ones(1, 4, l), full([1, 4, l], 1e-5f), tensor(new[] { -1f, -2, -3, -0.5f }).reshape(4, 1), zeros(1, 1, l), ones(1, 1, l),
            null, null, null, false, ones(1, 4, 1)).Checked();
        ScanTesting.Close(CpuScan.Run(x).lastState, exp(x.A.to(ScalarType.Float64) * 0.2).reshape(1, 4, 1), 5e-4, "lastState");
    }

    [Fact]
    public void WithoutGradientsNoGraphIsMade()
    {
        using var scope = NewDisposeScope();
        var x = ScanTesting.Arguments(1, 20, 8, 16);
        CpuScan.Run(x).output.requires_grad.Should().BeFalse("no input asks for one");
        var leaves = x.Leaves();
        leaves.NeedGradient.Should().BeTrue();
        using (no_grad())
        {
            leaves.NeedGradient.Should().BeFalse("nothing is to be kept under no_grad");
            CpuScan.Run(leaves).output.requires_grad.Should().BeFalse("under no_grad");
        }
        using (inference_mode()) CpuScan.Run(leaves).output.requires_grad.Should().BeFalse("under inference_mode");
        CpuScan.Run(leaves).lastState.requires_grad.Should().BeTrue();
    }

    [Theory]
    [MemberData(nameof(ArgumentNames))]
    public void OneArgumentAloneMayAskForAGradient(string name)
    {
        using var scope = NewDisposeScope();
        var x = ScanTesting.Arguments(1, 20, 8, 16);
        var at = Array.IndexOf(ScanTesting.Names, name);
        x.Tensors[at]!.requires_grad_();
        CpuScan.Run(x).output.sum().backward();
        for (var i = 0; i < ScanTesting.Names.Length; i++) (x.Tensors[i]!.grad is not null).Should().Be(i == at, ScanTesting.Names[i]);
    }

    public static TheoryData<string> ArgumentNames => [.. ScanTesting.Names];

    [Fact]
    public void AGraphThatIsKeptGivesTheSameGradientsAgain()
    {
        using var scope = NewDisposeScope();
        var leaves = ScanTesting.Arguments(2, 20, 40, 16).Leaves();
        var (output, _) = CpuScan.Run(leaves);
        var loss = output.sum();
        autograd.backward([loss], retain_graph: true);
        var first = leaves.delta.grad!.clone();
        leaves.delta.grad!.zero_();
        loss.backward();
        ScanTesting.SameBits(leaves.delta.grad!, first, "gradient of delta");
    }

    [Fact]
    public void InputsChangedBeforeBackwardAreAnError()
    {
        using var scope = NewDisposeScope();
        var leaves = ScanTesting.Arguments(1, 20, 8, 16).Leaves();
        var u = leaves.u * 2;
        var (output, _) = CpuScan.Run(leaves with { u = u });
        u.add_(1);
        FluentActions.Invoking(() => output.sum().backward()).Should().Throw<Exception>();
    }

    [Fact]
    public void SecondDerivativesAreAnError()
    {
        using var scope = NewDisposeScope();
        var leaves = ScanTesting.Arguments(1, 20, 8, 16).Leaves();
        var (output, _) = CpuScan.Run(leaves);
        FluentActions.Invoking(() => autograd.backward([output.sum()], create_graph: true)).Should().Throw<Exception>();
    }
}
