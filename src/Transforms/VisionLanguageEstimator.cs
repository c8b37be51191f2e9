using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace MambaVL.Transforms;

/// <summary>A pipeline step of <see cref="VisionLanguageCatalog"/>. Nothing is learnt: fitting checks the columns.</summary>
public sealed class VisionLanguageEstimator : IEstimator<VisionLanguageTransformer>
{
    private readonly IHostEnvironment _environment;
    private readonly StepSettings _settings;
    private readonly VisionLanguageModel _model;

    internal VisionLanguageEstimator(IHostEnvironment environment, StepSettings settings, VisionLanguageModel model)
        => (_environment, _settings, _model) = (environment, settings, model);

    /// <summary>Checks the columns and gives the transformer. The model is not run.</summary>
    /// <param name="input">Its schema is looked at; no row is read.</param>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of another kind (ML.NET's schema mismatch).</exception>
    public VisionLanguageTransformer Fit(IDataView input)
    {
        ArgumentNullException.ThrowIfNull(input);
        var transformer = new VisionLanguageTransformer(_environment, _settings, SharedModel.Borrow(_model));
        transformer.GetOutputSchema(input.Schema);
        return transformer;
    }

    /// <summary>The columns after this step, for the checks of a pipeline before it is fitted.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of another kind.</exception>
    public SchemaShape GetOutputSchema(SchemaShape inputSchema)
    {
        ArgumentNullException.ThrowIfNull(inputSchema);
        var step = Step.Create(_settings, _model.Config);
        var inputs = step.Bind(_environment, MlNet.Columns(inputSchema));
        return MlNet.Append(inputSchema, step.Outputs(inputs));
    }
}
