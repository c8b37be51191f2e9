using System.Text.Json;

namespace MambaVL.Transforms;

/// <summary>A file of a model: where it is, how long, and the SHA-256 of its bytes in hexadecimal.</summary>
internal sealed record StoredFile(string Name, long Length, string Sha256);

/// <summary>What a step's part of the zip says of its model: where its three files are. Written as JSON.</summary>
internal sealed record StoredModel
{
    public required StoredFile Config { get; init; }

    public required StoredFile Tokenizer { get; init; }

    /// <summary>Safetensors: an entry of the zip, or a file in the zip's folder.</summary>
    public required StoredFile Weights { get; init; }

    public required bool IsBeside { get; init; }

    /// <summary>The precision that the model had, and has again: Float32 or BFloat16.</summary>
    public required string Precision { get; init; }

    public string ToJson() => JsonSerializer.Serialize(this);

    /// <exception cref="InvalidDataException">It is not what <see cref="ToJson"/> gives.</exception>
    public static StoredModel Parse(string json)
    {
        try
        {
            var stored = JsonSerializer.Deserialize<StoredModel>(json);
            if (stored is null || !Valid(stored.Config) || !Valid(stored.Tokenizer) || !Valid(stored.Weights)) throw new JsonException("a part is missing.");
            if (stored.IsBeside && Path.GetFileName(stored.Weights.Name) != stored.Weights.Name) throw new JsonException($"'{stored.Weights.Name}' is no plain file name.");
            return stored;
        }
        catch (JsonException e)
        {
            throw new InvalidDataException($"What the model zip says of its model is damaged: {e.Message}", e);
        }
    }

    private static bool Valid(StoredFile? file) => file is { Name.Length: > 0, Length: >= 0, Sha256.Length: 64 };
}
