using MambaVL.Scan;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Scan;

/// <summary>What the kernels of selective_scan*.cu rely on, for every d_state. Needs no GPU.</summary>
public class CudaScanPlanTests
{
    private static readonly int[] States = [.. Enumerable.Range(1, ScanArguments.MaxState)];

    [Theory]
    [InlineData(1, true)]
    [InlineData(1, false)]
    [InlineData(20_000, false)]
    [InlineData(5120, true)]
    [InlineData(5120, false)]
    [InlineData(1_000_000, true)]
    [InlineData(1_000_000, false)]
    public void ForwardPlansFit(long channels, bool wide)
    {
        foreach (var n in States)
        {
            var plan = CudaScan.ForwardPlan.For(n, 1, channels, 132, CudaScan.ForwardPlan.MaxSharedBytes, wide);
            (plan.Lanes * plan.States).Should().BeGreaterThanOrEqualTo(n, "every state has a place");
            Lanes(plan.Lanes, plan.States, plan.Steps, n);
            plan.SharedBytes.Should().BeLessThanOrEqualTo(CudaScan.ForwardPlan.MaxSharedBytes, $"n {n}: no GPU has less");
            if (plan.Packed) (plan.States % 2).Should().Be(0, $"n {n}: 16-bit numbers are read in pairs");
            if (plan.Packed) wide.Should().BeFalse();
            (32 % plan.Lanes).Should().Be(0);
        }
    }

    // Blocks of so many threads that one a multiprocessor holds all channels: on an H100, and where shared memory or multiprocessors are fewer.
    [Theory]
    [InlineData(1, 5120, 132, 227, 320)]
    [InlineData(1, 3072, 132, 227, 192)]
    [InlineData(1, 4096, 132, 227, 256)]
    [InlineData(2, 3072, 132, 227, 384)]
    [InlineData(1, 2048, 132, 227, 128)] // 128 threads are enough
    [InlineData(1, 6, 132, 227, 128)]
    [InlineData(2, 5120, 132, 227, 128)] // too many channels for one block each
    [InlineData(133, 1, 132, 227, 128)]  // too many rows
    [InlineData(1, 5120, 132, 99, 128)]
    [InlineData(1, 3072, 132, 99, 192)]
    [InlineData(1, 3072, 40, 99, 128)]
    public void FewChannelsGetOneBlockAMultiprocessor(long batch, long channels, int multiprocessors, int kilobytes, int threads)
    {
        var plan = CudaScan.ForwardPlan.For(16, batch, channels, multiprocessors, kilobytes << 10, false);
        plan.Threads.Should().Be(threads);
        plan.SharedBytes.Should().BeLessThanOrEqualTo(kilobytes << 10);
        if (threads > 128) plan.Tiles(batch, channels).Should().BeLessThanOrEqualTo(multiprocessors);
        (threads % 32).Should().Be(0);
        // What a thread adds up, and the order it does it in, is the same for any number of threads: so are the bits.
        (plan with { Threads = 128, Blocks = 4 }).Should().Be(CudaScan.ForwardPlan.For(16, 1, 16, 132, 227 << 10, false));
    }

    // 16 states; the faster on an H100 at 640 steps (docs/selective-scan.md).
    [Theory]
    [InlineData(6, 3072, 4)]
    [InlineData(4, 5120, 4)]
    [InlineData(7, 3072, 2)] // blocks of two lanes have room all at once, those of four have not
    [InlineData(8, 3072, 2)]
    [InlineData(9, 3072, 4)] // neither have
    [InlineData(8, 5120, 2)]
    [InlineData(16, 4096, 2)]
    public void ManyChannelsGetFewLanes(long batch, long channels, int lanes) =>
        CudaScan.ForwardPlan.For(16, batch, channels, 132, 227 << 10, false).Lanes.Should().Be(lanes);

    [Fact]
    public void WiderBlocksFitForEveryStateSize()
    {
        foreach (var n in States)
            for (var channels = 16; channels < 80 * 132; channels += 48)
            {
                var plan = CudaScan.ForwardPlan.For(n, 1, channels, 132, 227 << 10, false);
                plan.SharedBytes.Should().BeLessThanOrEqualTo(227 << 10, $"n {n}, {channels} channels");
                plan.Threads.Should().BeInRange(128, 384);
                Lanes(plan.Lanes, plan.States, plan.Steps, n);
            }
    }

    // 64 KB: compute capability 7.5. 227 KB: 9.0.
    [Theory]
    [InlineData(64 * 1024)]
    [InlineData(99 * 1024)]
    [InlineData(227 * 1024)]
    public void BackwardPlansFit(int sharedBytes)
    {
        foreach (var n in States)
        {
            var plan = CudaScan.BackwardPlan.For(n, sharedBytes);
            (plan.Lanes * plan.States).Should().BeGreaterThanOrEqualTo(n);
            Lanes(plan.Lanes, plan.States, plan.Steps, n);
            plan.SharedBytes.Should().BeLessThanOrEqualTo(sharedBytes, $"n {n}");
            (plan.Steps % CudaScan.BackwardPlan.Segment).Should().Be(0, $"n {n}: segments fill a tile");
            (plan.Threads % 32).Should().Be(0);
        }
    }

    // One tile is 8 steps or more, a chunk is whole tiles, and the steps of a lane lie in one block of 8 or are whole blocks.
    private static void Lanes(int lanes, int states, int steps, int n)
    {
        (CudaScan.Chunk % steps + steps % 8).Should().Be(0, $"n {n}");
        (16 % Math.Max(1, steps / lanes)).Should().Be(0, $"n {n}");
        lanes.Should().BeInRange(1, 32);
        System.Numerics.BitOperations.IsPow2(states).Should().BeTrue($"n {n}: states are read 1, 2 or 4 at a time");
    }

    [Theory]
    [InlineData(5120, 8192, 1)] // fills an H100 by its channels
    [InlineData(3072, 640, 1)]  // too short
    [InlineData(1536, 8192, 2)]
    [InlineData(768, 8192, 5)]
    [InlineData(1, 100_000, 32)]
    public void FewChannelsAndManyStepsAreCutIntoPieces(long channels, long length, int pieces) =>
        CudaScan.ForwardPlan.For(16, 1, channels, 132, 227 << 10, false).Pieces(channels, length, 132).Should().Be(pieces);

    [Theory]
    [InlineData(1, 3072, 640, 4)]
    [InlineData(1, 5120, 640, 4)]
    [InlineData(1, 5120, 8192, 4)]
    [InlineData(1, 320, 8192, 32)]
    [InlineData(1, 320, 100, 2)]  // no more pieces than chunks
    [InlineData(1, 320, 0, 1)]
    [InlineData(4, 5120, 2048, 1)] // fills an H100 by its channels
    public void TheWayBackIsCutIntoPieces(long batch, long channels, long length, int pieces) =>
        CudaScan.BackwardPlan.For(16, 227 * 1024).Pieces(batch, channels, length, 132).Should().Be(pieces);

    [Fact]
    public void OutputsAreLaidOutAsInputsWithoutGaps()
    {
        using var scope = NewDisposeScope();
        CudaScan.DenseStrides(zeros(2, 3, 5)).Should().Equal(15, 5, 1);
        CudaScan.DenseStrides(zeros(2, 5, 3).transpose(1, 2)).Should().Equal(15, 1, 3);
        CudaScan.DenseStrides(zeros(3, 2, 5).transpose(0, 1)).Should().Equal(5, 10, 1);
        CudaScan.DenseStrides(zeros(7, 2, 8).narrow(0, 2, 3).narrow(2, 0, 5).transpose(0, 1)).Should().Equal(5, 10, 1);
        CudaScan.DenseStrides(zeros(3, 5).unsqueeze(0).expand(2, -1, -1)).Should().Equal(15, 5, 1);
        CudaScan.DenseStrides(zeros(1, 3, 1)).Should().Equal(3, 1, 1);
    }
}
