using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using MambaVL.Scan;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Kernels;

/// <summary>The precision in which weights lie in memory. The arithmetic is always float32.</summary>
internal enum WeightType
{
    Float32,
    BFloat16,
    Float16,
}

/// <summary>Weights [rows, columns] in someone else's memory, row after row, as checkpoints have them.</summary>
/// <param name="data">The first element; at any address.</param>
/// <param name="rows">Outputs of the product.</param>
/// <param name="columns">Inputs of the product.</param>
/// <param name="type">The precision.</param>
internal readonly unsafe struct Matrix(void* data, int rows, int columns, WeightType type)
{
    public readonly byte* Data = (byte*)data;
    public readonly int Rows = rows;
    public readonly int Columns = columns;
    public readonly WeightType Type = type;

    public int RowBytes => Columns * (Type == WeightType.Float32 ? 4 : 2);

    public long Bytes => (long)Rows * RowBytes;

    /// <summary>One row, widened: [columns].</summary>
    public void Row(long row, float* y)
    {
        var values = new Values(Data + row * RowBytes, Type);
        for (var i = 0; i < Columns; i++) y[i] = values[i];
    }
}

/// <summary>Numbers in someone else's memory: a bias, the weight of a norm, a row of a key-value cache. A vector that is not
/// there reads as zeros.</summary>
internal readonly unsafe struct Values(void* data, WeightType type)
{
    public readonly byte* Data = (byte*)data;
    public readonly WeightType Type = type;

    public bool Exist => Data != null;

    public float this[nint i] => Data == null ? 0 : Type switch
    {
        WeightType.Float32 => Unsafe.ReadUnaligned<float>((float*)Data + i),
        WeightType.BFloat16 => BitConverter.UInt32BitsToSingle((uint)Unsafe.ReadUnaligned<ushort>((ushort*)Data + i) << 16),
        _ => (float)BitConverter.UInt16BitsToHalf(Unsafe.ReadUnaligned<ushort>((ushort*)Data + i)),
    };

    /// <summary>Writes numbers i to i + count - 1, rounded to this precision.</summary>
    public void Store(nint i, float* x, int count)
    {
        switch (Type)
        {
            case WeightType.Float32:
                new ReadOnlySpan<float>(x, count).CopyTo(new Span<float>((float*)Data + i, count));
                break;
            case WeightType.BFloat16:
                for (var j = 0; j < count; j++) Unsafe.WriteUnaligned((ushort*)Data + i + j, BFloat16Bits(x[j]));
                break;
            default:
                for (var j = 0; j < count; j++) Unsafe.WriteUnaligned((ushort*)Data + i + j, BitConverter.HalfToUInt16Bits((Half)x[j]));
                break;
        }
    }

    /// <summary>The same numbers from the i-th on.</summary>
    public Values From(nint i) => new(Data == null ? null : Data + i * (Type == WeightType.Float32 ? 4 : 2), Type);

    /// <summary>The same numbers as rows of a matrix.</summary>
    public Matrix AsMatrix(int rows, int columns) => new(Data, rows, columns, Type);

    /// <summary>Lanes i, i + 1, ...; those at and behind <paramref name="end"/> are not read, and are zero.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public V Load<V>(nint i, nint end) where V : unmanaged, ILanes<V>
    {
        if (Data == null) return V.All(0);
        if (i + V.Width > end) return Rest<V>(i, end);
        return Type switch
        {
            WeightType.Float32 => Float32Weights<V>.Load(Data, i),
            WeightType.BFloat16 => BFloat16Weights<V>.Load(Data, i),
            _ => Float16Weights<V>.Load(Data, i),
        };
    }

    /// <summary>Numbers i to i + 3.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Vector128<float> Four(nint i) => Type switch
    {
        WeightType.Float32 => Vector128.Load((float*)Data + i),
        WeightType.BFloat16 => (Vector128.WidenLower(Vector128.CreateScalar(Unsafe.ReadUnaligned<ulong>((ushort*)Data + i)).AsUInt16()) << 16).AsSingle(),
        _ => Vector128.Create(this[i], this[i + 1], this[i + 2], this[i + 3]),
    };

    /// <summary>x in this precision, and back.</summary>
    public static float Round(float x, WeightType type) => type switch
    {
        WeightType.Float32 => x,
        WeightType.BFloat16 => BitConverter.UInt32BitsToSingle((uint)BFloat16Bits(x) << 16),
        _ => (float)(Half)x,
    };

    [MethodImpl(MethodImplOptions.NoInlining)]
    private V Rest<V>(nint i, nint end) where V : unmanaged, ILanes<V>
    {
        var lanes = stackalloc float[V.Width];
        for (var j = 0; j < V.Width; j++) lanes[j] = i + j < end ? this[i + j] : 0;
        return V.Load(lanes);
    }

    // To the nearest, ties to even, as torch rounds; a NaN keeps a bit of its fraction.
    private static ushort BFloat16Bits(float x)
    {
        var bits = BitConverter.SingleToUInt32Bits(x);
        return float.IsNaN(x) ? (ushort)0x7fc0 : (ushort)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
}

/// <summary>Reads where a tensor's numbers lie. The pointers hold as long as the tensor's storage does: they are taken anew
/// in every call, as training may put another tensor in a parameter's place.</summary>
internal static unsafe class TensorMemory
{
    /// <summary>False where the kernels cannot take the tensor: another device or precision, or rows that are not one
    /// after the other.</summary>
    public static bool TryMatrix(Tensor t, long rows, long columns, out Matrix matrix)
    {
        matrix = default;
        if (rows > int.MaxValue || columns > int.MaxValue || !TryPointer(t, rows * columns, out var data, out var type)) return false;
        matrix = new(data, (int)rows, (int)columns, type);
        return true;
    }

    /// <summary>As <see cref="TryMatrix"/>; true for a tensor that is not there.</summary>
    public static bool TryValues(Tensor? t, long count, out Values values)
    {
        values = default;
        if (t is null) return true;
        if (!TryPointer(t, count, out var data, out var type)) return false;
        values = new(data, type);
        return true;
    }

    /// <summary>The memory of a float32 tensor.</summary>
    public static bool TryFloats(Tensor t, long count, out float* data)
    {
        data = null;
        if (!TryPointer(t, count, out var pointer, out var type) || type != WeightType.Float32) return false;
        data = (float*)pointer;
        return true;
    }

    private static bool TryPointer(Tensor t, long count, out void* data, out WeightType type)
    {
        data = null;
        type = default;
        if (t.device_type != DeviceType.CPU || !TryType(t.dtype, out type)) return false;
        if (!t.is_contiguous() || t.numel() != count) return false;
        fixed (byte* p = t.bytes) data = p;
        return true;
    }

    public static bool TryType(ScalarType dtype, out WeightType type)
    {
        type = dtype switch
        {
            ScalarType.BFloat16 => WeightType.BFloat16,
            ScalarType.Float16 => WeightType.Float16,
            _ => WeightType.Float32,
        };
        return dtype is ScalarType.Float32 or ScalarType.BFloat16 or ScalarType.Float16;
    }
}
