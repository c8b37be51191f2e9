namespace MambaVL.Cuda;

/// <summary>The launches of one stream, in order, and how many of them are known to have ended: after every few, the stream is
/// asked to write down how far it has come. When the GPU is lost, that number is still there, and the kernel that failed is one of
/// the few launches after it.</summary>
/// <remarks>For a launch that is a lock and a store; for one in <see cref="MarkEvery"/> a call of the driver besides, 0.8 us of the host, and
/// 3.4 us of the GPU, which lets one kernel end before the next begins (an H100): 0.2 us a launch. After each it would name the one kernel,
/// and cost a training step of mamba-790m 2 ms.</remarks>
/// <param name="mark">Given a number, has the stream write it once all launches so far have ended; gives the number that it
/// wrote last, or null where it cannot write any.</param>
internal sealed class LaunchLog(Func<uint?, uint?> mark)
{
    /// <summary>Launches between two marks.</summary>
    public const int MarkEvery = 16;

    // A GPU takes about a thousand launches ahead; the host waits then.
    private const int Kept = 4096;

    private readonly string[] _names = new string[Kept];
    private readonly Lock _lock = new();
    private uint _count;
    private bool _isMarked = true;

    /// <summary>Remembers a launch, after it.</summary>
    public void Add(string name)
    {
        lock (_lock)
        {
            _names[_count++ % Kept] = name;
            if (_count % MarkEvery == 0 && _isMarked) _isMarked = mark(_count) is not null;
        }
    }

    /// <summary>The launches of which one may have failed, the oldest first: those between the last mark that was reached and the
    /// first that was not. Where there are no marks, the last few, and any before them.</summary>
    public (IReadOnlyList<string> Names, bool AreAll) Suspects()
    {
        lock (_lock)
        {
            var reached = _isMarked ? mark(null) : null;
            var first = reached ?? _count - Math.Min(_count, MarkEvery);
            var count = (int)Math.Min(_count - first, MarkEvery);
            return ([.. Enumerable.Range(0, count).Select(i => _names[(first + (uint)i) % Kept])], reached is not null || first == 0);
        }
    }
}
