using System.Runtime.InteropServices;
using MambaVL.Checkpoints;
using MambaVL.Cuda;
using MambaVL.Generation;
using MambaVL.Models;
using MambaVL.Tests.Models;
using TorchSharp;
using Xunit.Abstractions;
using static TorchSharp.torch;

namespace MambaVL.Tests.Cuda;

/// <summary>Decoding on the GPU against the same models' tensor operations on the CPU, in float32 with the same weights.</summary>
public class CudaDecoderTests(ITestOutputHelper output)
{
    private const int MaxLength = 700;

    private static readonly Dictionary<string, LanguageConfig> Configurations = new()
    {
        ["mamba, as published"] = new MambaConfig { HiddenSize = 96, LayerCount = 3, VocabularySize = 1000 },
        ["mamba, 200 wide"] = new MambaConfig { HiddenSize = 200, LayerCount = 2, VocabularySize = 517, StateSize = 8, TimeStepRank = 6, Norm = NormKind.LayerNorm, ProjectionBias = true },
        ["mamba, odd sizes"] = new MambaConfig { HiddenSize = 37, LayerCount = 2, VocabularySize = 101, StateSize = 5, ConvolutionSize = 3, TimeStepRank = 7, TieEmbeddings = false, ConvolutionBias = false },
        ["mamba, 768 wide"] = new MambaConfig { HiddenSize = 768, LayerCount = 2, VocabularySize = 20011 },
        ["mamba, 1100 wide"] = new MambaConfig { HiddenSize = 1100, LayerCount = 2, VocabularySize = 203, Expand = 1, ProjectionBias = true },
        // So many channels that a block of `state` takes four of eight rows, on GPUs of up to 132 multiprocessors.
        ["mamba, 2120 wide"] = new MambaConfig { HiddenSize = 2120, LayerCount = 1, VocabularySize = 205 },
        ["gpt-neox, as published"] = new GptNeoXConfig { HiddenSize = 128, LayerCount = 2, VocabularySize = 1003, HeadCount = 2 },
        ["gpt-neox, odd sizes"] = new GptNeoXConfig { HiddenSize = 57, LayerCount = 2, VocabularySize = 101, HeadCount = 3, IntermediateSize = 91, RotaryFraction = 0.33, TieEmbeddings = true },
        ["gpt-neox, sequential, no biases"] = new GptNeoXConfig { HiddenSize = 160, LayerCount = 2, VocabularySize = 517, HeadCount = 2, ParallelResidual = false, AttentionBias = false, RotaryFraction = 1, TanhGelu = true },
        ["gpt-neox, 768 wide"] = new GptNeoXConfig { HiddenSize = 768, LayerCount = 2, VocabularySize = 20011, HeadCount = 12 },
    };

    public static TheoryData<string> Models => [.. Configurations.Keys];

    public static TheoryData<string, ScalarType> ModelsAndTypes
    {
        get
        {
            var data = new TheoryData<string, ScalarType>();
            foreach (var name in Configurations.Keys)
                foreach (var type in new[] { ScalarType.Float32, ScalarType.BFloat16, ScalarType.Float16 }) data.Add(name, type);
            return data;
        }
    }

    [SkippableTheory, MemberData(nameof(ModelsAndTypes))]
    public void EqualsTheTensorOperations(string name, ScalarType type)
    {
        Gpu();
        using var model = Build(name, type).to(CUDA);
        using var wide = Build(name, ScalarType.Float32);
        using (no_grad())
            foreach (var (to, from) in wide.parameters().Zip(model.parameters())) to.copy_(from).DetachFromDisposeScope();
        foreach (var b in new[] { 1, 3, 16 })
        {
            var ours = Enumerable.Range(0, b).Select(row => Filled(model, row, type)).ToArray();
            var theirs = ours.Select(s => Copy(s, wide)).ToArray();
            for (var step = 0; step < 4; step++)
            {
                using var scope = NewDisposeScope();
                var ids = Ids(model, Enumerable.Range(0, b), step);
                var logits = Decode(model, ids.to(CUDA), ours);
                logits.dtype.Should().Be(ScalarType.Float32);
                logits.device_type.Should().Be(DeviceType.CUDA);
                var expected = cat([.. theirs.Select((s, i) => wide.Prefill(wide.Embed(ids.narrow(0, i, 1).unsqueeze(0)), s))], 0);
                // The cache and the rotary tables of GPT-NeoX are of 16 bits.
                output.Close(logits, expected, type == ScalarType.Float32 ? 1e-5 : model is Mamba ? 1e-3 : 1e-2, $"{name}, {type}, {b} rows, step {step}");
                if (step < 3) continue;
                for (var i = 0; i < b; i++)
                {
                    ours[i].Length.Should().Be(theirs[i].Length);
                    foreach (var (a, e) in TensorsOf(ours[i]).Zip(TensorsOf(theirs[i])))
                        output.Close(Written(a, ours[i]), Written(e, theirs[i]), type == ScalarType.Float32 ? 1e-5 : model is Mamba ? 1e-3 : 1e-2, $"the state of row {i}");
                }
            }
            foreach (var s in ours.Concat(theirs)) s.Dispose();
        }
    }

    [SkippableTheory, MemberData(nameof(ModelsAndTypes))]
    public void ARowsBitsDoNotDependOnTheRowsBesideIt(string name, ScalarType type)
    {
        Gpu();
        using var model = Build(name, type).to(CUDA);
        const int rows = 16, steps = 2;
        List<int[]> alone = [], again = [];
        List<byte[]> states = [];
        for (var row = 0; row < rows; row++)
        {
            using var state = Filled(model, row, type);
            using var twin = Filled(model, row, type);
            alone.Add(Run([row], [state])[0]);
            again.Add(Run([row], [twin])[0]);
            states.Add(Bytes(state));
        }
        again.Should().BeEquivalentTo(alone, o => o.WithStrictOrdering(), "two runs give the same bits");
        foreach (var b in new[] { 2, 3, 4, 7, 8, 11, 16 })
        {
            var order = Enumerable.Range(0, rows).Reverse().Take(b).ToArray();
            var batch = order.Select(row => Filled(model, row, type)).ToArray();
            var bits = Run(order, batch);
            for (var i = 0; i < b; i++)
            {
                bits[i].AsSpan().SequenceEqual(alone[order[i]]).Should().BeTrue($"{name}, {type}, row {order[i]} of {b}");
                Bytes(batch[i]).AsSpan().SequenceEqual(states[order[i]]).Should().BeTrue($"{name}, {type}, the state of row {order[i]} of {b}");
                batch[i].Dispose();
            }
        }

        int[][] Run(int[] order, DecoderState[] batch)
        {
            Tensor? logits = null;
            for (var step = 0; step < steps; step++)
            {
                using var ids = Ids(model, order, step).to(CUDA);
                logits?.Dispose();
                logits = Decode(model, ids, batch);
            }
            using var near = logits!.cpu();
            return [.. MemoryMarshal.Cast<byte, int>(near.bytes).ToArray().Chunk((int)model.VocabularySize)];
        }
    }

    [SkippableTheory, MemberData(nameof(Models))]
    public void MoreRowsThanABatchHoldsAreSeveralBatches(string name)
    {
        Gpu();
        using var model = Build(name, ScalarType.BFloat16).to(CUDA);
        var states = Enumerable.Range(0, 21).Select(row => Filled(model, row, ScalarType.BFloat16)).ToArray();
        var twins = states.Select(s => s.Clone()).ToArray();
        using var ids = Ids(model, Enumerable.Range(0, 21), 0).to(CUDA);
        using var together = Decode(model, ids, states);
        for (var i = 0; i < states.Length; i++)
        {
            using var scope = NewDisposeScope();
            CudaNumbers.SameBits(together.narrow(0, i, 1), Decode(model, ids.narrow(0, i, 1), [twins[i]]), $"row {i}");
        }
        foreach (var s in states.Concat(twins)) s.Dispose();
    }

    [SkippableTheory, MemberData(nameof(Models))]
    public void WeightsThatChangeOrMoveAreSeen(string name)
    {
        Gpu();
        using var model = Build(name, ScalarType.Float32).to(CUDA);
        using var state = Filled(model, 0, ScalarType.Float32);
        using var ids = Ids(model, [0], 0).to(CUDA);
        using (var warm = state.Clone()) Decode(model, ids, [warm]).Dispose();
        using (no_grad())
            foreach (var p in model.parameters()) p.mul_(1.1).DetachFromDisposeScope();
        Agree(1e-5);
        model.to(ScalarType.BFloat16).to(ScalarType.Float32); // other tensors behind the parameters
        Agree(1e-5);

        void Agree(double tolerance)
        {
            using var scope = NewDisposeScope();
            using var wide = Build(name, ScalarType.Float32);
            using (no_grad())
                foreach (var (to, from) in wide.parameters().Zip(model.parameters())) to.copy_(from).DetachFromDisposeScope();
            using var ours = state.Clone();
            using var theirs = Copy(state, wide);
            output.Close(Decode(model, ids, [ours]), wide.Prefill(wide.Embed(ids.cpu().unsqueeze(0)), theirs), tolerance, name);
        }
    }

    [SkippableTheory, MemberData(nameof(Models))]
    public void ARowThatIsNotANumberLeavesTheOthersAlone(string name)
    {
        Gpu();
        using var model = Build(name, ScalarType.BFloat16).to(CUDA);
        using DecoderState good = Filled(model, 0, ScalarType.BFloat16), alone = good.Clone(), bad = Filled(model, 1, ScalarType.BFloat16);
        foreach (var t in TensorsOf(bad)) t.fill_(float.NaN);
        using var ids = Ids(model, [0, 1], 0).to(CUDA);
        using var first = ids.narrow(0, 0, 1);
        using var together = Decode(model, ids, [good, bad]);
        using var row = together.narrow(0, 0, 1);
        using var single = Decode(model, first, [alone]);
        CudaNumbers.SameBits(row, single, name);
        using var other = together.narrow(0, 1, 1).isnan().all();
        other.item<bool>().Should().BeTrue();
    }

    [SkippableTheory]
    [InlineData("mamba, odd sizes", ScalarType.Float32, 1e4)]
    [InlineData("mamba, 1100 wide", ScalarType.BFloat16, 1e4)]
    [InlineData("mamba, 1100 wide", ScalarType.BFloat16, 1e-3)]
    [InlineData("mamba, as published", ScalarType.Float16, 3e4)] // times a norm's weight it is beyond float16
    public void AResidualOfAnyLengthIsNormed(string name, ScalarType type, double length)
    {
        Gpu();
        using var model = (Mamba)Build(name, type).to(CUDA);
        using var wide = Build(name, ScalarType.Float32);
        using var scope = NewDisposeScope();
        const int rows = 5;
        var ids = Ids(model, Enumerable.Range(0, rows), 0);
        using (no_grad())
        {
            // Each row has its own length: another's factor would show.
            var table = model.backbone.embedding.weight;
            table.div_(table.abs().max());
            for (var row = 0; row < rows; row++) table[ids[row].item<long>()].mul_(length * (row + 1) / rows);
            foreach (var norm in model.backbone.layers.Select(l => l.norm).Append(model.backbone.norm_f)) norm.weight.mul_(4);
            foreach (var (to, from) in wide.parameters().Zip(model.parameters())) to.copy_(from);
        }
        var ours = Enumerable.Range(0, rows).Select(row => Filled(model, row, type)).ToArray();
        var theirs = ours.Select(s => Copy(s, wide)).ToArray();
        var logits = Decode(model, ids.to(CUDA), ours);
        for (var row = 0; row < rows; row++)
            output.Close(logits.narrow(0, row, 1), wide.Prefill(wide.Embed(ids.narrow(0, row, 1).unsqueeze(0)), theirs[row]), type == ScalarType.Float32 ? 3e-5 : 1e-3, $"{name}, {type}, row {row}");
        foreach (var s in ours.Concat(theirs)) s.Dispose();
    }

    [SkippableTheory, MemberData(nameof(Models))]
    public void ASessionTakesTheGreatestLogitsOfEachStep(string name)
    {
        Gpu();
        foreach (var type in new[] { ScalarType.Float32, ScalarType.BFloat16 })
        {
            using var model = Build(name, type).to(CUDA);
            foreach (var rows in new[] { 1, 3, 19 })
                Answers(model, type, rows, new() { MaxNewTokens = 25, IgnoreEndToken = true }, 0).Ids
                    .Should().BeEquivalentTo(Enumerable.Range(0, rows).Select(row => ByHand(model, type, row, 25)), o => o.WithStrictOrdering());
        }
    }

    // Logits that are known, all of them less than zero: the final norm gives its bias, a one, for every token.
    [SkippableTheory]
    [InlineData(ScalarType.Float32)]
    [InlineData(ScalarType.BFloat16)]
    public void OfEqualLogitsTheFirstIsTaken(ScalarType type)
    {
        Gpu();
        using var model = (GptNeoX)Build("gpt-neox, as published", type).to(CUDA);
        using (no_grad())
        using (NewDisposeScope())
        {
            var (norm, head) = (model.gpt_neox.final_layer_norm, model.embed_out!.weight!);
            foreach (var t in new[] { norm.weight!, norm.bias!, head }) t.zero_();
            norm.bias![0].fill_(1);
            head.select(1, 0).copy_(tensor(Enumerable.Range(0, 1003).Select(id => id < 500 ? -9f : -1 - (id + 3) % 7).ToArray(), device: CUDA));
        }
        foreach (var rows in new[] { 1, 3, 16 })
            foreach (var ids in Answers(model, type, rows, new() { MaxNewTokens = 5, IgnoreEndToken = true }, 0).Ids)
                ids.Skip(1).Should().Equal(Enumerable.Repeat(501, 4), "-1 is the greatest, and 501 the first with it"); // the first is given
    }

    [SkippableTheory, MemberData(nameof(Models))]
    public void RowsEndByThemselves(string name)
    {
        Gpu();
        const ScalarType type = ScalarType.BFloat16;
        using var model = Build(name, type).to(CUDA);
        var options = new GenerationOptions { MaxNewTokens = 30 };
        var free = Answers(model, type, 6, options with { IgnoreEndToken = true }, 0).Ids;
        var end = free[2][9]; // ends row 2 at the latest there, and others wherever they say it
        var (ids, reasons) = Answers(model, type, 6, options, end);
        for (var row = 0; row < 6; row++)
        {
            var at = free[row].IndexOf(end);
            ids[row].Should().Equal(at < 0 ? free[row] : free[row].Take(at), $"row {row}");
            reasons[row].Should().Be(at < 0 ? FinishReason.MaxNewTokens : FinishReason.EndToken);
        }
    }

    [SkippableTheory, MemberData(nameof(Models))]
    public void ThePenaltyIsThatOfTheHost(string name)
    {
        Gpu();
        const ScalarType type = ScalarType.Float32;
        using var model = Build(name, type).to(CUDA);
        var options = new GenerationOptions { MaxNewTokens = 30, IgnoreEndToken = true, RepetitionPenalty = 1.7 };
        var ids = Answers(model, type, 3, options, 0).Ids;
        for (var row = 0; row < 3; row++) ids[row].Should().Equal(ByHand(model, type, row, 30, options), $"row {row}");
        ids.Should().NotBeEquivalentTo(Answers(model, type, 3, options with { RepetitionPenalty = 1 }, 0).Ids);
    }

    [SkippableTheory, MemberData(nameof(Models))]
    public void SamplingDrawsWhatTheHostDraws(string name)
    {
        Gpu();
        const ScalarType type = ScalarType.Float32;
        using var model = Build(name, type).to(CUDA);
        var options = new GenerationOptions { MaxNewTokens = 40, IgnoreEndToken = true, Temperature = 1.3, Seed = 5 };
        foreach (var o in new[] { options, options with { TopK = 7 }, options with { TopP = 0.6 }, options with { TopK = 50, TopP = 0.9, RepetitionPenalty = 1.2 }, options with { TopK = 1 }, options with { TopK = 1_000_000 }, options with { Temperature = 1e-3 }, options with { TopP = 1e-9 } })
        {
            var ids = Answers(model, type, 3, o, 0).Ids;
            for (var row = 0; row < 3; row++) ids[row].Should().Equal(ByHand(model, type, row, 40, o), $"row {row}, {o}");
        }
    }

    [SkippableFact]
    public void EqualProbabilitiesAreTakenByTheirIds()
    {
        Gpu();
        using var model = Build("mamba, odd sizes", ScalarType.Float32).to(CUDA);
        using (no_grad())
            foreach (var p in model.parameters()) p.zero_().DetachFromDisposeScope();
        var options = new GenerationOptions { MaxNewTokens = 200, IgnoreEndToken = true, Temperature = 1, Seed = 5 };
        foreach (var (o, most) in new[] { (options with { TopK = 5 }, 4), (options with { TopP = 0.25 }, 25), (options, 100) }) // of 101 tokens
        {
            var ids = Answers(model, ScalarType.Float32, 1, o, 0).Ids[0];
            ids.Should().Equal(ByHand(model, ScalarType.Float32, 0, 200, o));
            ids.Skip(1).Max().Should().BeInRange(most - 3, most);
        }
    }

    [SkippableFact]
    public void LogitsThatAreNotFiniteAreAnError()
    {
        Gpu();
        using var model = Build("mamba, as published", ScalarType.Float32).to(CUDA);
        using var session = new DecodingSession(model, CUDA, new() { MaxNewTokens = 10 }, -1);
        Add(session, model, ScalarType.Float32, 0, new() { MaxNewTokens = 10 });
        using (no_grad()) model.parameters().First().fill_(float.NaN).DetachFromDisposeScope();
        session.Invoking(s => s.Step()).Should().Throw<InvalidOperationException>().WithMessage("*not finite*");
    }

    [SkippableTheory, MemberData(nameof(Models))]
    public void SessionsLeaveNoMemoryBehind(string name)
    {
        var gpu = Gpu();
        Compiled.Value.Wait(); // loading kernels takes memory, too
        using var model = Build(name, ScalarType.BFloat16).to(CUDA);
        for (var i = 0; i < 5; i++) Run(i);
        var (before, live) = (gpu.Memory().Free, Live());
        for (var i = 0; i < 200; i++) Run(i);
        output.WriteLine($"{name}: free {before} bytes before, {gpu.Memory().Free} after");
        gpu.Memory().Free.Should().BeGreaterThanOrEqualTo(before - (4 << 20));
        Live().Should().Be(live);

        // Every third is left in the middle, with steps on their way.
        void Run(int seed)
        {
            using var session = new DecodingSession(model, CUDA, new() { MaxNewTokens = 8, IgnoreEndToken = true }, 0);
            for (var row = 0; row < 1 + seed % 3; row++) Add(session, model, ScalarType.BFloat16, row, new());
            for (var step = 0; session.Step() && (seed % 3 != 2 || step < 2); step++)
            {
            }
        }

        static long Live() => DisposeScopeManager.Statistics.TensorStatistics.ThreadTotalLiveCount;
    }

    [SkippableFact]
    public void StepsAreTimed()
    {
        Gpu();
        using var model = Build("gpt-neox, as published", ScalarType.BFloat16).to(CUDA);
        model.CudaDecoder!.Time(model, 3, 100, steps: 20, runs: 2).Should().HaveCount(2).And.OnlyContain(t => t > 0);
    }

    [SkippableFact]
    public void SeveralThreadsMayDecodeOnOneModel()
    {
        Gpu();
        using var model = Build("mamba, 200 wide", ScalarType.BFloat16).to(CUDA);
        var expected = Enumerable.Range(0, 4).Select(row => ByHand(model, ScalarType.BFloat16, row, 25)).ToArray();
        var actual = new List<int>[4];
        var threads = Enumerable.Range(0, 4).Select(row => new Thread(() => actual[row] = Answers(model, ScalarType.BFloat16, 1, new() { MaxNewTokens = 25, IgnoreEndToken = true }, 0, first: row).Ids[0])).ToList();
        threads.ForEach(t => t.Start());
        threads.ForEach(t => t.Join());
        for (var row = 0; row < 4; row++) actual[row].Should().Equal(expected[row]);
    }

    [SkippableFact]
    public void AStateOfAnotherDeviceIsRefused()
    {
        Gpu();
        using var model = Build("mamba, as published", ScalarType.Float32);
        using var state = model.CreateState(4);
        model.to(CUDA);
        using var ids = tensor(new long[] { 3 }).to(CUDA);
        model.Invoking(m => m.Decode(ids, [state])).Should().Throw<ArgumentException>().WithMessage("*cpu*cuda:0*CreateState*");
    }

    [SkippableTheory]
    [InlineData("mamba-ssm")]
    [InlineData("mamba-hf")]
    [InlineData("pythia-hf")]
    public void TheFixturesGreedyIds(string folder)
    {
        Gpu();
        using var fixture = new LanguageFixture(folder);
        using var mode = inference_mode();
        using var scope = NewDisposeScope();
        var model = fixture.Model.to(CUDA);
        var (ids, greedy) = (fixture["input_ids"], fixture["greedy"]);
        for (var row = 0; row < greedy.shape[0]; row++)
        {
            var expected = greedy[row].data<long>().ToArray();
            var prompt = expected.Zip(ids[row].data<long>().ToArray()).TakeWhile(p => p.First == p.Second).Select(p => p.First).ToArray();
            var options = new GenerationOptions { MaxNewTokens = expected.Length - prompt.Length, IgnoreEndToken = true };
            using var session = new DecodingSession(model, CUDA, options, 0);
            var state = model.CreateState(expected.Length);
            session.Add(state, model.Prefill(model.Embed(tensor(prompt).to(CUDA).unsqueeze(0)), state), new Sampler(options, 0, prompt));
            while (session.Step())
            {
            }
            prompt.Concat(session.Rows[0].Ids.Select(id => (long)id)).Should().Equal(expected, $"row {row}");
        }
    }

    // 150 compiles of a second or two. They go on side by side while the first tests run; a process that ends before them lets those that
    // are under way end, because libtorch is taken down behind it.
    private static readonly Lazy<Task> Compiled = new(() =>
    {
        var ending = new CancellationTokenSource();
        var compiling = Task.Run(() => Parallel.ForEach(ModelsAndTypes, new ParallelOptions { CancellationToken = ending.Token }, c =>
        {
            using var model = Build((string)c[0], (ScalarType)c[1]).to(CUDA);
            if (model.CudaDecoder!.Rent() is not { } batch) return;
            batch.CompileAll();
            model.CudaDecoder.GiveBack(batch);
        }));
        AppDomain.CurrentDomain.ProcessExit += (_, _) =>
        {
            ending.Cancel();
            Task.WhenAny(compiling).Wait(TimeSpan.FromSeconds(30));
        };
        return compiling;
    });

    private static CudaGpu Gpu()
    {
        var gpu = CudaTesting.Gpu();
        _ = Compiled.Value;
        return gpu;
    }

    private static LanguageModel Build(string name, ScalarType type)
    {
        var model = Configurations[name].Create(new RandomParameters(7, type).Root);
        // First values have zeros and ones where a mistake would hide.
        using var noGrad = no_grad();
        using var random = new Generator(11);
        foreach (var p in model.parameters())
        {
            using var noise = randn(p.shape, generator: random) * (p.dim() == 2 ? 0.5 / Math.Sqrt(p.shape[1]) : 0.2);
            using var values = noise.to(p.dtype);
            p.add_(values);
        }
        return model;
    }

    /// <summary>By the kernels, and by nothing else.</summary>
    private static Tensor Decode(LanguageModel model, Tensor ids, IReadOnlyList<DecoderState> states)
    {
        using var noGrad = no_grad();
        return model.CudaDecoder!.Decode(ids, states) ?? throw new InvalidOperationException("The kernels did not take the model.");
    }

    private static Tensor[] TensorsOf(DecoderState state)
        => state is MambaState m ? [.. m.Convolution, .. m.Scan] : [.. ((GptNeoXState)state).Keys, .. ((GptNeoXState)state).Values];

    /// <summary>A state of random numbers after some positions; what comes later is NaN.</summary>
    private static DecoderState Filled(LanguageModel model, int row, ScalarType type)
    {
        using var scope = NewDisposeScope();
        using var random = new Generator((ulong)row + 100);
        var state = model.CreateState(MaxLength);
        state.Length = row switch { 0 => 600, 1 => 511, 2 => 0, _ => 3 + 17 * row };
        foreach (var t in TensorsOf(state))
        {
            t.copy_(randn(t.shape, generator: random));
            if (state is GptNeoXState) t.narrow(2, state.Length, MaxLength - state.Length).fill_(float.NaN);
        }
        return state;
    }

    private static DecoderState Copy(DecoderState state, LanguageModel model)
    {
        var copy = model.CreateState(MaxLength);
        foreach (var (to, from) in TensorsOf(copy).Zip(TensorsOf(state))) to.copy_(from);
        copy.Length = state.Length;
        return copy;
    }

    private static Tensor Ids(LanguageModel model, IEnumerable<int> rows, int step) => tensor(rows.Select(row => (row * 31L + step * 17 + 5) % model.VocabularySize).ToArray());

    private static byte[] Bytes(DecoderState state) => [.. TensorsOf(state).SelectMany(t =>
    {
        using var near = t.cpu();
        return near.bytes.ToArray();
    })];

    private static Tensor Written(Tensor t, DecoderState state) => state is GptNeoXState ? t.narrow(2, 0, state.Length) : t;

    private static void Add(DecodingSession session, LanguageModel model, ScalarType type, int row, GenerationOptions options)
    {
        using var logits = First(model, row);
        session.Add(Filled(model, row, type), logits, new Sampler(options, row, [1, 2, 3]));
    }

    // Logits that make the row's number its first token.
    private static Tensor First(LanguageModel model, int row)
    {
        using var scope = NewDisposeScope(); // the 5 is a tensor, too
        var logits = zeros(1, model.VocabularySize);
        logits[0, row + 1] = 5;
        return logits.MoveToOuterDisposeScope();
    }

    private static (List<List<int>> Ids, List<FinishReason> Reasons) Answers(LanguageModel model, ScalarType type, int rows, GenerationOptions options, int end, int first = 0)
    {
        using var scope = NewDisposeScope();
        using var session = new DecodingSession(model, CUDA, options, end);
        for (var row = first; row < first + rows; row++) Add(session, model, type, row, options);
        while (session.Step())
        {
        }
        return ([.. session.Rows.Select(r => r.Ids)], [.. session.Rows.Select(r => r.Finished!.Value)]);
    }

    /// <summary>Token by token: the logits brought to the host, the choice made there.</summary>
    private static List<int> ByHand(LanguageModel model, ScalarType type, int row, int count, GenerationOptions? options = null)
    {
        using var scope = NewDisposeScope();
        var sampler = new Sampler(options ?? new(), row, [1, 2, 3]);
        using var state = Filled(model, row, type);
        var logits = First(model, row);
        var ids = new List<int>();
        while (true)
        {
            ids.Add(sampler.Next(logits.cpu().data<float>().ToArray()));
            if (ids.Count == count) return ids;
            logits = Decode(model, tensor(new long[] { ids[^1] }).to(CUDA), [state]);
        }
    }
}
