using System.Runtime.CompilerServices;
using System.Text.Json;
using System.Text.Json.Nodes;
using MambaVL.Checkpoints;

namespace MambaVL.Models;

/// <summary>The sizes of a language model: a <see cref="MambaConfig"/> or a <see cref="GptNeoXConfig"/>.</summary>
public abstract record LanguageConfig
{
    // A config.json is a few kilobytes; a chat template or a table of labels in it may make it hundreds.
    private const long GreatestFile = 16 << 20;

    /// <summary>The width d of the residual stream and of the embeddings.</summary>
    public required long HiddenSize { get; init; }

    /// <summary>Layers.</summary>
    public required long LayerCount { get; init; }

    /// <summary>Rows of the embedding table and of the head, those that pad it to a round number included.</summary>
    public required long VocabularySize { get; init; }

    /// <summary>Whether the head is the embedding table. Default true for Mamba, false for GPT-NeoX, as published.</summary>
    public abstract bool TieEmbeddings { get; init; }

    /// <summary>How the names in checkpoints of this model relate to its own.</summary>
    public abstract CheckpointNames Names { get; }

    /// <summary>Builds the model over the parameters of <paramref name="p"/>, the root of a source. The caller owns it.</summary>
    /// <exception cref="ArgumentException">The configuration contradicts itself.</exception>
    public abstract LanguageModel Create(ParameterScope p);

    /// <summary>The keys of a config.json from which <see cref="Resolve"/> reads the same again.</summary>
    public abstract JsonObject ToJson();

    /// <summary>Learns what the language model of a checkpoint is, from config.json in any of its dialects and the
    /// tensors.</summary>
    /// <remarks>
    /// The dialects are that of state-spaces (<c>d_model</c>), of transformers (<c>hidden_size</c>) for Mamba and for
    /// GPT-NeoX, and vl_mamba's, which is one of those with keys for the vision encoder; keys that say nothing about a
    /// language model are not looked at. What both say, the tensors and the file, must agree; what the file leaves out,
    /// the tensors give; the kind of norm is theirs alone. Only names and shapes are looked at, and nothing is allocated.
    /// </remarks>
    /// <param name="config">The root of config.json.</param>
    /// <param name="tensors">What the checkpoint holds: <see cref="Checkpoint.Tensors"/>.</param>
    /// <param name="file">What to call the file in an error.</param>
    /// <exception cref="InvalidDataException">The file describes no model that is here, or contradicts the tensors. The
    /// message names the key, what was found and what was expected.</exception>
    public static LanguageConfig Resolve(
        JsonElement config, IReadOnlyDictionary<string, TensorEntry> tensors, string file = "config.json")
    {
        ArgumentNullException.ThrowIfNull(tensors);
        ArgumentNullException.ThrowIfNull(file);
        try
        {
            return new LanguageConfigReader(new(file, config), tensors).Read();
        }
        catch (InvalidOperationException e) // what JsonElement throws at an escaped half of a surrogate pair
        {
            throw new InvalidDataException($"{file} holds a text that is not Unicode.", e);
        }
    }

    /// <summary>As <see cref="Resolve"/>, from a file.</summary>
    /// <exception cref="InvalidDataException">As <see cref="Resolve"/>; or the file is not JSON, or above 16 MB.</exception>
    /// <exception cref="IOException">The file cannot be read.</exception>
    public static LanguageConfig Load(string path, IReadOnlyDictionary<string, TensorEntry> tensors)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        using var stream = File.OpenRead(path);
        if (stream.Length > GreatestFile)
            throw new InvalidDataException($"{path} has {stream.Length} bytes; expected a configuration of at most {GreatestFile}.");
        try
        {
            using var document = JsonDocument.Parse(stream);
            return Resolve(document.RootElement, tensors, path);
        }
        catch (JsonException e)
        {
            throw new InvalidDataException($"{path} is not JSON: {e.Message}", e);
        }
    }

    private protected void CheckSizes()
    {
        Positive(HiddenSize);
        Positive(LayerCount);
        Positive(VocabularySize);
    }

    private protected static void Positive(double value, [CallerArgumentExpression(nameof(value))] string name = "")
    {
        if (!(value > 0) || double.IsInfinity(value)) throw new ArgumentException($"{name} is {value}; expected more than 0.");
    }
}
