using MambaVL.Cuda;

namespace MambaVL.Tests.Cuda;

/// <summary>A kernel that reads where nothing is: for a process of its own, which can use the GPU no more afterwards.</summary>
internal static class KernelFault
{
    public const string Waiting = "waiting", NextLaunch = "next-launch";

    /// <param name="when">What notices the fault: waiting for the stream, or the next launch.</param>
    public static void Provoke(string when)
    {
        Runtime.EnsureCuda();
        var gpu = CudaGpu.Get(0);
        var stream = CudaStream.Current(0);
        var kernel = gpu.Kernel("probe.cu", "probe", "TYPE=float");
        kernel.Run(stream, new Launch(1, 32), new ProbeArguments { X = 64, Y = 64, Count = 32 });
        if (when == Waiting) CudaFaults.Synchronize(gpu, stream);
        else
        {
            for (var i = 0; i < 100; i++)
            {
                Thread.Sleep(20);
                kernel.Run(stream, new Launch(1, 32), default(ProbeArguments));
            }
        }
        Console.WriteLine("Nothing was noticed.");
    }
}

/// <summary>The arguments of probe.cu.</summary>
internal struct ProbeArguments
{
    public nint X, Y;
    public long Count;
}
