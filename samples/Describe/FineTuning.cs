using System.Globalization;
using MambaVL.Metrics;
using MambaVL.Samples.Scenes;
using MambaVL.Training;
using Microsoft.ML;

namespace MambaVL.Samples;

/// <summary>Teaches a model something small, in a minute: a question that it was never asked, answered in digits where it knows words.</summary>
internal static class FineTuning
{
    private const int TrainingScenes = 240, TestScenes = 60, Size = 192;

    // Other scenes than those of any data set of this repository.
    private const long Seed = 20261124;

    public static int Run(VisionLanguageModel model, TimeSpan time, CancellationToken cancellation)
    {
        var folder = Directory.CreateTempSubdirectory("mambavl-train-");
        try
        {
            var ml = new MLContext(seed: 1);
            var train = Make(folder.FullName, Splits.Train, TrainingScenes);
            var test = Make(folder.FullName, Splits.Test, TestScenes);
            Console.WriteLine($"'{test[0].Question}' is to be answered in digits: '{test[0].Target}'. {train.Count} such rows about {TrainingScenes} scenes to learn from, {test.Count} about {TestScenes} others to measure.");
            Console.WriteLine(Show("before", Evaluate(ml, model, test)));

            using var limit = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
            limit.CancelAfter(time);
            var trainer = ml.VisionLanguage().Trainers.InstructionTune(new()
            {
                Model = model,
                LearningRate = 5e-4,
                BatchSize = 16,
                RowsPerImage = 2,
                Epochs = 4,
                ReportSteps = 10,
                Cancellation = limit.Token,
                OnProgress = p => Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"  step {p.Step} of {p.TotalSteps}: loss {p.Loss:0.000}, {p.Elapsed.TotalSeconds:0} s")),
            });
            using var tuned = trainer.Fit(ml.Data.LoadFromEnumerable(train));
            cancellation.ThrowIfCancellationRequested(); // Ctrl+C, not the minute
            Console.WriteLine(Show("after", Evaluate(ml, tuned.Model, test)));
            return 0;
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    private static AnswerMetrics Evaluate(MLContext ml, VisionLanguageModel model, IReadOnlyList<Row> rows)
    {
        var data = ml.Data.LoadFromEnumerable(rows);
        var said = ml.Transforms.AnswerQuestions("Answer", "Image", "Question", model, new() { Generation = new() { MaxNewTokens = 16 } }).Fit(data).Transform(data);
        return ml.VisionLanguage().EvaluateAnswers(said, nameof(Row.Target));
    }

    private static string Show(string when, AnswerMetrics metrics)
        => string.Create(CultureInfo.InvariantCulture, $"{when}: {metrics.PerRow.Count(r => r.IsExactMatch)} of {metrics.RowCount} right ({100 * metrics.ExactMatch:0.0} %)");

    // Any IDataView trains: these rows are objects in memory, about pictures that are made here.
    private static List<Row> Make(string folder, string split, int count)
    {
        using var sprites = new Sprites();
        var rows = new List<Row>();
        for (var i = 0; i < count; i++)
        {
            var scene = new SceneComposer(sprites, Size).Compose(Seed, split, i, out _);
            var path = Path.Combine(folder, $"{split}{i}.png");
            PngWriter.Write(path, scene.Paint(sprites), Size);
            rows.AddRange(scene.Groups.Select(g => new Row { Image = path, Question = $"Count the {g.Kind.Plural}.", Target = g.Count.ToString(CultureInfo.InvariantCulture) }));
        }
        return rows;
    }

    private sealed class Row
    {
        public string Image { get; set; } = "";

        public string Task { get; set; } = nameof(Prompts.VisionTask.QuestionAnswering);

        public string Question { get; set; } = "";

        public string Target { get; set; } = "";
    }
}
