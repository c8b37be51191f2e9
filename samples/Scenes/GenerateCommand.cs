using System.CommandLine;
using System.Diagnostics;

namespace MambaVL.Samples.Scenes;

/// <summary><c>generate</c>: writes a data set.</summary>
internal static class GenerateCommand
{
    public static Command Create()
    {
        var seed = new Option<long>("--seed") { Description = "The same seed gives the same scenes.", DefaultValueFactory = _ => 1 };
        var count = new Option<int>("--count") { Description = "Scenes of each split for which --splits names no number.", DefaultValueFactory = _ => 1000 };
        var output = new Option<string>("--out") { Description = "The folder: empty, or one that was written by this command.", Required = true };
        var size = new Option<int>("--size") { Description = $"Pixels on a side, {SceneComposer.LeastSize} to {SceneComposer.MostSize}.", DefaultValueFactory = _ => 192 };
        var splits = new Option<string[]>("--splits")
        {
            Description = "Splits, each with its number of scenes if it is not --count: train=20000 validation test=500 unseen. Unseen has pairs of objects that are in no other split.",
            AllowMultipleArgumentsPerToken = true,
            DefaultValueFactory = _ => [.. Splits.All],
        };
        var threads = new Option<int>("--threads") { Description = "Threads; the scenes do not depend on it.", DefaultValueFactory = _ => Environment.ProcessorCount };
        var command = new Command("generate", "Writes pictures and rows (docs/dataset-format.md).") { seed, count, output, size, splits, threads };
        command.SetAction((arguments, cancellation) => Task.FromResult(Errors.Report(() =>
        {
            Run(arguments.GetValue(output)!, new()
            {
                Seed = arguments.GetValue(seed),
                Size = Commands.InRange("--size", arguments.GetValue(size), SceneComposer.LeastSize, SceneComposer.MostSize),
                Splits = Read(arguments.GetValue(splits)!, Commands.InRange("--count", arguments.GetValue(count), 1, MostScenes)),
                Threads = Commands.InRange("--threads", arguments.GetValue(threads), 1, 1024),
            }, cancellation);
        })));
        return command;
    }

    private const int MostScenes = 1_000_000;

    private static void Run(string folder, SceneDatasetOptions options, CancellationToken cancellation)
    {
        var watch = Stopwatch.StartNew();
        var total = options.Splits.Values.Sum();
        var rows = SceneDataset.Write(folder, options, new ProgressLine("scenes", total), cancellation);
        var seconds = watch.Elapsed.TotalSeconds;
        foreach (var (split, count) in rows) Console.WriteLine($"{folder}/{split}.jsonl: {options.Splits[split]} scenes, {count} rows");
        Console.WriteLine($"{seconds:0.0} s, {total / seconds:0} scenes a second");
    }

    private static Dictionary<string, int> Read(string[] splits, int count)
    {
        var read = new Dictionary<string, int>();
        foreach (var split in splits.SelectMany(s => s.Split(',')))
        {
            var parts = split.Split('=', 2);
            if (!Splits.All.Contains(parts[0])) throw new ArgumentException($"--splits names '{parts[0]}'; expected {string.Join(", ", Splits.All)}.");
            var own = count;
            if (parts.Length > 1 && (!int.TryParse(parts[1], out own) || own is < 1 or > MostScenes)) throw new ArgumentException($"--splits has '{split}'; expected NAME=NUMBER, 1 to {MostScenes}.");
            if (!read.TryAdd(parts[0], own)) throw new ArgumentException($"--splits names '{parts[0]}' twice.");
        }
        return read;
    }
}
