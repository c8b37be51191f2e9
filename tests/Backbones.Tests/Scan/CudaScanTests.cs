using MambaVL.Checkpoints;
using MambaVL.Scan;
using MambaVL.Tests.Cuda;
using TorchSharp;
using Xunit.Abstractions;
using static TorchSharp.torch;

namespace MambaVL.Tests.Scan;

/// <summary>The CUDA kernels against the reference in float64: forward and gradients, at shapes that no tile divides.</summary>
public class CudaScanTests(ITestOutputHelper log)
{
    private static readonly string[] Inputs = ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"];

    // The reference keeps every step's states for autograd: 8193 steps only with few channels.
    [SkippableTheory]
    [InlineData(1, 1, 1, 1)]
    [InlineData(1, 5, 1, 16)]
    [InlineData(2, 33, 7, 16)]
    [InlineData(16, 37, 7, 3)]
    [InlineData(1, 129, 640, 16)]
    [InlineData(3, 70, 64, 16)]
    [InlineData(1, 20, 8193, 16)]
    [InlineData(3, 10, 1100, 16)]
    [InlineData(1, 70, 1600, 5)]
    [InlineData(2, 40, 65, 1)]
    [InlineData(2, 19, 130, 2)]
    [InlineData(2, 21, 100, 5)]
    [InlineData(2, 9, 70, 17)]
    [InlineData(1, 9, 200, 64)]
    [InlineData(2, 3, 97, 100)]
    [InlineData(2, 5, 130, 256)]
    public void EqualsTheFloat64Reference(int b, int d, int l, int n)
    {
        CudaTesting.Gpu();
        Compare(ScanTesting.Arguments(b, d, l, n), $"({b}, {d}, {l}), n {n}");
    }

    // Few channels and many steps: time in pieces, whose states are put together.
    [SkippableFact]
    public void TimeInPiecesIsRightToo()
    {
        var gpu = CudaTesting.Gpu();
        CudaScan.ForwardPlan.For(16, 2, 3, gpu.Multiprocessors, gpu.SharedBytes, true).Pieces(6, 2100, gpu.Multiprocessors).Should().Be(4, "that is the case to test");
        // So slow a decay that what was before a piece matters to its last step: at the usual one nothing is left of it.
        ScanArguments Slow(ScanArguments x) => x with { A = x.A * 1e-3 };
        Compare(Slow(ScanTesting.Arguments(2, 3, 2100, 16)), "pieces", 5e-5);
        Compare(Slow(ScanTesting.Arguments(2, 3, 2100, 16, without: "Dzbh", softplus: false)), "pieces, nothing optional", 5e-5);
        Compare(Narrow(Slow(ScanTesting.Arguments(2, 3, 2104, 16)), ScalarType.BFloat16), "pieces, bfloat16", 1e-2);
    }

    // As many channels as make the forward kernel take 4 or 8 states in a thread. Without a second pass of the reference.
    [SkippableTheory]
    [InlineData(16, 1100, 40, ScalarType.Float32, 8)]
    [InlineData(16, 1100, 40, ScalarType.BFloat16, 4)]
    [InlineData(8, 2600, 9, ScalarType.Float16, 4)]
    [InlineData(8, 3001, 9, ScalarType.Float16, 8)]
    [InlineData(7, 2600, 64, ScalarType.BFloat16, 4)]
    [InlineData(29, 1100, 40, ScalarType.BFloat16, 8)]
    [InlineData(11, 2999, 70, ScalarType.Float16, 8)]
    public void ManyChannelsAreRightToo(int b, int d, int l, ScalarType type, int states)
    {
        var gpu = CudaTesting.Gpu();
        CudaScan.ForwardPlan.For(16, b, d, gpu.Multiprocessors, gpu.SharedBytes, type == ScalarType.Float32).States.Should().Be(states, "that is the case to test");
        Compare(Narrow(ScanTesting.Arguments(b, d, l, 16), type), $"({b}, {d}, {l}) {type}", Tolerance(type));
    }

    // Wider blocks, as one a multiprocessor holds all channels; also a last block that is not full, and a last tile.
    [SkippableTheory]
    [InlineData(1, 30, 16, ScalarType.BFloat16, 130)]
    [InlineData(1, 38, 16, ScalarType.BFloat16, 64)]
    [InlineData(2, 19, 16, ScalarType.Float16, 77)]
    [InlineData(1, 30, 9, ScalarType.BFloat16, 130)]
    public void WiderBlocksAreRightToo(int b, int channelsOfEach, int n, ScalarType type, int l)
    {
        var gpu = CudaTesting.Gpu();
        var d = channelsOfEach * gpu.Multiprocessors - 3;
        CudaScan.ForwardPlan.For(n, b, d, gpu.Multiprocessors, gpu.SharedBytes, false).Threads.Should().BeGreaterThan(128, "that is the case to test");
        Compare(Narrow(ScanTesting.Arguments(b, d, l, n), type), $"({b}, {d}, {l}), n {n} {type}", Tolerance(type));
    }

    [SkippableTheory]
    [InlineData(ScalarType.BFloat16, 16)]
    [InlineData(ScalarType.Float16, 16)]
    [InlineData(ScalarType.BFloat16, 3)]
    [InlineData(ScalarType.BFloat16, 7)]
    [InlineData(ScalarType.BFloat16, 64)]
    [InlineData(ScalarType.BFloat16, 256)]
    public void NarrowTypesAreComputedInFloat32(ScalarType type, int n)
    {
        CudaTesting.Gpu();
        foreach (var l in new[] { 7, 64, 136 })
            Compare(Narrow(ScanTesting.Arguments(2, 50, l, n), type), $"{type}, {l} steps, n {n}", Tolerance(type));
    }

    [SkippableFact]
    public void TypesMayBeMixed()
    {
        CudaTesting.Gpu();
        var x = ScanTesting.Arguments(2, 20, 70, 16);
        x = x with { u = x.u.to(ScalarType.Float16), z = x.z!.to(ScalarType.BFloat16), B = x.B.to(ScalarType.BFloat16) };
        Compare(x, "mixed", Tolerance(ScalarType.BFloat16));
        // Of 16 bits all, so that B and C stay as they are in shared memory.
        x = x with { delta = x.delta.to(ScalarType.BFloat16), B = x.B.to(ScalarType.Float16), C = x.C.to(ScalarType.BFloat16) };
        Compare(x, "mixed, 16 bits", Tolerance(ScalarType.BFloat16));
    }

    [SkippableTheory]
    [InlineData("D")]
    [InlineData("z")]
    [InlineData("b")]
    [InlineData("h")]
    [InlineData("Dzbh")]
    public void OptionalArgumentsMayBeAbsent(string without)
    {
        CudaTesting.Gpu();
        Compare(ScanTesting.Arguments(2, 19, 37, 16, without: without), $"without {without}");
        Compare(ScanTesting.Arguments(2, 19, 37, 16, softplus: false, without: without), $"without {without}, no softplus");
    }

    [SkippableTheory]
    [InlineData(true, false)]
    [InlineData(false, true)]
    public void EitherResultAloneMayHaveAGradient(bool toOutput, bool toState)
    {
        CudaTesting.Gpu();
        Compare(ScanTesting.Arguments(2, 19, 137, 16), "one gradient", toOutput: toOutput, toState: toState);
    }

    // The layouts that models have, and one that nothing is aligned in.
    [SkippableTheory]
    [InlineData("(b, l, d)", ScalarType.Float32)]
    [InlineData("(d, b, l)", ScalarType.Float32)]
    [InlineData("(d, b, l)", ScalarType.BFloat16)]
    [InlineData("every second", ScalarType.BFloat16)]
    [InlineData("one step off", ScalarType.BFloat16)]
    [InlineData("expanded", ScalarType.Float32)]
    [InlineData("each another", ScalarType.BFloat16)]
    public void StridesDoNotMatter(string layout, ScalarType type)
    {
        CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var plain = OnGpu(Narrow(ScanTesting.Arguments(2, 40, 80, 16), type));
        if (layout == "expanded") plain = plain.With(t => t.dim() == 3 ? t.select(0, 0).unsqueeze(0).expand(2, -1, -1).contiguous() : t);
        Tensor Laid(Tensor t) => LaidAs(layout, t);
        static Tensor LaidAs(string layout, Tensor t) => t.dim() != 3 ? t : layout switch
        {
            "(b, l, d)" => t.transpose(1, 2).contiguous().transpose(1, 2),
            "(d, b, l)" => t.transpose(0, 1).contiguous().transpose(0, 1),
            "every second" => stack([t, t + 1], -1).select(-1, 0),
            "one step off" => cat([t.narrow(2, 0, 1), t], 2).narrow(2, 1, t.shape[2]),
            "expanded" => t.select(0, 0).unsqueeze(0).expand(2, -1, -1),
            _ => t,
        };
        var (expected, strided) = (CudaScan.Forward(plain, true), plain.With(Laid));
        // No two tensors alike, so that none can be read with the strides of its neighbour.
        if (layout == "each another") strided = plain with
        {
            u = LaidAs("(d, b, l)", plain.u), delta = LaidAs("one step off", plain.delta), z = LaidAs("(b, l, d)", plain.z!),
            B = LaidAs("every second", plain.B), C = LaidAs("(b, l, d)", plain.C),
        };
        var actual = CudaScan.Forward(strided, true);
        ScanTesting.SameBits(actual.output.cpu(), expected.output.cpu(), "output");
        ScanTesting.SameBits(actual.lastState.cpu(), expected.lastState.cpu(), "lastState");
        if (layout is "(b, l, d)" or "(d, b, l)") actual.output.stride().Should().Equal(strided.u.stride(), "the output has u's layout");

        var gradient = randn(2, 40, 80).to(type).cuda();
        var one = CudaScan.Backward(plain, expected.checkpoints!, gradient, null);
        var other = CudaScan.Backward(strided, actual.checkpoints!, Laid(gradient.expand(2, -1, -1)), null);
        if (layout == "expanded") one = CudaScan.Backward(plain, expected.checkpoints!, gradient.select(0, 0).unsqueeze(0).expand(2, -1, -1).contiguous(), null);
        for (var i = 0; i < one.Length; i++) ScanTesting.SameBits(other[i]!.cpu(), one[i]!.cpu(), $"gradient of {ScanTesting.Names[i]}");
    }

    // Every element of every result is written, wherever the caller wants it.
    [SkippableFact]
    public void ResultsGoWhereTheCallerWantsThem()
    {
        CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var x = OnGpu(ScanTesting.Arguments(2, 24, 72, 16));
        var gradient = randn(2, 24, 72).cuda();
        var expected = CudaScan.Forward(x, true);
        var gradients = CudaScan.Backward(x, expected.checkpoints!, gradient, null);
        Tensor Poisoned(Tensor like) => full([like.shape[1] + 3, like.shape[0], like.shape[2]], float.NaN, dtype: like.dtype, device: like.device)
            .narrow(0, 2, like.shape[1]).transpose(0, 1);
        var output = Poisoned(x.u);
        CudaScan.Forward(x, false, new(u: output)).output.Should().BeSameAs(output);
        ScanTesting.SameBits(output.cpu(), expected.output.cpu(), "output");
        var into = new ScanTargets(Poisoned(x.u), Poisoned(x.delta), Poisoned(x.z!), Poisoned(x.B), Poisoned(x.C));
        var actual = CudaScan.Backward(x, expected.checkpoints!, gradient, null, into);
        for (var i = 0; i < actual.Length; i++) ScanTesting.SameBits(actual[i]!.cpu(), gradients[i]!.cpu(), $"gradient of {ScanTesting.Names[i]}");
    }

    // Where the sums over parts of the channels do not fit, launches follow one another and add to them.
    [SkippableFact]
    public void ASmallWorkspaceGivesTheSameGradients()
    {
        CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var x = OnGpu(ScanTesting.Arguments(2, 300, 70, 16));
        var checkpoints = CudaScan.Forward(x, true).checkpoints!;
        var gradient = randn(2, 300, 70).cuda();
        var whole = CudaScan.Backward(x, checkpoints, gradient, null);
        foreach (var bytes in new[] { 1, 4 * 2 * 70 * 32 * sizeof(float) })
        {
            var actual = CudaScan.Backward(x, checkpoints, gradient, null, workspaceBytes: bytes);
            for (var i = 0; i < whole.Length; i++) log.Close(actual[i]!, whole[i]!, 1e-6, $"{bytes} bytes: gradient of {ScanTesting.Names[i]}");
        }
    }

    [SkippableFact]
    public void AWrongTargetIsAnError()
    {
        CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var x = OnGpu(ScanTesting.Arguments(2, 5, 7, 16));
        FluentActions.Invoking(() => CudaScan.Forward(x, false, new(u: zeros(2, 5, 8).cuda()))).Should().Throw<ArgumentException>().WithMessage("u has shape [2, 5, 8]; expected [2, 5, 7].*");
        FluentActions.Invoking(() => CudaScan.Forward(x, false, new(u: zeros(2, 5, 7)))).Should().Throw<ArgumentException>().WithMessage("u is on cpu; expected cuda:0.*");
        FluentActions.Invoking(() => CudaScan.Backward(x, zeros(2, 2, 5, 16).cuda(), null, null)).Should().Throw<ArgumentException>().WithMessage("checkpoints has shape [2, 2, 5, 16]; expected [2, 1, 5, 16].*");
        FluentActions.Invoking(() => CudaScan.Forward(ScanTesting.Arguments(2, 5, 7, 16), false)).Should().Throw<ArgumentException>().WithMessage("u is on cpu; the CUDA kernel expects*");
    }

    [SkippableTheory]
    [InlineData(1, 200, 640)]
    [InlineData(16, 1100, 70)]
    public void TwoRunsGiveTheSameBits(int b, int d, int l)
    {
        CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var x = OnGpu(Narrow(ScanTesting.Arguments(b, d, l, 16), ScalarType.BFloat16));
        var gradient = randn(b, d, l).to(ScalarType.BFloat16).cuda();
        List<byte[]> Once()
        {
            using var inner = NewDisposeScope();
            var (output, last, checkpoints) = CudaScan.Forward(x, true);
            return [.. CudaScan.Backward(x, checkpoints!, gradient, last).Concat([output, last]).Select(t => t!.cpu().contiguous().bytes.ToArray())];
        }
        var first = Once();
        Once().Zip(first).Should().AllSatisfy(p => p.First.AsSpan().SequenceEqual(p.Second).Should().BeTrue());
    }

    [SkippableFact]
    public void PiecesGiveTheBitsOfTheWhole()
    {
        CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var x = OnGpu(ScanTesting.Arguments(2, 30, 200, 16));
        var whole = CudaScan.Run(x);
        Tensor? state = x.initialState;
        var outputs = new List<Tensor>();
        foreach (var (from, count) in new[] { (0, 1), (1, 70), (71, 129) })
        {
            Tensor Piece(Tensor t) => t.narrow(2, from, count);
            var (output, last) = CudaScan.Run(x with { u = Piece(x.u), delta = Piece(x.delta), B = Piece(x.B), C = Piece(x.C), z = Piece(x.z!), initialState = state });
            outputs.Add(output);
            state = last;
        }
        ScanTesting.SameBits(cat(outputs, 2).cpu(), whole.output.cpu(), "output");
        ScanTesting.SameBits(state!.cpu(), whole.lastState.cpu(), "lastState");
    }

    // A state that hardly decays adds up what each exponential is wrong by.
    [SkippableFact]
    public void SlowDecayDoesNotDrift()
    {
        CudaTesting.Gpu();
        var x = ScanTesting.Arguments(1, 32, 2000, 16);
        Compare(x with { A = x.A * 1e-2, delta = x.delta - 3 }, "slow decay", 5e-5);
    }

    [SkippableFact]
    public void SelectiveScanRunsIt()
    {
        CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var x = OnGpu(ScanTesting.Arguments(2, 30, 20, 16));
        ScanBackend.For(DeviceType.CUDA, ScalarType.Float16).Should().BeSameAs(ScanBackend.Cuda);
        ScanTesting.SameBits(SelectiveScan.Run(x.u, x.delta, x.A, x.B, x.C, x.D, x.z, x.deltaBias, true, x.initialState).output.cpu(), CudaScan.Run(x).output.cpu(), "output");
    }

    [SkippableFact]
    [Trait("Category", "Parity")]
    public void ForwardAndGradientsEqualTheFixtures()
    {
        CudaTesting.Gpu();
        using var file = Checkpoint.Open(Fixtures.Path("selective-scan", "expected.safetensors"));
        foreach (var name in file.Tensors.Keys.Select(k => k.Split('.')[0]).Distinct())
        {
            using var scope = NewDisposeScope();
            Tensor? Read(string key) => file.Tensors.ContainsKey($"{name}.{key}") ? file.Read($"{name}.{key}") : null;
            var x = Inputs.ToDictionary(i => i, i => Read(i)?.cuda().requires_grad_());
            var (output, lastState) = CudaScan.Run(new ScanArguments(x["u"]!, x["delta"]!, x["A"]!, x["B"]!, x["C"]!, x["D"], x["z"], x["delta_bias"], true, null).Checked());
            ScanTesting.Close(output.cpu(), Read("out")!, 1e-5, $"case {name}: out");
            if (Read("last_state") is { } expectedState) ScanTesting.Close(lastState.cpu(), expectedState, 1e-5, $"case {name}: last_state");
            if (Read("grad.out") is not { } gradOut) continue;
            output.backward([gradOut.cuda()]);
            foreach (var input in Inputs)
                if (Read($"grad.{input}") is { } expected)
                    ScanTesting.Close(x[input]!.grad!.cpu(), expected, 1e-4, $"case {name}: grad.{input}");
        }
    }

    [SkippableFact]
    public void ASecondDerivativeIsAnError()
    {
        CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var (output, _) = CudaScan.Run(OnGpu(ScanTesting.Arguments(1, 3, 5, 16)).Leaves());
        FluentActions.Invoking(() => autograd.backward([output.sum()], create_graph: true)).Should().Throw<Exception>();
    }

    [SkippableFact]
    public void NoStepsLeaveTheStateAsItIs()
    {
        CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var x = OnGpu(ScanTesting.Arguments(2, 5, 1, 16)).With(t => t.dim() == 3 && t.shape[2] == 1 ? t.narrow(2, 0, 0) : t);
        var (output, last) = CudaScan.Run(x.Checked());
        output.shape.Should().Equal(2, 5, 0);
        ScanTesting.SameBits(last.cpu(), x.initialState!.cpu(), "lastState");
    }

    [SkippableTheory]
    [InlineData(0, 7), InlineData(2, 0), InlineData(1, 0)]
    public void NoRowsOrNoStepsGiveGradientsOfZero(int b, int l)
    {
        CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var x = OnGpu(ScanTesting.Arguments(2, 5, 7, 16)).With(t => t.dim() != 3 ? t : t.narrow(0, 0, b) is var rows && t.shape[2] == 7 ? rows.narrow(2, 0, l) : rows);
        var (_, last, checkpoints) = CudaScan.Forward(x, true);
        // What the allocator gives next is not zero by chance.
        foreach (var poison in Enumerable.Range(0, 32).Select(_ => full(128, double.NaN, device: CUDA)).ToArray()) poison.Dispose();
        var gradients = CudaScan.Backward(x, checkpoints!, null, ones_like(last));
        foreach (var (gradient, name) in gradients.Zip(ScanTesting.Names).Where(g => g.Second is "A" or "D" or "deltaBias"))
            gradient!.cpu().data<float>().Should().AllSatisfy(g => g.Should().Be(0), name);
        ScanTesting.SameBits(gradients[8]!.cpu(), ones_like(last).cpu(), "initialState");
    }

    private static double Tolerance(ScalarType type) => type switch { ScalarType.BFloat16 => 1e-2, ScalarType.Float16 => 2e-3, _ => 1e-5 };

    private static ScanArguments OnGpu(ScanArguments x) => x.With(t => t.cuda());

    private static ScanArguments Narrow(ScanArguments x, ScalarType type) => type == ScalarType.Float32 ? x
        : x with { u = x.u.to(type), delta = x.delta.to(type), B = x.B.to(type), C = x.C.to(type), z = x.z?.to(type) };

    private void Compare(ScanArguments x, string what, double tolerance = 1e-5, bool toOutput = true, bool toState = true)
    {
        using var scope = NewDisposeScope();
        var gradOutput = toOutput ? randn(x.u.shape) : null;
        var gradState = toState ? randn([x.u.shape[0], x.u.shape[1], x.A.shape[1]]) : null;
        gradOutput = gradOutput?.to(x.u.dtype).to(ScalarType.Float32);
        // The reference on the GPU, where its loop is a loop of fast operations.
        var expected = ScanTesting.Run(ReferenceScan.Run, OnGpu(x).With(t => t.to(ScalarType.Float64)), gradOutput?.cuda(), gradState?.cuda());
        var actual = ScanTesting.Run(CudaScan.Run, OnGpu(x), gradOutput?.cuda(), gradState?.cuda());
        Near(actual.output, expected.output, "output");
        Near(actual.lastState, expected.lastState, "lastState");
        for (var i = 0; i < ScanTesting.Names.Length; i++)
        {
            if (expected.gradients[i] is not { } gradient) continue;
            actual.gradients[i].Should().NotBeNull($"{what}: {ScanTesting.Names[i]} takes part");
            Near(actual.gradients[i]!, gradient, $"gradient of {ScanTesting.Names[i]}");
        }

        void Near(Tensor mine, Tensor reference, string name) => log.Close(mine, reference, tolerance, $"{what}: {name}");
    }
}
