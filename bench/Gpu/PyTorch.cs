using System.Diagnostics;
using System.Text.Json;

namespace MambaVL.Bench;

/// <summary>The scripts of bench/pytorch, each in a process of its own.</summary>
internal static class PyTorch
{
    /// <summary>The Python of --python, else python3, where it has a torch that sees a GPU; null, and why, where not.</summary>
    public static string? Find(Options options, out string? problem)
    {
        var python = options.Values.GetValueOrDefault("python", "python3");
        problem = null;
        if (python == "none") return null;
        try
        {
            var start = new ProcessStartInfo(python, ["-c", "import torch; print(torch.__version__, torch.cuda.is_available())"]) { RedirectStandardOutput = true, RedirectStandardError = true };
            Own(start);
            using var process = Process.Start(start)!;
            var error = process.StandardError.ReadToEndAsync();
            var output = process.StandardOutput.ReadToEnd().Trim();
            process.WaitForExit();
            if (process.ExitCode == 0 && output.EndsWith("True", StringComparison.Ordinal)) return python;
            problem = process.ExitCode == 0 ? $"{python} has torch {output.Split(' ')[0]}, which sees no GPU" : $"{python} has no torch: {error.Result.TrimEnd().Split('\n')[^1]}";
        }
        catch (System.ComponentModel.Win32Exception e)
        {
            problem = $"{python} does not start: {e.Message}";
        }
        return null;
    }

    /// <summary>Runs a script, whose results come as JSON. A script that fails costs its own lines.</summary>
    public static IReadOnlyList<PyTorchResult> Run(string python, string script, params IEnumerable<string> arguments)
    {
        var file = Path.GetTempFileName();
        try
        {
            Start(python, script, ["--json", file, .. arguments]);
            // Written after each result: what a script measured before it failed is there.
            return new FileInfo(file).Length == 0 ? [] : JsonSerializer.Deserialize<PyTorchResult[]>(File.ReadAllText(file), Json) ?? [];
        }
        finally
        {
            File.Delete(file);
        }
    }

    /// <summary>Runs a script to its end; what it prints is printed.</summary>
    public static void Start(string python, string script, params IEnumerable<string> arguments)
    {
        var start = new ProcessStartInfo(python, [Path.Combine(Repository.Path("bench/pytorch"), script), .. arguments]);
        Own(start);
        using var process = Process.Start(start)!;
        process.WaitForExit();
        if (process.ExitCode != 0) Console.Error.WriteLine($"{script} ended with {process.ExitCode}.");
    }

    public static readonly JsonSerializerOptions Json = new() { WriteIndented = true, PropertyNameCaseInsensitive = true };

    // Python's own libraries: the folders that were named for this process are of no use to it.
    private static void Own(ProcessStartInfo start) => start.Environment.Remove("LD_LIBRARY_PATH");
}
