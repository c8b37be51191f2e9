namespace MambaVL.Cuda;

/// <summary>What the host counts of the kernels of a decode step, as decode.cuh does. How they are spread they say themselves
/// (<see cref="Spread"/>).</summary>
/// <param name="ElementSize">Bytes of a weight.</param>
internal readonly record struct DecodeGrid(int ElementSize)
{
    /// <summary>Threads of a block, and of one of <c>normalise</c>.</summary>
    public const int Threads = 256, NormThreads = 512;

    /// <summary>Groups of 64 bytes in a row.</summary>
    public int Groups(int columns) => (columns * ElementSize + 63) / 64;

    /// <summary>Bytes of b rows of activations as the products read them.</summary>
    public int PackedBytes(int columns, int b) => Groups(columns) * 64 / ElementSize * 4 * b;

    /// <summary>Sums of squares that are left of a row (SQUARES of decode_head.cuh): one of every 8 columns, and zeros up to a
    /// multiple of 128.</summary>
    public static int Squares(int columns) => (columns + 1023) / 1024 * 128;
}

/// <summary>What a kernel of a decode step is launched with (SPREAD of decode.cuh).</summary>
/// <param name="Kernel">The kernel.</param>
/// <param name="Blocks">Blocks.</param>
/// <param name="SharedBytes">Dynamic shared memory of a block.</param>
internal readonly record struct Spread(CudaKernel Kernel, int Blocks, int SharedBytes)
{
    /// <summary>Puts it into a stream.</summary>
    public void Run<T>(nint stream, bool overlap, in T arguments, int threads = DecodeGrid.Threads) where T : unmanaged
        => Kernel.Run(stream, new Launch(Blocks, threads, SharedBytes, overlap), arguments);
}
