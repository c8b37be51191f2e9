using System.Text.Json;

namespace MambaVL.Checkpoints;

/// <summary>An index.json: which file of the same folder holds each tensor.</summary>
internal static class ShardIndex
{
    private const int MaxBytes = 100_000_000;

    /// <summary>The file name of each tensor.</summary>
    public static Dictionary<string, string> Read(string path)
    {
        var bytes = ReadBytes(path);
        try
        {
            return Parse(path, bytes);
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException)
        {
            throw new CheckpointException(path, null, $"not a valid JSON index: {e.Message}", e);
        }
    }

    private static byte[] ReadBytes(string path)
    {
        using var file = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read | FileShare.Delete, bufferSize: 0);
        if (file.Length > MaxBytes) throw new CheckpointException(path, null, $"the index is {file.Length} bytes long; at most {MaxBytes} are accepted.");
        var bytes = new byte[file.Length];
        file.ReadExactly(bytes);
        return bytes;
    }

    private static Dictionary<string, string> Parse(string path, byte[] bytes)
    {
        Dictionary<string, string>? files = null;
        var json = new Utf8JsonReader(bytes, new JsonReaderOptions { MaxDepth = 16 });
        json.Read();
        if (json.TokenType != JsonTokenType.StartObject) throw new CheckpointException(path, null, "expected a JSON object with a weight_map.");
        while (json.Read() && json.TokenType == JsonTokenType.PropertyName)
        {
            var isMap = json.ValueTextEquals("weight_map"u8);
            json.Read();
            if (!isMap) json.Skip();
            else if (files is not null) throw new CheckpointException(path, null, "weight_map is there twice.");
            else files = ReadMap(path, ref json);
        }
        while (json.Read()) { } // throws when anything but white space follows
        return files ?? throw new CheckpointException(path, null, "has no weight_map.");
    }

    private static Dictionary<string, string> ReadMap(string path, ref Utf8JsonReader json)
    {
        if (json.TokenType != JsonTokenType.StartObject) throw new CheckpointException(path, null, "weight_map is not an object.");
        var files = new Dictionary<string, string>();
        while (json.Read() && json.TokenType == JsonTokenType.PropertyName)
        {
            var name = json.GetString()!;
            json.Read();
            if (json.TokenType != JsonTokenType.String) throw new CheckpointException(path, name, "its file is not a string.");
            var file = json.GetString()!;
            CheckFileName(path, name, file);
            if (!files.TryAdd(name, file)) throw new CheckpointException(path, name, "is in the weight_map twice.");
        }
        return files;
    }

    // A shard lies beside its index. Anything that could name another place (../, a root, a drive, a stream) is refused
    // on every system alike.
    private static void CheckFileName(string path, string tensor, string file)
    {
        if (file.Length is 0 or > 255 || file.AsSpan().ContainsAny("/\\:") || file.Any(char.IsControl) || file[0] == '.')
            throw new CheckpointException(path, tensor, $"its file is {CheckpointException.Quote(file)}; expected the plain name of a file beside the index.");
    }
}
