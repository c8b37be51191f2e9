using System.Globalization;
using System.Text.RegularExpressions;

namespace MambaVL.Cuda;

/// <summary>A failed compile as a message: what was compiled and how, the compiler's log, and each line that it names.</summary>
internal static partial class CompilerLog
{
    public static string Explain(string name, string source, IReadOnlyDictionary<string, string> headers, IEnumerable<string> options, string version, string log)
    {
        var lines = new List<string>();
        foreach (Match place in Place().Matches(log))
        {
            var file = place.Groups[1].Value;
            var text = file == name ? source : headers.GetValueOrDefault(file);
            if (text?.Split('\n').ElementAtOrDefault(int.Parse(place.Groups[2].Value, CultureInfo.InvariantCulture) - 1) is { } line)
                lines.Add($"  {file}:{place.Groups[2].Value}: {line.Trim()}");
        }
        return $"{name} does not compile with NVRTC {version} ({string.Join(' ', options)}):\n{log}\n" +
            string.Join('\n', lines.Distinct().Take(10));
    }

    [GeneratedRegex(@"^([\w./-]+)\((\d+)\)", RegexOptions.Multiline)]
    private static partial Regex Place();
}
