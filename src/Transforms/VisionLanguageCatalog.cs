using MambaVL;
using MambaVL.Transforms;

namespace Microsoft.ML;

/// <summary>Pipeline steps that see images and read and write text. docs/pipeline-steps.md has a table of their columns.</summary>
/// <remarks>
/// <para>An image column is an MLImage, a path (text), the bytes of an image file (a vector of byte), or features that
/// <see cref="EncodeImages"/> or <see cref="ConnectImages"/> gave (a vector of float).</para>
/// <para>A model stays the caller's: it must not be disposed of while a transformer that was made with it is used. One that
/// came with a loaded pipeline belongs to the pipeline.</para>
/// </remarks>
public static class VisionLanguageCatalog
{
    /// <summary>Images to patch features: once encoded, they serve any number of steps.</summary>
    /// <param name="catalog">The transforms of the MLContext.</param>
    /// <param name="outputColumnName">The new column: a vector of float, patches x the encoder's width. A second one,
    /// <c>{output}.Size</c>, has width and height of the original image in pixels.</param>
    /// <param name="imageColumnName">The image column.</param>
    /// <param name="model">The model; stays the caller's.</param>
    /// <param name="options">The defaults when null.</param>
    public static VisionLanguageEstimator EncodeImages(this TransformsCatalog catalog, string outputColumnName, string imageColumnName,
        VisionLanguageModel model, ImageStepOptions? options = null)
        => Make(catalog, StepKind.EncodeImages, outputColumnName, imageColumnName, model, options);

    /// <summary>Patch features to the language model's embeddings.</summary>
    /// <param name="catalog">The transforms of the MLContext.</param>
    /// <param name="outputColumnName">The new column: a vector of float, patches x the language model's width; and
    /// <c>{output}.Size</c> where <c>{features}.Size</c> is there.</param>
    /// <param name="featuresColumnName">What <see cref="EncodeImages"/> gave.</param>
    /// <param name="model">The model; stays the caller's.</param>
    /// <param name="options">The defaults when null.</param>
    public static VisionLanguageEstimator ConnectImages(this TransformsCatalog catalog, string outputColumnName, string featuresColumnName,
        VisionLanguageModel model, ImageStepOptions? options = null)
        => Make(catalog, StepKind.ConnectImages, outputColumnName, featuresColumnName, model, options);

    /// <summary>Whatever the model writes after an image and a prompt of the caller's own.</summary>
    /// <param name="catalog">The transforms of the MLContext.</param>
    /// <param name="outputColumnName">The new column, text; <c>{output}.Ids</c> has the tokens.</param>
    /// <param name="imageColumnName">The image column, or features.</param>
    /// <param name="promptColumnName">Text, given to the model as it is: write line breaks and all else that the model was
    /// trained on. May be empty.</param>
    /// <param name="model">The model; stays the caller's.</param>
    /// <param name="options">The defaults when null.</param>
    public static VisionLanguageEstimator GenerateText(this TransformsCatalog catalog, string outputColumnName, string imageColumnName,
        string promptColumnName, VisionLanguageModel model, TextStepOptions? options = null)
        => Make(catalog, StepKind.GenerateText, outputColumnName, imageColumnName, model, options, promptColumnName);

    /// <summary>A caption of a sentence for each image.</summary>
    /// <param name="catalog">The transforms of the MLContext.</param>
    /// <param name="outputColumnName">The new column, text.</param>
    /// <param name="imageColumnName">The image column, or features.</param>
    /// <param name="model">The model; stays the caller's.</param>
    /// <param name="options">The defaults when null.</param>
    public static VisionLanguageEstimator CaptionImages(this TransformsCatalog catalog, string outputColumnName, string imageColumnName,
        VisionLanguageModel model, TextStepOptions? options = null)
        => Make(catalog, StepKind.CaptionImages, outputColumnName, imageColumnName, model, options);

    /// <summary>An answer of a word or phrase to a question about each image.</summary>
    /// <param name="catalog">The transforms of the MLContext.</param>
    /// <param name="outputColumnName">The new column, text.</param>
    /// <param name="imageColumnName">The image column, or features.</param>
    /// <param name="questionColumnName">Text, as a person writes it.</param>
    /// <param name="model">The model; stays the caller's.</param>
    /// <param name="options">The defaults when null.</param>
    public static VisionLanguageEstimator AnswerQuestions(this TransformsCatalog catalog, string outputColumnName, string imageColumnName,
        string questionColumnName, VisionLanguageModel model, TextStepOptions? options = null)
        => Make(catalog, StepKind.AnswerQuestions, outputColumnName, imageColumnName, model, options, questionColumnName);

    /// <summary>One of several answers to a question about each image.</summary>
    /// <param name="catalog">The transforms of the MLContext.</param>
    /// <param name="outputColumnName">The new column, text: the choice as its column has it; empty where the model's text
    /// names none. <c>{output}.Index</c> has its number, the first is 0, or -1.</param>
    /// <param name="imageColumnName">The image column, or features.</param>
    /// <param name="questionColumnName">Text, as a person writes it.</param>
    /// <param name="choicesColumnName">A vector of 1 to 26 texts.</param>
    /// <param name="model">The model; stays the caller's.</param>
    /// <param name="options">The defaults when null.</param>
    public static VisionLanguageEstimator AnswerQuestions(this TransformsCatalog catalog, string outputColumnName, string imageColumnName,
        string questionColumnName, string choicesColumnName, VisionLanguageModel model, TextStepOptions? options = null)
        => Make(catalog, StepKind.ChooseAnswers, outputColumnName, imageColumnName, model, options, questionColumnName, choicesColumnName);

    /// <summary>The box of what a phrase describes in each image.</summary>
    /// <param name="catalog">The transforms of the MLContext.</param>
    /// <param name="outputColumnName">The new column: x0, y0, x1, y1 in pixels of the original image, four times NaN where
    /// the model's text holds no box; see <see cref="BoxColumn"/>. <c>{output}.Readable</c> says whether it holds one.</param>
    /// <param name="imageColumnName">The image column; or features, with their <c>.Size</c> column.</param>
    /// <param name="phraseColumnName">Text, as a person writes it.</param>
    /// <param name="model">The model; stays the caller's.</param>
    /// <param name="options">The defaults when null.</param>
    public static VisionLanguageEstimator GroundPhrases(this TransformsCatalog catalog, string outputColumnName, string imageColumnName,
        string phraseColumnName, VisionLanguageModel model, TextStepOptions? options = null)
        => Make(catalog, StepKind.GroundPhrases, outputColumnName, imageColumnName, model, options, phraseColumnName);

    /// <summary>Whether a description fits each image.</summary>
    /// <param name="catalog">The transforms of the MLContext.</param>
    /// <param name="outputColumnName">The new column, bool; false also where the model's text says neither, and then
    /// <c>{output}.Readable</c> is false.</param>
    /// <param name="imageColumnName">The image column, or features.</param>
    /// <param name="captionColumnName">Text: the description.</param>
    /// <param name="model">The model; stays the caller's.</param>
    /// <param name="options">The defaults when null.</param>
    public static VisionLanguageEstimator MatchCaptions(this TransformsCatalog catalog, string outputColumnName, string imageColumnName,
        string captionColumnName, VisionLanguageModel model, TextStepOptions? options = null)
        => Make(catalog, StepKind.MatchCaptions, outputColumnName, imageColumnName, model, options, captionColumnName);

    /// <summary>A short description of what is in a box of each image.</summary>
    /// <param name="catalog">The transforms of the MLContext.</param>
    /// <param name="outputColumnName">The new column, text.</param>
    /// <param name="imageColumnName">The image column; or features, with their <c>.Size</c> column.</param>
    /// <param name="boxColumnName">A vector of four floats: x0, y0, x1, y1 in pixels of the original image.</param>
    /// <param name="model">The model; stays the caller's.</param>
    /// <param name="options">The defaults when null.</param>
    public static VisionLanguageEstimator DescribeRegions(this TransformsCatalog catalog, string outputColumnName, string imageColumnName,
        string boxColumnName, VisionLanguageModel model, TextStepOptions? options = null)
        => Make(catalog, StepKind.DescribeRegions, outputColumnName, imageColumnName, model, options, boxColumnName);

    /// <summary>What the model says to each row's own task: for data in which captions, questions, phrases and so on follow each
    /// other, such as the trainers learn from (docs/dataset-format.md). Rows about one image share its encoding.</summary>
    /// <param name="catalog">The transforms of the MLContext.</param>
    /// <param name="outputColumnName">The new column, text: the caption, the answer, the choice, True or False. <c>{output}.Box</c> and
    /// <c>{output}.Box.Readable</c> have the boxes of grounding rows.</param>
    /// <param name="imageColumnName">The image column; or features, with their <c>.Size</c> column.</param>
    /// <param name="taskColumnName">Text: the name of a <see cref="MambaVL.Prompts.VisionTask"/>.</param>
    /// <param name="questionColumnName">Text: the question, phrase or description. May be absent where no task needs it.</param>
    /// <param name="model">The model; stays the caller's.</param>
    /// <param name="choicesColumnName">A vector of text, for MultipleChoice. May be absent.</param>
    /// <param name="boxColumnName">A vector of four floats, for DenseCaptioning. May be absent.</param>
    /// <param name="options">The defaults when null.</param>
    public static VisionLanguageEstimator FollowTasks(this TransformsCatalog catalog, string outputColumnName, string imageColumnName,
        string taskColumnName, string questionColumnName, VisionLanguageModel model, string choicesColumnName = "Choices",
        string boxColumnName = "Box", TextStepOptions? options = null)
        => Make(catalog, StepKind.FollowTasks, outputColumnName, imageColumnName, model, options, questionColumnName, choicesColumnName,
            taskColumnName, boxColumnName);

    /// <summary>Stops everything that runs in the context, steps within one token: their cursors and prediction engines throw
    /// an <see cref="OperationCanceledException"/>. A context that was cancelled stays so.</summary>
    /// <remarks>To stop one prediction and go on using the context, see <see cref="StepCancellation"/>.</remarks>
    /// <param name="context">The context that the pipeline was made or loaded with.</param>
    public static void CancelExecution(this MLContext context)
    {
        ArgumentNullException.ThrowIfNull(context);
        MlNet.Cancel(context);
    }

    private static VisionLanguageEstimator Make(TransformsCatalog catalog, StepKind kind, string output, string image,
        VisionLanguageModel model, ImageStepOptions? options, string? text = null, string? choices = null, string? task = null, string? regions = null)
    {
        ArgumentNullException.ThrowIfNull(catalog);
        ArgumentNullException.ThrowIfNull(model);
        options ??= new TextStepOptions();
        return new(MlNet.Environment(catalog), new StepSettings
        {
            Kind = kind, Output = output, Image = image, Text = text, Choices = choices, TaskColumn = task, Regions = regions,
            BatchSize = options.BatchSize, OnError = options.OnError, Images = options.Images, Weights = options.Weights,
            Features = options.Features, Generation = (options as TextStepOptions)?.Generation ?? new(),
        }.Checked(), model);
    }
}
