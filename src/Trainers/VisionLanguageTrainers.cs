using MambaVL.Training;
using Microsoft.ML.Runtime;

namespace Microsoft.ML;

/// <summary>Trainers of vision-language models: <c>mlContext.VisionLanguage().Trainers</c>.</summary>
/// <remarks>The paper's two stages. A model that starts from published language and vision models goes through both; one that
/// starts from random weights needs the second alone, with <see cref="InstructionTuneOptions.TrainVisionEncoder"/>.</remarks>
public sealed class VisionLanguageTrainers
{
    private readonly IHostEnvironment _environment;

    internal VisionLanguageTrainers(IHostEnvironment environment) => _environment = environment;

    /// <summary>Stage 1: the connector alone learns, from captions.</summary>
    /// <param name="options">The model, the columns and the recipe.</param>
    /// <exception cref="ArgumentException">An option has a value that it cannot have.</exception>
    public VisionLanguageTrainer PretrainConnector(PretrainConnectorOptions options) => new(_environment, options);

    /// <summary>Stage 2: connector and language model learn tasks, the vision encoder too where that is asked for.</summary>
    /// <param name="options">The model, the columns and the recipe.</param>
    /// <exception cref="ArgumentException">An option has a value that it cannot have.</exception>
    public VisionLanguageTrainer InstructionTune(InstructionTuneOptions options) => new(_environment, options);
}
