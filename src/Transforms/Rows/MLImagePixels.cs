using System.Buffers;
using MambaVL.Images;
using Microsoft.ML.Data;

namespace MambaVL.Transforms;

/// <summary>The pixels of an image that ML.NET decoded.</summary>
internal static class MLImagePixels
{
    /// <summary>A copy, transparency laid on white; the caller owns it.</summary>
    /// <exception cref="ImageException">There are more pixels than allowed.</exception>
    public static DecodedImage Read(MLImage image, long maxPixels)
    {
        (int width, int height) = (image.Width, image.Height);
        var pixels = (long)width * height;
        if (pixels > maxPixels)
            throw new ImageException("image column", $"found {width} x {height} = {pixels:N0} pixels; expected at most {maxPixels:N0} ({nameof(ImageStepOptions)}.{nameof(ImageStepOptions.Images)}.MaxPixels).");
        var rgb = ArrayPool<byte>.Shared.Rent(checked((int)pixels * 3));
        try
        {
            ToRgb(image.Pixels, rgb, swap: image.PixelFormat == MLPixelFormat.Bgra32);
            return DecodedImage.FromPixels(width, height, rgb.AsSpan(0, (int)pixels * 3));
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(rgb);
        }
    }

    // MLImage has its colours multiplied by alpha; what is left to 255 is the white that the image is laid on.
    private static void ToRgb(ReadOnlySpan<byte> pixels, Span<byte> rgb, bool swap)
    {
        int red = swap ? 2 : 0, blue = 2 - red;
        for (int from = 0, to = 0; from < pixels.Length; from += 4, to += 3)
        {
            var white = 255 - pixels[from + 3];
            rgb[to] = (byte)Math.Min(255, pixels[from + red] + white);
            rgb[to + 1] = (byte)Math.Min(255, pixels[from + 1] + white);
            rgb[to + 2] = (byte)Math.Min(255, pixels[from + blue] + white);
        }
    }
}
