using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using MambaVL.Checkpoints;
using MambaVL.Generation;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Bench;

/// <summary>Whole models of full size, random weights, bf16: our logits against PyTorch's in float32, within the error that PyTorch's
/// own bf16 makes; greedy tokens equal wherever the best two logits lie further apart than that error.</summary>
internal static class GpuAgreement
{
    private const int Prompt = 32, Tokens = 64;

    // Two computations of one precision are not equally far from the truth by chance.
    private const double Chance = 1.05;

    private static readonly (string Name, LanguageConfig Config)[] Models =
        [("mamba-790m", GpuModels.Mamba790M), ("mamba-2.8b", GpuModels.Mamba3B), ("pythia-2.8b", GpuModels.Pythia3B)];

    /// <summary>The models that --only takes; their weights go to --folder, by default in memory.</summary>
    public static IEnumerable<object> Run(Options options)
    {
        MambaVL.Runtime.EnsureCuda();
        var python = PyTorch.Find(options, out var problem) ?? throw new InvalidOperationException($"Agreement is with PyTorch: {problem ?? "--python is none"}.");
        foreach (var (name, config) in Models)
        {
            if (!options.Takes(name)) continue;
            var folder = Path.Combine(options.Values.GetValueOrDefault("folder", Directory.Exists("/dev/shm") ? "/dev/shm" : Path.GetTempPath()), $"mambavl-agree-{Environment.ProcessId}");
            Directory.CreateDirectory(folder);
            try
            {
                var clock = Stopwatch.StartNew();
                Write(config, folder);
                var result = Compare(python, folder, name, config);
                yield return result with { Seconds = clock.Elapsed.TotalSeconds };
                if (!result.Agrees) Environment.ExitCode = 1;
            }
            finally
            {
                Directory.Delete(folder, recursive: true);
            }
        }
    }

    private static void Write(LanguageConfig config, string folder)
    {
        using var scope = NewDisposeScope();
        using var mode = inference_mode();
        using var model = config.Create(new DeviceParameters(7, ScalarType.BFloat16, CUDA).Root);
        SafetensorsWriter.WriteFolder(folder, model.named_parameters().ToDictionary(p => p.name, p => (Tensor)p.parameter));

        var generation = new GenerationOptions { MaxNewTokens = Tokens, IgnoreEndToken = true, Temperature = 0 };
        using var prompt = randint(0, 50_000, [1, Prompt], ScalarType.Int64, CUDA);
        var embeddings = model.Embed(prompt);
        long[] chosen;
        using (var session = new DecodingSession(model, CUDA, generation, endToken: 0))
        {
            var state = model.CreateState(Prompt + Tokens);
            using var first = model.Prefill(embeddings, state);
            var row = session.Add(state, first, new Sampler(generation, 0, []));
            while (session.Step())
            {
            }
            chosen = [.. row.Ids.Select(id => (long)id)];
        }

        // The same tokens once more: the logits of each step, and of all positions at once.
        var ids = cat([prompt[0], tensor(chosen, device: CUDA)]);                                          // (l)
        using var again = model.CreateState(Prompt + Tokens);
        var steps = new List<Tensor> { model.Prefill(embeddings, again) };
        for (var i = 0; i + 1 < Tokens; i++) steps.Add(model.Decode(ids.narrow(0, Prompt + i, 1), [again]).to(ScalarType.Float32));
        SafetensorsWriter.Write(Path.Combine(folder, "ours.safetensors"), new Dictionary<string, Tensor>
        {
            ["ids"] = ids,
            ["decode"] = cat(steps, 0),
            ["forward"] = model.Forward(model.Embed(ids.unsqueeze(0)))[0].to(ScalarType.Float32),
        });
    }

    private static Agreement Compare(string python, string folder, string name, LanguageConfig config)
    {
        var output = Path.Combine(folder, "agreement.json");
        var heads = config is GptNeoXConfig neox ? neox.HeadCount : 0;
        PyTorch.Start(python, "agree.py", "--json", output, "--folder", folder, "--name", name, "--kind", config is MambaConfig ? "mamba" : "gpt_neox", "--heads", heads.ToString(CultureInfo.InvariantCulture));
        if (!File.Exists(output)) throw new InvalidOperationException($"bench/pytorch/agree.py gave no result for {name}; what it printed stands above.");
        return JsonSerializer.Deserialize<Agreement>(File.ReadAllText(output), PyTorch.Json)!;
    }

    /// <param name="Logits">Errors relative to float32, ours and PyTorch's.</param>
    /// <param name="Greedy">Tokens.</param>
    private sealed record Agreement(LogitErrors[] Logits, GreedyTokens Greedy)
    {
        public double Seconds { get; init; }

        public bool Agrees => Logits.All(l => l.Error <= Chance * l.PyTorch) && Greedy.Differing == 0;

        public override string ToString() => string.Create(CultureInfo.InvariantCulture,
            $"{string.Join("\n", Logits.AsEnumerable())}\n{Greedy.Case,-24} {Greedy.Same} of {Greedy.Tokens} the float32 model's choice (PyTorch's bf16: {Greedy.PyTorchSame}), {Greedy.Distinct} distinct; {Greedy.Differing} differ of the {Greedy.Clear} that PyTorch's error leaves no doubt of\n{(Agrees ? "agrees" : "DOES NOT AGREE")}, {Seconds:f0} s");
    }

    private sealed record LogitErrors(string Case, double Error, double PyTorch, double Worst, double PyTorchWorst, double Spread)
    {
        public override string ToString() => string.Create(CultureInfo.InvariantCulture,
            $"{Case,-24} error {Error:e3} of the logits, PyTorch's bf16 {PyTorch:e3}; at most {Worst:f4}, PyTorch's {PyTorchWorst:f4}; the logits' standard deviation {Spread:f2}");
    }

    private sealed record GreedyTokens(string Case, int Tokens, int Clear, int Same, int Differing, int Distinct, int PyTorchSame);
}
