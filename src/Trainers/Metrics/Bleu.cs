namespace MambaVL.Metrics;

/// <summary>What BLEU counts: of a caption, or of all captions together.</summary>
/// <remarks>Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation", section 2; the closest
/// reference length and the small numbers as in pycocoevalcap's bleu_scorer.py.</remarks>
internal sealed class Bleu
{
    // Keep 0 / 0 a small number rather than none, and 0 / n nearly 0.
    private const double Small = 1e-9, Tiny = 1e-15;

    private readonly long[] _matches = new long[NGrams.Longest];
    private readonly long[] _totals = new long[NGrams.Longest];
    private long _length, _referenceLength;

    public static Bleu Of(NGrams caption, IReadOnlyList<NGrams> references)
    {
        var bleu = new Bleu
        {
            _length = caption.Length,
            // Of two lengths equally near, the shorter.
            _referenceLength = references.Min(r => (Math.Abs(r.Length - caption.Length), r.Length)).Length,
        };
        for (var n = 1; n <= NGrams.Longest; n++)
        {
            bleu._totals[n - 1] = caption.Total(n);
            foreach (var (gram, count) in caption.Of(n))
                bleu._matches[n - 1] += Math.Min(count, references.Max(r => r.Of(n).GetValueOrDefault(gram)));
        }
        return bleu;
    }

    public void Add(Bleu other)
    {
        for (var i = 0; i < NGrams.Longest; i++)
        {
            _matches[i] += other._matches[i];
            _totals[i] += other._totals[i];
        }
        _length += other._length;
        _referenceLength += other._referenceLength;
    }

    /// <summary>BLEU-1 to BLEU-4.</summary>
    public double[] Scores()
    {
        var ratio = (_length + Tiny) / (_referenceLength + Small);
        var penalty = ratio < 1 ? Math.Exp(1 - 1 / ratio) : 1;
        var scores = new double[NGrams.Longest];
        var product = 1.0;
        for (var i = 0; i < NGrams.Longest; i++)
        {
            product *= (_matches[i] + Tiny) / (_totals[i] + Small);
            scores[i] = Math.Pow(product, 1.0 / (i + 1)) * penalty;
        }
        return scores;
    }
}
