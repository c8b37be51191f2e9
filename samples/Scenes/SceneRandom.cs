namespace MambaVL.Samples.Scenes;

/// <summary>Random numbers that depend on nothing but their key: SplitMix64 (Steele et al. 2014). A scene has a generator of its
/// own, so it is the same whatever the threads, the order and the .NET version.</summary>
internal sealed class SceneRandom(ulong state)
{
    private const ulong Golden = 0x9E3779B97F4A7C15;

    private ulong _state = state;

    /// <summary>The generator of one scene.</summary>
    public static SceneRandom For(long seed, string split, int index)
        => new(Mix(Mix((ulong)seed * Golden ^ Hash(split)) + (ulong)index * Golden));

    /// <summary>FNV-1a of the UTF-16 units: for what must be alike on every machine.</summary>
    public static ulong Hash(string text)
    {
        var hash = 0xCBF29CE484222325;
        foreach (var c in text) hash = (hash ^ c) * 0x100000001B3;
        return Mix(hash); // the low bits of FNV alone are poor
    }

    public ulong Next() => Mix(_state += Golden);

    /// <summary>0 to less than <paramref name="count"/>.</summary>
    public int Below(int count) => (int)(((Next() >> 32) * (ulong)count) >> 32);

    /// <summary>Both ends included.</summary>
    public int Between(int least, int most) => least + Below(most - least + 1);

    public double Between(double least, double most) => least + (most - least) * Unit();

    /// <summary>0 to less than 1.</summary>
    public double Unit() => (Next() >> 11) * (1.0 / (1UL << 53));

    public bool Chance(double share) => Unit() < share;

    public T Pick<T>(IReadOnlyList<T> items) => items[Below(items.Count)];

    /// <summary>One of several things, as often as its weight says.</summary>
    public T Pick<T>(params ReadOnlySpan<(T Item, int Weight)> items)
    {
        var total = 0;
        foreach (var (_, weight) in items) total += weight;
        var at = Below(total);
        foreach (var (item, weight) in items)
            if ((at -= weight) < 0) return item;
        throw new InvalidOperationException("The weights add up to nothing.");
    }

    /// <summary>The items in another order.</summary>
    public List<T> Shuffled<T>(IEnumerable<T> items)
    {
        List<T> list = [.. items];
        for (var i = list.Count - 1; i > 0; i--)
        {
            var j = Below(i + 1);
            (list[i], list[j]) = (list[j], list[i]);
        }
        return list;
    }

    private static ulong Mix(ulong x)
    {
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
        return x ^ (x >> 31);
    }
}
