namespace MambaVL.Models;

/// <summary>Which projections get adapters, and of what size.</summary>
public sealed record LoraOptions
{
    /// <summary>The width r between the two factors; at least 1. An adapter beside a weight [out, in] has r (in + out)
    /// values. Default 16.</summary>
    public int Rank { get; init; } = 16;

    /// <summary>What is learnt counts <c>Alpha / Rank</c> times; above 0. Default 32: twice.</summary>
    public double Alpha { get; init; } = 32;

    /// <summary>The share of an adapter's inputs that is left out, at random, while gradients are recorded; from 0 to below 1.
    /// Default 0. Above it, torch's own generator is drawn from: a run that is to be repeated seeds that.</summary>
    public double Dropout { get; init; }

    /// <summary>The projections that get adapters, by the last part of their name. Default: empty, every projection of the
    /// layers. These are in_proj, x_proj, dt_proj and out_proj of a Mamba; query_key_value, dense, dense_h_to_4h and
    /// dense_4h_to_h of a GPT-NeoX.</summary>
    public IReadOnlyList<string> Targets { get; init; } = [];

    /// <summary>The same seed gives the same first values. Default 1.</summary>
    public long Seed { get; init; } = 1;

    internal void Check()
    {
        if (Rank < 1) throw new ArgumentException($"{nameof(LoraOptions)}.{nameof(Rank)} is {Rank}; expected at least 1.");
        if (!(Alpha > 0 && double.IsFinite(Alpha)))
            throw new ArgumentException($"{nameof(LoraOptions)}.{nameof(Alpha)} is {Alpha}; expected a number above 0.");
        if (Dropout is not (>= 0 and < 1))
            throw new ArgumentException($"{nameof(LoraOptions)}.{nameof(Dropout)} is {Dropout}; expected from 0 to below 1.");
        ArgumentNullException.ThrowIfNull(Targets);
    }
}
