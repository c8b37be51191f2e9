using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

[Trait("Category", "Parity")]
public class VisionParityTests
{
    [SkippableFact]
    public void Eva02_forward_features() => WithEva02((model, expected) =>
        model.ForwardFeatures(expected("pixel_values")).ShouldEqual(expected("forward_features"), "forward_features"));

    [SkippableFact]
    public void Eva02_at_a_larger_size() => WithEva02((model, expected) =>
        model.ForwardFeatures(expected("pixel_values_larger")).ShouldEqual(expected("forward_features_larger"), "forward_features_larger"));

    [SkippableFact]
    public void Eva02_positions_at_a_larger_size() => WithEva02((model, expected) =>
    {
        var grid = expected("pixel_values_larger").shape[2..].Select(pixels => (int)pixels / model.PatchSize).ToArray();
        model.PositionEmbedding(grid[0], grid[1]).ShouldEqual(expected("pos_embed_larger"), "pos_embed_larger");
    });

    [SkippableFact]
    public void Eva02_patches_are_the_features_without_the_class_token() => WithEva02((model, expected) =>
        model.Encode(expected("pixel_values")).ShouldEqual(expected("forward_features")[.., 1..], "patches"));

    [SkippableFact]
    public void Clip_hidden_states() => WithModel<ClipVision>("clip", (model, expected) =>
    {
        model.HiddenState(expected("pixel_values"), -2).ShouldEqual(expected("hidden.-2"), "hidden.-2");
        model.HiddenState(expected("pixel_values"), -1).ShouldEqual(expected("last_hidden_state"), "last_hidden_state");
        model.Encode(expected("pixel_values")).ShouldEqual(expected("hidden.-2")[.., 1..], "patches");
    });

    [SkippableTheory]
    [InlineData("mambavl")]
    [InlineData("pythiavl")]
    public void Patch_embeddings_of_every_image(string folder)
    {
        using var noGrad = no_grad();
        using var scope = NewDisposeScope();
        using var checkpoint = Checkpoint.Open(Fixtures.Path(folder, "model.safetensors"));
        using var expected = Checkpoint.Open(Fixtures.Path(folder, "expected.safetensors"));
        using var images = Checkpoint.Open(Fixtures.Path("images", "expected.safetensors"));
        var source = new FixtureParameters(checkpoint, ScalarType.Float32).Root;
        using var encoder = VisionConfig.Resolve(VisionTestModels.Config(folder), checkpoint.Tensors).Create(source["vision_encoder"]);
        using var connector = new Connector(ConnectorConfig.Resolve(checkpoint.Tensors), source["vision_embed_tokens"]);

        var cases = 0;
        foreach (var key in expected.Tensors.Keys.Where(key => key.EndsWith(".patch_embeddings", StringComparison.Ordinal)))
        {
            var image = string.Join('.', key.Split('.')[..^2]); // before the task and the kind; it may have dots itself
            var pixels = images.ReadToDevice($"{image}.pixel_values.{encoder.ImageSize}").unsqueeze(0);
            connector.forward(encoder.Encode(pixels))[0].ShouldEqual(expected.ReadToDevice(key), key);
            cases++;
        }
        cases.Should().BePositive();
    }

    [SkippableTheory]
    [InlineData("eva02", "")]
    [InlineData("clip", "")]
    [InlineData("mambavl", "vision_encoder.")]
    [InlineData("pythiavl", "vision_encoder.")]
    public void Names_and_shapes_are_the_checkpoints(string folder, string prefix)
    {
        using var checkpoint = Checkpoint.Open(Fixtures.Path(folder, "model.safetensors"));
        var recorder = new ShapeRecorder();
        using var model = VisionConfig.Resolve(VisionTestModels.Config(folder), checkpoint.Tensors, prefix).Create(recorder.Root);

        var stored = checkpoint.Tensors.Values.Where(t => t.Name.StartsWith(prefix, StringComparison.Ordinal))
            .ToDictionary(t => t.Name[prefix.Length..], t => Shown(t.Shape));
        recorder.Shapes.ToDictionary(s => s.Key, s => Shown(s.Value)).Should().BeEquivalentTo(stored);
        model.named_parameters().ToDictionary(p => p.name, p => Shown(p.parameter.shape)).Should().BeEquivalentTo(stored);
    }

    [SkippableTheory]
    [InlineData("mambavl")]
    [InlineData("pythiavl")]
    public void Names_of_the_connector_are_the_checkpoints(string folder)
    {
        const string prefix = "vision_embed_tokens.";
        using var checkpoint = Checkpoint.Open(Fixtures.Path(folder, "model.safetensors"));
        var recorder = new ShapeRecorder();
        using var model = new Connector(ConnectorConfig.Resolve(checkpoint.Tensors), recorder.Root);

        var stored = checkpoint.Tensors.Values.Where(t => t.Name.StartsWith(prefix, StringComparison.Ordinal))
            .ToDictionary(t => t.Name[prefix.Length..], t => Shown(t.Shape));
        recorder.Shapes.ToDictionary(s => s.Key, s => Shown(s.Value)).Should().BeEquivalentTo(stored);
        model.named_parameters().ToDictionary(p => p.name, p => Shown(p.parameter.shape)).Should().BeEquivalentTo(stored);
    }

    [SkippableTheory]
    [InlineData("eva02")]
    [InlineData("clip")]
    public void Bfloat16_stays_close(string folder)
    {
        using var noGrad = no_grad();
        using var scope = NewDisposeScope();
        using var checkpoint = Checkpoint.Open(Fixtures.Path(folder, "model.safetensors"));
        using var expected = Checkpoint.Open(Fixtures.Path(folder, "expected.safetensors"));
        var config = VisionConfig.Resolve(VisionTestModels.Config(folder), checkpoint.Tensors, prefix: "");
        using var exact = config.Create(new FixtureParameters(checkpoint).Root);
        using var model = config.Create(new FixtureParameters(checkpoint, ScalarType.BFloat16).Root);

        var pixels = expected.ReadToDevice("pixel_values");
        var patches = model.Encode(pixels);
        patches.dtype.Should().Be(ScalarType.BFloat16);
        // bfloat16 has 8 significant bits: one rounding is 0.4%; a few of them in each of a few layers add up.
        patches.ShouldEqual(exact.Encode(pixels), folder, tolerance: 0.03);
    }

    private static void WithEva02(Action<Eva02, Func<string, Tensor>> test) => WithModel("eva02", test);

    private static void WithModel<T>(string folder, Action<T, Func<string, Tensor>> test) where T : VisionEncoder
    {
        using var noGrad = no_grad();
        using var scope = NewDisposeScope();
        using var checkpoint = Checkpoint.Open(Fixtures.Path(folder, "model.safetensors"));
        using var expected = Checkpoint.Open(Fixtures.Path(folder, "expected.safetensors"));
        using var model = VisionConfig.Resolve(VisionTestModels.Config(folder), checkpoint.Tensors, prefix: "")
            .Create(new FixtureParameters(checkpoint).Root);
        test((T)model, name => expected.ReadToDevice(name));
    }

    private static string Shown(IEnumerable<long> shape) => string.Join(",", shape);
}
