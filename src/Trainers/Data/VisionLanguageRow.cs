using System.Text.Json;
using MambaVL.Prompts;

namespace MambaVL.Data;

/// <summary>One line of a data set, checked.</summary>
/// <param name="Image">The image's full path.</param>
/// <param name="Task">The task.</param>
/// <param name="Question">The question, phrase or description; empty for a caption.</param>
/// <param name="Choices">The answers to choose from; empty for other tasks.</param>
/// <param name="Target">What is to be learnt; empty where the row only asks, and for a box.</param>
/// <param name="Box">x0, y0, x1, y1 in pixels, or four times NaN.</param>
/// <param name="Kind">Any name by which rows are grouped in reports; empty where there is none.</param>
internal sealed record VisionLanguageRow(string Image, VisionTask Task, string Question, string[] Choices, string Target, float[] Box, string Kind)
{
    private const int MostChoices = 26;

    private static readonly JsonDocumentOptions s_json = new() { AllowDuplicateProperties = false };

    private static readonly float[] s_noBox = [float.NaN, float.NaN, float.NaN, float.NaN];

    // These have several boxes a row, which the format does not hold.
    private static readonly string[] s_tasks =
        [.. Enum.GetNames<VisionTask>().Except([nameof(VisionTask.GroundedMultipleChoice), nameof(VisionTask.GroundedCaptioning)])];

    /// <summary>Reads a line.</summary>
    /// <param name="line">The line in UTF-8, without its end.</param>
    /// <param name="folder">What the image's path is relative to.</param>
    /// <exception cref="FormatException">It is no row; the message says what was found and what was expected.</exception>
    public static VisionLanguageRow Parse(ReadOnlyMemory<byte> line, string folder)
    {
        try
        {
            using var json = JsonDocument.Parse(line, s_json);
            var root = json.RootElement;
            if (root.ValueKind != JsonValueKind.Object)
                throw new FormatException($"found {Shown(root)}; expected an object such as {{\"image\": \"a.png\", \"task\": \"Captioning\", \"target\": \"A cat.\"}}.");
            return new VisionLanguageRow(
                Path.GetFullPath(Path.Combine(folder, Required(root, "image", "the path of an image"))),
                ReadTask(root), Text(root, "question"), ReadChoices(root), Text(root, "target"), ReadBox(root), Text(root, "kind")).Checked();
        }
        catch (JsonException e)
        {
            // Its own position counts lines within the line; the byte is what helps.
            throw new FormatException($"found no JSON at byte {e.BytePositionInLine ?? 0}; expected one object on the line.", e);
        }
        catch (InvalidOperationException e) // what JsonElement throws at an escaped half of a surrogate pair, and at bytes that are no UTF-8
        {
            throw new FormatException("found a text that is not Unicode; expected UTF-8, and escapes of whole characters.", e);
        }
        catch (ArgumentException e) // a zero character in the path
        {
            throw new FormatException($"found an 'image' that is no path: {e.Message}", e);
        }
    }

    // What each task cannot do without. A target may be absent: such a row asks.
    private VisionLanguageRow Checked()
    {
        var hasBox = !float.IsNaN(Box[0]);
        if (Task is VisionTask.QuestionAnswering or VisionTask.MultipleChoice or VisionTask.Grounding or VisionTask.ImageTextMatch or VisionTask.Chat
            && string.IsNullOrWhiteSpace(Question))
            throw new FormatException($"found no 'question'; the task {Task} needs one{(Task is VisionTask.Grounding ? ": the phrase" : Task is VisionTask.ImageTextMatch ? ": the description" : "")}.");
        if (Task is VisionTask.MultipleChoice ? Choices.Length is < 1 or > MostChoices : Choices.Length > 0)
            throw new FormatException($"found {Choices.Length} choices; the task {Task} takes {(Task is VisionTask.MultipleChoice ? $"1 to {MostChoices}" : "none")}.");
        if (Task is VisionTask.MultipleChoice && Target.Length > 0 && !Choices.Contains(Target, StringComparer.Ordinal))
            throw new FormatException($"found the target '{Target}'; expected one of the choices '{string.Join("', '", Choices)}', letter for letter.");
        if (Task is VisionTask.ImageTextMatch && Target is not ("" or "True" or "False"))
            throw new FormatException($"found the target '{Target}'; expected True or False.");
        if (Task is VisionTask.DenseCaptioning && !hasBox)
            throw new FormatException($"found no 'box'; the task {Task} needs the region that is described.");
        if (Task is VisionTask.Grounding && Target.Length > 0)
            throw new FormatException($"found the target '{Target}'; the target of the task {Task} is 'box'.");
        return this;
    }

    private static VisionTask ReadTask(JsonElement root)
    {
        var name = Required(root, "task", string.Join(", ", s_tasks));
        return s_tasks.Contains(name) ? Enum.Parse<VisionTask>(name)
            : throw new FormatException($"found the task '{name}'; expected one of {string.Join(", ", s_tasks)}.");
    }

    private static string[] ReadChoices(JsonElement root)
    {
        if (!TryGet(root, "choices", out var value)) return [];
        if (value.ValueKind != JsonValueKind.Array) throw new FormatException($"found 'choices' {Shown(value)}; expected a list of texts.");
        return [.. value.EnumerateArray().Select(c => c.ValueKind == JsonValueKind.String && !string.IsNullOrWhiteSpace(c.GetString()) ? c.GetString()!
            : throw new FormatException($"found {Shown(c)} among the 'choices'; expected texts that are not blank."))];
    }

    private static float[] ReadBox(JsonElement root)
    {
        if (!TryGet(root, "box", out var value)) return s_noBox;
        if (value.ValueKind == JsonValueKind.Array && value.GetArrayLength() == s_noBox.Length
            && value.EnumerateArray().All(e => e.ValueKind == JsonValueKind.Number && e.TryGetSingle(out var edge) && float.IsFinite(edge)))
        {
            float[] box = [.. value.EnumerateArray().Select(e => e.GetSingle())];
            if (box[0] < box[2] && box[1] < box[3] && box[0] >= 0 && box[1] >= 0) return box;
        }
        throw new FormatException($"found 'box' {Shown(value)}; expected [x0, y0, x1, y1] in pixels of the image, 0 <= x0 < x1 and 0 <= y0 < y1.");
    }

    private static string Required(JsonElement root, string name, string expected)
        => Text(root, name) is { Length: > 0 } text ? text : throw new FormatException($"found no '{name}'; expected {expected}.");

    private static string Text(JsonElement root, string name) => !TryGet(root, name, out var value) ? ""
        : value.ValueKind == JsonValueKind.String ? value.GetString()!
        : throw new FormatException($"found '{name}' {Shown(value)}; expected a text.");

    private static bool TryGet(JsonElement root, string name, out JsonElement value)
        => root.TryGetProperty(name, out value) && value.ValueKind != JsonValueKind.Null;

    private static string Shown(JsonElement value) => value.GetRawText() is { Length: > 60 } text ? text[..60] + "..." : value.GetRawText();
}
