using MambaVL.Cuda;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Cuda;

/// <summary>A kernel that reads where nothing is: for a process of its own, which can use the GPU no more afterwards.</summary>
internal static class KernelFault
{
    public const string Waiting = "waiting", NextLaunch = "next-launch", Libtorch = "libtorch";

    /// <param name="when">What notices the fault: waiting for the stream, the next launch, or libtorch, amid other launches.</param>
    public static void Provoke(string when)
    {
        Runtime.EnsureCuda();
        var gpu = CudaGpu.Get(0);
        var stream = CudaStream.Current(0);
        var kernel = gpu.Kernel("probe.cu", "probe", "TYPE=float");
        using var logits = ones(64, 1024, device: CUDA);
        using var targets = zeros(64, ScalarType.Int64, CUDA);
        if (when == Libtorch) Others(100);
        kernel.Run(stream, new Launch(1, 32), new ProbeArguments { X = 64, Y = 64, Count = 32 });
        if (when == Waiting) CudaFaults.Synchronize(gpu, stream);
        else if (when == Libtorch)
        {
            try
            {
                using var sum = logits.sum();
                sum.item<float>();
            }
            catch (Exception e) when (CudaFaults.Behind(e) is { } fault)
            {
                throw fault;
            }
        }
        else
        {
            for (var i = 0; i < 100; i++)
            {
                Thread.Sleep(20);
                kernel.Run(stream, new Launch(1, 32), default(ProbeArguments));
            }
        }
        Console.WriteLine("Nothing was noticed.");

        void Others(int count)
        {
            for (var i = 0; i < count; i++)
            {
                var (loss, lse) = CrossEntropyKernel.Forward(gpu, logits, targets, null);
                loss.Dispose();
                lse.Dispose();
            }
            // Other launches are over when the faulty one comes, but for those since the last mark.
            CudaFaults.Synchronize(gpu, stream);
        }
    }
}

/// <summary>The arguments of probe.cu.</summary>
internal struct ProbeArguments
{
    public nint X, Y;
    public long Count;
}
