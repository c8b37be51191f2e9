using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;

namespace MambaVL.Tests;

/// <summary>What depends on the state of a whole process, each in a child process with an application folder of its own.</summary>
public sealed class RuntimeProcessTests : IDisposable
{
    private readonly ProbeApp _app = new();

    public RuntimeProcessTests() => Skip.IfNot(OperatingSystem.IsLinux() && File.Exists(ProbeApp.Binding), "these processes run on Linux, with the native package TorchSharp-cpu (-p:TorchBackend=cpu)");

    public void Dispose() => _app.Dispose();

    [SkippableFact]
    public void AnEmptyCacheIsFilledOnceAndThePackageStaysAsItIs()
    {
        Skip.IfNot(ProbeApp.SystemNeedsPatch, "this system's C++ library is new enough");
        var before = SHA256.HashData(File.ReadAllBytes(ProbeApp.Binding));
        _app.WithAll();

        Works(_app.Run());

        var file = _app.CacheFiles.Should().ContainSingle().Subject;
        Path.GetFileName(file).Should().StartWith($"libLibTorchSharp-{Convert.ToHexStringLower(before)}");
        var written = File.GetLastWriteTimeUtc(file);
        Works(_app.Run()).Should().Contain($"patched={file}").And.Contain($"mapped={file}").And.NotContain("app/runtimes/linux-x64/native/libLibTorchSharp.so");
        File.GetLastWriteTimeUtc(file).Should().Be(written, "the second process finds the copy and leaves it alone");
        SHA256.HashData(File.ReadAllBytes(ProbeApp.Binding)).Should().Equal(before);
    }

    [SkippableFact]
    public void ProcessesThatStartAtOnceShareOneCopy()
    {
        Skip.IfNot(ProbeApp.SystemNeedsPatch, "this system's C++ library is new enough");
        _app.WithAll();
        foreach (var process in Enumerable.Range(0, 3).Select(_ => _app.Start()).ToList()) Works(ProbeApp.Finish(process));
        _app.CacheFiles.Should().ContainSingle("no temporary file stays behind");
    }

    [SkippableTheory]
    [InlineData("truncated")]
    [InlineData("one byte")]
    public void ADamagedCacheEntryIsRewritten(string damage)
    {
        Skip.IfNot(ProbeApp.SystemNeedsPatch, "this system's C++ library is new enough");
        _app.WithAll();
        var good = File.ReadAllBytes(Runtime.Describe().PatchedCopy!);
        var file = Path.Combine(_app.Cache, "native", Path.GetFileName(Runtime.Describe().PatchedCopy!));
        Directory.CreateDirectory(Path.GetDirectoryName(file)!);
        var bad = damage == "truncated" ? good[..100_000] : [.. good];
        if (damage == "one byte") bad[^1] ^= 1;
        File.WriteAllBytes(file, bad);

        Works(_app.Run());

        File.ReadAllBytes(file).AsSpan().SequenceEqual(good).Should().BeTrue("the entry is whole again");
    }

    [SkippableFact]
    public void WithoutAWritableCacheAPrivateCopyIsUsed()
    {
        Skip.IfNot(ProbeApp.SystemNeedsPatch, "this system's C++ library is new enough");
        var temporary = Directory.CreateDirectory(Path.Combine(_app.Root, "tmp")).FullName;
        Works(_app.WithAll().Run("use", ("MAMBAVL_CACHE", "/proc/nowhere"), ("TMPDIR", temporary))).Should().Contain("private to this process");
        Directory.GetDirectories(temporary, "mambavl-*").Should().BeEmpty("it is deleted after loading");
    }

    [SkippableFact]
    public void WithoutAnyWritableFolderTheErrorNamesTheVariable()
    {
        Skip.IfNot(ProbeApp.SystemNeedsPatch, "this system's C++ library is new enough");
        Fails(_app.WithAll().Run("use", ("MAMBAVL_CACHE", "/proc/nowhere"), ("TMPDIR", "/proc/nowhere"))).Should().Contain("set MAMBAVL_CACHE").And.Contain("/proc/nowhere");
    }

    [SkippableFact]
    public void ANewerSystemIsLeftAlone()
    {
        // This system's C++ library, with one version that nothing here asks for renamed to the one that is missing.
        var folder = Imitate(("GLIBCXX_3.4.27", "GLIBCXX_3.4.32"));
        Works(_app.WithAll().Run("use", ("LD_LIBRARY_PATH", folder))).Should().Contain("patched=\n").And.Contain($"mapped={ProbeApp.Binding}");
        Directory.Exists(_app.Cache).Should().BeFalse("nothing is patched, so nothing is cached");
    }

    [SkippableFact]
    public void AnOlderSystemTakesTheSameFunctionFromItsOlderVersion()
    {
        // RHEL 9's C++ library ends at GLIBCXX_3.4.29.
        var folder = Imitate(("GLIBCXX_3.4.30", "GLIBCXY_3.4.30"));
        Works(_app.WithAll().Run("use", ("LD_LIBRARY_PATH", folder)));
        using var stream = File.OpenRead(_app.CacheFiles.Single());
        new ElfFile(stream).VersionNeeds().Where(n => !n.Weak).Select(n => n.Version).Should().NotContain(["GLIBCXX_3.4.30", "GLIBCXX_3.4.32"]);
    }

    [SkippableFact]
    public void ASystemThatLacksWhatIsCalledIsRefused() =>
        Fails(_app.WithAll().Run("use", ("LD_LIBRARY_PATH", Imitate(("GLIBCXX_3.4.29", "GLIBCXY_3.4.29")))))
            .Should().Contain("too old").And.Contain("GLIBCXX_3.4.29").And.Contain("use a newer system");

    [SkippableFact]
    public void WithoutTheNativePackageTheErrorSaysWhatToAdd() =>
        Fails(_app.With(_app.NativeFolder, "libLibTorchSharp.so").Run())
            .Should().Contain("libtorch_cpu.so").And.Contain(_app.NativeFolder).And.Contain("TorchSharp-cpu").And.Contain("MAMBAVL_LIBTORCH_DIR");

    [SkippableFact]
    public void WithoutTorchSharpsOwnLibraryTheErrorNamesIt() =>
        Fails(_app.With(_app.NativeFolder, ProbeApp.Libtorch).Run()).Should().Contain("looked for: libLibTorchSharp.so").And.Contain(_app.NativeFolder);

    [SkippableFact]
    public void DescribeReportsTheSameErrorAndDoesNotThrow()
    {
        var (code, output) = _app.With(_app.NativeFolder, "libLibTorchSharp.so").Run("describe");
        code.Should().Be(0, output);
        output.Should().Contain("not usable").And.Contain("TorchSharp-cpu").And.Contain("glibc");
    }

    [SkippableTheory]
    [InlineData("libLibTorchSharp.so", "garbage", "ELF signature")]
    [InlineData("libtorch_cpu.so", "garbage", "ELF signature")]
    [InlineData("libc10.so", "truncated", "truncated")]
    [InlineData("libLibTorchSharp.so", "arm64", "a library for arm64")]
    [InlineData("libc10.so", "arm64", "a library for arm64")]
    public void ALibraryThatCannotBeUsedIsNamed(string file, string damage, string expected)
    {
        if (damage == "arm64") Skip.IfNot(NativeFolders.Rid == "linux-x64", "this is the machine that the library is made for");
        _app.WithAll();
        var path = Path.Combine(_app.NativeFolder, file);
        var bytes = damage == "garbage" ? Encoding.ASCII.GetBytes(string.Concat(Enumerable.Repeat("garbage ", 100))) : File.ReadAllBytes(path);
        if (damage == "truncated") bytes = bytes[..(bytes.Length / 2)];
        if (damage == "arm64") BinaryPrimitives.WriteUInt16LittleEndian(bytes.AsSpan(18), ElfFile.Arm64);
        File.Delete(path);
        File.WriteAllBytes(path, bytes);
        Fails(_app.Run()).Should().Contain(path).And.Contain(expected).And.Contain("what to do");
    }

    [SkippableFact]
    public void NativeLibrariesBesideTheApplicationAreFound() =>
        Works(_app.With(_app.Folder, ["libLibTorchSharp.so", .. ProbeApp.Libtorch]).Run()).Should().Contain("the application's native package");

    [SkippableFact]
    public void ThePythonInstallThatTheVariableNamesIsUsed()
    {
        var lib = PythonInstall("2.11.0+cpu");
        Works(_app.With(_app.NativeFolder, "libLibTorchSharp.so").Run("use", ("MAMBAVL_LIBTORCH_DIR", lib))).Should().Contain("libtorch=2.11.0+cpu from MAMBAVL_LIBTORCH_DIR");
    }

    [SkippableFact]
    public void TheVariableWinsOverTheNativePackageWhereBothAreTheSameFiles() =>
        Works(_app.WithAll().Run("use", ("MAMBAVL_LIBTORCH_DIR", PythonInstall("2.10.0")))).Should().Contain("from MAMBAVL_LIBTORCH_DIR");

    [SkippableFact]
    public void TwoDifferentLibtorchsInOneProcessAreRefused()
    {
        var lib = PythonInstall("2.10.0");
        _app.With(_app.Folder, "libLibTorchSharp.so");
        File.WriteAllBytes(Path.Combine(_app.Folder, "libtorch_cpu.so"), new byte[64]);
        Fails(_app.Run("use", ("MAMBAVL_LIBTORCH_DIR", lib))).Should().Contain("its own libtorch_cpu.so").And.Contain("TorchBackend=none").And.Contain(lib);
    }

    [SkippableFact]
    public void AWrongVersionIsRefusedBeforeAnythingIsLoaded() =>
        Fails(_app.With(_app.NativeFolder, "libLibTorchSharp.so").Run("use", ("MAMBAVL_LIBTORCH_DIR", PythonInstall("2.9.1+cu128"))))
            .Should().Contain("2.9.1+cu128").And.Contain("version.py").And.Contain("2.10 or 2.11");

    [SkippableFact]
    public void TheLibraryPathServesAsWell()
    {
        var lib = PythonInstall("2.10.0");
        Works(_app.With(_app.Folder, "libLibTorchSharp.so").Run("use", ("LD_LIBRARY_PATH", $"{_app.Folder}:{lib}"))).Should().Contain("from the system's library path");
    }

    [SkippableFact]
    public void AnApplicationThatUsesTorchSharpFirstIsToldSo()
    {
        Skip.IfNot(ProbeApp.SystemNeedsPatch, "this system's C++ library is new enough");
        Fails(_app.WithAll().Run("torch-first")).Should().Contain("used TorchSharp before MambaVL").And.Contain("EnsureLoaded() as the application's first line");
    }

    [SkippableFact]
    public void CudaOnACpuBuildIsExplained() => Fails(_app.WithAll().Run("cuda")).Should().Contain("built without it").And.Contain("TorchSharp-cuda-linux");

    private static string Works((int Code, string Output) run)
    {
        run.Code.Should().Be(0, run.Output);
        run.Output.Should().Contain("sum=6");
        foreach (var library in (string[])["libLibTorchSharp", "libtorch_cpu"])
            run.Output.Split('\n').Where(l => l.StartsWith("mapped=", StringComparison.Ordinal) && l.Contains(library, StringComparison.Ordinal)).Should().ContainSingle("one copy of {0} is loaded", library);
        return run.Output;
    }

    private static string Fails((int Code, string Output) run)
    {
        run.Code.Should().Be(Probe.ClearError, run.Output);
        run.Output.Should().Contain("looked for:").And.Contain("what to do:").And.NotContain("   at ", "an error is no stack trace");
        return run.Output;
    }

    // Laid out as pip does it: site-packages/torch/version.py, site-packages/torch/lib.
    private string PythonInstall(string version)
    {
        var torch = Path.Combine(_app.Root, "site-packages", "torch");
        _app.With(Path.Combine(torch, "lib"), ProbeApp.Libtorch);
        File.WriteAllText(Path.Combine(torch, "version.py"), $"from typing import Optional\n\n__all__ = ['__version__', 'debug']\n__version__ = '{version}'\ndebug = False\n");
        return Path.Combine(torch, "lib");
    }

    /// <summary>A folder with a copy of this system's C++ library in which versions have another name: for the loader it is the
    /// library of another system.</summary>
    private string Imitate(params (string From, string To)[] renames)
    {
        var file = Runtime.Describe().StandardLibrary;
        Skip.If(file is null, "no C++ library to imitate");
        var bytes = File.ReadAllBytes(file!);
        foreach (var (from, to) in renames)
        {
            var provided = new ElfFile(new MemoryStream(bytes)).VersionDefinitions();
            Skip.If(!provided.Contains(from) || provided.Contains(to), $"this system's C++ library does not have {from} or has {to} already");
            Replace(bytes, Encoding.ASCII.GetBytes(from + "\0"), Encoding.ASCII.GetBytes(to + "\0"));
            Replace(bytes, BitConverter.GetBytes(Hash(from)), BitConverter.GetBytes(Hash(to)));
        }
        var folder = Directory.CreateDirectory(Path.Combine(_app.Root, "system")).FullName;
        File.WriteAllBytes(Path.Combine(folder, "libstdc++.so.6"), bytes);
        return folder;
    }

    private static void Replace(Span<byte> bytes, ReadOnlySpan<byte> from, ReadOnlySpan<byte> to)
    {
        for (int at; (at = bytes.IndexOf(from)) >= 0; bytes = bytes[(at + to.Length)..]) to.CopyTo(bytes[at..]);
    }

    // The hash of the System V ABI, which the loader compares before it compares names.
    private static uint Hash(string name)
    {
        uint h = 0;
        foreach (var c in name)
        {
            h = (h << 4) + c;
            var g = h & 0xf0000000;
            h = (h ^ (g >> 24)) & ~g;
        }
        return h;
    }
}
