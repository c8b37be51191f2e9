using MambaVL.Generation;
using MambaVL.Prompts;
using MambaVL.Tests.Models;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Tests.Training;

/// <summary>What a trainer gives back answers each row as the model's own call for the row's task does.</summary>
public sealed class TaskStepTests : IDisposable
{
    private readonly MLContext _ml = new(1);
    private readonly Squares _squares = new(1);
    private readonly VisionLanguageModel _model = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba);

    public void Dispose()
    {
        _model.Dispose();
        _squares.Dispose();
    }

    [Fact]
    public void EachRowIsAskedByItsTask()
    {
        using var tuned = _ml.VisionLanguage().Trainers.InstructionTune(Squares.Options(_model) with { MaxSteps = 1, LearningRate = 1e-9 }).Fit(_squares.Data(_ml));
        var image = _squares.Rows[0].Image;
        SquareRow[] rows =
        [
            new() { Image = image, Task = "captioning", Question = "" },
            new() { Image = image, Question = "what is it" },
            new() { Image = image, Task = "MultipleChoice", Choices = ["a cat", "a dog", ""] },
            new() { Image = image, Task = "Grounding", Question = "the square" },
            new() { Image = image, Task = "DenseCaptioning", Box = [2, 3, 20, 30] },
            new() { Image = image, Task = "ImageTextMatch", Question = "a square" },
            new() { Image = image, Task = "Chat", Question = "hello" },
        ];
        var data = tuned.Transform(_ml.Data.LoadFromEnumerable(rows));
        var texts = data.GetColumn<string>("Answer.Text").ToList();
        using var encoded = tuned.Model.EncodeImage(image);
        Conversation[] asked =
        [
            Conversation.Caption(), Conversation.Ask("what is it"), Conversation.Choose("what is its colour", ["a cat", "a dog"]), Conversation.Locate("the square"),
            Conversation.Describe(new BoundingBox(2, 3, 20, 30).ToShares(32, 32)), Conversation.Match("a square"), Conversation.Chat([new("hello")]),
        ];
        texts.Should().Equal(asked.Select(c => tuned.Model.Generate(tuned.Model.Request(encoded, c)).Text));
        texts.Distinct().Should().HaveCountGreaterThan(4, "otherwise this compares nothing");
        var answers = data.GetColumn<string>("Answer").ToList();
        answers[0].Should().Be(texts[0].Trim());
        answers[1].Should().Be(AnswerText.Short(texts[1]));
        answers[2].Should().BeOneOf("", "a cat", "a dog");
        data.GetColumn<bool>("Answer.Box.Readable").Should().Equal(texts.Select((t, i) => i == 3 && BoxParser.TryParse(t, out _)));
    }

    [Fact]
    public void ARowWhoseTaskOrTextIsWrongIsNamed()
    {
        using var tuned = _ml.VisionLanguage().Trainers.InstructionTune(Squares.Options(_model) with { MaxSteps = 1 }).Fit(_squares.Data(_ml));
        foreach (var (change, message) in new (Action<SquareRow>, string)[]
        {
            (r => r.Task = "Painting", "*row 0*'Painting'*"), (r => r.Question = "", "*row 0*no question*"),
            (r => r.Task = "DenseCaptioning", "*row 0*not finite*"), (r => r.Task = "Chat", "*row 0*"),
        })
        {
            var row = new SquareRow { Image = _squares.Rows[0].Image };
            change(row);
            if (row.Task == "Chat") row.Question = "";
            var act = () => tuned.Transform(_ml.Data.LoadFromEnumerable([row])).GetColumn<string>("Answer").ToList();
            act.Should().Throw<RowException>().WithMessage(message);
        }
        var schema = () => tuned.Transform(_ml.Data.LoadFromEnumerable([new { Image = "a.png" }]));
        schema.Should().Throw<ArgumentOutOfRangeException>().WithMessage("*'Task'*");
    }
}
