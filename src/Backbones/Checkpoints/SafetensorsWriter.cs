using System.Buffers.Binary;
using System.Text.Encodings.Web;
using System.Text.Json;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Checkpoints;

/// <summary>Writes .safetensors files: whole, or not at all.</summary>
/// <remarks>
/// A file gets a temporary name in its folder, is flushed to the disk, then renamed. Tensors are written one at a time,
/// so writing needs the memory of the largest one. Tensors lie in the order that the reference implementation gives
/// them: by element type, then by name, each aligned to its element.
/// </remarks>
public static class SafetensorsWriter
{
    private const int ChunkBytes = 64 << 20;

    // transformers refuses a file that does not say which library its tensors are for.
    private static readonly Dictionary<string, string> DefaultMetadata = new() { ["format"] = "pt" };

    /// <summary>Writes tensors to one file.</summary>
    /// <param name="path">The file; one that is there is replaced.</param>
    /// <param name="tensors">The tensors by name, on any device; they stay the caller's.</param>
    /// <param name="metadata">The <c>__metadata__</c>; null writes <c>format: pt</c>, as PyTorch programs do, and an empty
    /// one writes none.</param>
    /// <exception cref="ArgumentException">A name or element type that the format does not have. Nothing was written.</exception>
    /// <exception cref="IOException">The file could not be written. What was there before is unchanged.</exception>
    public static void Write(string path, IReadOnlyDictionary<string, Tensor> tensors, IReadOnlyDictionary<string, string>? metadata = null)
    {
        ArgumentNullException.ThrowIfNull(tensors);
        Write(path, Entries(tensors), e => tensors[e.Name].detach(), metadata);
    }

    /// <summary>Writes to one file tensors that are made when their turn comes.</summary>
    /// <param name="path">The file; one that is there is replaced.</param>
    /// <param name="entries">Names, element types and shapes, in any order.</param>
    /// <param name="read">Makes a tensor; the writer disposes of it. Called once for each entry, in the order of the file.</param>
    /// <param name="metadata">The <c>__metadata__</c>; null writes <c>format: pt</c>, as PyTorch programs do, and an empty
    /// one writes none.</param>
    /// <exception cref="ArgumentException">A name, shape or element type that the format does not have. Nothing was written.</exception>
    /// <exception cref="IOException">The file could not be written. What was there before is unchanged.</exception>
    public static void Write(string path, IEnumerable<TensorEntry> entries, Func<TensorEntry, Tensor> read, IReadOnlyDictionary<string, string>? metadata = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        ArgumentNullException.ThrowIfNull(read);
        var checkedEntries = Check(entries);
        using var file = new AtomicFile(path);
        WriteTo(file.Stream, checkedEntries, read, metadata);
        file.Commit();
    }

    /// <summary>Writes tensors to a stream, as the bytes of a .safetensors file. The stream need not seek, and stays open.</summary>
    /// <param name="stream">Open for writing.</param>
    /// <param name="tensors">The tensors by name, on any device; they stay the caller's.</param>
    /// <param name="metadata">The <c>__metadata__</c>; null writes <c>format: pt</c>, as PyTorch programs do, and an empty
    /// one writes none.</param>
    /// <exception cref="ArgumentException">A name or element type that the format does not have. Nothing was written.</exception>
    public static void Write(Stream stream, IReadOnlyDictionary<string, Tensor> tensors, IReadOnlyDictionary<string, string>? metadata = null)
    {
        ArgumentNullException.ThrowIfNull(stream);
        ArgumentNullException.ThrowIfNull(tensors);
        WriteTo(stream, Check(Entries(tensors)), e => tensors[e.Name].detach(), metadata);
    }

    /// <summary>Writes a model's folder: model.safetensors, or shards and model.safetensors.index.json.</summary>
    /// <param name="folder">The folder; made if it is not there.</param>
    /// <param name="tensors">The tensors by name, on any device; they stay the caller's.</param>
    /// <param name="maxShardBytes">The most bytes of tensors in one file; a larger tensor has a file of its own. Default
    /// 5 GB, as the hub's libraries have it.</param>
    /// <param name="metadata">The <c>__metadata__</c> of each file; null writes <c>format: pt</c>.</param>
    /// <returns>The paths of the files that were written, the index last.</returns>
    /// <exception cref="ArgumentException">A name or element type that the format does not have. Nothing was written.</exception>
    /// <exception cref="IOException">A file could not be written, or the folder holds a checkpoint of another layout, which
    /// readers might take instead.</exception>
    public static IReadOnlyList<string> WriteFolder(string folder, IReadOnlyDictionary<string, Tensor> tensors,
        long maxShardBytes = 5_000_000_000, IReadOnlyDictionary<string, string>? metadata = null)
    {
        ArgumentNullException.ThrowIfNull(tensors);
        return WriteFolder(folder, Entries(tensors), e => tensors[e.Name].detach(), maxShardBytes, metadata);
    }

    /// <summary>Writes a model's folder from tensors that are made when their turn comes.</summary>
    /// <param name="folder">The folder; made if it is not there.</param>
    /// <param name="entries">Names, element types and shapes; shards are filled in this order.</param>
    /// <param name="read">Makes a tensor; the writer disposes of it. Called once for each entry.</param>
    /// <param name="maxShardBytes">The most bytes of tensors in one file; a larger tensor has a file of its own.</param>
    /// <param name="metadata">The <c>__metadata__</c> of each file; null writes <c>format: pt</c>.</param>
    /// <returns>The paths of the files that were written, the index last.</returns>
    /// <exception cref="ArgumentException">A name, shape or element type that the format does not have. Nothing was written.</exception>
    /// <exception cref="IOException">A file could not be written, or the folder holds a checkpoint of another layout, which
    /// readers might take instead.</exception>
    public static IReadOnlyList<string> WriteFolder(string folder, IEnumerable<TensorEntry> entries, Func<TensorEntry, Tensor> read,
        long maxShardBytes = 5_000_000_000, IReadOnlyDictionary<string, string>? metadata = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(folder);
        ArgumentNullException.ThrowIfNull(read);
        ArgumentOutOfRangeException.ThrowIfLessThan(maxShardBytes, 1);
        var shards = Shards(Check(entries), maxShardBytes);
        Directory.CreateDirectory(folder);
        CheckFolder(folder, sharded: shards.Count > 1);
        if (shards.Count == 1)
        {
            var path = Path.Combine(folder, "model.safetensors");
            Write(path, shards[0], read, metadata);
            return [path];
        }

        var files = new List<AtomicFile>();
        try
        {
            var names = new SortedDictionary<string, string>(StringComparer.Ordinal);
            for (var i = 0; i < shards.Count; i++)
            {
                var name = $"model-{i + 1:d5}-of-{shards.Count:d5}.safetensors";
                files.Add(new AtomicFile(Path.Combine(folder, name)));
                WriteTo(files[^1].Stream, shards[i], read, metadata);
                files[^1].Close();
                foreach (var entry in shards[i]) names.Add(entry.Name, name);
            }
            files.Add(new AtomicFile(Path.Combine(folder, "model.safetensors.index.json")));
            JsonSerializer.Serialize(files[^1].Stream, new { metadata = new { total_size = shards.Sum(s => s.Sum(Bytes)) }, weight_map = names },
                new JsonSerializerOptions { WriteIndented = true });
            foreach (var file in files) file.Commit();
            return files.ConvertAll(f => f.Path);
        }
        finally
        {
            foreach (var file in files) file.Dispose();
        }
    }

    private static IEnumerable<TensorEntry> Entries(IReadOnlyDictionary<string, Tensor> tensors)
        => tensors.Select(t => new TensorEntry(t.Key, t.Value.dtype, t.Value.shape));

    private static List<TensorEntry> Check(IEnumerable<TensorEntry> entries)
    {
        ArgumentNullException.ThrowIfNull(entries);
        var list = entries.ToList();
        var names = new HashSet<string>();
        foreach (var e in list)
        {
            if (e.Name == SafetensorsReader.MetadataKey) throw new ArgumentException($"'{e.Name}' is a name that the format keeps for itself.", nameof(entries));
            if (!names.Add(e.Name)) throw new ArgumentException($"The tensor '{e.Name}' is there twice.", nameof(entries));
            if (ElementTypes.Order(e.DType) < 0)
                throw new ArgumentException($"Tensor '{e.Name}' has elements of type {e.DType}; expected one of {ElementTypes.Supported}.", nameof(entries));
            if (e.Shape.Count > ElementTypes.MaxRank || !ElementTypes.TryByteCount([.. e.Shape], e.DType, out _))
                throw new ArgumentException($"Tensor '{e.Name}' has the impossible shape [{string.Join(", ", e.Shape)}].", nameof(entries));
        }
        return list;
    }

    // A folder with two checkpoints leaves open which one a reader takes.
    private static void CheckFolder(string folder, bool sharded)
    {
        var other = Path.Combine(folder, sharded ? "model.safetensors" : "model.safetensors.index.json");
        if (File.Exists(other)) throw new IOException($"{other} is there already, a checkpoint of another layout than the one to be written; remove it, or write to another folder.");
    }

    private static List<List<TensorEntry>> Shards(List<TensorEntry> entries, long maxShardBytes)
    {
        var shards = new List<List<TensorEntry>> { new() };
        long used = 0;
        foreach (var e in entries)
        {
            if (shards[^1].Count > 0 && Bytes(e) > maxShardBytes - used)
            {
                shards.Add([]);
                used = 0;
            }
            shards[^1].Add(e);
            used += Bytes(e);
        }
        return shards;
    }

    private static void WriteTo(Stream stream, List<TensorEntry> entries, Func<TensorEntry, Tensor> read, IReadOnlyDictionary<string, string>? metadata)
    {
        var ordered = entries.OrderByDescending(e => ElementTypes.Order(e.DType)).ThenBy(e => e.Name, StringComparer.Ordinal).ToList();
        var header = Header(ordered, metadata ?? DefaultMetadata);
        Span<byte> length = stackalloc byte[8];
        BinaryPrimitives.WriteInt64LittleEndian(length, header.Length);
        stream.Write(length);
        stream.Write(header);
        foreach (var e in ordered)
        {
            using var scope = NewDisposeScope();
            using var noGrad = no_grad();
            WriteTensor(stream, e, read(e));
        }
    }

    private static byte[] Header(List<TensorEntry> ordered, IReadOnlyDictionary<string, string> metadata)
    {
        using var buffer = new MemoryStream();
        using (var json = new Utf8JsonWriter(buffer, new JsonWriterOptions { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping }))
        {
            json.WriteStartObject();
            if (metadata.Count > 0)
            {
                json.WriteStartObject(SafetensorsReader.MetadataKey);
                foreach (var (key, value) in metadata.OrderBy(m => m.Key, StringComparer.Ordinal)) json.WriteString(key, value);
                json.WriteEndObject();
            }
            long offset = 0;
            foreach (var e in ordered)
            {
                json.WriteStartObject(e.Name);
                json.WriteString("dtype", ElementTypes.Name(e.DType));
                json.WriteStartArray("shape");
                foreach (var dimension in e.Shape) json.WriteNumberValue(dimension);
                json.WriteEndArray();
                json.WriteStartArray("data_offsets");
                json.WriteNumberValue(offset);
                json.WriteNumberValue(offset += Bytes(e));
                json.WriteEndArray();
                json.WriteEndObject();
            }
            json.WriteEndObject();
        }
        while (buffer.Length % 8 != 0) buffer.WriteByte((byte)' ');
        if (buffer.Length > SafetensorsReader.MaxHeader) throw new ArgumentException($"The header would be {buffer.Length} bytes long; the format allows {SafetensorsReader.MaxHeader}.");
        return buffer.ToArray();
    }

    private static void WriteTensor(Stream stream, TensorEntry entry, Tensor tensor)
    {
        if (tensor.dtype != entry.DType || !tensor.shape.AsSpan().SequenceEqual([.. entry.Shape]))
            throw new ArgumentException($"Tensor '{entry.Name}' was announced as {entry.DType} [{string.Join(", ", entry.Shape)}] and is {tensor.dtype} [{string.Join(", ", tensor.shape)}].");
        var flat = tensor.cpu().contiguous().view(-1);
        long step = ChunkBytes / ElementTypes.Size(entry.DType), total = flat.shape[0];
        for (long done = 0; done < total; done += step)
        {
            using var part = flat.narrow(0, done, Math.Min(step, total - done));
            stream.Write(part.bytes);
        }
    }

    private static long Bytes(TensorEntry e) => ElementTypes.TryByteCount([.. e.Shape], e.DType, out var bytes) ? bytes : 0;
}
