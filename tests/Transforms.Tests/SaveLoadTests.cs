using System.Diagnostics;
using System.IO.Compression;
using System.Text;
using MambaVL.Models;
using MambaVL.Tests.Models;
using MambaVL.Tests.Prompts;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;
using TorchSharp;

namespace MambaVL.Tests;

public sealed class SaveLoadTests : IDisposable
{
    private readonly Pictures _pictures = new(3);
    private readonly MLContext _ml = new(1);
    private readonly VisionLanguageModel _model = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba);

    public void Dispose()
    {
        _model.Dispose();
        _pictures.Dispose();
    }

    [Theory, MemberData(nameof(TinyVisionLanguage.Backbones), MemberType = typeof(TinyVisionLanguage))]
    public void ALoadedPipelineGivesTheSameText(string backbone)
    {
        using var model = TinyVisionLanguage.Create(backbone);
        var (transformer, texts) = Captions(model);
        _ml.Model.Save(transformer, _pictures.Data(_ml).Schema, _pictures.Zip);
        using var loaded = Load(out var found);
        found.Should().Equal(texts);
    }

    [Fact, Trait("Category", "Slow")]
    public void AModelOfMoreThan4GBIsSavedIntoTheZipAndLoaded()
    {
        var tiny = TinyVisionLanguage.Config(TinyVisionLanguage.Mamba);
        var config = tiny with { Language = new MambaConfig { HiddenSize = 2048, LayerCount = 44, VocabularySize = tiny.Language.VocabularySize, TieEmbeddings = false } };
        List<string> texts;
        using (var model = VisionLanguageModel.Create(config, TinyTokenizer.Load(), 1))
        {
            model.NamedParameters().Sum(p => p.Parameter.numel() * 4).Should().BeGreaterThan(1L << 32);
            (var transformer, texts) = Captions(model, WeightStorage.InZip);
            _ml.Model.Save(transformer, _pictures.Data(_ml).Schema, _pictures.Zip);
        }
        new FileInfo(_pictures.Zip).Length.Should().BeGreaterThan(1L << 32);
        using var loaded = Load(out var found);
        found.Should().Equal(texts);
    }

    [Fact]
    public async Task AnotherProcessThatOnlyReferencesTheAssembliesGivesTheSameText()
    {
        var (transformer, texts) = Captions(_model);
        _ml.Model.Save(transformer, _pictures.Data(_ml).Schema, _pictures.Zip);
        var start = new ProcessStartInfo("dotnet", ["exec", typeof(LoadProbe).Assembly.Location, _pictures.Zip, .. _pictures.Examples.Select(e => e.Path)])
        { RedirectStandardOutput = true, RedirectStandardError = true };
        using var process = Process.Start(start)!;
        var errors = process.StandardError.ReadToEndAsync();
        var lines = process.StandardOutput.ReadToEnd().Split('\n', StringSplitOptions.RemoveEmptyEntries);
        process.WaitForExit();
        process.ExitCode.Should().Be(0, await errors);
        lines.Where(l => l.StartsWith("caption: ", StringComparison.Ordinal)).Should().Equal(texts.Select(t => $"caption: {t.ReplaceLineEndings("|")}"));
    }

    [Fact]
    public void StepsOfMlNetBeforeAndAfterOursRoundTrip()
    {
        var data = _pictures.Data(_ml);
        var pipeline = _ml.Transforms.LoadImages("Image", null, "Path")
            .Append(_ml.Transforms.ResizeImages("Image", 20, 20))
            .Append(_ml.Transforms.EncodeImages("Patches", "Image", _model))
            .Append(_ml.Transforms.CaptionImages("Caption", "Patches", _model, Pictures.Short))
            .Append(_ml.Transforms.CopyColumns("Copy", "Caption.Text"))
            .Append(_ml.Transforms.Text.FeaturizeText("Words", "Copy"));
        var transformer = pipeline.Fit(data);
        var expected = Rows(transformer.Transform(data));
        _ml.Model.Save(transformer, data.Schema, _pictures.Zip);
        var loaded = new MLContext(9).Model.Load(_pictures.Zip, out var schema);
        using var disposing = (IDisposable)loaded;
        schema.Select(c => c.Name).Should().Contain(["Path", "Question"]);
        Rows(loaded.Transform(data)).Should().Equal(expected);

        static List<string> Rows(IDataView data) => [.. Pictures.Texts(data, "Caption")
            .Zip(data.GetColumn<float[]>("Words"), (c, w) => c + string.Join(" ", w)).Zip(data.GetColumn<string>("Copy"), (a, b) => a + b)];
    }

    [Fact]
    public void SettingsAreKept()
    {
        var options = Pictures.Short with { BatchSize = 3, OnError = RowErrors.EmptyResult, Images = new() { MaxPixels = 800, ApplyOrientation = false } };
        var data = _pictures.Data(_ml);
        var transformer = _ml.Transforms.AnswerQuestions("A", "Path", "Question", "Choices", _model, options).Fit(data);
        _ml.Model.Save(transformer, data.Schema, _pictures.Zip);
        using var loaded = (VisionLanguageTransformer)_ml.Model.Load(_pictures.Zip, out _);
        loaded.Settings.ToJson().Should().Be(transformer.Settings.ToJson());
        Pictures.Column<string>(loaded.Transform(data), "A.Error")[2].Should().Contain("pixels");
    }

    [Fact]
    public void StepsShareOneCopyOfTheWeightsInTheZipAndInMemory()
    {
        var data = _pictures.Data(_ml);
        using var again = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba);
        using var other = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba, seed: 2);
        var transformer = _ml.Transforms.EncodeImages("Patches", "Path", _model)
            .Append(_ml.Transforms.CaptionImages("A", "Patches", _model, Pictures.Short))
            .Append(_ml.Transforms.CaptionImages("B", "Patches", again, Pictures.Short))
            .Append(_ml.Transforms.CaptionImages("C", "Patches", other, Pictures.Short)).Fit(data);
        _ml.Model.Save(transformer, data.Schema, _pictures.Zip);
        using (var zip = ZipFile.OpenRead(_pictures.Zip))
            zip.Entries.Count(e => e.Name.StartsWith("weights", StringComparison.Ordinal)).Should().Be(2);

        var loaded = (TransformerChain<ITransformer>)_ml.Model.Load(_pictures.Zip, out _);
        var steps = loaded.Cast<VisionLanguageTransformer>().ToList();
        steps.Select(s => s.Model).Distinct().Should().HaveCount(2);
        steps[1].Model.Should().BeSameAs(steps[0].Model).And.BeSameAs(steps[2].Model);
        Pictures.Texts(loaded.Transform(data), "C").Should().Equal(Pictures.Texts(transformer.Transform(data), "C"));

        steps[0].Dispose();
        steps[0].Dispose();
        steps[0].Invoking(s => s.Model).Should().Throw<ObjectDisposedException>();
        var weights = steps[1].Model.NamedParameters().Select(p => p.Parameter).Concat(steps[3].Model.NamedParameters().Select(p => p.Parameter)).ToList();
        weights.Should().AllSatisfy(w => w.IsInvalid.Should().BeFalse("steps still use it"));
        loaded.Dispose();
        weights.Should().AllSatisfy(w => w.IsInvalid.Should().BeTrue("its last step is gone"));
    }

    [Fact]
    public void ACallersModelOutlivesItsTransformers()
    {
        var (transformer, _) = Captions(_model);
        transformer.Dispose();
        transformer.Invoking(t => Pictures.Texts(t.Transform(_pictures.Data(_ml)), "Caption")).Should().Throw<ObjectDisposedException>();
        _model.EncodeImage(_pictures.Examples[0].Path).Dispose();
    }

    [Fact]
    public void APipelineIsNotSavedWithoutTheAdaptersOfItsModel()
    {
        var (transformer, _) = Captions(_model);
        using var adapters = LoraAdapters.Attach(_model);
        var save = () => _ml.Model.Save(transformer, _pictures.Data(_ml).Schema, _pictures.Zip);
        save.Should().Throw<InvalidOperationException>().WithMessage("*adapters*merge*");
        adapters.Merge();
        save();
        Load(out _).Dispose();
    }

    [Fact]
    public void WeightsInTheZipAreUsedWhereTheyLie()
    {
        Save(WeightStorage.InZip);
        var bytes = File.ReadAllBytes(_pictures.Zip);
        var header = bytes.AsSpan().IndexOf("{\"__metadata__\""u8);
        header.Should().BePositive("weights are stored as they are");
        (header % 8).Should().Be(0);
        var log = new List<string>();
        var ml = new MLContext();
        ml.Log += (_, e) => log.Add(e.Message);
        ((IDisposable)ml.Model.Load(_pictures.Zip, out _)).Dispose();
        log.Should().Contain(m => m.Contains("mapped in the zip"));
    }

    [Fact]
    public void WeightsBesideTheZipAreFoundThereAndCheckedThere()
    {
        var texts = Save(WeightStorage.Beside);
        var beside = Directory.GetFiles(_pictures.Folder, "model.zip.????????.safetensors").Should().ContainSingle().Which;
        new FileInfo(_pictures.Zip).Length.Should().BeLessThan(new FileInfo(beside).Length);
        using (Load(out var found)) found.Should().Equal(texts);
        Save(WeightStorage.Beside); // over the file that was there
        Directory.GetFiles(_pictures.Folder, "*.tmp").Should().BeEmpty();

        var bytes = File.ReadAllBytes(beside);
        bytes[^1] ^= 1;
        File.WriteAllBytes(beside, bytes);
        LoadFails<InvalidDataException>($"*{beside}*SHA-256*altered*");
        File.WriteAllBytes(beside, bytes[..^1]);
        LoadFails<InvalidDataException>($"*{beside}*fewer bytes*truncated*");
        File.Delete(beside);
        LoadFails<FileNotFoundException>($"*{Path.GetFileName(beside)}*not beside it*");
    }

    [Fact]
    public void AStreamServesWhereWeightsAreInTheZip()
    {
        var (transformer, texts) = Captions(_model);
        var data = _pictures.Data(_ml);
        using var stream = new MemoryStream();
        _ml.Model.Save(transformer, data.Schema, stream);
        stream.Position = 0;
        var loaded = _ml.Model.Load(stream, out _);
        using (loaded as IDisposable) Pictures.Texts(loaded.Transform(data), "Caption").Should().Equal(texts);

        var beside = _ml.Transforms.CaptionImages("Caption", "Path", _model, Pictures.Short with { Weights = WeightStorage.Beside }).Fit(data);
        _ml.Invoking(ml => ml.Model.Save(beside, data.Schema, new MemoryStream())).Should().Throw<InvalidOperationException>().WithMessage("*Beside*stream*");
    }

    [Theory, InlineData(0.2), InlineData(0.5), InlineData(0.98)]
    public void ATruncatedZipIsNamed(double share)
    {
        Save(WeightStorage.InZip);
        var bytes = File.ReadAllBytes(_pictures.Zip);
        File.WriteAllBytes(_pictures.Zip, bytes[..(int)(bytes.Length * share)]);
        LoadFails<Exception>("*zip*");
    }

    [Fact]
    public void AZipOfAnotherKindIsNamed()
    {
        using (var zip = ZipFile.Open(_pictures.Zip, ZipArchiveMode.Create)) zip.CreateEntry("readme.txt");
        _ml.Invoking(ml => ml.Model.Load(_pictures.Zip, out _)).Should().Throw<Exception>().WithMessage("*model*");
        File.WriteAllText(_pictures.Zip, "no zip at all");
        _ml.Invoking(ml => ml.Model.Load(_pictures.Zip, out _)).Should().Throw<Exception>().WithMessage("*zip*");
    }

    [Theory, InlineData("weights"), InlineData("config.json"), InlineData("tokenizer.json")]
    public void AnAlteredEntryIsNamedAndNothingStaysLoaded(string entry)
    {
        Save(WeightStorage.InZip);
        Change(entry, bytes => bytes[bytes.Length / 2] ^= 1);
        LoadFails<InvalidDataException>($"*model.zip*{entry}*altered*");
        Remove(entry);
        LoadFails<InvalidDataException>($"*no entry*{entry}*");
    }

    [Fact]
    public void ACompressedCopyOfTheZipLoads()
    {
        var texts = Save(WeightStorage.InZip);
        Change("weights", _ => { }); // written again, deflated
        using (Load(out var found)) found.Should().Equal(texts);
    }

    [Fact]
    public void ANewerFormatIsNamed()
    {
        Save(WeightStorage.InZip);
        // ModelVerReadable of our part's header, behind its signature.
        Change("Model.key", bytes =>
        {
            var at = bytes.AsSpan().IndexOf("MAMBAVLS"u8);
            if (at >= 0) (bytes[at + 8], bytes[at + 12]) = (2, 2);
        });
        LoadFails<InvalidDataException>("*newer MambaVL.Transforms*1.2*1.1*Update*");
    }

    [Theory, InlineData("Float32"), InlineData("BFloat16")]
    public void PrecisionIsKept(string precision)
    {
        var type = Enum.Parse<torch.ScalarType>(precision);
        using var model = VisionLanguageModel.Create(TinyVisionLanguage.Config(TinyVisionLanguage.Mamba), _model.Tokenizer, 1, type);
        var (transformer, texts) = Captions(model);
        _ml.Model.Save(transformer, _pictures.Data(_ml).Schema, _pictures.Zip);
        using var loaded = Load(out var found);
        found.Should().Equal(texts);
        loaded.Model.Language.parameters().First().dtype.Should().Be(type);
    }

    [Fact]
    public void SeveralEnginesUseOneLoadedPipeline()
    {
        Save(WeightStorage.InZip);
        var loaded = (VisionLanguageTransformer)_ml.Model.Load(_pictures.Zip, out _);
        var keep = new PredictionEngineOptions { OwnsTransformer = false };
        using (var engine = _ml.Model.CreatePredictionEngine<Example, Captioned>(loaded, keep)) engine.Predict(_pictures.Examples[0]).Ids.Should().HaveCount(6);
        using (var engine = _ml.Model.CreatePredictionEngine<Example, Captioned>(loaded)) engine.Predict(_pictures.Examples[0]).Ids.Should().HaveCount(6);
        loaded.Invoking(l => l.Model).Should().Throw<ObjectDisposedException>("an engine owns its transformer unless it is told otherwise");
    }

    private (VisionLanguageTransformer Transformer, List<string> Texts) Captions(VisionLanguageModel model, WeightStorage weights = WeightStorage.Auto)
    {
        var data = _pictures.Data(_ml);
        var transformer = _ml.Transforms.CaptionImages("Caption", "Path", model, Pictures.Short with { Weights = weights }).Fit(data);
        var texts = Pictures.Texts(transformer.Transform(data), "Caption");
        texts.Should().HaveCount(_pictures.Examples.Count).And.OnlyHaveUniqueItems();
        return (transformer, texts);
    }

    private List<string> Save(WeightStorage weights)
    {
        var data = _pictures.Data(_ml);
        var transformer = _ml.Transforms.CaptionImages("Caption", "Path", _model, Pictures.Short with { Weights = weights }).Fit(data);
        _ml.Model.Save(transformer, data.Schema, _pictures.Zip);
        return Pictures.Texts(transformer.Transform(data), "Caption");
    }

    private VisionLanguageTransformer Load(out List<string> texts)
    {
        var ml = new MLContext(2);
        var loaded = (VisionLanguageTransformer)ml.Model.Load(_pictures.Zip, out _);
        texts = Pictures.Texts(loaded.Transform(_pictures.Data(ml)), "Caption");
        return loaded;
    }

    // ML.NET makes our part by reflection, and wraps what it throws.
    private void LoadFails<TException>(string message) where TException : Exception
    {
        Pictures.CollectEarlierTests();
        var before = torch.Tensor.TotalCount;
        var thrown = _ml.Invoking(ml => ml.Model.Load(_pictures.Zip, out _)).Should().Throw<Exception>().Which;
        while (thrown.InnerException is { } inner && thrown is not TException) thrown = inner;
        thrown.Should().BeAssignableTo<TException>();
        thrown.Message.Should().Match(message);
        torch.Tensor.TotalCount.Should().Be(before);
    }

    private void Change(string entry, Action<byte[]> change)
    {
        using var zip = ZipFile.Open(_pictures.Zip, ZipArchiveMode.Update);
        foreach (var found in zip.Entries.Where(e => e.Name.StartsWith(entry, StringComparison.Ordinal)).ToList())
        {
            var name = found.FullName;
            using var copy = new MemoryStream();
            using (var from = found.Open()) from.CopyTo(copy);
            var bytes = copy.ToArray();
            change(bytes);
            found.Delete();
            using var to = zip.CreateEntry(name).Open();
            to.Write(bytes);
        }
    }

    private void Remove(string entry)
    {
        using var zip = ZipFile.Open(_pictures.Zip, ZipArchiveMode.Update);
        foreach (var found in zip.Entries.Where(e => e.Name.StartsWith(entry, StringComparison.Ordinal)).ToList()) found.Delete();
    }

    private sealed class Captioned
    {
        [ColumnName("Caption.Ids")]
        public int[] Ids { get; set; } = [];
    }
}
