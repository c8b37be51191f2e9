using System.Buffers.Binary;
using System.Text;

namespace MambaVL;

/// <summary>One version of another library that a library asks for (an Elf64_Vernaux).</summary>
/// <param name="File">Name of the library that must provide it, such as libstdc++.so.6.</param>
/// <param name="Version">Such as GLIBCXX_3.4.32.</param>
/// <param name="Index">The number under which the symbol table refers to it.</param>
/// <param name="Weak">The loader goes on where the version is missing.</param>
/// <param name="Offset">Where the entry lies in the file: hash (4 bytes), flags (2), index (2), name (4), next (4).</param>
internal sealed record VersionNeed(string File, string Version, int Index, bool Weak, long Offset);

/// <summary>
/// What the Linux loader reads of a 64-bit little-endian shared library: machine, names, needed libraries, symbol versions.
/// Everything goes through the program headers, as in the loader; a library may come without section headers.
/// </summary>
/// <remarks>The file is hostile input. Each offset is checked against the file before it is followed, each list has a
/// limit, nothing is allocated by a size that the file states. The layouts are those of elf.h (System V ABI, and the
/// GNU extension for symbol versions).</remarks>
internal sealed class ElfFile
{
    public const ushort X64 = 62, Arm64 = 183;
    public const ushort WeakFlag = 2;

    private const int LoadSegment = 1, DynamicSegment = 2, SharedObject = 3;
    private const int MaxSegments = 512, MaxDynamicEntries = 16_384, MaxNeeded = 1_024, MaxVersions = 4_096, MaxName = 4_096;

    private const long TagNull = 0, TagNeeded = 1, TagPltRelSize = 2, TagStrings = 5, TagSymbols = 6, TagRela = 7, TagRelaSize = 8,
        TagStringsSize = 10, TagSoName = 14, TagJumpRel = 23, TagVerSym = 0x6ffffff0, TagVerDef = 0x6ffffffc, TagVerDefCount = 0x6ffffffd,
        TagVerNeed = 0x6ffffffe, TagVerNeedCount = 0x6fffffff;

    private readonly Stream _stream;
    private readonly long _length;
    private readonly List<(ulong Address, ulong Offset, ulong Size)> _segments = [];
    private readonly Dictionary<long, ulong> _dynamic = [];
    private readonly List<ulong> _neededNames = [];

    /// <summary>Reads the headers. The stream stays the caller's, and must stay open while this object is used.</summary>
    /// <exception cref="InvalidDataException">Not a 64-bit little-endian ELF shared library, truncated, or malformed.</exception>
    public ElfFile(Stream stream)
    {
        _stream = stream;
        _length = stream.Length;
        ReadHeaders();
        Needed = _neededNames.ConvertAll(Name);
        SoName = _dynamic.TryGetValue(TagSoName, out var soName) ? Name(soName) : null;
    }

    /// <summary>e_machine: <see cref="X64"/>, <see cref="Arm64"/> or another.</summary>
    public ushort Machine { get; private set; }

    /// <summary>The name under which the loader knows the library once it is loaded.</summary>
    public string? SoName { get; }

    /// <summary>Names of the libraries that the loader loads with this one, in its order.</summary>
    public IReadOnlyList<string> Needed { get; }

    /// <summary>A machine's name for messages.</summary>
    public static string MachineName(ushort machine) => machine switch
    {
        X64 => "x64",
        Arm64 => "arm64",
        3 => "x86 (32 bit)",
        40 => "arm (32 bit)",
        21 => "ppc64",
        243 => "riscv",
        _ => $"machine {machine}",
    };

    /// <summary>The versions of other libraries that this one asks for.</summary>
    public IReadOnlyList<VersionNeed> VersionNeeds()
    {
        var needs = new List<VersionNeed>();
        if (!_dynamic.TryGetValue(TagVerNeed, out var address)) return needs;
        var count = Limited("version-needs count", _dynamic.GetValueOrDefault(TagVerNeedCount), MaxVersions);
        Span<byte> entry = stackalloc byte[16];
        for (var i = 0; i < count; i++)
        {
            ReadAt(address, entry);
            if (U16(entry) != 1) throw Bad($"version-needs entry {i} has format {U16(entry)}; 1 was expected");
            int versions = U16(entry[2..]);
            var file = Name(U32(entry[4..]));
            var aux = Add(address, U32(entry[8..]));
            var next = U32(entry[12..]);
            for (var j = 0; j < versions; j++)
            {
                if (needs.Count == MaxVersions) throw Bad($"more than {MaxVersions} needed versions");
                var offset = ReadAt(aux, entry);
                var flags = U16(entry[4..]);
                needs.Add(new VersionNeed(file, Name(U32(entry[8..])), U16(entry[6..]) & 0x7fff, (flags & WeakFlag) != 0, offset));
                var step = U32(entry[12..]);
                if (step == 0) break;
                aux = Add(aux, step);
            }
            if (next == 0) break;
            address = Add(address, next);
        }
        return needs;
    }

    /// <summary>The versions that this library provides.</summary>
    public IReadOnlySet<string> VersionDefinitions()
    {
        var versions = new HashSet<string>();
        if (!_dynamic.TryGetValue(TagVerDef, out var address)) return versions;
        var count = Limited("version-definitions count", _dynamic.GetValueOrDefault(TagVerDefCount), MaxVersions);
        Span<byte> entry = stackalloc byte[20];
        Span<byte> aux = stackalloc byte[8];
        for (var i = 0; i < count; i++)
        {
            ReadAt(address, entry);
            if (U16(entry) != 1) throw Bad($"version definition {i} has format {U16(entry)}; 1 was expected");
            ReadAt(Add(address, U32(entry[12..])), aux);
            versions.Add(Name(U32(aux)));
            var next = U32(entry[16..]);
            if (next == 0) break;
            address = Add(address, next);
        }
        return versions;
    }

    /// <summary>The symbols of one needed version that some relocation refers to: what the library may really call or read.
    /// A symbol that is only listed is not among them.</summary>
    public IReadOnlySet<string> RelocatedSymbols(int versionIndex)
    {
        const int symbolSize = 24, relocationSize = 24;
        var names = new HashSet<string>();
        if (!_dynamic.TryGetValue(TagVerSym, out var versions) || !_dynamic.TryGetValue(TagSymbols, out var symbols)) return names;
        Span<byte> relocation = stackalloc byte[relocationSize];
        Span<byte> version = stackalloc byte[2];
        Span<byte> symbol = stackalloc byte[symbolSize];
        foreach (var (table, sizeTag) in ((long, long)[])[(TagRela, TagRelaSize), (TagJumpRel, TagPltRelSize)])
        {
            if (!_dynamic.TryGetValue(table, out var address)) continue;
            var size = _dynamic.GetValueOrDefault(sizeTag);
            FileOffset(address, size);
            for (ulong at = 0; at + relocationSize <= size; at += relocationSize)
            {
                ReadAt(address + at, relocation);
                ulong index = U32(relocation[12..]);
                if (index == 0) continue;
                ReadAt(Add(versions, 2 * index), version);
                if ((U16(version) & 0x7fff) != versionIndex) continue;
                ReadAt(Add(symbols, symbolSize * index), symbol);
                if (names.Count == MaxVersions) throw Bad($"more than {MaxVersions} symbols of one version");
                names.Add(Name(U32(symbol)));
            }
        }
        return names;
    }

    private void ReadHeaders()
    {
        Span<byte> header = stackalloc byte[64];
        if (_length < header.Length) throw Bad($"it has {_length} bytes, fewer than an ELF header");
        ReadFile(0, header);
        if (!header[..4].SequenceEqual("\u007fELF"u8)) throw Bad("it does not start with the ELF signature");
        Machine = header[5] == 1 ? U16(header[18..]) : BinaryPrimitives.ReadUInt16BigEndian(header[18..]);
        if (header[4] != 2) throw Bad($"it is no 64-bit library ({MachineName(Machine)})");
        if (header[5] != 1) throw Bad($"it is not little-endian ({MachineName(Machine)})");
        if (U16(header[16..]) != SharedObject) throw Bad($"its type is {U16(header[16..])}; a shared library has {SharedObject}");

        const int segmentSize = 56;
        if (U16(header[54..]) != segmentSize) throw Bad($"its program headers have {U16(header[54..])} bytes each; {segmentSize} were expected");
        var segments = Limited("count of program headers", U16(header[56..]), MaxSegments);
        var table = U64(header[32..]);
        (ulong Offset, ulong Size)? dynamic = null;
        Span<byte> segment = stackalloc byte[segmentSize];
        for (var i = 0; i < segments; i++)
        {
            ReadFile(Add(table, (ulong)(i * segmentSize)), segment);
            var type = U32(segment);
            if (type is not (LoadSegment or DynamicSegment)) continue;
            ulong offset = U64(segment[8..]), size = U64(segment[32..]);
            if (Add(offset, size) > (ulong)_length)
                throw Bad($"segment {i} ends at byte {offset + size}, after the end of the file ({_length} bytes): the file is truncated");
            if (type == LoadSegment) _segments.Add((U64(segment[16..]), offset, size));
            else dynamic = (offset, size);
        }
        if (dynamic is not { } found) throw Bad("it has no dynamic segment");
        ReadDynamic(found.Offset, found.Size);
    }

    private void ReadDynamic(ulong offset, ulong size)
    {
        Span<byte> entry = stackalloc byte[16];
        var count = Math.Min(size / 16, MaxDynamicEntries);
        for (ulong i = 0; i < count; i++)
        {
            ReadFile(offset + 16 * i, entry);
            var tag = (long)U64(entry);
            if (tag == TagNull) return;
            if (tag != TagNeeded) _dynamic[tag] = U64(entry[8..]);
            else if (_neededNames.Count == MaxNeeded) throw Bad($"more than {MaxNeeded} needed libraries");
            else _neededNames.Add(U64(entry[8..]));
        }
    }

    private string Name(ulong at)
    {
        if (!_dynamic.TryGetValue(TagStrings, out var strings)) throw Bad("it has no string table");
        var size = _dynamic.GetValueOrDefault(TagStringsSize);
        if (at >= size) throw Bad($"a name at {at} lies outside the string table of {size} bytes");
        Span<byte> chunk = stackalloc byte[64];
        var name = new StringBuilder();
        for (var rest = size - at; rest > 0;)
        {
            var part = chunk[..(int)Math.Min(rest, (ulong)chunk.Length)];
            ReadAt(Add(strings, at), part);
            var end = part.IndexOf((byte)0);
            name.Append(Encoding.Latin1.GetString(end < 0 ? part : part[..end]));
            if (end >= 0) return name.ToString();
            if (name.Length > MaxName) throw Bad($"a name longer than {MaxName} bytes");
            rest -= (ulong)part.Length;
            at += (ulong)part.Length;
        }
        throw Bad("a name without an end");
    }

    /// <summary>Reads what the loader would see at an address; returns its offset in the file.</summary>
    private long ReadAt(ulong address, Span<byte> into)
    {
        var offset = FileOffset(address, (ulong)into.Length);
        ReadFile(offset, into);
        return (long)offset;
    }

    private ulong FileOffset(ulong address, ulong size)
    {
        foreach (var s in _segments)
            if (address >= s.Address && address - s.Address <= s.Size && size <= s.Size - (address - s.Address))
                return s.Offset + (address - s.Address);
        throw Bad($"{size} bytes at address 0x{address:x} lie in no segment of the file");
    }

    private void ReadFile(ulong offset, Span<byte> into)
    {
        if (Add(offset, (ulong)into.Length) > (ulong)_length) throw Bad($"{into.Length} bytes at offset {offset} lie outside the file ({_length} bytes)");
        _stream.Position = (long)offset;
        _stream.ReadExactly(into);
    }

    private static int Limited(string what, ulong value, int limit) =>
        value <= (ulong)limit ? (int)value : throw Bad($"the {what} is {value}; at most {limit} are read");

    private static ulong Add(ulong a, ulong b) => a + b >= a ? a + b : throw Bad("an offset overflows 64 bits");

    private static ushort U16(ReadOnlySpan<byte> bytes) => BinaryPrimitives.ReadUInt16LittleEndian(bytes);

    private static uint U32(ReadOnlySpan<byte> bytes) => BinaryPrimitives.ReadUInt32LittleEndian(bytes);

    private static ulong U64(ReadOnlySpan<byte> bytes) => BinaryPrimitives.ReadUInt64LittleEndian(bytes);

    private static InvalidDataException Bad(string why) => new($"not a usable ELF library: {why}");
}
