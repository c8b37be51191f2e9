using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

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

    private const int RowsAhead = 4;

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
        if (Lanes512.IsSupported) Rows<Lanes512, Vector512<float>>(w, from, to, x, xStride, b, y, yStride);
        else if (Lanes256.IsSupported) Rows<Lanes256, Vector256<float>>(w, from, to, x, xStride, b, y, yStride);
        else Rows<Lanes128, Vector128<float>>(w, from, to, x, xStride, b, y, yStride);
    }

    /// <summary>The same at a width of the caller's choice.</summary>
    public static void Rows<L, V>(in Matrix w, int from, int to, float* x, int xStride, int b, float* y, int yStride)
        where L : struct, ILanes<V> where V : struct
    {
        switch (w.Type)
        {
            case WeightType.Float32: Kernel<L, V, Float32Weights<L, V>>.Rows(w, from, to, x, xStride, b, y, yStride); break;
            case WeightType.BFloat16: Kernel<L, V, BFloat16Weights<L, V>>.Rows(w, from, to, x, xStride, b, y, yStride); break;
            case WeightType.Float16: Kernel<L, V, Float16Weights<L, V>>.Rows(w, from, to, x, xStride, b, y, yStride); break;
            default: throw new ArgumentOutOfRangeException(nameof(w), w.Type, "No such weight type.");
        }
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

    /// <summary>How weights of one type become floats.</summary>
    private interface IWeights<V> where V : struct
    {
        static abstract int Size { get; }
        static abstract V Load(byte* row, nint k);
        static abstract float LoadOne(byte* row, nint k);
    }

    private readonly struct Float32Weights<L, V> : IWeights<V> where L : struct, ILanes<V> where V : struct
    {
        public static int Size => 4;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static V Load(byte* row, nint k) => L.Load((float*)row + k);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static float LoadOne(byte* row, nint k) => Unsafe.ReadUnaligned<float>((float*)row + k);
    }

    private readonly struct BFloat16Weights<L, V> : IWeights<V> where L : struct, ILanes<V> where V : struct
    {
        public static int Size => 2;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static V Load(byte* row, nint k) => L.LoadBFloat16((ushort*)row + k);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static float LoadOne(byte* row, nint k)
            => BitConverter.UInt32BitsToSingle((uint)Unsafe.ReadUnaligned<ushort>((ushort*)row + k) << 16);
    }

    private readonly struct Float16Weights<L, V> : IWeights<V> where L : struct, ILanes<V> where V : struct
    {
        public static int Size => 2;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static V Load(byte* row, nint k) => L.LoadHalf((ushort*)row + k);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static float LoadOne(byte* row, nint k)
            => (float)BitConverter.UInt16BitsToHalf(Unsafe.ReadUnaligned<ushort>((ushort*)row + k));
    }

    /// <summary>Four rows beside one or two x, two rows beside four x: 8 to 16 chains of sums that do not wait for each other.
    /// The loops call nothing, because a call after a loop makes the compiler spill the sums inside it.</summary>
    private static class Kernel<L, V, W> where L : struct, ILanes<V> where V : struct where W : struct, IWeights<V>
    {
        public static void Rows(in Matrix w, int from, int to, float* x, int xStride, int b, float* y, int yStride)
        {
            nint rowBytes = w.RowBytes;
            var k = w.Columns;
            var o = from;
            if (k % L.Count == 0)
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

        // The rows of the next turn, into the second-level cache: a processor's own prefetching follows the ends of short rows
        // badly. An address behind the matrix does no harm.
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static void Prefetch(byte* p)
        {
            if (!Sse.IsSupported) return;
            Sse.Prefetch1(p);
            if (2 * L.Count * W.Size > 64) Sse.Prefetch1(p + 64);
        }

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private static void FourByOne(byte* w0, nint rowBytes, nint count, float* x, float* y)
        {
            byte* w1 = w0 + rowBytes, w2 = w1 + rowBytes, w3 = w2 + rowBytes;
            V a0 = default, a1 = default, a2 = default, a3 = default;
            V c0 = default, c1 = default, c2 = default, c3 = default;
            nint k = 0, end = count - 2 * L.Count, ahead = RowsAhead * rowBytes;
            for (; k <= end; k += 2 * L.Count)
            {
                Prefetch(w0 + k * W.Size + ahead);
                Prefetch(w1 + k * W.Size + ahead);
                Prefetch(w2 + k * W.Size + ahead);
                Prefetch(w3 + k * W.Size + ahead);
                var u = L.Load(x + k);
                a0 = L.MultiplyAdd(W.Load(w0, k), u, a0);
                a1 = L.MultiplyAdd(W.Load(w1, k), u, a1);
                a2 = L.MultiplyAdd(W.Load(w2, k), u, a2);
                a3 = L.MultiplyAdd(W.Load(w3, k), u, a3);
                u = L.Load(x + k + L.Count);
                c0 = L.MultiplyAdd(W.Load(w0, k + L.Count), u, c0);
                c1 = L.MultiplyAdd(W.Load(w1, k + L.Count), u, c1);
                c2 = L.MultiplyAdd(W.Load(w2, k + L.Count), u, c2);
                c3 = L.MultiplyAdd(W.Load(w3, k + L.Count), u, c3);
            }
            a0 = L.Add(a0, c0);
            a1 = L.Add(a1, c1);
            a2 = L.Add(a2, c2);
            a3 = L.Add(a3, c3);
            if (k < count)
            {
                var u = L.Load(x + k);
                a0 = L.MultiplyAdd(W.Load(w0, k), u, a0);
                a1 = L.MultiplyAdd(W.Load(w1, k), u, a1);
                a2 = L.MultiplyAdd(W.Load(w2, k), u, a2);
                a3 = L.MultiplyAdd(W.Load(w3, k), u, a3);
            }
            L.Sum4(a0, a1, a2, a3).Store(y);
        }

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private static void FourByTwo(byte* w0, nint rowBytes, nint count, float* x0, nint xStride, float* y, nint yStride)
        {
            byte* w1 = w0 + rowBytes, w2 = w1 + rowBytes, w3 = w2 + rowBytes;
            var x1 = x0 + xStride;
            V a0 = default, a1 = default, a2 = default, a3 = default, d0 = default, d1 = default, d2 = default, d3 = default;
            V c0 = default, c1 = default, c2 = default, c3 = default, e0 = default, e1 = default, e2 = default, e3 = default;
            nint k = 0, end = count - 2 * L.Count, ahead = RowsAhead * rowBytes;
            for (; k <= end; k += 2 * L.Count)
            {
                Prefetch(w0 + k * W.Size + ahead);
                Prefetch(w1 + k * W.Size + ahead);
                Prefetch(w2 + k * W.Size + ahead);
                Prefetch(w3 + k * W.Size + ahead);
                V u = L.Load(x0 + k), v = L.Load(x1 + k), w = W.Load(w0, k);
                a0 = L.MultiplyAdd(w, u, a0);
                d0 = L.MultiplyAdd(w, v, d0);
                w = W.Load(w1, k);
                a1 = L.MultiplyAdd(w, u, a1);
                d1 = L.MultiplyAdd(w, v, d1);
                w = W.Load(w2, k);
                a2 = L.MultiplyAdd(w, u, a2);
                d2 = L.MultiplyAdd(w, v, d2);
                w = W.Load(w3, k);
                a3 = L.MultiplyAdd(w, u, a3);
                d3 = L.MultiplyAdd(w, v, d3);
                u = L.Load(x0 + k + L.Count);
                v = L.Load(x1 + k + L.Count);
                w = W.Load(w0, k + L.Count);
                c0 = L.MultiplyAdd(w, u, c0);
                e0 = L.MultiplyAdd(w, v, e0);
                w = W.Load(w1, k + L.Count);
                c1 = L.MultiplyAdd(w, u, c1);
                e1 = L.MultiplyAdd(w, v, e1);
                w = W.Load(w2, k + L.Count);
                c2 = L.MultiplyAdd(w, u, c2);
                e2 = L.MultiplyAdd(w, v, e2);
                w = W.Load(w3, k + L.Count);
                c3 = L.MultiplyAdd(w, u, c3);
                e3 = L.MultiplyAdd(w, v, e3);
            }
            a0 = L.Add(a0, c0);
            a1 = L.Add(a1, c1);
            a2 = L.Add(a2, c2);
            a3 = L.Add(a3, c3);
            d0 = L.Add(d0, e0);
            d1 = L.Add(d1, e1);
            d2 = L.Add(d2, e2);
            d3 = L.Add(d3, e3);
            if (k < count)
            {
                V u = L.Load(x0 + k), v = L.Load(x1 + k), w = W.Load(w0, k);
                a0 = L.MultiplyAdd(w, u, a0);
                d0 = L.MultiplyAdd(w, v, d0);
                w = W.Load(w1, k);
                a1 = L.MultiplyAdd(w, u, a1);
                d1 = L.MultiplyAdd(w, v, d1);
                w = W.Load(w2, k);
                a2 = L.MultiplyAdd(w, u, a2);
                d2 = L.MultiplyAdd(w, v, d2);
                w = W.Load(w3, k);
                a3 = L.MultiplyAdd(w, u, a3);
                d3 = L.MultiplyAdd(w, v, d3);
            }
            L.Sum4(a0, a1, a2, a3).Store(y);
            L.Sum4(d0, d1, d2, d3).Store(y + yStride);
        }

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private static void TwoByFour(byte* w0, byte* w1, nint count, float* x0, nint xStride, float* x3,
            float* y, nint yStride, float* y3)
        {
            float* x1 = x0 + xStride, x2 = x1 + xStride;
            V a00 = default, a01 = default, a10 = default, a11 = default, a20 = default, a21 = default, a30 = default, a31 = default;
            V c00 = default, c01 = default, c10 = default, c11 = default, c20 = default, c21 = default, c30 = default, c31 = default;
            nint k = 0, end = count - 2 * L.Count, ahead = RowsAhead * (nint)(w1 - w0);
            for (; k <= end; k += 2 * L.Count)
            {
                Prefetch(w0 + k * W.Size + ahead);
                Prefetch(w1 + k * W.Size + ahead);
                V u = W.Load(w0, k), v = W.Load(w1, k), x = L.Load(x0 + k);
                a00 = L.MultiplyAdd(u, x, a00);
                a01 = L.MultiplyAdd(v, x, a01);
                x = L.Load(x1 + k);
                a10 = L.MultiplyAdd(u, x, a10);
                a11 = L.MultiplyAdd(v, x, a11);
                x = L.Load(x2 + k);
                a20 = L.MultiplyAdd(u, x, a20);
                a21 = L.MultiplyAdd(v, x, a21);
                x = L.Load(x3 + k);
                a30 = L.MultiplyAdd(u, x, a30);
                a31 = L.MultiplyAdd(v, x, a31);
                u = W.Load(w0, k + L.Count);
                v = W.Load(w1, k + L.Count);
                x = L.Load(x0 + k + L.Count);
                c00 = L.MultiplyAdd(u, x, c00);
                c01 = L.MultiplyAdd(v, x, c01);
                x = L.Load(x1 + k + L.Count);
                c10 = L.MultiplyAdd(u, x, c10);
                c11 = L.MultiplyAdd(v, x, c11);
                x = L.Load(x2 + k + L.Count);
                c20 = L.MultiplyAdd(u, x, c20);
                c21 = L.MultiplyAdd(v, x, c21);
                x = L.Load(x3 + k + L.Count);
                c30 = L.MultiplyAdd(u, x, c30);
                c31 = L.MultiplyAdd(v, x, c31);
            }
            a00 = L.Add(a00, c00);
            a01 = L.Add(a01, c01);
            a10 = L.Add(a10, c10);
            a11 = L.Add(a11, c11);
            a20 = L.Add(a20, c20);
            a21 = L.Add(a21, c21);
            a30 = L.Add(a30, c30);
            a31 = L.Add(a31, c31);
            if (k < count)
            {
                V u = W.Load(w0, k), v = W.Load(w1, k), x = L.Load(x0 + k);
                a00 = L.MultiplyAdd(u, x, a00);
                a01 = L.MultiplyAdd(v, x, a01);
                x = L.Load(x1 + k);
                a10 = L.MultiplyAdd(u, x, a10);
                a11 = L.MultiplyAdd(v, x, a11);
                x = L.Load(x2 + k);
                a20 = L.MultiplyAdd(u, x, a20);
                a21 = L.MultiplyAdd(v, x, a21);
                x = L.Load(x3 + k);
                a30 = L.MultiplyAdd(u, x, a30);
                a31 = L.MultiplyAdd(v, x, a31);
            }
            var first = L.Sum4(a00, a01, a10, a11);
            var second = L.Sum4(a20, a21, a30, a31);
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
            for (; k + 2 * L.Count <= count; k += 2 * L.Count)
            {
                a = L.MultiplyAdd(W.Load(w, k), L.Load(x + k), a);
                c = L.MultiplyAdd(W.Load(w, k + L.Count), L.Load(x + k + L.Count), c);
            }
            a = L.Add(a, c);
            if (k + L.Count <= count)
            {
                a = L.MultiplyAdd(W.Load(w, k), L.Load(x + k), a);
                k += L.Count;
            }
            var y = L.Sum4(a, a, a, a).ToScalar();
            for (; k < count; k++) y = MathF.FusedMultiplyAdd(W.LoadOne(w, k), x[k], y);
            return y;
        }
    }
}
