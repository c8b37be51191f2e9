using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

/// <summary>What holds for every language model, whatever its weights.</summary>
public class LanguageModelTests
{
    // Sizes that differ from each other, so that no two can be mistaken.
    private static readonly Dictionary<string, LanguageConfig> Configs = new()
    {
        ["mamba"] = new MambaConfig { HiddenSize = 24, LayerCount = 3, VocabularySize = 97, StateSize = 5 },
        ["mamba, layer norm, own head, biases"] = new MambaConfig
        {
            HiddenSize = 24, LayerCount = 2, VocabularySize = 97, Norm = NormKind.LayerNorm, TieEmbeddings = false, ProjectionBias = true,
            ConvolutionBias = false, ConvolutionSize = 3, Expand = 3, TimeStepRank = 4, ResidualInFloat32 = false,
        },
        ["neox"] = new GptNeoXConfig { HiddenSize = 48, LayerCount = 3, VocabularySize = 97, HeadCount = 3 },
        ["neox, in sequence, tied, whole heads, no bias, tanh"] = new GptNeoXConfig
        {
            HiddenSize = 48, LayerCount = 2, VocabularySize = 97, HeadCount = 4, IntermediateSize = 40, ParallelResidual = false,
            TieEmbeddings = true, RotaryFraction = 1, AttentionBias = false, TanhGelu = true,
        },
    };

    public static TheoryData<string> Models => [.. Configs.Keys];

    public static TheoryData<string, ScalarType> ModelsAndPrecisions
    {
        get
        {
            var data = new TheoryData<string, ScalarType>();
            foreach (var name in Configs.Keys)
            {
                data.Add(name, ScalarType.Float32);
                data.Add(name, ScalarType.BFloat16);
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(ModelsAndPrecisions))]
    public void PiecesAndSingleTokensAgreeWithAllAtOnce(string name, ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        using var mode = inference_mode();
        using var model = Build(name, dtype);
        // Rounding differs with the way that products are split; in bfloat16 it shows after two or three digits.
        var tolerance = dtype == ScalarType.Float32 ? 1e-5 : 0.03;
        var ids = Ids(12);
        var all = model.Forward(model.Embed(ids));
        using var state = model.CreateState(12);
        Compare.Close(model.Prefill(model.Embed(ids.narrow(1, 0, 2)), state), all.select(1, 1), tolerance, "the first piece");
        Compare.Close(model.Prefill(model.Embed(ids.narrow(1, 2, 6)), state), all.select(1, 7), tolerance, "the second piece");
        Compare.Close(model.Prefill(model.Embed(ids.narrow(1, 8, 1)), state), all.select(1, 8), tolerance, "a piece of one");
        for (var i = 9; i < 12; i++)
            Compare.Close(model.Decode(ids[0].narrow(0, i, 1), [state]), all.select(1, i), tolerance, $"token {i}");
        state.Length.Should().Be(12);
    }

    [Theory]
    [MemberData(nameof(ModelsAndPrecisions))]
    public void RowsThatAreReadAtOnceAreWhatEachIsAlone(string name, ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        using var mode = inference_mode();
        using var model = Build(name, dtype);
        var tolerance = dtype == ScalarType.Float32 ? 1e-5 : 0.03;
        var ids = cat([Ids(12), (Ids(12) + 5) % 97, (Ids(12) * 3) % 97], 0);
        var (atOnce, byTurns, alone) = (model.CreateStates(3, 14), model.CreateStates(3, 14), ids.unbind(0).Select(_ => model.CreateState(14)).ToArray());
        foreach (var (from, length) in new[] { (0, 5), (5, 6), (11, 1) }) // a first piece, a later one, a single position
        {
            var piece = model.Embed(ids.narrow(1, from, length));
            model.ReadsTogether = true;
            var logits = model.Prefill(piece, atOnce);
            model.ReadsTogether = false;
            var expected = cat([.. alone.Select((state, row) => model.Prefill(piece.narrow(0, row, 1), state))], 0);
            Compare.Close(logits, expected, tolerance, $"logits at {from}");
            Compare.Same(model.Prefill(piece, byTurns), expected, "on the CPU, where each is read by itself");
        }
        for (var row = 0; row < 3; row++)
        {
            atOnce[row].Length.Should().Be(12);
            foreach (var (ours, theirs) in Tensors(atOnce[row]).Zip(Tensors(alone[row])))
                Compare.CloseInNorm(ours, theirs, tolerance, $"state of row {row}");
        }

        // Each state is one by itself from here on, also after another's end.
        atOnce[1].Dispose();
        var next = tensor([7L, 9L]);
        Compare.Close(model.Decode(next, [atOnce[2], atOnce[0]]), model.Decode(next, [alone[2], alone[0]]), tolerance, "the next token");
        foreach (var state in atOnce.Concat(byTurns).Concat(alone)) state.Dispose();

        // What was read of a GPT-NeoX's cache, all of a Mamba's state.
        static IEnumerable<Tensor> Tensors(DecoderState state) => state is MambaState m ? m.Convolution.Concat(m.Scan)
            : ((GptNeoXState)state).Keys.Concat(((GptNeoXState)state).Values).Select(t => t.narrow(2, 0, state.Length));
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void OnlyNeighboursOfOneLengthAreReadAtOnce(string name)
    {
        using var scope = NewDisposeScope();
        using var model = Build(name);
        var (states, others) = (model.CreateStates(3, 4), model.CreateStates(2, 4));
        StateTensors.AreSideBySide(states).Should().BeTrue();
        StateTensors.AreSideBySide([states[1], states[2]]).Should().BeTrue();
        StateTensors.AreSideBySide([states[2]]).Should().BeTrue();
        StateTensors.AreSideBySide([states[0], states[2]]).Should().BeFalse();
        StateTensors.AreSideBySide([states[1], states[0]]).Should().BeFalse();
        StateTensors.AreSideBySide([states[0], others[1]]).Should().BeFalse();
        using (var copy = states[0].Clone()) StateTensors.AreSideBySide([copy, states[1]]).Should().BeFalse();
        model.Decode(tensor([3L]), [states[1]]);
        StateTensors.AreSideBySide([states[0], states[1]]).Should().BeFalse();

        // Read all the same, one by one.
        model.ReadsTogether = true;
        var rows = model.Embed(cat([Ids(2), Ids(2)], 0));
        var logits = model.Prefill(rows, [others[1], others[0]]);
        Compare.Same(logits[0], logits[1], "two rows that are the same");
        foreach (var state in states.Concat(others)) state.Dispose();
    }

    [Theory]
    [MemberData(nameof(ModelsAndPrecisions))]
    public void ARowDecodesToTheSameBitsWhicheverRowsStandBesideIt(string name, ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        using var model = Build(name, dtype);
        var states = new[] { 3, 7, 1, 5, 2 }.Select(length => Read(model, length)).ToArray();
        var alone = states.Select(s => s.Clone()).ToArray();
        for (var step = 0; step < 3; step++)
        {
            var ids = tensor(states.Select((_, i) => (i * 31L + step * 7) % 97).ToArray());
            var together = model.Decode(ids, states);
            for (var i = 0; i < states.Length; i++)
                Compare.Same(together.narrow(0, i, 1), model.Decode(ids.narrow(0, i, 1), [alone[i]]), $"step {step}, row {i}");
        }
        foreach (var s in states.Concat(alone)) s.Dispose();
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void AClonedStateGoesOnByItself(string name)
    {
        using var scope = NewDisposeScope();
        using var model = Build(name);
        using var state = Read(model, 4);
        using var first = state.Clone();
        var one = model.Decode(tensor([5L]), [first]);
        model.Decode(tensor([6L]), [first]);
        using var second = state.Clone();

        state.Length.Should().Be(4);
        first.Length.Should().Be(6);
        Compare.Same(model.Decode(tensor([5L]), [second]), one, "the second continuation");
        state.Dispose();
        Compare.Same(model.Decode(tensor([6L]), [second]), model.Decode(tensor([6L]), [Read(model, 4, 5)]), "after the original's end");
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void BFloat16IsCloseToFloat32(string name)
    {
        using var scope = NewDisposeScope();
        using var wide = Build(name);
        using var narrow = Build(name, ScalarType.BFloat16);
        var ids = Ids(40);
        var expected = wide.Forward(wide.Embed(ids));
        var actual = narrow.Forward(narrow.Embed(ids));

        actual.dtype.Should().Be(ScalarType.BFloat16);
        Compare.CloseInNorm(actual, expected, 0.02, "logits");
        using var state = narrow.CreateState(40);
        var last = narrow.Prefill(narrow.Embed(ids), state);
        last.dtype.Should().Be(ScalarType.Float32);
        Compare.CloseInNorm(last, expected.select(1, 39), 0.03, "last logits");
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void EveryParameterReceivesAGradient(string name)
    {
        using var scope = NewDisposeScope();
        using var model = Build(name);
        foreach (var p in model.parameters()) p.requires_grad_();
        model.Forward(model.Embed(Ids(6))).square().mean().backward();
        foreach (var (key, parameter) in model.named_parameters())
        {
            (parameter.grad is { } g && g.abs().max().item<float>() > 0).Should().BeTrue($"{key} takes part");
            isfinite(parameter.grad!).all().item<bool>().Should().BeTrue(key);
        }
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void DecodingLeavesNoTensorsBehind(string name)
    {
        using var model = Build(name);
        using var state = model.CreateState(100);
        using var id = tensor([3L]);
        var live = 0L;
        for (var i = 0; i < 60; i++)
        {
            model.Decode(id, [state]).Dispose();
            if (i == 9) live = DisposeScopeManager.Statistics.ThreadTotalLiveCount;
        }
        DisposeScopeManager.Statistics.ThreadTotalLiveCount.Should().Be(live);
        using (var ids = Ids(8))
        {
            var hidden = new List<Tensor>();
            using (var embeddings = model.Embed(ids)) model.Forward(embeddings, null, hidden).Dispose();
            using (var embeddings = model.Embed(ids)) model.Prefill(embeddings, state).Dispose();
            hidden.Should().HaveCount((int)Configs[name].LayerCount + 2);
            foreach (var h in hidden) h.Dispose();
            state.Clone().Dispose();
        }
        DisposeScopeManager.Statistics.ThreadTotalLiveCount.Should().Be(live);
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void AStateLivesInAndOutOfInferenceModeAndDisposeScopes(string name)
    {
        using var model = Build(name);
        DecoderState state, copy;
        using (inference_mode())
        using (NewDisposeScope())
        {
            state = model.CreateState(8);
            model.Prefill(model.Embed(Ids(3)), state);
            copy = state.Clone();
        }
        using var scope = NewDisposeScope();
        var expected = model.Decode(tensor([1L]), [state]);
        expected.requires_grad.Should().BeFalse();
        using (inference_mode()) Compare.Same(model.Decode(tensor([1L]), [copy]), expected, "in inference mode");
        state.Dispose();
        copy.Dispose();
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void PaddingOnTheRightChangesNothing(string name)
    {
        using var scope = NewDisposeScope();
        using var model = Build(name);
        var (one, two) = (Ids(4), Ids(7));
        var padded = cat([cat([one, zeros(1, 3, dtype: ScalarType.Int64)], 1), two], 0);
        var mask = ones(2, 7, dtype: ScalarType.Int64);
        mask[0, 4..] = 0L;
        var logits = model.Forward(model.Embed(padded), mask);
        Compare.Close(logits[..1, ..4], model.Forward(model.Embed(one)), 1e-5, "the padded row");
        Compare.Close(logits[1..], model.Forward(model.Embed(two)), 1e-5, "the whole row");
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void BuildingComputesNothing(string name)
    {
        var source = new CountingSource();
        var before = Created();
        using var model = Configs[name].Create(source.Root);
        (Created() - before).Should().Be(source.Created, "all tensors come from the source");
        model.named_parameters().Select(p => p.name).Should().BeEquivalentTo(source.Names, "fields are named as the checkpoint's keys");
    }

    [Fact]
    public void MambaRefusesPaddingOnTheLeft()
    {
        using var scope = NewDisposeScope();
        using var model = Build("mamba");
        var mask = ones(1, 4, dtype: ScalarType.Int64);
        mask[0, 0] = 0L;
        var embeddings = model.Embed(Ids(4));
        model.Invoking(m => m.Forward(embeddings, mask)).Should().Throw<ArgumentException>().WithMessage("*pad on the right*");
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void WrongArgumentsAreNamed(string name)
    {
        using var scope = NewDisposeScope();
        using var model = Build(name);
        using var other = Build(name);
        using var state = model.CreateState(4);
        var three = model.Embed(Ids(3));

        Fails(() => model.Embed(tensor([1L, 2L])), "*[2] of Int64*[b, l]*");
        Fails(() => model.Embed(tensor([1, 2]).unsqueeze(0)), "*Int32*Int64*");
        Fails(() => model.Embed(zeros(1, 0, dtype: ScalarType.Int64)), "*0 long*");
        Fails(() => model.Embed(tensor(new long[] { 4118, -200 }).unsqueeze(0)), "*from -200 to 4118*rows 0 to 96*connector*");
        Fails(() => model.Forward(zeros(1, 3, model.HiddenSize + 1)), $"*[1, 3, {model.HiddenSize + 1}]*{model.HiddenSize}]*");
        Fails(() => model.Forward(three, ones(1, 2)), "*mask*[1, 2]*[1, 3]*");
        Fails(() => model.Prefill(cat([three, three], 0), state), "*[1, l, *");
        Fails(() => model.Prefill(cat([three, three], 1), state), "*0 of at most 4*6 more*");
        Fails(() => other.Prefill(three, state), "*another model*");
        Fails(() => other.Prefill(three, [state]), "*another model*");
        Fails(() => model.Prefill(cat([three, three], 0), [state]), "*1 states for 2 rows*");
        Fails(() => model.Prefill(cat([three, three], 0), [state, state]), "*twice*");
        Fails(() => model.Decode(tensor([1L, 2L]), [state]), "*1 states for 2 rows*");
        Fails(() => model.Decode(tensor([1L, 2L]), [state, state]), "*twice*");
        Fails(() => model.Decode(tensor([97L]), [state]), "*97*rows 0 to 96*");
        state.Length.Should().Be(0);
        model.Prefill(model.Embed(Ids(4)), state);
        Fails(() => model.Decode(tensor([1L]), [state]), "*4 of at most 4*maxLength*");
        model.Invoking(m => m.CreateState(0)).Should().Throw<ArgumentOutOfRangeException>();
        model.Invoking(m => m.CreateStates(0, 4)).Should().Throw<ArgumentOutOfRangeException>();
        state.Dispose();
        model.Invoking(m => m.Decode(tensor([1L]), [state])).Should().Throw<ObjectDisposedException>();
        state.Invoking(s => s.Clone()).Should().Throw<ObjectDisposedException>();

        static void Fails(Action call, string message) => call.Should().Throw<ArgumentException>().WithMessage(message);
    }

    [Fact]
    public void SizesThatContradictEachOtherAreRefused()
    {
        var neox = (GptNeoXConfig)Configs["neox"];
        Refused(neox with { HeadCount = 5 }, "*48*5*");
        Refused(neox with { RotaryFraction = 0.2 }, "*0.2*3 values*even*");
        Refused(neox with { RotaryFraction = double.NaN }, "*RotaryFraction*");
        Refused(neox with { LayerCount = 0 }, "*LayerCount is 0*");
        Refused(Configs["mamba"] with { HiddenSize = -1 }, "*HiddenSize is -1*");
        Refused((MambaConfig)Configs["mamba"] with { NormEpsilon = double.NaN }, "*NormEpsilon*");

        static void Refused(LanguageConfig config, string message)
            => config.Invoking(c => c.Create(new ShapeRecorder().Root)).Should().Throw<ArgumentException>().WithMessage(message);
    }

    [Fact]
    public void MambaStartsFromThePapersValues()
    {
        using var scope = NewDisposeScope();
        using var model = Configs["mamba"].Create(new RandomParameters(7).Root);
        var p = model.named_parameters().ToDictionary(x => x.name, x => x.parameter);
        const string mixer = "backbone.layers.1.mixer.";
        Compare.Close(p[mixer + "A_log"].exp(), arange(1, 6, dtype: ScalarType.Float32).expand(48, 5), 1e-6, "A");
        var step = nn.functional.softplus(p[mixer + "dt_proj.bias"], 1, 20);
        step.min().item<float>().Should().BeInRange(0.000999f, 0.02f);
        step.max().item<float>().Should().BeInRange(0.02f, 0.1001f);
        p[mixer + "D"].eq(1).all().item<bool>().Should().BeTrue();
        p[mixer + "dt_proj.weight"].abs().max().item<float>().Should().BeInRange(0.5f, 0.70711f);
        p[mixer + "out_proj.weight"].abs().max().item<float>().Should().BeInRange(0.9f / 12, 1.0001f / 12);
        p["backbone.embedding.weight"].std().item<float>().Should().BeApproximately(0.02f, 0.002f);
    }

    private static LanguageModel Build(string name, ScalarType dtype = ScalarType.Float32)
        => Configs[name].Create(new Enlarged(new RandomParameters(7, dtype)).Root);

    private static DecoderState Read(LanguageModel model, int length, params long[] then)
    {
        using var scope = NewDisposeScope();
        var state = model.CreateState(32);
        model.Prefill(model.Embed(Ids(length)), state);
        foreach (var id in then) model.Decode(tensor([id]), [state]);
        return state;
    }

    // [1, length], other ids for another length.
    private static Tensor Ids(int length)
        => tensor(Enumerable.Range(0, length).Select(i => (37L * i + 11 * length) % 97).ToArray(), [1, length]);

    private static long Created()
    {
        var s = DisposeScopeManager.Statistics;
        return s.CreatedInScopeCount + s.CreatedOutsideScopeCount;
    }

    /// <summary>First values with the small ones made larger, so that every part of a model shows in its output.</summary>
    private sealed class Enlarged(ParameterSource source) : ParameterSource
    {
        public override Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32)
            => source.Take(name, shape, (t, random) =>
            {
                initial(t, random);
                if (name.EndsWith("bias", StringComparison.Ordinal) && t.count_nonzero().item<long>() == 0) t.uniform_(-0.3, 0.3, random);
                else if (name.Contains("embed", StringComparison.Ordinal)) t.mul_(20);
                else if (name.StartsWith("gpt_neox", StringComparison.Ordinal) && shape.Length == 2) t.mul_(5);
            }, keepFloat32);
    }

    private sealed class CountingSource : ParameterSource
    {
        public List<string> Names { get; } = [];

        public long Created { get; private set; }

        public override Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32)
        {
            var before = LanguageModelTests.Created();
            Names.Add(name);
            var parameter = new Parameter(empty(shape, device: META), requires_grad: false);
            Created += LanguageModelTests.Created() - before;
            return parameter;
        }
    }
}
