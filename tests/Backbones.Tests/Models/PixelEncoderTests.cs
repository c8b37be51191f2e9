using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

public class PixelEncoderTests
{
    [Fact]
    public void A_feature_is_the_patchs_pixels_row_by_row_colours_together()
    {
        using var scope = NewDisposeScope();
        using var encoder = new PixelEncoder(new() { PatchSize = 2, ImageSize = 4 });
        var images = arange(2 * 3 * 4 * 6, dtype: ScalarType.Float32).reshape(2, 3, 4, 6);
        var patches = encoder.Encode(images);
        patches.shape.Should().Equal(2, 6, 12);
        for (var image = 0; image < 2; image++)
            for (var patch = 0; patch < 6; patch++)
                for (var i = 0; i < 12; i++)
                {
                    var (row, col, colour) = (patch / 3 * 2 + i / 6, patch % 3 * 2 + i / 3 % 2, i % 3);
                    patches[image, patch, i].item<float>().Should().Be(images[image, colour, row, col].item<float>());
                }
    }

    [Fact]
    public void It_has_no_parameters_and_the_width_of_a_patch()
    {
        using var encoder = VisionTestModels.Create(VisionTestModels.Pixels);
        encoder.parameters().Should().BeEmpty();
        encoder.Width.Should().Be(3 * VisionTestModels.Pixels.PatchSize * VisionTestModels.Pixels.PatchSize);
    }
}
