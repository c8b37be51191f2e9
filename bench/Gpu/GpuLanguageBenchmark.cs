using System.Diagnostics;
using MambaVL.Cuda;
using MambaVL.Generation;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Bench;

/// <summary>Reading prompts of 640 positions and decoding after them, bf16, greedy, as <c>Generate</c> does both.</summary>
internal static class GpuLanguageBenchmark
{
    private const int Prompt = 640, Chunk = 16;

    private static readonly (string Name, LanguageConfig Config, (int Rows, double? Target)[] Decode, (int Rows, double? Target)[] Prefill)[] Models =
    [
        ("mamba-790m", GpuModels.Mamba790M, [(1, 0.8), (8, null)], []),
        ("mamba-2.8b", GpuModels.Mamba3B, [(1, 2.5), (8, 3.2)], [(1, 15), (8, 55)]),
        ("pythia-2.8b", GpuModels.Pythia3B, [(1, 3.0), (8, null)], [(1, 15), (8, 55)]),
    ];

    public static IEnumerable<GpuResult> Run(Options options, CudaGpu gpu, GpuTimer timer, GpuLimits limits)
    {
        foreach (var (name, config, decode, prefill) in Models)
        {
            if (!options.Takes(name)) continue;
            using var scope = NewDisposeScope();
            using var model = config.Create(new DeviceParameters(1, ScalarType.BFloat16, CUDA).Root);
            var (weights, matrices) = (GpuModels.WeightBytes(model), GpuModels.MatrixParameters(model));
            foreach (var (rows, target) in prefill)
                yield return new($"{name} prefill, b{rows} of {Prompt}", Prefill(model, rows, options, timer))
                {
                    Items = rows * Prompt, Target = target,
                    Limit = Math.Max(limits.Flops(2 * matrices * rows * Prompt), limits.Bytes(weights)), LimitOf = "products",
                };
            foreach (var (rows, target) in decode)
            {
                var time = Decode(model, rows, options);
                yield return new($"{name} decode, b{rows}", time)
                {
                    Items = rows, Target = target,
                    Limit = limits.Bytes(weights + rows * StateBytes(config)), LimitOf = "weights and states",
                };
            }
        }
    }

    private static Timing Prefill(LanguageModel model, int rows, Options options, GpuTimer timer)
    {
        using var mode = inference_mode();
        using var ids = randint(0, 50_000, [rows, Prompt], ScalarType.Int64, CUDA);
        using var embeddings = model.Embed(ids);
        return timer.Wall(options.Number("prefill-repeats", 7), _ =>
        {
            var states = model.CreateStates(rows, Prompt + 1);
            model.Prefill(embeddings, states).Dispose();
            foreach (var state in states) state.Dispose();
        }, warmUps: 2);
    }

    // The whole of a session's step: the tokens have reached the host.
    private static Timing Decode(LanguageModel model, int rows, Options options)
    {
        var chunks = options.Number("decode-repeats", 8);
        var generation = new GenerationOptions { MaxNewTokens = (chunks + 3) * Chunk, IgnoreEndToken = true, Temperature = 0 };
        using var session = new DecodingSession(model, CUDA, generation, endToken: 0);
        using (inference_mode())
        {
            using var ids = randint(0, 50_000, [rows, Prompt], ScalarType.Int64, CUDA);
            using var embeddings = model.Embed(ids);
            var states = model.CreateStates(rows, Prompt + generation.MaxNewTokens);
            using var logits = model.Prefill(embeddings, states);
            for (var row = 0; row < rows; row++)
            {
                using var last = logits.narrow(0, row, 1);
                session.Add(states[row], last, new Sampler(generation, row, []));
            }
        }
        var times = new List<double>();
        for (var chunk = -1; chunk < chunks; chunk++)
        {
            var start = Stopwatch.GetTimestamp();
            for (var i = 0; i < Chunk; i++) session.Step();
            if (chunk >= 0) times.Add(Stopwatch.GetElapsedTime(start).TotalMilliseconds / Chunk);
        }
        return Timing.Of(times);
    }

    // Read and written once a token; a cache of keys and values is read, at the prompt's length.
    private static double StateBytes(LanguageConfig config) => config switch
    {
        MambaConfig mamba => 2.0 * 4 * mamba.LayerCount * mamba.InnerSize * (mamba.StateSize + mamba.ConvolutionSize),
        _ => 2.0 * 2 * config.LayerCount * config.HiddenSize * Prompt,
    };
}
