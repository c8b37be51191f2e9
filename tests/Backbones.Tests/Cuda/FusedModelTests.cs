using MambaVL.Checkpoints;
using MambaVL.Cuda;
using MambaVL.Models;
using MambaVL.Tests.Models;
using TorchSharp;
using TorchSharp.Modules;
using Xunit.Abstractions;
using static TorchSharp.torch;

namespace MambaVL.Tests.Cuda;

/// <summary>EVA-02 and GPT-NeoX on a GPU, by this project's kernels, against the same weights in float64 on the CPU. In bfloat16
/// they may be as far from it as twice the error of libtorch's own operations in bfloat16.</summary>
[Collection(Alone.Name)] // sets an environment variable
public class FusedModelTests(ITestOutputHelper output)
{
    private static readonly Dictionary<string, Eva02Config> Encoders = new()
    {
        ["as L, padded"] = VisionTestModels.Eva02,
        ["heads of 64, nothing padded"] = new() { PatchSize = 8, ImageSize = 32, Depth = 2, Width = 128, Heads = 2, MlpWidth = 344 },
        ["heads of 80"] = new() { PatchSize = 4, ImageSize = 16, Depth = 1, Width = 160, Heads = 2, MlpWidth = 426, AttentionNorm = false },
        ["heads of 4, patches of 14"] = new() { PatchSize = 14, ImageSize = 28, Depth = 2, Width = 12, Heads = 3, MlpWidth = 33, FinalNorm = false },
        ["as Ti"] = new() { PatchSize = 8, ImageSize = 32, Depth = 2, Width = 96, Heads = 3, MlpWidth = 256, FusedQkv = true, PackedMlp = true, AttentionNorm = false },
        ["packed, odd"] = new() { PatchSize = 8, ImageSize = 32, Depth = 1, Width = 96, Heads = 3, MlpWidth = 251, FusedQkv = true, PackedMlp = true },
    };

    private static readonly Dictionary<string, GptNeoXConfig> Decoders = new()
    {
        ["as published"] = new() { HiddenSize = 128, LayerCount = 2, VocabularySize = 104, HeadCount = 2 },
        ["heads of 80"] = new() { HiddenSize = 160, LayerCount = 2, VocabularySize = 104, HeadCount = 2 },
        ["odd sizes"] = new() { HiddenSize = 57, LayerCount = 3, VocabularySize = 101, HeadCount = 3, IntermediateSize = 91, RotaryFraction = 0.33, TieEmbeddings = true },
        ["sequential, no biases"] = new() { HiddenSize = 80, LayerCount = 2, VocabularySize = 67, HeadCount = 1, ParallelResidual = false, AttentionBias = false, RotaryFraction = 1, TanhGelu = true },
        ["small heads"] = new() { HiddenSize = 24, LayerCount = 1, VocabularySize = 33, HeadCount = 3, RotaryFraction = 0.5, RotaryBase = 500 },
    };

    public static TheoryData<string> EncoderNames => [.. Encoders.Keys];

    public static TheoryData<string> DecoderNames => [.. Decoders.Keys];

    [SkippableTheory]
    [MemberData(nameof(EncoderNames))]
    public void AnEncoderGivesTheFeaturesOfOperations(string name)
    {
        CudaTesting.Gpu();
        var config = Encoders[name];
        using var noGrad = no_grad();
        foreach (var type in new[] { ScalarType.Float32, ScalarType.BFloat16, ScalarType.Float16 })
        {
            using var start = Start(config.Create, type);
            using var model = (Eva02)config.Create(new CopyOf(start, type, CUDA).Root);
            using var exact = (Eva02)config.Create(new CopyOf(start, ScalarType.Float64, CPU).Root);
            foreach (var (b, rows, cols) in new[] { (1, 1, 1), (3, 1, 2), (2, 3, 1) })
            {
                using var scope = NewDisposeScope();
                var images = VisionTestModels.Images(b, rows * config.ImageSize, cols * config.ImageSize).to(type);
                var expected = exact.ForwardFeatures(images.to(ScalarType.Float64));
                var actual = model.ForwardFeatures(images.to(CUDA));
                Within(type, () => model.ForwardFeatures(images.to(CUDA)), actual, expected, $"{name}, {type}, {b} of {rows}x{cols}");
                CudaNumbers.SameBits(model.ForwardFeatures(images.to(CUDA)), actual, "the features");
                output.Close(model.Encode(images.to(CUDA)), actual[.., 1..], 0, "patches without the class token");
            }
        }
    }

    [SkippableTheory]
    [MemberData(nameof(EncoderNames))]
    public void AnEncoderLearnsAsByOperations(string name)
    {
        CudaTesting.Gpu();
        var config = Encoders[name];
        using var scope = NewDisposeScope();
        using var start = Start(config.Create, ScalarType.Float32);
        using var model = (Eva02)config.Create(new CopyOf(start, ScalarType.Float32, CUDA).Root);
        using var exact = (Eva02)config.Create(new CopyOf(start, ScalarType.Float64, CPU).Root);
        var images = VisionTestModels.Images(3, config.ImageSize, config.ImageSize);
        model.Encode(images.to(CUDA)).Dispose(); // packs what is frozen
        var projection = randn(config.Width);
        foreach (var (m, device, type) in new[] { (model, CUDA, ScalarType.Float32), (exact, CPU, ScalarType.Float64) })
        {
            foreach (var p in m.parameters()) p.requires_grad = true;
            m.ForwardFeatures(images.to(type, device)).matmul(projection.to(type, device)).square().sum().backward();
        }
        Gradients(model, exact);
        model.parameters().Should().OnlyContain(p => p.is_contiguous(), "what learns is not packed");
    }

    [SkippableTheory]
    [MemberData(nameof(DecoderNames))]
    public void ADecoderGivesTheLogitsOfOperations(string name)
    {
        CudaTesting.Gpu();
        var config = Decoders[name];
        using var noGrad = no_grad();
        foreach (var type in new[] { ScalarType.Float32, ScalarType.BFloat16, ScalarType.Float16 })
        {
            using var scope = NewDisposeScope();
            using var start = Start(config.Create, type);
            using var model = config.Create(new CopyOf(start, type, CUDA).Root);
            using var exact = config.Create(new CopyOf(start, ScalarType.Float64, CPU).Root);
            var embeddings = randn(3, 37, config.HiddenSize).to(type);
            var wide = embeddings.to(ScalarType.Float64);
            var onGpu = embeddings.to(CUDA);
            var expected = exact.Forward(wide);
            var logits = model.Forward(onGpu);
            Within(type, () => model.Forward(onGpu), logits, expected, $"{name}, {type}");
            CudaNumbers.SameBits(model.Forward(onGpu), logits, "the logits");

            var mask = ones(3, 37, dtype: ScalarType.Int64);
            mask[0, ..9] = 0;
            mask[2, 30..] = 0;
            var masked = model.Forward(onGpu, mask.to(CUDA)).cpu()[mask.ne(0)];
            Within(type, () => model.Forward(onGpu, mask.to(CUDA)).cpu()[mask.ne(0)], masked, exact.Forward(wide, mask)[mask.ne(0)], $"{name}, {type}, padded");

            // A prompt in pieces, then tokens one by one: what is in the cache is what all at once gives.
            Within(type, Pieces, Pieces(), cat([expected[..1, 19], expected[..1, 29], expected[..1, 30], expected[..1, 31]]), $"{name}, {type}, in pieces");

            // Three rows at once, in two pieces.
            Within(type, Rows, Rows(), cat([expected[.., 19], expected[.., 36]]), $"{name}, {type}, rows at once");

            Tensor Rows()
            {
                var states = model.CreateStates(3, 40);
                var logits = cat([model.Prefill(onGpu[.., ..20], states), model.Prefill(onGpu[.., 20..], states)]);
                foreach (var state in states) state.Dispose();
                return logits;
            }

            Tensor Pieces()
            {
                using var state = model.CreateState(40);
                return cat([Read(0, 20), Read(20, 30), Read(30, 31), Read(31, 32)]);

                Tensor Read(int from, int to) => model.Prefill(onGpu[..1, from..to], state);
            }
        }
    }

    [SkippableTheory]
    [MemberData(nameof(DecoderNames))]
    public void ADecoderLearnsAsByOperations(string name)
    {
        CudaTesting.Gpu();
        var config = Decoders[name];
        using var scope = NewDisposeScope();
        using var start = Start(config.Create, ScalarType.Float32);
        using var model = config.Create(new CopyOf(start, ScalarType.Float32, CUDA).Root);
        using var exact = config.Create(new CopyOf(start, ScalarType.Float64, CPU).Root);
        var ids = randint(0, config.VocabularySize, [3, 21], ScalarType.Int64);
        var projection = randn(config.VocabularySize);
        foreach (var (m, device, type) in new[] { (model, CUDA, ScalarType.Float32), (exact, CPU, ScalarType.Float64) })
        {
            foreach (var p in m.parameters()) p.requires_grad = true;
            m.Forward(m.Embed(ids.to(device))).matmul(projection.to(type, device)).square().sum().backward();
        }
        Gradients(model, exact);
    }

    private void Gradients(nn.Module model, nn.Module exact)
    {
        var expected = exact.named_parameters().ToDictionary(p => p.name, p => p.parameter.grad);
        foreach (var (name, parameter) in model.named_parameters())
        {
            if (expected[name] is { } gradient) output.Close(parameter.grad!, gradient, 1e-4, name); // attention and products of float32 add up
            else parameter.grad.Should().BeNull(name);
        }
    }

    /// <summary>float32 within 1e-5; 16 bits within twice what operations are off.</summary>
    private void Within(ScalarType type, Func<Tensor> again, Tensor actual, Tensor expected, string what)
    {
        if (type == ScalarType.Float32)
        {
            output.Close(actual, expected, 1e-5, what);
            return;
        }
        var before = Environment.GetEnvironmentVariable(FusedChoice.Variable);
        Environment.SetEnvironmentVariable(FusedChoice.Variable, "reference");
        try
        {
            using var byOperations = again();
            var error = Error(byOperations);
            output.Close(actual, expected, 2 * error, $"{what} (operations: {error:e1})");
        }
        finally
        {
            Environment.SetEnvironmentVariable(FusedChoice.Variable, before);
        }

        double Error(Tensor t)
        {
            using var scope = NewDisposeScope();
            return ((t.to(ScalarType.Float64).cpu() - expected).norm() / expected.norm()).item<double>();
        }
    }

    // First values have zeros and ones where a mistake would hide. Of the type's own precision, so that a copy in float64 is exact.
    private static T Start<T>(Func<ParameterScope, T> create, ScalarType type) where T : nn.Module
    {
        var model = create(new RandomParameters(7, type).Root);
        using var noGrad = no_grad();
        using var random = new Generator(11);
        foreach (var p in model.parameters())
        {
            using var noise = randn(p.shape, generator: random) * 0.1;
            using var values = noise.to(p.dtype);
            p.add_(values);
        }
        return model;
    }

    /// <summary>The parameters of another model, in another precision and elsewhere.</summary>
    private sealed class CopyOf(nn.Module model, ScalarType type, Device device) : ParameterSource
    {
        private readonly Dictionary<string, Parameter> _values = model.named_parameters().ToDictionary(p => p.name, p => p.parameter);

        public override Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32)
            => new(_values[name].detach().to(type).to(device).clone(), requires_grad: false);
    }
}
