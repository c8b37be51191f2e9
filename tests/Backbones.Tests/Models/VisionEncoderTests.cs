using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

public class VisionEncoderTests
{
    public static TheoryData<VisionConfig> All => [.. VisionTestModels.All];

    [Theory, MemberData(nameof(All))]
    public void Module_has_the_parameters_that_it_asks_for(VisionConfig config)
    {
        var recorder = new ShapeRecorder();
        using var recorded = config.Create(recorder.Root);
        using var model = VisionTestModels.Create(config);
        model.named_parameters().ToDictionary(p => p.name, p => string.Join(",", p.parameter.shape))
            .Should().BeEquivalentTo(recorder.Shapes.ToDictionary(s => s.Key, s => string.Join(",", s.Value)));
    }

    [Theory, MemberData(nameof(All))]
    public void One_vector_for_each_patch_at_any_size(VisionConfig config)
    {
        using var scope = NewDisposeScope();
        using var model = VisionTestModels.Create(config);
        foreach (var (rows, cols) in new[] { (8, 8), (3, 3), (2, 11), (13, 5), (1, 1) })
        {
            var patches = model.Encode(VisionTestModels.Images(2, rows * config.PatchSize, cols * config.PatchSize));
            patches.shape.Should().Equal(2, rows * cols, model.Width);
            isfinite(patches).all().item<bool>().Should().BeTrue();
        }
    }

    [Theory, MemberData(nameof(All))]
    public void Batch_gives_the_bits_of_single_images(VisionConfig config)
    {
        using var scope = NewDisposeScope();
        foreach (ScalarType? dtype in new ScalarType?[] { null, ScalarType.BFloat16 })
        {
            using var model = VisionTestModels.Create(config, dtype);
            var images = VisionTestModels.Images(5, config.ImageSize, config.ImageSize);
            var batch = model.Encode(images);
            for (var i = 0; i < 5; i++) batch[i].ShouldEqualBits(model.Encode(images.narrow(0, i, 1))[0], $"image {i} in {dtype}");
        }
    }

    [Theory, MemberData(nameof(All))]
    public void Pixel_values_of_any_floating_type_are_taken(VisionConfig config)
    {
        using var scope = NewDisposeScope();
        using var model = VisionTestModels.Create(config);
        var images = VisionTestModels.Images(1, config.ImageSize, config.ImageSize);
        model.Encode(images.to(ScalarType.Float64)).ShouldEqual(model.Encode(images), "float64");
    }

    [Theory, MemberData(nameof(All))]
    public void Wrong_pixel_values_are_named(VisionConfig config)
    {
        using var scope = NewDisposeScope();
        using var model = VisionTestModels.Create(config);
        var size = config.ImageSize;
        foreach (var shape in new long[][] { [1, 3, size + 1, size], [1, 3, size, size + 1], [1, 1, size, size], [3, size, size], [0, 3, size, size], [1, 3, 0, size] })
            model.Invoking(m => m.Encode(zeros(shape))).Should().Throw<ArgumentException>()
                .WithMessage($"*{string.Join(", ", shape)}*[b, 3, h, w]*patch size {config.PatchSize}*");
        model.Invoking(m => m.Encode(zeros([1, 3, size, size], dtype: ScalarType.Byte))).Should().Throw<ArgumentException>().WithMessage("*Byte*floating-point*");
        model.Invoking(m => m.Encode(null!)).Should().Throw<ArgumentNullException>();
    }

    [Theory, MemberData(nameof(All))]
    public void Encoding_leaves_nothing_behind(VisionConfig config)
    {
        using var model = VisionTestModels.Create(config);
        using var images = VisionTestModels.Images(2, config.ImageSize + config.PatchSize, config.ImageSize);
        model.Encode(images).Dispose();
        var before = DisposeScopeManager.Statistics.TensorStatistics.ThreadTotalLiveCount;
        for (var i = 0; i < 20; i++) model.Encode(images).Dispose();
        DisposeScopeManager.Statistics.TensorStatistics.ThreadTotalLiveCount.Should().Be(before);
    }

    [Theory, MemberData(nameof(All))]
    public void Result_belongs_to_the_callers_scope(VisionConfig config)
    {
        using var model = VisionTestModels.Create(config);
        Tensor patches;
        using (NewDisposeScope()) patches = model.Encode(VisionTestModels.Images(1, config.ImageSize, config.ImageSize));
        patches.IsInvalid.Should().BeTrue("the result belongs to the caller's scope, as every tensor does");
    }

    [Theory, MemberData(nameof(All))]
    public void Threads_may_share_an_encoder(VisionConfig config)
    {
        using var model = VisionTestModels.Create(config);
        // More grids than the rotary tables that are kept, so that tables are dropped while others use them.
        var grids = Enumerable.Range(1, 24).ToArray();
        var alone = grids.Select(Sum).ToArray();
        Parallel.For(0, 4 * grids.Length, new ParallelOptions { MaxDegreeOfParallelism = 4 },
            i => Sum(grids[i % grids.Length]).Should().Be(alone[i % grids.Length]));

        double Sum(int rows)
        {
            using var scope = NewDisposeScope();
            return model.Encode(VisionTestModels.Images(1, rows * config.PatchSize, config.PatchSize)).to(ScalarType.Float64).sum().item<double>();
        }
    }

    [Fact]
    public void Tables_made_while_inferring_serve_training()
    {
        using var scope = NewDisposeScope();
        using var model = VisionTestModels.Create(VisionTestModels.Eva02);
        var images = VisionTestModels.Images(1, 64, 64);
        using (inference_mode()) model.Encode(images).Dispose();
        foreach (var parameter in model.parameters()) parameter.requires_grad = true;
        model.Encode(images).square().mean().backward();
        model.named_parameters().Should().OnlyContain(p => VisionTestModels.HasLearned(p.parameter));
    }

    [Theory, MemberData(nameof(All))]
    public void Impossible_sizes_are_refused(VisionConfig config)
    {
        foreach (var wrong in new[] { config with { PatchSize = 0 }, config with { PatchSize = int.MaxValue }, config with { ImageSize = -1 },
            config with { ImageSize = config.ImageSize + 1 }, config with { ImageSize = 1 << 30 } })
            wrong.Invoking(c => c.Create(new ShapeRecorder().Root)).Should().Throw<ArgumentException>().WithMessage("*expected*");
    }
}
