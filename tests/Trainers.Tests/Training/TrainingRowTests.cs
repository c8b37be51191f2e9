using MambaVL.Prompts;
using MambaVL.Tests.Models;
using MambaVL.Training;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Tests.Training;

/// <summary>How rows become what a model reads, and what is said of those that cannot.</summary>
public sealed class TrainingRowTests : IDisposable
{
    private readonly MLContext _ml = new(1);
    private readonly Squares _squares = new(3);
    private readonly VisionLanguageModel _model = Squares.Model(TinyVisionLanguage.Mamba);

    public void Dispose()
    {
        _model.Dispose();
        _squares.Dispose();
    }

    [Fact]
    public void EachTaskIsTheConversationThatIsTaught()
    {
        Text(r => (r.Task, r.Question, r.Target) = ("captioning", "", "a red square")).Should().Be(Conversation.Caption("a red square").ToString());
        Text(r => (r.Task, r.Question, r.Target) = ("Captioning", "What is this?", "a red square")).Should().Be(Conversation.Caption("a red square", "What is this?").ToString());
        Text(r => (r.Task, r.Question, r.Target) = (" questionanswering ", "what colour", "red")).Should().Be(Conversation.Ask("what colour", "red").ToString());
        Text(r => (r.Task, r.Choices, r.Target) = ("MultipleChoice", ["red", "blue", ""], "Blue.")).Should().Be(Conversation.Choose("what is its colour", ["red", "blue"], 1).ToString());
        Text(r => (r.Task, r.Choices, r.Target) = ("MultipleChoice", ["red", "blue"], "a")).Should().Be(Conversation.Choose("what is its colour", ["red", "blue"], 0).ToString());
        Text(r => (r.Task, r.Question, r.Target, r.Box) = ("Grounding", "it", "", [8, 0, 16, 32.5f])).Should().Be(Conversation.Locate("it", new BoundingBox(0.25, 0, 0.5, 1)).ToString());
        Text(r => (r.Task, r.Target, r.Box) = ("DenseCaptioning", "a square", [8, 0, 16, 24])).Should().Be(Conversation.Describe(new BoundingBox(0.25, 0, 0.5, 0.75), "a square").ToString());
        Text(r => (r.Task, r.Target, r.Box) = ("GroundedCaptioning", "a square <coords_0>", [8, 0, 16, 24])).Should().Be(Conversation.CaptionWithBoxes("a square <coords_0>", [new(0.25, 0, 0.5, 0.75)]).ToString());
        Text(r => (r.Task, r.Question, r.Target) = ("ImageTextMatch", "a dog", "false")).Should().Be(Conversation.Match("a dog", false).ToString());
        Text(r => (r.Task, r.Question, r.Target) = ("Chat", "hello", "hi")).Should().Be(Conversation.Chat([new("hello"), new("hi", true)], complete: true).ToString());
        Text(r => (r.Task, r.Question, r.Target) = ("Chat", "", """["hello", "hi", "why", "so"]""")).Should()
            .Be(Conversation.Chat([new("hello"), new("hi", true), new("why"), new("so", true)], complete: true).ToString());
    }

    [Fact]
    public void ABadRowIsNamedWithItsColumnAndLeftOutWhereThatIsAskedFor()
    {
        Bad(r => r.Image = "no/such/file.png", "Image", "*no/such/file.png*");
        Bad(r => r.Image = "", "Image", "*empty path*");
        File.WriteAllText(Path.Combine(_squares.Folder, "text.png"), "hello");
        Bad(r => r.Image = Path.Combine(_squares.Folder, "text.png"), "Image", "*no image format*");
        Bad(r => r.Task = "Painting", "Task", "*'Painting'*Captioning, QuestionAnswering*");
        Bad(r => r.Task = "3", "Task", "*'3'*");
        Bad(r => r.Task = "GroundedMultipleChoice", "Task", "*no form in columns*");
        Bad(r => r.Target = " ", "Target", "*no target text*");
        Bad(r => r.Question = "", "Question", "*no question*");
        Bad(r => r.Task = "MultipleChoice", "Choices", "*no choices*");
        Bad(r => (r.Task, r.Choices) = ("MultipleChoice", ["a cat", "a dog"]), "Target", "*neither one of the 2 choices nor the letter*");
        Bad(r => r.Task = "ImageTextMatch", "Target", "*True or False*");
        Bad(r => r.Task = "Grounding", "Box", "*not finite*");
        Bad(r => (r.Task, r.Box) = ("Grounding", [9, 4, 3, 8]), "Box", "*the box [9, 4, 3, 8], whose edges are out of order*");
        Bad(r => (r.Task, r.Box) = ("Grounding", [9, 4, 40, 8]), "Box", "*picture of 32 x 32*");
        Bad(r => (r.Task, r.Box) = ("DenseCaptioning", []), "Box", "*0 boxes*");
        Bad(r => (r.Task, r.Question, r.Target) = ("Chat", "", """["hello"]"""), "Target", "*JSON array*");

        void Bad(Action<SquareRow> change, string column, string message)
        {
            var row = new SquareRow { Image = _squares.Rows[1].Image, Target = "Red" };
            change(row);
            var data = _ml.Data.LoadFromEnumerable([_squares.Rows[0], row, _squares.Rows[2]]);
            var error = Act(() => Read(Options, data)).Should().Throw<TrainingRowException>().WithMessage(message).Which;
            (error.Column, error.Row).Should().Be((column, 1L));
            var kept = Read(Options with { OnBadRow = RowTreatment.Skip }, data);
            kept.Rows.Select(r => r.Position).Should().Equal(0, 2);
            kept.BadRows.Should().Be(1);
        }
    }

    [Fact]
    public void ARowThatIsTooLongIsLeftOutOrAnError()
    {
        _squares.Rows[1].Question = string.Join(" ", Enumerable.Repeat("very long", 100));
        var logged = new List<string>();
        _ml.Log += (_, e) => logged.Add(e.Message);
        var data = Read(Options with { MaxLength = 200 }, _squares.Data(_ml));
        data.Rows.Select(r => r.Position).Should().Equal(0, 2);
        (data.LongRows, data.BadRows).Should().Be((1, 0));
        logged.Should().Contain(m => m.Contains("Of 3 test rows 0 cannot be used and 1 are longer than 200 ids"));
        Act(() => Read(Options with { MaxLength = 200, OnLongRow = RowTreatment.Fail }, _squares.Data(_ml))).Should().Throw<TrainingRowException>().WithMessage("*row 1*at most 200*MaxLength*");
        Act(() => Read(Options with { MaxLength = 20 }, _squares.Data(_ml))).Should().Throw<InvalidDataException>().WithMessage("*No test row is left*3 are longer than 20*");
    }

    [Fact]
    public void ColumnsAreCheckedBeforeAnythingIsRead()
    {
        Fails(new { Picture = "a.png", Task = "Captioning", Target = "x" }, Options, "*'Image'*");
        Fails(new { Image = 3f, Task = "Captioning", Target = "x" }, Options, "*'Image'*path*Single*");
        Fails(new { Image = "a.png", Target = "x" }, Options, "*'Task'*");
        Fails(new { Image = "a.png", Task = "Grounding", Box = 1f }, Options, "*'Box'*vector of Single*");
        Fails(new { Image = "a.png", Question = "x" }, Options with { Task = VisionTask.Captioning }, "*'Target'*");
        Fails(new { Bild = "a.png", Frage = "x" }, Options with { Task = VisionTask.Captioning, Columns = new() { Image = "Bild", Target = "Antwort" } }, "*'Antwort'*");

        void Fails<T>(T row, TrainingOptions options, string message) where T : class
            => Act(() => _ml.VisionLanguage().Trainers.InstructionTune((InstructionTuneOptions)options).Fit(_ml.Data.LoadFromEnumerable([row])))
                .Should().Throw<ArgumentOutOfRangeException>().WithMessage(message);
    }

    [Fact]
    public void BytesAndImagesGiveTheRowsThatPathsGive()
    {
        var paths = Read(Options, _squares.Data(_ml));
        var bytes = Read(Options, _ml.Data.LoadFromEnumerable(_squares.Rows.Select(r => new Bytes { Image = File.ReadAllBytes(r.Image), Target = r.Target })));
        bytes.Fingerprint.Should().Be(paths.Fingerprint);
        var loaded = _ml.Transforms.LoadImages("Image", "", "Image").Fit(_squares.Data(_ml)).Transform(_squares.Data(_ml));
        Read(Options, loaded).Fingerprint.Should().Be(paths.Fingerprint);
        _squares.Rows[2].Target = "Grey";
        Read(Options, _squares.Data(_ml)).Fingerprint.Should().NotBe(paths.Fingerprint);
    }

    [Fact]
    public void OptionsThatCannotBeAreRefusedByTheirNames()
    {
        Refused(Options with { Epochs = 0 }, "Epochs");
        Refused(Options with { BatchSize = 0 }, "BatchSize");
        Refused(Options with { LearningRate = double.NaN }, "LearningRate");
        Refused(Options with { WarmupShare = 1.5 }, "WarmupShare");
        Refused(Options with { Beta2 = 1 }, "Beta2");
        Refused(Options with { ImageSize = 12 }, "ImageSize");
        Refused(Options with { CheckpointInterval = TimeSpan.Zero }, "CheckpointInterval");
        Refused(Options with { Patience = 0 }, "Patience");
        Refused(Options with { VisionShare = 0 }, "VisionShare");

        void Refused(InstructionTuneOptions options, string name)
            => Act(() => _ml.VisionLanguage().Trainers.InstructionTune(options)).Should().Throw<ArgumentOutOfRangeException>().WithMessage($"*TrainingOptions.{name} is *expected*");
    }

    private InstructionTuneOptions Options => Squares.Options(_model);

    private TrainingData Read(TrainingOptions options, IDataView data)
        => new TrainingReader(options, TrainingModel.ConfigOf(options), new StepHost(MlNet.Environment(_ml.Transforms), "Test"), default).Read(data, false, "test");

    // What the row is after the image; the answer between bars.
    private string Text(Action<SquareRow> change)
    {
        var row = new SquareRow { Image = _squares.Rows[0].Image };
        change(row);
        var read = Read(Options, _ml.Data.LoadFromEnumerable([row])).Rows[0];
        read.ImageAt.Should().Be(0);
        read.IsAnswer.Should().Contain(true).And.Contain(false);
        read.IsAnswer[^1].Should().BeTrue("the end token is learnt");
        return _model.Tokenizer.Decode(read.Ids);
    }

    private sealed class Bytes
    {
        public byte[] Image { get; set; } = [];

        public string Task { get; set; } = "QuestionAnswering";

        public string Question { get; set; } = "what is its colour";

        public string Target { get; set; } = "";
    }

    private static Action Act<T>(Func<T> function) => () => function();
}
