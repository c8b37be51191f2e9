using System.Text;

namespace MambaVL.Images;

/// <summary>What kind of file some bytes begin, by the numbers that files start with.</summary>
internal static class ImageSignature
{
    /// <summary>The name of the format, and whether it is one that is read; (null, false) where nothing is known.</summary>
    public static (string? Name, bool IsRead) Recognise(ReadOnlySpan<byte> data)
    {
        if (data.StartsWith((ReadOnlySpan<byte>)[0xFF, 0xD8, 0xFF])) return ("JPEG", true);
        if (data.StartsWith((ReadOnlySpan<byte>)[0x89, .. "PNG\r\n\x1A\n"u8])) return ("PNG", true);
        if (data.StartsWith("RIFF"u8) && At(data, 8, "WEBP"u8)) return ("WebP", true);
        if (data.StartsWith("GIF87a"u8) || data.StartsWith("GIF89a"u8)) return ("GIF", true);
        if (data.StartsWith("BM"u8)) return ("BMP", true);
        return (Other(data), false);
    }

    private static string? Other(ReadOnlySpan<byte> data)
    {
        if (data.StartsWith("II*\0"u8) || data.StartsWith("MM\0*"u8) || data.StartsWith("II+\0"u8) || data.StartsWith("MM\0+"u8)) return "TIFF";
        if (At(data, 4, "ftyp"u8)) return Brand(data);
        if (data.StartsWith((ReadOnlySpan<byte>)[0, 0, 1, 0])) return "ICO";
        if (At(data, 4, "jP  "u8) || data.StartsWith((ReadOnlySpan<byte>)[0xFF, 0x4F, 0xFF, 0x51])) return "JPEG 2000";
        if (At(data, 4, "JXL "u8) || data.StartsWith((ReadOnlySpan<byte>)[0xFF, 0x0A])) return "JPEG XL";
        if (data.StartsWith("8BPS"u8)) return "Photoshop";
        if (data.StartsWith("%PDF"u8)) return "PDF";
        if (data.StartsWith("PK\x03\x04"u8)) return "ZIP";
        if (data.StartsWith((ReadOnlySpan<byte>)[0x1F, 0x8B])) return "gzip";
        if (data.Length > 2 && data[0] == 'P' && data[1] is >= (byte)'1' and <= (byte)'7' && data[2] is (byte)'\n' or (byte)' ' or (byte)'\r') return "PNM";
        if (data.StartsWith("version https://git-lfs"u8)) return "Git LFS pointer";
        return Markup(data);
    }

    // The box that opens HEIC, AVIF and films names the kind in its next four bytes.
    private static string Brand(ReadOnlySpan<byte> data)
    {
        if (At(data, 8, "avif"u8) || At(data, 8, "avis"u8)) return "AVIF";
        foreach (var brand in (string[])["heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1"])
            if (At(data, 8, Encoding.ASCII.GetBytes(brand))) return "HEIC";
        return "MP4";
    }

    private static string? Markup(ReadOnlySpan<byte> data)
    {
        var start = Encoding.UTF8.GetString(data[..Math.Min(data.Length, 1024)]).TrimStart('\uFEFF').TrimStart();
        if (!start.StartsWith('<')) return null;
        if (start.Contains("<svg", StringComparison.OrdinalIgnoreCase)) return "SVG";
        if (start.Contains("<html", StringComparison.OrdinalIgnoreCase) || start.StartsWith("<!doctype html", StringComparison.OrdinalIgnoreCase)) return "HTML";
        return "XML";
    }

    private static bool At(ReadOnlySpan<byte> data, int offset, ReadOnlySpan<byte> bytes) =>
        data.Length >= offset && data[offset..].StartsWith(bytes);
}
