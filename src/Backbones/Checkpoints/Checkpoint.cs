using System.Text.Json;
using static TorchSharp.torch;

namespace MambaVL.Checkpoints;

/// <summary>Name, element type and shape of one tensor of a checkpoint.</summary>
public sealed record TensorEntry(string Name, ScalarType DType, IReadOnlyList<long> Shape);

// Placeholder with the final signatures; the Checkpoints work item replaces the body (memory-mapping, shards, pickle).
/// <summary>A checkpoint that is open for reading.</summary>
public sealed class Checkpoint : IDisposable
{
    private readonly byte[] _data;
    private readonly Dictionary<string, (TensorEntry Entry, int Start, int End)> _tensors = [];

    private Checkpoint(string path)
    {
        _data = File.ReadAllBytes(path);
        var header = (int)BitConverter.ToInt64(_data, 0);
        using var json = JsonDocument.Parse(_data.AsMemory(8, header));
        foreach (var p in json.RootElement.EnumerateObject())
        {
            if (p.Name == "__metadata__") continue;
            var offsets = p.Value.GetProperty("data_offsets");
            var dtype = p.Value.GetProperty("dtype").GetString() switch
            {
                "F64" => ScalarType.Float64, "F32" => ScalarType.Float32, "F16" => ScalarType.Float16,
                "BF16" => ScalarType.BFloat16, "I64" => ScalarType.Int64, "I32" => ScalarType.Int32,
                "U8" => ScalarType.Byte, "BOOL" => ScalarType.Bool, var other => throw new InvalidDataException(other),
            };
            var shape = p.Value.GetProperty("shape").EnumerateArray().Select(x => x.GetInt64()).ToArray();
            _tensors[p.Name] = (new(p.Name, dtype, shape), 8 + header + offsets[0].GetInt32(), 8 + header + offsets[1].GetInt32());
        }
    }

    /// <summary>Opens a .safetensors file, or a folder that holds a model.</summary>
    public static Checkpoint Open(string path)
        => new(Directory.Exists(path) ? Path.Combine(path, "model.safetensors") : path);

    /// <summary>What the checkpoint holds.</summary>
    public IReadOnlyDictionary<string, TensorEntry> Tensors => _tensors.ToDictionary(t => t.Key, t => t.Value.Entry);

    /// <summary>The tensor of that name; the caller owns it. Converted when dtype differs from the file's.</summary>
    public Tensor Read(string name, ScalarType? dtype = null, Device? device = null)
    {
        var (entry, start, end) = _tensors[name];
        var t = empty(entry.Shape.ToArray(), dtype: entry.DType);
        t.bytes = _data.AsSpan(start, end - start);
        return t.to(dtype ?? entry.DType).to(device ?? CPU);
    }

    /// <inheritdoc/>
    public void Dispose() { }
}
