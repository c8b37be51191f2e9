namespace MambaVL.Metrics;

/// <summary>One to four words by their numbers, which start at 1; the places behind them are 0.</summary>
internal readonly record struct NGram(int First, int Second, int Third, int Fourth);

/// <summary>How often each n-gram of a sentence occurs in it, by length.</summary>
internal sealed class NGrams
{
    public const int Longest = 4;

    private readonly Dictionary<NGram, int>[] _counts = [[], [], [], []];

    public NGrams(int[] words)
    {
        Length = words.Length;
        for (var i = 0; i < words.Length; i++)
            for (var n = 1; n <= Longest && i + n <= words.Length; n++)
            {
                var gram = new NGram(words[i], n > 1 ? words[i + 1] : 0, n > 2 ? words[i + 2] : 0, n > 3 ? words[i + 3] : 0);
                _counts[n - 1][gram] = _counts[n - 1].GetValueOrDefault(gram) + 1;
            }
    }

    /// <summary>The sentence's length in words.</summary>
    public int Length { get; }

    /// <summary>The counts of the n-grams of <paramref name="n"/> words, 1 to 4.</summary>
    public Dictionary<NGram, int> Of(int n) => _counts[n - 1];

    /// <summary>How many n-grams there are, repeated ones included.</summary>
    public int Total(int n) => Math.Max(0, Length - n + 1);
}
