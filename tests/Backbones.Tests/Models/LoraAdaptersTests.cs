using MambaVL.Checkpoints;
using MambaVL.Generation;
using MambaVL.Models;
using MambaVL.Prompts;
using MambaVL.Tests.Checkpoints;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

public class LoraAdaptersTests
{
    public static TheoryData<string> Backbones => TinyVisionLanguage.Backbones;

    private static readonly LoraOptions Small = new() { Rank = 4, Alpha = 6 };

    [Theory]
    [InlineData(TinyVisionLanguage.Mamba, ScalarType.Float32)]
    [InlineData(TinyVisionLanguage.Mamba, ScalarType.BFloat16)]
    [InlineData(TinyVisionLanguage.NeoX, ScalarType.Float32)]
    [InlineData(TinyVisionLanguage.NeoX, ScalarType.BFloat16)]
    public void AttachedTheyChangeNoBit(string backbone, ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        using var model = TinyVisionLanguage.Create(backbone, dtype: dtype);
        var before = Logits(model);
        using var adapters = LoraAdapters.Attach(model);
        Compare.Same(Logits(model), before, "logits");
        Learnt(adapters);
        (Logits(model) - before).abs().max().item<float>().Should().BeGreaterThan(0.01f, "they take part");
    }

    [Theory, MemberData(nameof(Backbones))]
    public void OnlyTheyReceiveGradients(string backbone)
    {
        using var scope = NewDisposeScope();
        using var model = TinyVisionLanguage.Create(backbone);
        foreach (var p in model.Language.parameters()) p.requires_grad = true;
        using var adapters = LoraAdapters.Attach(model, Small);
        Learnt(adapters);
        Loss(model).backward();

        model.NamedParameters().Where(p => p.Parameter.requires_grad || p.Parameter.grad is not null).Should().BeEmpty("the model is frozen");
        foreach (var (name, parameter) in adapters.NamedParameters())
            (parameter.grad is { } g && g.abs().max().item<float>() > 0).Should().BeTrue($"{name} takes part");
    }

    // As the products say: the gradient of B is that of W times A's transpose, scaled.
    [Theory, MemberData(nameof(Backbones))]
    public void TheirGradientsAreThoseOfTheWeightThroughTheFactors(string backbone)
    {
        using var scope = NewDisposeScope();
        using var model = TinyVisionLanguage.Create(backbone);
        using var adapters = LoraAdapters.Attach(model, Small);
        Loss(model).backward();
        var ours = adapters.NamedParameters().ToDictionary(p => p.Name, p => (Value: p.Parameter.clone(), Gradient: p.Parameter.grad!.clone()));
        adapters.Dispose();

        foreach (var p in model.Language.parameters()) p.requires_grad = true;
        Loss(model).backward();
        foreach (var (name, parameter) in model.Language.named_parameters())
        {
            var key = $"base_model.model.{name[..name.LastIndexOf('.')]}.lora_";
            if (!name.EndsWith(".weight", StringComparison.Ordinal) || !ours.TryGetValue(key + "A.weight", out var a)) continue;
            Compare.Close(ours[key + "B.weight"].Gradient, parameter.grad!.mm(a.Value.t()) * (6.0 / 4), 1e-4, name);
            a.Gradient.count_nonzero().item<long>().Should().Be(0, "B is zero");
        }
    }

    [Theory, MemberData(nameof(Backbones))]
    public void TheyLearn(string backbone)
    {
        using var scope = NewDisposeScope();
        using var model = TinyVisionLanguage.Create(backbone);
        using var adapters = LoraAdapters.Attach(model, Small);
        using var optimizer = optim.AdamW(adapters.NamedParameters().Select(p => p.Parameter), lr: 0.01, weight_decay: 0);
        var losses = new List<float>();
        for (var step = 0; step < 15; step++)
        {
            using var one = NewDisposeScope();
            optimizer.zero_grad();
            var loss = Loss(model);
            loss.backward();
            optimizer.step();
            losses.Add(loss.item<float>());
        }
        losses[^1].Should().BeLessThan(losses[0] * 0.5f);
    }

    [Theory]
    [InlineData(TinyVisionLanguage.Mamba, ScalarType.Float32)]
    [InlineData(TinyVisionLanguage.Mamba, ScalarType.BFloat16)]
    [InlineData(TinyVisionLanguage.NeoX, ScalarType.Float32)]
    [InlineData(TinyVisionLanguage.NeoX, ScalarType.BFloat16)]
    public void MergedTheModelIsWhatItWasWithThem(string backbone, ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        using var model = TinyVisionLanguage.Create(backbone, dtype: dtype);
        var tolerance = dtype == ScalarType.Float32 ? 1e-5 : 0.06;
        var weights = model.Language.named_parameters().ToDictionary(p => p.name, p => p.parameter.clone());
        var adapters = LoraAdapters.Attach(model, Small);
        Learnt(adapters);
        var factors = adapters.NamedParameters().ToDictionary(p => p.Name, p => p.Parameter.clone());
        var attached = Logits(model);
        var decoded = Decoded(model);
        Compare.CloseInNorm(decoded, attached[0, ^1..], tolerance, "a token decoded with adapters");

        adapters.Merge();
        model.Language.HasAdapters.Should().BeFalse();
        Compare.CloseInNorm(Logits(model), attached, tolerance, "logits");
        Compare.CloseInNorm(Decoded(model), decoded, tolerance, "a token decoded by the kernels");
        foreach (var (name, weight) in model.Language.named_parameters())
        {
            var key = $"base_model.model.{name[..name.LastIndexOf('.')]}.lora_";
            if (name.EndsWith(".weight", StringComparison.Ordinal) && factors.TryGetValue(key + "A.weight", out var a))
                Compare.Same(weight, (weights[name].to(ScalarType.Float32) + factors[key + "B.weight"].mm(a) * 1.5).to(dtype), name);
            else
                Compare.Same(weight, weights[name], name);
        }
        adapters.Invoking(a => a.Merge()).Should().Throw<ObjectDisposedException>();
        adapters.Invoking(a => a.Save("x.safetensors")).Should().Throw<ObjectDisposedException>();
    }

    [Theory, MemberData(nameof(Backbones))]
    public void SavedAndLoadedTheyAreTheSame(string backbone)
    {
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        var path = folder.Path("lora.safetensors");
        using var model = TinyVisionLanguage.Create(backbone);
        var before = Logits(model);
        Tensor learnt;
        using (var adapters = LoraAdapters.Attach(model, Small with { Dropout = 0.1 }))
        {
            Learnt(adapters);
            learnt = Logits(model);
            adapters.Save(path);
        }
        Compare.Same(Logits(model), before, "detached");

        using (var adapters = LoraAdapters.Load(model, path))
        {
            adapters.Options.Should().BeEquivalentTo(Small with { Dropout = 0.1, Targets = adapters.Options.Targets });
            Compare.Same(Logits(model), learnt, "loaded");
        }
        using (var adapters = LoraAdapters.Attach(model, Small with { Seed = 7 }))
        {
            var parameters = adapters.NamedParameters().Select(p => p.Parameter).ToList();
            adapters.Load(path);
            adapters.NamedParameters().Select(p => p.Parameter).Should().Equal(parameters, "an optimiser goes on with them");
            Compare.Same(Logits(model), learnt, "loaded into others");
        }
        using var other = TinyVisionLanguage.Create(backbone == TinyVisionLanguage.Mamba ? TinyVisionLanguage.NeoX : TinyVisionLanguage.Mamba);
        Action load = () => LoraAdapters.Load(other, path);
        load.Should().Throw<CheckpointException>().WithMessage("*lora.safetensors*does not fit the model*projections of this*");
        other.Language.HasAdapters.Should().BeFalse();
    }

    [Fact]
    public void TheFileIsOneThatPeftKnows()
    {
        using var folder = new TemporaryFolder();
        var path = folder.Path("lora.safetensors");
        using var model = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba);
        using (var adapters = LoraAdapters.Attach(model, Small with { Targets = ["in_proj", "x_proj"] })) adapters.Save(path);

        using var file = Checkpoint.Open(path);
        file.Metadata.Should().Equal(new Dictionary<string, string> { ["format"] = "pt", ["r"] = "4", ["lora_alpha"] = "6", ["lora_dropout"] = "0" });
        file.Tensors.Values.Select(t => $"{t.Name} [{string.Join(", ", t.Shape)}] {t.DType}").Should().BeEquivalentTo(
            Enumerable.Range(0, 2).SelectMany(i => new[]
            {
                $"base_model.model.backbone.layers.{i}.mixer.in_proj.lora_A.weight [4, 48] Float32",
                $"base_model.model.backbone.layers.{i}.mixer.in_proj.lora_B.weight [192, 4] Float32",
                $"base_model.model.backbone.layers.{i}.mixer.x_proj.lora_A.weight [4, 96] Float32",
                $"base_model.model.backbone.layers.{i}.mixer.x_proj.lora_B.weight [35, 4] Float32",
            }));
    }

    [Theory]
    [InlineData(TinyVisionLanguage.Mamba, "in_proj x_proj dt_proj out_proj")]
    [InlineData(TinyVisionLanguage.NeoX, "query_key_value dense dense_h_to_4h dense_4h_to_h")]
    public void EveryProjectionOfTheLayersIsTheDefault(string backbone, string projections)
    {
        using var model = TinyVisionLanguage.Create(backbone);
        using var adapters = LoraAdapters.Attach(model);
        adapters.NamedParameters().Select(p => p.Name.Split('.')[^3]).Distinct().Should().BeEquivalentTo(projections.Split(' '));
        adapters.NamedParameters().Should().HaveCount(2 * 4 * 2);
        model.NamedParameters().Select(p => p.Name).Should().NotContain(n => n.Contains("lora"), "the model's parameters stay its own");
    }

    [Fact]
    public void AModelWithAdaptersIsNotSavedWithoutThem()
    {
        using var folder = new TemporaryFolder();
        using var scope = NewDisposeScope();
        using var model = TinyVisionLanguage.Create(TinyVisionLanguage.NeoX);
        var adapters = LoraAdapters.Attach(model, Small);
        Learnt(adapters);
        var learnt = Logits(model);
        model.Invoking(m => m.Save(folder.Root)).Should().Throw<InvalidOperationException>().WithMessage("*adapters*merge*");
        Directory.EnumerateFileSystemEntries(folder.Root).Should().BeEmpty();

        adapters.Merge();
        model.Save(folder.Root);
        using var loaded = VisionLanguageModel.FromPretrained(folder.Root);
        Compare.Close(Logits(loaded), learnt, 1e-4, "logits");
    }

    [Theory, MemberData(nameof(Backbones))]
    public void DropoutIsForTrainingOnly(string backbone)
    {
        using var scope = NewDisposeScope();
        using var model = TinyVisionLanguage.Create(backbone);
        using var adapters = LoraAdapters.Attach(model, Small with { Dropout = 0.5 });
        Learnt(adapters);
        Compare.Same(Logits(model), Logits(model), "answers");
        (Loss(model) - Loss(model)).abs().item<float>().Should().BeGreaterThan(0, "other inputs are left out each time");
    }

    [Fact]
    public void TheSeedDecidesTheFirstValues()
    {
        using var scope = NewDisposeScope();
        using var model = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba);
        Tensor First(long seed)
        {
            using var adapters = LoraAdapters.Attach(model, Small with { Seed = seed });
            return adapters.NamedParameters().First().Parameter.clone();
        }
        Compare.Same(First(3), First(3), "one seed");
        (First(3) - First(4)).abs().max().item<float>().Should().BeGreaterThan(0);
        First(3).abs().max().item<float>().Should().BeInRange(0.5f / MathF.Sqrt(48), 1 / MathF.Sqrt(48));
    }

    [Fact]
    public void WhatDoesNotFitIsNamed()
    {
        using var folder = new TemporaryFolder();
        var path = folder.Path("lora.safetensors");
        using var model = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba);
        Fails<ArgumentException>(() => LoraAdapters.Attach(model, new() { Rank = 0 }), "*Rank is 0*at least 1*");
        Fails<ArgumentException>(() => LoraAdapters.Attach(model, new() { Alpha = double.NaN }), "*Alpha is NaN*");
        Fails<ArgumentException>(() => LoraAdapters.Attach(model, new() { Dropout = 1 }), "*Dropout is 1*below 1*");
        Fails<ArgumentException>(() => LoraAdapters.Attach(model, new() { Targets = ["in_proj", "q_proj"] }), "*'q_proj'*Mamba*in_proj, x_proj, dt_proj, out_proj*");
        Fails<ArgumentException>(() => LoraAdapters.Attach(model, new() { Targets = ["lm_head"] }), "*'lm_head'*");
        model.Language.HasAdapters.Should().BeFalse();

        using (var adapters = LoraAdapters.Attach(model, Small))
        {
            Fails<InvalidOperationException>(() => LoraAdapters.Attach(model), "*already*");
            adapters.Save(path);
        }
        using (var adapters = LoraAdapters.Attach(model, Small with { Rank = 8 }))
            Fails<CheckpointException>(() => adapters.Load(path), "*lora.safetensors*Rank 4*with 8*");
        using (var adapters = LoraAdapters.Attach(model, Small with { Alpha = 1.5 }))
            Fails<CheckpointException>(() => adapters.Load(path), "*Alpha 6*with 1.5*");
        using (var adapters = LoraAdapters.Attach(model, Small with { Targets = ["in_proj"] }))
            Fails<CheckpointException>(() => adapters.Load(path), "*out_proj.lora_A.weight*");

        // A file of another program has no metadata: shapes are all there is to compare.
        using var scope = NewDisposeScope();
        var other = folder.Path("adapter_model.safetensors");
        using (var adapters = LoraAdapters.Attach(model, Small))
            SafetensorsWriter.Write(other, adapters.NamedParameters().ToDictionary(p => p.Name, p => (Tensor)p.Parameter));
        Fails<CheckpointException>(() => LoraAdapters.Load(model, other), "*'r'*'lora_alpha'*LoraOptions*");
        using (var adapters = LoraAdapters.Attach(model, Small with { Rank = 5 }))
            Fails<CheckpointException>(() => adapters.Load(other), "*in_proj.lora_A.weight*[4, 48]*[5, 48]*");
        using (var adapters = LoraAdapters.Attach(model, Small)) adapters.Load(other);
        SafetensorsWriter.Write(other, new Dictionary<string, Tensor> { ["x"] = zeros(1) }, new Dictionary<string, string> { ["r"] = "many", ["lora_alpha"] = "1" });
        Fails<CheckpointException>(() => LoraAdapters.Load(model, other), "*'many'*'r'*number*");
        Fails<FileNotFoundException>(() => LoraAdapters.Load(model, path + "x"), "*");
        model.Language.HasAdapters.Should().BeFalse();

        static void Fails<T>(Action call, string message) where T : Exception => call.Should().Throw<T>().WithMessage(message);
    }

    [Theory, MemberData(nameof(Backbones))]
    public void TheyLeaveNoTensorBehind(string backbone)
    {
        using var model = TinyVisionLanguage.Create(backbone);
        using var image = model.Encode(1);
        void Run()
        {
            using (inference_mode())
            using (NewDisposeScope())
            {
                var adapters = LoraAdapters.Attach(model, Small);
                adapters.NamedParameters().Should().OnlyContain(p => p.Parameter.requires_grad);
                model.Generate([model.Request(image, Conversation.Caption())], new GenerationOptions { MaxNewTokens = 4, IgnoreEndToken = true });
                adapters.Dispose();
            }
        }

        Run();
        var before = DisposeScopeManager.Statistics.TensorStatistics.ThreadTotalLiveCount;
        for (var i = 0; i < 5; i++) Run();
        DisposeScopeManager.Statistics.TensorStatistics.ThreadTotalLiveCount.Should().Be(before);
    }

    // What training would make of them: B is zero no more.
    private static void Learnt(LoraAdapters adapters)
    {
        using var noGradients = no_grad();
        using var random = new Generator(5);
        foreach (var (name, parameter) in adapters.NamedParameters())
            if (name.Contains("lora_B", StringComparison.Ordinal)) parameter.normal_(0, 0.1, random);
    }

    private static (Tensor Ids, Tensor Patches, Tensor Labels) Row(VisionLanguageModel model)
    {
        var input = model.Sequence.Build(Conversation.Caption("a red square."));
        using var random = new Generator(3);
        using var noise = randn(1, 16, model.Language.HiddenSize, generator: random);
        return (tensor(input.Ids).unsqueeze(0), noise.to(model.Language.parameters().First().dtype), tensor(input.Labels).unsqueeze(0));
    }

    private static Tensor Logits(VisionLanguageModel model)
    {
        using var noGradients = inference_mode();
        var (ids, patches, _) = Row(model);
        return model.Forward(ids, patches).to(ScalarType.Float32);
    }

    private static Tensor Loss(VisionLanguageModel model)
    {
        var (ids, patches, labels) = Row(model);
        return VisionLanguageModel.AnswerLoss(model.Forward(ids, patches), labels);
    }

    // The logits of the last position, which is decoded after the others were read: (1, v).
    private static Tensor Decoded(VisionLanguageModel model)
    {
        var (ids, patches, _) = Row(model);
        var text = model.Language.Embed(ids.masked_fill(ids.lt(0), 0));
        var places = ids.flatten().lt(0).nonzero().flatten();
        var embeddings = text[0].index_copy(0, places, patches[0]).unsqueeze(0);
        var l = ids.shape[1];
        using var state = model.Language.CreateState((int)l);
        model.Language.Prefill(embeddings.narrow(1, 0, l - 1), state);
        return model.Language.Decode(ids[0].narrow(0, l - 1, 1), [state]);
    }
}
