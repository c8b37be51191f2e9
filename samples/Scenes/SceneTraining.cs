using System.Globalization;
using MambaVL.Prompts;
using MambaVL.Models;
using MambaVL.Training;
using Microsoft.ML;
using Microsoft.ML.Data;
using TorchSharp;

namespace MambaVL.Samples.Scenes;

/// <summary>How a small model is trained from random weights.</summary>
internal sealed record SceneTrainingOptions
{
    /// <summary>The folder of a data set.</summary>
    public required string Data { get; init; }

    /// <summary>Where the model goes.</summary>
    public required string Output { get; init; }

    /// <summary><c>mamba</c> or <c>pythia</c>.</summary>
    public required string Backbone { get; init; }

    /// <summary>A model to go on from, with its sizes and tokeniser; null: random weights.</summary>
    public string? From { get; init; }

    /// <summary>A model whose vision encoder and connector a new one starts with; null: random weights.</summary>
    public string? Encoder { get; init; }

    public ModelSizes Sizes { get; init; } = new();

    public long Seed { get; init; } = 1;

    public string Device { get; init; } = "cpu";

    /// <summary>The pictures to learn from; null: all of the split.</summary>
    public int? Scenes { get; init; }

    /// <summary>The pictures that the loss is validated on.</summary>
    public int ValidationScenes { get; init; } = 250;

    /// <summary>Steps in which only names and numbers are learnt, on scenes of one kind; none where the data set has no such split.</summary>
    public int NamingSteps { get; init; } = 600;

    /// <summary>Steps on everything about scenes of one kind, after those.</summary>
    public int FirstSteps { get; init; } = 600;

    public int Epochs { get; init; } = 20;

    public int? Steps { get; init; }

    /// <summary>Ends training early; the schedule does not know of it.</summary>
    public double? Minutes { get; init; }

    public double LearningRate { get; init; } = 1e-3;

    public double WarmupShare { get; init; } = 0.05;

    public double WeightDecay { get; init; } = 0.05;

    public int Batch { get; init; } = 384;

    public int? MicroBatch { get; init; }

    public int RowsPerImage { get; init; } = 4;

    public TrainingPrecision Precision { get; init; } = TrainingPrecision.Auto;

    /// <summary>A folder of checkpoints, from which a run that was killed goes on; null: none.</summary>
    public string? Checkpoints { get; init; }
}

/// <summary>Trains a small model: an ordinary use of the trainers, but for the random weights that it starts from.</summary>
internal static class SceneTraining
{
    /// <summary>Trains, and writes the model in float16.</summary>
    /// <param name="options">What to train.</param>
    /// <param name="log">Gets a line for each report.</param>
    /// <param name="cancellation">Ends training; the model as it stands is written.</param>
    public static void Run(SceneTrainingOptions options, Action<string> log, CancellationToken cancellation = default)
    {
        if (options is { From: not null, Encoder: not null })
            throw new ArgumentException("--from and --encoder are both given. --from goes on with the whole of a model, its encoder included; --encoder is for a new one. Leave one out.");
        var ml = new MLContext(seed: (int)options.Seed);
        var train = First(ml, ml.Data.LoadFromVisionLanguageFile(Path.Combine(options.Data, Splits.Train + ".jsonl")), options.Scenes);
        var validation = First(ml, ml.Data.LoadFromVisionLanguageFile(Path.Combine(options.Data, Splits.Validation + ".jsonl")), options.ValidationScenes);

        using var start = options.From is { } learnt ? Load(learnt, options.Device) : Start(options, SceneTokenizer.Train(ml, train, options.Sizes.Vocabulary));
        log(string.Create(CultureInfo.InvariantCulture, $"{options.Backbone}: {start.NamedParameters().Sum(p => p.Parameter.numel()):N0} weights, {start.Tokenizer.VocabularySize} tokens, on {start.Device}"));

        using var limit = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        if (options.Minutes is { } minutes) limit.CancelAfter(TimeSpan.FromMinutes(minutes));

        var model = start;
        try
        {
            foreach (var lesson in Lessons(ml, options, train))
            {
                var trainer = ml.VisionLanguage().Trainers.InstructionTune(Recipe(model, lesson));
                // The model is validated where it is to be good: among all scenes.
                var taught = lesson.IsLast ? trainer.Fit(lesson.Rows, validation) : trainer.Fit(lesson.Rows);
                if (model != start) model.Dispose();
                model = taught.Model;
            }
            model.Save(options.Output, torch.ScalarType.Float16);
        }
        finally
        {
            if (model != start) model.Dispose();
        }
        log($"written to {options.Output}");

        InstructionTuneOptions Recipe(VisionLanguageModel from, Lesson lesson) => new()
        {
            Model = from,
            TrainVisionEncoder = true,
            Epochs = options.Epochs,
            MaxSteps = lesson.Steps,
            FinalShare = lesson.IsLast ? 0 : 1, // only the last comes to rest
            BatchSize = options.Batch,
            MicroBatchSize = options.MicroBatch,
            RowsPerImage = options.RowsPerImage,
            LearningRate = options.LearningRate,
            WarmupShare = options.WarmupShare,
            WeightDecay = options.WeightDecay,
            Beta2 = 0.98, // a short run: the memory of squares must be shorter than it
            Seed = options.Seed,
            Precision = options.Precision,
            PixelMemory = 16L << 30,
            OutputDirectory = options.Checkpoints is { } folder ? Path.Combine(folder, lesson.Name) : null,
            ReportSteps = 50,
            OnProgress = p => log(Line(p)),
            Cancellation = limit.Token,
        };
    }

    /// <summary>A part of training.</summary>
    private sealed record Lesson(string Name, IDataView Rows, int? Steps, bool IsLast = false);

    // Names first, from pictures with one kind of object; then everything about such pictures; then all pictures. Without the
    // first two a model still named nothing after 1,200 steps: a name is few of the tokens that are asked for, and numbers,
    // colours and the form of an answer are learnt from so many more that names do not stand out.
    private static IEnumerable<Lesson> Lessons(MLContext ml, SceneTrainingOptions options, IDataView train)
    {
        var file = Path.Combine(options.Data, Splits.First + ".jsonl");
        if (options.From is null && File.Exists(file))
        {
            var simple = ml.Data.LoadFromVisionLanguageFile(file);
            if (options.NamingSteps > 0)
                yield return new("names", ml.Data.FilterByCustomPredicate<RowKind>(simple, row => !s_naming.Contains(row.Kind)), options.NamingSteps);
            if (options.FirstSteps > 0) yield return new("simple", simple, options.FirstSteps);
        }
        yield return new("all", train, options.Steps, IsLast: true);
    }

    private static readonly HashSet<string> s_naming = ["alone", "what", "which", "count"];

    private sealed class RowKind
    {
        public string Kind { get; set; } = "";
    }

    private static VisionLanguageModel Load(string folder, string device)
        => VisionLanguageModel.FromPretrained(folder, new() { Device = device, DType = torch.ScalarType.Float32 });

    // First values are made on the CPU; the folder between brings them to the device.
    private static VisionLanguageModel Start(SceneTrainingOptions options, Tokenizer tokenizer)
    {
        var model = VisionLanguageModel.Create(options.Sizes.ToConfig(options.Backbone, tokenizer), tokenizer, options.Seed);
        if (options.Encoder is { } folderOfEncoder) TakeEncoder(model, folderOfEncoder);
        if (options.Device == "cpu") return model;
        var folder = Directory.CreateTempSubdirectory("mambavl-start-");
        try
        {
            using (model) model.Save(folder.FullName);
            return Load(folder.FullName, options.Device);
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    // What sees pictures does not depend on the backbone that is told about them.
    private static void TakeEncoder(VisionLanguageModel model, string folder)
    {
        using var origin = Load(folder, "cpu");
        using var noGradients = torch.no_grad();
        var from = origin.NamedParameters().ToDictionary(p => p.Name, p => p.Parameter);
        var language = model.Language.named_parameters().Select(p => p.name).ToHashSet();
        foreach (var (name, parameter) in model.NamedParameters().Where(p => !language.Contains(p.Name)))
        {
            if (!from.TryGetValue(name, out var value) || !value.shape.SequenceEqual(parameter.shape))
                throw new ArgumentException($"--encoder: '{folder}' has {(value is null ? "no " + name : $"{name} of [{string.Join(", ", value.shape)}]")}; expected [{string.Join(", ", parameter.shape)}]. Give both models the same sizes.");
            parameter.copy_(value);
        }
    }

    // The rows of the first pictures; those of one picture follow each other.
    private static IDataView First(MLContext ml, IDataView data, int? pictures)
    {
        if (pictures is not { } most) return data;
        var (rows, seen, last) = (0L, 0, "");
        foreach (var image in data.GetColumn<string>("Image"))
        {
            if (image != last && ++seen > most) break;
            (rows, last) = (rows + 1, image);
        }
        return ml.Data.TakeRows(data, rows);
    }

    private static string Line(TrainingProgress p) => p.Validation is { } validation
        ? string.Create(CultureInfo.InvariantCulture, $"step {p.Step} of {p.TotalSteps}: validation {p.Metric} {validation:0.0000}, best {p.BestValidation:0.0000}")
        : string.Create(CultureInfo.InvariantCulture, $"step {p.Step} of {p.TotalSteps}, epoch {p.Epoch:0.00}: loss {p.Loss:0.0000}, rate {p.LearningRate:0.000000}, gradient {p.GradientNorm:0.00}, {p.RowsPerSecond:0} rows/s, {p.Elapsed:hh\\:mm\\:ss} gone, {p.Remaining:hh\\:mm\\:ss} to go");
}
