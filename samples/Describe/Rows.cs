using MambaVL.Prompts;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Samples;

/// <summary>A row that goes in: a picture, and what to ask about it.</summary>
internal sealed class Asked
{
    public const string DefaultQuestion = "What is in the picture?", DefaultPhrase = "the largest object";

    // Beside pictures: which question and which phrase each of them gets (docs/dataset-format.md).
    private const string RowsFile = "rows.jsonl";

    public string Path { get; set; } = "";

    public string Question { get; set; } = DefaultQuestion;

    public string Phrase { get; set; } = DefaultPhrase;

    /// <summary>The pictures of files and folders, in the order of their names.</summary>
    /// <exception cref="FileNotFoundException">There is no picture, or no such file.</exception>
    public static IReadOnlyList<Asked> Read(string[] paths, string? question, string? phrase)
    {
        var pictures = paths.SelectMany(p => Directory.Exists(p) ? Pictures(p) : [p]).ToList();
        if (pictures.Count == 0) throw new FileNotFoundException($"There is no picture in {string.Join(", ", paths)}; expected .png, .jpg, .webp, .gif or .bmp files.");
        var rows = new Dictionary<string, (string? Question, string? Phrase)>();
        foreach (var file in pictures.Select(p => System.IO.Path.Combine(System.IO.Path.GetDirectoryName(System.IO.Path.GetFullPath(p))!, RowsFile)).Distinct().Where(File.Exists))
            foreach (var row in new MLContext().Data.CreateEnumerable<Row>(new MLContext().Data.LoadFromVisionLanguageFile(file), reuseRowObject: false))
            {
                var known = rows.GetValueOrDefault(row.Image);
                rows[row.Image] = (known.Question ?? (row.Task == nameof(VisionTask.QuestionAnswering) ? row.Question : null),
                    known.Phrase ?? (row.Task == nameof(VisionTask.Grounding) ? row.Question : null));
            }
        return [.. pictures.Select(p => new Asked
        {
            Path = p,
            Question = question ?? rows.GetValueOrDefault(System.IO.Path.GetFullPath(p)).Question ?? DefaultQuestion,
            Phrase = phrase ?? rows.GetValueOrDefault(System.IO.Path.GetFullPath(p)).Phrase ?? DefaultPhrase,
        })];
    }

    private static IEnumerable<string> Pictures(string folder) => Directory.EnumerateFiles(folder)
        .Where(f => System.IO.Path.GetExtension(f).ToLowerInvariant() is ".png" or ".jpg" or ".jpeg" or ".webp" or ".gif" or ".bmp")
        .Order(StringComparer.Ordinal);

    private sealed class Row
    {
        public string Image { get; set; } = "";

        public string Task { get; set; } = "";

        public string Question { get; set; } = "";
    }
}

/// <summary>The columns of a row that comes out.</summary>
internal sealed class Described
{
    public string Path { get; set; } = "";

    public string Question { get; set; } = "";

    public string Phrase { get; set; } = "";

    public string Caption { get; set; } = "";

    public string Answer { get; set; } = "";

    /// <summary>x0, y0, x1, y1 in pixels of the picture; not numbers where the model's text holds no box.</summary>
    [VectorType(BoxColumn.Length)]
    public float[] Box { get; set; } = [];

    [ColumnName("Box.Text")]
    public string BoxText { get; set; } = "";

    /// <summary>Why the picture could not be read; empty where it was.</summary>
    [ColumnName("Patches.Error")]
    public string Error { get; set; } = "";
}
