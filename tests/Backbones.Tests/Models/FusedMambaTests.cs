using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

/// <summary>The layers as one operation against the layers one operation at a time, with kernels that any machine has.</summary>
public class FusedMambaTests
{
    private static readonly MambaConfig Small = new() { HiddenSize = 24, LayerCount = 3, VocabularySize = 40, StateSize = 5, TimeStepRank = 3 };

    public static TheoryData<string> Kinds => ["rms norm", "layer norm", "biases", "window of 2", "no bias of the convolution", "one layer"];

    private static MambaConfig Config(string kind) => kind switch
    {
        "layer norm" => Small with { Norm = NormKind.LayerNorm },
        "biases" => Small with { ProjectionBias = true },
        "window of 2" => Small with { ConvolutionSize = 2, Expand = 1 },
        "no bias of the convolution" => Small with { ConvolutionBias = false },
        "one layer" => Small with { LayerCount = 1 },
        _ => Small,
    };

    [Theory, MemberData(nameof(Kinds))]
    public void LogitsAndAllGradientsAreTheSame(string kind)
    {
        using var model = Model(Config(kind), out var kernels);
        foreach (var (b, l) in new[] { (2, 16), (3, 13), (1, 1) }) // with and without padding
        {
            using var scope = NewDisposeScope();
            var (embeddings, weights) = (Embeddings(b, l), rand(b, l, 40));
            foreach (var p in model.parameters()) p.requires_grad_();
            var plain = Gradients(model, embeddings, weights, useKernels: false);
            var calls = kernels.Calls;
            var fused = Gradients(model, embeddings, weights, useKernels: true);
            kernels.Calls.Should().BeGreaterThan(calls, "the kernels ran");
            fused.Keys.Should().BeEquivalentTo(plain.Keys);
            foreach (var (name, gradient) in plain) Compare.CloseInNorm(fused[name], gradient, 1e-4, $"{kind}, {b} x {l}: {name}");
        }
    }

    [Fact]
    public void GradientsAddUp()
    {
        using var model = Model(Small, out _);
        using var scope = NewDisposeScope();
        var (embeddings, weights) = (Embeddings(2, 8), rand(2, 8, 40));
        foreach (var p in model.parameters()) p.requires_grad_();
        var once = Gradients(model, embeddings, weights, useKernels: true);
        model.zero_grad();
        // A gradient that is there is added to, and stays the tensor that it was: the trainers keep theirs side by side.
        var weight = model.backbone.layers[1].mixer.in_proj.weight;
        var place = zeros(2, weight.shape[0], weight.shape[1]);
        weight.grad = place[1];
        for (var i = 0; i < 2; i++) Backward(model, embeddings.detach().requires_grad_(), weights);
        foreach (var (name, parameter) in model.named_parameters()) Compare.CloseInNorm(parameter.grad!, once[name] * 2, 1e-4, name);
        Compare.CloseInNorm(place[1], once["backbone.layers.1.mixer.in_proj.weight"] * 2, 1e-4, "the tensor that was the gradient");
        place[0].abs().max().item<float>().Should().Be(0);
    }

    [Fact]
    public void OnlyWhatIsWantedGetsAGradient()
    {
        using var model = Model(Small with { Norm = NormKind.LayerNorm, ProjectionBias = true }, out _);
        var all = model.named_parameters().Where(p => p.name.StartsWith("backbone.layers")).ToArray();
        foreach (var wanted in all.Where((_, i) => i % 3 == 0).Select(p => p.name))
        {
            using var scope = NewDisposeScope();
            foreach (var (name, parameter) in all) (parameter.requires_grad, parameter.grad) = (name == wanted, null);
            var (embeddings, weights) = (Embeddings(2, 8).detach(), rand(2, 8, 40));
            Backward(model, embeddings, weights);
            all.Where(p => p.parameter.grad is not null).Select(p => p.name).Should().Equal(wanted);
        }
        {
            // A frozen model still passes the gradient on, to the connector before it.
            using var scope = NewDisposeScope();
            foreach (var (_, parameter) in all) (parameter.requires_grad, parameter.grad) = (false, null);
            var weights = rand(2, 8, 40);
            var plain = Gradients(model, Embeddings(2, 8), weights, useKernels: false)["x"];
            Compare.CloseInNorm(Gradients(model, Embeddings(2, 8), weights, useKernels: true)["x"], plain, 1e-4, "x");
            all.Should().AllSatisfy(p => p.parameter.grad.Should().BeNull());
        }
    }

    [Theory, MemberData(nameof(Kinds))]
    public void AReleasedGradientIsWrittenOverAndThenAddedTo(string kind)
    {
        using var model = Model(Config(kind), out _, new PlacedParameters());
        using var scope = NewDisposeScope();
        var (x, weights) = (Embeddings(2, 13).detach().requires_grad_(), rand(2, 13, 40));
        var once = Gradients(model, x, weights, useKernels: false);
        PlacedParameters.Poison(model);
        model.backbone.UseKernels = true;
        PlacedParameters.OfLayers(model).Should().AllSatisfy(p => p.Parameter.grad.Should().BeNull("it was released"));
        for (var i = 1; i <= 2; i++)
        {
            Backward(model, x, weights);
            Same(i);
        }
        // Two nodes of one graph; then a graph that is kept.
        PlacedParameters.Poison(model);
        ((model.Forward(x) + model.Forward(x)) * weights).sum().backward();
        Same(2);
        PlacedParameters.Poison(model);
        var loss = (model.Forward(x) * weights).sum();
        loss.backward(retain_graph: true);
        Same(1);
        loss.backward();
        Same(2);

        void Same(int times)
        {
            foreach (var (name, parameter) in PlacedParameters.OfLayers(model))
            {
                Compare.CloseInNorm(parameter.Place, once[name] * times, 1e-4, $"{name}, {times} times, in its place");
                Compare.CloseInNorm(parameter.grad!, once[name] * times, 1e-4, $"{name}, {times} times");
                (parameter.IsInPlace && parameter.IsWritten).Should().BeTrue(name);
            }
        }
    }

    [Theory]
    [InlineData(false, false), InlineData(true, false), InlineData(false, true), InlineData(true, true)]
    public void ReleasedGradientsThatAutogradMakesComeToTheirPlaces(bool kernelsFirst, bool together)
    {
        using var model = Model(Small, out _, new PlacedParameters());
        using var scope = NewDisposeScope();
        var (x, weights) = (Embeddings(2, 8).detach(), rand(2, 8, 40));
        var once = Gradients(model, x, weights, useKernels: false);
        PlacedParameters.Poison(model);
        var logits = new List<Tensor>();
        foreach (var useKernels in new[] { kernelsFirst, !kernelsFirst })
        {
            model.backbone.UseKernels = useKernels;
            logits.Add(model.Forward(x));
            if (!together) (logits[^1] * weights).sum().backward();
        }
        if (together) ((logits[0] + logits[1]) * weights).sum().backward();
        foreach (var (name, parameter) in model.named_parameters())
        {
            Compare.CloseInNorm(parameter.grad!, once[name] * 2, 1e-4, name);
            var placed = (PlacedParameter)parameter;
            placed.Settle();
            placed.IsInPlace.Should().BeTrue();
            Compare.CloseInNorm(placed.Place, once[name] * 2, 1e-4, $"{name}, in its place");
            Compare.CloseInNorm(parameter.grad!, once[name] * 2, 1e-4, name);
        }
    }

    [Fact]
    public void WhatWantsNoGradientStaysReleased()
    {
        using var model = Model(Small with { Norm = NormKind.LayerNorm, ProjectionBias = true }, out _, new PlacedParameters());
        using var scope = NewDisposeScope();
        var weights = rand(2, 8, 40);
        var once = Gradients(model, Embeddings(2, 8), weights, useKernels: false);
        PlacedParameters.Poison(model);
        var all = PlacedParameters.OfLayers(model);
        model.backbone.UseKernels = true;
        for (var i = 0; i < all.Count; i++) all[i].Parameter.requires_grad = i % 3 != 0;
        Backward(model, Embeddings(2, 8).detach(), weights);
        for (var i = 0; i < all.Count; i++)
        {
            var (name, parameter) = all[i];
            if (i % 3 == 0) parameter.grad.Should().BeNull(name);
            parameter.Settle();
            Compare.CloseInNorm(parameter.Place, i % 3 == 0 ? zeros_like(parameter) : once[name], 1e-4, name);
        }
    }

    [Fact]
    public void APassThatFailsHalfWayLeavesNoGradientThatWasUsed()
    {
        using var model = Model(Small with { LayerCount = 2 }, out var kernels, new PlacedParameters());
        var (failures, written) = (0, 0);
        for (var at = 1; ; at++)
        {
            using var scope = NewDisposeScope();
            var (x, weights) = (Embeddings(1, 8), rand(1, 8, 40));
            PlacedParameters.Poison(model);
            var loss = (model.Forward(x) * weights).sum();
            kernels.FailsAt = kernels.Calls + at;
            var backward = () => BackwardErrors.Backward(loss);
            var calls = kernels.Calls + at;
            try
            {
                backward();
                break; // it has fewer calls
            }
            catch (ArithmeticException)
            {
                failures++;
            }
            foreach (var (name, parameter) in PlacedParameters.OfLayers(model))
            {
                if (parameter.grad is { } gradient) gradient.isfinite().all().item<bool>().Should().BeTrue($"{name} is no gradient of before, after {at} calls");
                written += parameter.IsInPlace ? 1 : 0;
                parameter.Settle();
                parameter.Place.isfinite().all().item<bool>().Should().BeTrue(name);
            }
        }
        failures.Should().Be(2 * 5); // of each layer: convolution, scan, float gradients, convolution and norm backward
        written.Should().BePositive();
    }

    [Fact]
    public void TheBackwardPassTakesTheStateMatrixOfTheForwardPass()
    {
        using var model = Model(Small, out var kernels);
        using var scope = NewDisposeScope();
        foreach (var p in model.parameters()) p.requires_grad_();
        var (x, weights) = (Embeddings(2, 8), rand(2, 8, 40));
        var once = Gradients(model, x, weights, useKernels: true);
        foreach (var p in model.parameters()) p.grad = null;
        var before = kernels.StateMatrices;
        var loss = (model.Forward(x) * weights).sum();
        using (no_grad())
            foreach (var layer in model.backbone.layers) layer.mixer.A_log.add_(1);
        loss.backward();
        (kernels.StateMatrices - before).Should().Be(3);
        foreach (var (name, parameter) in PlacedParameters.Layers(model)) Compare.CloseInNorm(parameter.grad!, once[name], 1e-6, name);
    }

    [Fact]
    public void AGraphThatIsKeptGivesItsGradientsTwice()
    {
        using var model = Model(Small, out _);
        using var scope = NewDisposeScope();
        var x = Embeddings(1, 8);
        var loss = model.Forward(x).sum();
        loss.backward(retain_graph: true);
        var once = x.grad!.clone();
        loss.backward();
        Compare.CloseInNorm(x.grad!, once * 2, 1e-6, "x");
    }

    [Fact]
    public void AModelThatWasTakenToAnotherPrecisionRunsWithoutKernels()
    {
        using var model = Model(Small, out var kernels);
        model.to(ScalarType.Float64);
        using var mode = no_grad();
        using var scope = NewDisposeScope();
        model.backbone.Layers(Embeddings(1, 8), null, null).isfinite().all().item<bool>().Should().BeTrue();
        kernels.Calls.Should().Be(0, "they would read its float64 parameters as float32");
    }

    [Fact]
    public void PromptsInPiecesAndHiddenStatesAreTheSame()
    {
        using var model = Model(Small, out var kernels);
        using var mode = no_grad();
        using var scope = NewDisposeScope();
        var x = Embeddings(1, 21).detach();
        foreach (var lengths in new[] { new[] { 21 }, [1, 1, 2, 3, 8, 6] })
        {
            using var plainState = model.CreateState(21);
            using var fusedState = model.CreateState(21);
            var at = 0;
            foreach (var length in lengths)
            {
                var piece = x.narrow(1, at, length);
                model.backbone.UseKernels = false;
                var plain = model.Prefill(piece, plainState);
                model.backbone.UseKernels = true;
                var calls = kernels.Calls;
                Compare.CloseInNorm(model.Prefill(piece, fusedState), plain, 1e-4, $"logits after {at + length}");
                kernels.Calls.Should().BeGreaterThan(calls);
                at += length;
            }
            for (var i = 0; i < 3; i++)
            {
                Compare.CloseInNorm(((MambaState)fusedState).Scan[i], ((MambaState)plainState).Scan[i], 1e-4, $"scan state {i}");
                Compare.CloseInNorm(((MambaState)fusedState).Convolution[i], ((MambaState)plainState).Convolution[i], 1e-4, $"convolution state {i}");
            }
        }

        var rows = Embeddings(2, 13).detach();
        var (plainStates, fusedStates) = (model.CreateStates(2, 13), model.CreateStates(2, 13));
        foreach (var (at, length) in new[] { (0, 9), (9, 3), (12, 1) })
        {
            var piece = rows.narrow(1, at, length);
            model.backbone.UseKernels = false;
            var plain = model.PrefillTogether(piece, plainStates);
            model.backbone.UseKernels = true;
            Compare.CloseInNorm(model.PrefillTogether(piece, fusedStates), plain, 1e-4, $"logits of two rows after {at + length}");
        }
        foreach (var (fused, plain) in fusedStates.Zip(plainStates))
            for (var i = 0; i < 3; i++)
            {
                Compare.CloseInNorm(((MambaState)fused).Scan[i], ((MambaState)plain).Scan[i], 1e-4, $"scan state {i} of two rows");
                Compare.CloseInNorm(((MambaState)fused).Convolution[i], ((MambaState)plain).Convolution[i], 1e-4, $"convolution state {i} of two rows");
            }
        foreach (var state in plainStates.Concat(fusedStates)) state.Dispose();

        var (plainHidden, fusedHidden) = (new List<Tensor>(), new List<Tensor>());
        model.backbone.UseKernels = false;
        model.Forward(rows, null, plainHidden);
        model.backbone.UseKernels = true;
        model.Forward(rows, null, fusedHidden);
        fusedHidden.Should().HaveSameCount(plainHidden);
        for (var i = 0; i < plainHidden.Count; i++) Compare.CloseInNorm(fusedHidden[i], plainHidden[i], 1e-5, $"hidden state {i}");
    }

    [SkippableTheory, Trait("Category", "Parity")]
    [InlineData("mamba-ssm"), InlineData("mamba-hf")]
    public void TheReferencesLogitsAndGradients(string folder)
    {
        using var fixture = new LanguageFixture(folder);
        Skip.If(TestDevice.Current.type != DeviceType.CPU, "The plain kernels read the computer's memory.");
        var model = (Mamba)fixture.Model;
        var kernels = new PlainMambaKernels(model.Config);
        model.backbone.ForcedKernels = kernels;
        using var scope = NewDisposeScope();
        foreach (var p in model.parameters()) p.requires_grad_();
        var ids = fixture["input_ids"];
        var logits = model.Forward(model.Embed(ids));
        kernels.Calls.Should().BePositive();
        Compare.Close(logits, fixture["logits"], 2e-4, "logits");

        var l = ids.shape[1];
        nn.functional.cross_entropy(logits.narrow(1, 0, l - 1).flatten(0, 1), ids.narrow(1, 1, l - 1).flatten()).backward();
        var parameters = model.named_parameters().ToDictionary(p => p.name, p => p.parameter);
        foreach (var name in fixture.Names.Where(n => n.StartsWith("grad.", StringComparison.Ordinal)))
            Compare.CloseInNorm(parameters[name["grad.".Length..].Replace("embeddings.weight", "embedding.weight")].grad!, fixture[name], 1e-3, name);
    }

    private static Mamba Model(MambaConfig config, out PlainMambaKernels kernels, ParameterSource? source = null)
    {
        var model = new Mamba(config, (source ?? new RandomParameters(1)).Root);
        kernels = new(config);
        model.backbone.ForcedKernels = kernels;
        using var noGradients = no_grad();
        MambaValues.TellApart(model.named_parameters().Select(p => (p.name, (Tensor)p.parameter)));
        foreach (var (name, parameter) in model.named_parameters())
        {
            if (name.EndsWith("bias") && !name.EndsWith("dt_proj.bias")) parameter.add_(0.1);
            if (name.EndsWith("embedding.weight")) parameter.mul_(50);
        }
        return model;
    }

    private static Tensor Embeddings(int b, int l)
    {
        using var random = new Generator((ulong)(10 * b + l));
        return randn([b, l, 24], dtype: ScalarType.Float32, generator: random).requires_grad_();
    }

    private static Dictionary<string, Tensor> Gradients(Mamba model, Tensor embeddings, Tensor weights, bool useKernels)
    {
        foreach (var p in model.parameters()) p.grad = null;
        model.backbone.UseKernels = useKernels;
        var x = embeddings.detach().requires_grad_();
        var logits = Backward(model, x, weights);
        var all = model.named_parameters().Where(p => p.parameter.grad is not null).ToDictionary(p => p.name, p => p.parameter.grad!.clone());
        (all["x"], all["logits"]) = (x.grad!, logits.detach());
        return all;
    }

    private static Tensor Backward(Mamba model, Tensor x, Tensor weights)
    {
        var logits = model.Forward(x);
        (logits * weights).sum().backward();
        return logits;
    }
}
