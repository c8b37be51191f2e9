using CsCheck;
using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

public class Eva02Tests
{
    // Worked out by hand from Keys' cubic with a = -0.5, the kernel of PIL and of PyTorch's antialiased interpolation.
    [Fact]
    public void Shrinking_by_two_widens_the_kernel_and_cuts_it_at_the_edge()
    {
        double[] kernel = [0.8671875, 0.8671875, 0.2265625, -0.0703125]; // at 1/4, 1/4, 3/4 and 5/4 of the widened kernel
        var weights = AntialiasedBicubic.Weights(4, 2);
        for (var j = 0; j < 4; j++)
        {
            weights[j].Should().BeApproximately((float)(kernel[j] / kernel.Sum()), 1e-6f);
            weights[7 - j].Should().Be(weights[j], "the two ends mirror each other");
        }
    }

    [Fact]
    public void Growing_by_two_keeps_the_kernel()
    {
        // Sample 3 of 8 stands at 1.75 of 4: 1/4 before the centre of pixel 1 (1.5), and so on.
        double[] kernel = [-0.0703125, 0.8671875, 0.2265625, -0.0234375];
        AntialiasedBicubic.Weights(4, 8)[(3 * 4)..(4 * 4)].Zip(kernel).Should().OnlyContain(w => Math.Abs(w.First - w.Second) < 1e-6);
    }

    [Fact]
    public void The_same_size_is_the_identity()
        => AntialiasedBicubic.Weights(5, 5).Select((w, i) => i % 6 == 0 ? w - 1 : w).Should().OnlyContain(w => Math.Abs(w) < 1e-6);

    [Fact]
    public void Training_starts_from_positions_that_differ_by_row_and_by_column()
    {
        const int grid = 5, d = 32;
        using var scope = NewDisposeScope();
        var positions = full([1, 1 + grid * grid, d], double.NaN, dtype: ScalarType.Float32);
        Eva02Initial.Positions(grid)(positions, new Generator(1));
        positions[0, 0].abs().max().item<float>().Should().Be(0, "the class token is nowhere");
        var patches = positions[0, 1..].view(grid, grid, d);
        patches[1, 3, ..(d / 2)].Equals(patches[1, 0, ..(d / 2)]).Should().BeTrue("one half of the channels knows the row only");
        patches[1, 3, (d / 2)..].Equals(patches[4, 3, (d / 2)..]).Should().BeTrue("the other the column only");
        patches[2, 1, 0].item<float>().Should().BeApproximately(MathF.Sin(2), 1e-6f);
        patches[1, 2, d / 2].item<float>().Should().BeApproximately(MathF.Sin(2), 1e-6f);
        patches[2, 1, d / 4].item<float>().Should().BeApproximately(MathF.Cos(2), 1e-6f);
        cdist(positions[0, 1..], positions[0, 1..]).add(eye(grid * grid) * 100).min().item<float>().Should().BeGreaterThan(0.3f, "no two patches are alike");
    }

    [Fact]
    public void Weights_of_a_sample_sum_to_one()
        => Gen.Select(Gen.Int[1, 40], Gen.Int[1, 40]).Sample((from, to) =>
            AntialiasedBicubic.Weights(from, to).Chunk(from).All(row => Math.Abs(row.Sum() - 1) < 1e-5));

    [Fact]
    public void Positions_of_the_checkpoints_grid_are_its_own()
    {
        using var scope = NewDisposeScope();
        using var model = (Eva02)VisionTestModels.Create(VisionTestModels.Eva02);
        model.PositionEmbedding(8, 8).ShouldEqualBits(model.get_parameter("pos_embed")!, "own grid");
        model.Invoking(m => m.PositionEmbedding(0, 8)).Should().Throw<ArgumentOutOfRangeException>();
    }

    [Fact]
    public void Resampling_takes_rows_for_rows_and_keeps_the_class_token()
    {
        using var scope = NewDisposeScope();
        using var model = (Eva02)VisionTestModels.Create(VisionTestModels.Eva02);
        var own = model.get_parameter("pos_embed")!;
        var height = arange(8, dtype: ScalarType.Float32).reshape(8, 1).expand(8, 8).flatten();
        using (no_grad()) own[0, 1..].copy_(height.unsqueeze(1).expand(64, 96));

        var wide = model.PositionEmbedding(8, 20);
        wide[0, 0].ShouldEqualBits(own[0, 0], "class token");
        wide[0, 1..].ShouldEqual(arange(8, dtype: ScalarType.Float32).reshape(8, 1, 1).expand(8, 20, 96).reshape(160, 96), "columns added", 1e-6);
        var high = model.PositionEmbedding(16, 8)[0, 1..].reshape(16, 8, 96);
        high[7].ShouldEqual(full_like(high[7], 3.25f), "between rows 3 and 4, a quarter from 3", 1e-5);
    }

    [Fact]
    public void Rotary_tables_turn_patches_by_row_and_column()
    {
        using var scope = NewDisposeScope();
        using var tables = new Eva02RotaryTables(headWidth: 8, referenceGrid: 16);
        var angles = tables.Get(2, 4, CPU).angle();                       // 1 + 8 tokens, 2 bands a direction: 1 and 1/100
        angles.shape.Should().Equal(9, 1, 4);
        angles[0].abs().max().item<float>().Should().Be(0, "the class token is not turned");
        Angle(1 + 3, 2).Should().BeApproximately(Wrapped(3.0 / 4 * 16), 1e-5, "column 3 of 4 spans 16");
        Angle(1 + 3, 3).Should().BeApproximately(0.12, 1e-6);
        Angle(1 + 3, 0).Should().Be(0, "row 0");
        Angle(1 + 4, 0).Should().BeApproximately(Wrapped(1.0 / 2 * 16), 1e-5, "row 1 of 2 spans 16");
        Angle(1 + 4, 2).Should().Be(0, "column 0");

        double Angle(int token, int pair) => angles[token, 0, pair].item<float>();
        static double Wrapped(double angle) => Math.IEEERemainder(angle, 2 * Math.PI);
    }

    [Fact]
    public void Tables_in_use_outlive_the_cache()
    {
        using var scope = NewDisposeScope();
        Tensor first;
        using (var tables = new Eva02RotaryTables(headWidth: 8, referenceGrid: 16))
        {
            first = tables.Get(1, 1, CPU);
            for (var rows = 2; rows < 40; rows++) tables.Get(rows, 1, CPU).Dispose();
        }
        first.real.flatten().data<float>().ToArray().Should().Equal(1, 1, 1, 1, 1, 1, 1, 1);
    }

    [Fact]
    public void A_fused_matrix_is_the_three_one_below_the_other()
    {
        using var scope = NewDisposeScope();
        using var apart = VisionTestModels.Create(VisionTestModels.Eva02);
        var values = apart.named_parameters().ToDictionary(p => p.name, p => (Tensor)p.parameter);
        using var fused = (VisionTestModels.Eva02 with { FusedQkv = true }).Create(new Given(name => name switch
        {
            _ when name.EndsWith("qkv.weight", StringComparison.Ordinal) => cat([.. "qkv".Select(c => values[name.Replace("qkv", $"{c}_proj", StringComparison.Ordinal)])]),
            _ when name.EndsWith("q_bias", StringComparison.Ordinal) || name.EndsWith("v_bias", StringComparison.Ordinal) => values[name.Replace("_bias", "_proj.bias", StringComparison.Ordinal)],
            _ => values[name],
        }).Root);
        foreach (var (name, value) in values)
            if (name.EndsWith("proj.bias", StringComparison.Ordinal)) value.uniform_(-1, 1); // zeros would hide a bias added twice, or to the keys
        var images = VisionTestModels.Images(1, 64, 64);
        fused.named_parameters().Should().HaveCount(values.Count - 2 * VisionTestModels.Eva02.Depth);
        fused.Encode(images).ShouldEqual(apart.Encode(images), "fused", 1e-5);
    }

    [Fact]
    public void A_packed_mlp_gates_the_second_half_by_the_first()
    {
        using var scope = NewDisposeScope();
        using var mlp = new Eva02Mlp(new RandomParameters(3).Root, VisionTestModels.Eva02 with { PackedMlp = true });
        var values = mlp.named_parameters().ToDictionary(p => p.name, p => (Tensor)p.parameter);
        var x = randn(1, 5, 96);
        var y = x.matmul(values["fc1.weight"].transpose(0, 1)) + values["fc1.bias"];
        var (gate, value) = (y[.., .., ..250], y[.., .., 250..]);
        var expected = (gate * gate.sigmoid() * value).matmul(values["fc2.weight"].transpose(0, 1)) + values["fc2.bias"];
        mlp.forward(x).ShouldEqual(expected, "packed", 1e-5);
        values.Keys.Should().BeEquivalentTo("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias");
    }

    [Fact]
    public void Sizes_without_the_inner_norms_have_other_names()
    {
        using var scope = NewDisposeScope();
        using var model = VisionTestModels.Create(VisionTestModels.Eva02 with { AttentionNorm = false, FinalNorm = false });
        var names = model.named_parameters().Select(p => p.name).ToList();
        names.Should().Contain("fc_norm.weight").And.NotContain("norm.weight").And.NotContain("blocks.0.attn.norm.weight").And.Contain("blocks.0.mlp.norm.weight");
        var patches = model.Encode(VisionTestModels.Images(1, 64, 64));
        patches.mean([-1]).abs().max().item<float>().Should().BeGreaterThan(1e-3f, "nothing normalises the features, which would centre them");
    }

    [Theory]
    [InlineData(0), InlineData(-1), InlineData(5), InlineData(96)] // 96 heads are one wide, which no rotation fits
    public void Wrong_numbers_of_heads_are_refused(int heads)
        => (VisionTestModels.Eva02 with { Heads = heads }).Invoking(c => c.Create(new ShapeRecorder().Root))
            .Should().Throw<ArgumentException>().WithMessage($"*{heads} attention heads*multiple of 4*");

    [Fact]
    public void Use_after_disposal_is_an_error()
    {
        using var scope = NewDisposeScope();
        var model = VisionTestModels.Create(VisionTestModels.Eva02);
        model.Dispose();
        model.Invoking(m => m.Encode(VisionTestModels.Images(1, 64, 64))).Should().Throw<Exception>();
    }

    private sealed class Given(Func<string, Tensor> values) : ParameterSource
    {
        public override Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32)
        {
            var value = values(name);
            value.shape.Should().Equal(shape, name);
            return new Parameter(value.alias(), requires_grad: false);
        }
    }
}
