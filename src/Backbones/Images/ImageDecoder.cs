using System.Runtime.InteropServices;
using SkiaSharp;

namespace MambaVL.Images;

/// <summary>From the bytes of a file to pixels. Skia's codecs do the decoding; everything that can be known from the
/// header is checked before they allocate.</summary>
internal static unsafe class ImageDecoder
{
    // A header may lie. No file of these formats holds more pixels a byte than a PNG of 1-bit pixels (8 a byte) at
    // deflate's best (1032 to 1). Of WebP this cannot be said: one colour takes it no bits at all.
    private const int MostPixelsPerByte = 8 * 1032;

    // A progressive JPEG may pass over its pixels any number of times, each pass a few bytes long. Photographs take
    // about ten passes; this bounds the work at 24 passes over the largest picture of the default limit.
    private const long MostPixelPasses = 1L << 32;

    /// <summary>Decodes; the caller owns the picture. <paramref name="name"/> is what errors call it.</summary>
    public static DecodedImage Decode(ReadOnlySpan<byte> data, ImageDecoderOptions options, string name)
    {
        if (data.IsEmpty) throw new ImageException(name, "found no bytes at all; expected a JPEG, PNG, WebP, GIF or BMP picture.");
        var (format, isRead) = ImageSignature.Recognise(data);
        if (!isRead)
        {
            throw new ImageException(name, format is null
                ? $"found {Start(data)}, the start of no image format; expected a JPEG, PNG, WebP, GIF or BMP picture."
                : $"found {format}; expected JPEG, PNG, WebP, GIF or BMP. Convert the picture to one of these.");
        }
        fixed (byte* bytes = data)
        {
            // The codec reads the caller's bytes in place, and is gone before they may move.
            using var wrapped = SKData.Create((IntPtr)bytes, data.Length);
            using var codec = SKCodec.Create(new SKMemoryStream(wrapped), out var result);
            if (codec is null)
                throw new ImageException(name, $"found a {format} header that cannot be read ({result}); the file is truncated or corrupt.");
            CheckSize(codec.Info, data, format!, options, name);
            return Decode(codec, data, format!, options, name);
        }
    }

    private static void CheckSize(SKImageInfo info, ReadOnlySpan<byte> data, string format, ImageDecoderOptions options, string name)
    {
        if (info.Width < 1 || info.Height < 1)
            throw new ImageException(name, $"found a {format} picture of {info.Width} x {info.Height} pixels; expected at least 1 x 1.");
        var pixels = (long)info.Width * info.Height;
        if (pixels > options.MaxPixels)
        {
            throw new ImageException(name, $"found {info.Width} x {info.Height} = {pixels:N0} pixels in the {format} header; expected at most {options.MaxPixels:N0}. "
                + $"If the file is trusted, raise {nameof(ImageDecoderOptions)}.{nameof(ImageDecoderOptions.MaxPixels)}.");
        }
        if (format != "WebP" && pixels / MostPixelsPerByte > data.Length)
        {
            throw new ImageException(name, $"found {info.Width} x {info.Height} pixels in the {format} header of a file of {data.Length:N0} bytes, "
                + "which cannot hold them; the file is truncated or corrupt.");
        }
        if (format == "JPEG" && pixels * CountScans(data) is var passes and > MostPixelPasses)
        {
            throw new ImageException(name, $"found a JPEG whose scans pass over {passes:N0} pixels; expected at most {MostPixelPasses:N0}. "
                + "No camera or editor writes such a file; if it is a picture, save it anew.");
        }
    }

    // Every scan starts with FF DA. Chance finds a few more in metadata, which the bound has room for.
    private static int CountScans(ReadOnlySpan<byte> jpeg) => jpeg.Count((ReadOnlySpan<byte>)[0xFF, 0xDA]);

    private static DecodedImage Decode(SKCodec codec, ReadOnlySpan<byte> data, string format, ImageDecoderOptions options, string name)
    {
        // No colour space in the target: Skia then leaves the values as they are, profile, gamma or not, as Pillow does.
        var info = new SKImageInfo(codec.Info.Width, codec.Info.Height, SKColorType.Rgba8888, SKAlphaType.Unpremul, null);
        var orientation = !options.ApplyOrientation ? 1 : format == "PNG" ? ExifOrientation.OfPng(data) : (int)codec.EncodedOrigin;
        var opaque = codec.Info.AlphaType == SKAlphaType.Opaque;
        var size = (nuint)info.Width * (nuint)info.Height * 4;
        var rgba = NativeMemory.Alloc(size);
        try
        {
            var result = codec.GetPixels(info, (IntPtr)rgba, info.Width * 4, SKCodecOptions.Default);
            if (result != SKCodecResult.Success)
            {
                throw new ImageException(name, $"found a {format} picture of {info.Width} x {info.Height} pixels whose data "
                    + (result == SKCodecResult.IncompleteInput ? "ends too early" : "cannot be decoded")
                    + $" ({result}); the file is truncated or corrupt.");
            }
            var sideways = ExifOrientation.IsSideways(orientation);
            var image = DecodedImage.Rent(sideways ? info.Height : info.Width, sideways ? info.Width : info.Height, orientation);
            PixelConversion.ToRgb((byte*)rgba, info.Width, info.Height, image.Writable, orientation, opaque, swapRedAndBlue: false);
            return image;
        }
        finally
        {
            NativeMemory.Free(rgba);
        }
    }

    private static string Start(ReadOnlySpan<byte> data) =>
        $"{data.Length:N0} bytes that begin with {Convert.ToHexString(data[..Math.Min(data.Length, 8)])}";
}
