using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Checkpoints;

/// <summary>Tensors on memory that is not libtorch's: the one thing needed here that TorchSharp's managed API lacks.</summary>
internal static unsafe class NativeTensor
{
    // THSTensor_new of THSTensorFactories.cpp: data, deleter, sizes, their number, element type of the data and of the
    // tensor, device type and index, requires_grad.
    private static readonly delegate* unmanaged[Cdecl]<void*, delegate* unmanaged[Cdecl]<void*, void>, long*, int, sbyte, sbyte, int, int, byte, nint> New = Find();

    /// <summary>A contiguous CPU tensor on the memory; the caller owns it.</summary>
    /// <param name="data">The first element, aligned.</param>
    /// <param name="shape">The length of each dimension; at least one element in all.</param>
    /// <param name="type">The element type.</param>
    /// <param name="deleter">Called with <paramref name="data"/>, on any thread, when the last tensor on it is gone; null
    /// where the memory outlives the tensor anyway.</param>
    public static Tensor Over(void* data, ReadOnlySpan<long> shape, ScalarType type, delegate* unmanaged[Cdecl]<void*, void> deleter = null)
    {
        fixed (long* sizes = shape)
        {
            var handle = New(data, deleter, sizes, shape.Length, (sbyte)type, (sbyte)type, (int)DeviceType.CPU, -1, 0);
            if (handle == 0) CheckForErrors();
            return Tensor.UnsafeCreateTensor(handle);
        }
    }

    private static delegate* unmanaged[Cdecl]<void*, delegate* unmanaged[Cdecl]<void*, void>, long*, int, sbyte, sbyte, int, int, byte, nint> Find()
    {
        return (delegate* unmanaged[Cdecl]<void*, delegate* unmanaged[Cdecl]<void*, void>, long*, int, sbyte, sbyte, int, int, byte, nint>)
            Export("THSTensor_new");
    }

    /// <summary>A function of TorchSharp's native library.</summary>
    public static nint Export(string name)
    {
        Runtime.EnsureLoaded();
        InitializeDeviceType(DeviceType.CPU);
        // Asked on behalf of TorchSharp's own assembly, so that it is the very library that TorchSharp uses.
        return NativeLibrary.GetExport(NativeLibrary.Load("LibTorchSharp", typeof(torch).Assembly, null), name);
    }
}
