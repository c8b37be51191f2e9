using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

public class ConnectorTests
{
    private static readonly ConnectorConfig Config = new(FeatureWidth: 96, HiddenSize: 80);

    [Fact]
    public void Linear_gelu_linear_and_a_norm_where_there_is_one()
    {
        using var scope = NewDisposeScope();
        var x = randn(2, 7, 96);
        using var plain = Create(Config);
        using var normed = Create(Config with { Norm = true });
        var values = normed.named_parameters().ToDictionary(p => p.name, p => (Tensor)p.parameter);
        foreach (var value in values.Values) value.uniform_(-0.2, 0.2);
        foreach (var (name, parameter) in plain.named_parameters()) parameter.copy_(values[name]);

        var y = x.matmul(values["0.weight"].transpose(0, 1)) + values["0.bias"];
        y = y * 0.5 * (1 + (y / Math.Sqrt(2)).erf());
        y = y.matmul(values["2.weight"].transpose(0, 1)) + values["2.bias"];
        plain.forward(x).ShouldEqual(y, "without a norm", 1e-5);
        var (mean, variance) = (y.mean([-1], keepdim: true), y.var(-1, unbiased: false, keepdim: true));
        normed.forward(x).ShouldEqual((y - mean) / (variance + 1e-5).sqrt() * values["3.weight"] + values["3.bias"], "with a norm", 1e-5);
        values.Keys.Should().BeEquivalentTo("0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias");
        plain.named_parameters().Select(p => p.name).Should().BeEquivalentTo("0.weight", "0.bias", "2.weight", "2.bias");
    }

    [Fact]
    public void Batch_gives_the_bits_of_single_images()
    {
        using var scope = NewDisposeScope();
        using var connector = Create(Config);
        var x = randn(5, 7, 96);
        var batch = connector.forward(x);
        for (var i = 0; i < 5; i++) batch[i].ShouldEqualBits(connector.forward(x.narrow(0, i, 1))[0], $"image {i}");
    }

    [Fact]
    public void It_learns()
    {
        using var scope = NewDisposeScope();
        using var connector = Create(Config with { Norm = true });
        foreach (var parameter in connector.parameters()) parameter.requires_grad = true;
        var target = randn(2, 7, 80);
        (connector.forward(randn(2, 7, 96)) - target).square().mean().backward();
        connector.named_parameters().Should().OnlyContain(p => VisionTestModels.HasLearned(p.parameter));
    }

    [Fact]
    public void It_computes_in_the_precision_of_its_weights()
    {
        using var scope = NewDisposeScope();
        using var exact = Create(Config);
        using var rounded = Create(Config, ScalarType.BFloat16);
        var x = randn(2, 7, 96);
        rounded.forward(x).dtype.Should().Be(ScalarType.BFloat16);
        rounded.forward(x).ShouldEqual(exact.forward(x), "bfloat16", 0.03);
    }

    [Fact]
    public void Features_of_another_width_are_refused()
    {
        using var scope = NewDisposeScope();
        using var connector = Create(Config);
        connector.Invoking(c => c.forward(zeros(1, 7, 95))).Should().Throw<ArgumentException>().WithMessage("*1, 7, 95*96*");
        connector.Invoking(c => c.forward(zeros(7, 96))).Should().Throw<ArgumentException>();
    }

    [Fact]
    public void Nothing_is_left_behind()
    {
        using var connector = Create(Config);
        using var x = randn(3, 7, 96);
        connector.forward(x).Dispose();
        var before = DisposeScopeManager.Statistics.TensorStatistics.ThreadTotalLiveCount;
        for (var i = 0; i < 20; i++) connector.forward(x).Dispose();
        DisposeScopeManager.Statistics.TensorStatistics.ThreadTotalLiveCount.Should().Be(before);
    }

    [Fact]
    public void Sizes_are_read_from_the_tensors()
    {
        ConnectorConfig.Resolve(Tensors(("c.0.weight", [80, 96])), "c.").Should().Be(Config);
        ConnectorConfig.Resolve(Tensors(("c.0.weight", [80, 96]), ("c.3.weight", [80])), "c.").Norm.Should().BeTrue();
        Resolving().Should().Throw<InvalidDataException>().WithMessage("*'c.0.weight' is missing*");
        Resolving(("c.0.weight", [96])).Should().Throw<InvalidDataException>().WithMessage("*[96]*hidden size, feature width*");
        Resolving(("c.0.weight", [0, 96])).Should().Throw<InvalidDataException>();
        Resolving(("c.0.weight", [80, long.MaxValue])).Should().Throw<InvalidDataException>();

        static Action Resolving(params (string, long[])[] tensors) => () => ConnectorConfig.Resolve(Tensors(tensors), "c.");
    }

    private static Connector Create(ConnectorConfig config, ScalarType? dtype = null) => new(config, new RandomParameters(3, dtype).Root);

    private static Dictionary<string, TensorEntry> Tensors(params (string Name, long[] Shape)[] tensors)
        => tensors.ToDictionary(t => t.Name, t => new TensorEntry(t.Name, ScalarType.Float32, t.Shape));
}
