using System.Diagnostics;
using MambaVL.Tests.Models;
using MambaVL.Training;
using Microsoft.ML;

namespace MambaVL.Tests.Training;

/// <summary>A run that was ended at any moment, and started again, ends with the same bits.</summary>
public sealed class ResumeTests : IDisposable
{
    private sealed class Killed : Exception;

    private readonly MLContext _ml = new(1);
    private readonly Squares _train = new(12, others: true);
    private readonly Squares _validation = new(3);
    private readonly VisionLanguageModel _model = Squares.Model(TinyVisionLanguage.Mamba);

    private string Output => Path.Combine(_train.Folder, "run");

    private InstructionTuneOptions Options => Squares.Options(_model) with
    {
        Epochs = 2, BatchSize = 9, MicroBatchSize = 5, OutputDirectory = Output, CheckpointSteps = 2, ValidationSteps = 3, WeightDecay = 0.01,
    };

    public void Dispose()
    {
        _model.Dispose();
        _train.Dispose();
        _validation.Dispose();
    }

    [Fact]
    public void KilledAtEveryMomentOfWritingAndBetweenStepsItEndsWithTheSameBits()
    {
        var expected = Fit(Options with { OutputDirectory = null });

        // Each run gets a little further, and is killed at another moment.
        var moments = new Queue<string>(["begun", "weights", "state", "renamed", "rotated"]);
        TrainingCheckpoints.Writing.Value = moment =>
        {
            if (!moments.TryPeek(out var next) || moment != next) return;
            moments.Dequeue();
            throw new Killed();
        };
        var killedAt = new List<int>();
        while (moments.Count > 0) Act(() => Fit(Options)).Should().Throw<Killed>();
        foreach (var step in (int[])[5, 7])
            Act(() => Fit(Options with { OnProgress = p => { if (p.Step == step && p.Validation is null) throw new Killed(); } })).Should().Throw<Killed>();

        Same(Fit(Options), expected);
        Directory.GetDirectories(Output).Select(Path.GetFileName).Should().HaveCount(2, "the last two are kept, and nothing unfinished").And.OnlyContain(n => n!.StartsWith("checkpoint-"));

        // A run that has ended gives its model again, without a step.
        var steps = 0;
        Same(Fit(Options with { OnProgress = _ => steps++ }), expected);
        steps.Should().Be(0);
    }

    [Fact]
    public void AProcessThatIsKilledIsGoneOnWith()
    {
        using var data = new Squares(12, others: true); // in another folder than the process's: the pictures count, not their paths
        Dictionary<string, float[]> Run(string? folder)
        {
            using var tuned = _ml.VisionLanguage().Trainers.InstructionTune(TrainingProcess.Options(_model, folder)).Fit(data.Data(_ml));
            return Squares.Weights(tuned.Model);
        }
        using (var process = TrainingProcess.Start(Output))
        {
            var deadline = DateTime.UtcNow.AddMinutes(2);
            while (!(Directory.Exists(Output) && Directory.GetDirectories(Output, "checkpoint-*").Length > 0))
            {
                process.HasExited.Should().BeFalse();
                DateTime.UtcNow.Should().BeBefore(deadline);
                Thread.Sleep(5);
            }
            process.Kill();
            process.WaitForExit();
            process.ExitCode.Should().NotBe(0, "it was killed before its end");
        }
        Same(Run(Output), Run(null));
    }

    [Fact]
    public void ACheckpointOfAnotherRunIsRefusedWithWhatDiffers()
    {
        Fit(Options with { MaxSteps = 2 });
        Act(() => Fit(Options with { MaxSteps = 2, LearningRate = 1e-3, Seed = 7 })).Should().Throw<TrainingException>()
            .WithMessage("*checkpoint of another run*LearningRate: 0.003 there, 0.001 now*Seed: 1 there, 7 now*OutputDirectory*");
        Act(() => Fit(Options with { MaxSteps = 2, MicroBatchSize = 2, PixelMemory = 0, ReportSteps = 9 })).Should().NotThrow("these change roundings at most");
        _train.Rows[4].Target = "Grey";
        Act(() => Fit(Options with { MaxSteps = 2 })).Should().Throw<TrainingException>().Which.Message.Should().Contain("Data: ").And.NotContain("Seed");
        _train.Rows[4].Target = Squares.Colours[1].Name;
        using var other = Squares.Model(TinyVisionLanguage.Mamba, seed: 2);
        Act(() => Fit(Options with { MaxSteps = 2, Model = other })).Should().Throw<TrainingException>().WithMessage("*Model (weights)*");
    }

    [Fact]
    public void ADamagedCheckpointIsPassedOverAndTheOneBeforeServes()
    {
        var expected = Fit(Options with { OutputDirectory = null });
        Act(() => Fit(Options with { OnProgress = p => { if (p.Step == 5) throw new Killed(); } })).Should().Throw<Killed>();
        var newest = Directory.GetDirectories(Output).Order().Last();
        newest.Should().EndWith("00000004");
        using (var file = File.OpenWrite(Path.Combine(newest, "state.safetensors"))) file.SetLength(file.Length - 100);
        var logged = new List<string>();
        _ml.Log += (_, e) => logged.Add(e.Message);
        Same(Fit(Options), expected);
        logged.Should().Contain(m => m.Contains("damaged, and passed over")).And.Contain(m => m.Contains("after step 2"));
    }

    [Fact]
    public void OneFolderServesOneRunAtATime()
    {
        var seen = 0;
        Fit(Options with { MaxSteps = 1, OnProgress = p =>
        {
            if (p.Validation is not null) return;
            Act(() => Fit(Options with { MaxSteps = 1 })).Should().Throw<TrainingException>().WithMessage("*in use by another run*");
            seen++;
        } });
        seen.Should().Be(1);
    }

    [Theory]
    [InlineData(3)] // there is a validation after it, which is cut short
    [InlineData(5)]
    public void ARunThatWasCancelledGivesTheModelAsItStandsAndGoesOnLater(int step)
    {
        var expected = Fit(Options with { OutputDirectory = null });
        using var cancel = new CancellationTokenSource();
        var halfWay = Fit(Options with { Cancellation = cancel.Token, OnProgress = p => { if (p.Step == step) cancel.Cancel(); } });
        halfWay.Keys.Should().Contain(n => !halfWay[n].SequenceEqual(expected[n]));
        Same(Fit(Options), expected);

        using var late = new CancellationTokenSource();
        late.Cancel();
        Act(() => Fit(Options with { Cancellation = late.Token })).Should().Throw<OperationCanceledException>("there is no model yet");
    }

    private Dictionary<string, float[]> Fit(TrainingOptions options)
    {
        using var tuned = _ml.VisionLanguage().Trainers.InstructionTune((InstructionTuneOptions)options).Fit(_train.Data(_ml), _validation.Data(_ml));
        return Squares.Weights(tuned.Model);
    }

    private static void Same(Dictionary<string, float[]> actual, Dictionary<string, float[]> expected)
    {
        foreach (var (name, values) in expected)
            System.Runtime.InteropServices.MemoryMarshal.AsBytes(actual[name].AsSpan()).SequenceEqual(System.Runtime.InteropServices.MemoryMarshal.AsBytes(values.AsSpan()))
                .Should().BeTrue($"{name}: bits differ");
    }

    private static Action Act<T>(Func<T> function) => () => function();
}
