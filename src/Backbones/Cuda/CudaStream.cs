using System.Runtime.InteropServices;

namespace MambaVL.Cuda;

/// <summary>The stream that libtorch puts its own work into on the calling thread.</summary>
/// <remarks>TorchSharp has no streams, so it is the default stream unless native code in the process changed it. libtorch
/// itself is asked (c10::cuda::getCurrentCUDAStream) where its symbols are known, which is on Linux.</remarks>
internal static unsafe class CudaStream
{
    // c10::cuda::CUDAStream: device type and index in the first 8 bytes, the stream's id in the second.
    [StructLayout(LayoutKind.Sequential)]
    private struct Stream
    {
        public long Device, Id;
    }

    private static readonly (nint Current, nint Handle) Functions = Find();

    /// <summary>libtorch's current stream on a GPU; 0 is the default stream.</summary>
    public static nint Current(int index)
    {
        if (Functions.Current == 0) return 0;
        var stream = ((delegate* unmanaged<sbyte, Stream>)Functions.Current)((sbyte)index);
        return ((delegate* unmanaged<Stream*, nint>)Functions.Handle)(&stream);
    }

    private static (nint, nint) Find()
    {
        if (!OperatingSystem.IsLinux() || !NativeLibrary.TryLoad("libc10_cuda.so", out var library)) return default;
        return NativeLibrary.TryGetExport(library, "_ZN3c104cuda20getCurrentCUDAStreamEa", out var current)
            && NativeLibrary.TryGetExport(library, "_ZNK3c104cuda10CUDAStream6streamEv", out var handle) ? (current, handle) : default;
    }
}
