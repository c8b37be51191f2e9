using System.Buffers.Binary;

namespace MambaVL.Images;

/// <summary>The orientation tag of EXIF: how the stored rows and columns are to be turned for display.</summary>
internal static class ExifOrientation
{
    private const int Tag = 0x0112, Short = 3;

    /// <summary>Whether rows become columns.</summary>
    public static bool IsSideways(int orientation) => orientation >= 5;

    /// <summary>Of a PNG's eXIf chunk, which Skia does not look at; 1 where there is none or it is damaged.</summary>
    public static int OfPng(ReadOnlySpan<byte> png)
    {
        for (var rest = png[8..]; rest.Length >= 12;)
        {
            var length = BinaryPrimitives.ReadUInt32BigEndian(rest);
            if (length > rest.Length - 12) return 1;
            if (rest[4..].StartsWith("eXIf"u8)) return OfTiff(rest.Slice(8, (int)length));
            rest = rest[((int)length + 12)..]; // length, type and checksum
        }
        return 1;
    }

    /// <summary>Of the TIFF structure that EXIF data is; 1 where it has no valid tag.</summary>
    public static int OfTiff(ReadOnlySpan<byte> tiff)
    {
        var little = tiff.StartsWith("II*\0"u8);
        if ((!little && !tiff.StartsWith("MM\0*"u8)) || tiff.Length < 8) return 1;
        var directory = little ? BinaryPrimitives.ReadUInt32LittleEndian(tiff[4..]) : BinaryPrimitives.ReadUInt32BigEndian(tiff[4..]);
        if (directory > tiff.Length - 2) return 1;
        var entries = tiff[(int)directory..];
        int count = U16(entries);
        entries = entries[2..];
        for (var i = 0; i < count && entries.Length >= 12; i++, entries = entries[12..])
        {
            if (U16(entries) != Tag || U16(entries[2..]) != Short) continue;
            var value = U16(entries[8..]);
            return value is >= 1 and <= 8 ? value : 1;
        }
        return 1;

        ushort U16(ReadOnlySpan<byte> s) => little ? BinaryPrimitives.ReadUInt16LittleEndian(s) : BinaryPrimitives.ReadUInt16BigEndian(s);
    }
}
