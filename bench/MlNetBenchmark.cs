using System.Diagnostics;
using System.Globalization;
using MambaVL.Generation;
using MambaVL.Models;
using MambaVL.Prompts;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;
using static TorchSharp.torch;

namespace MambaVL.Bench;

/// <summary>What a pipeline step costs beside calling the model on the same batches. Random weights: wide enough that the
/// model's work is the greater part, as it always is, and small enough to repeat.</summary>
internal static class MlNetBenchmark
{
    private static readonly GenerationOptions Generation = new() { MaxNewTokens = 8, IgnoreEndToken = true };

    /// <summary>A caption of each picture file, and an answer about the features of each picture.</summary>
    public static IEnumerable<Result> Run(Options options)
    {
        set_num_threads(options.Threads);
        var (rows, batch) = (options.Number("rows", 12), options.Number("batch", 4));
        var folder = Directory.CreateTempSubdirectory("mambavl-bench-").FullName;
        try
        {
            using var model = Model();
            var data = Enumerable.Range(0, rows).Select(i => Picture(folder, i)).ToList();
            yield return Captions(options, model, data, batch);
            yield return Answers(options, model, data, batch);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static Result Captions(Options options, VisionLanguageModel model, List<Row> rows, int batch)
    {
        var ml = new MLContext(1);
        var view = ml.Data.LoadFromEnumerable(rows);
        var result = ml.Transforms.CaptionImages("Caption", "Path", model, new() { Generation = Generation, BatchSize = batch }).Fit(view).Transform(view);
        return Compare("captions of files", options, rows.Count, batch, () => Read(result, "Caption"), () => Batches(rows, batch, part =>
        {
            var images = part.ConvertAll(r => model.EncodeImage(r.Path));
            var texts = model.Generate(images.ConvertAll(i => model.Request(i, Conversation.Caption())), Generation).Select(a => a.Text.Trim()).ToList();
            foreach (var image in images) image.Dispose();
            return texts;
        }));
    }

    private static Result Answers(Options options, VisionLanguageModel model, List<Row> rows, int batch)
    {
        var ml = new MLContext(1);
        var view = ml.Data.LoadFromEnumerable(rows);
        var patches = ml.Data.Cache(ml.Transforms.EncodeImages("Patches", "Path", model).Fit(view).Transform(view));
        var features = patches.GetColumn<float[]>("Patches").ToList();
        var result = ml.Transforms.AnswerQuestions("Answer", "Patches", "Question", model, new() { Generation = Generation, BatchSize = batch }).Fit(patches).Transform(patches);
        var side = model.Config.Images.ImageSize / model.Vision.PatchSize;
        return Compare("answers about features", options, rows.Count, batch, () => Read(result, "Answer"), () => Batches([.. rows.Zip(features)], batch, part =>
        {
            var images = part.ConvertAll(r =>
            {
                using var values = tensor(r.Second, [1, side * side, model.Config.Vision.FeatureWidth]);
                using var embeddings = model.Connect(values);
                return new EncodedImage(embeddings.squeeze(0), 1, 1);
            });
            var requests = part.Zip(images, (r, i) => model.Request(i, Conversation.Ask(r.First.Question))).ToList();
            var texts = model.Generate(requests, Generation).Select(a => AnswerText.Short(a.Text)).ToList();
            foreach (var image in images) image.Dispose();
            return texts;
        }));
    }

    // The two sides take turns, so that a busy machine is busy for both; and they must say the same.
    private static Result Compare(string name, Options options, int rows, int batch, Func<List<string>> step, Func<List<string>> direct)
    {
        List<double> ours = [], other = [], shares = [], processor = [];
        for (var i = -2; i < options.Repeats; i++)
        {
            var (a, b) = i % 2 == 0 ? (Time(step), Time(direct)) : Swap(Time(direct), Time(step));
            if (!a.Texts.SequenceEqual(b.Texts)) throw new InvalidOperationException($"The step and the model say different things in '{name}'.");
            if (i < 0) continue;
            ours.Add(a.Milliseconds);
            other.Add(b.Milliseconds);
            shares.Add(a.Milliseconds / b.Milliseconds);
            processor.Add(a.Processor / b.Processor);
        }
        // Processor time as well: on a machine that others use, it is the steadier of the two.
        var (more, moreProcessor) = (100 * (Timing.Of(shares).Median - 1), 100 * (Timing.Of(processor).Median - 1));
        return new(string.Create(CultureInfo.InvariantCulture, $"{name}, {rows} rows in batches of {batch}: Transform takes {more:+0.0;-0.0} % of time, {moreProcessor:+0.0;-0.0} % of processor time (target: at most 3)"), Timing.Of(ours), Timing.Of(other));

        static (T, T) Swap<T>(T first, T second) => (second, first);
    }

    private static (double Milliseconds, double Processor, List<string> Texts) Time(Func<List<string>> run)
    {
        var (start, processor) = (Stopwatch.GetTimestamp(), Environment.CpuUsage.TotalTime);
        var texts = run();
        return (Stopwatch.GetElapsedTime(start).TotalMilliseconds, (Environment.CpuUsage.TotalTime - processor).TotalMilliseconds, texts);
    }

    private static List<string> Read(IDataView data, string column) => [.. data.GetColumn<string>(column)];

    private static List<string> Batches<T>(List<T> rows, int batch, Func<List<T>, List<string>> run) => [.. rows.Chunk(batch).SelectMany(part => run([.. part]))];

    private static VisionLanguageModel Model()
    {
        var tokenizer = Tokenizer.Load(Repository.Path("tests/data/tiny-tokenizer"));
        return VisionLanguageModel.Create(new()
        {
            Vision = new Eva02Config { PatchSize = 14, ImageSize = 112, Depth = 4, Width = 192, Heads = 6, MlpWidth = 512 },
            Language = new MambaConfig { HiddenSize = 256, LayerCount = 4, VocabularySize = tokenizer.VocabularySize, InitializerRange = 1 },
        }, tokenizer, seed: 1);
    }

    // A BMP of noise, the quickest file to read: the pictures' decoding is the same on both sides.
    private static Row Picture(string folder, int i)
    {
        const int side = 256;
        var bytes = new byte[54 + side * side * 3];
        new Random(i).NextBytes(bytes.AsSpan(54));
        "BM"u8.CopyTo(bytes);
        BitConverter.TryWriteBytes(bytes.AsSpan(2), bytes.Length);
        (bytes[10], bytes[14], bytes[26], bytes[28]) = (54, 40, 1, 24);
        BitConverter.TryWriteBytes(bytes.AsSpan(18), side);
        BitConverter.TryWriteBytes(bytes.AsSpan(22), side);
        var path = Path.Combine(folder, $"{i}.bmp");
        File.WriteAllBytes(path, bytes);
        return new() { Path = path, Question = $"what is in picture {i}" };
    }

    private sealed class Row
    {
        public string Path { get; set; } = "";

        public string Question { get; set; } = "";
    }
}
