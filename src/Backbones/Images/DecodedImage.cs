using System.Buffers;

namespace MambaVL.Images;

/// <summary>The order of the bytes of one pixel.</summary>
public enum PixelLayout
{
    /// <summary>Red, green, blue.</summary>
    Rgb,

    /// <summary>Red, green, blue, alpha; the colours are not multiplied by alpha.</summary>
    Rgba,

    /// <summary>Blue, green, red, alpha; the colours are not multiplied by alpha.</summary>
    Bgra,
}

/// <summary>A picture in memory: 8-bit RGB, upright, opaque.</summary>
/// <remarks>
/// JPEG, PNG, WebP, GIF and BMP are read; of an animation, the first frame. The pixels are the ones that Pillow gives for
/// <c>ImageOps.exif_transpose(image).convert("RGB")</c>, with these differences, all where that call has no good answer:
/// whatever is transparent is laid on white, and 16-bit grey keeps its high byte, as 16-bit colour does. As there, colour
/// profiles and gamma are not applied. Of a BMP with 5 or 6 bits a colour, values may differ from Pillow's by 1.
/// The picture holds pooled memory until it is disposed; any number of threads may read it until then.
/// </remarks>
public sealed class DecodedImage : IDisposable
{
    /// <summary>Pixels of the largest picture: three bytes of each fill the largest array.</summary>
    internal const long MostPixels = 0x7FFFFFC7 / 3;

    private byte[]? _pixels;

    private DecodedImage(int width, int height, int orientation, byte[] rented)
    {
        (Width, Height, Orientation, _pixels) = (width, height, orientation, rented);
    }

    /// <summary>Pixels in a row, after the orientation was applied: the width that boxes in pixels refer to.</summary>
    public int Width { get; }

    /// <summary>Rows, after the orientation was applied: the height that boxes in pixels refer to.</summary>
    public int Height { get; }

    /// <summary>The EXIF orientation that was applied, 1 to 8; 1 where the pixels stand as the file stores them.</summary>
    public int Orientation { get; }

    /// <summary>The pixels as [height, width, 3], red, green, blue. Valid until the picture is disposed.</summary>
    /// <exception cref="ObjectDisposedException">The picture was disposed.</exception>
    public ReadOnlySpan<byte> Pixels
    {
        get
        {
            var pixels = _pixels;
            ObjectDisposedException.ThrowIf(pixels is null, this);
            return pixels.AsSpan(0, Width * Height * 3);
        }
    }

    /// <summary>Reads a picture from a file.</summary>
    /// <param name="path">The file.</param>
    /// <param name="options">Limits and orientation; <see cref="ImageDecoderOptions.Default"/> where null.</param>
    /// <returns>The picture; the caller owns it.</returns>
    /// <exception cref="ImageException">The file is no picture of a format that is read, is truncated or corrupt, or is over a limit.</exception>
    /// <exception cref="IOException">The file is absent or cannot be read.</exception>
    /// <exception cref="UnauthorizedAccessException">The file may not be read.</exception>
    public static DecodedImage Decode(string path, ImageDecoderOptions? options = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        if (Directory.Exists(path)) throw new ImageException(path, "found a folder; expected an image file.");
        using var file = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read, bufferSize: 0);
        return Decode(file, options, path);
    }

    /// <summary>Reads a picture from a stream, from its position to its end. The stream stays open.</summary>
    /// <param name="stream">A stream that can be read; it need not seek.</param>
    /// <param name="options">Limits and orientation; <see cref="ImageDecoderOptions.Default"/> where null.</param>
    /// <param name="name">What error messages call the picture.</param>
    /// <returns>The picture; the caller owns it.</returns>
    /// <exception cref="ImageException">The bytes are no picture of a format that is read, are truncated or corrupt, or over a limit.</exception>
    /// <exception cref="ArgumentException">The stream cannot be read.</exception>
    public static DecodedImage Decode(Stream stream, ImageDecoderOptions? options = null, string? name = null)
    {
        ArgumentNullException.ThrowIfNull(stream);
        if (!stream.CanRead) throw new ArgumentException("Found a stream that cannot be read; expected one open for reading.", nameof(stream));
        options ??= ImageDecoderOptions.Default;
        name ??= stream is FileStream file ? file.Name : "stream";
        var data = ReadToEnd(stream, options.MaxBytes, name, out var length);
        try
        {
            return ImageDecoder.Decode(data.AsSpan(0, length), options, name);
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(data);
        }
    }

    /// <summary>Reads a picture from the bytes of a file.</summary>
    /// <param name="data">The whole file.</param>
    /// <param name="options">Limits and orientation; <see cref="ImageDecoderOptions.Default"/> where null.</param>
    /// <param name="name">What error messages call the picture.</param>
    /// <returns>The picture; the caller owns it.</returns>
    /// <exception cref="ImageException">The bytes are no picture of a format that is read, are truncated or corrupt, or over a limit.</exception>
    public static DecodedImage Decode(ReadOnlySpan<byte> data, ImageDecoderOptions? options = null, string? name = null)
    {
        options ??= ImageDecoderOptions.Default;
        name ??= "image data";
        if (data.Length > options.MaxBytes) throw TooManyBytes(name, data.Length, options.MaxBytes);
        return ImageDecoder.Decode(data, options, name);
    }

    /// <summary>Makes a picture of pixels that are in memory already. They are copied; alpha is laid on white.</summary>
    /// <param name="width">Pixels in a row, at least 1.</param>
    /// <param name="height">Rows, at least 1.</param>
    /// <param name="pixels">[height, width, 3 or 4] bytes without gaps between the rows.</param>
    /// <param name="layout">The order of a pixel's bytes.</param>
    /// <returns>The picture; the caller owns it.</returns>
    /// <exception cref="ArgumentException">The number of bytes is not width x height x 3 or 4.</exception>
    /// <exception cref="ArgumentOutOfRangeException">A side is less than 1, there are over 715,827,863 pixels, or the layout is unknown.</exception>
    public static DecodedImage FromPixels(int width, int height, ReadOnlySpan<byte> pixels, PixelLayout layout = PixelLayout.Rgb)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(width, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(height, 1);
        if (!Enum.IsDefined(layout)) throw new ArgumentOutOfRangeException(nameof(layout), layout, "Expected Rgb, Rgba or Bgra.");
        var count = (long)width * height;
        if (count > MostPixels)
            throw new ArgumentOutOfRangeException(nameof(width), $"Found {width} x {height} pixels; expected at most {MostPixels:N0} in all.");
        var channels = layout == PixelLayout.Rgb ? 3 : 4;
        if (pixels.Length != count * channels)
            throw new ArgumentException($"Found {pixels.Length:N0} bytes; expected {count * channels:N0} ({width} x {height} x {channels}).", nameof(pixels));

        var image = Rent(width, height);
        var to = image._pixels.AsSpan(0, (int)count * 3);
        if (layout == PixelLayout.Rgb) pixels.CopyTo(to);
        else PixelConversion.ToRgb(pixels, width, height, to, orientation: 1, opaque: false, swapRedAndBlue: layout == PixelLayout.Bgra);
        return image;
    }

    /// <summary>Gives the memory of the pixels back.</summary>
    public void Dispose()
    {
        if (Interlocked.Exchange(ref _pixels, null) is { } pixels) ArrayPool<byte>.Shared.Return(pixels);
    }

    /// <summary>A picture whose pixels are to be written.</summary>
    internal static DecodedImage Rent(int width, int height, int orientation = 1) =>
        new(width, height, orientation, ArrayPool<byte>.Shared.Rent(width * height * 3));

    /// <summary>The pixels of a picture that <see cref="Rent"/> made, for its maker to fill.</summary>
    internal Span<byte> Writable => _pixels.AsSpan(0, Width * Height * 3);

    private static byte[] ReadToEnd(Stream stream, long most, string name, out int length)
    {
        long expected = 0;
        if (stream.CanSeek)
        {
            expected = Math.Max(0, stream.Length - stream.Position);
            if (expected > most) throw TooManyBytes(name, expected, most);
        }
        // One byte more than announced, so that the read that finds the end has room; a stream that grew or does not seek doubles.
        var data = ArrayPool<byte>.Shared.Rent((int)Math.Min(Array.MaxLength, Math.Max(expected + 1, 1 << 14)));
        try
        {
            length = 0;
            while (true)
            {
                var read = stream.Read(data, length, data.Length - length);
                if (read == 0) return data;
                length += read;
                if (length > most) throw TooManyBytes(name, null, most);
                if (length < data.Length) continue;
                var larger = ArrayPool<byte>.Shared.Rent((int)Math.Min(Array.MaxLength, 2L * length));
                data.AsSpan(0, length).CopyTo(larger);
                ArrayPool<byte>.Shared.Return(data);
                data = larger;
            }
        }
        catch
        {
            ArrayPool<byte>.Shared.Return(data);
            throw;
        }
    }

    private static ImageException TooManyBytes(string name, long? found, long most) => new(name,
        $"found {(found is { } n ? $"{n:N0}" : "more")} bytes; expected at most {most:N0} ({nameof(ImageDecoderOptions)}.{nameof(ImageDecoderOptions.MaxBytes)}).");
}
