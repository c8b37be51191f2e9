using System.Diagnostics;
using MambaVL.Tests.Models;
using MambaVL.Training;
using Microsoft.ML;

namespace MambaVL.Tests.Training;

/// <summary>A run in a process of its own, which can be killed: <c>dotnet MambaVL.Trainers.Tests.dll FOLDER</c>.</summary>
internal static class TrainingProcess
{
    public static int Main(string[] args)
    {
        if (args is not [var folder]) return 2;
        using var squares = new Squares(12, others: true);
        using var model = Squares.Model(TinyVisionLanguage.Mamba);
        // Slowly: whoever is to kill it may have to wait for a processor.
        var options = Options(model, folder) with { ReportSteps = 1, OnProgress = _ => Thread.Sleep(200) };
        new MLContext(1).VisionLanguage().Trainers.InstructionTune(options).Fit(squares.Data(new MLContext(1))).Dispose();
        return 0;
    }

    public static InstructionTuneOptions Options(VisionLanguageModel model, string? folder)
        => Squares.Options(model) with { Epochs = 3, BatchSize = 9, MicroBatchSize = 5, OutputDirectory = folder, CheckpointSteps = 1 };

    public static Process Start(string folder) => Process.Start(new ProcessStartInfo(
        Environment.ProcessPath is { } path && Path.GetFileNameWithoutExtension(path) == "dotnet" ? path : "dotnet", [typeof(TrainingProcess).Assembly.Location, folder]))!;
}
