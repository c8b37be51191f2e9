using System.Text.RegularExpressions;

namespace MambaVL.Checkpoints;

/// <summary>Which files of a repository or folder make up a model.</summary>
internal static partial class ModelFiles
{
    /// <summary>The kinds of weights, the one to prefer first: a single file or shards, safetensors before pickle.</summary>
    public static readonly IReadOnlyList<string> WeightFiles =
        ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

    private static readonly string[] Others =
        ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"];

    /// <summary>The files to fetch, weights last, so that a model that is no model fails early.</summary>
    /// <exception cref="HubException">There is no config.json, or there are no weights.</exception>
    public static IReadOnlyList<string> Choose(IReadOnlyCollection<string> available, string where)
    {
        if (!available.Contains("config.json"))
            throw new HubException($"{where} has no config.json: it is no model of a kind that can be loaded.");
        var weights = WeightFiles.FirstOrDefault(available.Contains)
            ?? throw new HubException($"{where} has no weights; expected one of {string.Join(", ", WeightFiles)}.");

        List<string> files = [.. Others.Where(available.Contains), weights];
        if (weights.EndsWith(".index.json", StringComparison.Ordinal))
        {
            var shard = weights.StartsWith("model", StringComparison.Ordinal) ? SafetensorsShard() : PickleShard();
            files.AddRange(available.Where(f => shard.IsMatch(f)).Order(StringComparer.Ordinal));
        }
        return files;
    }

    [GeneratedRegex(@"^model-\d{5}-of-\d{5}\.safetensors$")]
    private static partial Regex SafetensorsShard();

    [GeneratedRegex(@"^pytorch_model-\d{5}-of-\d{5}\.bin$")]
    private static partial Regex PickleShard();
}
