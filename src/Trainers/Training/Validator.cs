using MambaVL.Generation;
using MambaVL.Images;
using MambaVL.Metrics;
using MambaVL.Prompts;
using MambaVL.Transforms;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Training;

/// <summary>Measures a model that is learning on a validation set: on all of its rows, each time.</summary>
internal sealed class Validator
{
    // Rows that are asked at once. Decoding reads the weights once a token for all of them.
    private const int AskedAtOnce = 16;

    private readonly TrainingData _data;
    private readonly TrainingOptions _options;
    private readonly int[] _rows;

    /// <exception cref="ArgumentException">The metric is of a task that no row of the validation set has.</exception>
    public Validator(TrainingOptions options, TrainingData data)
    {
        (_options, _data) = (options, data);
        _rows = options.Metric == ValidationMetric.Loss
            ? [.. Enumerable.Range(0, data.Rows.Length).OrderByDescending(i => data.Length(data.Rows[i])).ThenBy(i => data.Rows[i].Picture)]
            : [.. Enumerable.Range(0, data.Rows.Length).Where(i => Applies(data.Asked[i].Task)).OrderBy(i => data.Rows[i].Picture)];
        if (_rows.Length == 0)
            throw new ArgumentException($"TrainingOptions.Metric is {options.Metric}, and none of the {data.Rows.Length:N0} validation rows has a task that it measures.");
    }

    /// <summary>Rows that the metric is measured on.</summary>
    public int RowCount => _rows.Length;

    /// <summary>Whether a result is better than another.</summary>
    public bool IsBetter(double result, double than) => _options.Metric == ValidationMetric.Loss ? result < than : result > than;

    public double Measure(TrainingModel model, CancellationToken cancellation)
    {
        if (_options.Metric == ValidationMetric.Loss) return Loss(model, cancellation);
        return Score(Ask(model, cancellation));
    }

    /// <summary>The metric of what a model says to each row.</summary>
    internal double Score(IReadOnlyDictionary<int, string> texts) => _options.Metric switch
    {
        ValidationMetric.AnswerAccuracy => _rows.Average(i => IsRight(_data.Asked[i], texts[i]) ? 1.0 : 0),
        ValidationMetric.GroundingAccuracy => _rows.Average(i => Overlap(i, texts[i]) > 0.5 ? 1.0 : 0),
        _ => Cider(texts),
    };

    private bool Applies(VisionTask task) => _options.Metric switch
    {
        ValidationMetric.AnswerAccuracy => task is VisionTask.QuestionAnswering or VisionTask.MultipleChoice,
        ValidationMetric.GroundingAccuracy => task == VisionTask.Grounding,
        ValidationMetric.Cider => task == VisionTask.Captioning,
        _ => true,
    };

    private double Loss(TrainingModel model, CancellationToken cancellation)
    {
        using var noGradients = no_grad();
        using var sum = zeros(1, ScalarType.Float64, model.Device).DetachFromDisposeScope();
        foreach (var part in _rows.Chunk(_options.RowsAtOnce))
        {
            cancellation.ThrowIfCancellationRequested();
            using var scope = NewDisposeScope();
            foreach (var batch in BatchFeeder.Batches(_data, model, Array.ConvertAll(part, i => _data.Rows[i]), _rows.Length, _options.RowsAtOnce))
                using (batch)
                    sum.add_(model.Loss(batch).to(ScalarType.Float64));
        }
        return sum.ToDouble();
    }

    /// <summary>What the model says to each row that the metric applies to.</summary>
    internal Dictionary<int, string> Ask(TrainingModel model, CancellationToken cancellation)
    {
        var texts = new Dictionary<int, string>();
        foreach (var part in _rows.Chunk(AskedAtOnce))
        {
            cancellation.ThrowIfCancellationRequested();
            var images = new Dictionary<int, EncodedImage>();
            try
            {
                foreach (var picture in part.Select(i => _data.Rows[i].Picture).Distinct()) images.Add(picture, Encode(model.Model, picture));
                var requests = part.Select(i =>
                {
                    var (row, asked) = (_data.Rows[i], _data.Asked[i]);
                    return model.Model.Request(images[row.Picture], TaskConversation.Of(asked.Task, asked.Question, asked.Choices, [], null), row.Position);
                }).ToList();
                var answers = model.Model.Generate(requests, _options.Generation, null, cancellation);
                for (var k = 0; k < part.Length; k++) texts.Add(part[k], answers[k].Text);
            }
            finally
            {
                foreach (var image in images.Values) image.Dispose();
            }
        }
        return texts;
    }

    private EncodedImage Encode(VisionLanguageModel model, int picture)
    {
        var side = model.Config.Images.ImageSize;
        var (width, height) = _data.Pictures.Size(picture);
        using var square = DecodedImage.FromPixels(side, side, _data.Pictures.Square(picture)); // squashed: resizing it again changes nothing
        using var pixels = model.ImageProcessor.ProcessBatch([square]);
        using var patches = model.EncodePatches(pixels);
        using var embeddings = model.Connect(patches);
        return new(embeddings.squeeze(0), width, height);
    }

    private static bool IsRight(AskedRow asked, string text)
    {
        if (asked.Task == VisionTask.QuestionAnswering) return AnswerScores.Of(text, [asked.Target], normalizeAnswers: true).IsExactMatch;
        // The letter that the target's own conversation teaches.
        var taught = TaskConversation.Of(asked.Task, asked.Question, asked.Choices, [], asked.Target).Turns[^1].Text;
        return AnswerText.Choice(text, 26) is { } choice && choice == AnswerText.Choice(taught, 26);
    }

    private double Overlap(int i, string text)
    {
        var (width, height) = _data.Pictures.Size(_data.Rows[i].Picture);
        var box = BoxParser.Parse(text, width, height);
        return box.IsReadable ? box.Pixels.IntersectionOverUnion(BoxColumn.Read(_data.Asked[i].Box)!.Value) : 0;
    }

    private double Cider(IReadOnlyDictionary<int, string> texts)
    {
        var scorer = new CaptionScorer();
        foreach (var group in _rows.GroupBy(i => _data.Rows[i].Picture))
            scorer.Add(CaptionTokenizer.Tokenize(texts[group.First()]), [.. group.Select(i => CaptionTokenizer.Tokenize(_data.Asked[i].Target))]);
        return scorer.Score().Cider;
    }
}
