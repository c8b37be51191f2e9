using MambaVL.Checkpoints;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Checkpoints;

public class CheckpointParametersTests : IDisposable
{
    private static readonly Dictionary<string, long[]> Tiny = new() { ["norm.weight"] = [3], ["head.weight"] = [2, 3] };

    private readonly TemporaryFolder _folder = new();
    private readonly DisposeScope _scope = NewDisposeScope();

    public void Dispose()
    {
        _scope.Dispose();
        _folder.Dispose();
    }

    [Fact]
    public void AModelGetsItsParameters()
    {
        using var checkpoint = Save(("norm.weight", arange(3, dtype: ScalarType.Float16)), ("head.weight", ones(2, 3)));
        var p = new CheckpointParameters(checkpoint, Tiny).Root;
        var norm = p["norm"].Take("weight", [3], Never);
        var head = p["head"].Take("weight", [2, 3], Never);
        checkpoint.Dispose();
        (norm.dtype, head.dtype, norm.requires_grad).Should().Be((ScalarType.Float32, ScalarType.Float32, false));
        norm.data<float>().ToArray().Should().Equal(0, 1, 2);
        head.sum().item<float>().Should().Be(6);
    }

    [Fact]
    public void SomeParametersStayInFloat32()
    {
        using var checkpoint = Save(("norm.weight", ones(3)), ("head.weight", ones(2, 3)));
        var source = new CheckpointParameters(checkpoint, Tiny, dtype: ScalarType.BFloat16);
        source.Take("norm.weight", [3], Never, keepFloat32: true).dtype.Should().Be(ScalarType.Float32);
        source.Take("head.weight", [2, 3], Never, keepFloat32: false).dtype.Should().Be(ScalarType.BFloat16);
    }

    [SkippableFact]
    public void ADisposedParameterGivesTheMappingBack()
    {
        Skip.IfNot(OperatingSystem.IsLinux());
        using var checkpoint = Save(("w", ones(100_000)));
        var w = new CheckpointParameters(checkpoint, new Dictionary<string, long[]> { ["w"] = [100_000] }).Take("w", [100_000], Never, false);
        Maps().Should().Be(1);
        w.Dispose();
        Maps().Should().Be(0);

        int Maps() => File.ReadLines("/proc/self/maps").Count(l => l.Contains(_folder.Root));
    }

    [Fact]
    public void AllThatIsWrongIsInOneError()
    {
        using var checkpoint = Save(("norm.weight", ones(4)), ("extra.1", ones(2)), ("extra.2", ones(1, 1)));
        FluentActions.Invoking(() => new CheckpointParameters(checkpoint, Tiny)).Should().Throw<CheckpointException>().Which.Message.Should().Be(
            $"""
            {_folder.Path("model.safetensors")}: does not fit the model: of 2 parameters 1 are missing and 1 misshapen; of 3 tensors 2 are unexpected.
            Missing:
              head.weight [2, 3]
            Misshapen:
              norm.weight F32 [4], expected floating-point [3]
            Unexpected:
              extra.1 F32 [2]
              extra.2 F32 [1, 1]
            """);
    }

    [Fact]
    public void ALongListIsCut()
    {
        using var checkpoint = Save();
        var shapes = Enumerable.Range(0, 500).ToDictionary(i => $"layer.{i}", _ => new long[] { 2 });
        var message = FluentActions.Invoking(() => new CheckpointParameters(checkpoint, shapes)).Should().Throw<CheckpointException>().Which.Message;
        message.Should().Contain("500 are missing").And.EndWith("and 480 more");
        message.Split('\n').Should().HaveCount(23);
    }

    [Fact]
    public void IntegersAreNoParameters()
    {
        using var checkpoint = Save(("norm.weight", ones(3, dtype: ScalarType.Int64)), ("head.weight", ones(2, 3)));
        FluentActions.Invoking(() => new CheckpointParameters(checkpoint, Tiny)).Should().Throw<CheckpointException>().WithMessage("*norm.weight I64 ?3?, expected floating-point*");
    }

    [Theory]
    [InlineData("backbone.embedding.weight")]
    [InlineData("backbone.embeddings.weight")]
    [InlineData("lm_head.weight")]
    [InlineData("backbone.embedding.weight", "lm_head.weight")]
    [InlineData("backbone.embeddings.weight", "lm_head.weight")]
    public void ATiedParameterHasManyNames(params string[] inFile)
    {
        using var checkpoint = Save([.. inFile.Select(n => (n, arange(6f).reshape(2, 3)))]);
        foreach (var asked in new[] { "backbone.embedding.weight", "backbone.embeddings.weight" })
        {
            var source = new CheckpointParameters(checkpoint, new Dictionary<string, long[]> { [asked] = [2, 3] }, CheckpointNames.Mamba);
            source.Take(asked, [2, 3], Never, false).sum().item<float>().Should().Be(15);
        }
    }

    [Fact]
    public void TiedTensorsMustBeEqual()
    {
        Dictionary<string, long[]> shapes = new() { ["backbone.embedding.weight"] = [2, 3] };
        using (var checkpoint = Save(("backbone.embedding.weight", ones(2, 3)), ("lm_head.weight", zeros(2, 3))))
            Refused(checkpoint, "*Tied, but not equal:*lm_head.weight and backbone.embedding.weight*");
        using (var checkpoint = Save(("backbone.embedding.weight", ones(2, 3)), ("lm_head.weight", ones(3, 3))))
            Refused(checkpoint, "*Misshapen:*lm_head.weight F32 ?3, 3?*");

        void Refused(Checkpoint checkpoint, string message)
            => FluentActions.Invoking(() => new CheckpointParameters(checkpoint, shapes, CheckpointNames.Mamba)).Should().Throw<CheckpointException>().WithMessage(message);
    }

    [Fact]
    public void AnUntiedHeadIsAParameterOfItsOwn()
    {
        Dictionary<string, long[]> shapes = new() { ["backbone.embedding.weight"] = [2, 3], ["lm_head.weight"] = [2, 3] };
        using (var checkpoint = Save(("backbone.embedding.weight", ones(2, 3)), ("lm_head.weight", zeros(2, 3))))
            new CheckpointParameters(checkpoint, shapes, CheckpointNames.Mamba).Take("lm_head.weight", [2, 3], Never, false).sum().item<float>().Should().Be(0);
        using (var checkpoint = Save(("backbone.embedding.weight", ones(2, 3))))
            FluentActions.Invoking(() => new CheckpointParameters(checkpoint, shapes, CheckpointNames.Mamba)).Should().Throw<CheckpointException>().WithMessage("*Missing:*lm_head.weight*");
    }

    [Fact]
    public void OldBuffersAreIgnored()
    {
        using var checkpoint = Save(("embed_out.weight", ones(2, 3)),
            ("gpt_neox.layers.0.attention.bias", ones(1, 1, 4, 4, dtype: ScalarType.Bool)),
            ("gpt_neox.layers.0.attention.masked_bias", tensor(-1e9f)),
            ("gpt_neox.layers.11.attention.rotary_emb.inv_freq", ones(4)));
        Dictionary<string, long[]> shapes = new() { ["lm_head.weight"] = [2, 3] };
        new CheckpointParameters(checkpoint, shapes, CheckpointNames.GptNeoX).Take("lm_head.weight", [2, 3], Never, false).numel().Should().Be(6);
    }

    [Theory]
    [InlineData("a.*.c", "a.b.c", true)]
    [InlineData("a.*.c", "a.b.b.c", false)]
    [InlineData("a.*", "a", false)]
    [InlineData("a.**", "a.b.c", true)]
    [InlineData("a.**", "a", false)]
    [InlineData("**", "a.b", true)]
    [InlineData("a.b", "a.b", true)]
    [InlineData("a.b", "a.bc", false)]
    public void PatternsMatchPartByPart(string pattern, string name, bool expected) => CheckpointNames.Matches([pattern], name).Should().Be(expected);

    [Fact]
    public void AMissingParameterMayStartFromItsInitialValues()
    {
        using var checkpoint = Save(("head.weight", ones(2, 3)));
        var source = new CheckpointParameters(checkpoint, Tiny, new CheckpointNames { MayBeMissing = ["norm.*"] }, ScalarType.BFloat16);
        var norm = source.Take("norm.weight", [3], (t, _) => t.fill_(5), false);
        (norm.dtype, norm.sum().to(ScalarType.Float32).item<float>()).Should().Be((ScalarType.BFloat16, 15));
    }

    [Fact]
    public void SeveralModelsAreCheckedAtOnce()
    {
        CheckpointPart vision = new(Tiny, new CheckpointNames { Prefix = "vision_encoder." }, ScalarType.BFloat16), language = new(Tiny, new CheckpointNames { Prefix = "backbone." });
        using (var checkpoint = Save(("vision_encoder.norm.weight", ones(3)), ("vision_encoder.head.weight", ones(2, 3)),
            ("backbone.norm.weight", zeros(3)), ("backbone.head.weight", zeros(2, 3))))
        {
            var sources = CheckpointParameters.ForParts(checkpoint, vision, language);
            sources[0].Take("norm.weight", [3], Never, false).dtype.Should().Be(ScalarType.BFloat16);
            sources[1].Take("norm.weight", [3], Never, false).sum().item<float>().Should().Be(0);
            FluentActions.Invoking(() => CheckpointParameters.ForParts(checkpoint, vision)).Should().Throw<CheckpointException>().WithMessage("*backbone.norm.weight*");
            FluentActions.Invoking(() => CheckpointParameters.ForParts(checkpoint, vision, vision)).Should().Throw<ArgumentException>().WithMessage("*Two parts claim*");
            CheckpointParameters.ForParts(checkpoint, vision with { Names = vision.Names! with { Prefix = "vision_encoder." } },
                new CheckpointPart(new Dictionary<string, long[]>(), new CheckpointNames { Ignored = ["backbone.**"] })).Should().HaveCount(2);
        }
        using (var checkpoint = Save(("vision_encoder.norm.weight", ones(3)), ("vision_encoder.head.weight", ones(2, 3)), ("backbone.norm.weight", zeros(3)), ("other", ones(1))))
            FluentActions.Invoking(() => CheckpointParameters.ForParts(checkpoint, vision, language)).Should().Throw<CheckpointException>()
                .WithMessage("*of 4 parameters 1 are missing and 0 misshapen; of 4 tensors 1 are unexpected*backbone.head.weight*other*");
    }

    [Fact]
    public void AModelThatAsksForSomethingElseIsAnError()
    {
        using var checkpoint = Save(("norm.weight", ones(3)), ("head.weight", ones(2, 3)));
        var source = new CheckpointParameters(checkpoint, Tiny);
        source.Take("norm.weight", [3], Never, false);
        foreach (var (name, shape) in new (string, long[])[] { ("norm.weight", [3]), ("head.weight", [3, 2]), ("tail.weight", [3]) })
            FluentActions.Invoking(() => source.Take(name, shape, Never, false)).Should().Throw<InvalidOperationException>().WithMessage($"*{name}*");
        FluentActions.Invoking(() => new CheckpointParameters(checkpoint, Tiny, dtype: ScalarType.Int64)).Should().Throw<ArgumentException>().WithMessage("*Int64*");
    }

    private static void Never(Tensor t, Generator random) => throw new InvalidOperationException("A parameter of the checkpoint needs no initial values.");

    private Checkpoint Save(params (string Name, Tensor Value)[] tensors)
    {
        SafetensorsWriter.Write(_folder.Path("model.safetensors"), tensors.ToDictionary(t => t.Name, t => t.Value));
        return Checkpoint.Open(_folder.Root);
    }
}
