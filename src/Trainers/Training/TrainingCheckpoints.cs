using System.Globalization;
using System.Text.Json;
using MambaVL.Checkpoints;
using MambaVL.Transforms;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Training;

/// <summary>The checkpoints of a run, each a folder that is there whole or not at all.</summary>
/// <remarks>
/// <code>
/// OutputDirectory/
///   run.lock                        held while a run uses the folder
///   checkpoint-00001200/            after 1,200 steps
///     state.safetensors             float32: weight/NAME, mean/NAME and square/NAME (AdamW's), best/NAME (if validated)
///     state.json                    the step, the best validation, the curves, and what the run depends on
/// </code>
/// A checkpoint is written into a folder of another name, flushed to the disk, and the folder renamed. So a process can be
/// killed at any moment: what it leaves half done is removed by the next.
/// </remarks>
internal sealed class TrainingCheckpoints : IDisposable
{
    private const string Prefix = "checkpoint-", Unfinished = ".unfinished-", Lock = "run.lock", Weights = "state.safetensors", State = "state.json";

    private static readonly JsonSerializerOptions Json = new() { WriteIndented = false };

    private readonly string _folder;
    private readonly int _keep;
    private readonly StepHost _host;
    private readonly IReadOnlyDictionary<string, string> _run;
    private readonly FileStream _lock;

    /// <param name="folder">The output directory; made if it is not there.</param>
    /// <param name="keep">Checkpoints that are kept.</param>
    /// <param name="run">What the run depends on.</param>
    /// <param name="host">Its log is told.</param>
    /// <exception cref="TrainingException">Another run uses the folder.</exception>
    public TrainingCheckpoints(string folder, int keep, IReadOnlyDictionary<string, string> run, StepHost host)
    {
        (_folder, _keep, _run, _host) = (Path.GetFullPath(folder), keep, run, host);
        Directory.CreateDirectory(_folder);
        try
        {
            _lock = new(Path.Combine(_folder, Lock), FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None);
        }
        catch (IOException e)
        {
            throw new TrainingException($"'{_folder}' is in use by another run ({Lock} is held); wait for it, or name another OutputDirectory.", e);
        }
        foreach (var left in Directory.EnumerateDirectories(_folder, Unfinished + "*")) Directory.Delete(left, recursive: true);
    }

    /// <summary>The folder of the newest checkpoint; null where there is none.</summary>
    public string? Newest => All().LastOrDefault();

    /// <summary>Called at each moment of writing, by tests that end a run there.</summary>
    internal static AsyncLocal<Action<string>?> Writing { get; } = new();

    /// <summary>Writes a checkpoint, and removes the oldest beyond those that are kept.</summary>
    /// <param name="state">Where the run stands.</param>
    /// <param name="parameters">What lies where.</param>
    /// <param name="optimizer">AdamW's two means.</param>
    /// <param name="best">The best weights, flat, or null.</param>
    public void Write(TrainingState state, FlatParameters parameters, AdamW optimizer, Tensor? best)
    {
        var folder = Path.Combine(_folder, string.Create(CultureInfo.InvariantCulture, $"{Prefix}{state.Step:d8}"));
        var unfinished = Path.Combine(_folder, $"{Unfinished}{Guid.NewGuid():n}");
        Directory.CreateDirectory(unfinished);
        Writing.Value?.Invoke("begun");
        var flats = new List<(string Kind, Tensor Flat)> { ("weight", parameters.Master), ("mean", optimizer.Mean), ("square", optimizer.Square) };
        if (best is not null) flats.Add(("best", best));
        var entries = flats.SelectMany(f => parameters.Names.Select(n => (Name: $"{f.Kind}/{n}", f.Flat, Parameter: n))).ToDictionary(e => e.Name);
        SafetensorsWriter.Write(Path.Combine(unfinished, Weights), entries.Values.Select(e =>
        {
            using var view = parameters.View(e.Flat, e.Parameter);
            return new TensorEntry(e.Name, ScalarType.Float32, view.shape);
        }), e => parameters.View(entries[e.Name].Flat, entries[e.Name].Parameter));
        Writing.Value?.Invoke("weights");
        AtomicFile.Write(Path.Combine(unfinished, State), JsonSerializer.SerializeToUtf8Bytes(new Stored(state, new(_run)), Json));
        Writing.Value?.Invoke("state");
        if (Directory.Exists(folder)) Remove(folder);
        Directory.Move(unfinished, folder);
        Writing.Value?.Invoke("renamed");
        var all = All();
        foreach (var old in all[..Math.Max(0, all.Count - _keep)].ToList()) Remove(old);
        Writing.Value?.Invoke("rotated");
    }

    /// <summary>The newest checkpoint, read into weights and optimiser; null where there is none. One that is damaged is passed
    /// over, and the log says so.</summary>
    /// <returns>Where the run stood, and the best weights, flat, which the caller owns.</returns>
    /// <exception cref="TrainingException">The newest checkpoint is of another run; the message says what differs.</exception>
    public (TrainingState State, Tensor? Best)? Read(FlatParameters parameters, AdamW optimizer)
    {
        foreach (var folder in All().AsEnumerable().Reverse())
        {
            try
            {
                var stored = JsonSerializer.Deserialize<Stored>(File.ReadAllBytes(Path.Combine(folder, State)), Json) ?? throw new JsonException("null");
                var differences = RunDescription.Differences(stored.Run, _run);
                if (differences.Count > 0)
                    throw new TrainingException($"'{folder}' is a checkpoint of another run, which cannot be gone on with:\n  {string.Join("\n  ", differences)}\nGive the same options and data, or another OutputDirectory.");
                using var checkpoint = Checkpoint.Open(Path.Combine(folder, Weights));
                foreach (var name in stored.State.Best is null ? ["weight", "mean", "square"] : (string[])["weight", "mean", "square", "best"])
                    if (parameters.Names.FirstOrDefault(n => !checkpoint.Tensors.ContainsKey($"{name}/{n}")) is { } missing)
                        throw new CheckpointException(checkpoint.Path, $"{name}/{missing}", "is missing."); // before anything is filled
                Tensor? best = stored.State.Best is null ? null : zeros_like(parameters.Master, device: CPU).DetachFromDisposeScope();
                Fill(checkpoint, "weight", parameters.Master);
                Fill(checkpoint, "mean", optimizer.Mean);
                Fill(checkpoint, "square", optimizer.Square);
                if (best is not null) Fill(checkpoint, "best", best);
                parameters.Refresh();
                _host.Info($"Training goes on after step {stored.State.Step:N0}, from '{folder}'.");
                return (stored.State, best);
            }
            catch (Exception e) when (e is CheckpointException or JsonException or FileNotFoundException or DirectoryNotFoundException)
            {
                _host.Warning($"The checkpoint '{folder}' is damaged, and passed over: {e.Message}");
            }
        }
        return null;

        void Fill(Checkpoint checkpoint, string kind, Tensor flat)
        {
            using var noGradients = no_grad();
            foreach (var name in parameters.Names)
            {
                using var value = checkpoint.Read($"{kind}/{name}");
                using var view = parameters.View(flat, name);
                view.copy_(value);
            }
        }
    }

    public void Dispose() => _lock.Dispose();

    // Renamed first: a folder with the name of a checkpoint is whole until the moment when it is none.
    private void Remove(string folder)
    {
        var unfinished = Path.Combine(_folder, $"{Unfinished}{Guid.NewGuid():n}");
        Directory.Move(folder, unfinished);
        Directory.Delete(unfinished, recursive: true);
    }

    private List<string> All() => [.. Directory.EnumerateDirectories(_folder, Prefix + "*").Order(StringComparer.Ordinal)];

    private sealed record Stored(TrainingState State, Dictionary<string, string> Run);
}
