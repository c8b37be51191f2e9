using System.CommandLine;
using System.Text.Json;

namespace MambaVL.Samples.Scenes;

/// <summary><c>evaluate</c>: prints one JSON object of metrics.</summary>
internal static class EvaluateCommand
{
    public static Command Create()
    {
        var model = new Option<string>("--model") { Description = "A folder with a model, or owner/name on the hub.", Required = true };
        var data = new Option<string>("--data") { Description = "A folder that generate wrote, or any file of rows (docs/dataset-format.md).", Required = true };
        var split = new Option<string>("--split") { Description = "Which rows of a folder.", DefaultValueFactory = _ => Splits.Test };
        var device = new Option<string>("--device") { Description = "cpu, cuda or cuda:N.", DefaultValueFactory = _ => "cpu" };
        var limit = new Option<int?>("--limit") { Description = "The most rows. Default: all." };
        var batch = new Option<int>("--batch") { Description = "Rows that the model gets at once; it changes no answer.", DefaultValueFactory = _ => 64 };
        var command = new Command("evaluate", "Prints one JSON object with the metrics of each task.") { model, data, split, device, limit, batch };
        command.SetAction((arguments, cancellation) => Task.FromResult(Errors.Report(() =>
        {
            var path = RowsOf(arguments.GetValue(data)!, arguments.GetValue(split)!);
            using var loaded = VisionLanguageModel.FromPretrained(arguments.GetValue(model)!, new() { Device = arguments.GetValue(device)!, DType = TorchSharp.torch.ScalarType.Float32 }, cancellation);
            using (Transforms.StepCancellation.Use(cancellation))
            {
                var result = Evaluation.Run(loaded, path, Commands.InRange("--batch", arguments.GetValue(batch), 1, 4096), arguments.GetValue(limit), new ProgressLine("rows"));
                result.Insert(0, "model", arguments.GetValue(model));
                result.Insert(1, "data", path);
                Console.WriteLine(result.ToJsonString(new() { WriteIndented = true }));
            }
        })));
        return command;
    }

    private static string RowsOf(string data, string split)
    {
        if (File.Exists(data)) return data;
        var path = Path.Combine(data, split + ".jsonl");
        if (File.Exists(path)) return path;
        throw new FileNotFoundException(Directory.Exists(data)
            ? $"There is no '{path}'; the folder has: {string.Join(", ", Directory.EnumerateFiles(data, "*.jsonl").Select(Path.GetFileName).Order())}. Write it with the verb generate, or name another --split."
            : $"There is no '{data}'; expected a folder that the verb generate wrote.", path);
    }
}
