namespace MambaVL.Metrics;

/// <summary>ROUGE-L: how much of a reference a caption has in the same order.</summary>
/// <remarks>Lin 2004, "ROUGE: a package for automatic evaluation of summaries", section 3; beta and the best precision and
/// best recall over the references, each by itself, as in pycocoevalcap's rouge.py.</remarks>
internal static class RougeL
{
    private const double Beta = 1.2;

    public static double Score(int[] caption, IReadOnlyList<int[]> references)
    {
        // Deviation: pycocoevalcap takes an empty sentence for one empty word, and gives 1 to an empty caption of an empty
        // reference. Here a reference has a word at least, and an empty caption scores 0.
        if (caption.Length == 0) return 0;
        double precision = 0, recall = 0;
        foreach (var reference in references)
        {
            var common = LongestCommonSubsequence(caption, reference);
            precision = Math.Max(precision, (double)common / caption.Length);
            recall = Math.Max(recall, (double)common / reference.Length);
        }
        return precision > 0 ? (1 + Beta * Beta) * precision * recall / (recall + Beta * Beta * precision) : 0;
    }

    internal static int LongestCommonSubsequence(int[] a, int[] b)
    {
        var row = new int[b.Length + 1]; // row[j]: of the words of a so far and the first j of b
        foreach (var word in a)
        {
            var diagonal = 0;
            for (var j = 1; j <= b.Length; j++)
            {
                var above = row[j];
                row[j] = word == b[j - 1] ? diagonal + 1 : Math.Max(above, row[j - 1]);
                diagonal = above;
            }
        }
        return row[^1];
    }
}
