namespace MambaVL.Generation;

/// <summary>Chooses the next token of one row from its logits.</summary>
/// <remarks>One sampler a row: it holds the row's random numbers and the tokens seen so far. Not thread-safe.</remarks>
internal sealed class Sampler
{
    private readonly GenerationOptions _options;
    private readonly HashSet<int> _seen = [];
    private ulong _random;
    private int[] _order = [];
    private float[] _sortKeys = [];

    /// <param name="options">Checked options.</param>
    /// <param name="rowSeed">Tells rows of one run apart that should draw different numbers.</param>
    /// <param name="prompt">The row's tokens so far, for the repetition penalty; negative ids (image places) are left out.</param>
    public Sampler(GenerationOptions options, long rowSeed, IEnumerable<long> prompt)
    {
        _options = options;
        _random = Mix(unchecked((ulong)options.Seed * Step + (ulong)rowSeed));
        if (options.RepetitionPenalty != 1)
            foreach (var id in prompt)
                if (id >= 0) _seen.Add((int)id);
    }

    /// <summary>The state of the row's generator.</summary>
    public ulong Random => _random;

    /// <summary>The tokens that the repetition penalty is for; none where there is no penalty.</summary>
    public IReadOnlyCollection<int> Seen => _seen;

    /// <summary>Moves on over a token that was chosen elsewhere, from the same state in the same way.</summary>
    /// <exception cref="InvalidOperationException">It is -1, for logits that are not finite.</exception>
    public void Accept(int id)
    {
        if (id < 0) throw NotFinite();
        if (_options.Temperature != 0) _random += Step;
        if (_options.RepetitionPenalty != 1) _seen.Add(id);
    }

    /// <summary>The next token. <paramref name="logits"/> [vocabulary] is used as scratch space.</summary>
    /// <exception cref="InvalidOperationException">The logits are not finite: the model or its input is broken.</exception>
    public int Next(Span<float> logits)
    {
        Penalise(logits);
        var best = Greatest(logits);
        var id = _options.Temperature == 0 ? best : Sample(logits, logits[best]);
        if (_options.RepetitionPenalty != 1) _seen.Add(id);
        return id;
    }

    /// <summary>Of equal logits the first wins, as in torch.argmax on the CPU.</summary>
    private static int Greatest(ReadOnlySpan<float> logits)
    {
        var best = 0;
        var nan = false;
        for (var i = 0; i < logits.Length; i++)
        {
            nan |= float.IsNaN(logits[i]);
            if (logits[i] > logits[best]) best = i;
        }
        return nan || float.IsInfinity(logits[best]) ? throw NotFinite() : best;
    }

    private static InvalidOperationException NotFinite() => new(
        "The model's logits are not finite. Its weights or its input are broken: check the checkpoint, and whether " +
        "the model was trained in this precision.");

    private void Penalise(Span<float> logits)
    {
        var penalty = (float)_options.RepetitionPenalty;
        foreach (var id in _seen)
            if (id < logits.Length)
                logits[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
    }

    private int Sample(Span<float> logits, float greatest)
    {
        // p = exp((x - max) / T), not yet divided by their sum. Subtracting first keeps a tiny temperature finite.
        var inverse = (float)(1 / _options.Temperature);
        for (var i = 0; i < logits.Length; i++) logits[i] = MathF.Exp((logits[i] - greatest) * inverse);

        if (_options.TopK == 0 && _options.TopP == 1) return Draw(logits, null, logits.Length);

        var kept = SortDescending(logits);
        if (_options.TopK > 0) kept = Math.Min(kept, _options.TopK);
        if (_options.TopP < 1) kept = Nucleus(logits, kept);
        return Draw(logits, _order, kept);
    }

    /// <summary>Fills _order with the ids that have any probability, likeliest first, equal ones by id.</summary>
    private int SortDescending(ReadOnlySpan<float> p)
    {
        if (_order.Length < p.Length) (_order, _sortKeys) = (new int[p.Length], new float[p.Length]);
        var count = 0;
        for (var i = 0; i < p.Length; i++)
            if (p[i] > 0) (_sortKeys[count], _order[count++]) = (-p[i], i);
        _sortKeys.AsSpan(0, count).Sort(_order.AsSpan(0, count), static (a, b) => a.CompareTo(b));
        // Span.Sort is not stable: put runs of equal probability in the order of their ids.
        for (var start = 0; start < count;)
        {
            var end = start + 1;
            while (end < count && _sortKeys[end] == _sortKeys[start]) end++;
            if (end - start > 1) _order.AsSpan(start, end - start).Sort();
            start = end;
        }
        return count;
    }

    /// <summary>The fewest of the first <paramref name="count"/> tokens that hold the share TopP of their probability.</summary>
    private int Nucleus(ReadOnlySpan<float> p, int count)
    {
        double total = 0, sum = 0;
        for (var i = 0; i < count; i++) total += p[_order[i]];
        for (var i = 0; i < count; i++)
        {
            sum += p[_order[i]];
            if (sum >= _options.TopP * total) return i + 1;
        }
        return count;
    }

    private int Draw(ReadOnlySpan<float> p, int[]? order, int count)
    {
        double total = 0;
        for (var i = 0; i < count; i++) total += p[order is null ? i : order[i]];
        var left = NextDouble() * total;
        var last = 0;
        for (var i = 0; i < count; i++)
        {
            var id = order is null ? i : order[i];
            if (p[id] <= 0) continue;
            last = id;
            left -= p[id];
            if (left < 0) break;
        }
        return last;
    }

    // SplitMix64 (Steele, Lea and Flood 2014): small, and the same on every platform and runtime version.
    private const ulong Step = 0x9E3779B97F4A7C15;

    private double NextDouble() => (Mix(_random += Step) >> 11) * (1.0 / (1UL << 53));

    private static ulong Mix(ulong z)
    {
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
        return z ^ (z >> 31);
    }
}
