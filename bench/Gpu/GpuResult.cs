using System.Globalization;
using System.Text;

namespace MambaVL.Bench;

/// <summary>One line of the GPU's table: our time, the limit measured in the same run, and PyTorch's time beside it.</summary>
/// <param name="Case">Its name; PyTorch's script gives its result the same.</param>
/// <param name="Ours">Milliseconds.</param>
internal sealed record GpuResult(string Case, Timing Ours)
{
    /// <summary>The least time that the hardware allows, in milliseconds.</summary>
    public double? Limit { get; init; }

    /// <summary>What the limit is made of.</summary>
    public string? LimitOf { get; init; }

    /// <summary>The milliseconds that are aimed at.</summary>
    public double? Target { get; init; }

    /// <summary>How many times faster than PyTorch's side is aimed at.</summary>
    public double? TargetRatio { get; init; }

    /// <summary>Tokens (or images) that the time is for.</summary>
    public double? Items { get; init; }

    /// <summary>Memory in use on the device at the end, in GB.</summary>
    public double? Gigabytes { get; init; }

    /// <summary>Anything else that was seen.</summary>
    public string? Note { get; init; }

    /// <summary>What PyTorch did; several where it has several ways.</summary>
    public IReadOnlyList<PyTorchResult> PyTorch { get; init; } = [];

    public override string ToString()
    {
        var text = new StringBuilder(string.Create(CultureInfo.InvariantCulture, $"{Case,-42} {Ours}"));
        Add($"{Items / Ours.Median * 1000:f0} a second", Items);
        Add($"{Gigabytes:f1} GB", Gigabytes);
        Add($"limit {Limit:f3} ms ({LimitOf}), {100 * Limit / Ours.Median:f0}% of it reached", Limit);
        Add($"target {Target:f2} ms {(Ours.Median <= Target ? "met" : "missed")}", Target);
        if (Note is not null) text.Append("   ").Append(Note);
        foreach (var other in PyTorch)
        {
            text.Append(string.Create(CultureInfo.InvariantCulture, $"\n{"",8}{other.How,-34} {other.Time}   x{other.Time.Median / Ours.Median:f2}"));
            if (other.Gigabytes is { } gigabytes) text.Append(string.Create(CultureInfo.InvariantCulture, $"   {gigabytes:f1} GB"));
            if (TargetRatio is { } ratio && ReferenceEquals(other, PyTorch[0]))
                text.Append(string.Create(CultureInfo.InvariantCulture, $"   target x{ratio:f1} {(other.Time.Median / Ours.Median >= ratio ? "met" : "missed")}"));
        }
        return text.ToString();

        void Add(FormattableString part, double? isThere)
        {
            if (isThere is not null) text.Append("   ").Append(part.ToString(CultureInfo.InvariantCulture));
        }
    }
}

/// <summary>What a script of bench/pytorch measured.</summary>
/// <param name="Case">The name of the line.</param>
/// <param name="How">Which way of PyTorch's.</param>
/// <param name="Time">Milliseconds.</param>
/// <param name="Gigabytes">Memory in use on the device at the end, as our side counts it.</param>
internal sealed record PyTorchResult(string Case, string How, Timing Time, double? Gigabytes = null);
