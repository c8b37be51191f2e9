using MambaVL.Prompts;

namespace MambaVL.Tests.Prompts;

// The prompts themselves are compared with the authors' in ConversationParityTests; here is what those do not cover,
// and one example of each task for a clone that has no fixtures.
public class ConversationTests
{
    private static readonly BoundingBox Box = new(0.1, 0.25, 0.499, 0.755);

    public static TheoryData<VisionTask, Conversation, string> Prompts => new()
    {
        { VisionTask.Captioning, Conversation.Caption(), "Provide a one-sentence caption for the provided image.\n" },
        { VisionTask.Captioning, Conversation.Caption("a dog", "Describe it.\n<image>"), "Describe it.\n|*A dog.<end>" },
        { VisionTask.QuestionAnswering, Conversation.Ask("is it red"), "Answer the question using a single word or phrase.|\nQuestion: Is it red.\nAnswer: " },
        { VisionTask.QuestionAnswering, Conversation.Ask("Which BRAND?", "ACME", keepCase: true), "Answer the question using a single word or phrase.|\nQuestion: Which BRAND?\nAnswer: |*ACME.<end>" },
        { VisionTask.QuestionAnswering, Conversation.Ask([new("a", "b"), new("c")]), "Answer the question using a single word or phrase.|\nQuestion: A.\nAnswer: |*B.<end>|\nQuestion: C.\nAnswer: " },
        { VisionTask.QuestionAnswering, Conversation.Ask("what brand", ocrText: OcrText.FromWords(["Coca", "Cola"])), "Answer the question using a single word or phrase.\nOCR text:\nCoca Cola|\nQuestion: What brand.\nAnswer: " },
        { VisionTask.QuestionAnswering, Conversation.AskYesOrNo("Is there a dog?"), "Answer the question using a single word or phrase.|\nIs there a dog?\n" },
        { VisionTask.MultipleChoice, Conversation.Choose("which", ["cat", "Big Dog"]), "Answer with the option's letter from the given choices directly.|\nQuestion: Which.\n|A: Cat\n|B: Big dog\nAnswer: " },
        { VisionTask.MultipleChoice, Conversation.Choose("What is A?", ["leaf"], 0, keepCase: true, OcrText.FromLabels([("B", "x"), ("A", "y")])), "Answer with the option's letter from the given choices directly.\nOCR text:\nA: y\nB: x|\nQuestion: What is A?\n|A: Leaf\nAnswer: |*A.<end>" },
        { VisionTask.GroundedMultipleChoice, Conversation.ChooseBox("where", [Box], 0), "Answer with the option's letter from the given choices directly.\n|\nQuestion: Where.\n|A: [0.10,0.25,0.50,0.76].\nAnswer: |*A.<end>" },
        { VisionTask.Grounding, Conversation.Locate("the cat"), "Locate the region that is described by:|\nThe cat.\n" },
        { VisionTask.Grounding, Conversation.Locate("the cat", Box), "Locate the region that is described by:|\nThe cat.\n|*[0.10,0.25,0.50,0.76].<end>" },
        { VisionTask.DenseCaptioning, Conversation.Describe(new(0.1, 0.25, 0.499, 0.755)), "Provide a short description of the region:\n|[0.10,0.25,0.50,0.76].\n" },
        { VisionTask.DenseCaptioning, Conversation.Describe([new(Box, "a"), new(Box, "b")]), "Provide a short description of the region:\n|[0.10,0.25,0.50,0.76].\n|*A.\n|[0.10,0.25,0.50,0.76].\n|*B.\n<end>" },
        { VisionTask.GroundedCaptioning, Conversation.CaptionWithBoxes(), "Provide a one-sentence caption for the image and mention each entity.\n" },
        { VisionTask.GroundedCaptioning, Conversation.CaptionWithBoxes("a cat<coords_0>, a dog<coords_1>", [Box]), "Provide a one-sentence caption for the image and mention each entity.\n|*A cat[0.10,0.25,0.50,0.76], a dog<coords_1>.<end>" },
        { VisionTask.ImageTextMatch, Conversation.Match("two cats"), "Determine if the image matches the description:\n|Two cats.\n" },
        { VisionTask.ImageTextMatch, Conversation.Match("two cats", false), "Determine if the image matches the description:\n|Two cats.\n|*False.<end>" },
        { VisionTask.Chat, Conversation.Chat([new("hi"), new("hello", FromModel: true), new("who?")]), "Hi.\n|*Hello.\n|Who?\n" },
        { VisionTask.Chat, Conversation.Chat([new("What?\n<image>"), new("a cat", FromModel: true)], complete: true), "What?.\n|*A cat.\n<end>" },
    };

    [Theory]
    [MemberData(nameof(Prompts))]
    public void EachTaskHasItsTurns(VisionTask task, Conversation conversation, string turns)
    {
        conversation.Task.Should().Be(task);
        string.Join('|', conversation.Turns.Select(t => (t.IsAnswer ? "*" : "") + t.Text + (t.EndsText ? "<end>" : ""))).Should().Be(turns);
    }

    [Fact]
    public void EveryTaskHasAPrompt()
        => Prompts.Select(row => (VisionTask)((object[])row)[0]).Distinct().Should().BeEquivalentTo(Enum.GetValues<VisionTask>());

    [Fact]
    public void TextReadInAnImageMayBeAbsent()
    {
        OcrText.FromLabels([]).Should().BeEmpty();
        OcrText.FromWords([]).Should().Be("OCR text:\n");
        Conversation.Ask("a", ocrText: "").Turns[0].Text.Should().EndWith("phrase.");
    }

    [Fact]
    public void WhatCannotBeAskedIsRefused()
    {
        Refused(() => Conversation.Ask(" "), "empty");
        Refused(() => Conversation.Ask([]), "at least one");
        Refused(() => Conversation.Locate(""), "empty");
        Refused(() => Conversation.Match("\n"), "empty");
        Refused(() => Conversation.Caption(instruction: " "), "instruction");
        Refused(() => Conversation.Choose("a", []), "0 options*1 to 26");
        Refused(() => Conversation.Choose("a", [.. Enumerable.Repeat("b", 27)]), "27 options");
        Refused(() => Conversation.Choose("a", ["b"], 1), "index is 1*1 options");
        Refused(() => Conversation.ChooseBox("a", [Box], -1), "index is -1");
        Refused(() => Conversation.Describe([new Region(null, "a")]), "no box");
        Refused(() => Conversation.Chat([]), "at least one");
        ((Action)(() => Conversation.Ask((string)null!))).Should().Throw<ArgumentException>();
        ((Action)(() => Conversation.Chat(null!))).Should().Throw<ArgumentNullException>();
    }

    private static void Refused(Action act, string message) => act.Should().Throw<ArgumentException>().WithMessage($"*{message}*");
}
