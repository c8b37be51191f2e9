using MambaVL.Generation;
using MambaVL.Images;
using MambaVL.Models;
using MambaVL.Prompts;

namespace MambaVL.Training;

/// <summary>What a trainer does with a row that it cannot use.</summary>
public enum RowTreatment
{
    /// <summary>Training does not begin: a <see cref="TrainingRowException"/> names the row and the column.</summary>
    Fail,

    /// <summary>The row is left out, counted and logged.</summary>
    Skip,
}

/// <summary>The precision of the forward and backward pass. Weights are always learnt in float32.</summary>
public enum TrainingPrecision
{
    /// <summary>bfloat16 on a GPU, float32 on the CPU.</summary>
    Auto,

    /// <summary>float32.</summary>
    Float32,

    /// <summary>bfloat16, but for the parameters that act through exponentials (Mamba's A_log, D and dt_proj.bias).</summary>
    BFloat16,
}

/// <summary>What tells how good a model is while it learns. Always over all validation rows that it applies to.</summary>
public enum ValidationMetric
{
    /// <summary>The loss; less is better. The cheapest: no text is generated.</summary>
    Loss,

    /// <summary>The share of QuestionAnswering and MultipleChoice rows that are answered as their target says.</summary>
    AnswerAccuracy,

    /// <summary>The share of Grounding rows whose box overlaps the true one by more than half (IoU).</summary>
    GroundingAccuracy,

    /// <summary>CIDEr of the Captioning rows; rows about one image are each other's references.</summary>
    Cider,
}

/// <summary>The names of the columns that a trainer reads.</summary>
public sealed record TrainingColumns
{
    /// <summary>The image: a path (text), a file's bytes (vector of Byte) or an MLImage. Rows with the same path or bytes share
    /// one picture.</summary>
    public string Image { get; init; } = "Image";

    /// <summary>Text: a <see cref="VisionTask"/>'s name, ignoring case. Not looked at where <see cref="TrainingOptions.Task"/> is given.</summary>
    public string Task { get; init; } = "Task";

    /// <summary>Text: the question, the phrase to find, the description to judge, the user's message, or an instruction of one's
    /// own for captions. The column may be absent where no task needs it.</summary>
    public string Question { get; init; } = "Question";

    /// <summary>A vector of text, for MultipleChoice. May be absent.</summary>
    public string Choices { get; init; } = "Choices";

    /// <summary>Text: what the model is to say. May be absent where all rows are Grounding.</summary>
    public string Target { get; init; } = "Target";

    /// <summary>A vector of four Single, x0, y0, x1, y1 in pixels of the image: what Grounding is to find, and DenseCaptioning to
    /// describe. Of GroundedCaptioning, four numbers for each box. May be absent.</summary>
    public string Box { get; init; } = "Box";
}

/// <summary>What every trainer can be told. Immutable: <c>Fit</c> changes neither the options nor the model in them.</summary>
/// <remarks>docs/trainers.md gives the reason for each default.</remarks>
public abstract record TrainingOptions
{
    private protected TrainingOptions(double learningRate) => LearningRate = learningRate;

    /// <summary>The model to start from. It stays the caller's and as it is: a copy of its weights is trained, where they are.</summary>
    public required VisionLanguageModel Model { get; init; }

    /// <summary>The columns.</summary>
    public TrainingColumns Columns { get; init; } = new();

    /// <summary>The task of all rows; null: each row's <see cref="TrainingColumns.Task"/>.</summary>
    public VisionTask? Task { get; init; }

    /// <summary>The column that the fitted transformer adds: what the model says to each row's task. Default: Answer. Also
    /// <c>.Box</c>, <c>.Box.Readable</c>, <c>.Text</c> and <c>.Ids</c>.</summary>
    public string OutputColumn { get; init; } = "Answer";

    /// <summary>Passes over the data, at least 1. Default: 1.</summary>
    public int Epochs { get; init; } = 1;

    /// <summary>Updates of the weights in all; the schedule ends there, whatever <see cref="Epochs"/> says. Null: as many as the
    /// epochs take.</summary>
    public int? MaxSteps { get; init; }

    /// <summary>Rows that one update learns from. Default: 32.</summary>
    public int BatchSize { get; init; } = 32;

    /// <summary>Rows that go through the model at once; gradients of several such micro-batches add up to one update. Changes
    /// memory and speed, and the result only by rounding. Null: <see cref="BatchSize"/>.</summary>
    public int? MicroBatchSize { get; init; }

    /// <summary>Rows about one image that stand together, so that its encoding is shared. Default: 4. With 1 rows are shuffled
    /// without regard to their images.</summary>
    public int RowsPerImage { get; init; } = 4;

    /// <summary>The highest learning rate, which the warm-up ends at.</summary>
    public double LearningRate { get; init; }

    /// <summary>The share of the steps in which the learning rate rises, 0 to 1. Default: 0.03.</summary>
    public double WarmupShare { get; init; } = 0.03;

    /// <summary>Where the cosine ends, as a share of <see cref="LearningRate"/>, 0 to 1. Default: 0.</summary>
    public double FinalShare { get; init; }

    /// <summary>AdamW's memory of gradients. Default: 0.9.</summary>
    public double Beta1 { get; init; } = 0.9;

    /// <summary>AdamW's memory of their squares. Default: 0.999.</summary>
    public double Beta2 { get; init; } = 0.999;

    /// <summary>Added to the root of the squares. Default: 1e-8.</summary>
    public double Epsilon { get; init; } = 1e-8;

    /// <summary>What matrices lose of themselves in each step, times the learning rate. Default: 0. Vectors (norms, biases, D) and
    /// A_log never decay.</summary>
    public double WeightDecay { get; init; }

    /// <summary>The greatest norm of all gradients together; longer ones are shortened. Default: 1. Null: never.</summary>
    public double? ClipNorm { get; init; } = 1;

    /// <summary>The most ids of a row, its image included. Default: 1024. A row that is longer is not cut, for its answer would be:
    /// see <see cref="OnLongRow"/>.</summary>
    public int MaxLength { get; init; } = 1024;

    /// <summary>What becomes of rows over <see cref="MaxLength"/>. Default: they are skipped.</summary>
    public RowTreatment OnLongRow { get; init; } = RowTreatment.Skip;

    /// <summary>What becomes of rows whose image, task, target or box is missing or impossible. Default: training does not begin.</summary>
    public RowTreatment OnBadRow { get; init; } = RowTreatment.Fail;

    /// <summary>The same seed, data and options give the same model, on the CPU to the last bit. Default: 1.</summary>
    public long Seed { get; init; } = 1;

    /// <summary>The precision of the computation. Default: by the device.</summary>
    public TrainingPrecision Precision { get; init; } = TrainingPrecision.Auto;

    /// <summary>Pixels on a side of the square that images are squashed to, a multiple of the patch size; the trained model keeps
    /// it. Null: the model's own.</summary>
    public int? ImageSize { get; init; }

    /// <summary>Whether the instruction stands before the image; the trained model keeps it. Null: as the model has it.</summary>
    public bool? InstructionFirst { get; init; }

    /// <summary>The norm of a Mamba from here on. LayerNorm starts from an RMSNorm's weights with a bias of zero, which is not the
    /// same function: the authors trained so, in both stages. Null, the default: as the model has it.</summary>
    public NormKind? Norm { get; init; }

    /// <summary>How images are read.</summary>
    public ImageDecoderOptions Images { get; init; } = ImageDecoderOptions.Default;

    /// <summary>Bytes of memory for decoded, squashed images, which later epochs need not decode again. Default: 2 GiB.</summary>
    public long PixelMemory { get; init; } = 2L << 30;

    /// <summary>Bytes of memory (of the computer, not of the GPU) for what a frozen encoder made of images, which later epochs need
    /// not encode again. Default: 2 GiB.</summary>
    public long FeatureMemory { get; init; } = 2L << 30;

    /// <summary>A folder for checkpoints. A run that was killed goes on from there when it is started again with the same options
    /// and data. Null: no checkpoints.</summary>
    public string? OutputDirectory { get; init; }

    /// <summary>Steps from one checkpoint to the next. Null: by time only. Default: null.</summary>
    public int? CheckpointSteps { get; init; }

    /// <summary>Time from one checkpoint to the next. Null: by steps only. Default: 10 minutes.</summary>
    public TimeSpan? CheckpointInterval { get; init; } = TimeSpan.FromMinutes(10);

    /// <summary>The newest checkpoints that are kept, at least 1. Default: 2.</summary>
    public int KeepCheckpoints { get; init; } = 2;

    /// <summary>What is measured on the validation set. Default: the loss.</summary>
    public ValidationMetric Metric { get; init; } = ValidationMetric.Loss;

    /// <summary>Steps from one validation to the next; there is one after the last step as well. Null: after each epoch.</summary>
    public int? ValidationSteps { get; init; }

    /// <summary>Validations without a new best after which training ends. Null: never. Whenever there is a validation set, the
    /// weights of the best validation are returned.</summary>
    public int? Patience { get; init; }

    /// <summary>How answers are generated for a validation metric. Default: greedy, at most 64 tokens.</summary>
    public GenerationOptions Generation { get; init; } = new() { MaxNewTokens = 64 };

    /// <summary>Steps from one report of progress to the next. Default: 10.</summary>
    public int ReportSteps { get; init; } = 10;

    /// <summary>Is told how training goes, on the training thread. The MLContext's log is told in any case.</summary>
    public Action<TrainingProgress>? OnProgress { get; init; }

    /// <summary>Whether <see cref="OutputDirectory"/> also gets a log that TensorBoard reads and a picture of the curves, loss.png.
    /// Default: yes.</summary>
    public bool WriteLogs { get; init; } = true;

    /// <summary>Whether the standard error stream shows how far training is: a line that is rewritten where it is a console.
    /// Default: no.</summary>
    public bool ShowProgress { get; init; }

    /// <summary>Ends training after the step that runs; the model as it then stands is returned, and a checkpoint written.
    /// <c>mlContext.CancelExecution()</c> and <see cref="MambaVL.Transforms.StepCancellation"/> do the same.</summary>
    public CancellationToken Cancellation { get; init; }

    internal int RowsAtOnce => Math.Min(MicroBatchSize ?? BatchSize, BatchSize);

    /// <summary>Whether a parameter learns, and by which share of the learning rate; 0 where it stays as it is.</summary>
    /// <param name="name">Its key in a checkpoint.</param>
    internal abstract double Share(string name);

    internal virtual LoraOptions? Adapters => null;

    /// <exception cref="ArgumentException">An option has a value that it cannot have.</exception>
    internal TrainingOptions Checked()
    {
        ArgumentNullException.ThrowIfNull(Model);
        ArgumentNullException.ThrowIfNull(Columns);
        ArgumentNullException.ThrowIfNull(Images);
        ArgumentNullException.ThrowIfNull(Generation);
        ArgumentException.ThrowIfNullOrWhiteSpace(OutputColumn);
        foreach (var name in new[] { Columns.Image, Columns.Task, Columns.Question, Columns.Choices, Columns.Target, Columns.Box })
            ArgumentException.ThrowIfNullOrWhiteSpace(name, nameof(Columns));
        Need(Epochs >= 1, nameof(Epochs), Epochs, "1 or more");
        Need(MaxSteps is null or >= 1, nameof(MaxSteps), MaxSteps, "1 or more, or null");
        Need(BatchSize >= 1, nameof(BatchSize), BatchSize, "1 or more");
        Need(MicroBatchSize is null or >= 1, nameof(MicroBatchSize), MicroBatchSize, "1 or more, or null");
        Need(RowsPerImage >= 1, nameof(RowsPerImage), RowsPerImage, "1 or more");
        Need(LearningRate > 0 && double.IsFinite(LearningRate), nameof(LearningRate), LearningRate, "more than 0");
        Need(WarmupShare is >= 0 and <= 1, nameof(WarmupShare), WarmupShare, "0 to 1");
        Need(FinalShare is >= 0 and <= 1, nameof(FinalShare), FinalShare, "0 to 1");
        Need(Beta1 is >= 0 and < 1, nameof(Beta1), Beta1, "0 to less than 1");
        Need(Beta2 is >= 0 and < 1, nameof(Beta2), Beta2, "0 to less than 1");
        Need(Epsilon > 0 && double.IsFinite(Epsilon), nameof(Epsilon), Epsilon, "more than 0");
        Need(WeightDecay >= 0 && double.IsFinite(WeightDecay), nameof(WeightDecay), WeightDecay, "0 or more");
        Need(ClipNorm is null or > 0, nameof(ClipNorm), ClipNorm, "more than 0, or null");
        Need(MaxLength >= 1, nameof(MaxLength), MaxLength, "1 or more");
        Need(Enum.IsDefined(OnLongRow), nameof(OnLongRow), OnLongRow, "Fail or Skip");
        Need(Enum.IsDefined(OnBadRow), nameof(OnBadRow), OnBadRow, "Fail or Skip");
        Need(Enum.IsDefined(Precision), nameof(Precision), Precision, "Auto, Float32 or BFloat16");
        Need(Enum.IsDefined(Metric), nameof(Metric), Metric, string.Join(", ", Enum.GetNames<ValidationMetric>()));
        Need(Task is null || Enum.IsDefined(Task.Value), nameof(Task), Task, "a task, or null");
        var patch = Model.Vision.PatchSize;
        Need(ImageSize is null || (ImageSize >= patch && ImageSize % patch == 0), nameof(ImageSize), ImageSize, $"a multiple of the patch size {patch}, or null");
        Need(PixelMemory >= 0, nameof(PixelMemory), PixelMemory, "0 or more");
        Need(FeatureMemory >= 0, nameof(FeatureMemory), FeatureMemory, "0 or more");
        Need(CheckpointSteps is null or >= 1, nameof(CheckpointSteps), CheckpointSteps, "1 or more, or null");
        Need(CheckpointInterval is null || CheckpointInterval > TimeSpan.Zero, nameof(CheckpointInterval), CheckpointInterval, "more than no time, or null");
        Need(KeepCheckpoints >= 1, nameof(KeepCheckpoints), KeepCheckpoints, "1 or more");
        Need(ValidationSteps is null or >= 1, nameof(ValidationSteps), ValidationSteps, "1 or more, or null");
        Need(Patience is null or >= 1, nameof(Patience), Patience, "1 or more, or null");
        Need(ReportSteps >= 1, nameof(ReportSteps), ReportSteps, "1 or more");
        if (Model.Language.HasAdapters) throw new ArgumentException("TrainingOptions.Model has LoRA adapters attached, which its weights do not show; merge them or dispose of them first.", nameof(Model));
        CheckNorm();
        CheckFurther();
        return this;
    }

    private void CheckNorm()
    {
        if (Norm is not { } norm) return;
        Need(Enum.IsDefined(norm), nameof(Norm), norm, "RmsNorm, LayerNorm or null");
        if (Model.Language is not Mamba mamba) throw new ArgumentException("TrainingOptions.Norm is given for a GPT-NeoX, which has LayerNorm always; leave it null.", nameof(Norm));
        if (mamba.Config.Norm == NormKind.LayerNorm && norm == NormKind.RmsNorm)
            throw new ArgumentException("TrainingOptions.Norm is RmsNorm for a model whose LayerNorm was trained; its biases would be lost. Leave it null.", nameof(Norm));
    }

    private protected virtual void CheckFurther()
    {
    }

    private protected static void Need(bool isSo, string name, object? found, string expected)
    {
        if (!isSo) throw new ArgumentOutOfRangeException(name, found, FormattableString.Invariant($"TrainingOptions.{name} is {found ?? "null"}; expected {expected}."));
    }
}

/// <summary>Stage 1: only the connector learns, from captions, to say in the language model's terms what the encoder saw.</summary>
public sealed record PretrainConnectorOptions : TrainingOptions
{
    /// <summary>The authors' learning rate for this stage.</summary>
    public const double DefaultLearningRate = 1e-3;

    /// <summary>The defaults.</summary>
    public PretrainConnectorOptions() : base(DefaultLearningRate)
    {
    }

    internal override double Share(string name) => name.StartsWith(VisionLanguageModel.ConnectorPrefix, StringComparison.Ordinal) ? 1 : 0;
}

/// <summary>Stage 2: connector and language model learn the tasks; the vision encoder as well where that is asked for.</summary>
public sealed record InstructionTuneOptions : TrainingOptions
{
    /// <summary>The authors' learning rate for this stage.</summary>
    public const double DefaultLearningRate = 2e-5;

    /// <summary>The defaults.</summary>
    public InstructionTuneOptions() : base(DefaultLearningRate)
    {
    }

    /// <summary>Whether the vision encoder learns too. Default: no. A model that starts from random weights needs it.</summary>
    public bool TrainVisionEncoder { get; init; }

    /// <summary>The encoder's learning rate as a share of <see cref="TrainingOptions.LearningRate"/>. Default: 1.</summary>
    public double VisionShare { get; init; } = 1;

    /// <summary>The connector's learning rate as a share of <see cref="TrainingOptions.LearningRate"/>. Default: 1.</summary>
    public double ConnectorShare { get; init; } = 1;

    /// <summary>Adapters that learn in the language model's place, which stays as it is but for them. The returned model has them
    /// merged into its weights; apart from it they are in <see cref="TrainingOptions.OutputDirectory"/>, lora.safetensors. Null,
    /// the default: the language model itself learns.</summary>
    public LoraOptions? Lora { get; init; }

    internal override LoraOptions? Adapters => Lora;

    internal override double Share(string name)
        => name.StartsWith(VisionLanguageModel.ConnectorPrefix, StringComparison.Ordinal) ? ConnectorShare
            : name.StartsWith(VisionLanguageModel.VisionPrefix, StringComparison.Ordinal) ? (TrainVisionEncoder ? VisionShare : 0)
            : Lora is null || LoraAdapters.IsParameter(name) ? 1 : 0;

    private protected override void CheckFurther()
    {
        Need(VisionShare > 0 && double.IsFinite(VisionShare), nameof(VisionShare), VisionShare, "more than 0");
        Need(ConnectorShare > 0 && double.IsFinite(ConnectorShare), nameof(ConnectorShare), ConnectorShare, "more than 0");
        Lora?.Check();
    }
}
