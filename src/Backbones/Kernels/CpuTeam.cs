using System.Diagnostics;
using System.Globalization;
using System.Runtime.CompilerServices;
using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;

namespace MambaVL.Kernels;

/// <summary>Work in numbered pieces that may run in any order and on any thread.</summary>
internal interface IRegion
{
    /// <summary>Does piece <paramref name="chunk"/>. What it computes must not depend on which thread runs it.</summary>
    void Execute(int chunk);
}

/// <summary>Threads that wait for regions of a few microseconds to a few milliseconds.</summary>
/// <remarks>
/// <para>A region's chunks are dealt out evenly beforehand, so that each thread reads one contiguous range of a matrix; a thread
/// that is through takes chunks from the far end of another's range. The caller takes part, and takes everything when no
/// worker comes: it never waits for one to be scheduled, only for chunks that have been begun.</para>
/// <para>One region runs at a time. A caller that finds the team at work, be it another application thread or a region inside
/// a region, runs its chunks alone.</para>
/// <para>A worker looks for the next region for <see cref="SpinMicroseconds"/>, then sleeps until it is woken.</para>
/// </remarks>
internal sealed unsafe class CpuTeam
{
    /// <summary>Names the greatest number of threads of <see cref="Shared"/>, the calling one included.</summary>
    public const string ThreadsVariable = "MAMBAVL_CPU_THREADS";

    // The serial part between two regions of a decode step takes 1 to 10 us; waking a sleeping thread takes about 50.
    private const int SpinMicroseconds = 60;

    // _gate: the region's number in the high half; below it, whether workers may enter, and how many are inside.
    private const long Open = 1L << 31;
    private const long Inside = Open - 1;
    private const int SlotStride = 16;     // longs between two slots: 128 bytes, so that no two share a cache line

    private static readonly long SpinTicks = Stopwatch.Frequency * SpinMicroseconds / 1_000_000;
    private static readonly Lazy<CpuTeam> SharedTeam = new(() => new CpuTeam(DefaultThreads()));

    private readonly long[] _slots;        // [thread]: its chunks that nobody has taken: first in the high half, end in the low
    private readonly Worker[] _workers;
    private int _busy;
    private long _gate;
    private int _participants;
    private delegate*<void*, int, void> _body;
    private void* _region;
    private Exception? _failure;

    /// <param name="threads">Threads at work in a region, the caller included; at least 1.</param>
    public CpuTeam(int threads)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(threads, 1);
        Threads = threads;
        _slots = new long[(threads + 1) * SlotStride];
        _workers = new Worker[threads - 1];
        for (var i = 0; i < _workers.Length; i++) _workers[i] = new Worker(this, i + 1);
    }

    /// <summary>The team of this process: one thread a processor, or <see cref="ThreadsVariable"/>.</summary>
    public static CpuTeam Shared => SharedTeam.Value;

    /// <summary>Threads at work in a region, the caller included.</summary>
    public int Threads { get; }

    /// <summary>Workers that use no processor until they are woken.</summary>
    public int WorkersAsleep => _workers.Count(w => w.IsAsleep);

    /// <summary>Runs every chunk from 0 to <paramref name="chunks"/> once, and returns when all are done.</summary>
    /// <param name="region">Lives on the caller's stack; threads see one copy.</param>
    /// <param name="chunks">How many pieces there are.</param>
    /// <param name="maxThreads">At most this many threads take part.</param>
    /// <exception cref="Exception">The first that a chunk threw; the other chunks are run all the same.</exception>
    public void Run<TRegion>(ref TRegion region, int chunks, int maxThreads = int.MaxValue) where TRegion : unmanaged, IRegion
    {
        var participants = Math.Min(Math.Min(Threads, maxThreads), chunks);
        if (participants <= 1 || Interlocked.CompareExchange(ref _busy, 1, 0) != 0)
        {
            for (var i = 0; i < chunks; i++) region.Execute(i);
            return;
        }
        Exception? failure;
        fixed (TRegion* pointer = &region)
        {
            _region = pointer;
            _body = &Invoke<TRegion>;
            _participants = participants;
            for (var i = 0; i < participants; i++)
                _slots[(i + 1) * SlotStride] =
                    ((long)chunks * i / participants << 32) | ((long)chunks * (i + 1) / participants);
            Interlocked.Exchange(ref _gate, (((_gate >> 32) + 1) << 32) | Open);
            for (var i = 0; i < participants - 1; i++) _workers[i].Wake();
            Work(0);
            Interlocked.And(ref _gate, ~Open);
            AwaitWorkers();
            failure = _failure;
            _failure = null;
            Volatile.Write(ref _busy, 0);
        }
        if (failure is not null) ExceptionDispatchInfo.Throw(failure);
    }

    private static int DefaultThreads()
    {
        var threads = Environment.ProcessorCount;
        var limit = Environment.GetEnvironmentVariable(ThreadsVariable);
        if (string.IsNullOrWhiteSpace(limit)) return threads;
        if (!int.TryParse(limit, NumberStyles.None, CultureInfo.InvariantCulture, out var n) || n < 1)
            throw new InvalidOperationException($"{ThreadsVariable} is '{limit}'; expected a whole number of at least 1.");
        return Math.Min(threads, n);
    }

    private static void Invoke<TRegion>(void* region, int chunk) where TRegion : unmanaged, IRegion
        => ((TRegion*)region)->Execute(chunk);

    private void Work(int self)
    {
        var participants = _participants;
        var body = _body;
        var region = _region;
        while (true)
        {
            try
            {
                while (TakeFirst(ref _slots[(self + 1) * SlotStride], out var chunk)) body(region, chunk);
                for (var i = 1; i < participants; i++)
                {
                    ref var other = ref _slots[((self + i) % participants + 1) * SlotStride];
                    while (TakeLast(ref other, out var chunk)) body(region, chunk);
                }
                return;
            }
            catch (Exception e)
            {
                Interlocked.CompareExchange(ref _failure, e, null); // and on with the chunks that are left
            }
        }
    }

    private static bool TakeFirst(ref long slot, out int chunk)
    {
        var range = Volatile.Read(ref slot);
        while (true)
        {
            chunk = (int)(range >> 32);
            if (chunk >= (int)range) return false;
            var seen = Interlocked.CompareExchange(ref slot, range + (1L << 32), range);
            if (seen == range) return true;
            range = seen;
        }
    }

    private static bool TakeLast(ref long slot, out int chunk)
    {
        var range = Volatile.Read(ref slot);
        while (true)
        {
            chunk = (int)range - 1;
            if ((int)(range >> 32) > chunk) return false;
            var seen = Interlocked.CompareExchange(ref slot, range - 1, range);
            if (seen == range) return true;
            range = seen;
        }
    }

    // Only chunks that have been begun are left. A worker in the middle of one may have lost its processor: after a few
    // microseconds the caller offers it this one.
    private void AwaitWorkers()
    {
        if ((Volatile.Read(ref _gate) & Inside) == 0) return;
        var start = Stopwatch.GetTimestamp();
        while ((Volatile.Read(ref _gate) & Inside) != 0)
        {
            if (Stopwatch.GetTimestamp() - start < SpinTicks) Thread.SpinWait(4);
            else Thread.Yield();
        }
    }

    private bool IsNew(long lastRegion)
    {
        var gate = Volatile.Read(ref _gate);
        return (gate & Open) != 0 && gate >> 32 != lastRegion;
    }

    private bool TryEnter(int self, ref long lastRegion)
    {
        var gate = Volatile.Read(ref _gate);
        while ((gate & Open) != 0 && gate >> 32 != lastRegion)
        {
            var seen = Interlocked.CompareExchange(ref _gate, gate + 1, gate);
            if (seen == gate)
            {
                lastRegion = gate >> 32;
                if (self < _participants) return true;
                Leave();
                return false;
            }
            gate = seen;
        }
        return false;
    }

    private void Leave() => Interlocked.Decrement(ref _gate);

    private sealed class Worker
    {
        private readonly SemaphoreSlim _signal = new(0);
        private readonly CpuTeam _team;
        private readonly int _self;
        private int _asleep;

        public Worker(CpuTeam team, int self)
        {
            (_team, _self) = (team, self);
            // A background thread: it never keeps the process alive.
            new Thread(Loop, 256 << 10) { IsBackground = true, Name = $"MambaVL CPU {self}" }.Start();
        }

        public bool IsAsleep => Volatile.Read(ref _asleep) != 0;

        public void Wake()
        {
            if (Volatile.Read(ref _asleep) != 0 && Interlocked.Exchange(ref _asleep, 0) != 0) _signal.Release();
        }

        private void Loop()
        {
            var lastRegion = 0L;
            var idleSince = Stopwatch.GetTimestamp();
            while (true)
            {
                if (_team.TryEnter(_self, ref lastRegion))
                {
                    _team.Work(_self);
                    _team.Leave();
                    idleSince = Stopwatch.GetTimestamp();
                }
                else if (Stopwatch.GetTimestamp() - idleSince < SpinTicks)
                {
                    Thread.SpinWait(2);
                }
                else
                {
                    Interlocked.Exchange(ref _asleep, 1);
                    // A region that opened before the flag was up brings no signal, so look once more; where the flag is down
                    // again the signal has been sent, and is taken.
                    if (!_team.IsNew(lastRegion) || Interlocked.Exchange(ref _asleep, 0) == 0) _signal.Wait();
                    idleSince = Stopwatch.GetTimestamp();
                }
            }
        }
    }
}
