using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text.Json;

namespace MambaVL.Bench;

/// <summary>What stands after the benchmark's name: pairs of --name and value.</summary>
internal sealed record Options(IReadOnlyDictionary<string, string> Values)
{
    /// <summary>Threads of both sides; by default two.</summary>
    public int Threads => Number("threads", 2);

    /// <summary>Timed runs of each side.</summary>
    public int Repeats => Number("repeats", 15);

    /// <summary>Milliseconds of the action: by the clock on the wall, or with --clock cpu of processor time. The second
    /// is what still means something on a busy machine, with one thread.</summary>
    public double Time(Action action)
    {
        var (wall, cpu) = (Stopwatch.GetTimestamp(), Environment.CpuUsage.TotalTime);
        action();
        return (Clock == "cpu" ? Environment.CpuUsage.TotalTime - cpu : Stopwatch.GetElapsedTime(wall)).TotalMilliseconds;
    }

    /// <summary>wall or cpu.</summary>
    public string Clock => Values.GetValueOrDefault("clock", "wall");

    /// <summary>Whether --only takes this case.</summary>
    public bool Takes(string name) => !Values.TryGetValue("only", out var text) || name.Contains(text, StringComparison.OrdinalIgnoreCase);

    public int Number(string name, int otherwise) =>
        Values.TryGetValue(name, out var text) ? int.Parse(text, NumberStyles.None, CultureInfo.InvariantCulture) : otherwise;

    public static Options Parse(string[] args, out string? name, out string? problem)
    {
        name = args.Length > 0 && !args[0].StartsWith('-') ? args[0] : null;
        problem = null;
        var values = new Dictionary<string, string>();
        for (var i = name is null ? 0 : 1; i < args.Length; i += 2)
        {
            if (!args[i].StartsWith("--", StringComparison.Ordinal) || i + 1 == args.Length)
            {
                problem = $"Expected --name value, found '{args[i]}'.";
                break;
            }
            values[args[i][2..]] = args[i + 1];
        }
        return new(values);
    }

    /// <summary>Writes the results to the file of --json, if there is one.</summary>
    public void Save(string benchmark, IReadOnlyList<object> results)
    {
        if (!Values.TryGetValue("json", out var path)) return;
        var report = new
        {
            benchmark, Date = DateTime.UtcNow.ToString("yyyy-MM-dd HH:mm", CultureInfo.InvariantCulture), Threads, Clock, Machine = RuntimeInformation.OSDescription, Cores = Environment.ProcessorCount,
            Runtime = RuntimeInformation.FrameworkDescription, results,
        };
        File.WriteAllText(path, JsonSerializer.Serialize(report, new JsonSerializerOptions { WriteIndented = true }));
    }
}
