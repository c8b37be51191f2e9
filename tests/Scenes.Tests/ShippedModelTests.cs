using MambaVL.Samples.Scenes;

namespace MambaVL.Tests.Scenes;

/// <summary>The models in models/, on scenes that they were not trained on. The bounds lie some three standard deviations of so few
/// rows below what models/README.md says of 1,000 scenes: they tell a damaged file, tokeniser or pipeline, not a point more or less.</summary>
public sealed class ShippedModelTests : IDisposable
{
    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("mambavl-shipped-");

    public void Dispose() => _folder.Delete(recursive: true);

    [Fact]
    public void It_answers_and_locates_as_its_page_says()
    {
        var path = Path.Combine(Fixtures.Repository, "models/scenes-pythia");
        new FileInfo(Path.Combine(path, "model.safetensors")).Length.Should().BeLessThan(8_000_000);
        SceneDataset.Write(_folder.FullName, new() { Seed = 78, Splits = new Dictionary<string, int> { [Splits.Test] = 60 } });
        using var model = VisionLanguageModel.FromPretrained(path);
        var result = Evaluation.Run(model, Path.Combine(_folder.FullName, "test.jsonl"), batch: 64, limit: null);
        result["questionAnswering"]!["accuracy"]!.GetValue<double>().Should().BeGreaterThan(0.82);
        result["grounding"]!["accuracy"]!.GetValue<double>().Should().BeGreaterThan(0.54);
        result["captioning"]!["objectsAndRelation"]!.GetValue<double>().Should().BeGreaterThan(0.33);
    }
}
