using System.Diagnostics;
using MambaVL.Kernels;

namespace MambaVL.Tests.Kernels;

public unsafe class CpuTeamTests
{
    private readonly struct Count(int* counts, int failAt = -1) : IRegion
    {
        public void Execute(int chunk)
        {
            Interlocked.Increment(ref counts[chunk]);
            if (chunk == failAt) throw new InvalidOperationException($"chunk {chunk}");
        }
    }

    private readonly struct Nested(int* counts, int inner, nint team) : IRegion
    {
        public void Execute(int chunk)
        {
            var region = new Count(counts + chunk * inner);
            ((CpuTeam)System.Runtime.InteropServices.GCHandle.FromIntPtr(team).Target!).Run(ref region, inner);
        }
    }

    private readonly struct Wait(int* entered, int threads) : IRegion
    {
        // Ends only when as many threads are inside as the team has.
        public void Execute(int chunk)
        {
            Interlocked.Increment(ref *entered);
            var start = Stopwatch.GetTimestamp();
            while (Volatile.Read(ref *entered) < threads && Stopwatch.GetElapsedTime(start).TotalSeconds < 10) Thread.Yield();
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(8)]
    public void EveryChunkRunsOnce(int threads)
    {
        var team = new CpuTeam(threads);
        foreach (var chunks in new[] { 0, 1, 2, 3, 7, 64, 1000 })
            for (var repeat = 0; repeat < 20; repeat++)
            {
                var counts = new int[chunks + 1];
                fixed (int* p = counts)
                {
                    var region = new Count(p);
                    team.Run(ref region, chunks);
                }
                counts.Take(chunks).Count(n => n != 1).Should().Be(0);
                counts[chunks].Should().Be(0);
            }
    }

    [Fact]
    public void WorkersTakePart()
    {
        var entered = 0;
        var region = new Wait(&entered, 3);
        new CpuTeam(3).Run(ref region, 3);
        entered.Should().Be(3);
    }

    [Fact]
    public void ALimitOfOneKeepsTheWorkOnTheCaller()
    {
        var ids = new int[64];
        fixed (int* p = ids)
        {
            var region = new ThreadIds(p);
            new CpuTeam(4).Run(ref region, ids.Length, maxThreads: 1);
        }
        ids.Should().OnlyContain(id => id == Environment.CurrentManagedThreadId);
    }

    private readonly struct ThreadIds(int* ids) : IRegion
    {
        public void Execute(int chunk) => ids[chunk] = Environment.CurrentManagedThreadId;
    }

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void AnExceptionReachesTheCallerAndTheTeamGoesOn(int threads)
    {
        var team = new CpuTeam(threads);
        var counts = new int[100];
        fixed (int* p = counts)
        {
            var failing = new Count(p, failAt: 40);
            var run = () => team.Run(ref failing, 100);
            run.Should().Throw<InvalidOperationException>().WithMessage("chunk 40");
            Array.Clear(counts);
            var region = new Count(p);
            team.Run(ref region, 100);
        }
        counts.Should().OnlyContain(n => n == 1);
    }

    [Fact]
    public void ARegionInsideARegionRuns()
    {
        var team = new CpuTeam(3);
        var handle = System.Runtime.InteropServices.GCHandle.Alloc(team);
        var counts = new int[10 * 7];
        fixed (int* p = counts)
        {
            var region = new Nested(p, 7, System.Runtime.InteropServices.GCHandle.ToIntPtr(handle));
            team.Run(ref region, 10);
        }
        handle.Free();
        counts.Should().OnlyContain(n => n == 1);
    }

    [Fact]
    public void SeveralCallersAtOnceAllFinish()
    {
        var team = new CpuTeam(3);
        var wrong = 0;
        var callers = Enumerable.Range(0, 4).Select(_ => new Thread(() =>
        {
            var counts = stackalloc int[50];
            for (var repeat = 0; repeat < 2000; repeat++)
            {
                new Span<int>(counts, 50).Clear();
                var region = new Count(counts);
                team.Run(ref region, 50);
                for (var i = 0; i < 50; i++)
                    if (counts[i] != 1) Interlocked.Increment(ref wrong);
            }
        })).ToList();
        callers.ForEach(t => t.Start());
        callers.ForEach(t => t.Join());
        wrong.Should().Be(0);
    }

    [Fact]
    public void ARegionAllocatesNothing()
    {
        var team = new CpuTeam(2);
        var counts = stackalloc int[50];
        var region = new Count(counts);
        team.Run(ref region, 50);
        var before = GC.GetAllocatedBytesForCurrentThread();
        for (var i = 0; i < 100; i++) team.Run(ref region, 50);
        (GC.GetAllocatedBytesForCurrentThread() - before).Should().Be(0);
    }

    [Fact]
    public void AnIdleTeamSleeps()
    {
        var team = new CpuTeam(3);
        var counts = stackalloc int[50];
        var region = new Count(counts);
        team.Run(ref region, 50);
        SpinWait.SpinUntil(() => team.WorkersAsleep == 2, TimeSpan.FromSeconds(10)).Should().BeTrue();
    }

    [Fact]
    public void ATeamHasAtLeastOneThread()
        => new Action(() => _ = new CpuTeam(0)).Should().Throw<ArgumentOutOfRangeException>();
}
