using MambaVL.Samples.Scenes;

namespace MambaVL.Tests.Scenes;

/// <summary>From nothing to metrics, with everything as small as it can be.</summary>
public sealed class SceneTrainingTests : IDisposable
{
    private static readonly ModelSizes Small = new() { ImageSize = 32, Patch = 16, Width = 32, Depth = 1, Hidden = 32, Layers = 1, Vocabulary = 300 };

    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("mambavl-scenes-");

    public void Dispose() => _folder.Delete(recursive: true);

    [Theory]
    [InlineData("mamba")]
    [InlineData("pythia")]
    public void A_model_is_trained_written_in_half_precision_loaded_and_evaluated(string backbone)
    {
        var (data, output) = (Path.Combine(_folder.FullName, "data"), Path.Combine(_folder.FullName, "model"));
        SceneDataset.Write(data, new() { Seed = 3, Size = 64, Splits = new Dictionary<string, int> { [Splits.Train] = 6, [Splits.Validation] = 2 } });
        var lines = new List<string>();
        SceneTraining.Run(new() { Data = data, Output = output, Backbone = backbone, Sizes = Small, Steps = 2, Batch = 8, Scenes = 4 }, lines.Add);
        lines.Should().Contain(l => l.StartsWith("step 2 of 2: validation Loss"));

        using var model = VisionLanguageModel.FromPretrained(output);
        new FileInfo(Path.Combine(output, "model.safetensors")).Length.Should().BeLessThan(3 * model.NamedParameters().Sum(p => p.Parameter.numel()));
        model.Tokenizer.VocabularySize.Should().Be(300);
        var result = Evaluation.Run(model, Path.Combine(data, "validation.jsonl"), batch: 8, limit: 9);
        result["rows"]!.GetValue<int>().Should().Be(9);
        result["questionAnswering"]!["rows"]!.GetValue<int>().Should().BePositive();
    }

    [Theory]
    [InlineData("mamba")]
    [InlineData("pythia")]
    public void The_models_of_both_backbones_are_of_equal_size_and_below_the_limit(string backbone)
    {
        var tokenizer = Prompts.BytePairTrainer.Train(Made.Scenes(Splits.Train, 300).SelectMany(s => s.Rows).Select(r => $"{r.Question} {r.Target}"), new() { VocabularySize = new ModelSizes().Vocabulary });
        using var model = VisionLanguageModel.Create(new ModelSizes().ToConfig(backbone, tokenizer), tokenizer, seed: 1);
        model.NamedParameters().Sum(p => p.Parameter.numel()).Should().BeInRange(3_300_000, 3_900_000);
    }
}
