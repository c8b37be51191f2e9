namespace MambaVL.Prompts;

/// <summary>Joins the bytes of one word into tokens, always the pair that was learnt first.</summary>
/// <remarks>
/// Microsoft.ML.Tokenizers 2.0.1 was tried for this part. Its BpeTokenizer gives the same ids (a test compares them),
/// but its time grows with the square of a word: 1.2 s for 100,000 letters, 4.6 s for 200,000. Its CodeGenTokenizer
/// is fast, but demands an unknown token named <c>&lt;|endoftext|&gt;</c> in the vocabulary, and fails on a byte that
/// the vocabulary lacks. Here the time is n log n.
/// </remarks>
internal sealed class BytePairEncoding
{
    private const int None = -1;
    private readonly int[] _byteIds;
    private readonly Dictionary<(int Left, int Right), (int Rank, int Id)> _merges;

    /// <param name="byteIds">The id of each byte, or -1 where the vocabulary has none.</param>
    /// <param name="merges">The pairs of ids, in the order learnt, and the id that each becomes.</param>
    public BytePairEncoding(int[] byteIds, IReadOnlyList<(int Left, int Right, int Merged)> merges)
    {
        _byteIds = byteIds;
        _merges = new(merges.Count);
        for (var rank = 0; rank < merges.Count; rank++)
            _merges[(merges[rank].Left, merges[rank].Right)] = (rank, merges[rank].Merged);
    }

    /// <summary>What one call of Encode reuses for each of its words.</summary>
    public sealed class Workspace
    {
        internal int[] Ids = [], Next = [], Previous = [];
        internal readonly PriorityQueue<int, long> Queue = new();

        internal void Reserve(int length)
        {
            if (Ids.Length >= length) return;
            var size = Math.Max(length, 2 * Ids.Length);
            (Ids, Next, Previous) = (new int[size], new int[size], new int[size]);
        }
    }

    /// <summary>Appends the ids of a word. A byte that the vocabulary lacks is left out, as the tokenizers library does.</summary>
    public void Encode(ReadOnlySpan<byte> word, List<int> to, Workspace work)
    {
        work.Reserve(word.Length);
        var (ids, next, previous, queue) = (work.Ids, work.Next, work.Previous, work.Queue);
        var length = 0;
        foreach (var b in word)
        {
            if (_byteIds[b] < 0) continue;
            (ids[length], next[length], previous[length]) = (_byteIds[b], length + 1, length - 1);
            length++;
        }
        if (length == 0) return;
        next[length - 1] = None;

        for (var i = 0; i + 1 < length; i++) Offer(i);
        while (queue.TryDequeue(out var merged, out var priority))
        {
            var left = (int)(uint)priority;
            // An entry is stale once a neighbour was merged into another token.
            if (ids[left] == None || next[left] is var right && right == None) continue;
            if (!_merges.TryGetValue((ids[left], ids[right]), out var merge) || merge.Id != merged) continue;

            ids[left] = merged;
            ids[right] = None;
            next[left] = next[right];
            if (next[left] != None) previous[next[left]] = left;
            if (previous[left] != None) Offer(previous[left]);
            if (next[left] != None) Offer(left);
        }
        for (var i = 0; i != None; i = next[i]) to.Add(ids[i]);

        // The lowest rank first, and the leftmost of equals.
        void Offer(int left)
        {
            if (_merges.TryGetValue((ids[left], ids[next[left]]), out var merge))
                queue.Enqueue(merge.Id, (long)merge.Rank << 32 | (uint)left);
        }
    }
}
