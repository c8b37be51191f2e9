using System.Globalization;
using MambaVL.Metrics;
using MambaVL.Samples.Scenes;
using MambaVL.Training;
using Microsoft.ML;

namespace MambaVL.Samples;

/// <summary>Teaches a model something small, in a minute: a question that it was never asked, answered in digits where it knows words.</summary>
internal static class FineTuning
{
    // As many of each digit, so that no answer is right by being frequent.
    private const int Digits = 4, TrainingRows = 200, TestRows = 20, Size = 192;

    // Other scenes than those of any data set of this repository.
    private const long Seed = 20261124;

    public static int Run(VisionLanguageModel model, TimeSpan time, CancellationToken cancellation)
    {
        var folder = Directory.CreateTempSubdirectory("mambavl-train-");
        try
        {
            var ml = new MLContext(seed: 1);
            var train = Make(folder.FullName, Splits.Train, TrainingRows);
            var test = Make(folder.FullName, Splits.Test, TestRows);
            Console.WriteLine($"Questions such as '{test[0].Question}' are to be answered in digits, '{test[0].Target}': {train.Count} of them to learn from, {test.Count} about other scenes to measure.");
            Console.WriteLine(Show("before", Evaluate(ml, model, test)));

            using var limit = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
            limit.CancelAfter(time);
            var trainer = ml.VisionLanguage().Trainers.InstructionTune(new()
            {
                Model = model,
                LearningRate = 2e-4,
                BatchSize = 16,
                RowsPerImage = 4, // the rows of a scene stand together: its picture is read once
                MaxSteps = 250,
                Epochs = 10,
                ReportSteps = 25,
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
    private static List<Row> Make(string folder, string split, int rowsOfDigit)
    {
        using var sprites = new Sprites();
        var rows = new List<Row>();
        var made = new int[Digits + 1];
        for (var i = 0; rows.Count < Digits * rowsOfDigit; i++)
        {
            var scene = new SceneComposer(sprites, Size).Compose(Seed, split, i, out _);
            var wanted = scene.Groups.Where(g => made[g.Count] < rowsOfDigit).ToList();
            if (wanted.Count == 0) continue;
            var path = Path.Combine(folder, $"{split}{i}.png");
            PngWriter.Write(path, scene.Paint(sprites), Size);
            foreach (var (kind, count) in wanted)
            {
                if (made[count] == rowsOfDigit) continue; // two kinds of a scene may be as many
                made[count]++;
                rows.Add(new() { Image = path, Question = $"Count the {kind.Plural}.", Target = count.ToString(CultureInfo.InvariantCulture) });
            }
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
