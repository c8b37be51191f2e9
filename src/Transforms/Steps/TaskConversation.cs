using System.Text.Json;
using MambaVL.Prompts;

namespace MambaVL.Transforms;

/// <summary>A value of a row that its task cannot use.</summary>
/// <param name="role">The column that it stands in.</param>
/// <param name="message">What was found and what was expected.</param>
internal sealed class RowValueException(RowRole role, string message) : ArgumentException(message)
{
    public RowRole Role { get; } = role;
}

/// <summary>What a column is to a row's task.</summary>
internal enum RowRole
{
    Task,
    Question,
    Choices,
    Target,
    Box,
}

/// <summary>From the columns of a row to the conversation of its task: with the target to train, without it to ask.</summary>
internal static class TaskConversation
{
    // Annotators round: an edge as far beyond the picture as this many pixels is drawn in.
    private const double Tolerance = 1;

    /// <summary>A task by its name, ignoring case.</summary>
    /// <exception cref="RowValueException">There is no such task.</exception>
    public static VisionTask Parse(string name)
    {
        // Enum.TryParse takes numbers as well.
        if (Array.FindIndex(Enum.GetNames<VisionTask>(), n => n.Equals(name.Trim(), StringComparison.OrdinalIgnoreCase)) is >= 0 and var i)
            return Enum.GetValues<VisionTask>()[i];
        throw new RowValueException(RowRole.Task, $"found the task '{name}'; expected one of {string.Join(", ", Enum.GetNames<VisionTask>())}.");
    }

    /// <summary>Whether the box column is what the model is to say, and not what it is asked about.</summary>
    public static bool BoxIsTarget(VisionTask task) => task is VisionTask.Grounding or VisionTask.GroundedCaptioning;

    /// <param name="task">The task.</param>
    /// <param name="question">The question, phrase, description or own instruction; may be empty for captions.</param>
    /// <param name="choices">Of MultipleChoice; blank ones at the end are those that fill a vector up.</param>
    /// <param name="boxes">In shares of the picture: the region to describe, or the boxes to learn.</param>
    /// <param name="target">The text to learn; null asks.</param>
    /// <exception cref="RowValueException">A text or box that the task needs is not there.</exception>
    public static Conversation Of(VisionTask task, string question, IReadOnlyList<string> choices, IReadOnlyList<BoundingBox> boxes, string? target)
    {
        if (target is not null && task != VisionTask.Grounding && string.IsNullOrWhiteSpace(target))
            throw new RowValueException(RowRole.Target, $"found no target text; expected what the model is to say for {task}.");
        switch (task)
        {
            case VisionTask.Captioning:
                return Conversation.Caption(target, string.IsNullOrWhiteSpace(question) ? null : question);
            case VisionTask.QuestionAnswering:
                return Conversation.Ask(Required(question, "question"), target);
            case VisionTask.MultipleChoice:
                var options = Options(choices);
                return Conversation.Choose(Required(question, "question"), options, target is null ? null : Choice(target, options));
            case VisionTask.Grounding:
                return Conversation.Locate(Required(question, "phrase"), target is null ? null : One(boxes));
            case VisionTask.DenseCaptioning:
                return Conversation.Describe(One(boxes), target);
            case VisionTask.GroundedCaptioning:
                return target is null ? Conversation.CaptionWithBoxes() : Conversation.CaptionWithBoxes(target, boxes);
            case VisionTask.ImageTextMatch:
                return Conversation.Match(Required(question, "description"), target is null ? null : TrueOrFalse(target));
            case VisionTask.Chat:
                return Chat(question, target);
            default:
                throw new RowValueException(RowRole.Task, $"found the task {task}, whose choices are boxes; it has no form in columns. Use MultipleChoice with texts.");
        }
    }

    /// <summary>Boxes in pixels to shares of a picture.</summary>
    /// <exception cref="RowValueException">The numbers are no boxes, or one is not within the picture.</exception>
    public static IReadOnlyList<BoundingBox> Shares(ReadOnlySpan<float> edges, int width, int height)
    {
        if (edges.Length % BoxColumn.Length != 0)
            throw new RowValueException(RowRole.Box, $"found {edges.Length} numbers for boxes; expected four a box: x0, y0, x1, y1 in pixels.");
        var boxes = new BoundingBox[edges.Length / BoxColumn.Length];
        for (var i = 0; i < boxes.Length; i++)
        {
            var box = BoxColumn.Read(edges.Slice(i * BoxColumn.Length, BoxColumn.Length))
                ?? throw new RowValueException(RowRole.Box, "found a box with an edge that is not finite; expected x0, y0, x1, y1 in pixels.");
            if (box.X0 >= box.X1 || box.Y0 >= box.Y1)
                throw new RowValueException(RowRole.Box, $"found the box {Text(box)}, whose edges are out of order; expected x0 < x1 and y0 < y1 (the edges, not a width and a height).");
            if (box.X0 < -Tolerance || box.Y0 < -Tolerance || box.X1 > width + Tolerance || box.Y1 > height + Tolerance)
                throw new RowValueException(RowRole.Box, $"found the box {Text(box)} in a picture of {width} x {height}; expected one within it, in pixels.");
            boxes[i] = box.Within(width, height).ToShares(width, height);
        }
        return boxes;

        static string Text(BoundingBox b) => FormattableString.Invariant($"[{b.X0:0.##}, {b.Y0:0.##}, {b.X1:0.##}, {b.Y1:0.##}]");
    }

    private static string Required(string text, string what)
        => string.IsNullOrWhiteSpace(text) ? throw new RowValueException(RowRole.Question, $"found no {what}; expected some text.") : text;

    private static BoundingBox One(IReadOnlyList<BoundingBox> boxes)
        => boxes.Count == 1 ? boxes[0] : throw new RowValueException(RowRole.Box, $"found {boxes.Count} boxes; expected one: x0, y0, x1, y1 in pixels.");

    private static List<string> Options(IReadOnlyList<string> choices)
    {
        var options = choices.ToList();
        while (options.Count > 0 && string.IsNullOrWhiteSpace(options[^1])) options.RemoveAt(options.Count - 1);
        return options.Count > 0 ? options : throw new RowValueException(RowRole.Choices, "found no choices; expected 1 to 26 texts.");
    }

    // The text of a choice wins over a letter: choices may be letters themselves.
    private static int Choice(string target, List<string> options)
    {
        var index = options.FindIndex(o => string.Equals(AnswerText.Short(o), AnswerText.Short(target), StringComparison.OrdinalIgnoreCase));
        if (index >= 0) return index;
        return AnswerText.Choice(target, Math.Min(options.Count, 26))
            ?? throw new RowValueException(RowRole.Target, $"found the target '{target}', which is neither one of the {options.Count} choices nor the letter of one.");
    }

    private static bool TrueOrFalse(string target) => AnswerText.TrueOrFalse(target)
        ?? throw new RowValueException(RowRole.Target, $"found the target '{target}'; expected True or False.");

    // One question and its reply as two texts; more turns as a JSON array of texts, the user's first.
    private static Conversation Chat(string question, string? target)
    {
        if (!string.IsNullOrWhiteSpace(question))
            return Conversation.Chat(target is null ? [new(question)] : [new(question), new(target, FromModel: true)], complete: target is not null);
        var texts = Texts(target ?? throw new RowValueException(RowRole.Question, "found no question; expected the user's message."));
        return Conversation.Chat(texts.Select((text, i) => new ChatMessage(text, FromModel: i % 2 == 1)), complete: true);
    }

    private static string[] Texts(string target)
    {
        try
        {
            if (JsonSerializer.Deserialize<string[]>(target) is { Length: > 0 } texts && texts.Length % 2 == 0 && !texts.Any(string.IsNullOrWhiteSpace)) return texts;
        }
        catch (JsonException)
        {
        }
        throw new RowValueException(RowRole.Target, "found a chat without a question whose target is no list of turns; expected a JSON array of an even number of texts, the user's first.");
    }
}
