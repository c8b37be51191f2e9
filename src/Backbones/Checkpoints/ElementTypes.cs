using static TorchSharp.torch;

namespace MambaVL.Checkpoints;

/// <summary>The element types that checkpoints may hold.</summary>
internal static class ElementTypes
{
    // In the order in which the reference implementation lays tensors out (the later, the earlier in the file), so that
    // every tensor starts at a multiple of its element's size.
    private static readonly (string Name, ScalarType Type, int Size)[] All =
    [
        ("BOOL", ScalarType.Bool, 1), ("U8", ScalarType.Byte, 1), ("I8", ScalarType.Int8, 1),
        ("I16", ScalarType.Int16, 2), ("F16", ScalarType.Float16, 2), ("BF16", ScalarType.BFloat16, 2),
        ("I32", ScalarType.Int32, 4), ("F32", ScalarType.Float32, 4), ("F64", ScalarType.Float64, 8),
        ("I64", ScalarType.Int64, 8),
    ];

    /// <summary>More dimensions than this are refused; no model comes near.</summary>
    public const int MaxRank = 64;

    public static string Supported { get; } = string.Join(", ", All.Select(t => t.Name));

    public static ScalarType? Parse(string name)
    {
        foreach (var t in All)
            if (t.Name == name) return t.Type;
        return null;
    }

    /// <summary>The place in the order of layout, or -1 for a type that a checkpoint cannot hold.</summary>
    public static int Order(ScalarType type) => Array.FindIndex(All, t => t.Type == type);

    public static string Name(ScalarType type) => All[Order(type)].Name;

    public static int Size(ScalarType type) => All[Order(type)].Size;

    public static bool IsFloat(ScalarType type)
        => type is ScalarType.Float64 or ScalarType.Float32 or ScalarType.Float16 or ScalarType.BFloat16;

    /// <summary>The bytes of a tensor; false when the shape is negative or the product is beyond 63 bits.</summary>
    /// <remarks>Dimensions of zero count as one in the overflow check, because libtorch multiplies strides that way.</remarks>
    public static bool TryByteCount(ReadOnlySpan<long> shape, ScalarType type, out long bytes)
    {
        bytes = 0;
        Int128 size = Size(type);
        var empty = false;
        foreach (var dimension in shape)
        {
            if (dimension < 0) return false;
            empty |= dimension == 0;
            size *= Math.Max(dimension, 1);
            if (size > long.MaxValue) return false;
        }
        bytes = empty ? 0 : (long)size;
        return true;
    }
}
