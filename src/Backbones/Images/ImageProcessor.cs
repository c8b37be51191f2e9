using System.Runtime.InteropServices;
using static TorchSharp.torch;

namespace MambaVL.Images;

/// <summary>What a model wants of its pictures.</summary>
public sealed record ImageProcessorOptions
{
    /// <summary>Pixels on a side of the square that a model sees. Default: 336, as in the published checkpoints. From 1 to 16,384.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is outside that range.</exception>
    public int ImageSize
    {
        get;
        init => field = value is >= 1 and <= 16_384 ? value : throw new ArgumentOutOfRangeException(nameof(value), value,
            $"Found an image size of {value}; expected one from 1 to 16,384.");
    } = 336;

    /// <summary>What is taken off red, green and blue, each from 0 to 1. Default: CLIP's.</summary>
    /// <exception cref="ArgumentException">There are not three finite values.</exception>
    public IReadOnlyList<float> Mean
    {
        get;
        init => field = Three(value, positive: false);
    } = [0.48145466f, 0.4578275f, 0.40821073f];

    /// <summary>What red, green and blue are divided by after that. Default: CLIP's.</summary>
    /// <exception cref="ArgumentException">There are not three finite values above 0.</exception>
    public IReadOnlyList<float> Std
    {
        get;
        init => field = Three(value, positive: true);
    } = [0.26862954f, 0.26130258f, 0.27577711f];

    // A copy, so that the caller's array can change and these options cannot.
    private static float[] Three(IReadOnlyList<float> value, bool positive)
    {
        ArgumentNullException.ThrowIfNull(value);
        if (value.Count != 3 || value.Any(v => !float.IsFinite(v) || (positive && v <= 0)))
        {
            throw new ArgumentException($"Found [{string.Join(", ", value)}]; expected three finite values"
                + (positive ? " above 0" : "") + " for red, green and blue.", nameof(value));
        }
        return [.. value];
    }
}

/// <summary>Turns pictures into what a vision encoder takes.</summary>
/// <remarks>
/// The picture is squashed to the square: resized to image size x image size whatever its shape, neither cropped nor
/// padded, as the authors do. So a box in fractions of the square is the same box in fractions of the picture. The resize
/// is Pillow's <c>Image.resize(size, BILINEAR)</c>, bit for bit; then each value is divided by 255, less the mean,
/// over the standard deviation. Any number of threads may use one processor.
/// </remarks>
public sealed class ImageProcessor
{
    private readonly float[] _values; // (3, 256): what each byte of each colour becomes

    /// <summary>Makes a processor.</summary>
    /// <param name="options">Size, mean and standard deviation; the defaults where null.</param>
    public ImageProcessor(ImageProcessorOptions? options = null)
    {
        Options = options ?? new();
        _values = new float[3 * 256];
        for (var c = 0; c < 3; c++)
            for (var v = 0; v < 256; v++)
                _values[c * 256 + v] = (v / 255f - Options.Mean[c]) / Options.Std[c];
    }

    /// <summary>Size, mean and standard deviation.</summary>
    public ImageProcessorOptions Options { get; }

    /// <summary>The picture squashed to the square: [size, size, 3] bytes, red, green, blue.</summary>
    /// <param name="image">The picture; stays the caller's.</param>
    /// <exception cref="ObjectDisposedException">The picture was disposed.</exception>
    public byte[] Resize(DecodedImage image)
    {
        ArgumentNullException.ThrowIfNull(image);
        var size = Options.ImageSize;
        var square = GC.AllocateUninitializedArray<byte>(checked(size * size * 3));
        PillowBilinear.Resize(image.Pixels, image.Width, image.Height, square, size, size);
        return square;
    }

    /// <summary>The pixel values of one picture.</summary>
    /// <param name="image">The picture; stays the caller's.</param>
    /// <returns>[3, size, size], float32, on the CPU. The caller owns it.</returns>
    /// <exception cref="ObjectDisposedException">The picture was disposed.</exception>
    public Tensor Process(DecodedImage image)
    {
        using var batch = ProcessBatch([image]);
        return batch.squeeze(0);
    }

    /// <summary>The pixel values of several pictures, of whatever sizes.</summary>
    /// <param name="images">At least one picture; they stay the caller's.</param>
    /// <returns>[b, 3, size, size], float32, on the CPU. The caller owns it. A picture's values do not depend on the others.</returns>
    /// <exception cref="ArgumentException">There is no picture.</exception>
    /// <exception cref="ObjectDisposedException">A picture was disposed.</exception>
    public Tensor ProcessBatch(IReadOnlyList<DecodedImage> images)
    {
        ArgumentNullException.ThrowIfNull(images);
        if (images.Count == 0) throw new ArgumentException("Found no picture; expected at least one.", nameof(images));
        var area = Options.ImageSize * Options.ImageSize;
        // Written through bytes, whose length is an int: so each picture is a view of its own.
        var values = empty(images.Count, 3, Options.ImageSize, Options.ImageSize, ScalarType.Float32);
        try
        {
            for (var i = 0; i < images.Count; i++)
            {
                var square = Resize(images[i]);
                for (var c = 0; c < 3; c++)
                {
                    using var plane = values[i, c]; // (h, w)
                    var to = MemoryMarshal.Cast<byte, float>(plane.bytes);
                    var from = _values.AsSpan(c * 256, 256);
                    for (int p = 0, b = c; p < area; p++, b += 3) to[p] = from[square[b]];
                }
            }
            return values;
        }
        catch
        {
            values.Dispose();
            throw;
        }
    }
}
