namespace MambaVL.Tests;

public class VersionPatchTests
{
    [Fact]
    public void NothingIsMissingWhereTheSystemProvidesIt() =>
        Missing(SmallElf.Make(), "OLD_1", "NEW_2").Should().BeEmpty();

    [Fact]
    public void ALibraryThatIsNotOnTheSystemIsNotChecked()
    {
        using var stream = new MemoryStream(SmallElf.Make());
        VersionPatch.Missing(new ElfFile(stream), _ => null).Should().BeEmpty();
    }

    [Fact]
    public void AVersionThatNothingCallsBecomesOptionalByItsFlagAlone()
    {
        var original = SmallElf.Make();
        var before = original.ToArray();
        var (patch, why) = Apply(original, "OLD_1");

        why.Should().BeEmpty();
        patch!.Versions.Should().Equal("NEW_2");
        original.Should().Equal(before, "the original stays");
        var changed = Enumerable.Range(0, original.Length).Where(i => original[i] != patch.Bytes[i]).ToList();
        using var stream = new MemoryStream(original);
        changed.Should().Equal((int)new ElfFile(stream).VersionNeeds().Single(n => n.Version == "NEW_2").Offset + 4);
        Missing(patch.Bytes, "OLD_1").Should().BeEmpty();
    }

    [Fact]
    public void AVersionThatIsCalledIsNotTouched()
    {
        var (patch, why) = Apply(SmallElf.Make(), "NEW_2");
        patch.Should().BeNull();
        why.Should().Contain("OLD_1").And.Contain("used");
    }

    [SkippableFact]
    public void ThePatchedCopyOfThisSystemDiffersInTheFlagOnly()
    {
        var report = Runtime.Describe();
        Skip.If(report.PatchedCopy is null || !File.Exists(report.PatchedCopy), "nothing is patched here");
        Skip.IfNot(report.Patches.Count == 1, "this system is older than the one that the test speaks of");
        byte[] original = File.ReadAllBytes(report.BindingFile!), copy = File.ReadAllBytes(report.PatchedCopy!);
        copy.Length.Should().Be(original.Length);
        using var stream = new MemoryStream(original);
        var offset = new ElfFile(stream).VersionNeeds().Single(n => n.Version == "GLIBCXX_3.4.32").Offset;
        Enumerable.Range(0, original.Length).Where(i => original[i] != copy[i]).Should().Equal((int)offset + 4);
        (original[offset + 4] ^ copy[offset + 4]).Should().Be(ElfFile.WeakFlag);
    }

    private static IReadOnlyList<VersionNeed> Missing(byte[] bytes, params string[] provided)
    {
        using var stream = new MemoryStream(bytes);
        return VersionPatch.Missing(new ElfFile(stream), _ => provided.ToHashSet());
    }

    private static (VersionPatch.Result? Patch, string Why) Apply(byte[] bytes, params string[] provided)
    {
        using var stream = new MemoryStream(bytes);
        var elf = new ElfFile(stream);
        return (VersionPatch.TryApply(bytes, elf, VersionPatch.Missing(elf, _ => provided.ToHashSet()), out var why), why);
    }
}
