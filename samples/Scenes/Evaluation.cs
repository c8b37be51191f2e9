using System.Diagnostics;
using System.Text.Json.Nodes;
using MambaVL.Metrics;
using MambaVL.Prompts;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Samples.Scenes;

/// <summary>Asks a model everything in a data set, and measures what it says.</summary>
internal static class Evaluation
{
    private const string Output = "Said";

    /// <summary>The metrics of each task that the rows have.</summary>
    /// <param name="model">The model.</param>
    /// <param name="path">The rows, docs/dataset-format.md; each with its target or box.</param>
    /// <param name="batch">Rows that the model gets at once; those about one picture share its encoding.</param>
    /// <param name="limit">The most rows; null for all.</param>
    /// <param name="progress">Gets the number of rows that are done.</param>
    /// <returns>One object, with an object for each task.</returns>
    public static JsonObject Run(VisionLanguageModel model, string path, int batch = 64, int? limit = null, IProgress<int>? progress = null)
    {
        var watch = Stopwatch.StartNew();
        var ml = new MLContext(seed: 1);
        var data = ml.Data.LoadFromVisionLanguageFile(path);
        if (limit is { } most) data = ml.Data.TakeRows(data, most);
        var said = ml.Transforms.FollowTasks(Output, "Image", "Task", "Question", model,
            options: new() { BatchSize = batch, Generation = new() { MaxNewTokens = 64 } }).Fit(data).Transform(data);

        // Once through the model; the metrics read what was kept.
        var rows = new List<Row>();
        foreach (var row in ml.Data.CreateEnumerable<Row>(said, reuseRowObject: false))
        {
            rows.Add(row);
            if (rows.Count % batch == 0) progress?.Report(rows.Count);
        }
        if (rows.Count == 0) throw new InvalidDataException($"'{path}' has no rows.");
        progress?.Report(rows.Count);

        var result = Measure(rows);
        result.Insert(2, "seconds", Math.Round(watch.Elapsed.TotalSeconds, 1));
        return result;
    }

    /// <summary>The metrics of what a model said.</summary>
    public static JsonObject Measure(IReadOnlyCollection<Row> rows)
    {
        var ml = new MLContext(seed: 1);
        var metrics = ml.VisionLanguage();
        var result = new JsonObject { ["rows"] = rows.Count, ["pictures"] = rows.Select(r => r.Image).Distinct().Count() };
        foreach (var task in rows.GroupBy(r => r.Task).OrderBy(g => g.Key, StringComparer.Ordinal))
        {
            var view = ml.Data.LoadFromEnumerable(task);
            List<Row> asked = [.. task];
            JsonObject measured = Enum.Parse<VisionTask>(task.Key) switch
            {
                VisionTask.Captioning => Captions(asked, metrics.EvaluateCaptions(view, nameof(Row.Answers), Output)),
                VisionTask.QuestionAnswering or VisionTask.MultipleChoice => Answers(asked, metrics.EvaluateAnswers(view, nameof(Row.Answers), Output)),
                VisionTask.Grounding => Boxes(asked, metrics.EvaluateGrounding(view, nameof(Row.Box), $"{Output}.Box")),
                VisionTask.ImageTextMatch => Matches(asked, metrics.EvaluateMatches(view, nameof(Row.Target), Output)),
                _ => [],
            };
            measured.Insert(0, "rows", asked.Count);
            result[char.ToLowerInvariant(task.Key[0]) + task.Key[1..]] = measured;
        }
        return result;
    }

    private static JsonObject Captions(List<Row> rows, CaptionMetrics metrics)
    {
        // Scenes have captions that can be read back; those of other data sets have words alone.
        var read = rows.Select(r => (Truth: Read(r.Target), Said: Read(r.Said), r.Kind)).ToList();
        var json = new JsonObject();
        if (read.TrueForAll(r => r.Truth is not null))
        {
            json["objectsAndRelation"] = Rounded(read.Average(r => HasSameObjects(r) ? 1.0 : 0));
            var withBackground = read.Where(r => r.Truth!.Background is not null).ToList();
            if (withBackground.Count > 0) json["background"] = Rounded(withBackground.Average(r => r.Said?.Background == r.Truth!.Background ? 1.0 : 0));
            json["byKind"] = ByKind(read.Select(r => (r.Kind, HasSameObjects(r) ? 1.0 : 0)));
        }
        json["bleu4"] = Rounded(metrics.Bleu4);
        json["rougeL"] = Rounded(metrics.RougeL);
        json["cider"] = Rounded(metrics.Cider);
        return json;

        static CaptionText? Read(string text) => CaptionText.TryParse(text, out var caption) ? caption : null;

        static bool HasSameObjects((CaptionText? Truth, CaptionText? Said, string Kind) row) => row.Said is { } said && said.HasSameObjects(row.Truth!);
    }

    private static JsonObject Answers(List<Row> rows, AnswerMetrics metrics) => new()
    {
        ["accuracy"] = Rounded(metrics.ExactMatch),
        ["byKind"] = ByKind(rows.Zip(metrics.PerRow, (r, m) => (r.Kind, m.IsExactMatch ? 1.0 : 0))),
    };

    private static JsonObject Boxes(List<Row> rows, GroundingMetrics metrics) => new()
    {
        ["accuracy"] = Rounded(metrics.Accuracy),
        ["meanIou"] = Rounded(metrics.MeanIou),
        ["unreadable"] = Rounded(metrics.UnreadableShare),
        ["byKind"] = ByKind(rows.Zip(metrics.PerRow, (r, m) => (r.Kind, m.IsCorrect ? 1.0 : 0))),
    };

    private static JsonObject Matches(List<Row> rows, MatchMetrics metrics) => new()
    {
        ["accuracy"] = Rounded(metrics.Accuracy),
        ["precision"] = Rounded(metrics.Precision),
        ["recall"] = Rounded(metrics.Recall),
        ["f1"] = Rounded(metrics.F1),
        ["yesRatio"] = Rounded(metrics.YesRatio),
        ["unreadable"] = Rounded(metrics.UnreadableShare),
        ["byKind"] = ByKind(rows.Zip(metrics.PerRow, (r, m) => (r.Kind, m.IsCorrect ? 1.0 : 0))),
    };

    private static JsonObject ByKind(IEnumerable<(string Kind, double Score)> rows) => new(rows
        .GroupBy(r => r.Kind).OrderBy(g => g.Key, StringComparer.Ordinal)
        .Select(g => KeyValuePair.Create(g.Key, (JsonNode?)new JsonObject { ["rows"] = g.Count(), ["accuracy"] = Rounded(g.Average(r => r.Score)) })));

    private static double Rounded(double value) => Math.Round(value, 4);

    /// <summary>A row with what the model said.</summary>
    internal sealed class Row
    {
        public string Image { get; set; } = "";

        public string Task { get; set; } = "";

        public string Target { get; set; } = "";

        public string[] Answers { get; set; } = [];

        [VectorType(BoxColumn.Length)]
        public float[] Box { get; set; } = [];

        public string Kind { get; set; } = "";

        public string Said { get; set; } = "";

        [ColumnName("Said.Box"), VectorType(BoxColumn.Length)]
        public float[] SaidBox { get; set; } = [];

        [ColumnName("Said.Box.Readable")]
        public bool IsReadable { get; set; }
    }
}
