using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Checkpoints;

/// <summary>Name, element type and shape of one tensor of a checkpoint.</summary>
/// <param name="Name">The key in the checkpoint.</param>
/// <param name="DType">The element type in the file.</param>
/// <param name="Shape">The length of each dimension; empty for a scalar.</param>
public sealed record TensorEntry(string Name, ScalarType DType, IReadOnlyList<long> Shape);

/// <summary>A checkpoint that is open for reading: .safetensors or pytorch_model.bin, in one file or in shards.</summary>
/// <remarks>
/// Opening reads and checks the names, types and places of all tensors, and none of their values. A file may come from
/// anywhere: whatever it holds, opening and reading end in tensors or in a <see cref="CheckpointException"/>, run no code
/// from the file, and allocate no more than its size accounts for. Safe for use from several threads.
/// </remarks>
public sealed class Checkpoint : IDisposable
{
    private static readonly string[] FileNames =
        ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

    private readonly List<MappedFile> _files = [];
    private readonly Dictionary<string, StoredTensor> _stored = [];
    private readonly Dictionary<string, TensorEntry> _entries = [];
    private readonly Dictionary<string, string> _metadata = [];
    private bool _canMap = true, _disposed;

    private Checkpoint(string path) => Path = path;

    /// <summary>Opens a checkpoint.</summary>
    /// <param name="path">A .safetensors file, a .bin, .pt or .pth file (PyTorch's zip format), an index.json of shards,
    /// or a folder that holds one of model.safetensors, model.safetensors.index.json, pytorch_model.bin and
    /// pytorch_model.bin.index.json; the first of these that is there.</param>
    /// <exception cref="FileNotFoundException">There is no such file or folder.</exception>
    /// <exception cref="CheckpointException">The file is not a valid checkpoint of a kind that is read.</exception>
    public static Checkpoint Open(string path) => Open(path, canMap: true);

    /// <summary>Opens a checkpoint that may be deleted when its tensors have been read.</summary>
    /// <param name="path">As in <see cref="Open(string)"/>.</param>
    /// <param name="canMap">Whether tensors may use the mapped file itself. If not, each is a copy.</param>
    /// <exception cref="FileNotFoundException">There is no such file or folder.</exception>
    /// <exception cref="CheckpointException">The file is not a valid checkpoint of a kind that is read.</exception>
    public static Checkpoint Open(string path, bool canMap)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        if (Directory.Exists(path))
        {
            path = FileNames.Select(f => System.IO.Path.Combine(path, f)).FirstOrDefault(File.Exists)
                ?? throw new CheckpointException(path, null, $"the folder holds none of {string.Join(", ", FileNames)}.");
        }
        else if (!File.Exists(path))
        {
            throw new FileNotFoundException($"There is no checkpoint '{path}'. Expected a .safetensors, .bin or index.json file, or a folder with one.", path);
        }

        var checkpoint = new Checkpoint(path) { _canMap = canMap };
        try
        {
            if (path.EndsWith(".json", StringComparison.OrdinalIgnoreCase)) checkpoint.AddShards();
            else checkpoint.AddFile(path);
            return checkpoint;
        }
        catch
        {
            checkpoint.Dispose();
            throw;
        }
    }

    /// <summary>Opens the .safetensors file that is an entry of a zip file, without unpacking it.</summary>
    /// <param name="path">The zip file.</param>
    /// <param name="entry">The entry's name; it is stored as it is, not compressed. Other entries may be compressed.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="CheckpointException">The file is no zip file, has no such entry, or the entry is compressed or no
    /// .safetensors file.</exception>
    public static Checkpoint OpenZipEntry(string path, string entry)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        ArgumentException.ThrowIfNullOrEmpty(entry);
        var checkpoint = new Checkpoint(path);
        try
        {
            var file = new MappedFile(path);
            checkpoint._files.Add(file);
            var range = ZipDirectory.Find(file, entry);
            file.Narrow(range.Offset, range.Length);
            checkpoint.Add(file, SafetensorsReader.Read(file, checkpoint._metadata));
            return checkpoint;
        }
        catch
        {
            checkpoint.Dispose();
            throw;
        }
    }

    /// <summary>The file that was opened: of a folder, the one that was chosen.</summary>
    public string Path { get; }

    /// <summary>What the checkpoint holds, by name.</summary>
    public IReadOnlyDictionary<string, TensorEntry> Tensors => _entries;

    /// <summary>The <c>__metadata__</c> of a .safetensors file; of shards, that of the first file which has the key.</summary>
    public IReadOnlyDictionary<string, string> Metadata => _metadata;

    /// <summary>The tensor of that name; the caller owns it. It may outlive the checkpoint.</summary>
    /// <param name="name">A key of <see cref="Tensors"/>.</param>
    /// <param name="dtype">The element type to convert to; null keeps the file's.</param>
    /// <param name="device">Where to; null is the CPU.</param>
    /// <remarks>Where type and device stay, the tensor uses the mapped file itself, copy-on-write: changing it in place
    /// changes neither the file nor any other tensor.</remarks>
    /// <exception cref="CheckpointException">There is no such tensor, or its bytes are not valid.</exception>
    /// <exception cref="ObjectDisposedException">The checkpoint was disposed of.</exception>
    public Tensor Read(string name, ScalarType? dtype = null, Device? device = null)
    {
        var stored = Stored(name);
        return stored.Read(dtype ?? stored.Entry.DType, device ?? CPU);
    }

    /// <summary>Closes the files. Tensors that were read stay valid.</summary>
    public void Dispose()
    {
        _disposed = true;
        foreach (var file in _files) file.Dispose();
    }

    internal StoredTensor Stored(string name)
    {
        ArgumentNullException.ThrowIfNull(name);
        ObjectDisposedException.ThrowIf(_disposed, this);
        return _stored.TryGetValue(name, out var stored) ? stored
            : throw new CheckpointException(Path, name, $"is not among the {_stored.Count} tensors of the checkpoint.");
    }

    private void AddShards()
    {
        var index = ShardIndex.Read(Path);
        var folder = System.IO.Path.GetDirectoryName(Path)!;
        var shards = index.Values.Distinct().Order(StringComparer.Ordinal).ToList();
        var missing = shards.Where(s => !File.Exists(System.IO.Path.Combine(folder, s))).ToList();
        if (missing.Count > 0)
            throw new CheckpointException(Path, null, $"{missing.Count} of {shards.Count} files that it names are not beside it: {string.Join(", ", missing.Take(20).Select(CheckpointException.Quote))}.");

        foreach (var shard in shards) AddFile(System.IO.Path.Combine(folder, shard));
        foreach (var (name, shard) in index)
        {
            if (!_stored.TryGetValue(name, out var stored)) throw new CheckpointException(Path, name, $"is not in {CheckpointException.Quote(shard)}, where the index places it.");
            var actual = System.IO.Path.GetFileName(stored.File.Path);
            if (actual != shard) throw new CheckpointException(Path, name, $"is in {CheckpointException.Quote(actual)}; the index places it in {CheckpointException.Quote(shard)}.");
        }
    }

    private void AddFile(string path)
    {
        var file = new MappedFile(path, _canMap);
        _files.Add(file);
        CheckNotLfsPointer(file);
        Add(file, ReadFormat(file));
    }

    private void Add(MappedFile file, List<StoredTensor> tensors)
    {
        foreach (var tensor in tensors)
        {
            var name = tensor.Entry.Name;
            if (_stored.TryGetValue(name, out var other)) throw new CheckpointException(file.Path, name, $"is in {CheckpointException.Quote(System.IO.Path.GetFileName(other.File.Path))} as well.");
            _stored.Add(name, tensor);
            _entries.Add(name, tensor.Entry);
        }
    }

    private List<StoredTensor> ReadFormat(MappedFile file)
    {
        switch (System.IO.Path.GetExtension(file.Path).ToLowerInvariant())
        {
            case ".safetensors":
                var metadata = new Dictionary<string, string>();
                var tensors = SafetensorsReader.Read(file, metadata);
                foreach (var (key, value) in metadata) _metadata.TryAdd(key, value);
                return tensors;
            case ".bin" or ".pt" or ".pth":
                return TorchArchive.Read(file);
            default:
                throw new CheckpointException(file.Path, null, "unknown kind of file; expected .safetensors, .bin, .pt, .pth or an index.json.");
        }
    }

    private static void CheckNotLfsPointer(MappedFile file)
    {
        var mark = "version https://git-lfs"u8;
        Span<byte> start = stackalloc byte[mark.Length];
        if (file.Length < start.Length) return;
        file.Read(0, start);
        if (start.SequenceEqual(mark))
            throw new CheckpointException(file.Path, null, "is a Git LFS pointer: the clone fetched the name of the file and not its content. Run 'git lfs pull'.");
    }
}
