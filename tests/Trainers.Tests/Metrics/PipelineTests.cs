using MambaVL.Tests.Models;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Tests.Metrics;

/// <summary>What the pipeline steps give is what the metrics take.</summary>
public sealed class PipelineTests : IDisposable
{
    private readonly MLContext _ml = new(seed: 1);
    private readonly Pictures _pictures = new(3);
    private readonly VisionLanguageModel _model = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba);

    public void Dispose()
    {
        _model.Dispose();
        _pictures.Dispose();
    }

    [Fact]
    public void Steps_are_evaluated_as_they_come()
    {
        var data = _ml.Transforms.CaptionImages("Caption", "Path", _model, Pictures.Short)
            .Append(_ml.Transforms.AnswerQuestions("Answer", "Path", "Question", _model, Pictures.Short))
            .Append(_ml.Transforms.GroundPhrases("Box", "Path", "Question", _model, Pictures.Short))
            .Append(_ml.Transforms.MatchCaptions("Matches", "Path", "Question", _model, Pictures.Short))
            .Append(_ml.Transforms.EncodeImages("Patches", "Path", _model))
            .Fit(_pictures.Data(_ml)).Transform(_pictures.Data(_ml));
        var metrics = _ml.VisionLanguage();

        metrics.EvaluateCaptions(data, referencesColumnName: "Choices").RowCount.Should().Be(3);
        metrics.EvaluateAnswers(data, answersColumnName: "Choices").RowCount.Should().Be(3);

        // Random weights write no boxes and no answers; what was unreadable in the step is so here.
        var readable = data.GetColumn<bool>("Box.Readable").ToArray();
        metrics.EvaluateGrounding(data, "Region").PerRow.Select(r => r.IsReadable).Should().Equal(readable);
        metrics.EvaluateGrounding(data, "Region", "Box.Text", imageSizeColumnName: "Patches.Size").PerRow.Select(r => r.IsReadable).Should().Equal(readable);
        var matches = metrics.EvaluateMatches(data, "Matches.Readable");
        matches.PerRow.Should().Equal(metrics.EvaluateMatches(data, "Matches.Readable", "Matches.Text").PerRow);
    }
}
