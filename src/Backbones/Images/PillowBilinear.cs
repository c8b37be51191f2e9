using System.Buffers;
using System.Numerics;
using System.Runtime.Intrinsics;

namespace MambaVL.Images;

// Glossary, against Pillow's Resample.c:
//   scale     input pixels for one output pixel
//   support   how far the triangle reaches: 1 output pixel when shrinking, 1 input pixel when enlarging
//   taps      the input pixels under one triangle, and their weights in fixed point (kk)
//   Bits      PRECISION_BITS: what 32 bits leave beside 8 of a pixel and 2 to spare

/// <summary>Pillow's resize with <c>BILINEAR</c> of 8-bit RGB, bit for bit.</summary>
/// <remarks>
/// First along the rows, rounded to 8 bits, then along the columns, rounded again. Pillow keeps the whole picture that the
/// first pass makes; here each row of it is added to the output rows that it belongs to, and is gone. The sums are of
/// whole numbers, so their order changes nothing. One thread: a photograph takes several times longer to decode.
/// </remarks>
internal static unsafe class PillowBilinear
{
    private const int Bits = 32 - 8 - 2;
    private const int Half = 1 << (Bits - 1);

    // Output rows made together, which bounds the memory of their sums. Input rows at a seam are resampled for both sides.
    private const int Block = 64;

    /// <summary>[height, width, 3] to [outHeight, outWidth, 3].</summary>
    public static void Resize(ReadOnlySpan<byte> source, int width, int height, Span<byte> target, int outWidth, int outHeight)
    {
        var across = new Taps(width, outWidth);
        var down = new Taps(height, outHeight);
        fixed (byte* from = source, to = target)
            for (var y = 0; y < outHeight; y += Block)
                ResizeBlock(from, width, height, across, down, y, Math.Min(outHeight, y + Block), to, outWidth);
    }

    private static void ResizeBlock(byte* from, int width, int height, Taps across, Taps down, int y0, int y1, byte* to, int outWidth)
    {
        var rowLength = outWidth * 3;
        var sums = ArrayPool<int>.Shared.Rent((y1 - y0) * rowLength);
        var row = ArrayPool<int>.Shared.Rent(rowLength + 1);
        byte[]? lastRow = null;
        try
        {
            sums.AsSpan(0, (y1 - y0) * rowLength).Fill(Half);
            int low = y0, high = y0; // the output rows that take the current input row
            for (var r = down.First[y0]; r < down.End(y1 - 1); r++)
            {
                while (down.End(low) <= r) low++;
                while (high < y1 && down.First[high] <= r) high++;
                if (r < height - 1)
                    ResampleRow(from + (nint)r * width * 3, across, row);
                else
                {
                    // ResampleRow reads one byte beyond a pixel; after the last row that byte is not ours.
                    lastRow = ArrayPool<byte>.Shared.Rent(width * 3 + 1);
                    new ReadOnlySpan<byte>(from + (nint)r * width * 3, width * 3).CopyTo(lastRow);
                    fixed (byte* p = lastRow) ResampleRow(p, across, row);
                }
                for (var y = low; y < high; y++)
                    AddScaled(row.AsSpan(0, rowLength), down.Weights[down.Start[y] + r - down.First[y]], sums.AsSpan((y - y0) * rowLength, rowLength));
            }
            var bytes = new Span<byte>(to + (nint)y0 * rowLength, (y1 - y0) * rowLength);
            for (var i = 0; i < bytes.Length; i++) bytes[i] = (byte)Math.Clamp(sums[i] >> Bits, 0, 255);
        }
        finally
        {
            ArrayPool<int>.Shared.Return(sums);
            ArrayPool<int>.Shared.Return(row);
            if (lastRow is not null) ArrayPool<byte>.Shared.Return(lastRow);
        }
    }

    /// <summary>[width, 3] to [outWidth, 3], values from 0 to 255 and one more after the last. Reads one byte beyond the row.</summary>
    private static void ResampleRow(byte* from, Taps taps, int[] to)
    {
        fixed (int* weights = taps.Weights, starts = taps.Start, firsts = taps.First, target = to)
        {
            for (var x = 0; x < taps.Count; x++)
            {
                var sum = Vector128.Create(Half);
                var pixel = from + (nint)firsts[x] * 3;
                for (var k = starts[x]; k < starts[x + 1]; k++, pixel += 3)
                {
                    var bytes = Vector128.CreateScalarUnsafe(*(uint*)pixel).AsByte(); // red, green, blue, and one that is not used
                    sum += Vector128.WidenLower(Vector128.WidenLower(bytes)).AsInt32() * weights[k];
                }
                Vector128.Min(Vector128.Max(sum >> Bits, Vector128<int>.Zero), Vector128.Create(255)).Store(target + x * 3);
            }
        }
    }

    private static void AddScaled(ReadOnlySpan<int> row, int weight, Span<int> sums)
    {
        var i = 0;
        for (var w = new Vector<int>(weight); i <= row.Length - Vector<int>.Count; i += Vector<int>.Count)
            (new Vector<int>(sums[i..]) + new Vector<int>(row[i..]) * w).CopyTo(sums[i..]);
        for (; i < row.Length; i++) sums[i] += row[i] * weight;
    }

    /// <summary>For each output pixel, which input pixels it takes and how much of each.</summary>
    private sealed class Taps
    {
        public readonly int Count;
        public readonly int[] First;   // the first input pixel of each output pixel
        public readonly int[] Start;   // where its weights start; one more marks the end
        public readonly int[] Weights; // sum to 1 << Bits, but for rounding

        public Taps(int inSize, int outSize)
        {
            Count = outSize;
            First = new int[outSize];
            Start = new int[outSize + 1];
            var scale = (double)inSize / outSize;
            var support = Math.Max(scale, 1);
            var steep = 1 / support;
            for (var i = 0; i < outSize; i++)
            {
                var (first, end) = Range(i);
                First[i] = first;
                Start[i + 1] = Start[i] + end - first;
            }
            Weights = new int[Start[outSize]];
            var triangle = new double[2 * (int)Math.Ceiling(support) + 1];
            for (var i = 0; i < outSize; i++)
            {
                var (first, end) = Range(i);
                var centre = (i + 0.5) * scale;
                var total = 0.0;
                for (var x = first; x < end; x++)
                    total += triangle[x - first] = Math.Max(0, 1 - Math.Abs((x - centre + 0.5) * steep));
                for (var x = first; x < end; x++)
                    Weights[Start[i] + x - first] = (int)(0.5 + triangle[x - first] / total * (1 << Bits));
            }

            (int First, int End) Range(int i)
            {
                var centre = (i + 0.5) * scale;
                return (Math.Max(0, (int)(centre - support + 0.5)), Math.Min(inSize, (int)(centre + support + 0.5)));
            }
        }

        public int End(int i) => First[i] + Start[i + 1] - Start[i];
    }
}
