using System.Text.Json;
using MambaVL.Prompts;

namespace MambaVL.Samples.Scenes;

/// <summary>One row of the data set: see docs/dataset-format.md.</summary>
/// <param name="Task">The task.</param>
/// <param name="Kind">What is asked, for reports: <c>count</c>, <c>color</c> and so on.</param>
/// <param name="Question">The question, phrase or description; empty for a caption.</param>
/// <param name="Target">The answer; empty for a box.</param>
internal sealed record SceneRow(VisionTask Task, string Kind, string Question, string Target)
{
    public IReadOnlyList<string> Choices { get; init; } = [];

    public PixelBox? Box { get; init; }

    public void Write(Utf8JsonWriter json, string image)
    {
        json.WriteStartObject();
        json.WriteString("image", image);
        json.WriteString("task", Task.ToString());
        json.WriteString("kind", Kind);
        if (Question.Length > 0) json.WriteString("question", Question);
        if (Choices.Count > 0)
        {
            json.WriteStartArray("choices");
            foreach (var choice in Choices) json.WriteStringValue(choice);
            json.WriteEndArray();
        }
        if (Target.Length > 0) json.WriteString("target", Target);
        if (Box is { } box)
        {
            json.WriteStartArray("box");
            foreach (var edge in (ReadOnlySpan<int>)[box.X0, box.Y0, box.X1, box.Y1]) json.WriteNumberValue(edge);
            json.WriteEndArray();
        }
        json.WriteEndObject();
    }
}
