using System.Runtime.InteropServices;
using MambaVL.Cuda;
using static TorchSharp.torch;

namespace MambaVL.Tests.Cuda;

/// <summary>What goes wrong on a GPU, provoked.</summary>
public class CudaFaultTests
{
    [SkippableTheory]
    [InlineData(KernelFault.Waiting)]
    [InlineData(KernelFault.NextLaunch)]
    public void AFaultNamesTheKernelsThatWereLaunched(string when)
    {
        CudaTesting.Gpu();
        var (code, output) = CudaTesting.Probe(["kernel-fault", when]);
        output.Should().Match("*A kernel failed on cuda:0*ILLEGAL_ADDRESS (700)*It was probe.cu:probe, or one of libtorch's at that place. The process can use this GPU no more*");
        code.Should().Be(Probe.ClearError);
    }

    [SkippableFact]
    public void AFaultThatLibtorchNoticesNamesTheKernelAmongTheLaunchesSinceTheLastMark()
    {
        CudaTesting.Gpu();
        var (code, output) = CudaTesting.Probe(["kernel-fault", KernelFault.Libtorch]);
        output.Should().Match("*A kernel failed on cuda:0, and it showed when libtorch called the GPU*ILLEGAL_ADDRESS (700)*It was *probe.cu:probe*");
        code.Should().Be(Probe.ClearError);
    }

    [SkippableTheory]
    [InlineData(KernelFault.Waiting)]
    [InlineData(KernelFault.NextLaunch)]
    [InlineData(KernelFault.Libtorch)]
    public void WhereEveryLaunchIsWaitedForTheFaultNamesTheOneKernel(string when)
    {
        CudaTesting.Gpu();
        var (code, output) = CudaTesting.Probe(["kernel-fault", when], (CudaFaults.Variable, "1"));
        output.Should().Match("*The kernel probe.cu:probe failed on cuda:0*ILLEGAL_ADDRESS (700)*The process can use this GPU no more; start it again.*");
        code.Should().Be(Probe.ClearError);
    }

    [SkippableFact]
    public void ARefusedLaunchNamesTheKernelAndWhatItAskedFor()
    {
        var gpu = CudaTesting.Gpu();
        var kernel = gpu.Kernel("probe.cu", "probe", "TYPE=float");
        FluentActions.Invoking(() => kernel.Run(CudaStream.Current(0), new Launch(3, 4096), default(ProbeArguments)))
            .Should().Throw<CudaException>().WithMessage("cuda:0 refused to launch probe.cu:probe with grid (3, 1, 1), block (4096, 1) (at most 1024 threads)*");
        Works(gpu, "a refusal harms nothing");
    }

    [SkippableFact]
    public void MoreSharedMemoryThanThereIsIsNamed()
    {
        var gpu = CudaTesting.Gpu();
        var kernel = gpu.Kernel("probe.cu", "probe", "TYPE=float");
        FluentActions.Invoking(() => kernel.Run(CudaStream.Current(0), new Launch(1, 32, sharedBytes: 1 << 20), default(ProbeArguments)))
            .Should().Throw<CudaException>().WithMessage($"probe.cu:probe asks for 1048576 bytes of shared memory; cuda:0 gives a block at most {gpu.SharedBytes}*");
        Works(gpu, "a refusal harms nothing");
    }

    [SkippableFact]
    public void AKernelThatIsNotInTheSourceIsNamed()
    {
        var gpu = CudaTesting.Gpu();
        FluentActions.Invoking(() => gpu.Kernel("probe.cu", "prob", "TYPE=float")).Should().Throw<CudaException>().WithMessage("probe.cu has no kernel 'prob'*");
    }

    [SkippableFact]
    public void AMacroThatDoesNotCompileGivesTheLogAndTheLine()
    {
        var gpu = CudaTesting.Gpu();
        FluentActions.Invoking(() => gpu.Kernel("probe.cu", "probe", "TYPE=half_of_it")).Should().Throw<CudaException>()
            .WithMessage("probe.cu does not compile with NVRTC*half_of_it*probe.cu:7: struct Arguments*");
    }

    [SkippableFact]
    public void OutOfMemorySaysWhatWasAskedForAndWhatWasFree()
    {
        var gpu = CudaTesting.Gpu();
        var (_, total) = gpu.Memory();
        FluentActions.Invoking(() => empty(4 * total, dtype: ScalarType.Byte, device: CUDA)).Should().Throw<ExternalException>()
            .WithMessage("*out of memory*Tried to allocate*free*");
        Works(gpu, "an allocation that failed harms nothing");
    }

    private static void Works(CudaGpu gpu, string because)
    {
        using var x = ones(5, device: CUDA);
        using var y = full(5, float.NaN, device: CUDA);
        gpu.Kernel("probe.cu", "probe", "TYPE=float").Run(CudaStream.Current(0), new Launch(1, 32), new ProbeArguments { X = CudaTensor.Pointer(x), Y = CudaTensor.Pointer(y), Count = 5 });
        y.cpu().data<float>().ToArray().Should().Equal([2, 2, 2, 2, 2], because);
    }
}
