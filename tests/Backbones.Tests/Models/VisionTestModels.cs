using System.Text.Json;
using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

/// <summary>Parameters straight from a fixture's file, on the device of the tests.</summary>
internal sealed class FixtureParameters(Checkpoint checkpoint, ScalarType? dtype = null) : ParameterSource
{
    public override Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32)
    {
        var values = checkpoint.Read(name, dtype, TestDevice.Current);
        values.shape.Should().Equal(shape, "that is what the model asks for {0}", name);
        return new Parameter(values, requires_grad: false);
    }
}

/// <summary>Small models and what tests ask of them.</summary>
internal static class VisionTestModels
{
    /// <summary>Wider than the fixtures, so that matrix products take their fast paths.</summary>
    public static readonly Eva02Config Eva02 = new()
    {
        PatchSize = 8, ImageSize = 64, Depth = 2, Width = 96, Heads = 6, MlpWidth = 250,
    };

    public static readonly ClipVisionConfig Clip = new()
    {
        PatchSize = 8, ImageSize = 64, Depth = 3, Width = 96, Heads = 6, MlpWidth = 256,
    };

    public static readonly PixelConfig Pixels = new() { PatchSize = 8, ImageSize = 64 };

    public static readonly VisionConfig[] All = [Eva02, Clip, Pixels];

    public static Tensor Images(int count, int height, int width, int seed = 1)
    {
        using var generator = new Generator((ulong)seed);
        return randn([count, 3, height, width], generator: generator);
    }

    public static VisionEncoder Create(VisionConfig config, ScalarType? dtype = null) => config.Create(new RandomParameters(7, dtype).Root);

    public static JsonElement Config(params string[] folder)
        => JsonDocument.Parse(File.ReadAllText(Path.Combine(Fixtures.Path(folder), "config.json"))).RootElement;

    /// <summary>The greatest difference is at most the tolerance times the greatest expected number.</summary>
    public static void ShouldEqual(this Tensor actual, Tensor expected, string what, double tolerance = 2e-4)
    {
        actual.shape.Should().Equal(expected.shape, what);
        using var scope = NewDisposeScope();
        var difference = (actual.to(ScalarType.Float64) - expected.to(ScalarType.Float64)).abs().max().item<double>();
        var limit = tolerance * expected.abs().max().to(ScalarType.Float64).item<double>();
        difference.Should().BeLessThanOrEqualTo(limit, "{0}: the greatest difference is {1:G4}, the tolerance {2:G4}", what, difference, limit);
    }

    public static void ShouldEqualBits(this Tensor actual, Tensor expected, string what)
    {
        actual.shape.Should().Equal(expected.shape, what);
        (actual == expected).all().item<bool>().Should().BeTrue("{0}: bit for bit", what);
    }

    public static bool HasLearned(Tensor parameter) => parameter.grad is { } gradient && gradient.abs().max().item<float>() > 0;
}
