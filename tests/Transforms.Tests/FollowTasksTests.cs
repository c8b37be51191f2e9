using MambaVL.Prompts;
using MambaVL.Tests.Models;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Tests;

/// <summary>One step for rows of different tasks says what each task's own step says.</summary>
public sealed class FollowTasksTests : IDisposable
{
    private static readonly TextStepOptions Greedy = new() { Generation = new() { MaxNewTokens = 6, IgnoreEndToken = true }, BatchSize = 5 };

    private readonly Pictures _pictures = new(2);
    private readonly MLContext _ml = new(1);
    private readonly VisionLanguageModel _model = TinyVisionLanguage.Create(TinyVisionLanguage.NeoX);

    public void Dispose()
    {
        _model.Dispose();
        _pictures.Dispose();
    }

    [Fact]
    public void Each_row_is_answered_by_its_task()
    {
        VisionTask[] tasks = [VisionTask.Captioning, VisionTask.QuestionAnswering, VisionTask.MultipleChoice, VisionTask.Grounding, VisionTask.ImageTextMatch, VisionTask.DenseCaptioning];
        var data = _ml.Data.LoadFromEnumerable(_pictures.Examples.SelectMany(e => tasks.Select(t => new Row
        {
            Path = e.Path, Task = t.ToString(), Question = t == VisionTask.Captioning ? "" : e.Question, Choices = t == VisionTask.MultipleChoice ? e.Choices : [], Box = e.Region,
        })));
        var said = _ml.Transforms.FollowTasks("Said", "Path", "Task", "Question", _model, options: Greedy).Fit(data).Transform(data);

        var own = _ml.Transforms.CaptionImages("Captioning", "Path", _model, Greedy)
            .Append(_ml.Transforms.AnswerQuestions("QuestionAnswering", "Path", "Question", _model, Greedy))
            .Append(_ml.Transforms.AnswerQuestions("MultipleChoice", "Path", "Question", "Choices", _model, Greedy))
            .Append(_ml.Transforms.GroundPhrases("Grounding", "Path", "Question", _model, Greedy))
            .Append(_ml.Transforms.MatchCaptions("ImageTextMatch", "Path", "Question", _model, Greedy))
            .Append(_ml.Transforms.DescribeRegions("DenseCaptioning", "Path", "Region", _model, Greedy))
            .Fit(_pictures.Data(_ml)).Transform(_pictures.Data(_ml));
        var texts = tasks.Select(t => Pictures.Texts(own, t.ToString())).ToList();
        Pictures.Texts(said, "Said").Should().Equal(_pictures.Examples.Index().SelectMany(e => texts.Select(t => t[e.Index])));
        Pictures.Column<bool>(said, "Said.Box.Readable").Where((_, i) => i % tasks.Length == 3).Should().Equal(Pictures.Column<bool>(own, "Grounding.Readable"));
    }

    [Fact]
    public void A_row_without_what_its_task_needs_is_named_and_the_others_come_out()
    {
        Row[] rows = [new() { Path = _pictures.Examples[0].Path, Task = "Captioning" }, new() { Path = _pictures.Examples[0].Path, Task = "QuestionAnswering" }, new() { Path = _pictures.Examples[0].Path, Task = "Guessing", Question = "x" }];
        var data = _ml.Data.LoadFromEnumerable(rows);
        FluentActions.Invoking(() => Pictures.Column<string>(_ml.Transforms.FollowTasks("Said", "Path", "Task", "Question", _model, options: Greedy).Fit(data).Transform(data), "Said"))
            .Should().Throw<RowException>().WithMessage("*row 1*question*");
        var said = _ml.Transforms.FollowTasks("Said", "Path", "Task", "Question", _model, options: Greedy with { OnError = RowErrors.EmptyResult }).Fit(data).Transform(data);
        Pictures.Column<string>(said, "Said.Error").Should().SatisfyRespectively(e => e.Should().BeEmpty(), e => e.Should().Contain("question"), e => e.Should().Contain("'Guessing'").And.Contain("Captioning"));
    }

    [Fact]
    public void The_task_column_must_be_there()
    {
        var data = _pictures.Data(_ml);
        FluentActions.Invoking(() => _ml.Transforms.FollowTasks("Said", "Path", "Task", "Question", _model).Fit(data)).Should().Throw<ArgumentOutOfRangeException>().WithMessage("*task column 'Task'*");
        FluentActions.Invoking(() => _ml.Transforms.FollowTasks("Said", "Path", "Number", "Question", _model).Fit(data)).Should().Throw<ArgumentOutOfRangeException>().WithMessage("*Number*");
    }

    private sealed class Row
    {
        public string Path { get; set; } = "";

        public string Task { get; set; } = "";

        public string Question { get; set; } = "";

        public string[] Choices { get; set; } = [];

        [VectorType(4)]
        public float[] Box { get; set; } = [1, 2, 20, 15];
    }
}
