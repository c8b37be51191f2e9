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
        new MLContext(1).VisionLanguage().Trainers.InstructionTune(Options(model, folder) with { Epochs = 3 }).Fit(squares.Data(new MLContext(1))).Dispose();
        return 0;
    }

    public static InstructionTuneOptions Options(VisionLanguageModel model, string? folder)
        => Squares.Options(model) with { Epochs = 3, BatchSize = 9, MicroBatchSize = 5, OutputDirectory = folder, CheckpointSteps = 1 };

    public static Process Start(string folder) => Process.Start(new ProcessStartInfo(
        Environment.ProcessPath is { } path && Path.GetFileNameWithoutExtension(path) == "dotnet" ? path : "dotnet", [typeof(TrainingProcess).Assembly.Location, folder]))!;
}
