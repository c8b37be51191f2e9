namespace MambaVL.Training;

/// <summary>Which rows each step learns from: a pure function of the seed and the epoch, so that a run that goes on after it
/// was killed takes the rows that it would have taken.</summary>
/// <remarks>
/// Rows are shuffled; a few rows about one image stay together, for then its encoding is shared. Within a window of some steps
/// they are sorted by length, so that a step has rows of like length and little padding; then the steps of the window are
/// shuffled. Which rows a step has does not depend on how many go through the model at once.
/// </remarks>
/// <param name="lengths">Each row's length in ids.</param>
/// <param name="pictures">Each row's picture.</param>
/// <param name="batchSize">Rows of a step. The last one of an epoch may have fewer.</param>
/// <param name="rowsPerImage">Rows about one image that stay together.</param>
/// <param name="seed">The same seed gives the same order.</param>
internal sealed class BatchPlan(int[] lengths, int[] pictures, int batchSize, int rowsPerImage, long seed)
{
    // Longer windows save more padding and shuffle less; beyond some dozens of steps there is little left to save.
    private const int StepsOfWindow = 32;

    public int StepsPerEpoch { get; } = (lengths.Length + batchSize - 1) / batchSize;

    /// <summary>The rows of each step of an epoch.</summary>
    public int[][] Epoch(int epoch)
    {
        // Random with a seed is the same in every version of .NET and on every machine.
        var random = new Random(HashCode(seed, epoch));
        var groups = Groups(random);
        random.Shuffle(groups);
        var steps = new List<int[]>(StepsPerEpoch);
        var window = new List<int[]>();
        var rows = 0;
        foreach (var group in groups)
        {
            window.Add(group);
            if ((rows += group.Length) >= StepsOfWindow * batchSize) Cut(keepRest: true);
        }
        Cut(keepRest: false);
        return [.. steps];

        // Whole steps of the window; what is left of it begins the next one.
        void Cut(bool keepRest)
        {
            var sorted = window.OrderByDescending(g => g.Max(r => lengths[r])).SelectMany(g => g).ToArray(); // stable
            var rest = keepRest ? rows % batchSize : 0;
            var cut = sorted[..(rows - rest)].Chunk(batchSize).Select(Ordered).ToArray();
            // The one short step stays the epoch's last.
            random.Shuffle(cut.AsSpan(0, cut.Length > 0 && cut[^1].Length < batchSize ? cut.Length - 1 : cut.Length));
            steps.AddRange(cut);
            window = rest == 0 ? [] : [sorted[(rows - rest)..]];
            rows = rest;
        }
    }

    // The order in which a step is cut into micro-batches: rows of like length together, but those about one image before all.
    private int[] Ordered(int[] step) => rowsPerImage == 1
        ? [.. step.OrderByDescending(r => lengths[r]).ThenBy(r => pictures[r]).ThenBy(r => r)]
        : [.. step.GroupBy(r => pictures[r]).OrderByDescending(g => g.Max(r => lengths[r])).ThenBy(g => g.Key)
            .SelectMany(g => g.OrderByDescending(r => lengths[r]).ThenBy(r => r))];

    private int[][] Groups(Random random)
    {
        var order = Enumerable.Range(0, lengths.Length).ToArray();
        random.Shuffle(order);
        if (rowsPerImage == 1) return [.. order.Select(r => new[] { r })];
        return [.. order.GroupBy(r => pictures[r]).SelectMany(g => g.Chunk(rowsPerImage))];
    }

    // Not System.HashCode, which differs from process to process.
    private static int HashCode(long seed, int epoch)
    {
        var x = unchecked((ulong)seed * 0x9E3779B97F4A7C15 + (ulong)epoch + 1);
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
        return (int)(x ^ (x >> 31));
    }
}
