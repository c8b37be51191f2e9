using System.Diagnostics;
using MambaVL.Images;
using MambaVL.Tests.Models;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;
using TorchSharp;

namespace MambaVL.Tests;

public sealed class BehaviourTests : IDisposable
{
    private readonly Pictures _pictures = new(6);
    private readonly MLContext _ml = new(1);
    private readonly VisionLanguageModel _model = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba);

    public void Dispose()
    {
        _model.Dispose();
        _pictures.Dispose();
    }

    [Theory, InlineData(1), InlineData(4), InlineData(20)]
    public void ABrokenRowFailsWithItsNumberAndPathAfterTheRowsBeforeIt(int batchSize)
    {
        File.WriteAllText(_pictures.Examples[2].Path, "no picture");
        var data = _pictures.Data(_ml);
        var result = Caption(new() { BatchSize = batchSize }).Fit(data).Transform(data);
        using var cursor = result.GetRowCursor([result.Schema["Caption"]]);
        var get = cursor.GetGetter<ReadOnlyMemory<char>>(result.Schema["Caption"]);
        ReadOnlyMemory<char> caption = default;
        for (var i = 0; i < 6; i++)
        {
            cursor.MoveNext().Should().BeTrue();
            if (i != 2) get(ref caption);
            else
                FluentActions.Invoking(() => get(ref caption)).Should().Throw<RowException>().WithMessage($"*row 2*{_pictures.Examples[2].Path}*")
                    .WithInnerException<ImageException>();
        }
    }

    [Theory, InlineData(1), InlineData(4)]
    public void InAChainOfStepsTheRowsBeforeABrokenOneComeOutAndTheFirstStepSaysWhy(int batchSize)
    {
        File.WriteAllText(_pictures.Examples[2].Path, "no picture");
        var data = _pictures.Data(_ml);
        var options = Pictures.Short with { BatchSize = batchSize };
        var result = _ml.Transforms.EncodeImages("Patches", "Path", _model, options).Append(_ml.Transforms.CaptionImages("Caption", "Patches", _model, options))
            .Append(_ml.Transforms.AnswerQuestions("Answer", "Patches", "Question", _model, options)).Fit(data).Transform(data);
        using var cursor = result.GetRowCursor(result.Schema);
        List<ValueGetter<ReadOnlyMemory<char>>> texts = [.. new[] { "Caption", "Answer" }.Select(c => cursor.GetGetter<ReadOnlyMemory<char>>(result.Schema[c]))];
        ReadOnlyMemory<char> text = default;
        for (var i = 0; i < 6; i++)
        {
            cursor.MoveNext().Should().BeTrue();
            foreach (var get in texts)
            {
                if (i != 2) get(ref text);
                else
                    FluentActions.Invoking(() => get(ref text)).Should().Throw<RowException>().Where(e => e.Column == "Patches" && e.Row == 2)
                        .WithInnerException<ImageException>();
            }
        }
    }

    [Fact]
    public void BrokenRowsCanBeEmptyWithTheReasonBesideThem()
    {
        var good = Pictures.Texts(Transform(new()), "Caption");
        File.WriteAllText(_pictures.Examples[1].Path, "no picture");
        File.Delete(_pictures.Examples[3].Path);
        var options = Pictures.Short with { OnError = RowErrors.EmptyResult, BatchSize = 4, Images = new() { MaxPixels = 34 * 28 - 1 } };
        var data = Transform(options);
        var texts = Pictures.Texts(data, "Caption");
        var errors = Pictures.Column<string>(data, "Caption.Error");
        texts.Should().Equal(good[0], " []", good[2], " []", " []", good[5]);
        errors.Should().SatisfyRespectively(e => e.Should().BeEmpty(), e => e.Should().Contain("1.bmp"), e => e.Should().BeEmpty(),
            e => e.Should().Contain("3.bmp"), e => e.Should().Contain("952 pixels"), e => e.Should().BeEmpty());

        IDataView Transform(TextStepOptions options)
        {
            var data = _pictures.Data(_ml);
            return Caption(options).Fit(data).Transform(data);
        }
    }

    [Fact]
    public void AnEmptyRowOfFeaturesIsEmptyInTheStepsAfterIt()
    {
        File.Delete(_pictures.Examples[1].Path);
        var data = _pictures.Data(_ml);
        var result = _ml.Transforms.EncodeImages("Patches", "Path", _model, new() { OnError = RowErrors.EmptyResult })
            .Append(_ml.Transforms.GroundPhrases("Box", "Patches", "Question", _model, Pictures.Short with { OnError = RowErrors.EmptyResult })).Fit(data).Transform(data);
        Pictures.Column<string>(result, "Box.Error")[1].Should().Contain("no features");
        Pictures.Column<float[]>(result, "Box")[1].ToBoundingBox().Should().BeNull();
        Pictures.Column<int[]>(result, "Patches.Size")[1].Should().Equal(0, 0);
        Pictures.Column<string>(result, "Box.Error").Where(e => e.Length > 0).Should().ContainSingle();
    }

    [Fact]
    public void AnImageThatAStepBeforeCannotLoadIsARowsErrorToo()
    {
        File.Delete(_pictures.Examples[4].Path);
        var data = _pictures.Data(_ml);
        var load = _ml.Transforms.LoadImages("Image", null, "Path");
        var result = load.Append(_ml.Transforms.CaptionImages("Caption", "Image", _model, Pictures.Short with { OnError = RowErrors.EmptyResult })).Fit(data).Transform(data);
        Pictures.Column<string>(result, "Caption.Error").Select(e => e.Length > 0).Should().Equal(false, false, false, false, true, false);
    }

    [Fact]
    public void AnEmptyQuestionOrTooManyChoicesAreARowsError()
    {
        _pictures.Examples[1].Question = " ";
        _pictures.Examples[2].Choices = [.. Enumerable.Range(0, 27).Select(i => $"choice {i}")];
        var data = _pictures.Data(_ml);
        var options = Pictures.Short with { OnError = RowErrors.EmptyResult };
        var result = _ml.Transforms.AnswerQuestions("Answer", "Path", "Question", _model, options)
            .Append(_ml.Transforms.AnswerQuestions("Choice", "Path", "Question", "Choices", _model, options)).Fit(data).Transform(data);
        Pictures.Column<string>(result, "Answer.Error").Select(e => e.Length > 0).Should().Equal(false, true, false, false, false, false);
        Pictures.Column<string>(result, "Choice.Error").Select(e => e.Length > 0).Should().Equal(false, true, true, false, false, false);
        Pictures.Column<int>(result, "Choice.Index")[2].Should().Be(-1);
    }

    [Fact]
    public async Task CancellingTheContextStopsWithinAToken()
    {
        var data = _pictures.Data(_ml);
        var result = Caption(Endless).Fit(data).Transform(data);
        var stopped = Stopwatch.StartNew();
        var cancel = Task.Run(async () =>
        {
            await Task.Delay(300);
            stopped.Restart();
            _ml.CancelExecution();
        });
        result.Invoking(r => Pictures.Texts(r, "Caption")).Should().Throw<OperationCanceledException>().WithMessage("*MLContext*");
        stopped.Elapsed.Should().BeLessThan(TimeSpan.FromSeconds(2));
        await cancel;
        result.Invoking(r => Pictures.Texts(r, "Caption")).Should().Throw<OperationCanceledException>("a cancelled context stays so");
    }

    [Fact]
    public void AScopesTokenStopsOnePredictionAndNotTheNext()
    {
        var data = _pictures.Data(_ml);
        var transformer = Caption(Endless).Fit(data);
        using var engine = _ml.Model.CreatePredictionEngine<Example, Captioned>(transformer);
        using var source = new CancellationTokenSource(200);
        using (StepCancellation.Use(source.Token))
            engine.Invoking(e => e.Predict(_pictures.Examples[0])).Should().Throw<OperationCanceledException>();
        StepCancellation.Token.CanBeCanceled.Should().BeFalse();
        using var other = _ml.Model.CreatePredictionEngine<Example, Captioned>(Caption(new()).Fit(data));
        other.Predict(_pictures.Examples[0]).Ids.Should().HaveCount(6);
    }

    [Fact]
    public void TheLogTellsHowManyRowsWereDone()
    {
        var log = new List<string>();
        _ml.Log += (_, e) => log.Add(e.Message);
        var data = _pictures.Data(_ml);
        Pictures.Texts(Caption(new()).Fit(data).Transform(data), "Caption");
        log.Should().Contain(m => m.Contains("CaptionImages 'Caption' has ended: 6 rows"));
    }

    [Fact]
    public void MemoryIsFlatOver200Images() => CheckMemory(200);

    [Fact, Trait("Category", "Slow")]
    public void MemoryIsFlatOver1000Images() => CheckMemory(1000);

    private static TextStepOptions Endless => new() { Generation = new() { MaxNewTokens = 1_000_000, IgnoreEndToken = true } };

    private void CheckMemory(int rows)
    {
        // A process grows some 20 MB while its code is compiled for good and its threads get their arenas; that is a share of a
        // tiny model, and not what is asked here. So the rows pass once before they are measured.
        Measure(rows);
        var (first, last) = Measure(rows);
        last.Should().BeLessThan((long)(first * 1.05), $"after 100 of {rows} images it was {first:N0} bytes");
    }

    private (long AfterHundred, long AtTheEnd) Measure(int rows)
    {
        var data = _ml.Data.LoadFromEnumerable(Enumerable.Range(0, rows).Select(i => _pictures.Examples[i % 6]));
        var result = Caption(new() { BatchSize = 8, Generation = new() { MaxNewTokens = 2 } }).Fit(data).Transform(data);
        using var cursor = result.GetRowCursor([result.Schema["Caption"]]);
        var get = cursor.GetGetter<ReadOnlyMemory<char>>(result.Schema["Caption"]);
        ReadOnlyMemory<char> caption = default;
        long first = 0;
        for (var i = 0; cursor.MoveNext(); i++)
        {
            get(ref caption);
            if (i == 99) first = WorkingSet();
        }
        return (first, WorkingSet());
    }

    private static long WorkingSet()
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
        GC.Collect();
        using var process = Process.GetCurrentProcess();
        return process.WorkingSet64;
    }

    private VisionLanguageEstimator Caption(TextStepOptions options)
        => _ml.Transforms.CaptionImages("Caption", "Path", _model, options.Generation == new TextStepOptions().Generation ? options with { Generation = Pictures.Short.Generation } : options);

    private sealed class Captioned
    {
        [ColumnName("Caption.Ids")]
        public int[] Ids { get; set; } = [];
    }
}
