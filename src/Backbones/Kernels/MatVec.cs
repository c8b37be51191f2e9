using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using MambaVL.Scan;

namespace MambaVL.Kernels;

/// <summary>y[b, o] = sum over k of W[o, k] x[b, k] for a few x at a time, at the speed at which memory delivers W.</summary>
/// <remarks>
/// The sum of one (b, o) always runs the same way: two vectors of partial sums, fed in turn with consecutive vectors of k;
/// their sum; then the last few k one by one. How many x stand side by side, how the rows are dealt to threads and how many
/// rows a loop takes at a time change nothing in it, so y is the same bit for bit.
/// </remarks>
internal static unsafe class MatVec
{
    // Small enough that the end of a region is even between the threads (2 us of one core's share of memory), large enough
    // that taking a chunk (an interlocked operation) costs nothing beside it.
    private const int ChunkBytes = 32 << 10;

    /// <summary>How far ahead of the sums memory is asked for: what arrives in about a microsecond, so that it goes on arriving
    /// while a chunk's end is computed on.</summary>
    public const int BytesAhead = 16 << 10;

    /// <summary>Rows of <paramref name="w"/> that make one chunk of a region.</summary>
    public static int RowsPerChunk(in Matrix w)
        => Math.Clamp((ChunkBytes / Math.Max(w.RowBytes, 1) + 3) / 4 * 4, 4, 1 << 16);

    /// <summary>How many chunks that gives.</summary>
    public static int Chunks(in Matrix w)
    {
        var rows = RowsPerChunk(w);
        return (w.Rows + rows - 1) / rows;
    }

    /// <summary>All rows, by the team.</summary>
    /// <param name="team">Who computes.</param>
    /// <param name="w">The weights.</param>
    /// <param name="x">[b, columns], row i at x + i * <paramref name="xStride"/>.</param>
    /// <param name="xStride">Floats between two rows of x.</param>
    /// <param name="b">How many rows x has.</param>
    /// <param name="y">[b, rows], row i at y + i * <paramref name="yStride"/>.</param>
    /// <param name="yStride">Floats between two rows of y.</param>
    /// <param name="maxThreads">At most so many threads.</param>
    public static void Run(CpuTeam team, in Matrix w, float* x, int xStride, int b, float* y, int yStride,
        int maxThreads = int.MaxValue)
    {
        var region = new Region(w, x, xStride, b, y, yStride);
        team.Run(ref region, Chunks(w), maxThreads);
    }

    /// <summary>Rows <paramref name="from"/> up to <paramref name="to"/>, by the calling thread.</summary>
    public static void Rows(in Matrix w, int from, int to, float* x, int xStride, int b, float* y, int yStride)
    {
        if (Lanes512.IsSupported) Rows<Lanes512>(w, from, to, x, xStride, b, y, yStride);
        else if (Lanes256.IsSupported) Rows<Lanes256>(w, from, to, x, xStride, b, y, yStride);
        else Rows<Lanes128>(w, from, to, x, xStride, b, y, yStride);
    }

    /// <summary>The same at a width of the caller's choice.</summary>
    public static void Rows<V>(in Matrix w, int from, int to, float* x, int xStride, int b, float* y, int yStride)
        where V : unmanaged, ILanes<V>
    {
        switch (w.Type)
        {
            case WeightType.Float32: Kernel<V, Float32Weights<V>>.Rows(w, from, to, x, xStride, b, y, yStride); break;
            case WeightType.BFloat16: Kernel<V, BFloat16Weights<V>>.Rows(w, from, to, x, xStride, b, y, yStride); break;
            case WeightType.Float16: Kernel<V, Float16Weights<V>>.Rows(w, from, to, x, xStride, b, y, yStride); break;
            default: throw new ArgumentOutOfRangeException(nameof(w), w.Type, "No such weight type.");
        }
    }

    /// <summary>Asks for the cache lines of so many bytes, at most 256, into the second-level cache. A processor's own prefetching
    /// follows the ends of short rows badly. An address behind the matrix does no harm.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Prefetch(byte* p, int bytes)
    {
        if (!Sse.IsSupported) return;
        Sse.Prefetch1(p);
        if (bytes > 64) Sse.Prefetch1(p + 64);
        if (bytes > 128) Sse.Prefetch1(p + 128);
        if (bytes > 192) Sse.Prefetch1(p + 192);
    }

    private readonly struct Region(in Matrix w, float* x, int xStride, int b, float* y, int yStride) : IRegion
    {
        private readonly Matrix _w = w;

        public void Execute(int chunk)
        {
            var rows = RowsPerChunk(_w);
            Rows(_w, chunk * rows, Math.Min((chunk + 1) * rows, _w.Rows), x, xStride, b, y, yStride);
        }
    }

    /// <summary>Four rows beside one or two x, two rows beside four x: 8 to 16 chains of sums that do not wait for each other.
    /// The loops call nothing, because a call after a loop makes the compiler spill the sums inside it.</summary>
    private static class Kernel<V, W> where V : unmanaged, ILanes<V> where W : struct, IWeights<V>
    {
        public static void Rows(in Matrix w, int from, int to, float* x, int xStride, int b, float* y, int yStride)
        {
            nint rowBytes = w.RowBytes;
            var k = w.Columns;
            var o = from;
            if (k % V.Width == 0)
            {
                for (; o + 4 <= to; o += 4)
                {
                    var row = w.Data + o * rowBytes;
                    var i = 0;
                    for (; b - i >= 3; i += 4)
                    {
                        // Of three rows the last one is computed, and written, twice.
                        float* x0 = x + (nint)i * xStride, y0 = y + (nint)i * yStride + o;
                        nint third = Math.Min(3, b - i - 1);
                        TwoByFour(row, row + rowBytes, k, x0, xStride, x0 + third * xStride, y0, yStride, y0 + third * yStride);
                        TwoByFour(row + 2 * rowBytes, row + 3 * rowBytes, k, x0, xStride, x0 + third * xStride,
                            y0 + 2, yStride, y0 + 2 + third * yStride);
                    }
                    if (b - i == 2) FourByTwo(row, rowBytes, k, x + (nint)i * xStride, xStride, y + (nint)i * yStride + o, yStride);
                    else if (b - i == 1) FourByOne(row, rowBytes, k, x + (nint)i * xStride, y + (nint)i * yStride + o);
                }
            }
            for (; o < to; o++)
                for (var i = 0; i < b; i++)
                    y[(nint)i * yStride + o] = OneByOne(w.Data + o * rowBytes, k, x + (nint)i * xStride);
        }

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private static void FourByOne(byte* w0, nint rowBytes, nint count, float* x, float* y)
        {
            byte* w1 = w0 + rowBytes, w2 = w1 + rowBytes, w3 = w2 + rowBytes;
            V a0 = default, a1 = default, a2 = default, a3 = default;
            V c0 = default, c1 = default, c2 = default, c3 = default;
            nint k = 0, end = count - 2 * V.Width, ahead = BytesAhead;
            for (; k <= end; k += 2 * V.Width)
            {
                Prefetch(w0 + k * W.Size + ahead, 2 * V.Width * W.Size);
                Prefetch(w1 + k * W.Size + ahead, 2 * V.Width * W.Size);
                Prefetch(w2 + k * W.Size + ahead, 2 * V.Width * W.Size);
                Prefetch(w3 + k * W.Size + ahead, 2 * V.Width * W.Size);
                var u = V.Load(x + k);
                a0 = V.Fma(W.Load(w0, k), u, a0);
                a1 = V.Fma(W.Load(w1, k), u, a1);
                a2 = V.Fma(W.Load(w2, k), u, a2);
                a3 = V.Fma(W.Load(w3, k), u, a3);
                u = V.Load(x + k + V.Width);
                c0 = V.Fma(W.Load(w0, k + V.Width), u, c0);
                c1 = V.Fma(W.Load(w1, k + V.Width), u, c1);
                c2 = V.Fma(W.Load(w2, k + V.Width), u, c2);
                c3 = V.Fma(W.Load(w3, k + V.Width), u, c3);
            }
            a0 = a0 + c0;
            a1 = a1 + c1;
            a2 = a2 + c2;
            a3 = a3 + c3;
            if (k < count)
            {
                var u = V.Load(x + k);
                a0 = V.Fma(W.Load(w0, k), u, a0);
                a1 = V.Fma(W.Load(w1, k), u, a1);
                a2 = V.Fma(W.Load(w2, k), u, a2);
                a3 = V.Fma(W.Load(w3, k), u, a3);
            }
            Wide<V>.SumFour(a0, a1, a2, a3).Store(y);
        }

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private static void FourByTwo(byte* w0, nint rowBytes, nint count, float* x0, nint xStride, float* y, nint yStride)
        {
            byte* w1 = w0 + rowBytes, w2 = w1 + rowBytes, w3 = w2 + rowBytes;
            var x1 = x0 + xStride;
            V a0 = default, a1 = default, a2 = default, a3 = default, d0 = default, d1 = default, d2 = default, d3 = default;
            V c0 = default, c1 = default, c2 = default, c3 = default, e0 = default, e1 = default, e2 = default, e3 = default;
            nint k = 0, end = count - 2 * V.Width, ahead = BytesAhead;
            for (; k <= end; k += 2 * V.Width)
            {
                Prefetch(w0 + k * W.Size + ahead, 2 * V.Width * W.Size);
                Prefetch(w1 + k * W.Size + ahead, 2 * V.Width * W.Size);
                Prefetch(w2 + k * W.Size + ahead, 2 * V.Width * W.Size);
                Prefetch(w3 + k * W.Size + ahead, 2 * V.Width * W.Size);
                V u = V.Load(x0 + k), v = V.Load(x1 + k), w = W.Load(w0, k);
                a0 = V.Fma(w, u, a0);
                d0 = V.Fma(w, v, d0);
                w = W.Load(w1, k);
                a1 = V.Fma(w, u, a1);
                d1 = V.Fma(w, v, d1);
                w = W.Load(w2, k);
                a2 = V.Fma(w, u, a2);
                d2 = V.Fma(w, v, d2);
                w = W.Load(w3, k);
                a3 = V.Fma(w, u, a3);
                d3 = V.Fma(w, v, d3);
                u = V.Load(x0 + k + V.Width);
                v = V.Load(x1 + k + V.Width);
                w = W.Load(w0, k + V.Width);
                c0 = V.Fma(w, u, c0);
                e0 = V.Fma(w, v, e0);
                w = W.Load(w1, k + V.Width);
                c1 = V.Fma(w, u, c1);
                e1 = V.Fma(w, v, e1);
                w = W.Load(w2, k + V.Width);
                c2 = V.Fma(w, u, c2);
                e2 = V.Fma(w, v, e2);
                w = W.Load(w3, k + V.Width);
                c3 = V.Fma(w, u, c3);
                e3 = V.Fma(w, v, e3);
            }
            a0 = a0 + c0;
            a1 = a1 + c1;
            a2 = a2 + c2;
            a3 = a3 + c3;
            d0 = d0 + e0;
            d1 = d1 + e1;
            d2 = d2 + e2;
            d3 = d3 + e3;
            if (k < count)
            {
                V u = V.Load(x0 + k), v = V.Load(x1 + k), w = W.Load(w0, k);
                a0 = V.Fma(w, u, a0);
                d0 = V.Fma(w, v, d0);
                w = W.Load(w1, k);
                a1 = V.Fma(w, u, a1);
                d1 = V.Fma(w, v, d1);
                w = W.Load(w2, k);
                a2 = V.Fma(w, u, a2);
                d2 = V.Fma(w, v, d2);
                w = W.Load(w3, k);
                a3 = V.Fma(w, u, a3);
                d3 = V.Fma(w, v, d3);
            }
            Wide<V>.SumFour(a0, a1, a2, a3).Store(y);
            Wide<V>.SumFour(d0, d1, d2, d3).Store(y + yStride);
        }

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private static void TwoByFour(byte* w0, byte* w1, nint count, float* x0, nint xStride, float* x3,
            float* y, nint yStride, float* y3)
        {
            float* x1 = x0 + xStride, x2 = x1 + xStride;
            V a00 = default, a01 = default, a10 = default, a11 = default, a20 = default, a21 = default, a30 = default, a31 = default;
            V c00 = default, c01 = default, c10 = default, c11 = default, c20 = default, c21 = default, c30 = default, c31 = default;
            nint k = 0, end = count - 2 * V.Width, ahead = BytesAhead;
            for (; k <= end; k += 2 * V.Width)
            {
                Prefetch(w0 + k * W.Size + ahead, 2 * V.Width * W.Size);
                Prefetch(w1 + k * W.Size + ahead, 2 * V.Width * W.Size);
                V u = W.Load(w0, k), v = W.Load(w1, k), x = V.Load(x0 + k);
                a00 = V.Fma(u, x, a00);
                a01 = V.Fma(v, x, a01);
                x = V.Load(x1 + k);
                a10 = V.Fma(u, x, a10);
                a11 = V.Fma(v, x, a11);
                x = V.Load(x2 + k);
                a20 = V.Fma(u, x, a20);
                a21 = V.Fma(v, x, a21);
                x = V.Load(x3 + k);
                a30 = V.Fma(u, x, a30);
                a31 = V.Fma(v, x, a31);
                u = W.Load(w0, k + V.Width);
                v = W.Load(w1, k + V.Width);
                x = V.Load(x0 + k + V.Width);
                c00 = V.Fma(u, x, c00);
                c01 = V.Fma(v, x, c01);
                x = V.Load(x1 + k + V.Width);
                c10 = V.Fma(u, x, c10);
                c11 = V.Fma(v, x, c11);
                x = V.Load(x2 + k + V.Width);
                c20 = V.Fma(u, x, c20);
                c21 = V.Fma(v, x, c21);
                x = V.Load(x3 + k + V.Width);
                c30 = V.Fma(u, x, c30);
                c31 = V.Fma(v, x, c31);
            }
            a00 = a00 + c00;
            a01 = a01 + c01;
            a10 = a10 + c10;
            a11 = a11 + c11;
            a20 = a20 + c20;
            a21 = a21 + c21;
            a30 = a30 + c30;
            a31 = a31 + c31;
            if (k < count)
            {
                V u = W.Load(w0, k), v = W.Load(w1, k), x = V.Load(x0 + k);
                a00 = V.Fma(u, x, a00);
                a01 = V.Fma(v, x, a01);
                x = V.Load(x1 + k);
                a10 = V.Fma(u, x, a10);
                a11 = V.Fma(v, x, a11);
                x = V.Load(x2 + k);
                a20 = V.Fma(u, x, a20);
                a21 = V.Fma(v, x, a21);
                x = V.Load(x3 + k);
                a30 = V.Fma(u, x, a30);
                a31 = V.Fma(v, x, a31);
            }
            var first = Wide<V>.SumFour(a00, a01, a10, a11);
            var second = Wide<V>.SumFour(a20, a21, a30, a31);
            first.GetLower().Store(y);
            first.GetUpper().Store(y + yStride);
            second.GetLower().Store(y + 2 * yStride);
            second.GetUpper().Store(y3);
        }

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private static float OneByOne(byte* w, nint count, float* x)
        {
            V a = default, c = default;
            nint k = 0;
            for (; k + 2 * V.Width <= count; k += 2 * V.Width)
            {
                a = V.Fma(W.Load(w, k), V.Load(x + k), a);
                c = V.Fma(W.Load(w, k + V.Width), V.Load(x + k + V.Width), c);
            }
            a = a + c;
            if (k + V.Width <= count)
            {
                a = V.Fma(W.Load(w, k), V.Load(x + k), a);
                k += V.Width;
            }
            var y = Wide<V>.Sum(a);
            for (; k < count; k++) y = MathF.FusedMultiplyAdd(W.LoadOne(w, k), x[k], y);
            return y;
        }
    }
}
