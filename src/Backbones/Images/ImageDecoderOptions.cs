namespace MambaVL.Images;

/// <summary>How pictures are read, and how large they may be.</summary>
public sealed record ImageDecoderOptions
{
    /// <summary>What is used where no options are given.</summary>
    public static ImageDecoderOptions Default { get; } = new();

    /// <summary>Turns the picture as its EXIF orientation says, so that it is as a viewer shows it. Default: true.</summary>
    public bool ApplyOrientation { get; init; } = true;

    /// <summary>The most pixels (width x height) that a header may announce. A larger picture is refused before a
    /// pixel is decoded. Decoding takes about 7 bytes a pixel at its peak, 13 for a progressive JPEG.
    /// Default: 178,956,970, the size at which Pillow refuses to open a file as a decompression bomb. From 1 to 715,827,863.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is outside that range.</exception>
    public long MaxPixels
    {
        get;
        init => field = value is >= 1 and <= DecodedImage.MostPixels ? value : throw new ArgumentOutOfRangeException(nameof(value), value,
            $"Found a pixel limit of {value:N0}; expected one from 1 to {DecodedImage.MostPixels:N0}.");
    } = 178_956_970;

    /// <summary>The most bytes that a file or stream may have. Default: 536,870,912 (512 MiB), what the default of
    /// <see cref="MaxPixels"/> takes uncompressed. From 1 to 2,147,483,591.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is outside that range.</exception>
    public long MaxBytes
    {
        get;
        init => field = value >= 1 && value <= Array.MaxLength ? value : throw new ArgumentOutOfRangeException(nameof(value), value,
            $"Found a limit of {value:N0} bytes; expected one from 1 to {Array.MaxLength:N0}.");
    } = 512L << 20;
}
