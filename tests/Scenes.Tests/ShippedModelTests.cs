using MambaVL.Samples.Scenes;

namespace MambaVL.Tests.Scenes;

/// <summary>The models in models/, on scenes that they were not trained on. The bounds lie some three standard deviations of so few
/// rows below what models/README.md says of 1,000 scenes: they tell a damaged file, tokeniser or pipeline, not a point more or less.</summary>
public sealed class ShippedModelTests : IDisposable
{
    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("mambavl-shipped-");

    public void Dispose() => _folder.Delete(recursive: true);

    [Theory]
    [InlineData("scenes-mamba", 0.94, 0.82, 0.74)]
    [InlineData("scenes-pythia", 0.96, 0.95, 0.83)]
    public void It_answers_and_locates_as_its_page_says(string name, double answers, double boxes, double captions)
    {
        var path = Path.Combine(Fixtures.Repository, "models", name);
        new FileInfo(Path.Combine(path, "model.safetensors")).Length.Should().BeLessThan(8_000_000);
        SceneDataset.Write(_folder.FullName, new() { Seed = 78, Splits = new Dictionary<string, int> { [Splits.Test] = 60 } });
        using var model = VisionLanguageModel.FromPretrained(path);
        var result = Evaluation.Run(model, Path.Combine(_folder.FullName, "test.jsonl"), batch: 64, limit: null);
        result["questionAnswering"]!["accuracy"]!.GetValue<double>().Should().BeGreaterThan(answers);
        result["grounding"]!["accuracy"]!.GetValue<double>().Should().BeGreaterThan(boxes);
        result["captioning"]!["objectsAndRelation"]!.GetValue<double>().Should().BeGreaterThan(captions);
    }
}
