using System.Text.Json;
using System.Text.Json.Serialization;
using MambaVL.Generation;
using MambaVL.Images;
using MambaVL.Prompts;

namespace MambaVL.Transforms;

/// <summary>The steps. Their names stand in saved pipelines.</summary>
internal enum StepKind
{
    EncodeImages,
    ConnectImages,
    GenerateText,
    CaptionImages,
    AnswerQuestions,
    ChooseAnswers,
    GroundPhrases,
    MatchCaptions,
    DescribeRegions,
    FollowTasks,
}

/// <summary>All that a step is, but for its model. Written into saved pipelines as JSON.</summary>
internal sealed record StepSettings
{
    private static readonly JsonSerializerOptions Json = new() { Converters = { new JsonStringEnumConverter() } };

    public required StepKind Kind { get; init; }

    /// <summary>The output column; further ones have its name, a point and what they hold.</summary>
    public required string Output { get; init; }

    /// <summary>The image column, or one of features.</summary>
    public required string Image { get; init; }

    /// <summary>The prompt, question, phrase or caption; of DescribeRegions, the box.</summary>
    public string? Text { get; init; }

    public string? Choices { get; init; }

    /// <summary>Of FollowTasks: the column that names each row's task, or null where all have <see cref="Task"/>.</summary>
    public string? TaskColumn { get; init; }

    public VisionTask? Task { get; init; }

    /// <summary>Of FollowTasks: the column of the regions to describe, or null.</summary>
    public string? Regions { get; init; }

    public int? BatchSize { get; init; }

    public RowErrors OnError { get; init; }

    public ImageDecoderOptions Images { get; init; } = ImageDecoderOptions.Default;

    public WeightStorage Weights { get; init; }

    public FeatureKind Features { get; init; }

    public GenerationOptions Generation { get; init; } = new();

    public string ToJson() => JsonSerializer.Serialize(this, Json);

    /// <exception cref="InvalidDataException">It is not what <see cref="ToJson"/> gives.</exception>
    public static StepSettings Parse(string json)
    {
        try
        {
            return JsonSerializer.Deserialize<StepSettings>(json, Json)?.Checked() ?? throw new JsonException("null");
        }
        catch (Exception e) when (e is JsonException or ArgumentException or NotSupportedException)
        {
            throw new InvalidDataException($"The settings of a step are damaged: {e.Message}", e);
        }
    }

    /// <exception cref="ArgumentException">A column has no name, or an option is null or unknown.</exception>
    public StepSettings Checked()
    {
        ArgumentException.ThrowIfNullOrWhiteSpace(Output, "outputColumnName");
        ArgumentException.ThrowIfNullOrWhiteSpace(Image, "imageColumnName");
        if (Kind is not (StepKind.EncodeImages or StepKind.ConnectImages or StepKind.CaptionImages or StepKind.FollowTasks))
            ArgumentException.ThrowIfNullOrWhiteSpace(Text, Kind switch
            {
                StepKind.GenerateText => "promptColumnName", StepKind.GroundPhrases => "phraseColumnName",
                StepKind.MatchCaptions => "captionColumnName", StepKind.DescribeRegions => "boxColumnName", _ => "questionColumnName",
            });
        if (Kind == StepKind.ChooseAnswers) ArgumentException.ThrowIfNullOrWhiteSpace(Choices, "choicesColumnName");
        if (Kind == StepKind.FollowTasks && TaskColumn is null && Task is null)
            throw new ArgumentException("Neither a column of tasks nor a task for all rows is named.");
        Known(Kind);
        Known(OnError);
        Known(Weights);
        Known(Features);
        ArgumentNullException.ThrowIfNull(Images);
        ArgumentNullException.ThrowIfNull(Generation);
        Generation.Checked();
        return this;

        static void Known<T>(T value) where T : struct, Enum
        {
            if (!Enum.IsDefined(value)) throw new ArgumentException($"Found {typeof(T).Name} {value}; expected one of {string.Join(", ", Enum.GetNames<T>())}.");
        }
    }
}
