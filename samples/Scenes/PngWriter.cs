using SkiaSharp;

namespace MambaVL.Samples.Scenes;

internal static class PngWriter
{
    // Little compression: a scene of flat colours is small in any case, and writing is what takes the time.
    private static readonly SKPngEncoderOptions s_options = new(SKPngEncoderFilterFlags.Sub, 3);

    /// <summary>Writes an opaque picture.</summary>
    /// <param name="path">The file.</param>
    /// <param name="rgbx">[size, size, 4].</param>
    /// <param name="size">Pixels on a side.</param>
    public static unsafe void Write(string path, byte[] rgbx, int size)
    {
        fixed (byte* pixels = rgbx)
        {
            using var picture = new SKPixmap(new SKImageInfo(size, size, SKColorType.Rgb888x, SKAlphaType.Opaque), (nint)pixels);
            using var png = picture.Encode(s_options) ?? throw new InvalidOperationException($"The picture for '{path}' cannot be encoded.");
            using var file = new FileStream(path, FileMode.Create, FileAccess.Write, FileShare.None, bufferSize: 0);
            file.Write(png.AsSpan());
        }
    }
}
