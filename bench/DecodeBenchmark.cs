using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using MambaVL.Checkpoints;
using MambaVL.Kernels;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Bench;

/// <summary>One token for each of b rows on the CPU: the kernels, beside a plain loop that reads as many bytes as a step has to,
/// and beside the model's own tensor operations. Random weights of the published sizes.</summary>
internal static class DecodeBenchmark
{
    // What Pythia's attention reads besides the weights: the cache of this many positions.
    private const int Prompt = 600;

    private static readonly (string Name, LanguageConfig Config)[] Models =
    [
        ("mamba-130m", new MambaConfig { HiddenSize = 768, LayerCount = 24, VocabularySize = 50280 }),
        ("pythia-160m", new GptNeoXConfig { HiddenSize = 768, LayerCount = 12, VocabularySize = 50304, HeadCount = 12 }),
    ];

    /// <summary>Two results a case: against reading, and against tensor operations.</summary>
    public static IEnumerable<Result> Run(Options options)
    {
        set_num_threads(options.Threads);
        foreach (var (name, config) in Models)
            foreach (var dtype in new[] { ScalarType.Float32, ScalarType.BFloat16 })
            {
                using var model = config.Create(new RandomParameters(1, dtype).Root);
                foreach (var b in new[] { 1, 4 })
                    foreach (var result in Measure($"{name} {dtype} b{b}", model, b, options)) yield return result;
            }
    }

    private static IEnumerable<Result> Measure(string name, LanguageModel model, int b, Options options)
    {
        using var mode = inference_mode();
        var states = Enumerable.Range(0, b).Select(_ => Primed(model)).ToArray();
        var bytes = WeightBytes(model) + states.Sum(StateBytes);
        using var stream = new Stream(bytes, new CpuTeam(options.Threads));
        using var ids = arange(1, b + 1, dtype: ScalarType.Int64);

        // The sides take turns, so that a busy machine is busy for all of them.
        List<double> ours = [], reading = [], theirs = [], share = [];
        for (var i = -20; i < options.Repeats * 4; i++)
        {
            foreach (var state in states) state.Length = Prompt;
            var step = Time(() => model.Decode(ids, states).Dispose());
            var read = Time(stream.Read);
            if (i < 0) continue;
            ours.Add(step);
            reading.Add(read);
            share.Add(read / step);
            if (i % 16 == 0) theirs.Add(Time(() => TensorOperations(model, ids, states)));
        }
        foreach (var state in states) state.Dispose();

        var (median, best) = (Timing.Of(ours), Timing.Of(ours).LowerQuartile);
        yield return new(string.Create(CultureInfo.InvariantCulture,
            $"{name}: {b * 1000 / median.Median:f1} tokens/s (best quartile {b * 1000 / best:f1}), {bytes / median.Median / 1e6:f1} GB/s, {100 * Timing.Of(share).Median:f0}% of reading"),
            median, Timing.Of(reading));
        yield return new($"{name}, tensor operations", median, Timing.Of(theirs));
    }

    // The way that Decode goes where the kernels do not take the tensors.
    private static void TensorOperations(LanguageModel model, Tensor ids, DecoderState[] states)
    {
        for (var row = 0; row < states.Length; row++)
        {
            using var scope = NewDisposeScope();
            model.Prefill(model.Embed(ids.narrow(0, row, 1).unsqueeze(0)), states[row]);
        }
    }

    // A table that is only looked up in is not read: all parameters but GPT-NeoX's input embedding.
    private static long WeightBytes(LanguageModel model) => model.named_parameters()
        .Where(p => !p.name.StartsWith("gpt_neox.embed_in", StringComparison.Ordinal))
        .Sum(p => p.parameter.numel() * p.parameter.element_size());

    private static long StateBytes(DecoderState state) => state is GptNeoXState cache
        ? cache.Keys.Concat(cache.Values).Sum(t => t.shape[0] * Prompt * t.shape[2] * t.element_size())
        : ((MambaState)state).Convolution.Concat(((MambaState)state).Scan).Sum(t => t.numel() * t.element_size());

    private static DecoderState Primed(LanguageModel model)
    {
        var state = model.CreateState(Prompt + 2);
        if (state is GptNeoXState cache)
            foreach (var t in cache.Keys.Concat(cache.Values)) t.normal_();
        return state;
    }

    private static double Time(Action action)
    {
        var start = Stopwatch.GetTimestamp();
        action();
        return Stopwatch.GetElapsedTime(start).TotalMilliseconds;
    }

    /// <summary>Memory beside the weights, and a loop that adds it up.</summary>
    private sealed unsafe class Stream : IDisposable
    {
        private const int Chunk = 32 << 10;
        private readonly byte* _memory;
        private readonly int _chunks;
        private readonly CpuTeam _team;

        public Stream(long bytes, CpuTeam team)
        {
            (_chunks, _team) = ((int)(bytes / Chunk), team);
            _memory = (byte*)NativeMemory.AlignedAlloc((nuint)((long)_chunks * Chunk), 64);
            var random = new Random(1);
            for (var i = 0; i < _chunks; i++) random.NextBytes(new Span<byte>(_memory + (long)i * Chunk, Chunk));
        }

        public void Read()
        {
            var region = new Region(_memory);
            _team.Run(ref region, _chunks);
        }

        public void Dispose() => NativeMemory.AlignedFree(_memory);

        private readonly struct Region(byte* memory) : IRegion
        {
            private static int _sink;

            public void Execute(int chunk)
            {
                var p = (int*)(memory + (long)chunk * Chunk);
                if (Vector512.IsHardwareAccelerated)
                {
                    Vector512<int> a = default, b = default, c = default, d = default;
                    for (var end = p + Chunk / 4; p < end; p += 64)
                    {
                        a += Vector512.Load(p);
                        b += Vector512.Load(p + 16);
                        c += Vector512.Load(p + 32);
                        d += Vector512.Load(p + 48);
                    }
                    _sink = Vector512.Sum(a + b + (c + d));
                }
                else
                {
                    Vector256<int> a = default, b = default, c = default, d = default;
                    for (var end = p + Chunk / 4; p < end; p += 32)
                    {
                        a += Vector256.Load(p);
                        b += Vector256.Load(p + 8);
                        c += Vector256.Load(p + 16);
                        d += Vector256.Load(p + 24);
                    }
                    _sink = Vector256.Sum(a + b + (c + d));
                }
            }
        }
    }
}
