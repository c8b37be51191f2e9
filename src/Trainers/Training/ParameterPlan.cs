using MambaVL.Checkpoints;
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
    public static IReadOnlyList<PlannedParameter> Of(VisionLanguageConfig config, Prompts.Tokenizer tokenizer)
    {
        var plan = new ParameterPlan();
        VisionLanguageModel.Build(config, tokenizer, plan).Dispose();
        return plan._parameters;
    }

    public override Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32)
    {
        _parameters.Add(new(name, shape, keepFloat32));
        return new Parameter(empty(shape, dtype: ScalarType.Float32, device: META), requires_grad: false);
    }
}
