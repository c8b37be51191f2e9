using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

[Trait("Category", "Parity")]
public class LanguageModelParityTests
{
    private const double Activations = 2e-4, Gradients = 1e-3, Loss = 1e-5;

    [SkippableTheory]
    [InlineData("mamba-ssm")]
    [InlineData("mamba-hf")]
    [InlineData("pythia-hf")]
    public void LogitsAndHiddenStates(string folder)
    {
        using var fixture = new LanguageFixture(folder);
        using var mode = inference_mode();
        using var scope = NewDisposeScope();
        var hidden = new List<Tensor>();
        var logits = fixture.Model.Forward(fixture.Model.Embed(fixture["input_ids"]), null, hidden);

        Compare.Close(logits, fixture["logits"], Activations, "logits");
        if (!fixture.Has("hidden.0")) return;
        var expected = Enumerable.Range(0, int.MaxValue).TakeWhile(i => fixture.Has($"hidden.{i}")).Select(i => fixture[$"hidden.{i}"]).ToList();
        hidden.Should().HaveCount(expected.Count + 1);
        // transformers gives the embeddings and no last layer (GPT-NeoX), or every layer and no embeddings (Mamba).
        hidden.RemoveAt(allclose(hidden[0], expected[0]) ? hidden.Count - 2 : 0);
        for (var i = 0; i < expected.Count; i++) Compare.Close(hidden[i], expected[i], Activations, $"hidden.{i}");
    }

    [SkippableTheory]
    [InlineData("mamba-ssm")]
    [InlineData("mamba-hf")]
    [InlineData("pythia-hf")]
    public void GreedyIds(string folder)
    {
        using var fixture = new LanguageFixture(folder);
        using var mode = inference_mode();
        using var scope = NewDisposeScope();
        var (ids, greedy) = (fixture["input_ids"], fixture["greedy"]);
        for (var row = 0; row < greedy.shape[0]; row++)
        {
            var expected = greedy[row].cpu().data<long>().ToArray();
            var prompt = expected.Zip(ids[row].cpu().data<long>().ToArray()).TakeWhile(p => p.First == p.Second).Select(p => p.First).ToArray();
            LanguageFixture.Greedy(fixture.Model, prompt, expected.Length - prompt.Length).Should().Equal(expected, $"row {row}");
        }
    }

    [SkippableTheory]
    [InlineData("mamba-hf")]
    [InlineData("pythia-hf")]
    public void LossAndGradients(string folder)
    {
        using var fixture = new LanguageFixture(folder);
        using var scope = NewDisposeScope();
        foreach (var p in fixture.Model.parameters()) p.requires_grad_();
        var ids = fixture["input_ids"];
        var logits = fixture.Model.Forward(fixture.Model.Embed(ids));
        var loss = nn.functional.cross_entropy(logits.narrow(1, 0, ids.shape[1] - 1).flatten(0, 1), ids.narrow(1, 1, ids.shape[1] - 1).flatten());
        loss.backward();

        var expected = fixture["loss"].item<float>();
        Math.Abs(loss.item<float>() - expected).Should().BeLessThanOrEqualTo((float)(Loss * expected));
        var parameters = fixture.Model.named_parameters().ToDictionary(p => p.name, p => p.parameter);
        var checkedNames = new HashSet<string>();
        foreach (var name in fixture.Names.Where(n => n.StartsWith("grad.", StringComparison.Ordinal)))
        {
            var own = OwnName(name["grad.".Length..], parameters);
            Compare.CloseInNorm(parameters[own].grad!, fixture[name], Gradients, name);
            checkedNames.Add(own);
        }
        checkedNames.Should().NotBeEmpty();
        // The small set of fixtures, which leaves out the hidden states, also leaves out the larger gradients.
        if (fixture.Has("hidden.0")) checkedNames.Should().BeEquivalentTo(parameters.Keys, "every parameter has a reference gradient");
    }

    [SkippableFact]
    public void LeftPadding()
    {
        using var fixture = new LanguageFixture("pythia-hf");
        using var mode = inference_mode();
        using var scope = NewDisposeScope();
        Skip.IfNot(fixture.Has("left_pad_mask"), "The small set of fixtures has no left padding; the larger one does (set MAMBAVL_FIXTURES).");
        var mask = fixture["left_pad_mask"];
        var logits = fixture.Model.Forward(fixture.Model.Embed(fixture["input_ids"]), mask);

        isfinite(logits).all().item<bool>().Should().BeTrue("padding must not spread");
        var tokens = mask.to(ScalarType.Bool);
        Compare.Close(logits[tokens], fixture["left_pad_logits"][tokens], Activations, "left_pad_logits");
    }

    private static string OwnName(string name, Dictionary<string, Parameter> parameters)
        => parameters.ContainsKey(name) ? name : name switch
        {
            "backbone.embeddings.weight" => "backbone.embedding.weight",
            "lm_head.weight" => "embed_out.weight",
            _ => throw new KeyNotFoundException(name),
        };
}
