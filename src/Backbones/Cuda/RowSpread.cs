using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>How a row is spread over the threads of a block that keeps it in registers (Kernels/rows.cuh).</summary>
internal static class RowSpread
{
    private const int MostThreads = 384, MostNumbers = 64; // of a block; that a thread keeps

    /// <summary>The numbers of one access: the most that the width and every tensor's address are multiples of, up to 16 bytes.</summary>
    public static int Vector(long width, int elementSize, params ReadOnlySpan<Tensor?> tensors)
    {
        long together = (long)(16 / elementSize) | width;
        foreach (var t in tensors) together |= (long)CudaTensor.Pointer(t) / elementSize;
        return (int)(together & -together);
    }

    /// <summary>Threads of a block: as few numbers a thread as the largest block allows. Null where a row does not fit.</summary>
    public static int? Threads(long width, int vector)
    {
        var vectors = width / vector;
        var each = (vectors + MostThreads - 1) / MostThreads;
        return each * vector > MostNumbers ? null : (int)(((vectors + each - 1) / each + 31) / 32 * 32);
    }

    /// <summary>Whether rows of so many numbers fit, wherever they lie.</summary>
    public static bool Takes(long width) => Threads(width, 1) is not null;
}
