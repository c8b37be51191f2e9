using System.Globalization;
using System.Runtime.CompilerServices;

namespace MambaVL.Prompts;

/// <summary>One turn of a conversation; it is tokenised by itself.</summary>
/// <param name="Text">The text, line breaks included.</param>
/// <param name="IsAnswer">Whether it is what the model is to say: only answers are learnt.</param>
/// <param name="EndsText">Whether the end token follows.</param>
public readonly record struct Turn(string Text, bool IsAnswer = false, bool EndsText = false);

/// <summary>A question, and its answer in training.</summary>
/// <param name="Question">The question as a person writes it.</param>
/// <param name="Answer">The answer, or null (or empty) where the model is to give it.</param>
public readonly record struct QuestionAnswer(string Question, string? Answer = null);

/// <summary>A question with answers to choose from, and the right one in training.</summary>
/// <typeparam name="TOption">A text or a box.</typeparam>
/// <param name="Question">The question as a person writes it.</param>
/// <param name="Options">1 to 26 answers; the first is called A.</param>
/// <param name="Answer">The index of the right one, or null where the model is to choose.</param>
public readonly record struct ChoiceQuestion<TOption>(string Question, IReadOnlyList<TOption> Options, int? Answer = null);

/// <summary>A region of an image and the phrase that describes it. The one of the two that is asked for is null.</summary>
/// <param name="Box">In shares of the image's width and height.</param>
/// <param name="Phrase">A referring expression, or a short description.</param>
public readonly record struct Region(BoundingBox? Box, string? Phrase);

/// <summary>A message of a chat.</summary>
/// <param name="Text">What was said.</param>
/// <param name="FromModel">Whether the model said it.</param>
public readonly record struct ChatMessage(string Text, bool FromModel = false);

/// <summary>What is said to a model about an image, and, in training, what it is to answer: turn by turn.</summary>
/// <remarks>
/// The prompts are those that the models were trained on (gpantaz/vl_mamba, utils/conversation_processor.py), letter by
/// letter; docs/prompts.md lists them. Leave out the answers to ask a model.
/// </remarks>
public sealed class Conversation
{
    private const string ChooseLetter = "Answer with the option's letter from the given choices directly.";
    private const string AnswerBriefly = "Answer the question using a single word or phrase.";
    private const string Letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

    private Conversation(VisionTask task, IEnumerable<Turn> turns) => (Task, Turns) = (task, [.. turns]);

    /// <summary>The task.</summary>
    public VisionTask Task { get; }

    /// <summary>The turns. The first holds the instruction: with the instruction first, it stands before the image.</summary>
    public IReadOnlyList<Turn> Turns { get; }

    /// <summary>Asks for a caption.</summary>
    /// <param name="caption">The caption to learn, or null.</param>
    /// <param name="instruction">Another instruction than the usual one; a line <c>&lt;image&gt;</c> is removed.</param>
    public static Conversation Caption(string? caption = null, string? instruction = null)
    {
        if (instruction is not null) ArgumentException.ThrowIfNullOrWhiteSpace(instruction);
        var prompt = WithoutImageMark(instruction ?? "Provide a one-sentence caption for the provided image.");
        return new(VisionTask.Captioning, [new(prompt + "\n"), .. Answer(caption)]);
    }

    /// <summary>Asks a question.</summary>
    /// <param name="question">The question as a person writes it.</param>
    /// <param name="answer">The answer to learn, or null.</param>
    /// <param name="keepCase">Whether letters keep their case: so for DocVQA and InfographicVQA.</param>
    /// <param name="ocrText">What is written in the image, see <see cref="OcrText"/>, or null.</param>
    public static Conversation Ask(string question, string? answer = null, bool keepCase = false, string? ocrText = null)
        => Ask([new QuestionAnswer(question, answer)], keepCase, ocrText);

    /// <summary>Asks several questions about one image; the answers of all but the last are given as a rule.</summary>
    /// <inheritdoc cref="Ask(string, string?, bool, string?)" path="/param"/>
    public static Conversation Ask(IEnumerable<QuestionAnswer> questions, bool keepCase = false, string? ocrText = null)
        => new(VisionTask.QuestionAnswering, NotEmpty(questions).SelectMany<QuestionAnswer, Turn>(q =>
        [
            new($"\nQuestion: {Sentence(q.Question, keepCase)}\nAnswer: "),
            .. Answer(q.Answer, keepCase),
        ]).Prepend(new(WithOcr(AnswerBriefly, ocrText))));

    /// <summary>Asks whether something is so, as the reference evaluates POPE: the question without the words
    /// <c>Question:</c> and <c>Answer:</c>.</summary>
    public static Conversation AskYesOrNo(string question)
        => new(VisionTask.QuestionAnswering, [new(AnswerBriefly), new($"\n{Sentence(question)}\n")]);

    /// <summary>Asks a question with answers to choose from.</summary>
    /// <param name="question">The question as a person writes it.</param>
    /// <param name="options">1 to 26 answers.</param>
    /// <param name="answer">The index of the right one, or null.</param>
    /// <param name="keepCase">Whether the question's letters keep their case: so for AI2D, whose questions quote labels.</param>
    /// <param name="ocrText">What is written in the image, see <see cref="OcrText"/>, or null.</param>
    public static Conversation Choose(
        string question, IReadOnlyList<string> options, int? answer = null, bool keepCase = false, string? ocrText = null)
        => Choose([new ChoiceQuestion<string>(question, options, answer)], keepCase, ocrText);

    /// <summary>Asks several questions with answers to choose from.</summary>
    /// <inheritdoc cref="Choose(string, IReadOnlyList{string}, int?, bool, string?)" path="/param"/>
    public static Conversation Choose(IEnumerable<ChoiceQuestion<string>> questions, bool keepCase = false, string? ocrText = null)
        => new(VisionTask.MultipleChoice,
            Choices(questions, option => TextFormat.Phrase(option), keepCase).Prepend(new(WithOcr(ChooseLetter, ocrText))));

    /// <summary>Asks a question with boxes to choose from.</summary>
    /// <param name="question">The question as a person writes it.</param>
    /// <param name="boxes">1 to 26 boxes, in shares of the image's width and height.</param>
    /// <param name="answer">The index of the right one, or null.</param>
    public static Conversation ChooseBox(string question, IReadOnlyList<BoundingBox> boxes, int? answer = null)
        => ChooseBox([new ChoiceQuestion<BoundingBox>(question, boxes, answer)]);

    /// <summary>Asks several questions with boxes to choose from.</summary>
    public static Conversation ChooseBox(IEnumerable<ChoiceQuestion<BoundingBox>> questions)
        => new(VisionTask.GroundedMultipleChoice,
            Choices(questions, box => box.ToText(), keepCase: false).Prepend(new(ChooseLetter + "\n")));

    /// <summary>Asks where something is.</summary>
    /// <param name="phrase">What to look for, as a person writes it.</param>
    /// <param name="box">The box to learn, in shares of the image's width and height, or null.</param>
    public static Conversation Locate(string phrase, BoundingBox? box = null) => Locate([new Region(box, phrase)]);

    /// <summary>Asks where several things are, one after the other.</summary>
    public static Conversation Locate(IEnumerable<Region> regions)
        => new(VisionTask.Grounding, NotEmpty(regions).SelectMany<Region, Turn>(r =>
        [
            new($"\n{Sentence(r.Phrase)}\n"),
            .. r.Box is { } box ? new Turn[] { new(box.ToText(), IsAnswer: true, EndsText: true) } : [],
        ]).Prepend(new("Locate the region that is described by:")));

    /// <summary>Asks what is in a box.</summary>
    /// <param name="box">In shares of the image's width and height.</param>
    /// <param name="description">The description to learn, or null.</param>
    [OverloadResolutionPriority(1)] // Describe(new(0, 0, 0.5, 0.5)) means a box
    public static Conversation Describe(BoundingBox box, string? description = null) => Describe([new Region(box, description)]);

    /// <summary>Asks what is in several boxes, one after the other. The end token follows the last description only.</summary>
    public static Conversation Describe(IEnumerable<Region> regions)
    {
        var turns = NotEmpty(regions).SelectMany<Region, Turn>(r =>
        [
            new((r.Box ?? throw new ArgumentException("A region has no box to describe.", nameof(regions))).ToText() + "\n"),
            .. string.IsNullOrEmpty(r.Phrase) ? [] : new Turn[] { new(Sentence(r.Phrase) + "\n", IsAnswer: true) },
        ]).Prepend(new("Provide a short description of the region:\n")).ToList();
        if (turns[^1].IsAnswer) turns[^1] = turns[^1] with { EndsText = true };
        return new(VisionTask.DenseCaptioning, turns);
    }

    /// <summary>Asks for a caption that gives a box after each thing that it names.</summary>
    public static Conversation CaptionWithBoxes() => CaptionWithBoxes(null, []);

    /// <summary>A caption that gives a box after each thing that it names, to learn.</summary>
    /// <param name="caption">The caption; <c>&lt;coords_0&gt;</c> stands for the first box, and so on.</param>
    /// <param name="boxes">In shares of the image's width and height.</param>
    public static Conversation CaptionWithBoxes(string? caption, IReadOnlyList<BoundingBox> boxes)
    {
        ArgumentNullException.ThrowIfNull(boxes);
        var answer = Answer(caption).Select(turn =>
        {
            var text = turn.Text;
            for (var i = 0; i < boxes.Count; i++)
                text = text.Replace(string.Create(CultureInfo.InvariantCulture, $"<coords_{i}>"), boxes[i].ToText(fullStop: false), StringComparison.Ordinal);
            return turn with { Text = text };
        });
        return new(VisionTask.GroundedCaptioning,
            answer.Prepend(new("Provide a one-sentence caption for the image and mention each entity.\n")));
    }

    /// <summary>Asks whether a description fits the image.</summary>
    /// <param name="caption">The description.</param>
    /// <param name="matches">The answer to learn, or null.</param>
    public static Conversation Match(string caption, bool? matches = null)
        => new(VisionTask.ImageTextMatch,
        [
            new("Determine if the image matches the description:\n"),
            new(Sentence(caption) + "\n"),
            .. Answer(matches switch { true => "True", false => "False", null => null }),
        ]);

    /// <summary>A chat; the user speaks first.</summary>
    /// <remarks>Every message ends with a line break. As in the reference, a line <c>&lt;image&gt;</c> in the first one is
    /// removed after the full stop was set: <c>What is this?\n&lt;image&gt;</c> becomes <c>What is this?.</c></remarks>
    /// <param name="messages">What was said.</param>
    /// <param name="complete">Whether the end token follows the last message: so in training, not where the model is to
    /// go on.</param>
    public static Conversation Chat(IEnumerable<ChatMessage> messages, bool complete = false)
    {
        var turns = NotEmpty(messages).Select((message, i) =>
        {
            var text = Sentence(message.Text);
            return new Turn((i == 0 ? WithoutImageMark(text) : text) + "\n", message.FromModel);
        }).ToList();
        if (complete) turns[^1] = turns[^1] with { EndsText = true };
        return new(VisionTask.Chat, turns);
    }

    /// <summary>All turns as one text, with <c>&lt;|endoftext|&gt;</c> where a text ends.</summary>
    public override string ToString() => string.Concat(Turns.Select(t => t.Text + (t.EndsText ? Tokenizer.DefaultEndOfText : "")));

    private static IEnumerable<Turn> Choices<TOption>(
        IEnumerable<ChoiceQuestion<TOption>> questions, Func<TOption, string> format, bool keepCase)
    {
        foreach (var question in NotEmpty(questions))
        {
            var options = question.Options;
            if (options is not { Count: >= 1 } || options.Count > Letters.Length)
                throw new ArgumentException($"A question has {options?.Count ?? 0} options; expected 1 to {Letters.Length}.", nameof(questions));
            if (question.Answer is { } answer && (uint)answer >= (uint)options.Count)
                throw new ArgumentException($"The answer's index is {answer}; there are {options.Count} options, the first is 0.", nameof(questions));

            yield return new($"\nQuestion: {Sentence(question.Question, keepCase)}\n");
            for (var i = 0; i < options.Count; i++)
                yield return new($"{Letters[i]}: {format(options[i])}\n{(i == options.Count - 1 ? "Answer: " : "")}");
            if (question.Answer is { } right) yield return new($"{Letters[right]}.", IsAnswer: true, EndsText: true);
        }
    }

    private static IEnumerable<Turn> Answer(string? answer, bool keepCase = false)
        => string.IsNullOrEmpty(answer) ? [] : [new(TextFormat.Sentence(answer, keepCase), IsAnswer: true, EndsText: true)];

    private static string Sentence(string? text, bool keepCase = false)
        => string.IsNullOrWhiteSpace(text)
            ? throw new ArgumentException("A question, phrase, description or message is empty.", nameof(text))
            : TextFormat.Sentence(text, keepCase);

    private static string WithOcr(string prompt, string? ocrText) => string.IsNullOrEmpty(ocrText) ? prompt : $"{prompt}\n{ocrText}";

    private static string WithoutImageMark(string text)
        => text.Replace("\n<image>", "", StringComparison.Ordinal).Replace("<image>\n", "", StringComparison.Ordinal);

    private static List<T> NotEmpty<T>(IEnumerable<T> items)
    {
        ArgumentNullException.ThrowIfNull(items);
        var list = items.ToList();
        return list.Count > 0 ? list : throw new ArgumentException("The conversation is empty; expected at least one entry.", nameof(items));
    }
}
