using MambaVL.Cuda;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Runtime;

namespace MambaVL.Training;

/// <summary>An estimator that trains a vision-language model. <c>mlContext.VisionLanguage().Trainers</c> makes it.</summary>
/// <remarks>docs/trainers.md has the recipe, the columns, and what a run keeps on the disk.</remarks>
public sealed class VisionLanguageTrainer : IEstimator<VisionLanguageTransformer>
{
    private readonly IHostEnvironment _environment;
    private readonly StepSettings _settings;

    internal VisionLanguageTrainer(IHostEnvironment environment, TrainingOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        (_environment, Options) = (environment, options.Checked());
        _settings = new StepSettings
        {
            Kind = StepKind.FollowTasks, Output = options.OutputColumn, Image = options.Columns.Image, Text = options.Columns.Question,
            Choices = options.Columns.Choices, TaskColumn = options.Task is null ? options.Columns.Task : null, Task = options.Task,
            Regions = options.Columns.Box, Images = options.Images,
        }.Checked();
    }

    /// <summary>What was asked for. <see cref="Fit(IDataView)"/> never changes it.</summary>
    public TrainingOptions Options { get; }

    /// <inheritdoc cref="Fit(IDataView, IDataView?)"/>
    public VisionLanguageTransformer Fit(IDataView input) => Fit(input, null);

    /// <summary>Trains a copy of the model.</summary>
    /// <param name="train">The rows to learn from; read once, from beginning to end.</param>
    /// <param name="validation">Rows of the same columns to measure the model on while it learns, or null. With them, the weights
    /// of the best validation are returned, not the last.</param>
    /// <returns>A step that answers each row by its task; its <see cref="VisionLanguageTransformer.Model"/> is the trained model,
    /// which is freed with it, and which any other step can be made with. When training was cancelled, the model as it stood.</returns>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of another kind (ML.NET's schema mismatch).</exception>
    /// <exception cref="TrainingRowException">A row cannot be used.</exception>
    /// <exception cref="TrainingException">The loss is no number, memory does not suffice, or the output directory holds
    /// checkpoints of another run.</exception>
    /// <exception cref="InvalidDataException">No row is left to learn from.</exception>
    /// <exception cref="CudaException">A kernel failed on the GPU.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled before the first step.</exception>
    public VisionLanguageTransformer Fit(IDataView train, IDataView? validation)
    {
        ArgumentNullException.ThrowIfNull(train);
        var host = new StepHost(_environment, Options.GetType().Name.Replace("Options", ""));
        TrainingReader.Check(Options, host, train.Schema);
        if (validation is not null) TrainingReader.Check(Options, host, validation.Schema);
        using var signal = new StopSignal(host);
        using var stop = CancellationTokenSource.CreateLinkedTokenSource(signal.Token, Options.Cancellation);
        stop.Token.ThrowIfCancellationRequested();

        var config = TrainingModel.ConfigOf(Options);
        var rows = new TrainingReader(Options, config, host, stop.Token).Read(train, keepAsked: false, "training");
        var validationRows = validation is null ? null
            : new TrainingReader(Options, config, host, stop.Token).Read(validation, keepAsked: Options.Metric != ValidationMetric.Loss, "validation");
        VisionLanguageModel model;
        try
        {
            using var loop = new TrainingLoop(Options, host, rows, validationRows);
            model = loop.Run(stop.Token);
        }
        catch (Exception e) when (CudaFaults.Behind(e) is { } fault)
        {
            throw fault;
        }
        try
        {
            return new(_environment, _settings, SharedModel.Own(model));
        }
        catch
        {
            model.Dispose();
            throw;
        }
    }

    /// <summary>The columns after the trained step, for the checks of a pipeline before it is fitted.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of another kind.</exception>
    public SchemaShape GetOutputSchema(SchemaShape inputSchema)
    {
        ArgumentNullException.ThrowIfNull(inputSchema);
        var step = Step.Create(_settings, TrainingModel.ConfigOf(Options));
        var inputs = step.Bind(_environment, MlNet.Columns(inputSchema));
        return MlNet.Append(inputSchema, step.Outputs(inputs));
    }
}
