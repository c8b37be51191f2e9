using MambaVL.Cuda;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Cuda;

/// <summary>Compiling, loading, launching, streams and graphs, on the smallest kernel.</summary>
public class CudaKernelTests
{
    [SkippableTheory]
    [InlineData(ScalarType.Float32, 1)]
    [InlineData(ScalarType.Float32, 100_003)]
    [InlineData(ScalarType.BFloat16, 1023)]
    [InlineData(ScalarType.Float16, 1025)]
    public void EveryElementIsDoubled(ScalarType type, int count)
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var x = randn(count, device: CUDA).to(type);
        var y = full(count + 1, float.NaN, dtype: type, device: CUDA);
        gpu.Kernel("probe.cu", "probe", $"TYPE={CudaTensor.TypeName(type)}").Run(CudaStream.Current(0), new Launch(7, 128), Arguments(x, y));
        (y[..count] == x * 2).all().item<bool>().Should().BeTrue();
        isnan(y[count]).item<bool>().Should().BeTrue("nothing is written behind the end");
    }

    [SkippableFact]
    public void ItRunsInOrderWithTensorOperations()
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var kernel = gpu.Kernel("probe.cu", "probe", "TYPE=float");
        var (x, y) = (ones(1 << 20, device: CUDA), zeros(1 << 20, device: CUDA));
        for (var i = 0; i < 50; i++)
        {
            kernel.Run(CudaStream.Current(0), new Launch(1024, 256), Arguments(x, y));
            x.copy_(y * 0.75);
        }
        (x == MathF.Pow(1.5f, 50)).all().item<bool>().Should().BeTrue();
    }

    [SkippableFact]
    public void AGraphRunsWhatWasRecorded()
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var kernel = gpu.Kernel("probe.cu", "probe", "TYPE=float");
        var (x, y, z) = (ones(999, device: CUDA), zeros(999, device: CUDA), zeros(999, device: CUDA));
        var (first, second) = (Arguments(x, y), Arguments(y, z));
        using var graph = CudaGraph.Record(gpu, "twice", stream =>
        {
            kernel.Run(stream, new Launch(4, 256), first);
            kernel.Run(stream, new Launch(4, 256, overlap: false), second);
        });
        (z == 0).all().item<bool>().Should().BeTrue("recording runs nothing");
        graph.Run(CudaStream.Current(0));
        (z == 4).all().item<bool>().Should().BeTrue();
        x.fill_(3);
        graph.Run(CudaStream.Current(0));
        (z == 12).all().item<bool>().Should().BeTrue();
    }

    [SkippableFact]
    public void WhatTheDriverSaysOfAKernelIsPlausible()
    {
        var gpu = CudaTesting.Gpu();
        var kernel = gpu.Kernel("probe.cu", "probe", "TYPE=float");
        kernel.Registers.Should().BeInRange(4, 64);
        kernel.SpilledBytes.Should().Be(0);
        kernel.MaxThreads.Should().Be(1024);
        kernel.BlocksPerMultiprocessor(256).Should().BeInRange(1, 32);
        gpu.Multiprocessors.Should().BePositive();
        var (free, total) = gpu.Memory();
        free.Should().BeInRange(1, total);
    }

    [SkippableFact]
    public void ThreadsMayLaunchAtOnce()
    {
        var gpu = CudaTesting.Gpu();
        var sums = new float[8];
        Parallel.For(0, sums.Length, i =>
        {
            using var scope = NewDisposeScope();
            var (x, y) = (full(1000, (float)i, device: CUDA), zeros(1000, device: CUDA));
            for (var k = 0; k < 20; k++)
                gpu.Kernel("probe.cu", "probe", "TYPE=float").Run(CudaStream.Current(0), new Launch(1, 1024), Arguments(x, y));
            sums[i] = y.sum().item<float>();
        });
        sums.Should().Equal(Enumerable.Range(0, 8).Select(i => i * 2000f));
    }

    private static ProbeArguments Arguments(Tensor x, Tensor y) => new() { X = CudaTensor.Pointer(x), Y = CudaTensor.Pointer(y), Count = x.numel() };
}
