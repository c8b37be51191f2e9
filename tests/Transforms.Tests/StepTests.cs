using MambaVL.Generation;
using MambaVL.Images;
using MambaVL.Prompts;
using MambaVL.Tests.Models;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;
using static TorchSharp.torch;

namespace MambaVL.Tests;

public class StepTests : IDisposable
{
    private static readonly TextStepOptions Greedy = new() { Generation = new() { MaxNewTokens = 6, IgnoreEndToken = true }, BatchSize = 3 };

    private readonly Pictures _pictures = new(3);
    private readonly MLContext _ml = new(1);
    private readonly VisionLanguageModel _model = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba);

    public void Dispose()
    {
        _model.Dispose();
        _pictures.Dispose();
    }

    [Fact]
    public void EncodedImagesAreThePatchFeaturesOfTheModel()
    {
        var data = Run(_ml.Transforms.EncodeImages("Patches", "Path", _model));
        data.Schema["Patches"].Type.Should().BeOfType<VectorDataViewType>().Which.Dimensions.Should().Equal(16, 32);
        Pictures.Column<float[]>(data, "Patches").Zip(_pictures.Examples).Should().AllSatisfy(x => x.First.Should().Equal(PatchFeatures(x.Second.Path)));
        Pictures.Column<int[]>(data, "Patches.Size").Should().SatisfyRespectively(_pictures.Examples.Select<Example, Action<int[]>>(e => size =>
        {
            using var image = DecodedImage.Decode(e.Path);
            size.Should().Equal(image.Width, image.Height);
        }));
    }

    [Fact]
    public void ThreeKindsOfImageColumnGiveTheSameFeatures()
    {
        var expected = Pictures.Column<float[]>(Run(_ml.Transforms.EncodeImages("Patches", "Path", _model)), "Patches");

        var images = Run(_ml.Transforms.LoadImages("Image", null, "Path").Append(_ml.Transforms.EncodeImages("Patches", "Image", _model)));
        Same(Pictures.Column<float[]>(images, "Patches"), expected);
        Pictures.Column<int[]>(images, "Patches.Size")[1].Should().Equal(31, 25);

        var bytes = _ml.Transforms.LoadRawImageBytes("Bytes", null, "Path").Append(_ml.Transforms.EncodeImages("Patches", "Bytes", _model));
        Same(Pictures.Column<float[]>(Run(bytes), "Patches"), expected);
    }

    [Fact]
    public void AnMLImageWithAlphaIsLaidOnWhite()
    {
        var pixels = new byte[8 * 8 * 4];
        for (var i = 0; i < pixels.Length; i += 4) (pixels[i], pixels[i + 3]) = (100, 128); // blue times alpha, alpha
        using var image = MLImage.CreateFromPixels(8, 8, MLPixelFormat.Bgra32, pixels);
        using var white = DecodedImage.FromPixels(8, 8, Enumerable.Range(0, 64).SelectMany(_ => new byte[] { 127, 127, 227 }).ToArray());
        var data = _ml.Data.LoadFromEnumerable([new WithImage { Image = image }]);
        var features = _ml.Transforms.EncodeImages("Patches", "Image", _model).Fit(data).Transform(data).GetColumn<float[]>("Patches").Single();
        features.Should().Equal(PatchFeatures(white));
        image.Width.Should().Be(8); // not disposed of: it is the caller's
    }

    [Fact]
    public void ConnectedImagesAreTheEmbeddingsOfTheModel()
    {
        var data = Run(_ml.Transforms.EncodeImages("Patches", "Path", _model).Append(_ml.Transforms.ConnectImages("Embeddings", "Patches", _model)));
        using var image = _model.EncodeImage(_pictures.Examples[2].Path);
        Pictures.Column<float[]>(data, "Embeddings")[2].Should().Equal(image.Embeddings.flatten().data<float>().ToArray());
        Same(Pictures.Column<int[]>(data, "Embeddings.Size"), Pictures.Column<int[]>(data, "Patches.Size"));
    }

    [Fact]
    public void EveryTaskSaysWhatTheModelItselfSays()
    {
        using var image = _model.EncodeImage(_pictures.Examples[1].Path);
        var (row, options) = (_pictures.Examples[1], Greedy.Generation);
        var data = Run(_ml.Transforms.CaptionImages("Caption", "Path", _model, Greedy)
            .Append(_ml.Transforms.AnswerQuestions("Answer", "Path", "Question", _model, Greedy))
            .Append(_ml.Transforms.AnswerQuestions("Choice", "Path", "Question", "Choices", _model, Greedy))
            .Append(_ml.Transforms.GroundPhrases("Box", "Path", "Question", _model, Greedy))
            .Append(_ml.Transforms.MatchCaptions("Match", "Path", "Question", _model, Greedy))
            .Append(_ml.Transforms.DescribeRegions("Description", "Path", "Region", _model, Greedy))
            .Append(_ml.Transforms.GenerateText("Text", "Path", "Question", _model, Greedy)));

        Pictures.Column<string>(data, "Caption")[1].Should().Be(_model.Caption(image, options));
        Pictures.Column<string>(data, "Answer")[1].Should().Be(_model.Answer(image, row.Question, options));
        var choice = _model.Choose(image, row.Question, row.Choices, options);
        Pictures.Column<string>(data, "Choice.Text")[1].Should().Be(choice.Text);
        Pictures.Column<int>(data, "Choice.Index")[1].Should().Be(choice.Index ?? -1);
        Pictures.Column<string>(data, "Choice")[1].Should().Be(choice.Index is { } i ? row.Choices[i] : "");
        var box = _model.Locate(image, row.Question, options);
        Pictures.Column<string>(data, "Box.Text")[1].Should().Be(box.Text);
        Pictures.Column<bool>(data, "Box.Readable")[1].Should().Be(box.Box is not null);
        Pictures.Column<string>(data, "Match.Text")[1].Should().Be(_model.Generate(_model.Request(image, Conversation.Match(row.Question)), options).Text);
        Pictures.Column<string>(data, "Description")[1].Should().Be(_model.Describe(image, new(1, 2, 20, 15), options));

        var size = _model.Config.Images.ImageSize;
        long[] ids = [.. ImageTokens.Sequence(_model.Tokenizer, size, size, _model.Vision.PatchSize), .. _model.Tokenizer.Encode(row.Question)];
        var generated = _model.Generate(new GenerationRequest(image, ids), options);
        Pictures.Column<int[]>(data, "Text.Ids")[1].Should().Equal(generated.Ids);
        Pictures.Column<string>(data, "Text")[1].Should().Be(generated.Text);
    }

    [Fact]
    public void ABoxIsInPixelsOfTheRowsImage()
    {
        var transformer = _ml.Transforms.GroundPhrases("Box", "Path", "Question", _model).Fit(_pictures.Data(_ml));
        var step = new BoundStep(transformer, _pictures.Data(_ml).Schema);
        var results = new StepResults(step.Outputs, 2);
        var row = new RowInput(1, ImageKind.Path) { Width = 200, Height = 100 };
        using var image = new EncodedImage(zeros(2, 3), 1, 1);
        ((TestableRead)transformer.Step.GetType().GetMethod("Read", System.Reflection.BindingFlags.NonPublic | System.Reflection.BindingFlags.Instance)!
            .CreateDelegate(typeof(TestableRead), transformer.Step))(row, image, "[0.10,0.25,0.50,1.20].", results);
        results.Column<VBuffer<float>>(0)[1].DenseValues().Should().Equal(20, 25, 100, 100);
        results.Column<bool>(1)[1].Should().BeTrue();
        BoxColumn.ToBoundingBox([20, 25, 100, 100]).Should().Be(new BoundingBox(20, 25, 100, 100));
        BoxColumn.ToBoundingBox(BoxColumn.Write(null)).Should().BeNull();
        FluentActions.Invoking(() => BoxColumn.Read([1, 2, 3])).Should().Throw<ArgumentException>().WithMessage("*3 numbers*");

        VBuffer<ReadOnlyMemory<char>> names = default;
        step.Output["Box"].GetSlotNames(ref names);
        names.DenseValues().Select(n => n.ToString()).Should().Equal("x0", "y0", "x1", "y1");
    }

    private delegate void TestableRead(RowInput row, EncodedImage image, string text, StepResults results);

    [Fact]
    public void FeaturesServeEveryTaskWithoutTheEncoder()
    {
        var expected = AllTasks(_ml.Transforms.CopyColumns("Image", "Path"), "Image");
        var path = System.IO.Path.Combine(_pictures.Folder, "features.idv");
        using (var file = File.Create(path))
            _ml.Data.SaveAsBinary(Run(_ml.Transforms.EncodeImages("Patches", "Path", _model)), file);
        var cached = Run(_ml.Transforms.EncodeImages("Patches", "Path", _model).Append(_ml.Transforms.ConnectImages("Embeddings", "Patches", _model)));
        cached = _ml.Data.Cache(cached);
        foreach (var _ in cached.GetColumn<float[]>("Embeddings")) { }
        foreach (var _ in cached.GetColumn<int[]>("Embeddings.Size")) { }
        _model.Vision.Dispose();

        Same(AllTasks(_ml.Transforms.CopyColumns("Copied", "Patches.Size"), "Patches", _ml.Data.LoadFromBinary(path)), expected);
        Same(AllTasks(_ml.Transforms.CopyColumns("Copied", "Embeddings.Size"), "Embeddings", cached), expected);
    }

    [Fact]
    public void FeaturesOfAmbiguousSizeAreToldByTheirAnnotationOrTheOption()
    {
        var config = TinyVisionLanguage.Config(TinyVisionLanguage.Mamba);
        config = config with { Language = (MambaVL.Models.MambaConfig)config.Language with { HiddenSize = 32 } };
        using var model = VisionLanguageModel.Create(config, TinyTokenizerOf(_model), 3);
        var step = _ml.Transforms.EncodeImages("Patches", "Path", model).Append(_ml.Transforms.ConnectImages("Embeddings", "Patches", model));
        var data = Run(step.Append(_ml.Transforms.CaptionImages("A", "Patches", model, Greedy)).Append(_ml.Transforms.CaptionImages("B", "Embeddings", model, Greedy)));
        Pictures.Texts(data, "B").Should().Equal(Pictures.Texts(data, "A"));

        var bare = _ml.Data.LoadFromEnumerable(Pictures.Column<float[]>(data, "Embeddings").Select(e => new BareFeatures { Features = e }));
        var told = _ml.Transforms.CaptionImages("C", "Features", model, Greedy with { Features = FeatureKind.Embeddings }).Fit(bare).Transform(bare);
        Pictures.Texts(told, "C").Should().Equal(Pictures.Texts(data, "A"));
    }

    [Fact]
    public void APredictionEngineGivesTypedResults()
    {
        var data = _pictures.Data(_ml);
        var pipeline = _ml.Transforms.CaptionImages("Caption", "Path", _model, Greedy).Append(_ml.Transforms.GroundPhrases("Box", "Path", "Question", _model, Greedy));
        var transformer = pipeline.Fit(data);
        using var engine = _ml.Model.CreatePredictionEngine<Example, Answer>(transformer);
        var captions = Pictures.Column<string>(transformer.Transform(data), "Caption");
        for (var i = 0; i < captions.Count; i++)
        {
            var answer = engine.Predict(_pictures.Examples[i]);
            answer.Caption.Should().Be(captions[i]);
            answer.Box.Should().HaveCount(4);
            (answer.Box.ToBoundingBox() is not null).Should().Be(answer.Readable);
        }
    }

    private static void Same<T>(IEnumerable<T[]> found, IEnumerable<T[]> expected)
        => found.Select(v => string.Join(" ", v)).Should().Equal(expected.Select(v => string.Join(" ", v)));

    private static void Same(IEnumerable<string> found, IEnumerable<string> expected) => found.Should().Equal(expected);

    private static Tokenizer TinyTokenizerOf(VisionLanguageModel model) => model.Tokenizer;

    private List<string> AllTasks(IEstimator<ITransformer> before, string image, IDataView? data = null)
    {
        data ??= _pictures.Data(_ml);
        var result = before.Append(_ml.Transforms.CaptionImages("A", image, _model, Greedy))
            .Append(_ml.Transforms.AnswerQuestions("B", image, "Question", _model, Greedy))
            .Append(_ml.Transforms.AnswerQuestions("C", image, "Question", "Choices", _model, Greedy))
            .Append(_ml.Transforms.GroundPhrases("D", image, "Question", _model, Greedy))
            .Append(_ml.Transforms.MatchCaptions("E", image, "Question", _model, Greedy))
            .Append(_ml.Transforms.DescribeRegions("F", image, "Region", _model, Greedy))
            .Append(_ml.Transforms.GenerateText("G", image, "Question", _model, Greedy)).Fit(data).Transform(data);
        return [.. "ABCDEFG".SelectMany(c => Pictures.Texts(result, c.ToString()))];
    }

    private float[] PatchFeatures(string path)
    {
        using var image = DecodedImage.Decode(path);
        return PatchFeatures(image);
    }

    private float[] PatchFeatures(DecodedImage image)
    {
        using var scope = NewDisposeScope();
        return _model.EncodePatches(_model.ImageProcessor.ProcessBatch([image])).flatten().data<float>().ToArray();
    }

    private IDataView Run(IEstimator<ITransformer> estimator)
    {
        var data = _pictures.Data(_ml);
        return estimator.Fit(data).Transform(data);
    }

    private sealed class WithImage
    {
        [Microsoft.ML.Transforms.Image.ImageType(8, 8)]
        public MLImage Image { get; set; } = null!;
    }

    private sealed class BareFeatures
    {
        [VectorType(16 * 32)]
        public float[] Features { get; set; } = [];
    }

    private sealed class Answer
    {
        public string Caption { get; set; } = "";

        [VectorType(4)]
        public float[] Box { get; set; } = [];

        [ColumnName("Box.Readable")]
        public bool Readable { get; set; }
    }
}
