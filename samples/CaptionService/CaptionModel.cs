using System.Collections.Concurrent;
using System.Runtime.CompilerServices;
using MambaVL.Transforms;
using Microsoft.Extensions.AI;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Samples;

/// <summary>What the pipeline reads. Its author had paths in the column; here it gets the bytes that were uploaded.</summary>
internal sealed class Question
{
    public byte[] Image { get; set; } = [];

    [ColumnName("Question")]
    public string Text { get; set; } = "";

    public string Phrase { get; set; } = "";
}

internal sealed class CaptionReply
{
    public string Caption { get; set; } = "";
}

internal sealed class AnswerReply
{
    public string Answer { get; set; } = "";
}

internal sealed class Location
{
    [VectorType(BoxColumn.Length)]
    public float[] Box { get; set; } = [];

    [ColumnName("Box.Text")]
    public string Text { get; set; } = "";
}

/// <summary>One loaded pipeline for all requests. What each of them computes is what its reply has columns for.</summary>
internal sealed class CaptionModel : IDisposable
{
    private readonly ITransformer _pipeline;
    private readonly VisionLanguageChatClient _chat;
    private readonly EnginePool<CaptionReply> _captions;
    private readonly EnginePool<AnswerReply> _answers;
    private readonly EnginePool<Location> _locations;

    private CaptionModel(string path)
    {
        var ml = new MLContext();
        _pipeline = ml.Model.Load(path, out _);
        (_captions, _answers, _locations) = (new(ml, _pipeline), new(ml, _pipeline), new(ml, _pipeline));
        var step = (_pipeline as IEnumerable<ITransformer> ?? [_pipeline]).OfType<VisionLanguageTransformer>().First();
        _chat = new(step.Model); // the same weights
    }

    /// <exception cref="IOException">The file is absent or damaged.</exception>
    /// <exception cref="ArgumentOutOfRangeException">Its pipeline has other columns than samples/Pipeline's.</exception>
    public static CaptionModel Load(string? path)
    {
        if (path is not null) return new(path);
        var demo = Path.Combine(Path.GetTempPath(), $"mambavl-demo-{Guid.NewGuid():N}.zip");
        try
        {
            SaveDemo(demo);
            return new(demo);
        }
        finally
        {
            File.Delete(demo);
        }
    }

    public CaptionReply Caption(byte[] image, CancellationToken cancellation) => _captions.Predict(new() { Image = image }, cancellation);

    public AnswerReply Answer(byte[] image, string question, CancellationToken cancellation) => _answers.Predict(new() { Image = image, Text = question }, cancellation);

    public Location Locate(byte[] image, string phrase, CancellationToken cancellation) => _locations.Predict(new() { Image = image, Phrase = phrase }, cancellation);

    public async IAsyncEnumerable<string> Chat(byte[] image, string message, [EnumeratorCancellation] CancellationToken cancellation)
    {
        ChatMessage[] chat = [new(ChatRole.User, [new DataContent(image, "image/*"), new TextContent(message)])];
        await foreach (var update in _chat.GetStreamingResponseAsync(chat, cancellationToken: cancellation))
            if (update.Text.Length > 0) yield return update.Text;
    }

    public void Dispose()
    {
        _chat.Dispose();
        _captions.Dispose();
        _answers.Dispose();
        _locations.Dispose();
        (_pipeline as IDisposable)?.Dispose();
    }

    private static void SaveDemo(string path)
    {
        var ml = new MLContext();
        using var model = DemoModel.Create();
        var options = new TextStepOptions { Generation = new() { MaxNewTokens = 40 } };
        var pipeline = ml.Transforms.EncodeImages("Patches", "Image", model)
            .Append(ml.Transforms.CaptionImages("Caption", "Patches", model, options))
            .Append(ml.Transforms.AnswerQuestions("Answer", "Patches", "Question", model, options))
            .Append(ml.Transforms.GroundPhrases("Box", "Patches", "Phrase", model, options));
        var none = ml.Data.LoadFromEnumerable<Question>([]);
        ml.Model.Save(pipeline.Fit(none), none.Schema, path);
    }

    /// <summary>Prediction engines, one for each request at a time: an engine serves one thread. They share the pipeline.</summary>
    private sealed class EnginePool<TReply> : IDisposable where TReply : class, new()
    {
        private readonly MLContext _ml;
        private readonly ITransformer _pipeline;
        private readonly ConcurrentBag<PredictionEngine<Question, TReply>> _idle = [];

        public EnginePool(MLContext ml, ITransformer pipeline)
        {
            (_ml, _pipeline) = (ml, pipeline);
            _idle.Add(Create()); // a pipeline without the columns fails here, not at a request
        }

        public TReply Predict(Question question, CancellationToken cancellation)
        {
            if (!_idle.TryTake(out var engine)) engine = Create();
            try
            {
                using (StepCancellation.Use(cancellation)) return engine.Predict(question);
            }
            finally
            {
                _idle.Add(engine);
            }
        }

        public void Dispose()
        {
            while (_idle.TryTake(out var engine)) engine.Dispose();
        }

        // The pipeline stays this class's owner's, not each engine's.
        private PredictionEngine<Question, TReply> Create() => _ml.Model.CreatePredictionEngine<Question, TReply>(_pipeline, new PredictionEngineOptions { OwnsTransformer = false });
    }
}
