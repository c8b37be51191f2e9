using MambaVL.Metrics;
using MambaVL.Transforms;

namespace Microsoft.ML;

/// <summary>Gives an <see cref="MLContext"/> its <see cref="VisionLanguageOperations"/>.</summary>
public static class VisionLanguageContext
{
    /// <summary>What there is to do with images and text beside pipeline steps, as <c>mlContext.BinaryClassification</c> is
    /// for its task. The steps are in <c>mlContext.Transforms</c>.</summary>
    /// <param name="context">The context.</param>
    public static VisionLanguageOperations VisionLanguage(this MLContext context)
    {
        ArgumentNullException.ThrowIfNull(context);
        return new(context);
    }
}

/// <summary>Trainers of models, and metrics of what models say about images:
/// <c>mlContext.VisionLanguage().EvaluateCaptions(predictions)</c>.</summary>
/// <remarks>
/// <para>Each metric reads the data once, row by row, and gives each row's scores as well. No value is ever NaN.
/// docs/metrics.md has formulas and sources.</para>
/// <para>All methods throw an <see cref="ArgumentOutOfRangeException"/> where a column is missing or of another kind (ML.NET's
/// schema mismatch), and an <see cref="InvalidDataException"/> where there is no row or a row lacks its truth.</para>
/// </remarks>
public sealed class VisionLanguageOperations
{
    internal VisionLanguageOperations(MLContext context) => Trainers = new(MlNet.Environment(context.Transforms));

    /// <summary>Estimators whose Fit trains a model.</summary>
    public VisionLanguageTrainers Trainers { get; }

    /// <summary>BLEU, ROUGE-L and CIDEr of captions.</summary>
    /// <param name="data">The predictions.</param>
    /// <param name="referencesColumnName">What people wrote: a vector of text (blank ones are skipped, one must be left), or one text.</param>
    /// <param name="captionColumnName">What the model wrote, text. An empty caption scores 0.</param>
    /// <param name="tokenized">Whether both columns hold words with spaces between them, as another tokeniser gave them; they are
    /// taken as they are. If not, <see cref="CaptionTokenizer"/> finds the words.</param>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of another kind.</exception>
    /// <exception cref="InvalidDataException">There are no rows, or one has no reference.</exception>
    public CaptionMetrics EvaluateCaptions(IDataView data, string referencesColumnName = "References", string captionColumnName = "Caption",
        bool tokenized = false)
    {
        ArgumentNullException.ThrowIfNull(data);
        var references = MetricColumns.Require(data, "references", referencesColumnName, MetricColumns.IsTexts, "a vector of String, or String");
        var caption = MetricColumns.Require(data, "caption", captionColumnName, MetricColumns.IsText, "String");
        using var rows = new MetricRows(data, references, caption);
        var (readReferences, readCaption) = (rows.Texts(references), rows.Text(caption));
        var scorer = new CaptionScorer();
        rows.Read(() =>
        {
            var words = readReferences().Select(Words).Where(r => r.Count > 0).ToList();
            if (words.Count == 0) throw rows.Bad(references, "found references of nothing but punctuation; expected a word at least.");
            scorer.Add(Words(readCaption()), words);
            return true;
        });
        return scorer.Score();

        IReadOnlyList<string> Words(string text)
            => tokenized ? text.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries) : CaptionTokenizer.Tokenize(text);
    }

    /// <summary>Both VQA accuracies, and exact match, of answers.</summary>
    /// <param name="data">The predictions.</param>
    /// <param name="answersColumnName">What people answered: a vector of text, ten in VQA (blank ones are skipped, one must be left), or
    /// one text.</param>
    /// <param name="answerColumnName">What the model answered, text. An empty answer agrees with none.</param>
    /// <param name="normalizeAnswers">Whether the human answers are normalised as the model's is. False compares the accuracies as
    /// Mamba-VL's authors do, with the human answers as they were written.</param>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of another kind.</exception>
    /// <exception cref="InvalidDataException">There are no rows, or one has no human answer.</exception>
    public AnswerMetrics EvaluateAnswers(IDataView data, string answersColumnName = "Answers", string answerColumnName = "Answer",
        bool normalizeAnswers = true)
    {
        ArgumentNullException.ThrowIfNull(data);
        var answers = MetricColumns.Require(data, "answers", answersColumnName, MetricColumns.IsTexts, "a vector of String, or String");
        var answer = MetricColumns.Require(data, "answer", answerColumnName, MetricColumns.IsText, "String");
        using var rows = new MetricRows(data, answers, answer);
        var (readAnswers, readAnswer) = (rows.Texts(answers), rows.Text(answer));
        return AnswerMetrics.Of(rows.Read(() => AnswerScores.Of(readAnswer(), readAnswers(), normalizeAnswers)));
    }

    /// <summary>Accuracy at an overlap, and mean overlap, of boxes.</summary>
    /// <param name="data">The predictions.</param>
    /// <param name="trueBoxColumnName">The true box: a vector of four floats or doubles, the edges x0, y0, x1, y1.</param>
    /// <param name="boxColumnName">The model's box: such a vector in the same unit, as <c>GroundPhrases</c> gives it (not finite where
    /// there is none); or the model's text, of which the first <c>[...]</c> is read, as the authors' evaluation does.</param>
    /// <param name="readableColumnName">Bool: whether there is a box. Null takes <c>{box}.Readable</c> where the data has it.</param>
    /// <param name="imageSizeColumnName">For text, which holds shares of the image: width and height in pixels, a vector of two
    /// numbers, where the true boxes are in pixels. Null where they are shares.</param>
    /// <param name="iouThreshold">The intersection's area over the union's that a right box exceeds, 0 to less than 1.</param>
    /// <remarks>The step's boxes lie within the image with their edges in order; the text's are scored as they were written, and
    /// one with its edges out of order overlaps nothing. So text gives the reference's number, and the box column one that can be higher.</remarks>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of another kind, or the threshold is not 0 to less than 1.</exception>
    /// <exception cref="ArgumentException">An image size is named, but the box column has numbers.</exception>
    /// <exception cref="InvalidDataException">There are no rows, or one has no true box with an area, or no size.</exception>
    public GroundingMetrics EvaluateGrounding(IDataView data, string trueBoxColumnName = "TrueBox", string boxColumnName = "Box",
        string? readableColumnName = null, string? imageSizeColumnName = null, double iouThreshold = 0.5)
    {
        ArgumentNullException.ThrowIfNull(data);
        if (!(iouThreshold >= 0 && iouThreshold < 1))
            throw new ArgumentOutOfRangeException(nameof(iouThreshold), iouThreshold, "Expected an overlap from 0 to less than 1.");
        var truth = MetricColumns.Require(data, "true box", trueBoxColumnName, MetricColumns.IsBox, "a vector of 4 Single or Double");
        var box = MetricColumns.Require(data, "box", boxColumnName, MetricColumns.IsBoxOrText, "a vector of 4 Single or Double, or String");
        var readable = MetricColumns.Readable(data, readableColumnName, boxColumnName);
        if (imageSizeColumnName is not null && !MetricColumns.IsText(box.Type))
            throw new ArgumentException($"An image size is for boxes in text; column '{boxColumnName}' has numbers, which are compared as they are.", nameof(imageSizeColumnName));
        DataViewSchema.Column? size = imageSizeColumnName is null ? null
            : MetricColumns.Require(data, "image size", imageSizeColumnName, MetricColumns.IsSize, "a vector of 2 numbers");
        using var rows = new MetricRows(data, truth, box, readable, size);
        var readTruth = rows.TrueBox(truth);
        var readPredicted = MetricColumns.IsText(box.Type) ? rows.BoxInText(box, size) : rows.Box(box);
        var isReadable = readable is { } column ? rows.Bool(column) : () => true;
        return GroundingMetrics.Of(rows.Read(() =>
        {
            var expected = readTruth();
            if (MetricColumns.IsText(box.Type) && size is null && expected is not { X1: <= 2, Y1: <= 2 })
                throw rows.Bad(truth, $"found the box {MetricRows.Text(expected)}, in pixels, but the model's text has shares of the image; name imageSizeColumnName.");
            return GroundingScores.Of(expected, isReadable() ? readPredicted() : null, iouThreshold);
        }), iouThreshold);
    }

    /// <summary>Accuracy, precision, recall, F1 and yes-ratio of answers of yes or no, true or false.</summary>
    /// <param name="data">The predictions.</param>
    /// <param name="labelColumnName">The truth: bool, text (yes or no, true or false) or a number (1 or 0).</param>
    /// <param name="matchesColumnName">The model's answer: bool, as <c>MatchCaptions</c> gives it, or its text. No and false count as no,
    /// everything else as yes; case, space around the text and a full stop behind it do not matter.</param>
    /// <param name="readableColumnName">Bool: whether the text was readable; where not, the row counts as yes. Null takes
    /// <c>{matches}.Readable</c> where the data has it and the answers are bool.</param>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of another kind.</exception>
    /// <exception cref="InvalidDataException">There are no rows, or one's label is neither yes nor no.</exception>
    public MatchMetrics EvaluateMatches(IDataView data, string labelColumnName = "Label", string matchesColumnName = "Matches",
        string? readableColumnName = null)
    {
        ArgumentNullException.ThrowIfNull(data);
        var label = MetricColumns.Require(data, "label", labelColumnName, MetricColumns.IsLabel, "Boolean, String or a number");
        var matches = MetricColumns.Require(data, "matches", matchesColumnName, MetricColumns.IsBoolOrText, "Boolean or String");
        var readable = readableColumnName is null && MetricColumns.IsText(matches.Type) ? null
            : MetricColumns.Readable(data, readableColumnName, matchesColumnName);
        using var rows = new MetricRows(data, label, matches, readable);
        var readLabel = rows.Label(label);
        var readAnswer = MetricColumns.IsText(matches.Type) ? rows.YesOrNo(matches) : Nullable(rows.Bool(matches));
        var isReadable = readable is { } column ? rows.Bool(column) : () => true;
        return MatchMetrics.Of(rows.Read(() => MatchScores.Of(readLabel(), isReadable() ? readAnswer() : null)));

        static Func<bool?> Nullable(Func<bool> read) => () => read();
    }
}
