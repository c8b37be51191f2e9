namespace MambaVL.Generation;

/// <summary>How text is chosen from a model's logits. The defaults are the reference's: greedy, until the end token.</summary>
/// <remarks>
/// The order of the steps is that of Hugging Face transformers: repetition penalty, temperature, top-k, top-p. Options
/// are checked when generation starts, and never changed.
/// </remarks>
public sealed record GenerationOptions
{
    /// <summary>The most tokens that one answer may have, at least 1. Default 128: the reference's longest answers
    /// (captions) are limited to 120.</summary>
    public int MaxNewTokens { get; init; } = 128;

    /// <summary>Divides the logits before sampling: below 1 prefers the likely tokens, above 1 the unlikely. At 0, the
    /// default, nothing is sampled: the likeliest token is taken (greedy), and the seed has no effect.</summary>
    public double Temperature { get; init; }

    /// <summary>Samples among this many likeliest tokens only; 0, the default, sets no limit. No effect when greedy.</summary>
    public int TopK { get; init; }

    /// <summary>Samples among the fewest tokens whose probabilities add up to this, in (0, 1]; 1, the default, sets no
    /// limit. No effect when greedy.</summary>
    public double TopP { get; init; } = 1;

    /// <summary>Divides positive (multiplies negative) logits of tokens that the prompt or the answer already holds;
    /// above 1 discourages repetition. Default 1: none. Works when greedy too.</summary>
    public double RepetitionPenalty { get; init; } = 1;

    /// <summary>Two runs with the same seed choose the same tokens, whatever the batch and the number of threads. Every
    /// row of a batch draws from its own generator, started from this seed and the row's own.</summary>
    public long Seed { get; init; }

    /// <summary>Whether an answer goes on past the model's end token until <see cref="MaxNewTokens"/>. For measuring and
    /// for parity tests; default false.</summary>
    public bool IgnoreEndToken { get; init; }

    /// <summary>Texts at which an answer ends, besides the end token. The answer's text stops before the first of them;
    /// its ids hold the tokens that made it. Default: none. A line break is the one to give where several answers follow
    /// each other in a conversation (chat, regions): there the end token comes after the last only.</summary>
    public IReadOnlyList<string> StopSequences { get; init; } = [];

    /// <summary>These options, once they are known to be in range.</summary>
    /// <exception cref="ArgumentOutOfRangeException">One is not; the message names it.</exception>
    public GenerationOptions Checked()
    {
        Require(MaxNewTokens >= 1, nameof(MaxNewTokens), MaxNewTokens, "at least 1");
        Require(double.IsFinite(Temperature) && Temperature >= 0, nameof(Temperature), Temperature, "0 (greedy) or a positive number");
        Require(TopK >= 0, nameof(TopK), TopK, "0 (no limit) or a number of tokens");
        Require(TopP is > 0 and <= 1, nameof(TopP), TopP, "above 0 and at most 1");
        Require(double.IsFinite(RepetitionPenalty) && RepetitionPenalty > 0, nameof(RepetitionPenalty), RepetitionPenalty, "a positive number (1 for none)");
        var empty = StopSequences is null || StopSequences.Any(string.IsNullOrEmpty);
        Require(!empty, nameof(StopSequences), StopSequences is null ? "null" : "an empty text", "texts of at least one character");
        return this;

        static void Require<T>(bool holds, string name, T found, string expected)
        {
            if (!holds) throw new ArgumentOutOfRangeException(name, found, $"{nameof(GenerationOptions)}.{name} must be {expected}.");
        }
    }
}
