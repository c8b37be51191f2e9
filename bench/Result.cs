using System.Globalization;

namespace MambaVL.Bench;

/// <summary>Milliseconds of one side of a comparison: the median of the repeats, and the quartiles.</summary>
internal sealed record Timing(double Median, double LowerQuartile, double UpperQuartile, int Repeats)
{
    public static Timing Of(IEnumerable<double> milliseconds)
    {
        var sorted = milliseconds.Order().ToArray();
        return new(At(0.5), At(0.25), At(0.75), sorted.Length);

        double At(double q)
        {
            var place = q * (sorted.Length - 1);
            var (below, above) = (sorted[(int)Math.Floor(place)], sorted[(int)Math.Ceiling(place)]);
            return below + (above - below) * (place - Math.Floor(place));
        }
    }

    public override string ToString() => string.Create(CultureInfo.InvariantCulture,
        $"{Median,9:f3} ms ({LowerQuartile:f3} to {UpperQuartile:f3})");
}

/// <summary>One case: the project's side, the other side, and how many times faster the first is.</summary>
internal sealed record Result(string Case, Timing Ours, Timing Other)
{
    public double Ratio => Other.Median / Ours.Median;

    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"{Case,-36} {Ours}   against {Other}   x{Ratio:f1}");
}
