namespace MambaVL.Checkpoints;

/// <summary>How the names in a checkpoint relate to those that a model asks for.</summary>
public sealed record CheckpointNames
{
    /// <summary>Mamba and Mamba-VL. Embedding and head are tied and any of the three names may hold them: state-spaces
    /// files say <c>embedding</c>, transformers' files <c>embeddings</c>.</summary>
    public static CheckpointNames Mamba { get; } = new()
    {
        SameParameter = [["backbone.embedding.weight", "backbone.embeddings.weight", "lm_head.weight"]],
    };

    /// <summary>GPT-NeoX and Pythia-VL: the head goes by two names; old files hold buffers that are computed today.</summary>
    public static CheckpointNames GptNeoX { get; } = new()
    {
        SameParameter = [["embed_out.weight", "lm_head.weight"]],
        Ignored =
        [
            "gpt_neox.layers.*.attention.bias", "gpt_neox.layers.*.attention.masked_bias",
            "gpt_neox.layers.*.attention.rotary_emb.inv_freq",
        ],
    };

    /// <summary>What stands before every name in the checkpoint and not in the model, with its dot:
    /// <c>vision_encoder.</c>. Default: nothing.</summary>
    public string Prefix { get; init; } = "";

    /// <summary>Groups of names, without the prefix, for one and the same parameter. A checkpoint may hold it under any of
    /// them, or under several if the values are equal. A name that the model itself asks for stands for itself alone.
    /// Default: none.</summary>
    public IReadOnlyList<IReadOnlyList<string>> SameParameter { get; init; } = [];

    /// <summary>Patterns, without the prefix, of tensors in the checkpoint that no model uses. <c>*</c> is one part between
    /// dots; a last part <c>**</c> is all that follows. Default: none.</summary>
    public IReadOnlyList<string> Ignored { get; init; } = [];

    /// <summary>Patterns, as in <see cref="Ignored"/>, of parameters that start from their initial values where the
    /// checkpoint lacks them. Default: none, every parameter must be there.</summary>
    public IReadOnlyList<string> MayBeMissing { get; init; } = [];

    /// <summary>Whether a name, split at the dots, fits one of the patterns.</summary>
    internal static bool Matches(IReadOnlyList<string> patterns, string name)
    {
        foreach (var pattern in patterns)
        {
            string[] expected = pattern.Split('.'), parts = name.Split('.');
            var open = expected[^1] == "**";
            var fixedParts = open ? expected.Length - 1 : expected.Length;
            if (open ? parts.Length < fixedParts + 1 : parts.Length != fixedParts) continue;
            var i = 0;
            while (i < fixedParts && (expected[i] == "*" || expected[i] == parts[i])) i++;
            if (i == fixedParts) return true;
        }
        return false;
    }
}
