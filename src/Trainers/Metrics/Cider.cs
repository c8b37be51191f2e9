namespace MambaVL.Metrics;

/// <summary>CIDEr: how far the n-grams of a caption and of its references point the same way, rare ones weighing more.</summary>
/// <remarks>Vedantam et al. 2015, "CIDEr: consensus-based image description evaluation". pycocoevalcap's <c>Cider</c>
/// clips the caption's weights at the reference's and penalises a difference in length, which the paper calls CIDEr-D; so
/// does this.</remarks>
internal sealed class Cider
{
    // The width of the penalty on length, in words (in truth in pairs of words, which is one less on both sides).
    private const double Sigma = 6;

    // The paper's scale.
    private const double Scale = 10;

    private readonly Dictionary<NGram, int>[] _rows = [[], [], [], []]; // in how many rows' references an n-gram is
    private int _count;

    /// <summary>Counts a row's references; all rows come before the first score.</summary>
    public void Add(IReadOnlyList<NGrams> references)
    {
        _count++;
        for (var n = 1; n <= NGrams.Longest; n++)
            foreach (var gram in references.SelectMany(r => r.Of(n).Keys).Distinct())
                _rows[n - 1][gram] = _rows[n - 1].GetValueOrDefault(gram) + 1;
    }

    public double Score(NGrams caption, IReadOnlyList<NGrams> references)
    {
        var sum = 0.0;
        foreach (var reference in references)
        {
            var difference = caption.Total(2) - reference.Total(2);
            var penalty = Math.Exp(-(double)difference * difference / (2 * Sigma * Sigma));
            for (var n = 1; n <= NGrams.Longest; n++)
                sum += Similarity(caption.Of(n), reference.Of(n), n) * penalty;
        }
        return Scale * sum / NGrams.Longest / references.Count;
    }

    private double Similarity(Dictionary<NGram, int> caption, Dictionary<NGram, int> reference, int n)
    {
        double product = 0, captionSquares = 0, referenceSquares = 0;
        foreach (var (gram, count) in caption)
        {
            var rarity = Rarity(gram, n);
            var own = count * rarity;
            captionSquares += own * own;
            var other = reference.GetValueOrDefault(gram) * rarity;
            product += Math.Min(own, other) * other;
        }
        foreach (var (gram, count) in reference)
        {
            var weight = count * Rarity(gram, n);
            referenceSquares += weight * weight;
        }
        // No n-gram of this length, or only such as every row has: nothing in common, rather than 0 / 0.
        return product > 0 ? product / (Math.Sqrt(captionSquares) * Math.Sqrt(referenceSquares)) : 0;
    }

    private double Rarity(NGram gram, int n) => Math.Log(_count) - Math.Log(Math.Max(1, _rows[n - 1].GetValueOrDefault(gram)));
}
