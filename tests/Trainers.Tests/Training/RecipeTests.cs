using MambaVL.Models;
using MambaVL.Prompts;
using MambaVL.Tests.Models;
using MambaVL.Training;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Training;

/// <summary>What Fit does with its options, model and data.</summary>
public sealed class RecipeTests : IDisposable
{
    private readonly MLContext _ml = new(1);
    private readonly Squares _train = new(8, others: true);
    private readonly VisionLanguageModel _model = Squares.Model(TinyVisionLanguage.Mamba);

    public void Dispose()
    {
        _model.Dispose();
        _train.Dispose();
    }

    [Theory, MemberData(nameof(TinyVisionLanguage.Backbones), MemberType = typeof(TinyVisionLanguage))]
    public void TheSameSeedGivesTheSameBitsAndAnotherSeedOthersAndTheCallersModelStays(string backbone)
    {
        using var model = Squares.Model(backbone);
        var before = Squares.Weights(model);
        var options = Squares.Options(model) with { Epochs = 1 };
        var copy = options with { };
        var (a, b, c) = (Fit(options), Fit(options), Fit(options with { Seed = 2 }));
        options.Should().Be(copy, "Fit never changes its options");
        foreach (var (name, values) in before)
        {
            b[name].Should().Equal(a[name], name);
            Squares.Weights(model)[name].Should().Equal(values, "the caller's model stays as it is");
        }
        before.Keys.Should().OnlyContain(n => !a[n].SequenceEqual(before[n]), "all parameters learn");
        before.Keys.Should().Contain(n => !c[n].SequenceEqual(a[n]));
    }

    [Theory]
    [InlineData(4)]
    [InlineData(3)] // 3, 3 and 2: unlike parts weigh by their rows
    public void MicroBatchesOfAStepAreOneBatchButForRounding(int rowsAtOnce)
    {
        var options = Squares.Options(_model) with { BatchSize = 8, Epochs = 1 };
        var (whole, parts) = (Fit(options), Fit(options with { MicroBatchSize = rowsAtOnce }));
        // A step of AdamW moves a weight by the learning rate, whatever its gradient: where that is rounding, it may go either way.
        var (far, all) = (0, 0);
        foreach (var (name, values) in whole)
        {
            far += values.Zip(parts[name]).Count(p => Math.Abs(p.First - p.Second) > 0.01 * options.LearningRate);
            all += values.Length;
        }
        (far < all / 200).Should().BeTrue($"{far} of {all} weights differ by more than 1% of the learning rate");
        Fit(options with { BatchSize = 4 })["vision_embed_tokens.0.weight"].Should().NotEqual(whole["vision_embed_tokens.0.weight"], "that is another recipe");
    }

    [Fact]
    public void StageOneTrainsTheConnectorAlone()
    {
        var before = Squares.Weights(_model);
        using var tuned = _ml.VisionLanguage().Trainers.PretrainConnector(new() { Model = _model, BatchSize = 8, FeatureMemory = 6000 }).Fit(_train.Data(_ml));
        foreach (var (name, values) in Squares.Weights(tuned.Model))
            values.SequenceEqual(before[name]).Should().Be(!name.StartsWith("vision_embed_tokens."), name);
    }

    [Fact]
    public void FeaturesThatAreKeptAreThoseThatAreEncodedAgain()
    {
        var options = new PretrainConnectorOptions { Model = _model, BatchSize = 8, Epochs = 3 };
        Dictionary<string, float[]> Run(PretrainConnectorOptions o)
        {
            using var tuned = _ml.VisionLanguage().Trainers.PretrainConnector(o).Fit(_train.Data(_ml));
            return Squares.Weights(tuned.Model);
        }
        var kept = Run(options);
        foreach (var other in new[] { options with { FeatureMemory = 0 }, options with { FeatureMemory = 1500 }, options with { PixelMemory = 0 } })
            foreach (var (name, values) in Run(other)) values.Should().Equal(kept[name], name);
    }

    [Fact]
    public void PicturesOfTheValidationSetAreNotTakenForThoseOfTheTrainingSet()
    {
        using var validation = new Squares(5);
        validation.Rows.Reverse();
        double? seen = null;
        var options = new PretrainConnectorOptions { Model = _model, BatchSize = 8, Epochs = 2, OnProgress = p => seen = p.Validation ?? seen };
        using var tuned = _ml.VisionLanguage().Trainers.PretrainConnector(options).Fit(_train.Data(_ml), validation.Data(_ml));
        seen.Should().BeApproximately(Losses(options with { Model = tuned.Model }, validation).Average(), 1e-5);
    }

    [Fact]
    public void APictureThatChangesWhileItIsLearntFromEndsTheRun()
    {
        var options = Squares.Options(_model) with { PixelMemory = 0, Epochs = 50, OnProgress = p => { if (p.Step == 2) File.Copy(_train.Rows[0].Image, _train.Rows[3].Image, overwrite: true); } };
        Act(() => Fit(options)).Should().Throw<TrainingException>().WithMessage("*1.bmp' was changed*");
    }

    [Fact]
    public void InBfloat16TheStepsAreThoseOfFloat32ButForRounding()
    {
        List<double> Run(TrainingPrecision precision)
        {
            var losses = new List<double>();
            using var tuned = _ml.VisionLanguage().Trainers.InstructionTune(Squares.Options(_model) with { Precision = precision, BatchSize = 12, MicroBatchSize = 6, Epochs = 6, OnProgress = p => losses.Add(p.Loss) }).Fit(_train.Data(_ml));
            tuned.Model.NamedParameters().Should().OnlyContain(p => p.Parameter.dtype == ScalarType.Float32, "the result is the float32 weights where the model was float32");
            Squares.Weights(tuned.Model)["backbone.layers.0.mixer.in_proj.weight"].Should().Contain(v => BitConverter.SingleToUInt32Bits(v) % 65536 != 0, "nothing was rounded");
            return losses;
        }
        var (wide, narrow) = (Run(TrainingPrecision.Float32), Run(TrainingPrecision.BFloat16));
        wide.Should().HaveCount(12);
        narrow.Zip(wide).Should().OnlyContain(p => Math.Abs(p.First - p.Second) < 0.02 * p.Second).And.Contain(p => p.First != p.Second);
        wide[^1].Should().BeLessThan(0.9 * wide[0]);
    }

    [Fact]
    public void AMambaMayStartWithLayerNormWhoseBiasThenLearns()
    {
        using var tuned = _ml.VisionLanguage().Trainers.InstructionTune(Squares.Options(_model) with { Norm = NormKind.LayerNorm, Epochs = 1 }).Fit(_train.Data(_ml));
        ((Mamba)tuned.Model.Language).Config.Norm.Should().Be(NormKind.LayerNorm);
        ((Mamba)_model.Language).Config.Norm.Should().Be(NormKind.RmsNorm);
        var weights = Squares.Weights(tuned.Model);
        weights["backbone.norm_f.bias"].Should().Contain(v => v != 0);

        using var start = new TrainingModel(Squares.Options(_model) with { Norm = NormKind.LayerNorm }, TrainingModel.ConfigOf(Squares.Options(_model) with { Norm = NormKind.LayerNorm }));
        Squares.Weights(start.Model)["backbone.norm_f.bias"].Should().OnlyContain(v => v == 0);
        Squares.Weights(start.Model)["backbone.norm_f.weight"].Should().Equal(Squares.Weights(_model)["backbone.norm_f.weight"]);

        using var neox = Squares.Model(TinyVisionLanguage.NeoX);
        Act(() => _ml.VisionLanguage().Trainers.InstructionTune(new() { Model = neox, Norm = NormKind.LayerNorm })).Should().Throw<ArgumentException>().WithMessage("*GPT-NeoX*");
        Act(() => _ml.VisionLanguage().Trainers.InstructionTune(new() { Model = tuned.Model, Norm = NormKind.RmsNorm })).Should().Throw<ArgumentException>().WithMessage("*biases would be lost*");
    }

    [Theory, MemberData(nameof(TinyVisionLanguage.Backbones), MemberType = typeof(TinyVisionLanguage))]
    public void LoraLearnsBesideTheLanguageModelAndIsMergedAndSavedApart(string backbone)
    {
        using var model = Squares.Model(backbone);
        var before = Squares.Weights(model);
        var output = Path.Combine(_train.Folder, "lora");
        var options = new InstructionTuneOptions { Model = model, Lora = new() { Rank = 2, Alpha = 4, Dropout = 0.1 }, LearningRate = 1e-2, BatchSize = 8, Epochs = 2 };
        var whole = Fit(options);
        foreach (var (name, values) in whole)
        {
            var learns = name.StartsWith("vision_embed_tokens.") || (name.Split('.').Length > 4 && before[name].Length > 32 && !name.Contains("vision_")
                && name.EndsWith("weight") && !name.Contains("norm") && !name.Contains("conv1d"));
            values.SequenceEqual(before[name]).Should().Be(!learns, name);
        }

        // Ended half-way and gone on with, dropout included.
        using (_ml.VisionLanguage().Trainers.InstructionTune(options with { OutputDirectory = output, Cancellation = Cancelled(out var cancel), OnProgress = p => cancel(p.Step == 2), ReportSteps = 1 }).Fit(_train.Data(_ml)))
            Directory.Exists(Path.Combine(output, "checkpoint-00000002")).Should().BeTrue();
        using var tuned = _ml.VisionLanguage().Trainers.InstructionTune(options with { OutputDirectory = output }).Fit(_train.Data(_ml));
        foreach (var (name, values) in Squares.Weights(tuned.Model)) values.Should().Equal(whole[name], name);

        // The file goes onto the model that it was learnt beside.
        using var other = Squares.Model(backbone);
        using (var adapters = LoraAdapters.Load(other, Path.Combine(output, "lora.safetensors"))) adapters.Merge();
        foreach (var (name, values) in Squares.Weights(other).Where(w => !w.Key.StartsWith("vision_embed_tokens."))) values.Should().Equal(whole[name], name);
        model.Language.HasAdapters.Should().BeFalse();

        CancellationToken Cancelled(out Action<bool> cancel)
        {
            var source = new CancellationTokenSource();
            cancel = now => { if (now) source.Cancel(); };
            return source.Token;
        }
    }

    [Fact]
    public void TheOutputDirectoryGetsALogAndAPictureOfAllSteps()
    {
        var output = Path.Combine(_train.Folder, "run");
        var seen = new List<TrainingProgress>();
        using var console = new StringWriter();
        var before = Console.Error;
        Console.SetError(console);
        try
        {
            Fit(Squares.Options(_model) with { MaxSteps = 2, ShowProgress = true });
        }
        finally
        {
            Console.SetError(before);
        }
        console.ToString().Should().Contain("step 1/2").And.Contain("step 2/2");
        Fit(Squares.Options(_model) with { OutputDirectory = output, BatchSize = 8, ReportSteps = 2, OnProgress = seen.Add });
        Directory.GetFiles(output, "events.out.tfevents.*").Should().ContainSingle();
        File.ReadAllBytes(Path.Combine(output, "loss.png")).Should().StartWith([0x89, (byte)'P', (byte)'N', (byte)'G']);
        seen.Select(p => p.Step).Should().Equal(2, 4, 6, 8, 9);
        seen.Should().OnlyContain(p => p.TotalSteps == 9 && p.RowsPerSecond > 0 && p.TokensPerSecond > p.RowsPerSecond && p.GradientNorm > 0 && p.Loss > 0);
        seen.Select(p => p.Epoch).Should().Equal(2 / 3.0, 4 / 3.0, 2, 8 / 3.0, 3);
        seen.Select(p => p.IsLast).Should().Equal(false, false, false, false, true);
        Fit(Squares.Options(_model) with { OutputDirectory = output + "2", WriteLogs = false });
        Directory.GetFiles(output + "2").Select(Path.GetFileName).Should().Equal("run.lock");
    }

    [Fact]
    public void TheLossOfMicroBatchesIsAnswerLossAndAnyImageSizeGoes()
    {
        var options = Squares.Options(_model) with { ImageSize = 32 };
        using var model = new TrainingModel(options, TrainingModel.ConfigOf(options));
        var data = Read(options);
        using var scope = NewDisposeScope();
        var actual = BatchFeeder.Batches(data, model, data.Rows, data.Rows.Length, 5).Sum(b =>
        {
            using (b) return model.Loss(b).ToDouble();
        });

        // The same the plain way: whole sequences, padded, through the public calls.
        var rows = data.Rows.Select(r => (
            Ids: (long[])[.. r.Ids.Take(r.ImageAt).Select(i => (long)i), .. data.ImageIds, .. r.Ids.Skip(r.ImageAt).Select(i => (long)i)],
            Labels: (long[])[.. r.IsAnswer.Take(r.ImageAt).Select((_, i) => Label(r, i)), .. data.ImageIds.Select(_ => SequenceBuilder.Ignore), .. Enumerable.Range(r.ImageAt, r.Ids.Length - r.ImageAt).Select(i => Label(r, i))])).ToList();
        var length = rows.Max(r => r.Ids.Length);
        var ids = tensor(rows.SelectMany(r => r.Ids.Concat(Enumerable.Repeat(0L, length - r.Ids.Length))).ToArray()).view(rows.Count, length);
        var labels = tensor(rows.SelectMany(r => r.Labels.Concat(Enumerable.Repeat(SequenceBuilder.Ignore, length - r.Labels.Length))).ToArray()).view(rows.Count, length);
        var embeddings = stack(data.Rows.Select(r =>
        {
            using var picture = MambaVL.Images.DecodedImage.Decode(data.Pictures.Path(r.Picture)!);
            using var image = model.Model.EncodeImage(picture);
            return image.Embeddings.clone();
        }));
        using var inference = inference_mode();
        var expected = VisionLanguageModel.AnswerLoss(model.Model.Forward(ids, embeddings), labels).ToDouble();
        actual.Should().BeApproximately(expected, 1e-5 * expected);

        static long Label(TrainingRow r, int i) => r.IsAnswer[i] ? r.Ids[i] : SequenceBuilder.Ignore;
    }

    [Fact]
    public void ALossThatIsNoNumberEndsTheRunWithStepRowsAndTheLastGoodCheckpoint()
    {
        var output = Path.Combine(_train.Folder, "run");
        var options = Squares.Options(_model) with { LearningRate = 1e30, WarmupShare = 0, ClipNorm = null, OutputDirectory = output, CheckpointSteps = 1, Epochs = 5, BatchSize = 12 };
        var message = Act(() => Fit(options)).Should().Throw<TrainingException>().Which.Message;
        message.Should().MatchRegex(@"at step \d+ of 10, on the rows \d+(, \d+){11}\.").And.Contain("lower learning rate").And.Contain("checkpoint-0000000");
        Act(() => Fit(options with { OutputDirectory = null })).Should().Throw<TrainingException>().WithMessage("*no checkpoint to go back to*");

        // What it names is good: every number in it.
        using var checkpoint = MambaVL.Checkpoints.Checkpoint.Open(Path.Combine(Directory.GetDirectories(output).Order().Last(), "state.safetensors"));
        foreach (var name in checkpoint.Tensors.Keys.Where(n => n.StartsWith("weight/")))
        {
            using var scope = NewDisposeScope();
            checkpoint.Read(name).isfinite().all().ToBoolean().Should().BeTrue(name);
        }
    }

    [Fact]
    public void EarlyStoppingLooksAtAllValidationRowsAndGivesTheBestWeights()
    {
        using var validation = new Squares(10);
        var results = new List<double>();
        var options = Squares.Options(_model) with { LearningRate = 0.05, Epochs = 30, ValidationSteps = 1, Patience = 3, BatchSize = 12, MicroBatchSize = 4, OnProgress = p => { if (p.Validation is { } v) results.Add(v); } };
        using var tuned = _ml.VisionLanguage().Trainers.InstructionTune(options).Fit(_train.Data(_ml), validation.Data(_ml));
        results.Count.Should().BeLessThan(60, "it has stopped early");
        var best = results.IndexOf(results.Min());
        (results.Count - 1 - best).Should().Be(3);

        // The returned model is the best one: measured anew, by its own loss over all ten rows, one at a time.
        var alone = Losses(options with { Model = tuned.Model }, validation);
        alone.Should().HaveCount(10);
        alone.Average().Should().BeApproximately(results.Min(), 1e-5);
    }

    [Theory]
    [InlineData(ValidationMetric.AnswerAccuracy), InlineData(ValidationMetric.GroundingAccuracy), InlineData(ValidationMetric.Cider)]
    public void AMetricOfATaskIsThatOfAllRowsOfTheTask(ValidationMetric metric)
    {
        using var squares = new Squares(20, others: true); // more than are asked at once
        squares.Rows.Add(new() { Image = squares.Rows[0].Image, Task = "MultipleChoice", Choices = ["Green", "Red"], Target = "Red" });
        squares.Rows.Add(new() { Image = squares.Rows[0].Image, Task = "Captioning", Question = "", Target = "A square that is red" });
        var options = Squares.Options(_model) with { Metric = metric };
        var data = Read(options, squares, keepAsked: true);
        using var model = new TrainingModel(options, _model.Config);
        var validator = new Validator(options, data);

        // Every row of the task is asked, and says what it says alone.
        var said = validator.Ask(model, default);
        var task = metric switch { ValidationMetric.GroundingAccuracy => VisionTask.Grounding, ValidationMetric.Cider => VisionTask.Captioning, _ => VisionTask.QuestionAnswering };
        said.Keys.Where(i => data.Asked[i].Task == task).Should().BeEquivalentTo(Enumerable.Range(0, data.Rows.Length).Where(i => data.Asked[i].Task == task));
        said.Count.Should().Be(metric == ValidationMetric.GroundingAccuracy ? 20 : 21);
        using (var image = _model.EncodeImage(squares.Rows[57].Image))
        {
            var row = said.Keys.Single(i => i is 57 or 58 or 59);
            var alone = data.Asked[row] is var a && task == VisionTask.Grounding ? Conversation.Locate(a.Question) : task == VisionTask.Captioning ? Conversation.Caption() : Conversation.Ask(a.Question);
            said[row].Should().Be(_model.Generate(_model.Request(image, alone), options.Generation).Text);
        }

        // Of the texts, every second is right.
        string Right(int i) => data.Asked[i].Task switch
        {
            VisionTask.Grounding => data.Asked[i].Box.ToBoundingBox()!.Value.ToShares(32, 32).ToText(),
            VisionTask.MultipleChoice => "B.",
            _ => data.Asked[i].Target + ".",
        };
        var half = said.Keys.Order().Select((i, k) => (i, Text: k % 2 == 0 ? Right(i) : "[0.99,0.99,1.00,1.00].")).ToDictionary(p => p.i, p => p.Text);
        var all = said.Keys.ToDictionary(i => i, Right);
        if (metric == ValidationMetric.Cider)
        {
            // Rows about one picture are one caption with several references: docs/metrics.md.
            var captions = data.Asked.Select((a, i) => (a, i)).Where(p => p.a.Task == VisionTask.Captioning).GroupBy(p => data.Rows[p.i].Picture)
                .Select(g => new { References = g.Select(p => p.a.Target).ToArray(), Caption = half[g.First().i] });
            validator.Score(half).Should().BeApproximately(_ml.VisionLanguage().EvaluateCaptions(_ml.Data.LoadFromEnumerable(captions)).Cider, 1e-12).And.BePositive();
            validator.Score(all).Should().BeGreaterThan(validator.Score(half));
        }
        else
        {
            validator.Score(half).Should().Be((said.Count + 1) / 2 / (double)said.Count);
            validator.Score(all).Should().Be(1);
        }

        using var other = new Squares(2);
        foreach (var row in other.Rows) (row.Task, row.Box) = ("DenseCaptioning", [0, 0, 9, 9]);
        Act(() => new Validator(options, Read(options, other, keepAsked: true))).Should().Throw<ArgumentException>().WithMessage($"*{metric}*none of the 2 validation rows*");
    }

    [Fact]
    public void AMetricThatGeneratesTextIsMeasuredWhileTraining()
    {
        var seen = new List<TrainingProgress>();
        var options = Squares.Options(_model) with { MaxSteps = 2, ValidationSteps = 1, Metric = ValidationMetric.AnswerAccuracy, Generation = new() { MaxNewTokens = 4 }, OnProgress = seen.Add };
        using var tuned = _ml.VisionLanguage().Trainers.InstructionTune(options).Fit(_train.Data(_ml), _train.Data(_ml));
        seen.Where(p => p.Validation is not null).Select(p => (p.Step, p.Metric, p.IsLast)).Should()
            .Equal((1, ValidationMetric.AnswerAccuracy, false), (2, ValidationMetric.AnswerAccuracy, true));
    }

    [Fact]
    public void TheTransformerIsSavedAndLoadedLikeAnyOther()
    {
        using var tuned = _ml.VisionLanguage().Trainers.InstructionTune(Squares.Options(_model) with { Epochs = 1 }).Fit(_train.Data(_ml));
        var zip = Path.Combine(_train.Folder, "tuned.zip");
        _ml.Model.Save(tuned, _train.Data(_ml).Schema, zip);
        var loaded = new MLContext(2).Model.Load(zip, out _);
        var (before, after) = (tuned.Transform(_train.Data(_ml)), loaded.Transform(_train.Data(_ml)));
        after.GetColumn<string>("Answer.Text").Should().Equal(before.GetColumn<string>("Answer.Text"));
        after.GetColumn<float[]>("Answer.Box").SelectMany(b => b).Should().Equal(before.GetColumn<float[]>("Answer.Box").SelectMany(b => b));
        // A user's question needs no target and no box.
        _ml.Data.LoadFromEnumerable([new { Image = _train.Rows[0].Image, Task = "Captioning" }]).Should().NotBeNull();
        loaded.Transform(_ml.Data.LoadFromEnumerable([new { Image = _train.Rows[0].Image, Task = "Captioning" }])).GetColumn<string>("Answer").Should().HaveCount(1);
        (loaded as IDisposable)?.Dispose();
    }

    [Fact]
    public void MlNetsOwnCancellationEndsARunToo()
    {
        var ml = new MLContext(1);
        var steps = 0;
        using var tuned = ml.VisionLanguage().Trainers.InstructionTune(Squares.Options(_model) with { Epochs = 500, OnProgress = _ => { if (++steps == 2) ml.CancelExecution(); } }).Fit(_train.Data(ml));
        steps.Should().BeLessThan(100);
    }

    [Fact]
    public void MemoryThatDoesNotSufficeSaysWhatToLowerAndWhatWasFree()
    {
        var e = new System.Runtime.InteropServices.ExternalException("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.05 GiB is free. Including non-PyTorch memory, ...");
        TrainingMemory.IsShort(e).Should().BeTrue();
        TrainingMemory.IsShort(new InvalidOperationException("CUDA out of memory")).Should().BeFalse();
        TrainingMemory.Explain(e, "learning from 8 rows", Squares.Options(_model) with { MicroBatchSize = 4 }, CPU).Message.Should()
            .Contain("learning from 8 rows").And.Contain("Tried to allocate 2.50 GiB").And.Contain("1.05 GiB is free").And.Contain("MicroBatchSize first (it is 4").And.Contain("MaxLength").And.Contain("16 pixels");
    }

    private Dictionary<string, float[]> Fit(InstructionTuneOptions options)
    {
        using var tuned = _ml.VisionLanguage().Trainers.InstructionTune(options).Fit(_train.Data(_ml));
        return Squares.Weights(tuned.Model);
    }

    // Each row's loss, by itself.
    private List<double> Losses(TrainingOptions options, Squares squares)
    {
        var data = Read(options, squares);
        using var model = new TrainingModel(options, options.Model.Config);
        using var scope = NewDisposeScope();
        return [.. data.Rows.Select(r =>
        {
            using var batch = BatchFeeder.Batches(data, model, [r], 1, 1)[0];
            return model.Loss(batch).ToDouble();
        })];
    }

    private TrainingData Read(TrainingOptions options, Squares? squares = null, bool keepAsked = false)
        => new TrainingReader(options, TrainingModel.ConfigOf(options), new StepHost(MlNet.Environment(_ml.Transforms), "Test"), default).Read((squares ?? _train).Data(_ml), keepAsked, "test");

    private static Action Act<T>(Func<T> function) => () => function();
}
