using System.Globalization;
using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

namespace MambaVL.Bench;

/// <summary>Reading a prompt of 600 tokens on the CPU, beside the model's matrix products alone: what no implementation on
/// the same library can be faster than. Random weights of the published sizes.</summary>
internal static class PrefillBenchmark
{
    private static readonly (string Name, LanguageConfig Config)[] Models =
    [
        ("mamba-130m", new MambaConfig { HiddenSize = 768, LayerCount = 24, VocabularySize = 50280 }),
        ("pythia-160m", new GptNeoXConfig { HiddenSize = 768, LayerCount = 12, VocabularySize = 50304, HeadCount = 12 }),
    ];

    public static IEnumerable<Result> Run(Options options)
    {
        set_num_threads(options.Threads);
        var length = options.Number("length", 600);
        foreach (var (name, config) in Models)
            foreach (var dtype in new[] { ScalarType.Float32, ScalarType.BFloat16 })
            {
                using var model = config.Create(new RandomParameters(1, dtype).Root);
                yield return Measure(name, model, dtype, length, options);
            }
    }

    private static Result Measure(string name, LanguageModel model, ScalarType dtype, int length, Options options)
    {
        using var mode = inference_mode();
        using var scope = NewDisposeScope();
        var embeddings = model.Embed(arange(1, length + 1, dtype: ScalarType.Int64).unsqueeze(0));       // (1, l, d)
        var weights = model.named_parameters().Where(p => p.name.Contains("layers.") && p.parameter.dim() == 2 && !p.name.EndsWith("A_log", StringComparison.Ordinal))
            .Select(p => (Tensor)p.parameter).ToArray();
        var inputs = weights.Select(w => w.shape[1]).Distinct().ToDictionary(n => n, n => rand(length, n, dtype: dtype));

        List<double> ours = [], products = [];
        for (var i = -2; i < options.Repeats; i++)
        {
            var time = options.Time(() =>
            {
                using var state = model.CreateState(length);
                model.Prefill(embeddings, state).Dispose();
            });
            var limit = options.Time(() =>
            {
                foreach (var w in weights) F.linear(inputs[w.shape[1]], w).Dispose();
            });
            if (i < 0) continue;
            ours.Add(time);
            products.Add(limit);
        }
        var median = Timing.Of(ours);
        return new(string.Create(CultureInfo.InvariantCulture, $"{name} {dtype}, {length} tokens: {length * 1000 / median.Median:f0} tokens/s"), median, Timing.Of(products));
    }
}
