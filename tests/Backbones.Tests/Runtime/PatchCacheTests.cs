namespace MambaVL.Tests;

public sealed class PatchCacheTests : IDisposable
{
    private readonly DirectoryInfo _root = Directory.CreateTempSubdirectory("mambavl-tests-");

    public void Dispose() => _root.Delete(recursive: true);

    [SkippableFact]
    public void TheFolderFollowsTheVariables()
    {
        Skip.If(OperatingSystem.IsWindows(), "paths of Unix");
        Folder(("MAMBAVL_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")).Should().Be("/a");
        Folder(("XDG_CACHE_HOME", "/b"), ("HOME", "/c")).Should().Be("/b/mambavl");
        Folder(("XDG_CACHE_HOME", "relative"), ("HOME", "/c")).Should().Be("/c/.cache/mambavl");
        Folder(("MAMBAVL_CACHE", ""), ("HOME", "/c")).Should().Be("/c/.cache/mambavl");
    }

    [Fact]
    public void TheNameHoldsTheHashAndTheVersions() =>
        Path.GetFileName(PatchCache.FileFor(_root.FullName, "abc"u8, ["V_2", "V_1"]))
            .Should().Be("libLibTorchSharp-ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad-V_1-V_2.so");

    [Fact]
    public void AFileIsWrittenWholeAndOtherwiseLeftAlone()
    {
        var file = PatchCache.FileFor(_root.FullName, "abc"u8, ["V_1"]);
        PatchCache.Put(file, "patched"u8);
        File.ReadAllBytes(file).Should().Equal("patched"u8.ToArray());
        var written = File.GetLastWriteTimeUtc(file);
        PatchCache.Put(file, "patched"u8);
        File.GetLastWriteTimeUtc(file).Should().Be(written);
        PatchCache.Put(file, "changed"u8);
        File.ReadAllBytes(file).Should().Equal("changed"u8.ToArray());
        Directory.GetFiles(Path.GetDirectoryName(file)!).Should().ContainSingle();
    }

    [SkippableFact]
    public void TheFolderIsTheUsersAlone()
    {
        Skip.If(OperatingSystem.IsWindows(), "modes of Unix");
        var file = PatchCache.FileFor(_root.FullName, "abc"u8, ["V_1"]);
        PatchCache.Put(file, "patched"u8);
        if (!OperatingSystem.IsWindows())
            File.GetUnixFileMode(Path.GetDirectoryName(file)!).Should().Be(UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
    }

    [Fact]
    public void AFolderInTheFilesPlaceIsAnErrorAndLeavesNothingBehind()
    {
        var file = PatchCache.FileFor(_root.FullName, "abc"u8, ["V_1"]);
        Directory.CreateDirectory(file);
        FluentActions.Invoking(() => PatchCache.Put(file, "patched"u8)).Should().Throw<Exception>().Which.Should().Match(e => e is IOException || e is UnauthorizedAccessException);
        Directory.GetFiles(Path.GetDirectoryName(file)!).Should().BeEmpty();
    }

    private static string? Folder(params (string Name, string Value)[] environment) =>
        PatchCache.Folder(name => environment.FirstOrDefault(e => e.Name == name).Value);
}
