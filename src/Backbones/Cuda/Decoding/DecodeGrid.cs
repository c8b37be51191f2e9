namespace MambaVL.Cuda;

/// <summary>How the products of a decode step are spread over blocks: what decode.cuh counts, counted for the launch.</summary>
/// <param name="Multiprocessors">Of the GPU.</param>
/// <param name="SharedBytes">The most shared memory of a block.</param>
/// <param name="ElementSize">Bytes of a weight.</param>
internal readonly record struct DecodeGrid(int Multiprocessors, int SharedBytes, int ElementSize)
{
    // Two blocks of so much share a multiprocessor of compute capability 9.0.
    private const int MostStaged = 96 * 1024;

    /// <summary>Threads of a block, and its warps.</summary>
    public const int Threads = 512, Warps = Threads / 32;

    // Rows that a warp takes at once.
    private const int Tile = 8;

    /// <summary>Groups of 64 bytes in a row.</summary>
    public int Groups(int columns) => (columns * ElementSize + 63) / 64;

    /// <summary>Rows in tiles.</summary>
    public static int Tiles(int rows) => (rows + Tile - 1) / Tile;

    /// <summary>Slices of a tile's columns: the most with which the blocks of one matrix still stand on <paramref name="blocks"/> places.</summary>
    public int Slices(int rows, int columns, int blocks)
    {
        var s = Warps;
        while (s > 1 && ((Tiles(rows) + Warps / s - 1) / (Warps / s) > blocks || Groups(columns) < s)) s /= 2;
        return s;
    }

    /// <summary>Blocks to launch for a product.</summary>
    public int Blocks(int rows, int columns, int blocks)
    {
        var tilesAtOnce = Warps / Slices(rows, columns, blocks);
        return Math.Min(blocks, (Tiles(rows) + tilesAtOnce - 1) / tilesAtOnce);
    }

    /// <summary>Bytes of b rows of activations as the products read them.</summary>
    public int PackedBytes(int columns, int b) => Groups(columns) * 64 / ElementSize * 4 * b;

    /// <summary>Bytes of shared memory that a block may take for activations that other kernels made (STAGED).</summary>
    public int Staged(int b) => Math.Min(MostStaged, SharedBytes - StaticBytes(b));

    /// <summary>Bytes that it takes for them: none where they do not fit, and are read where they lie.</summary>
    public int StagedBytes(int packedBytes, int b) => packedBytes <= Staged(b) ? packedBytes : 0;

    /// <summary>Bytes of shared memory that a block has beside its activations.</summary>
    public static int StaticBytes(int b) => (Warps * Tile + Warps + 1) * b * sizeof(float);
}
