namespace MambaVL.Prompts;

/// <summary>What is written in an image, as a prompt gives it to a model.</summary>
public static class OcrText
{
    private const string Heading = "OCR text:\n";

    /// <summary>Words in reading order, as TextVQA gives them.</summary>
    public static string FromWords(IEnumerable<string> words)
    {
        ArgumentNullException.ThrowIfNull(words);
        return Heading + string.Join(' ', words);
    }

    /// <summary>The labels of a diagram and what stands there, as AI2D gives them; sorted by label. Empty if there are none.</summary>
    public static string FromLabels(IEnumerable<(string Label, string Text)> labels)
    {
        ArgumentNullException.ThrowIfNull(labels);
        var lines = labels.OrderBy(l => l.Label, StringComparer.Ordinal).Select(l => $"{l.Label}: {l.Text}").ToList();
        return lines.Count == 0 ? "" : Heading + string.Join('\n', lines);
    }
}
