using System.Runtime.CompilerServices;
using MambaVL.Scan;

namespace MambaVL.Kernels;

/// <summary>How weights of one type become floats.</summary>
internal unsafe interface IWeights<V>
{
    static abstract int Size { get; }
    static abstract V Load(byte* row, nint k);
    static abstract float LoadOne(byte* row, nint k);
}

internal readonly unsafe struct Float32Weights<V> : IWeights<V> where V : unmanaged, ILanes<V>
{
    public static int Size => 4;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V Load(byte* row, nint k) => V.Load((float*)row + k);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float LoadOne(byte* row, nint k) => Unsafe.ReadUnaligned<float>((float*)row + k);
}

internal readonly unsafe struct BFloat16Weights<V> : IWeights<V> where V : unmanaged, ILanes<V>
{
    public static int Size => 2;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V Load(byte* row, nint k) => Wide<V>.LoadBFloat16((ushort*)row + k);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float LoadOne(byte* row, nint k)
        => BitConverter.UInt32BitsToSingle((uint)Unsafe.ReadUnaligned<ushort>((ushort*)row + k) << 16);
}

internal readonly unsafe struct Float16Weights<V> : IWeights<V> where V : unmanaged, ILanes<V>
{
    public static int Size => 2;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V Load(byte* row, nint k) => Wide<V>.LoadHalf((ushort*)row + k);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float LoadOne(byte* row, nint k)
        => (float)BitConverter.UInt16BitsToHalf(Unsafe.ReadUnaligned<ushort>((ushort*)row + k));
}
