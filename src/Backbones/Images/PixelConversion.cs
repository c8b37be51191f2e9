using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace MambaVL.Images;

/// <summary>Four bytes a pixel to three: alpha laid on white, the picture turned upright.</summary>
internal static unsafe class PixelConversion
{
    private const int Tile = 32; // pixels on a side of what is turned at once, so that columns stay in the cache

    /// <summary>[height, width, 4], straight alpha, to [h, w, 3], where h and w have changed places if the orientation is sideways.</summary>
    public static void ToRgb(ReadOnlySpan<byte> pixels, int width, int height, Span<byte> rgb, int orientation, bool opaque, bool swapRedAndBlue)
    {
        fixed (byte* from = pixels) ToRgb(from, width, height, rgb, orientation, opaque, swapRedAndBlue);
    }

    /// <inheritdoc cref="ToRgb(ReadOnlySpan{byte}, int, int, Span{byte}, int, bool, bool)"/>
    public static void ToRgb(byte* pixels, int width, int height, Span<byte> rgb, int orientation, bool opaque, bool swapRedAndBlue)
    {
        // Where the upright picture's first pixel is stored, and how far apart its columns and rows lie, in pixels.
        var (first, column, row) = Walk(width, height, orientation);
        var (w, h) = ExifOrientation.IsSideways(orientation) ? (height, width) : (width, height);
        fixed (byte* to = rgb)
        {
            if (opaque && orientation == 1 && !swapRedAndBlue)
            {
                DropFourth(pixels, to, (nuint)width * (nuint)height);
                return;
            }
            for (var y0 = 0; y0 < h; y0 += Tile)
            for (var x0 = 0; x0 < w; x0 += Tile)
            for (var y = y0; y < Math.Min(h, y0 + Tile); y++)
            {
                var source = pixels + (first + y * row + x0 * column) * 4;
                var target = to + ((nint)y * w + x0) * 3;
                for (var n = Math.Min(Tile, w - x0); n > 0; n--, source += column * 4, target += 3)
                {
                    var a = opaque ? (byte)255 : source[3];
                    var (r, b) = swapRedAndBlue ? (source[2], source[0]) : (source[0], source[2]);
                    (target[0], target[1], target[2]) = a == 255
                        ? (r, source[1], b)
                        : (OnWhite(r, a), OnWhite(source[1], a), OnWhite(b, a));
                }
            }
        }
    }

    private static (nint First, nint Column, nint Row) Walk(nint w, nint h, int orientation) => orientation switch
    {
        2 => (w - 1, -1, w),
        3 => (w * h - 1, -1, -w),
        4 => (w * (h - 1), 1, -w),
        5 => (0, w, 1),
        6 => (w * (h - 1), -w, 1),
        7 => (w * h - 1, -w, -1),
        8 => (w - 1, w, -1),
        _ => (0, 1, w),
    };

    // (c a + 255 (255 - a)) / 255 rounded to the nearest whole number; x + x/256 in place of the division is exact here.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static byte OnWhite(int c, int a)
    {
        var x = (255 - c) * a + 128;
        return (byte)(255 - ((x + (x >> 8)) >> 8));
    }

    private static void DropFourth(byte* from, byte* to, nuint count)
    {
        var order = Vector128.Create((byte)0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 255, 255, 255, 255);
        // Four pixels at a time; the four bytes stored too many are written over by the next pixels.
        for (; count >= 6; count -= 4, from += 16, to += 12) Vector128.Shuffle(Vector128.Load(from), order).Store(to);
        for (; count > 0; count--, from += 4, to += 3) (to[0], to[1], to[2]) = (from[0], from[1], from[2]);
    }
}
