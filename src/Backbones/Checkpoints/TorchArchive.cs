using TorchSharp;

namespace MambaVL.Checkpoints;

/// <summary>The format that torch.save writes since PyTorch 1.6: a zip of a pickle and one entry for each storage.</summary>
internal static class TorchArchive
{
    /// <summary>What to do with a file that is not read here, on a machine with PyTorch.</summary>
    public const string SaveAgain =
        "If you trust the file, save it again with PyTorch: from safetensors.torch import save_file; save_file(torch.load(path, weights_only=True), 'model.safetensors')";

    private const int MaxPickle = 16 << 20;

    // Where training programs put the state dictionary in what they save.
    private static readonly string[] Wrappers = ["state_dict", "model"];

    public static List<StoredTensor> Read(MappedFile file)
    {
        CheckKind(file);
        var entries = ZipDirectory.Read(file);
        var pickles = entries.Keys.Where(n => n.EndsWith("/data.pkl", StringComparison.Ordinal) && n.IndexOf('/') == n.Length - "/data.pkl".Length).ToList();
        if (pickles.Count != 1) throw Bad(file, $"expected one entry NAME/data.pkl, found {pickles.Count}: not a file that torch.save wrote.");
        var root = pickles[0][..^"data.pkl".Length];
        if (entries.TryGetValue(root + "byteorder", out var order) && Text(file, order) is not "little" and var found)
            throw Bad(file, $"its byte order is {CheckpointException.Quote(found)}; only little-endian files are read.");

        var pickle = entries[pickles[0]];
        if (pickle.Length > MaxPickle) throw Bad(file, $"data.pkl is {pickle.Length} bytes long; at most {MaxPickle} are accepted.");
        var code = new byte[pickle.Length];
        file.Read(pickle.Offset, code);

        var tensors = new List<StoredTensor>();
        var names = new HashSet<string>();
        foreach (var (key, value) in StateDictionary(file, TorchPickle.Read(code, file.Path)).Items)
        {
            if (key is not string name) throw Bad(file, "the dictionary of tensors has a key that is not text.");
            if (value is not TorchPickle.TensorView view) throw Bad(file, "is not a tensor.", name);
            if (!names.Add(name)) throw Bad(file, "is there twice.", name);
            if (!entries.TryGetValue($"{root}data/{view.Storage.Key}", out var range))
                throw Bad(file, $"its storage {CheckpointException.Quote(view.Storage.Key)} is not in the file.", name);
            tensors.Add(Locate(file, name, view, range));
        }
        return tensors;
    }

    private static TorchPickle.Dictionary StateDictionary(MappedFile file, TorchPickle.Dictionary top)
    {
        if (top.Items.Exists(i => i.Value is TorchPickle.TensorView)) return top;
        foreach (var wrapper in Wrappers)
            foreach (var (key, value) in top.Items)
                if (key is string name && name == wrapper && value is TorchPickle.Dictionary inner) return inner;
        throw Bad(file, $"no tensors at the top of the pickle, nor a dictionary under {string.Join(" or ", Wrappers)}.");
    }

    private static StoredTensor Locate(MappedFile file, string name, TorchPickle.TensorView view, ZipDirectory.Range range)
    {
        var (storage, offset, shape, strides) = view;
        var size = ElementTypes.Size(storage.Type);
        if (storage.Count < 0 || storage.Count > range.Length / size)
            throw Bad(file, $"its storage is said to hold {storage.Count} elements of {size} bytes, in an entry of {range.Length} bytes.", name);
        if (strides.Length != shape.Length || strides.Any(s => s < 0) || offset < 0 || offset > storage.Count
            || !ElementTypes.TryByteCount(shape, storage.Type, out var bytes))
            throw Bad(file, $"offset {offset}, shape [{string.Join(", ", shape)}] and strides [{string.Join(", ", strides)}] make no tensor.", name);

        Int128 last = offset;
        for (var i = 0; i < shape.Length; i++) last += (Int128)Math.Max(shape[i] - 1, 0) * strides[i];
        if (bytes > 0 && last >= storage.Count)
            throw Bad(file, $"offset {offset}, shape [{string.Join(", ", shape)}] and strides [{string.Join(", ", strides)}] reach beyond its storage of {storage.Count} elements.", name);
        if (bytes / size > storage.Count)
            throw Bad(file, $"an expanded view of {bytes / size} elements on a storage of {storage.Count}; save it with .contiguous().", name);

        var entry = new TensorEntry(name, storage.Type, shape);
        var extent = bytes == 0 ? 0 : ((long)last - offset + 1) * size;
        return new StoredTensor(entry, file, range.Offset + offset * size, extent, IsContiguous(shape, strides) ? null : strides);
    }

    private static bool IsContiguous(long[] shape, long[] strides)
    {
        long expected = 1;
        for (var i = shape.Length - 1; i >= 0; i--)
        {
            if (shape[i] != 1 && strides[i] != expected) return false;
            expected *= shape[i];
        }
        return true;
    }

    private static string Text(MappedFile file, ZipDirectory.Range range)
    {
        Span<byte> bytes = stackalloc byte[(int)Math.Min(range.Length, 32)];
        file.Read(range.Offset, bytes);
        return System.Text.Encoding.ASCII.GetString(bytes);
    }

    private static void CheckKind(MappedFile file)
    {
        Span<byte> start = stackalloc byte[2];
        if (file.Length < start.Length) throw Bad(file, $"the file is {file.Length} bytes long.");
        file.Read(0, start);
        if (start[0] == 0x80) throw Bad(file, $"a pickle in the format from before PyTorch 1.6, which is not read. {SaveAgain}");
        if (!start.SequenceEqual("PK"u8)) throw Bad(file, $"starts with bytes 0x{start[0]:x2} 0x{start[1]:x2}, expected a zip file that torch.save wrote.");
    }

    private static CheckpointException Bad(MappedFile file, string problem, string? tensor = null) => new(file.Path, tensor, problem);
}
