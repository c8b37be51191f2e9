using System.Diagnostics;
using System.Text.Json;
using MambaVL.Cuda;

namespace MambaVL.Bench;

/// <summary>Every line of the GPU's table: groups that run in a process each, so that one which fails or fills the memory leaves
/// the others alone, and PyTorch's side of a group after ours, alone on the GPU.</summary>
internal static class GpuBenchmark
{
    private delegate IEnumerable<GpuResult> Group(Options options, CudaGpu gpu, GpuTimer timer, GpuLimits limits);

    private static readonly (string Name, Group Run, string? Script)[] Groups =
    [
        ("limits", (_, _, _, limits) => limits.Lines, null),
        ("scan", GpuScanBenchmark.Run, "scan.py"),
        ("language", GpuLanguageBenchmark.Run, "language.py"),
        ("vision", GpuVisionBenchmark.Run, "vision.py"),
        ("training", GpuTrainingBenchmark.Run, "training.py"),
    ];

    /// <summary>All groups, or the one of --group; --only TEXT takes the models whose name holds it; --python none leaves PyTorch out.</summary>
    public static IEnumerable<object> Run(Options options)
    {
        MambaVL.Runtime.EnsureCuda();
        var python = PyTorch.Find(options, out var problem);
        if (problem is not null) Console.WriteLine($"Without PyTorch: {problem}.");
        foreach (var (name, _, script) in Groups)
        {
            if (options.Values.TryGetValue("group", out var only) && only != name) continue;
            var clock = Stopwatch.StartNew();
            var ours = InAProcessOfItsOwn(name, options);
            var oursSeconds = clock.Elapsed.TotalSeconds;
            var theirs = python is null || script is null ? [] : PyTorch.Run(python, script, options.Values.TryGetValue("only", out var text) ? ["--only", text] : []);
            foreach (var result in ours)
                yield return result with { PyTorch = [.. theirs.Where(t => t.Case == result.Case)] };
            foreach (var other in theirs.Where(t => ours.All(r => r.Case != t.Case)))
                yield return $"{other.Case,-42} only PyTorch: {other.How} {other.Time}";
            Console.WriteLine($"[{name}: {oursSeconds:f0} s, PyTorch {clock.Elapsed.TotalSeconds - oursSeconds:f0} s]");
        }
    }

    /// <summary>Our side of the group of --name, here.</summary>
    public static IEnumerable<object> RunGroup(Options options)
    {
        MambaVL.Runtime.EnsureCuda();
        var name = options.Values.GetValueOrDefault("name", "");
        var group = Groups.FirstOrDefault(g => g.Name == name);
        if (group.Run is null) throw new ArgumentException($"There is no group '{name}'; there are {string.Join(", ", Groups.Select(g => g.Name))}.");
        var gpu = CudaGpu.Get(0);
        using var timer = new GpuTimer(gpu);
        foreach (var result in group.Run(options, gpu, timer, GpuLimits.Measure(gpu, timer))) yield return result;
    }

    private static IReadOnlyList<GpuResult> InAProcessOfItsOwn(string group, Options options)
    {
        var file = Path.GetTempFileName();
        try
        {
            var host = Environment.ProcessPath!;
            List<string> arguments = ["gpu-group", "--name", group];
            if (Path.GetFileNameWithoutExtension(host) == "dotnet") arguments.Insert(0, typeof(GpuBenchmark).Assembly.Location);
            foreach (var (key, value) in options.Values.Where(v => v.Key is not ("json" or "group" or "python"))) arguments.AddRange(["--" + key, value]);
            arguments.AddRange(["--json", file]);
            using var process = Process.Start(new ProcessStartInfo(host, arguments) { RedirectStandardOutput = true })!;
            // Our lines at once; once PyTorch's are beside them they are printed again.
            while (process.StandardOutput.ReadLine() is { } line) Console.Error.WriteLine(line);
            process.WaitForExit();
            if (process.ExitCode != 0) Console.Error.WriteLine($"Our side of {group} ended with {process.ExitCode}; what it measured before that follows.");
            if (new FileInfo(file).Length == 0) return [];
            using var json = JsonDocument.Parse(File.ReadAllText(file));
            return json.RootElement.GetProperty("results").Deserialize<GpuResult[]>(PyTorch.Json) ?? [];
        }
        finally
        {
            File.Delete(file);
        }
    }
}
