using System.IO.Compression;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;
using System.Xml.Linq;
using MambaVL.Generation;
using MambaVL.Tests.Models;

namespace MambaVL.Tests.Consumer;

/// <summary>What an application gets that only references the packages.</summary>
public sealed class PackageTests(Packages packages) : IClassFixture<Packages>
{
    private const string Consumer = """
        using System.Text.Encodings.Web;
        using System.Text.Json;
        using System.Text.Json.Serialization;
        using Microsoft.ML;
        using Microsoft.ML.Data;

        var json = new JsonSerializerOptions { NumberHandling = JsonNumberHandling.AllowNamedFloatingPointLiterals, Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping };
        var ml = new MLContext();
        var pipeline = ml.Model.Load(args[0], out _);
        var lines = new string[4][];
        var threads = lines.Select((_, i) => new Thread(() =>
        {
            using var engine = ml.Model.CreatePredictionEngine<Question, Reply>(pipeline, new PredictionEngineOptions { OwnsTransformer = false });
            lines[i] = [.. args[1..].Select(path => JsonSerializer.Serialize(engine.Predict(new() { Image = path, Text = "What is it?", Phrase = "the cat" }), json))];
        })).ToList();
        threads.ForEach(t => t.Start());
        threads.ForEach(t => t.Join());
        foreach (var line in lines.SelectMany(l => l)) Console.WriteLine(line);

        class Question
        {
            public string Image { get; set; } = "";
            [ColumnName("Question")] public string Text { get; set; } = "";
            public string Phrase { get; set; } = "";
        }

        class Reply
        {
            public string Caption { get; set; } = "";
            public string Answer { get; set; } = "";
            [ColumnName("Box.Text")] public string Located { get; set; } = "";
            [VectorType(4)] public float[] Box { get; set; } = [];
        }
        """;

    [SkippableFact]
    public void AnApplicationWithOnlyThePackagesPredictsFromAModelThatAnotherProcessSaved()
    {
        var torch = Dependencies(Metadata("MambaVL.Backbones"))["TorchSharp"];
        Skip.IfNot(Directory.Exists(Path.Combine(Packages.MachineFolder, "torchsharp-cpu", torch)), $"TorchSharp-cpu {torch} was not restored on this machine; the tests were built with another TorchBackend.");
        string[] pictures = [SavedPipeline.Picture("jpeg-420.jpg"), SavedPipeline.Picture("png-16-rgb.png"), SavedPipeline.Picture("gif-palette.gif")];
        using var model = TinyVisionLanguage.Create(TinyVisionLanguage.NeoX);
        // Options are saved too: this one ends the first caption early.
        var options = new GenerationOptions { MaxNewTokens = 12 };
        var caption = Caption(model, pictures[0], options);
        options = options with { StopSequences = [caption.Substring(caption.Length / 2, 1)] };
        Caption(model, pictures[0], options).Length.Should().BeLessThan(caption.Length);
        using var saved = new SavedPipeline(model, options);
        var expected = pictures.Select(path =>
        {
            using var image = model.EncodeImage(path);
            var located = model.Locate(image, "the cat", options);
            located.Box.Should().BeNull("a random model writes no box");
            return JsonSerializer.Serialize(new
            {
                Caption = Caption(model, path, options), Answer = model.Answer(image, "What is it?", options), Located = located.Text,
                Box = new[] { float.NaN, float.NaN, float.NaN, float.NaN },
            }, new JsonSerializerOptions { NumberHandling = JsonNumberHandling.AllowNamedFloatingPointLiterals, Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping });
        }).ToList();
        expected.Distinct().Should().HaveCount(pictures.Length);

        var transforms = Metadata("MambaVL.Transforms");
        var application = packages.Build(Consumer, $"MambaVL.Transforms {transforms.Element(Name("version"))!.Value}", $"TorchSharp-cpu {torch}");
        var printed = Packages.Run(Path.GetDirectoryName(application)!, ["exec", application, saved.Zip, .. pictures]);
        printed.Split('\n', StringSplitOptions.RemoveEmptyEntries).Should().Equal(Enumerable.Repeat(expected, 4).SelectMany(e => e));
    }

    [Theory]
    [InlineData("MambaVL.Backbones", new[] { "TorchSharp", "SkiaSharp", "Microsoft.Extensions.Logging.Abstractions" })]
    [InlineData("MambaVL.Transforms", new[] { "MambaVL.Backbones", "Microsoft.ML", "Microsoft.ML.ImageAnalytics", "Microsoft.Extensions.AI.Abstractions" })]
    public void APackageHoldsItsOwnAssemblyAndNamesTheOthers(string id, string[] required)
    {
        using var zip = ZipFile.OpenRead(packages.Package(id));
        var files = zip.Entries.Select(e => e.FullName).Where(n => !n.StartsWith("_rels/", StringComparison.Ordinal) && !n.StartsWith("package/", StringComparison.Ordinal));
        // No public copies of ML.NET's assemblies, with which it was compiled; no natives, which the application chooses.
        files.Should().BeEquivalentTo("[Content_Types].xml", $"{id}.nuspec", "README.md", "THIRD-PARTY-NOTICES.md", $"lib/net10.0/{id}.dll", $"lib/net10.0/{id}.xml");

        var metadata = Metadata(id);
        metadata.Element(Name("license"))!.Value.Should().Be("MIT");
        metadata.Element(Name("readme"))!.Value.Should().Be("README.md");
        var dependencies = Dependencies(metadata);
        dependencies.Keys.Should().Contain(required);
        dependencies.Keys.Should().NotContain(d => d.StartsWith("TorchSharp-", StringComparison.Ordinal), "the application chooses");
        if (dependencies.TryGetValue("MambaVL.Backbones", out var version)) version.Should().Be(metadata.Element(Name("version"))!.Value);
        if (dependencies.TryGetValue("Microsoft.ML", out var mlNet)) mlNet.Should().EndWith("6.0.0)", "a new major version is looked at first");
    }

    private static string Caption(VisionLanguageModel model, string path, GenerationOptions options)
    {
        using var image = model.EncodeImage(path);
        return model.Caption(image, options);
    }

    private XElement Metadata(string id)
    {
        using var zip = ZipFile.OpenRead(packages.Package(id));
        using var nuspec = zip.GetEntry($"{id}.nuspec")!.Open();
        return XDocument.Load(nuspec).Root!.Elements().Single();
    }

    private static Dictionary<string, string> Dependencies(XElement metadata)
        => metadata.Descendants(Name("dependency")).ToDictionary(d => d.Attribute("id")!.Value, d => d.Attribute("version")!.Value);

    private static XName Name(string local) => XName.Get(local, "http://schemas.microsoft.com/packaging/2013/05/nuspec.xsd");
}
