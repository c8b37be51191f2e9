using System.Reflection;
using System.Runtime.InteropServices;

namespace MambaVL.Cuda;

/// <summary>The functions of NVIDIA's driver that kernels need, by their names in cuda.h. A status of 0 is success.</summary>
/// <remarks>Looked up by hand rather than by DllImport: a machine without a driver is an ordinary one here.</remarks>
internal sealed unsafe class DriverApi
{
#pragma warning disable CS0649 // assigned by name in the constructor
    public readonly delegate* unmanaged<uint, int> cuInit;
    public readonly delegate* unmanaged<int*, int> cuDriverGetVersion;
    public readonly delegate* unmanaged<int*, int, int> cuDeviceGet;
    public readonly delegate* unmanaged<int*, int, int, int> cuDeviceGetAttribute;
    public readonly delegate* unmanaged<nint*, int, int> cuDevicePrimaryCtxRetain;
    public readonly delegate* unmanaged<nint*, int> cuCtxGetCurrent;
    public readonly delegate* unmanaged<nint, int> cuCtxPushCurrent_v2;
    public readonly delegate* unmanaged<nint*, int> cuCtxPopCurrent_v2;
    public readonly delegate* unmanaged<nint*, void*, int> cuModuleLoadData;
    public readonly delegate* unmanaged<nint*, nint, byte*, int> cuModuleGetFunction;
    public readonly delegate* unmanaged<ulong*, nuint*, nint, byte*, int> cuModuleGetGlobal_v2;
    public readonly delegate* unmanaged<nint, int, int, int> cuFuncSetAttribute;
    public readonly delegate* unmanaged<int*, int, nint, int> cuFuncGetAttribute;
    public readonly delegate* unmanaged<int*, nint, int, nuint, int> cuOccupancyMaxActiveBlocksPerMultiprocessor;
    public readonly delegate* unmanaged<LaunchConfig*, nint, void**, void**, int> cuLaunchKernelEx;
    public readonly delegate* unmanaged<nint*, uint, int> cuStreamCreate;
    public readonly delegate* unmanaged<nint, int> cuStreamDestroy_v2;
    public readonly delegate* unmanaged<nint, int> cuStreamSynchronize;
    public readonly delegate* unmanaged<nint, ulong, uint, uint, int> cuStreamWriteValue32_v2;
    public readonly delegate* unmanaged<nint, int, int> cuStreamBeginCapture_v2;
    public readonly delegate* unmanaged<nint, nint*, int> cuStreamEndCapture;
    public readonly delegate* unmanaged<nint*, nint, ulong, int> cuGraphInstantiateWithFlags;
    public readonly delegate* unmanaged<nint, nint, int> cuGraphLaunch;
    public readonly delegate* unmanaged<nint, int> cuGraphDestroy;
    public readonly delegate* unmanaged<nint, int> cuGraphExecDestroy;
    public readonly delegate* unmanaged<nint*, uint, int> cuEventCreate;
    public readonly delegate* unmanaged<nint, nint, int> cuEventRecord;
    public readonly delegate* unmanaged<nint, int> cuEventSynchronize;
    public readonly delegate* unmanaged<float*, nint, nint, int> cuEventElapsedTime;
    public readonly delegate* unmanaged<nint, int> cuEventDestroy_v2;
    public readonly delegate* unmanaged<int, byte**, int> cuGetErrorName;
    public readonly delegate* unmanaged<int, byte**, int> cuGetErrorString;
    public readonly delegate* unmanaged<nuint*, nuint*, int> cuMemGetInfo_v2;
    public readonly delegate* unmanaged<void**, nuint, uint, int> cuMemHostAlloc;
    public readonly delegate* unmanaged<void*, int> cuMemFreeHost;
    public readonly delegate* unmanaged<ulong, void*, nuint, nint, int> cuMemcpyHtoDAsync_v2;
    public readonly delegate* unmanaged<void*, ulong, nuint, int> cuMemcpyDtoH_v2;
#pragma warning restore CS0649

    private DriverApi(nint library)
    {
        foreach (var field in typeof(DriverApi).GetFields(BindingFlags.Instance | BindingFlags.Public | BindingFlags.NonPublic))
        {
            if (!NativeLibrary.TryGetExport(library, field.Name, out var function))
                throw new NotSupportedException($"{CudaDriver.LibraryName} has no {field.Name}: the driver is older than CUDA 11.8, which the kernels need; update it");
            field.SetValue(this, function);
        }
        var status = cuInit(0);
        if (status != 0) throw new NotSupportedException($"NVIDIA's driver does not start: cuInit gave {Meaning(status)}");
    }

    /// <summary>The driver; null where there is none, and <see cref="Problem"/> says why.</summary>
    public static DriverApi? Instance { get; } = Load();

    /// <summary>Why there is no driver to use; null where there is one.</summary>
    public static string? Problem { get; private set; }

    /// <summary>The name of a status and what it means, such as <c>CUDA_ERROR_INVALID_VALUE (1): invalid argument</c>.</summary>
    public string Meaning(int status)
    {
        byte* name = null, text = null;
        cuGetErrorName(status, &name);
        cuGetErrorString(status, &text);
        return $"{Marshal.PtrToStringUTF8((nint)name) ?? "error"} ({status}): {Marshal.PtrToStringUTF8((nint)text) ?? "unknown"}";
    }

    private static DriverApi? Load()
    {
        if (!NativeLibrary.TryLoad(CudaDriver.LibraryName, out var library))
        {
            Problem = $"NVIDIA's driver ({CudaDriver.LibraryName}) is not on the system's library path";
            return null;
        }
        try
        {
            return new(library);
        }
        catch (Exception e) when (e is NotSupportedException)
        {
            Problem = e.Message;
            return null;
        }
    }
}

/// <summary>CUlaunchConfig of cuda.h.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct LaunchConfig
{
    public uint GridX, GridY, GridZ, BlockX, BlockY, BlockZ, SharedBytes;
    public nint Stream;
    public LaunchAttribute* Attributes;
    public uint AttributeCount;
}

/// <summary>CUlaunchAttribute of cuda.h: an id, padding, and a value of 64 bytes of which an int is used here.</summary>
[StructLayout(LayoutKind.Explicit, Size = 72)]
internal struct LaunchAttribute
{
    /// <summary>The kernel may start before the one ahead of it in the stream has ended; it waits by griddepcontrol.wait
    /// (compute capability 9.0 and up).</summary>
    public const int ProgrammaticStreamSerialization = 6;

    [FieldOffset(0)] public int Id;
    [FieldOffset(8)] public int Value;
}
