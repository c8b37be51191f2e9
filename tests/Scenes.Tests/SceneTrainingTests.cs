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

    [Fact]
    public void Names_come_first_then_simple_scenes_then_all_and_a_model_can_be_gone_on_from()
    {
        var (data, output) = (Path.Combine(_folder.FullName, "data"), Path.Combine(_folder.FullName, "model"));
        SceneDataset.Write(data, new() { Seed = 3, Size = 64, Splits = new Dictionary<string, int> { [Splits.First] = 4, [Splits.Train] = 4, [Splits.Validation] = 1 } });
        var lines = new List<string>();
        SceneTrainingOptions options = new() { Data = data, Output = output, Backbone = "pythia", Sizes = Small, NamingSteps = 1, FirstSteps = 2, Steps = 3, Batch = 8 };
        SceneTraining.Run(options, lines.Add);
        lines.Where(l => l.StartsWith("step")).Select(l => l.Split(',', ':')[0]).Should().Equal("step 1 of 1", "step 2 of 2", "step 3 of 3", "step 3 of 3");
        double Epoch(string step) => double.Parse(lines.First(l => l.StartsWith(step)).Split("epoch ")[1].Split(':')[0], System.Globalization.CultureInfo.InvariantCulture);
        (2 * Epoch("step 1 of 1")).Should().BeGreaterThan(1.5 * Epoch("step 2 of 2"), "names and numbers are fewer rows than all of simple scenes");

        lines.Clear();
        SceneTraining.Run(options with { From = output, Output = output + "2", Sizes = new() }, lines.Add);
        lines.Where(l => l.StartsWith("step")).Select(l => l.Split(',', ':')[0]).Should().Equal("step 3 of 3", "step 3 of 3");
        using var model = VisionLanguageModel.FromPretrained(output + "2");
        model.Config.Language.HiddenSize.Should().Be(Small.Hidden);
    }

    [Fact]
    public void A_model_can_start_with_the_encoder_of_one_with_another_backbone_if_the_sizes_are_the_same()
    {
        var (data, first, output) = (Path.Combine(_folder.FullName, "data"), Path.Combine(_folder.FullName, "first"), Path.Combine(_folder.FullName, "model"));
        SceneDataset.Write(data, new() { Seed = 3, Size = 64, Splits = new Dictionary<string, int> { [Splits.Train] = 4, [Splits.Validation] = 1 } });
        SceneTrainingOptions options = new() { Data = data, Output = first, Backbone = "pythia", Sizes = Small, Steps = 1, Batch = 8 };
        SceneTraining.Run(options, _ => { });
        // A step too small to show in half precision: what comes out is what went in.
        options = options with { Output = output, Backbone = "mamba", Encoder = first, LearningRate = 1e-9 };
        SceneTraining.Run(options, _ => { });

        using var origin = VisionLanguageModel.FromPretrained(first, new() { DType = TorchSharp.torch.ScalarType.Float32 });
        using var model = VisionLanguageModel.FromPretrained(output, new() { DType = TorchSharp.torch.ScalarType.Float32 });
        model.Config.Language.Should().BeOfType<Models.MambaConfig>();
        var language = model.Language.named_parameters().Select(p => p.name).ToHashSet();
        var expected = origin.NamedParameters().ToDictionary(p => p.Name, p => p.Parameter);
        var taken = model.NamedParameters().Where(p => !language.Contains(p.Name)).ToList();
        taken.Should().HaveCountGreaterThan(10);
        foreach (var (name, parameter) in taken)
            parameter.data<float>().ToArray().Should().Equal(expected[name].data<float>().ToArray(), name);

        var narrow = () => SceneTraining.Run(options with { Sizes = Small with { Width = 64 } }, _ => { });
        narrow.Should().Throw<ArgumentException>().WithMessage("--encoder: '*first' has vision_*; expected [*64*");
        var both = () => SceneTraining.Run(options with { From = first }, _ => { });
        both.Should().Throw<ArgumentException>().WithMessage("--from and --encoder are both given*");
    }

    [Theory]
    [InlineData("mamba")]
    [InlineData("pythia")]
    public void The_models_of_both_backbones_are_of_equal_size_and_below_the_limit(string backbone)
    {
        var tokenizer = Prompts.BytePairTrainer.Train(Made.Scenes(Splits.Train, 300).SelectMany(s => s.Rows).Select(r => $"{r.Question} {r.Target}"), new() { VocabularySize = new ModelSizes().Vocabulary });
        using var model = VisionLanguageModel.Create(new ModelSizes().ToConfig(backbone, tokenizer), tokenizer, seed: 1);
        model.Save(_folder.FullName, TorchSharp.torch.ScalarType.Float16);
        new FileInfo(Path.Combine(_folder.FullName, "model.safetensors")).Length.Should().BeInRange(7_700_000, 8_000_000);
    }
}
