using System.IO.Compression;
using System.Text;
using System.Text.Json;
using MambaVL.Checkpoints;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Transforms;

/// <summary>Writes the models of a pipeline into its zip, each of them once.</summary>
/// <param name="write">Writes an entry: its name, whether to compress it, and its bytes.</param>
/// <param name="position">Where in the zip the next entry begins, or null.</param>
/// <param name="path">The zip's path, or null where it is no file.</param>
internal sealed class ModelWriter(Action<string, CompressionLevel, Action<Stream>> write, Func<long?> position, string? path)
{
    private const string Folder = "MambaVL";

    // Above it, a zip would have to be copied whole whenever the pipeline around the model changes.
    private const long MostInZip = 1L << 30;

    // A zip entry's header before its name.
    private const int EntryHeader = 30;

    private readonly List<(VisionLanguageModel Model, StoredModel Stored)> _written = [];

    public StoredModel Save(VisionLanguageModel model, WeightStorage weights)
    {
        foreach (var (other, found) in _written)
            if (ReferenceEquals(other, model)) return found;
        if (model.Language.HasAdapters)
            throw new InvalidOperationException("The model has adapters that are not merged, and would be saved without them; merge them, or dispose of them, before the pipeline is saved.");
        var parameters = model.NamedParameters().ToDictionary(p => p.Name, p => (Tensor)p.Parameter);

        var folder = $"{Folder}/model-{_written.Count}";
        var config = Encoding.UTF8.GetBytes(model.Config.ToJson().ToJsonString(new JsonSerializerOptions { WriteIndented = true }));
        var (configFile, tokenizerFile) = (Hash($"{folder}/config.json", config), Hash($"{folder}/tokenizer.json", model.Tokenizer.Source.ToArray()));

        // Another object may hold the same model, loaded twice: compared only where there is a likeness.
        foreach (var (_, found) in _written)
            if (found.Config.Sha256 == configFile.Sha256 && found.Tokenizer.Sha256 == tokenizerFile.Sha256 && found.Weights.Sha256 == HashOf(parameters)) return found;

        write(configFile.Name, CompressionLevel.Optimal, s => s.Write(config));
        write(tokenizerFile.Name, CompressionLevel.Optimal, s => s.Write(model.Tokenizer.Source.Span));
        var beside = IsBeside(weights, parameters.Values.Sum(p => p.numel() * p.element_size()));
        var stored = new StoredModel
        {
            Config = configFile, Tokenizer = tokenizerFile, IsBeside = beside,
            Weights = beside ? WriteBeside(parameters) : WriteInZip(parameters, folder),
            Precision = model.Language.parameters().First().dtype.ToString(),
        };
        _written.Add((model, stored));
        return stored;
    }

    private bool IsBeside(WeightStorage weights, long bytes)
    {
        if (weights == WeightStorage.Beside && path is null)
            throw new InvalidOperationException("WeightStorage.Beside keeps the weights in a file beside the zip, and the pipeline is being saved to a stream that is no file. Save to a path, or choose WeightStorage.InZip.");
        return weights == WeightStorage.Beside || (weights == WeightStorage.Auto && bytes >= MostInZip && path is not null);
    }

    private StoredFile WriteInZip(Dictionary<string, Tensor> parameters, string folder)
    {
        // Tensors are used where they lie in the zip, if they lie at multiples of 8: a longer name moves them there.
        var name = $"{folder}/weights.safetensors";
        if (position() is { } start)
        {
            var gap = (int)((8 - (start + EntryHeader + name.Length) % 8) % 8);
            name = $"{folder}/weights{new string('_', gap)}.safetensors";
        }
        StoredFile? file = null;
        write(name, CompressionLevel.NoCompression, s => file = Write(parameters, s, name));
        return file!;
    }

    private StoredFile WriteBeside(Dictionary<string, Tensor> parameters)
    {
        var zip = Path.GetFullPath(path!);
        var folder = Path.GetDirectoryName(zip)!;
        var temporary = Path.Combine(folder, $".{Path.GetFileName(zip)}.{Guid.NewGuid():n}.tmp");
        try
        {
            StoredFile file;
            using (var stream = new FileStream(temporary, FileMode.CreateNew, FileAccess.Write, FileShare.None, 1 << 16))
            {
                file = Write(parameters, stream, "");
                stream.Flush(flushToDisk: true);
            }
            file = file with { Name = $"{Path.GetFileName(zip)}.{file.Sha256[..8]}.safetensors" };
            var destination = Path.Combine(folder, file.Name);
            // A file with these very bytes may be in use by a pipeline that was loaded from it.
            if (!IsSame(destination, file)) File.Move(temporary, destination, overwrite: true);
            return file;
        }
        finally
        {
            File.Delete(temporary);
        }
    }

    private static bool IsSame(string path, StoredFile file)
    {
        if (!File.Exists(path) || new FileInfo(path).Length != file.Length) return false;
        using var stream = File.OpenRead(path);
        return HashingStream.Read(stream, file.Name, Stream.Null) == file;
    }

    private static StoredFile Write(Dictionary<string, Tensor> parameters, Stream stream, string name)
    {
        using var hashing = new HashingStream(stream);
        SafetensorsWriter.Write(hashing, parameters);
        return hashing.Finish(name);
    }

    private static string HashOf(Dictionary<string, Tensor> parameters) => Write(parameters, Stream.Null, "").Sha256;

    private static StoredFile Hash(string name, byte[] bytes)
    {
        using var hashing = new HashingStream(Stream.Null);
        hashing.Write(bytes);
        return hashing.Finish(name);
    }
}
