namespace MambaVL.Tests;

public sealed class LibtorchInstallTests : IDisposable
{
    private readonly DirectoryInfo _root = Directory.CreateTempSubdirectory("mambavl-tests-");

    public void Dispose() => _root.Delete(recursive: true);

    [Fact]
    public void AFolderThatIsNotThereIsNamed() =>
        Opening(Path.Combine(_root.FullName, "none")).Should().Throw<NativeRuntimeException>().WithMessage("*MAMBAVL_LIBTORCH_DIR*none*is no folder*python -c*");

    [Fact]
    public void AFolderWithoutLibtorchListsWhatIsMissing()
    {
        File.WriteAllText(Path.Combine(_root.FullName, "libc10.so"), "");
        Opening(_root.FullName).Should().Throw<NativeRuntimeException>().WithMessage("*without libtorch_cpu.so, libtorch.so*");
    }

    [Fact]
    public void TheFolderAboveIsRecognised() =>
        Opening(Path.GetDirectoryName(Install("2.10.0"))!).Should().Throw<NativeRuntimeException>().WithMessage("*set MAMBAVL_LIBTORCH_DIR=*lib*");

    [Theory]
    [InlineData("2.9.1")]
    [InlineData("2.12.0+cu130")]
    [InlineData("1.10.0")]
    [InlineData("3.10.0")]
    public void AnotherVersionIsRefused(string version) =>
        Opening(Install(version)).Should().Throw<NativeRuntimeException>().WithMessage($"*{version}*PyTorch 2.10 or 2.11*version.py*");

    [Theory]
    [InlineData("2.10.0")]
    [InlineData("2.11.0+cu130")]
    [InlineData("2.10.0a0+git1234")]
    public void AVersionThatFitsIsRead(string version) => LibtorchInstall.FromVariable(Install(version)).Version.Should().Be(version);

    [Fact]
    public void ALibtorchArchiveSaysItsVersionInAnotherFile()
    {
        var lib = Install(null);
        File.WriteAllText(Path.Combine(Path.GetDirectoryName(lib)!, "build-version"), "2.11.0+cpu\n");
        LibtorchInstall.FromVariable(lib).Version.Should().Be("2.11.0+cpu");
    }

    [Fact]
    public void AVersionFileOfAnotherKindIsLeftToTheLibraryItself()
    {
        var lib = Install(null);
        File.WriteAllText(Path.Combine(Path.GetDirectoryName(lib)!, "version.py"), new string('x', 100_000));
        LibtorchInstall.FromVariable(lib).Version.Should().BeNull();
    }

    [Fact]
    public void NvidiasFoldersBesideItAreSearched()
    {
        var lib = Install("2.11.0+cu130");
        var packages = Path.GetDirectoryName(Path.GetDirectoryName(lib))!;
        var nvidia = new[] { "cu13", "cudnn", "nccl" }.Select(p => Directory.CreateDirectory(Path.Combine(packages, "nvidia", p, "lib")).FullName).ToList();
        Directory.CreateDirectory(Path.Combine(packages, "nvidia", "empty"));
        LibtorchInstall.FromVariable(lib + "/").SearchFolders.Should().Equal([lib, .. nvidia]);
    }

    private string Install(string? version)
    {
        var lib = Directory.CreateDirectory(Path.Combine(_root.FullName, "torch", "lib")).FullName;
        foreach (var file in (string[])["libc10.so", "libtorch_cpu.so", "libtorch.so"]) File.WriteAllText(Path.Combine(lib, file), "");
        if (version is not null) File.WriteAllText(Path.Combine(_root.FullName, "torch", "version.py"), $"__version__ = '{version}'\n");
        return lib;
    }

    private static Action Opening(string folder) => () => LibtorchInstall.FromVariable(folder);
}
