using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MambaVL.Training;

/// <summary>What a model asks of one parameter.</summary>
/// <param name="Name">Its key in a checkpoint.</param>
/// <param name="Shape">Its shape.</param>
/// <param name="KeepFloat32">Whether it stays float32 in a model of a lower precision.</param>
internal sealed record PlannedParameter(string Name, long[] Shape, bool KeepFloat32)
{
    public long Count { get; } = Shape.Aggregate(1L, (a, b) => a * b);
}

/// <summary>Notes every parameter that a model asks for, and gives tensors without memory.</summary>
internal sealed class ParameterPlan : ParameterSource
{
    private readonly List<PlannedParameter> _parameters = [];

    private ParameterPlan()
    {
    }

    /// <summary>The parameters of a model, in the order of its construction.</summary>
    /// <param name="config">The sizes.</param>
    /// <param name="tokenizer">The tokeniser.</param>
    /// <param name="lora">Adapters, whose parameters come last; null: none.</param>
    public static IReadOnlyList<PlannedParameter> Of(VisionLanguageConfig config, Prompts.Tokenizer tokenizer, LoraOptions? lora = null)
    {
        var plan = new ParameterPlan();
        using var model = VisionLanguageModel.Build(config, tokenizer, plan);
        if (lora is null) return plan._parameters;
        using var adapters = LoraAdapters.Attach(model, lora);
        return [.. plan._parameters, .. adapters.NamedParameters().Select(p => new PlannedParameter(p.Name, p.Parameter.shape, KeepFloat32: true))];
    }

    public override Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32)
    {
        _parameters.Add(new(name, shape, keepFloat32));
        return new Parameter(empty(shape, dtype: ScalarType.Float32, device: META), requires_grad: false);
    }
}
