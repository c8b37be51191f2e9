using System.Globalization;
using System.Runtime.InteropServices;
using System.Text.RegularExpressions;
using static TorchSharp.torch;

namespace MambaVL.Training;

/// <summary>Says what can be done where memory does not suffice.</summary>
internal static partial class TrainingMemory
{
    /// <summary>Whether an error means that memory was asked for which is not there.</summary>
    public static bool IsShort(Exception e)
        => e is OutOfMemoryException || (e is ExternalException && (e.Message.Contains("out of memory", StringComparison.OrdinalIgnoreCase)
            || e.Message.Contains("can't allocate memory", StringComparison.OrdinalIgnoreCase)
            || e.Message.Contains("not enough memory", StringComparison.OrdinalIgnoreCase)));

    public static TrainingException Explain(Exception e, string doing, TrainingOptions options, Device device)
    {
        var said = Said().Match(e.Message) is { Success: true } match ? $" {match.Value.Trim()}" : "";
        var lower = options.RowsAtOnce > 1 ? $"MicroBatchSize first (it is {options.RowsAtOnce}; the result stays the same but for rounding)" : "nothing of MicroBatchSize, which is 1 already";
        return new(string.Create(CultureInfo.InvariantCulture,
            $"The memory of {device} does not suffice for {doing}.{said} Lower {lower}, then MaxLength (it is {options.MaxLength} ids) or ImageSize (it is {options.ImageSize ?? options.Model.Config.Images.ImageSize} pixels)."), e);
    }

    // "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.05 GiB is free.", or the CPU's
    // "you tried to allocate 123 bytes."
    [GeneratedRegex(@"(You t|T|t)ried to allocate .*?(of which [\d.]+ \w+ is free|bytes)\.", RegexOptions.IgnoreCase | RegexOptions.Singleline)]
    private static partial Regex Said();
}
