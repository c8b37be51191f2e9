namespace MambaVL.Kernels;

/// <summary>The precision in which weights lie in memory. The arithmetic is always float32.</summary>
internal enum WeightType
{
    Float32,
    BFloat16,
    Float16,
}

/// <summary>Weights [rows, columns] in someone else's memory, row after row, as checkpoints have them.</summary>
/// <param name="data">The first element; any address that the element's size or half of it divides will do.</param>
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
}
