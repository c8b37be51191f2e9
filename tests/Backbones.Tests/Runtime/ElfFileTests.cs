using System.Buffers.Binary;
using System.Text;
using CsCheck;

namespace MambaVL.Tests;

public class ElfFileTests
{
    /// <summary>TorchSharp's own library, or (on another system) the smallest library made here.</summary>
    private static readonly byte[] Library = File.Exists(ProbeApp.Binding) ? File.ReadAllBytes(ProbeApp.Binding) : SmallElf.Make();

    [SkippableFact]
    public void ReadsTorchSharpsLibraryAsTheLoaderDoes()
    {
        Skip.IfNot(File.Exists(ProbeApp.Binding), "the native package for Linux is not here");
        var elf = Read(Library);
        elf.SoName.Should().Be("libLibTorchSharp.so");
        elf.Needed.Should().Contain(["libtorch.so", "libc10.so", "libtorch_cpu.so", "libstdc++.so.6", "libc.so.6"]);
        var needs = elf.VersionNeeds();
        var newest = needs.Should().ContainSingle(n => n.Version == "GLIBCXX_3.4.32").Subject;
        newest.File.Should().Be("libstdc++.so.6");
        newest.Weak.Should().BeFalse();
        elf.RelocatedSymbols(newest.Index).Should().BeEmpty("nothing calls it: that is why the patch is safe");
        elf.RelocatedSymbols(needs.First(n => n.Version == "GLIBCXX_3.4.11").Index).Should().Contain("_ZNSt18condition_variable10notify_oneEv");
    }

    [SkippableFact]
    public void ReadsWhatTheSystemsLibrariesProvide()
    {
        Skip.IfNot(OperatingSystem.IsLinux(), "Linux only");
        using var stream = File.OpenRead(Runtime.Describe().StandardLibrary!);
        new ElfFile(stream).VersionDefinitions().Should().Contain(["GLIBCXX_3.4", "GLIBCXX_3.4.11", "CXXABI_1.3"]);
    }

    [Fact]
    public void ReadsASmallLibrary()
    {
        var elf = Read(SmallElf.Make());
        elf.Machine.Should().Be(ElfFile.X64);
        elf.SoName.Should().Be("libsmall.so");
        elf.Needed.Should().Equal("libstdc++.so.6");
        elf.VersionNeeds().Select(n => (n.File, n.Version, n.Index, n.Weak)).Should().Equal(("libstdc++.so.6", "OLD_1", 2, false), ("libstdc++.so.6", "NEW_2", 3, false));
        elf.VersionDefinitions().Should().Equal("libsmall.so");
        elf.RelocatedSymbols(2).Should().Equal("used");
        elf.RelocatedSymbols(3).Should().BeEmpty();
    }

    [Theory]
    [InlineData(0, 0x00, "signature")]
    [InlineData(4, 1, "64-bit")]
    [InlineData(5, 2, "little-endian")]
    [InlineData(16, 2, "shared library")]
    [InlineData(54, 1, "program headers")]
    [InlineData(57, 0xff, "at most")]
    [InlineData(39, 0xff, "outside the file")]
    public void ABadHeaderIsNamed(int offset, byte value, string expected)
    {
        var bytes = SmallElf.Make();
        bytes[offset] = value;
        Reading(bytes).Should().Throw<InvalidDataException>().WithMessage($"*{expected}*");
    }

    [Fact]
    public void AListThatLeadsBackToItselfEnds()
    {
        // The next-entry offset of the first needed version wraps to a step that never ends; the count says 65535.
        var bytes = SmallElf.Make();
        var needs = Read(bytes).VersionNeeds();
        BinaryPrimitives.WriteUInt16LittleEndian(bytes.AsSpan((int)needs[0].Offset - 16 + 2), ushort.MaxValue);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan((int)needs[1].Offset + 12), uint.MaxValue);
        Reading(bytes).Should().Throw<InvalidDataException>();
    }

    [Fact]
    public void MoreVersionsThanAnyLibraryHasAreRefused()
    {
        const int count = 5_000;
        var small = SmallElf.Make();
        var first = (int)Read(small).VersionNeeds()[0].Offset;
        var bytes = new byte[small.Length + 16 * count];
        small.CopyTo(bytes, 0);
        BinaryPrimitives.WriteInt64LittleEndian(bytes.AsSpan(64 + 32), bytes.Length); // the segment covers the list at the end
        BinaryPrimitives.WriteUInt16LittleEndian(bytes.AsSpan(first - 16 + 2), count);
        BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(first - 16 + 8), small.Length - (first - 16));
        for (var i = 0; i < count; i++)
        {
            var entry = bytes.AsSpan(small.Length + 16 * i, 16);
            small.AsSpan(first, 16).CopyTo(entry);
            BinaryPrimitives.WriteInt32LittleEndian(entry[12..], 16);
        }
        Reading(bytes).Should().Throw<InvalidDataException>().WithMessage("*more than 4096 needed versions*");
    }

    [Fact]
    public void EveryTruncationIsAClearError()
    {
        var bytes = SmallElf.Make();
        for (var length = 0; length < bytes.Length; length++) Reading(bytes[..length]).Should().Throw<InvalidDataException>("only {0} of {1} bytes are there", length, bytes.Length);
    }

    [Fact]
    public void MutationsOfASmallLibraryNeverCrashHangOrAllocate()
    {
        var original = SmallElf.Make();
        Gen.Select(Gen.Int[0, original.Length - 1], Gen.OneOf(Gen.Byte, Gen.OneOfConst<byte>(0, 1, 0x7f, 0x80, 0xff))).Array[1, 6]
            .Sample(edits => Survives(original, edits), iter: 20_000, threads: 1);
    }

    [Fact]
    public void MutationsOfARealLibraryNeverCrashHangOrAllocate()
    {
        // Where the structures lie: both ends of the headers, the dynamic segment, the version lists, the symbol tables.
        var places = new List<int>(Enumerable.Range(0, 640));
        places.AddRange(Read(Library).VersionNeeds().SelectMany(n => Enumerable.Range((int)n.Offset - 16, 32)));
        places.AddRange(Enumerable.Range(0, Library.Length / 997).Select(i => i * 997));
        Gen.Select(Gen.Int[0, places.Count - 1].Select(i => places[i]), Gen.Byte).Array[1, 4]
            .Sample(edits => Survives(Library, edits), iter: 400, threads: 1);
    }

    private static void Survives(byte[] original, (int At, byte Value)[] edits)
    {
        var undo = edits.Select(e => (e.At, original[e.At])).ToArray();
        var before = GC.GetAllocatedBytesForCurrentThread();
        try
        {
            foreach (var (at, value) in edits) original[at] = value;
            ReadAll(original);
        }
        catch (InvalidDataException)
        {
        }
        finally
        {
            foreach (var (at, value) in undo.Reverse()) original[at] = value;
        }
        (GC.GetAllocatedBytesForCurrentThread() - before).Should().BeLessThan(32 << 20);
    }

    private static ElfFile Read(byte[] bytes) => new(new MemoryStream(bytes, writable: false));

    private static void ReadAll(byte[] bytes)
    {
        var elf = Read(bytes);
        elf.VersionDefinitions();
        foreach (var need in elf.VersionNeeds().DistinctBy(n => n.Index).Take(4)) elf.RelocatedSymbols(need.Index);
    }

    private static Action Reading(byte[] bytes) => () => ReadAll(bytes);
}

/// <summary>A shared library of a few hundred bytes: it needs two versions of another one, and calls a symbol of the first.</summary>
internal static class SmallElf
{
    public static byte[] Make()
    {
        var strings = new List<byte> { 0 };
        int Text(string text)
        {
            var at = strings.Count;
            strings.AddRange(Encoding.ASCII.GetBytes(text + "\0"));
            return at;
        }
        int library = Text("libstdc++.so.6"), self = Text("libsmall.so"), old = Text("OLD_1"), newer = Text("NEW_2"), used = Text("used"), listed = Text("listed");

        const int header = 64, segment = 56, dynamicAt = header + 2 * segment, entries = 13;
        const int symbolsAt = dynamicAt + 16 * entries, versionsAt = symbolsAt + 3 * 24, relocationsAt = versionsAt + 8, needsAt = relocationsAt + 24, definitionsAt = needsAt + 48, stringsAt = definitionsAt + 28;
        var bytes = new byte[stringsAt + strings.Count];
        strings.CopyTo(bytes, stringsAt);

        Encoding.ASCII.GetBytes("\u007fELF").CopyTo(bytes, 0);
        bytes[4] = 2; bytes[5] = 1; bytes[6] = 1;
        U16(16, 3); U16(18, ElfFile.X64); U32(20, 1); U64(32, header); U16(52, header); U16(54, segment); U16(56, 2);
        Segment(header, 1, 0, bytes.Length);
        Segment(header + segment, 2, dynamicAt, 16 * entries);

        (int Tag, int Value)[] dynamic = [(1, library), (14, self), (5, stringsAt), (10, strings.Count), (6, symbolsAt), (0x6ffffff0, versionsAt), (23, relocationsAt), (2, 24),
            (0x6ffffffe, needsAt), (0x6fffffff, 1), (0x6ffffffc, definitionsAt), (0x6ffffffd, 1), (0, 0)];
        for (var i = 0; i < entries; i++)
        {
            U64(dynamicAt + 16 * i, dynamic[i].Tag);
            U64(dynamicAt + 16 * i + 8, dynamic[i].Value);
        }
        U32(symbolsAt + 24, used); U32(symbolsAt + 48, listed);
        U16(versionsAt + 2, 2); U16(versionsAt + 4, 3);
        U32(relocationsAt + 8, 7); U32(relocationsAt + 12, 1);
        U16(needsAt, 1); U16(needsAt + 2, 2); U32(needsAt + 4, library); U32(needsAt + 8, 16);
        U16(needsAt + 16 + 6, 2); U32(needsAt + 16 + 8, old); U32(needsAt + 16 + 12, 16);
        U16(needsAt + 32 + 6, 3); U32(needsAt + 32 + 8, newer);
        U16(definitionsAt, 1); U16(definitionsAt + 6, 1); U32(definitionsAt + 12, 20); U32(definitionsAt + 20, self);
        return bytes;

        void Segment(int at, int type, int offset, int size)
        {
            U32(at, type); U64(at + 8, offset); U64(at + 16, offset); U64(at + 32, size); U64(at + 40, size);
        }
        void U16(int at, int value) => BinaryPrimitives.WriteUInt16LittleEndian(bytes.AsSpan(at), (ushort)value);
        void U32(int at, int value) => BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(at), value);
        void U64(int at, long value) => BinaryPrimitives.WriteInt64LittleEndian(bytes.AsSpan(at), value);
    }
}
