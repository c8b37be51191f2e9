using System.Runtime.InteropServices;
using MambaVL.Checkpoints;
using MambaVL.Kernels;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Kernels;

/// <summary>Decoding by kernels against the same models' tensor operations: a Prefill of one token.</summary>
public class DecoderTests
{
    public static TheoryData<string> Models => [.. Configurations.Keys];

    // Sizes that no vector divides, and every switch.
    private static readonly Dictionary<string, LanguageConfig> Configurations = new()
    {
        ["mamba, as published"] = new MambaConfig { HiddenSize = 64, LayerCount = 2, VocabularySize = 104 },
        ["mamba, odd sizes"] = new MambaConfig { HiddenSize = 37, LayerCount = 3, VocabularySize = 101, StateSize = 5, ConvolutionSize = 3, TimeStepRank = 7, TieEmbeddings = false },
        ["mamba, layer norm and biases"] = new MambaConfig { HiddenSize = 50, LayerCount = 2, VocabularySize = 67, StateSize = 19, Norm = NormKind.LayerNorm, ProjectionBias = true },
        ["mamba, no convolution bias"] = new MambaConfig { HiddenSize = 24, LayerCount = 1, VocabularySize = 33, StateSize = 33, ConvolutionSize = 1, Expand = 1, ConvolutionBias = false },
        ["gpt-neox, as published"] = new GptNeoXConfig { HiddenSize = 128, LayerCount = 2, VocabularySize = 104, HeadCount = 2 },
        ["gpt-neox, odd sizes"] = new GptNeoXConfig { HiddenSize = 57, LayerCount = 3, VocabularySize = 101, HeadCount = 3, IntermediateSize = 91, RotaryFraction = 0.33, TieEmbeddings = true },
        ["gpt-neox, sequential, no biases"] = new GptNeoXConfig { HiddenSize = 80, LayerCount = 2, VocabularySize = 67, HeadCount = 1, ParallelResidual = false, AttentionBias = false, RotaryFraction = 1, TanhGelu = true },
        ["gpt-neox, small heads"] = new GptNeoXConfig { HiddenSize = 24, LayerCount = 1, VocabularySize = 33, HeadCount = 3, RotaryFraction = 0.5, RotaryBase = 500 },
    };

    private const int MaxLength = 40;

    private static LanguageModel Build(string name, ScalarType dtype = ScalarType.Float32)
    {
        var model = Configurations[name].Create(new RandomParameters(7, dtype).Root);
        // First values have zeros and ones where a mistake would hide.
        using var noGrad = no_grad();
        using var random = new Generator(11);
        foreach (var p in model.parameters())
        {
            using var noise = randn(p.shape, generator: random) * 0.2;
            using var values = noise.to(p.dtype);
            p.add_(values);
        }
        return model;
    }

    /// <summary>What the kernels decode with a team of their own.</summary>
    private static Func<Tensor, IReadOnlyList<DecoderState>, Tensor> Decoder(LanguageModel model, CpuTeam? team = null)
    {
        if (model is Mamba mamba)
        {
            var decoder = new MambaDecoder(mamba, team);
            return (ids, states) => decoder.Decode(ids, states)!;
        }
        else
        {
            var decoder = new GptNeoXDecoder((GptNeoX)model, team);
            return (ids, states) => decoder.Decode(ids, states)!;
        }
    }

    private static Tensor[] TensorsOf(DecoderState state)
        => state is MambaState m ? [.. m.Convolution, .. m.Scan] : [.. ((GptNeoXState)state).Keys, .. ((GptNeoXState)state).Values];

    /// <summary>A state that has read a prompt of its own.</summary>
    private static DecoderState Prompted(LanguageModel model, int row)
    {
        using var scope = NewDisposeScope();
        using var random = new Generator((ulong)row + 100);
        var ids = randint(0, model.VocabularySize, [1, 3 + row % 6], ScalarType.Int64, generator: random);
        var state = model.CreateState(MaxLength);
        foreach (var t in TensorsOf(state)) t.zero_(); // what was never written should not differ either
        model.Prefill(model.Embed(ids), state);
        return state;
    }

    private static long Id(LanguageModel model, int row, int step) => (row * 31 + step * 17 + 5) % model.VocabularySize;

    private static Tensor Ids(LanguageModel model, IEnumerable<int> rows, int step) => tensor(rows.Select(row => Id(model, row, step)).ToArray());

    private static int[] Bits(Tensor t)
    {
        using var near = t.contiguous();
        return MemoryMarshal.Cast<byte, int>(near.bytes).ToArray();
    }

    private static byte[] Bytes(DecoderState state) => [.. TensorsOf(state).SelectMany(t => t.bytes.ToArray())];

    private static Tensor Written(Tensor t, DecoderState state) => state is GptNeoXState ? t.narrow(2, 0, state.Length) : t;

    private static void Close(Tensor actual, Tensor expected, double tolerance, string what)
    {
        using var scope = NewDisposeScope();
        var wide = expected.to(ScalarType.Float32);
        var (difference, greatest) = ((actual.to(ScalarType.Float32) - wide).abs().max().ToDouble(), wide.abs().max().ToDouble());
        (difference <= tolerance * greatest).Should().BeTrue($"{what}: the greatest difference is {difference:g4}, the tolerance {tolerance * greatest:g4}");
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void EqualsTheTensorOperations(string name)
    {
        using var model = Build(name);
        using DecoderState ours = Prompted(model, 0), theirs = ours.Clone();
        for (var step = 0; step < 12; step++)
        {
            using var scope = NewDisposeScope();
            var ids = Ids(model, [0], step);
            var logits = Decoder(model)(ids, [ours]);
            Close(logits, model.Prefill(model.Embed(ids.unsqueeze(0)), theirs), 2e-5, $"{name}, step {step}");
            logits.dtype.Should().Be(ScalarType.Float32);
            ours.Length.Should().Be(theirs.Length);
            foreach (var (a, b) in TensorsOf(ours).Zip(TensorsOf(theirs))) Close(Written(a, ours), Written(b, ours), 2e-5, $"{name}, state, step {step}");
        }
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void SixteenBitWeightsGiveWhatFloat32ArithmeticGives(string name)
    {
        foreach (var dtype in new[] { ScalarType.BFloat16, ScalarType.Float16 })
        {
            if (dtype == ScalarType.Float16 && Configurations[name] is MambaConfig) continue; // its scan takes none
            using var model = Build(name, dtype);
            using var wide = Build(name);
            using (no_grad())
                foreach (var (to, from) in wide.parameters().Zip(model.parameters())) to.copy_(from).DetachFromDisposeScope();
            using var ours = Prompted(model, 0);
            using var theirs = wide.CreateState(MaxLength);
            foreach (var (from, to) in TensorsOf(ours).Zip(TensorsOf(theirs))) to.copy_(from);
            theirs.Length = ours.Length;
            for (var step = 0; step < 5; step++)
            {
                using var scope = NewDisposeScope();
                var ids = Ids(model, [0], step);
                var expected = wide.Prefill(wide.Embed(ids.unsqueeze(0)), theirs);
                // The cache and the rotary tables of GPT-NeoX are of 16 bits.
                Close(Decoder(model)(ids, [ours]), expected, model is Mamba ? 5e-5 : 2e-2, $"{name}, {dtype}, step {step}");
            }
        }
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void ARowsBitsDoNotDependOnTheRowsBesideIt(string name)
    {
        foreach (var dtype in new[] { ScalarType.Float32, ScalarType.BFloat16 })
        {
            using var model = Build(name, dtype);
            var decode = Decoder(model);
            const int rows = 16, steps = 3;
            var alone = new List<int[]>();
            var lastStates = new List<byte[]>();
            for (var row = 0; row < rows; row++)
            {
                using var state = Prompted(model, row);
                for (var step = 0; step < steps; step++)
                {
                    using var logits = decode(Ids(model, [row], step), [state]);
                    if (step == steps - 1) alone.Add(Bits(logits));
                }
                lastStates.Add(Bytes(state));
            }
            foreach (var b in new[] { 2, 3, 4, 5, 7, 8, 16 })
            {
                var order = Enumerable.Range(0, rows).Reverse().Take(b).ToArray();
                var states = order.Select(row => Prompted(model, row)).ToArray();
                for (var step = 0; step < steps; step++)
                {
                    using var logits = decode(Ids(model, order, step), states);
                    if (step < steps - 1) continue;
                    for (var i = 0; i < b; i++)
                    {
                        using var own = logits.narrow(0, i, 1);
                        Bits(own).AsSpan().SequenceEqual(alone[order[i]]).Should().BeTrue($"{name}, {dtype}, row {order[i]} of {b}");
                    }
                }
                for (var i = 0; i < b; i++)
                {
                    Bytes(states[i]).AsSpan().SequenceEqual(lastStates[order[i]]).Should().BeTrue($"{name}, {dtype}, the state of row {order[i]} of {b}");
                    states[i].Dispose();
                }
            }
        }
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void ThreadsDoNotChangeABit(string name)
    {
        using var model = Build(name, ScalarType.BFloat16);
        int[]? expected = null;
        foreach (var threads in new[] { 1, 2, 3, 5 })
        {
            var decode = Decoder(model, new CpuTeam(threads));
            for (var repeat = 0; repeat < 3; repeat++)
            {
                var states = new[] { Prompted(model, 0), Prompted(model, 1), Prompted(model, 2) };
                for (var step = 0; step < 3; step++)
                {
                    using var logits = decode(Ids(model, [0, 1, 2], step), states);
                    if (step == 2) Bits(logits).Should().Equal(expected ??= Bits(logits), $"{threads} threads");
                }
                foreach (var state in states) state.Dispose();
            }
        }
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void SeveralThreadsMayDecodeOnOneModel(string name)
    {
        using var model = Build(name);
        var expected = Enumerable.Range(0, 4).Select(Run).ToArray();
        var actual = new int[4][];
        var threads = Enumerable.Range(0, 4).Select(row => new Thread(() => actual[row] = Run(row))).ToList();
        threads.ForEach(t => t.Start());
        threads.ForEach(t => t.Join());
        for (var row = 0; row < 4; row++) actual[row].Should().Equal(expected[row]);

        int[] Run(int row)
        {
            using var state = Prompted(model, row);
            var bits = new List<int>();
            for (var step = 0; step < 20; step++)
            {
                using var ids = Ids(model, [row], step);
                using var logits = model.Decode(ids, [state]);
                bits.AddRange(Bits(logits));
            }
            return [.. bits];
        }
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void WeightsThatChangeAreSeen(string name)
    {
        using var model = Build(name);
        using var state = Prompted(model, 0);
        using var ids = Ids(model, [0], 0);
        using (var warm = state.Clone()) model.Decode(ids, [warm]).Dispose();

        using (no_grad())
            foreach (var p in model.parameters()) p.mul_(1.1).DetachFromDisposeScope();
        Agree();
        model.to(ScalarType.BFloat16).to(ScalarType.Float32); // other tensors behind the parameters
        Agree();

        void Agree()
        {
            using var scope = NewDisposeScope();
            using DecoderState ours = state.Clone(), theirs = state.Clone();
            Close(model.Decode(ids, [ours]), model.Prefill(model.Embed(ids.unsqueeze(0)), theirs), 2e-5, name);
        }
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void ARowThatIsNotANumberLeavesTheOthersAlone(string name)
    {
        using var model = Build(name);
        using DecoderState good = Prompted(model, 0), alone = good.Clone(), bad = Prompted(model, 1);
        foreach (var t in TensorsOf(bad)) t.fill_(float.NaN);
        using var ids = Ids(model, [0, 1], 0);
        using var first = ids.narrow(0, 0, 1);
        using var together = Decoder(model)(ids, [good, bad]);
        using var single = Decoder(model)(first, [alone]);
        using var row = together.narrow(0, 0, 1);
        Bits(row).Should().Equal(Bits(single));
        using var other = together.narrow(0, 1, 1).isnan().all();
        other.item<bool>().Should().BeTrue();
    }

    [Theory]
    [InlineData("mamba, as published")]
    [InlineData("gpt-neox, as published")]
    public void AStepAllocatesLittleAndAlwaysTheSame(string name)
    {
        using var model = Build(name);
        using var state = model.CreateState(5000);
        using var ids = Ids(model, [0], 0);
        DecoderState[] states = [state];
        for (var i = 0; i < 50; i++) model.Decode(ids, states).Dispose();
        var (first, second) = (Allocated(100), Allocated(100));
        second.Should().BeLessThanOrEqualTo(first + 1000);
        (second / 100).Should().BeLessThan(4_000, "bytes a step");

        long Allocated(int steps)
        {
            var before = GC.GetAllocatedBytesForCurrentThread();
            for (var i = 0; i < steps; i++) model.Decode(ids, states).Dispose();
            return GC.GetAllocatedBytesForCurrentThread() - before;
        }
    }

    [Fact]
    public void TensorsThatTheKernelsDoNotTakeGoTheOtherWay()
    {
        using var model = Build("mamba, as published").to(ScalarType.Float64);
        var mamba = (Mamba)model;
        using var state = mamba.CreateState(4);
        using var ids = tensor(new long[] { 3 });
        new MambaDecoder(mamba).Decode(ids, [state]).Should().BeNull();
        state.Length.Should().Be(0);
    }
}
