using System.Buffers.Binary;
using System.Text;

namespace MambaVL.Checkpoints;

/// <summary>Where the entries of a zip file lie. Only stored (uncompressed) entries are accepted, as torch.save writes
/// them, so that each one is a range of the file.</summary>
/// <remarks>System.IO.Compression has no public way to an entry's offset. Layout: APPNOTE.TXT 6.3, zip64 included.</remarks>
internal static class ZipDirectory
{
    public readonly record struct Range(long Offset, long Length);

    private const int EndSize = 22, LocatorSize = 20, End64Size = 56, CentralSize = 46, LocalSize = 30;
    private const int MaxDirectory = 100_000_000;

    /// <summary>The range of one entry; what the others are does not matter.</summary>
    public static Range Find(MappedFile file, string name)
        => Read(file, name).TryGetValue(name, out var range) ? range : throw Bad(file, $"it has no entry {CheckpointException.Quote(name)}.");

    /// <summary>The range of each entry, by name.</summary>
    public static Dictionary<string, Range> Read(MappedFile file) => Read(file, null);

    private static Dictionary<string, Range> Read(MappedFile file, string? only)
    {
        var (offset, size, count) = FindDirectory(file);
        if (size > MaxDirectory) throw Bad(file, $"its directory is {size} bytes long; at most {MaxDirectory} are accepted.");
        if (count > size / CentralSize) throw Bad(file, $"{count} entries do not fit into a directory of {size} bytes.");
        var directory = new byte[size];
        file.Read(offset, directory);

        var entries = new Dictionary<string, Range>(only is null ? (int)count : 1);
        var at = 0;
        for (long i = 0; i < count; i++)
        {
            if (size - at < CentralSize || U32(directory, at) != 0x02014b50) throw Bad(file, $"entry {i} of its directory is damaged.");
            int nameLength = U16(directory, at + 28), extraLength = U16(directory, at + 30), commentLength = U16(directory, at + 32);
            if (size - at < CentralSize + nameLength + extraLength + commentLength) throw Bad(file, $"entry {i} of its directory is cut off.");
            var name = Encoding.UTF8.GetString(directory, at + CentralSize, nameLength);
            if (only is null || name == only)
            {
                var range = ReadEntry(file, directory.AsSpan(at, CentralSize + nameLength + extraLength), name, offset,
                    only is null ? TorchArchive.SaveAgain : "Store it.");
                if (!entries.TryAdd(name, range)) throw Bad(file, $"the entry {CheckpointException.Quote(name)} is there twice.");
            }
            at += CentralSize + nameLength + extraLength + commentLength;
        }
        CheckOverlaps(file, entries);
        return entries;
    }

    private static (long Offset, long Size, long Count) FindDirectory(MappedFile file)
    {
        // The end record is the last thing in the file but for a comment of at most 65535 bytes.
        var tailLength = (int)Math.Min(file.Length, EndSize + ushort.MaxValue);
        var tail = new byte[tailLength];
        file.Read(file.Length - tailLength, tail);
        var at = tailLength - EndSize;
        while (at >= 0 && !(U32(tail, at) == 0x06054b50 && at + EndSize + U16(tail, at + 20) == tailLength)) at--;
        if (at < 0) throw Bad(file, "it has no end record: the file is cut off, or is no zip file.");

        long offset = U32(tail, at + 16), size = U32(tail, at + 12), count = U16(tail, at + 10);
        long endOffset = file.Length - tailLength + at;
        if (U16(tail, at + 4) is not (0 or ushort.MaxValue) || U16(tail, at + 8) != count) throw Bad(file, "it is one part of several.");
        if (offset == uint.MaxValue || size == uint.MaxValue || count == ushort.MaxValue)
        {
            if (endOffset < LocatorSize) throw Bad(file, "its zip64 locator is missing.");
            Span<byte> end64 = stackalloc byte[End64Size];
            var locator = end64[..LocatorSize];
            file.Read(endOffset - LocatorSize, locator);
            var end64Offset = (long)U64(locator, 8);
            if (U32(locator, 0) != 0x07064b50) throw Bad(file, "its zip64 locator is missing.");
            if (end64Offset < 0 || end64Offset > endOffset - LocatorSize - End64Size) throw Bad(file, "its zip64 locator points outside the file.");
            file.Read(end64Offset, end64);
            if (U32(end64, 0) != 0x06064b50) throw Bad(file, "its zip64 end record is damaged.");
            if (U32(end64, 16) != 0 || U32(end64, 20) != 0) throw Bad(file, "it is one part of several.");
            (count, size, offset) = ((long)U64(end64, 32), (long)U64(end64, 40), (long)U64(end64, 48));
            endOffset = end64Offset;
        }
        if (offset < 0 || size < 0 || count < 0 || offset > endOffset || size > endOffset - offset) throw Bad(file, "its directory lies outside the file.");
        return (offset, size, count);
    }

    private static Range ReadEntry(MappedFile file, ReadOnlySpan<byte> central, string name, long directoryOffset, string hint)
    {
        int flags = U16(central, 8), method = U16(central, 10), nameLength = U16(central, 28);
        if ((flags & 0x2041) != 0) throw Bad(file, $"the entry {CheckpointException.Quote(name)} is encrypted.");
        if (method != 0)
            throw Bad(file, $"the entry {CheckpointException.Quote(name)} is compressed (method {method}); only what is stored as it is can be read in place. {hint}");
        long stored = U32(central, 20), length = U32(central, 24), local = U32(central, 42);
        ReadZip64(file, central[(CentralSize + nameLength)..], name, ref length, ref stored, ref local);
        if (stored != length) throw Bad(file, $"the entry {CheckpointException.Quote(name)} is stored, yet has {stored} bytes in the file and {length} outside.");

        if (local < 0 || local > directoryOffset - LocalSize) throw Bad(file, $"the entry {CheckpointException.Quote(name)} starts outside the file.");
        Span<byte> header = stackalloc byte[LocalSize];
        file.Read(local, header);
        if (U32(header, 0) != 0x04034b50 || U16(header, 8) != 0) throw Bad(file, $"the entry {CheckpointException.Quote(name)} has a damaged header.");
        var start = local + LocalSize + U16(header, 26) + U16(header, 28);
        if (length < 0 || start > directoryOffset || length > directoryOffset - start)
            throw Bad(file, $"the entry {CheckpointException.Quote(name)} of {length} bytes reaches beyond the data.");
        return new Range(start, length);
    }

    // Numbers that do not fit 32 bits stand in an extra field, in this order, only those that are needed.
    private static void ReadZip64(MappedFile file, ReadOnlySpan<byte> extra, string name, ref long length, ref long stored, ref long local)
    {
        var needed = (length == uint.MaxValue ? 1 : 0) + (stored == uint.MaxValue ? 1 : 0) + (local == uint.MaxValue ? 1 : 0);
        if (needed == 0) return;
        while (extra.Length >= 4)
        {
            int id = U16(extra, 0), size = U16(extra, 2);
            if (size > extra.Length - 4) break;
            var body = extra.Slice(4, size);
            extra = extra[(4 + size)..];
            if (id != 1) continue;
            if (body.Length < needed * 8) break;
            if (length == uint.MaxValue) Take(ref length, ref body);
            if (stored == uint.MaxValue) Take(ref stored, ref body);
            if (local == uint.MaxValue) Take(ref local, ref body);
            return;
        }
        throw Bad(file, $"the entry {CheckpointException.Quote(name)} lacks its 64-bit sizes.");

        static void Take(ref long value, ref ReadOnlySpan<byte> body)
        {
            value = (long)U64(body, 0);
            body = body[8..];
        }
    }

    private static void CheckOverlaps(MappedFile file, Dictionary<string, Range> entries)
    {
        long end = 0;
        foreach (var (name, range) in entries.OrderBy(e => e.Value.Offset).ThenBy(e => e.Value.Length))
        {
            if (range.Offset < end) throw Bad(file, $"the entry {CheckpointException.Quote(name)} overlaps another one.");
            end = range.Offset + range.Length;
        }
    }

    private static ushort U16(ReadOnlySpan<byte> b, int at) => BinaryPrimitives.ReadUInt16LittleEndian(b[at..]);

    private static uint U32(ReadOnlySpan<byte> b, int at) => BinaryPrimitives.ReadUInt32LittleEndian(b[at..]);

    private static ulong U64(ReadOnlySpan<byte> b, int at) => BinaryPrimitives.ReadUInt64LittleEndian(b[at..]);

    private static CheckpointException Bad(MappedFile file, string problem) => new(file.Path, null, $"not a valid zip file: {problem}");
}
