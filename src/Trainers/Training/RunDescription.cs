using System.Globalization;
using MambaVL.Checkpoints;
using MambaVL.Transforms;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Training;

/// <summary>All that a run's result depends on, as text: a checkpoint of another run is not gone on with.</summary>
/// <remarks>MicroBatchSize is not among it: it changes roundings alone, and whoever ran out of memory goes on with a smaller one.</remarks>
internal static class RunDescription
{
    public static SortedDictionary<string, string> Of(TrainingOptions options, TrainingModel model, TrainingData train, TrainingData? validation)
    {
        var config = TrainingModel.ConfigOf(options);
        var run = new SortedDictionary<string, string>(StringComparer.Ordinal)
        {
            ["Trainer"] = options.GetType().Name.Replace("Options", ""),
            ["Model (weights)"] = Hash(options.Model),
            ["Model (configuration)"] = config.ToJson().ToJsonString(),
            ["Data"] = train.Fingerprint,
            ["Validation data"] = validation?.Fingerprint ?? "none",
            ["Precision"] = model.Precision.ToString(),
        };
        foreach (var (name, value) in new (string, object?)[]
        {
            (nameof(options.Epochs), options.Epochs), (nameof(options.MaxSteps), options.MaxSteps), (nameof(options.BatchSize), options.BatchSize),
            (nameof(options.RowsPerImage), options.RowsPerImage),
            (nameof(options.LearningRate), options.LearningRate), (nameof(options.WarmupShare), options.WarmupShare), (nameof(options.FinalShare), options.FinalShare),
            (nameof(options.Beta1), options.Beta1), (nameof(options.Beta2), options.Beta2), (nameof(options.Epsilon), options.Epsilon),
            (nameof(options.WeightDecay), options.WeightDecay), (nameof(options.ClipNorm), options.ClipNorm), (nameof(options.Seed), options.Seed),
            (nameof(options.Metric), options.Metric), (nameof(options.ValidationSteps), options.ValidationSteps), (nameof(options.Patience), options.Patience),
            ("LoRA", options.Adapters is { } lora ? $"rank {lora.Rank}, alpha {lora.Alpha}, dropout {lora.Dropout}, seed {lora.Seed}, {string.Join(" ", lora.Targets)}" : null),
            (nameof(options.Generation.MaxNewTokens), options.Generation.MaxNewTokens),
        })
            run[name] = Convert.ToString(value, CultureInfo.InvariantCulture) is { Length: > 0 } text ? text : "none";
        foreach (var segment in model.Parameters.Names.GroupBy(options.Share))
            run[string.Create(CultureInfo.InvariantCulture, $"Parameters at {segment.Key} of the learning rate")] = segment.Count().ToString(CultureInfo.InvariantCulture);
        return run;
    }

    /// <summary>What differs, one line each; empty where nothing does.</summary>
    public static IReadOnlyList<string> Differences(IReadOnlyDictionary<string, string> stored, IReadOnlyDictionary<string, string> now)
        => [.. stored.Keys.Union(now.Keys).Order(StringComparer.Ordinal)
            .Where(k => stored.GetValueOrDefault(k) != now.GetValueOrDefault(k))
            .Select(k => $"{k}: {Short(stored.GetValueOrDefault(k))} there, {Short(now.GetValueOrDefault(k))} now")];

    private static string Short(string? value) => value is null ? "nothing" : value.Length <= 60 ? value : value[..57] + "...";

    private static string Hash(VisionLanguageModel model)
    {
        using var hashing = new HashingStream(Stream.Null);
        SafetensorsWriter.Write(hashing, model.NamedParameters().ToDictionary(p => p.Name, p => (Tensor)p.Parameter));
        return hashing.Finish("").Sha256;
    }
}
