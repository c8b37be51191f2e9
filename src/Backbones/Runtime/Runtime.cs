using System.Runtime.CompilerServices;
using System.Runtime.ExceptionServices;

namespace MambaVL;

/// <summary>
/// TorchSharp's native libraries: found, made loadable on this machine, and explained where they are not. See
/// docs/native-runtime.md.
/// </summary>
/// <remarks>The first use of any type of this assembly loads them. An application that uses TorchSharp's own types before
/// that calls <see cref="EnsureLoaded"/> as its first line: TorchSharp's first failure stays for the whole process.</remarks>
public static class Runtime
{
    private static readonly Lazy<(NativeState? State, NativeRuntimeException? Error)> Outcome = new(() =>
    {
        try
        {
            return (NativeBootstrap.Run(), null);
        }
        catch (NativeRuntimeException e)
        {
            return (null, e);
        }
    });

    // A failure is kept for EnsureLoaded: thrown from here, it would be buried in a TypeInitializationException.
#pragma warning disable CA2255
    [ModuleInitializer]
#pragma warning restore CA2255
    internal static void Initialize() => _ = Outcome.Value;

    /// <summary>Makes sure that TorchSharp works in this process. The work is done once; later calls cost nothing. On Linux it
    /// loads libtorch (of the native package, of <c>MAMBAVL_LIBTORCH_DIR</c>, or of the system's library path) and
    /// libLibTorchSharp.so, from a patched copy in a cache folder where the system's C++ library is too old for it.</summary>
    /// <exception cref="NativeRuntimeException">Something is missing or does not fit; each call throws it.</exception>
    public static void EnsureLoaded()
    {
        if (Outcome.Value.Error is { } error) ExceptionDispatchInfo.Throw(error);
    }

    /// <summary>Makes sure that one CUDA device works: libtorch has CUDA, a driver is there, the device exists, is not too old
    /// for this libtorch, and runs a kernel.</summary>
    /// <param name="device">Index of the device, as PyTorch counts them (after <c>CUDA_VISIBLE_DEVICES</c>).</param>
    /// <exception cref="ArgumentOutOfRangeException">The index is negative.</exception>
    /// <exception cref="NativeRuntimeException">One of these is not so; the message says which, and what to do.</exception>
    public static void EnsureCuda(int device = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(device);
        EnsureLoaded();
        CudaCheck.Ensure(Outcome.Value.State!, device);
    }

    /// <summary>Where the libtorch in use and NVIDIA's libraries beside it lie; empty where that is not known.</summary>
    internal static IReadOnlyList<string> LibtorchFolders => Outcome.Value.State?.Libtorch?.SearchFolders ?? [];

    /// <summary>What this process runs on: system, libraries and where each came from, patches, devices, settings. Never throws
    /// for a machine that lacks something: the report says so.</summary>
    public static RuntimeReport Describe() => RuntimeReport.Make(Outcome.Value.State, Outcome.Value.Error);
}
