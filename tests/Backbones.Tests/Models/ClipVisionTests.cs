using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

public class ClipVisionTests
{
    [Fact]
    public void Selected_layer_gives_the_patches()
    {
        using var scope = NewDisposeScope();
        var images = VisionTestModels.Images(1, 64, 64);
        foreach (var layer in new[] { 0, 1, 3, -1, -2, -4 })
        {
            using var model = (ClipVision)VisionTestModels.Create(VisionTestModels.Clip with { SelectLayer = layer });
            model.Encode(images).ShouldEqualBits(model.HiddenState(images, layer)[.., 1..], $"layer {layer}");
            model.HiddenState(images, layer).ShouldEqualBits(model.HiddenState(images, layer < 0 ? layer + 4 : layer - 4), "from either end");
        }
    }

    [Theory]
    [InlineData(4), InlineData(-5), InlineData(int.MinValue), InlineData(int.MaxValue)]
    public void Layers_that_do_not_exist_are_refused(int layer)
    {
        using var model = (ClipVision)VisionTestModels.Create(VisionTestModels.Clip);
        using var images = VisionTestModels.Images(1, 64, 64);
        model.Invoking(m => m.HiddenState(images, layer)).Should().Throw<ArgumentOutOfRangeException>().WithMessage("*-4 to 3*");
        (VisionTestModels.Clip with { SelectLayer = layer }).Invoking(c => c.Create(new ShapeRecorder().Root))
            .Should().Throw<ArgumentException>().WithMessage($"*{layer}*-4 to 3*");
    }

    [Fact]
    public void Activations_differ()
    {
        using var scope = NewDisposeScope();
        var x = randn(1, 5, 96);
        using var quick = Mlp(ClipActivation.QuickGelu);
        using var exact = Mlp(ClipActivation.Gelu);
        var values = quick.named_parameters().ToDictionary(p => p.name, p => (Tensor)p.parameter);
        var y = x.matmul(values["fc1.weight"].transpose(0, 1)) + values["fc1.bias"];
        quick.forward(x).ShouldEqual(Down(y / (1 + (-1.702 * y).exp())), "x sigmoid(1.702 x)", 1e-5);
        exact.forward(x).ShouldEqual(Down(y * 0.5 * (1 + (y / Math.Sqrt(2)).erf())), "exact GELU", 1e-5);

        Tensor Down(Tensor t) => t.matmul(values["fc2.weight"].transpose(0, 1)) + values["fc2.bias"];
        static ClipMlp Mlp(ClipActivation activation) => new(new RandomParameters(3).Root, VisionTestModels.Clip with { Activation = activation });
    }

    [Fact]
    public void Positions_of_another_grid_are_interpolated()
    {
        using var scope = NewDisposeScope();
        using var model = new ClipEmbeddings(new RandomParameters(3).Root, VisionTestModels.Clip);
        var own = model.get_parameter("position_embedding.weight")!;
        model.Positions(8, 8).ShouldEqualBits(own, "own grid");

        // Twice as fine, sample 7 stands a quarter past pixel 3: Keys' cubic with a = -0.75, at 5/4, 1/4, 3/4 and 7/4.
        double[] kernel = [-0.10546875, 0.87890625, 0.26171875, -0.03515625];
        var grid = own[1..].reshape(8, 8, 96);
        var expected = zeros(96);
        for (var i = 0; i < 4; i++)
            for (var j = 0; j < 4; j++)
                expected += grid[2 + i, 2 + j] * kernel[i] * kernel[j];
        var fine = model.Positions(16, 16);
        fine[1..].reshape(16, 16, 96)[7, 7].ShouldEqual(expected, "interpolated", 1e-5);
        fine[0].ShouldEqualBits(own[0], "class token");
    }

    [Fact]
    public void Old_names_are_asked_for_with_their_prefix()
    {
        var recorder = new ShapeRecorder();
        using var model = (VisionTestModels.Clip with { OldNames = true }).Create(recorder.Root["vision_encoder"]);
        recorder.Shapes.Keys.Should().OnlyContain(name => name.StartsWith("vision_encoder.vision_model.", StringComparison.Ordinal));
        model.named_parameters().Select(p => "vision_encoder.vision_model." + p.name).Should().BeEquivalentTo(recorder.Shapes.Keys);
    }
}
