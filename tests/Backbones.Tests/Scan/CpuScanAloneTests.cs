using System.Diagnostics;
using MambaVL.Scan;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Scan;

[Collection(Alone.Name)]
public class CpuScanAloneTests
{
    private static (Tensor output, Tensor lastState, Tensor?[] gradients) Everything(ScanArguments x, Tensor gradient) =>
        ScanTesting.Run(CpuScan.Run, x, gradient, null);

    private static void SameBits(
        (Tensor output, Tensor lastState, Tensor?[] gradients) a, (Tensor output, Tensor lastState, Tensor?[] gradients) b, string what)
    {
        ScanTesting.SameBits(a.output, b.output, $"{what}: output");
        ScanTesting.SameBits(a.lastState, b.lastState, $"{what}: lastState");
        for (var i = 0; i < a.gradients.Length; i++)
            ScanTesting.SameBits(a.gradients[i]!, b.gradients[i]!, $"{what}: gradient of {ScanTesting.Names[i]}");
    }

    [Fact]
    public void RunsAndThreadsGiveTheSameBits()
    {
        using var scope = NewDisposeScope();
        var x = ScanTesting.Arguments(2, 200, 100, 16);
        var gradient = randn(x.u.shape);
        var threads = get_num_threads();
        try
        {
            set_num_threads(1);
            var one = Everything(x, gradient);
            foreach (var count in new[] { 1, 2, 5 })
            {
                set_num_threads(count);
                for (var run = 0; run < 5; run++) SameBits(Everything(x, gradient), one, $"{count} threads, run {run}");
            }
        }
        finally
        {
            set_num_threads(threads);
        }
    }

    [Fact]
    public void SeveralThreadsMayScanAtOnce()
    {
        using var scope = NewDisposeScope();
        var inputs = Enumerable.Range(0, 4).Select(i => ScanTesting.Arguments(1, 150, 90, 16, seed: i)).ToArray();
        var gradient = randn(1, 150, 90);
        var expected = inputs.Select(x => Everything(x, gradient)).ToArray();
        var failures = new Exception?[4];
        var threads = inputs.Select((x, i) => new Thread(() =>
        {
            try
            {
                for (var run = 0; run < 10; run++)
                {
                    using var inner = NewDisposeScope();
                    SameBits(Everything(x, gradient), expected[i], $"thread {i}, run {run}");
                }
            }
            catch (Exception e)
            {
                failures[i] = e;
            }
        })).ToArray();
        foreach (var thread in threads) thread.Start();
        foreach (var thread in threads) thread.Join();
        failures.Should().AllSatisfy(f => f.Should().BeNull());
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void MemoryStaysFlat(bool inScope)
    {
        // The gradients of one pass are 0.9 MB: 80 passes that let go of none would grow by 70 MB.
        var x = ScanTesting.Arguments(1, 512, 128, 16).Leaves();
        void Pass()
        {
            using var scope = inScope ? NewDisposeScope() : null;
            var (output, state) = CpuScan.Run(x);
            var loss = output.sum();
            loss.backward();
            foreach (var t in x.Tensors) t!.grad!.zero_();
            foreach (var t in new[] { output, state, loss }) t.Dispose();
        }
        for (var i = 0; i < 20; i++) Pass();
        var before = Resident();
        for (var i = 0; i < 80; i++) Pass();
        var grown = Resident() - before;
        foreach (var t in x.Tensors) t!.Dispose();
        (grown < 35 << 20).Should().BeTrue($"80 passes may not grow the process by 35 MB, and grew it by {grown >> 20} MB");
    }

    // No collection first: what only the garbage collector frees is what this test is about.
    private static long Resident()
    {
        using var process = Process.GetCurrentProcess();
        return process.WorkingSet64;
    }
}
