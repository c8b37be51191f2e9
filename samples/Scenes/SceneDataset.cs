using System.Buffers;
using System.Text.Encodings.Web;
using System.Text.Json;

namespace MambaVL.Samples.Scenes;

/// <summary>What a data set is made of.</summary>
internal sealed record SceneDatasetOptions
{
    /// <summary>The same seed gives the same scenes.</summary>
    public required long Seed { get; init; }

    /// <summary>Scenes of each split.</summary>
    public required IReadOnlyDictionary<string, int> Splits { get; init; }

    /// <summary>Pixels on a side of a picture.</summary>
    public int Size { get; init; } = 192;

    /// <summary>Threads; the result does not depend on it.</summary>
    public int Threads { get; init; } = Environment.ProcessorCount;
}

/// <summary>Writes data sets of scenes.</summary>
/// <remarks>A folder of them has <c>scenes.json</c> (what it was made of), <c>images/SPLIT/...</c> and <c>SPLIT.jsonl</c>. The rows come
/// last and at once: a folder without them is not yet a data set.</remarks>
internal static class SceneDataset
{
    public const string Manifest = "scenes.json";

    private const int ScenesAtOnce = 2048, PicturesInFolder = 1000;

    private static readonly JsonWriterOptions s_json = new() { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    /// <summary>Makes the data set.</summary>
    /// <param name="folder">An empty folder, or one that this wrote; made if it is not there.</param>
    /// <param name="options">What to make.</param>
    /// <param name="progress">Gets the number of scenes that are written.</param>
    /// <param name="cancellation">Stops between scenes.</param>
    /// <returns>The number of rows of each split.</returns>
    /// <exception cref="IOException">The folder holds something else, or cannot be written.</exception>
    public static IReadOnlyDictionary<string, int> Write(string folder, SceneDatasetOptions options, IProgress<int>? progress = null, CancellationToken cancellation = default)
    {
        Clear(folder);
        File.WriteAllBytes(Path.Combine(folder, Manifest), JsonSerializer.SerializeToUtf8Bytes(new
        {
            generator = typeof(SceneDataset).Assembly.GetName().Name,
            seed = options.Seed,
            size = options.Size,
            scenes = options.Splits,
        }, new JsonSerializerOptions { WriteIndented = true }));

        using var sprites = new Sprites();
        var rows = new Dictionary<string, int>();
        var done = 0;
        foreach (var (split, count) in options.Splits)
        {
            using var file = new FileStream(Path.Combine(folder, split + ".jsonl.part"), FileMode.Create, FileAccess.Write);
            rows[split] = 0;
            for (var first = 0; first < count; first += ScenesAtOnce)
            {
                var lines = new (byte[] Text, int Count)[Math.Min(ScenesAtOnce, count - first)];
                for (var next = first / PicturesInFolder * PicturesInFolder; next < first + lines.Length; next += PicturesInFolder)
                    Directory.CreateDirectory(Path.GetDirectoryName(Path.Combine(folder, ImagePath(split, next)))!);
                Parallel.For(0, lines.Length, new() { MaxDegreeOfParallelism = options.Threads, CancellationToken = cancellation },
                    i => lines[i] = WriteScene(folder, split, first + i, options, sprites));
                foreach (var (text, n) in lines)
                {
                    file.Write(text);
                    rows[split] += n;
                }
                progress?.Report(done += lines.Length);
            }
            file.Flush(flushToDisk: true);
        }
        foreach (var split in options.Splits.Keys)
            File.Move(Path.Combine(folder, split + ".jsonl.part"), Path.Combine(folder, split + ".jsonl"));
        return rows;
    }

    /// <summary>Where a scene's picture is, from the data set's folder.</summary>
    public static string ImagePath(string split, int index) => $"images/{split}/{index / PicturesInFolder:000}/{index:000000}.png";

    private static (byte[] Text, int Count) WriteScene(string folder, string split, int index, SceneDatasetOptions options, Sprites sprites)
    {
        var scene = new SceneComposer(sprites, options.Size).Compose(options.Seed, split, index, out var random);
        var image = ImagePath(split, index);
        PngWriter.Write(Path.Combine(folder, image), scene.Paint(sprites), options.Size);

        var buffer = new ArrayBufferWriter<byte>(2048);
        using var json = new Utf8JsonWriter(buffer, s_json);
        var rows = SceneRows.Of(scene, random, withList: Scenes.Splits.Teaches(split));
        foreach (var row in rows)
        {
            row.Write(json, image);
            json.Flush();
            json.Reset();
            buffer.Write("\n"u8);
        }
        return (buffer.WrittenSpan.ToArray(), rows.Count);
    }

    // What another run left is in the way: its rows are of other pictures.
    private static void Clear(string folder)
    {
        if (Directory.Exists(folder) && Directory.EnumerateFileSystemEntries(folder).Any())
        {
            if (!File.Exists(Path.Combine(folder, Manifest)))
                throw new IOException($"'{folder}' is not empty, and has no {Manifest}: it was not written by this program. Name an empty folder.");
            foreach (var split in Scenes.Splits.All)
            {
                File.Delete(Path.Combine(folder, split + ".jsonl"));
                File.Delete(Path.Combine(folder, split + ".jsonl.part"));
                var images = Path.Combine(folder, "images", split);
                if (Directory.Exists(images)) Directory.Delete(images, recursive: true);
            }
        }
        Directory.CreateDirectory(folder);
    }
}
