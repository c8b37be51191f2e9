using System.Globalization;
using MambaVL.Prompts;
using MambaVL.Models;
using MambaVL.Training;
using MambaVL.Transforms;
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

    public ModelSizes Sizes { get; init; } = new();

    public long Seed { get; init; } = 1;

    public string Device { get; init; } = "cpu";

    /// <summary>The pictures to learn from; null: all of the split.</summary>
    public int? Scenes { get; init; }

    /// <summary>The pictures that the loss is validated on.</summary>
    public int ValidationScenes { get; init; } = 250;

    /// <summary>Steps on scenes of one kind, before all others; none where the data set has no such split.</summary>
    public int FirstSteps { get; init; } = 1500;

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
        var ml = new MLContext(seed: (int)options.Seed);
        var train = First(ml, ml.Data.LoadFromVisionLanguageFile(Path.Combine(options.Data, Splits.Train + ".jsonl")), options.Scenes);
        var validation = First(ml, ml.Data.LoadFromVisionLanguageFile(Path.Combine(options.Data, Splits.Validation + ".jsonl")), options.ValidationScenes);

        var tokenizer = SceneTokenizer.Train(ml, train, options.Sizes.Vocabulary);
        using var start = Start(options, tokenizer);
        log(string.Create(CultureInfo.InvariantCulture, $"{options.Backbone}: {start.NamedParameters().Sum(p => p.Parameter.numel()):N0} weights, {tokenizer.VocabularySize} tokens, on {start.Device}"));

        using var limit = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        if (options.Minutes is { } minutes) limit.CancelAfter(TimeSpan.FromMinutes(minutes));

        // What things look like is learnt from pictures of one kind first: 800 steps there do more than 1,200 among all scenes,
        // after which a model still named nothing.
        var first = Path.Combine(options.Data, Splits.First + ".jsonl");
        if (options.FirstSteps == 0 || !File.Exists(first))
        {
            using var trained = Trainer(start, options.Steps, null, options.Checkpoints).Fit(train, validation);
            Save(trained);
            return;
        }
        using var beginner = Trainer(start, options.FirstSteps, 0.3, options.Checkpoints is { } folder ? Path.Combine(folder, Splits.First) : null)
            .Fit(ml.Data.LoadFromVisionLanguageFile(first));
        using var complete = Trainer(beginner.Model, options.Steps, null, options.Checkpoints is { } folder2 ? Path.Combine(folder2, Splits.Train) : null)
            .Fit(train, validation);
        Save(complete);

        void Save(VisionLanguageTransformer trained)
        {
            trained.Model.Save(options.Output, torch.ScalarType.Float16);
            log($"written to {options.Output}");
        }

        VisionLanguageTrainer Trainer(VisionLanguageModel model, int? steps, double? finalShare, string? checkpoints) => ml.VisionLanguage().Trainers.InstructionTune(new()
        {
            Model = model,
            TrainVisionEncoder = true,
            Epochs = options.Epochs,
            MaxSteps = steps,
            FinalShare = finalShare ?? 0,
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
            OutputDirectory = checkpoints,
            ReportSteps = 50,
            OnProgress = p => log(Line(p)),
            Cancellation = limit.Token,
        });
    }

    // First values are made on the CPU; the folder between brings them to the device.
    private static VisionLanguageModel Start(SceneTrainingOptions options, Tokenizer tokenizer)
    {
        var model = VisionLanguageModel.Create(options.Sizes.ToConfig(options.Backbone, tokenizer), tokenizer, options.Seed);
        if (options.Device == "cpu") return model;
        var folder = Directory.CreateTempSubdirectory("mambavl-start-");
        try
        {
            using (model) model.Save(folder.FullName);
            return VisionLanguageModel.FromPretrained(folder.FullName, new() { Device = options.Device, DType = torch.ScalarType.Float32 });
        }
        finally
        {
            folder.Delete(recursive: true);
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
