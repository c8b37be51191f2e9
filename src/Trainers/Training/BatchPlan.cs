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

    /// <summary>The rows of each step of an epoch, made window by window as they are asked for: the first step of an epoch of a
    /// million rows is not waited for.</summary>
    public IEnumerable<int[]> Epoch(int epoch)
    {
        // Random with a seed is the same in every version of .NET and on every machine.
        var random = new Random(HashCode(seed, epoch));
        var groups = Groups(random);
        random.Shuffle(groups);
        var window = new List<ArraySegment<int>>();
        var rows = 0;
        foreach (var group in groups)
        {
            window.Add(group);
            if ((rows += group.Count) < StepsOfWindow * batchSize) continue;
            // Whole steps of the window; what is left of it begins the next one.
            var sorted = Sorted(window, rows);
            rows %= batchSize;
            foreach (var step in Cut(sorted[..^rows], random)) yield return step;
            window.Clear();
            if (rows > 0) window.Add(new(sorted, sorted.Length - rows, rows));
        }
        foreach (var step in Cut(Sorted(window, rows), random)) yield return step;
    }

    // The rows of groups, those with the longest row first, and of equals the earlier.
    private int[] Sorted(List<ArraySegment<int>> groups, int rows)
    {
        var keys = new long[groups.Count];
        for (var i = 0; i < keys.Length; i++)
        {
            var longest = 0;
            foreach (var r in groups[i]) longest = Math.Max(longest, lengths[r]);
            keys[i] = ((long)(int.MaxValue - longest) << 32) | (uint)i;
        }
        Array.Sort(keys);
        var sorted = new int[rows];
        var at = 0;
        foreach (var key in keys)
        {
            var group = groups[(int)(key & uint.MaxValue)];
            group.CopyTo(sorted, at);
            at += group.Count;
        }
        return sorted;
    }

    // Rows as steps in any order, but the one short step stays the epoch's last.
    private int[][] Cut(int[] sorted, Random random)
    {
        var steps = sorted.Chunk(batchSize).Select(Ordered).ToArray();
        random.Shuffle(steps.AsSpan(0, steps.Length > 0 && steps[^1].Length < batchSize ? steps.Length - 1 : steps.Length));
        return steps;
    }

    // The order in which a step is cut into micro-batches: rows of like length together, but those about one image before all.
    private int[] Ordered(int[] step) => rowsPerImage == 1
        ? [.. step.OrderByDescending(r => lengths[r]).ThenBy(r => pictures[r]).ThenBy(r => r)]
        : [.. step.GroupBy(r => pictures[r]).OrderByDescending(g => g.Max(r => lengths[r])).ThenBy(g => g.Key)
            .SelectMany(g => g.OrderByDescending(r => lengths[r]).ThenBy(r => r))];

    // All rows in a random order; those about one image that stay together stand at the place of its first.
    private ArraySegment<int>[] Groups(Random random)
    {
        var order = new int[lengths.Length];
        for (var i = 0; i < order.Length; i++) order[i] = i;
        random.Shuffle(order);
        var groups = new List<ArraySegment<int>>(order.Length);
        if (rowsPerImage == 1)
        {
            for (var i = 0; i < order.Length; i++) groups.Add(new(order, i, 1));
            return [.. groups];
        }

        var count = new int[pictures.Max() + 1];
        foreach (var r in order) count[pictures[r]]++;
        var place = new int[count.Length]; // where a picture's next row goes
        Array.Fill(place, -1);
        var together = new int[order.Length];
        var used = 0;
        foreach (var r in order)
        {
            ref var at = ref place[pictures[r]];
            if (at < 0)
            {
                at = used;
                used += count[pictures[r]];
                for (var first = at; first < used; first += rowsPerImage) groups.Add(new(together, first, Math.Min(rowsPerImage, used - first)));
            }
            together[at++] = r;
        }
        return [.. groups];
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
