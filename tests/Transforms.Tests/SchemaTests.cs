using MambaVL.Tests.Models;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Tests;

public sealed class SchemaTests : IDisposable
{
    private readonly Pictures _pictures = new(2);
    private readonly MLContext _ml = new(1);
    private readonly VisionLanguageModel _model = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba);

    public void Dispose()
    {
        _model.Dispose();
        _pictures.Dispose();
    }

    [Fact]
    public void AMissingColumnIsNamedAtFit()
    {
        Fails(_ml.Transforms.CaptionImages("Caption", "Photo", _model), "*'Photo'*");
        Fails(_ml.Transforms.AnswerQuestions("Answer", "Path", "Frage", _model), "*'Frage'*");
        Fails(_ml.Transforms.AnswerQuestions("Answer", "Path", "Question", "Options", _model), "*'Options'*");
    }

    [Fact]
    public void AColumnOfAnotherKindIsNamedWithWhatWasFoundAndExpected()
    {
        Fails(_ml.Transforms.CaptionImages("Caption", "Number", _model), "*'Number'*expected*image*Single*");
        Fails(_ml.Transforms.AnswerQuestions("Answer", "Path", "Number", _model), "*'Number'*expected text*Single*");
        Fails(_ml.Transforms.AnswerQuestions("Answer", "Path", "Question", "Question", _model), "*'Question'*vector of text*");
        Fails(_ml.Transforms.DescribeRegions("Description", "Path", "Number", _model), "*'Number'*vector of 4*Single*");
        Fails(_ml.Transforms.CaptionImages("Caption", "Region", _model), "*'Region'*16 x 32*16 x 48*");
        Fails(_ml.Transforms.ConnectImages("Embeddings", "Path", _model), "*'Path'*patch features*");
        var features = _ml.Transforms.EncodeImages("Patches", "Path", _model);
        Fails(features.Append(_ml.Transforms.EncodeImages("Again", "Patches", _model)), "*'Patches'*expected*MLImage*");
    }

    [Fact]
    public void BoxesOnFeaturesNeedTheSizeOfTheImage()
    {
        var features = _ml.Transforms.EncodeImages("Patches", "Path", _model).Append(_ml.Transforms.CopyColumns("Copy", "Patches"));
        Fails(features.Append(_ml.Transforms.GroundPhrases("Box", "Copy", "Question", _model)), "*'Copy.Size'*");
    }

    [Fact]
    public void OptionsOutOfRangeAreNamedWhenTheStepIsMade()
    {
        FluentActions.Invoking(() => new ImageStepOptions { BatchSize = 0 }).Should().Throw<ArgumentOutOfRangeException>().WithMessage("*batch size of 0*");
        FluentActions.Invoking(() => _ml.Transforms.CaptionImages("C", "Path", _model, new() { Generation = new() { MaxNewTokens = 0 } }))
            .Should().Throw<ArgumentOutOfRangeException>().WithMessage("*MaxNewTokens*");
        FluentActions.Invoking(() => _ml.Transforms.CaptionImages("", "Path", _model)).Should().Throw<ArgumentException>().WithParameterName("outputColumnName");
        FluentActions.Invoking(() => _ml.Transforms.GroundPhrases("B", "Path", " ", _model)).Should().Throw<ArgumentException>().WithParameterName("phraseColumnName");
    }

    [Fact]
    public void TheShapeOfAPipelineIsThatOfItsData()
    {
        var pipeline = _ml.Transforms.EncodeImages("Patches", "Path", _model)
            .Append(_ml.Transforms.GroundPhrases("Box", "Patches", "Question", _model, new() { OnError = RowErrors.EmptyResult }));
        var data = _pictures.Data(_ml);
        var names = pipeline.Fit(data).Transform(data).Schema.Select(c => c.Name).ToList();
        names.Should().ContainInOrder("Patches", "Patches.Size", "Box", "Box.Readable", "Box.Text", "Box.Ids", "Box.Error");
    }

    private void Fails(IEstimator<ITransformer> estimator, string message)
        => estimator.Invoking(e => e.Fit(_pictures.Data(_ml))).Should().Throw<ArgumentOutOfRangeException>().WithMessage(message);
}
