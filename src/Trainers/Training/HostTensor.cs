using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Training;

/// <summary>Tensors in the computer's memory that a thread fills for a GPU.</summary>
/// <remarks>
/// A GPU copies out of page-locked memory without anybody waiting for it. libtorch keeps such memory and hands it out again once
/// the copies from it are done, so that no step allocates any. What libtorch would do on the CPU with an array of this size
/// (tensor(), pin_memory()) it does with all cores, whose threads then spin for milliseconds in wait of more, beside the one
/// thread that launches kernels: so plain copies of one thread fill these.
/// </remarks>
internal static class HostTensor
{
    /// <summary>A tensor of whatever its memory holds; the caller owns it.</summary>
    /// <param name="shape">Its shape.</param>
    /// <param name="type">Of its elements.</param>
    /// <param name="device">Where it will be sent; for a GPU its memory is page-locked.</param>
    public static Tensor Empty(long[] shape, ScalarType type, Device device)
    {
        using var scope = NewDisposeScope();
        var plain = empty(shape, type);
        if (device.type == DeviceType.CPU) return plain.MoveToOuterDisposeScope().DetachFromDisposeScope();
        var count = plain.numel();
        if (count < 2) return plain.pin_memory().MoveToOuterDisposeScope().DetachFromDisposeScope();
        // TorchSharp cannot ask for such memory, only for such a copy: that of the first and the last element spans all of it.
        var ends = plain.as_strided([2], [count - 1]).pin_memory();
        var strides = new long[shape.Length];
        for (long i = shape.Length - 1, stride = 1; i >= 0; stride *= shape[i--]) strides[i] = stride;
        return ends.as_strided(shape, strides).MoveToOuterDisposeScope().DetachFromDisposeScope();
    }

    /// <summary>The elements, to be written; of at most 2 GB.</summary>
    public static Span<T> Elements<T>(Tensor t) where T : unmanaged => t.numel() == 0 ? [] : MemoryMarshal.Cast<byte, T>(t.bytes);

    /// <summary>A tensor on the device. Out of page-locked memory it is copied while the host goes on.</summary>
    public static Tensor Send(Tensor t, Device device) => device.type == DeviceType.CPU ? t.alias() : t.to(device, non_blocking: true);
}
