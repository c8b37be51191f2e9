using System.Runtime.InteropServices;

namespace MambaVL.Kernels;

/// <summary>Memory for the activations of one call, kept from call to call.</summary>
internal sealed unsafe class Arena
{
    private const int Alignment = 64;

    [ThreadStatic] private static Arena? _ofThread;

    private byte* _memory;
    private nuint _capacity, _used;

    private Arena() { }

    ~Arena() => NativeMemory.AlignedFree(_memory);

    /// <summary>The calling thread's, empty, with room for <paramref name="bytes"/>.</summary>
    public static Arena OfThread(long bytes)
    {
        var arena = _ofThread ??= new Arena();
        arena._used = 0;
        if (arena._capacity >= (nuint)bytes) return arena;
        NativeMemory.AlignedFree(arena._memory);
        arena._memory = null; // if the next line fails, nothing is freed twice
        arena._capacity = 0;
        arena._memory = (byte*)NativeMemory.AlignedAlloc((nuint)bytes, Alignment);
        arena._capacity = (nuint)bytes;
        return arena;
    }

    /// <summary>Bytes that <see cref="Take{T}"/> uses up for so many elements.</summary>
    public static long Size<T>(long count) where T : unmanaged => (count * sizeof(T) + Alignment - 1) / Alignment * Alignment;

    /// <summary>The next so many elements, at a multiple of 64 bytes. Their values are whatever was left there.</summary>
    public T* Take<T>(long count) where T : unmanaged
    {
        var bytes = (nuint)Size<T>(count);
        if (_used + bytes > _capacity) throw new InvalidOperationException($"The arena has {_capacity} bytes, {_used} in use; {bytes} more were asked for.");
        var taken = _memory + _used;
        _used += bytes;
        return (T*)taken;
    }
}
