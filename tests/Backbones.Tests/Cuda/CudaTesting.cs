using MambaVL.Cuda;

namespace MambaVL.Tests.Cuda;

/// <summary>What the tests of kernels share.</summary>
internal static class CudaTesting
{
    /// <summary>The first GPU; skips the test, and says why, where kernels cannot run on it.</summary>
    public static CudaGpu Gpu()
    {
        var gpu = CudaGpu.TryGet(0, out var problem);
        Skip.If(gpu is null, $"No GPU for kernels: {problem}.");
        return gpu!;
    }
}
