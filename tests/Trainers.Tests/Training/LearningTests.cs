using MambaVL.Tests.Models;
using MambaVL.Training;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Tests.Training;

/// <summary>Training learns.</summary>
public sealed class LearningTests
{
    private readonly MLContext _ml = new(1);

    [Theory]
    [InlineData(TinyVisionLanguage.NeoX, "QuestionAnswering", false)]
    [InlineData(TinyVisionLanguage.Mamba, "Captioning", true)] // the picture stands right before the answer: less to remember
    public void AShortRunNamesTheColoursOfSquaresThatItNeverSaw(string backbone, string task, bool instructionFirst)
    {
        using var train = new Squares(48);
        using var test = new Squares(60);
        test.Rows.RemoveRange(0, 48);
        foreach (var row in train.Rows.Concat(test.Rows)) (row.Task, row.Question) = (task, task == "Captioning" ? "" : row.Question);
        using var model = Squares.Model(backbone);
        var losses = new List<double>();
        var options = Squares.Options(model) with { BatchSize = 12, Epochs = 20, InstructionFirst = instructionFirst, OnProgress = p => losses.Add(p.Loss) };
        using var tuned = _ml.VisionLanguage().Trainers.InstructionTune(options).Fit(train.Data(_ml));

        losses.Should().HaveCount(80);
        losses[^5..].Average().Should().BeLessThan(losses[..5].Average() / 4);
        tuned.Model.Config.InstructionFirst.Should().Be(instructionFirst);
        var answers = tuned.Transform(test.Data(_ml)).GetColumn<string>("Answer").ToList();
        answers.Zip(test.Rows).Average(p => p.First.TrimEnd('.') == p.Second.Target ? 1.0 : 0).Should().BeGreaterThanOrEqualTo(0.9, string.Join(" ", answers));
    }
}
