using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

namespace MambaVL.Tests.Models;

/// <summary>The products that a GPU computes, padded and joined, are those of the checkpoint's own matrices.</summary>
public class Eva02PaddingTests
{
    private static readonly Eva02Config Config = VisionTestModels.Eva02; // an inner width of 250, padded to 256

    [Theory]
    [InlineData(false), InlineData(true)]
    public void ThePaddedMlpIsTheMlp(bool packedMlp)
    {
        using var scope = NewDisposeScope();
        using var mlp = new Eva02Mlp(new RandomParameters(3).Root, Config with { PackedMlp = packedMlp });
        Disturb(mlp);
        var before = Values(mlp);
        var x = randn(2, 5, 96);
        var expected = mlp.forward(x);

        var (first, firstBias, second, weight, bias) = mlp.Padded();
        var padded = packedMlp ? 250 : 256;
        first.shape.Should().Equal(2 * padded, 96);
        second.shape.Should().Equal(96, padded);
        var halves = F.linear(x, first, firstBias).chunk(2, -1);
        var y = F.silu(halves[0]) * halves[1];
        y[.., .., 250..].eq(0).all().item<bool>().Should().BeTrue("the padding is zero before the norm");
        if (weight is not null) y = F.pad(F.layer_norm(y[.., .., ..250], [250], weight[..250], bias![..250], Eva02Config.NormEps), [0, 6]);
        F.linear(y, second, mlp.get_parameter("fc2.bias")).ShouldEqual(expected, "padded", 1e-5);

        mlp.forward(x).ShouldEqual(expected, "the operations still run", 1e-6);
        foreach (var (name, value) in Values(mlp)) value.ShouldEqualBits(before[name], name);
    }

    [Theory]
    [InlineData(false), InlineData(true)]
    public void TheJoinedProjectionIsTheThree(bool fusedQkv)
    {
        using var scope = NewDisposeScope();
        using var attention = new Eva02Attention(new RandomParameters(4).Root, Config with { FusedQkv = fusedQkv });
        Disturb(attention);
        var x = randn(2, 5, 96);
        var expected = Projection();
        F.linear(x, attention.Weights(), attention.Biases()).ShouldEqual(expected, "joined", 1e-5);
        F.linear(x, attention.Weights(), attention.Biases()).ShouldEqual(expected, "joined once more", 1e-5);

        foreach (var p in attention.parameters()) p.requires_grad = true;
        F.linear(x, attention.Weights(), attention.Biases()).square().sum().backward();
        var joined = Gradients();
        foreach (var p in attention.parameters()) p.grad?.zero_();
        Projection().square().sum().backward();
        foreach (var (name, gradient) in Gradients()) joined[name].ShouldEqual(gradient, name, 1e-5);
        joined.Should().HaveCount(fusedQkv ? 3 : 5);
        attention.parameters().Should().OnlyContain(p => p.is_contiguous());

        Tensor Projection()
        {
            if (fusedQkv) return F.linear(x, P("qkv.weight"), cat([P("q_bias"), zeros(96), P("v_bias")]));
            return cat([F.linear(x, P("q_proj.weight"), P("q_proj.bias")), F.linear(x, P("k_proj.weight")), F.linear(x, P("v_proj.weight"), P("v_proj.bias"))], -1);
        }

        Tensor P(string name) => attention.get_parameter(name)!;

        Dictionary<string, Tensor> Gradients() => attention.named_parameters().Where(p => p.parameter.grad is not null).ToDictionary(p => p.name, p => p.parameter.grad!.clone());
    }

    [Theory]
    [InlineData(8, true, 64, 64), InlineData(14, true, 28, 70), InlineData(14, false, 42, 14), InlineData(5, true, 15, 20)]
    public void TheProductOverPatchesIsTheConvolution(int patchSize, bool hasBias, int height, int width)
    {
        using var scope = NewDisposeScope();
        using var projection = new PatchProjection(new RandomParameters(5).Root, patchSize, 24, hasBias);
        Disturb(projection);
        var images = VisionTestModels.Images(2, height, width);
        var expected = projection.forward(images);
        projection.AsProduct(images).ShouldEqual(expected, "frozen", 1e-5);
        projection.forward(images).ShouldEqual(expected, "the convolution with the packed weight", 1e-6);

        foreach (var p in projection.parameters()) p.requires_grad = true;
        projection.AsProduct(images).square().sum().backward();
        var gradients = projection.parameters().Select(p => p.grad!.clone()).ToArray();
        foreach (var p in projection.parameters()) p.grad!.zero_();
        projection.forward(images).square().sum().backward();
        foreach (var (p, gradient) in projection.parameters().Zip(gradients)) gradient.ShouldEqual(p.grad!, "a gradient", 1e-4);
    }

    [Fact]
    public void PackedParametersAreSavedAsTheyWere()
    {
        using var scope = NewDisposeScope();
        using var mlp = new Eva02Mlp(new RandomParameters(3, ScalarType.BFloat16).Root, Config);
        Disturb(mlp);
        var before = Saved();
        mlp.Padded();
        mlp.get_parameter("fc2.weight")!.is_contiguous().Should().BeFalse("it lies in the padded matrix");
        Saved().Should().Equal(before);

        byte[] Saved()
        {
            using var stream = new MemoryStream();
            SafetensorsWriter.Write(stream, mlp.named_parameters().ToDictionary(p => p.name, p => (Tensor)p.parameter));
            return stream.ToArray();
        }
    }

    private static Dictionary<string, Tensor> Values(nn.Module module) => module.named_parameters().ToDictionary(p => p.name, p => p.parameter.clone());

    // First values have zeros and ones where a mistake would hide.
    private static void Disturb(nn.Module module)
    {
        using var noGrad = no_grad();
        foreach (var p in module.parameters()) p.add_(randn_like(p) * 0.2);
    }
}
