using System.Runtime.CompilerServices;
using System.Text.Json;
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

    /// <summary>Builds the model over parameters from <paramref name="source"/>. The caller owns it.</summary>
    public abstract LanguageModel Build(ParameterSource source);

    /// <summary>Reads config.json in any of its dialects, beside what the checkpoint holds.</summary>
    /// <remarks>
    /// The dialects are that of state-spaces (<c>d_model</c>), of transformers (<c>hidden_size</c>) for Mamba and for
    /// GPT-NeoX, and vl_mamba's, which is one of those with keys for the vision encoder; keys that say nothing about a
    /// language model are not looked at. What both say, the tensors and the file, must agree; what the file leaves out,
    /// the tensors give; the kind of norm is theirs alone. Only names and shapes are looked at, and nothing is allocated.
    /// </remarks>
    /// <param name="json">The text of config.json.</param>
    /// <param name="tensors">What the checkpoint holds, by name.</param>
    /// <param name="file">What to call the file in an error.</param>
    /// <exception cref="InvalidDataException">The text is no such configuration, describes a model that is not one of
    /// these, or contradicts the tensors.</exception>
    public static LanguageConfig Parse(string json, IReadOnlyDictionary<string, TensorEntry> tensors, string file = "config.json")
    {
        ArgumentNullException.ThrowIfNull(json);
        ArgumentNullException.ThrowIfNull(tensors);
        ArgumentNullException.ThrowIfNull(file);
        try
        {
            using var document = JsonDocument.Parse(json);
            return new LanguageConfigReader(new(file, document.RootElement), tensors).Read();
        }
        catch (JsonException e)
        {
            throw new InvalidDataException($"{file} is not JSON: {e.Message}", e);
        }
    }

    /// <summary>As <see cref="Parse"/>, from a file.</summary>
    /// <exception cref="InvalidDataException">As <see cref="Parse"/>; or the file is above 16 MB.</exception>
    /// <exception cref="IOException">The file cannot be read.</exception>
    public static LanguageConfig Load(string path, IReadOnlyDictionary<string, TensorEntry> tensors)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        var length = new FileInfo(path).Length;
        if (length > GreatestFile)
            throw new InvalidDataException($"{path} has {length:N0} bytes; expected a configuration of at most {GreatestFile:N0}.");
        return Parse(File.ReadAllText(path), tensors, path);
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
