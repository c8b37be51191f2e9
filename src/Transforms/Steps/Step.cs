using MambaVL.Models;
using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms.Image;

namespace MambaVL.Transforms;

/// <summary>What a step computes: its columns, and their values for a batch of rows.</summary>
internal abstract class Step(StepSettings settings, VisionLanguageConfig config)
{
    public const string SizeSuffix = ".Size", ErrorSuffix = ".Error";

    /// <summary>The annotation of a feature column that says which of the two it is.</summary>
    public const string FeatureAnnotation = "MambaVLFeatures";

    protected static readonly VectorDataViewType SizeType = new(NumberDataViewType.Int32, 2);

    public StepSettings Settings { get; } = settings;

    public VisionLanguageConfig Config { get; } = config;

    public int Patches { get; } = (config.Images.ImageSize / config.Vision.PatchSize) * (config.Images.ImageSize / config.Vision.PatchSize);

    protected int PatchWidth => Config.Vision.FeatureWidth;

    protected int EmbeddingWidth => checked((int)Config.Language.HiddenSize);

    public static Step Create(StepSettings settings, VisionLanguageConfig config) => settings.Kind switch
    {
        StepKind.EncodeImages => new EncodeStep(settings, config),
        StepKind.ConnectImages => new ConnectStep(settings, config),
        StepKind.GenerateText => new PromptStep(settings, config),
        StepKind.CaptionImages => new CaptionStep(settings, config),
        StepKind.AnswerQuestions => new AnswerStep(settings, config),
        StepKind.ChooseAnswers => new ChooseStep(settings, config),
        StepKind.GroundPhrases => new GroundStep(settings, config),
        StepKind.MatchCaptions => new MatchStep(settings, config),
        StepKind.FollowTasks => new TaskStep(settings, config),
        _ => new DescribeStep(settings, config),
    };

    /// <summary>Checks the input columns.</summary>
    /// <exception cref="ArgumentOutOfRangeException">ML.NET's schema mismatch.</exception>
    public virtual StepInputs Bind(IHostEnvironment environment, IReadOnlyDictionary<string, ColumnFacts> columns)
    {
        var image = Require(environment, columns, "image", Settings.Image);
        var kind = ReadKind(image) ?? throw MlNet.SchemaMismatch(environment, "image", image.Name, ExpectedImage(image), image.TypeName);
        var size = kind is ImageKind.Patches or ImageKind.Embeddings && columns.TryGetValue(Settings.Image + SizeSuffix, out var found)
            && found.ItemType == NumberDataViewType.Int32 && found.Kind != SchemaShape.Column.VectorKind.Scalar ? found.Name : null;
        if (Settings.Text is { } text && Expects(columns, text)) CheckText(environment, Require(environment, columns, "text", text));
        if (Settings.Choices is { } choices && Expects(columns, choices))
        {
            var column = Require(environment, columns, "choices", choices);
            if (column.ItemType is not TextDataViewType || column.Kind == SchemaShape.Column.VectorKind.Scalar)
                throw MlNet.SchemaMismatch(environment, "choices", column.Name, "a vector of text", column.TypeName);
        }
        return new(kind, size);
    }

    /// <summary>The new columns.</summary>
    public abstract IEnumerable<DataViewSchema.DetachedColumn> Outputs(StepInputs inputs);

    /// <summary>Computes rows that have no error yet. A row that cannot be computed gets an error; the others go on.</summary>
    /// <param name="model">The model.</param>
    /// <param name="rows">At least one.</param>
    /// <param name="results">Where values and errors go, at each row's index.</param>
    /// <param name="wanted">Which of the outputs are asked for.</param>
    /// <param name="stop">Looked at before each row and each token.</param>
    public abstract void Run(VisionLanguageModel model, IReadOnlyList<RowInput> rows, StepResults results, bool[] wanted, StopSignal stop);

    /// <summary>Writes the empty value of each column for a row with an error.</summary>
    public abstract void SetEmpty(StepResults results, int row);

    protected IEnumerable<DataViewSchema.DetachedColumn> WithError(params DataViewSchema.DetachedColumn[] columns)
        => Settings.OnError == RowErrors.EmptyResult ? [.. columns, new(Settings.Output + ErrorSuffix, TextDataViewType.Instance)] : columns;

    protected DataViewSchema.DetachedColumn FeatureColumn(int width, FeatureKind kind)
    {
        var annotations = new DataViewSchema.Annotations.Builder();
        annotations.AddPrimitiveValue(FeatureAnnotation, TextDataViewType.Instance, kind.ToString().AsMemory());
        return new(Settings.Output, new VectorDataViewType(NumberDataViewType.Single, Patches, width), annotations.ToAnnotations());
    }

    protected virtual void CheckText(IHostEnvironment environment, ColumnFacts column)
    {
        if (column.ItemType is not TextDataViewType || column.Kind != SchemaShape.Column.VectorKind.Scalar)
            throw MlNet.SchemaMismatch(environment, "text", column.Name, "text", column.TypeName);
    }

    /// <summary>Whether a column is looked at; one that is and is not there is an error.</summary>
    protected virtual bool Expects(IReadOnlyDictionary<string, ColumnFacts> columns, string name) => true;

    /// <summary>What the column holds, or null where this step cannot take it.</summary>
    protected virtual ImageKind? ReadKind(ColumnFacts column) => column switch
    {
        { Kind: SchemaShape.Column.VectorKind.Scalar, ItemType: ImageDataViewType } => ImageKind.MLImage,
        { Kind: SchemaShape.Column.VectorKind.Scalar, ItemType: TextDataViewType } => ImageKind.Path,
        { Kind: SchemaShape.Column.VectorKind.Scalar } => null,
        _ when column.ItemType == NumberDataViewType.Byte => ImageKind.Bytes,
        { Kind: SchemaShape.Column.VectorKind.Vector } when column.ItemType == NumberDataViewType.Single => ReadFeatures(column),
        _ => null,
    };

    protected ImageKind? ReadFeatures(ColumnFacts column)
    {
        var kind = Settings.Features != FeatureKind.Auto ? Settings.Features : column.Features;
        bool patches = Fits(PatchWidth), embeddings = Fits(EmbeddingWidth);
        return kind switch
        {
            FeatureKind.Patches => patches ? ImageKind.Patches : null,
            FeatureKind.Embeddings => embeddings ? ImageKind.Embeddings : null,
            _ => patches ? ImageKind.Patches : embeddings ? ImageKind.Embeddings : null,
        };

        bool Fits(int width) => column.Size == 0 || column.Size == (long)Patches * width;
    }

    protected virtual string ExpectedImage(ColumnFacts column)
        => $"an image (MLImage), a path (text), a file's bytes (a vector of byte), or the features of a {Patches} x {PatchWidth} or {Patches} x {EmbeddingWidth} vector of Single";

    protected static ColumnFacts Require(IHostEnvironment environment, IReadOnlyDictionary<string, ColumnFacts> columns, string role, string name)
        => columns.TryGetValue(name, out var column) ? column : throw MlNet.SchemaMismatch(environment, role, name);
}
