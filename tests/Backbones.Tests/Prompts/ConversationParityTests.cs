using System.Text.Json;
using MambaVL.Prompts;

namespace MambaVL.Tests.Prompts;

[Trait("Category", "Parity")]
public class ConversationParityTests
{
    [SkippableFact]
    public void TrainingPromptsIdsAndLabelsAreThoseOfTheAuthors() => Run("train", (conversation, expected, tokenizer) =>
    {
        conversation.ToString().Should().Be(expected.GetProperty("text").GetString());
        Ids(conversation, tokenizer).Should().BeEquivalentTo(Nested(expected, "input_ids"), o => o.WithStrictOrdering());
        var labels = conversation.Turns.SelectMany(t => Encode(t, tokenizer).Select(id => t.IsAnswer ? id : SequenceBuilder.Ignore));
        labels.Should().Equal(Nested(expected, "labels").SelectMany(l => l));
    });

    [SkippableFact]
    public void PromptsToAnswerAreThoseOfTheAuthors() => Run("test", (conversation, expected, tokenizer) =>
    {
        // The split lacks the line breaks around a phrase to locate, which the authors' evaluation and training have.
        if (conversation.Task == VisionTask.Grounding)
        {
            conversation.ToString().Replace("\n", "").Should().Be(expected.GetProperty("text").GetString());
            return;
        }
        conversation.ToString().Should().Be(expected.GetProperty("text").GetString());
        Ids(conversation, tokenizer).Should().BeEquivalentTo(Nested(expected, "input_ids"), o => o.WithStrictOrdering());
    });

    private static void Run(string split, Action<Conversation, JsonElement, Tokenizer> check)
    {
        var tokenizer = Tokenizer.Load(Fixtures.Path("tokenizer", "tokenizer.json"));
        using var file = JsonDocument.Parse(File.ReadAllBytes(Fixtures.Path("prompts", "cases.json")));
        var inputs = file.RootElement.GetProperty("inputs");
        var cases = file.RootElement.GetProperty("cases").EnumerateArray().Where(c => c.GetProperty("split").GetString() == split).ToList();
        cases.Should().NotBeEmpty();
        foreach (var c in cases)
            check(Make(inputs.GetProperty(c.GetProperty("task").GetString()!), train: split == "train"), c, tokenizer);
    }

    /// <summary>The conversation of an example in the authors' form. Outside training their processor leaves out the
    /// answers of five tasks and the chat's end token, and keeps the answers of the others.</summary>
    private static Conversation Make(JsonElement example, bool train)
    {
        using var metadata = JsonDocument.Parse(example.GetProperty("metadata").GetString()!);
        var more = metadata.RootElement;
        var source = example.GetProperty("source").GetString();
        var caption = example.GetProperty("caption").GetString();
        string? Text(JsonElement e, string name) => e.GetProperty(name).GetString();
        IEnumerable<JsonElement> List(string name) => example.GetProperty(name).EnumerateArray();
        List<BoundingBox> boxes = example.GetProperty("region").ValueKind == JsonValueKind.Array ? List("region").Select(r => Box(r.GetProperty("bbox"))).ToList() : [];

        switch (Text(example, "task"))
        {
            case "Task.captioning":
                return Conversation.Caption(caption, more.TryGetProperty("prompt", out var prompt) ? prompt.GetString() : null);
            case "Task.grounded_captioning":
                return Conversation.CaptionWithBoxes(caption, boxes);
            case "Task.vqa":
                return Conversation.Ask(List("qa_pairs").Select(q => new QuestionAnswer(Text(q, "question")!, Text(q, "answer"))),
                    keepCase: source is "docvqa" or "infographics_vqa");
            case "Task.m_vqa":
                return Conversation.Choose(
                    List("qa_pairs").Zip(more.GetProperty("answers").EnumerateArray(), (q, answers) =>
                    {
                        var options = answers.EnumerateArray().Select(a => a.GetString()!).ToList();
                        return new ChoiceQuestion<string>(Text(q, "question")!, options, train ? options.IndexOf(Text(q, "answer")!) : null);
                    }),
                    keepCase: source == "ai2d", more.TryGetProperty("ocr_text", out var ocr) ? ocr.GetString() : null);
            case "Task.gm_vqa":
                var names = List("region").Select(r => Text(r, "phrase")).ToList();
                return Conversation.ChooseBox(List("qa_pairs").Zip(more.GetProperty("answers").EnumerateArray(), (q, answers) =>
                {
                    var options = answers.EnumerateArray().Select(a => a.GetString()).ToList();
                    return new ChoiceQuestion<BoundingBox>(Text(q, "question")!, [.. options.Select(o => boxes[names.IndexOf(o)])],
                        train ? options.IndexOf(Text(q, "answer")) : null);
                }));
            case "Task.visual_grounding":
                return Conversation.Locate(List("region").Select((r, i) => new Region(train ? boxes[i] : null, Text(r, "phrase"))));
            case "Task.dense_captioning":
                return Conversation.Describe(List("region").Select((r, i) => new Region(boxes[i], train ? Text(r, "phrase") : null)));
            case "Task.itm":
                return Conversation.Match(caption!, train ? more.GetProperty("label").GetBoolean() : null);
            case "Task.chat":
                return Conversation.Chat(List("chat").Select(m => new ChatMessage(Text(m, "text")!, Text(m, "role") == "gpt")), complete: train);
            case var other:
                throw new InvalidDataException($"An unknown task: {other}.");
        }
    }

    private static BoundingBox Box(JsonElement box) => new(box[0].GetDouble(), box[1].GetDouble(), box[2].GetDouble(), box[3].GetDouble());

    private static List<List<long>> Ids(Conversation conversation, Tokenizer tokenizer)
        => conversation.Turns.Select(t => Encode(t, tokenizer)).ToList();

    private static List<long> Encode(Turn turn, Tokenizer tokenizer)
        => [.. tokenizer.Encode(turn.Text + (turn.EndsText ? "<|endoftext|>" : "")).Select(i => (long)i)];

    private static List<List<long>> Nested(JsonElement expected, string name)
        => expected.GetProperty(name).EnumerateArray().Select(turn => turn.EnumerateArray().Select(i => i.GetInt64()).ToList()).ToList();
}
