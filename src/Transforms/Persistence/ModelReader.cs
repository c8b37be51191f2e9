using System.Text.Json;
using MambaVL.Checkpoints;
using MambaVL.Prompts;
using static TorchSharp.torch;

namespace MambaVL.Transforms;

/// <summary>Loads a model from the zip of its pipeline. Every byte is compared with the recorded hashes before it is used.</summary>
/// <param name="read">Reads an entry by its name; throws where there is none.</param>
/// <param name="isStored">Whether an entry is a range of the zip file, so that it can be mapped.</param>
/// <param name="path">The zip's path, or null where it is no file.</param>
internal sealed class ModelReader(Action<string, Action<Stream>> read, Func<string, bool> isStored, string? path)
{
    private const long MostSmallBytes = 64 << 20;

    /// <exception cref="InvalidDataException">A part is missing, or is not what was saved.</exception>
    /// <exception cref="FileNotFoundException">The weights are beside the zip, and not there.</exception>
    public VisionLanguageModel Load(StoredModel stored, StepHost host)
    {
        var configBytes = ReadSmall(stored.Config);
        var tokenizer = Tokenizer.Parse(ReadSmall(stored.Tokenizer), $"tokenizer.json of {Zip}");
        if (stored.IsBeside) return LoadBeside();

        if (path is not null && isStored(stored.Weights.Name))
        {
            read(stored.Weights.Name, s => Verify(s, stored.Weights, Stream.Null, Zip));
            using var mapped = Checkpoint.OpenZipEntry(path, stored.Weights.Name);
            return Build(mapped, "mapped in the zip");
        }
        var temporary = Path.Combine(host.TemporaryFolder, $"mambavl-{Guid.NewGuid():n}.safetensors");
        try
        {
            using (var file = new FileStream(temporary, FileMode.CreateNew, FileAccess.Write, FileShare.None, 1 << 16))
                read(stored.Weights.Name, s => Verify(s, stored.Weights, file, Zip));
            using var copied = Checkpoint.Open(temporary, canMap: false);
            return Build(copied, "read into memory");
        }
        finally
        {
            File.Delete(temporary);
        }

        VisionLanguageModel LoadBeside()
        {
            if (path is null)
                throw new InvalidDataException($"The weights are in '{stored.Weights.Name}' beside the zip, and the pipeline is being loaded from a stream that is no file. Load it by its path.");
            var beside = Path.Combine(Path.GetDirectoryName(Path.GetFullPath(path))!, stored.Weights.Name);
            if (!File.Exists(beside))
                throw new FileNotFoundException($"'{path}' keeps its weights in '{stored.Weights.Name}', which is not beside it. Move the two together.", beside);
            using (var file = File.OpenRead(beside)) Verify(file, stored.Weights, Stream.Null, beside);
            using var mapped = Checkpoint.Open(beside);
            return Build(mapped, "mapped beside the zip");
        }

        VisionLanguageModel Build(Checkpoint checkpoint, string how)
        {
            VisionLanguageConfig config;
            try
            {
                using var json = JsonDocument.Parse(configBytes);
                config = VisionLanguageConfig.Resolve(json.RootElement, checkpoint.Tensors, $"config.json of {Zip}");
            }
            catch (JsonException e)
            {
                throw new InvalidDataException($"config.json of {Zip} is not JSON: {e.Message}", e);
            }
            if (!Enum.TryParse<ScalarType>(stored.Precision, out var precision))
                throw new InvalidDataException($"{Zip}: the precision is '{stored.Precision}'; expected Float32 or BFloat16.");
            var options = new LoadOptions { DType = precision };
            var model = Place(checkpoint, config, tokenizer, options, host);
            host.Info($"Loaded a model of {stored.Weights.Length / 1e6:n0} MB from {Zip}, weights {how}, on {model.Device}.");
            return model;
        }
    }

    private string Zip => path is null ? "the model zip" : $"'{path}'";

    // As ML.NET has it: the context names a GPU, and whether the CPU will do where it cannot be used.
    private static VisionLanguageModel Place(Checkpoint checkpoint, VisionLanguageConfig config, Tokenizer tokenizer, LoadOptions options, StepHost host)
    {
        var (gpu, fallBack) = host.Device;
        if (gpu is not { } index) return VisionLanguageModel.FromCheckpoint(checkpoint, config, tokenizer, options);
        try
        {
            return VisionLanguageModel.FromCheckpoint(checkpoint, config, tokenizer, options with { Device = $"cuda:{index}" });
        }
        catch (NativeRuntimeException e) when (fallBack)
        {
            host.Warning($"MLContext.GpuDeviceId is {index}, which cannot be used; the model runs on the CPU. {e.Message}");
            return VisionLanguageModel.FromCheckpoint(checkpoint, config, tokenizer, options);
        }
    }

    private byte[] ReadSmall(StoredFile file)
    {
        if (file.Length > MostSmallBytes) throw new InvalidDataException($"{Zip}: '{file.Name}' is said to have {file.Length:N0} bytes; expected at most {MostSmallBytes:N0}.");
        using var bytes = new MemoryStream();
        read(file.Name, s => Verify(s, file, bytes, Zip));
        return bytes.ToArray();
    }

    // Stops at the recorded length: an entry may unpack to anything.
    private static void Verify(Stream source, StoredFile file, Stream copy, string where)
    {
        try
        {
            using var limited = new HashingStream(copy);
            var buffer = new byte[1 << 20];
            for (int n; (n = source.Read(buffer)) > 0;)
            {
                limited.Write(buffer.AsSpan(0, n));
                if (limited.Length > file.Length) break;
            }
            if (limited.Length != file.Length)
                throw new InvalidDataException($"{where}: '{file.Name}' has {(limited.Length > file.Length ? "more" : "fewer")} bytes than the {file.Length:N0} that were saved; the file is {(limited.Length > file.Length ? "altered" : "truncated")}.");
            if (limited.Finish(file.Name).Sha256 is var found && found != file.Sha256)
                throw new InvalidDataException($"{where}: '{file.Name}' has the SHA-256 {found}; expected {file.Sha256}. The file was altered.");
        }
        catch (InvalidDataException e) when (!e.Message.StartsWith(where, StringComparison.Ordinal))
        {
            throw new InvalidDataException($"{where}: '{file.Name}' is damaged: {e.Message}", e);
        }
    }
}
