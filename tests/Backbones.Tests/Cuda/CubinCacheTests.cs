using System.Security.Cryptography;
using MambaVL.Cuda;
using MambaVL.Tests.Checkpoints;

namespace MambaVL.Tests.Cuda;

public sealed class CubinCacheTests : IDisposable
{
    private const string Name = "scan-abc-sm_90.cubin";
    private static readonly byte[] Cubin = RandomNumberGenerator.GetBytes(10_000);

    private readonly TemporaryFolder _folder = new();
    private int _compiles;

    private string Kept => _folder.Path("kernels/" + Name);

    [Fact]
    public void OneCompileServesEveryLaterProcess()
    {
        Get().Should().Equal(Cubin);
        Get().Should().Equal(Cubin);
        _compiles.Should().Be(1);
        Directory.GetFiles(_folder.Path("kernels")).Should().Equal(Kept);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(31)]
    [InlineData(32)]
    [InlineData(5000)]
    public void AFileThatWasCutOffIsCompiledAgain(int length)
    {
        Get();
        File.WriteAllBytes(Kept, File.ReadAllBytes(Kept)[..length]);
        Get().Should().Equal(Cubin);
        _compiles.Should().Be(2);
        Get().Should().Equal(Cubin);
        _compiles.Should().Be(2, "the new file is whole");
    }

    [Theory]
    [InlineData(0)]
    [InlineData(40)]
    [InlineData(10_031)]
    public void ADamagedFileIsCompiledAgain(int at)
    {
        Get();
        var bytes = File.ReadAllBytes(Kept);
        bytes[at] ^= 1;
        File.WriteAllBytes(Kept, bytes);
        Get().Should().Equal(Cubin);
        _compiles.Should().Be(2);
    }

    [Fact]
    public void AFolderThatCannotBeWrittenCostsACompileAndNothingElse()
    {
        // A file where the folder should be: neither root nor anyone else can write below it.
        File.WriteAllText(_folder.Path("kernels"), "");
        Get().Should().Equal(Cubin);
        Get().Should().Equal(Cubin);
        _compiles.Should().Be(2);
    }

    [Fact]
    public void WithoutAFolderNothingIsKept()
    {
        CubinCache.Get(null, Name, Compile).Should().Equal(Cubin);
        _compiles.Should().Be(1);
        Directory.GetFileSystemEntries(_folder.Root).Should().BeEmpty();
    }

    [Fact]
    public void AFailedCompileLeavesNothingBehind()
    {
        FluentActions.Invoking(() => CubinCache.Get(_folder.Root, Name, () => throw new InvalidOperationException("no")))
            .Should().Throw<InvalidOperationException>();
        File.Exists(Kept).Should().BeFalse();
    }

    [Fact]
    public void ManyAtOnceSeeWholeFiles()
    {
        // Each writes the same bytes under a temporary name of its own and renames it, as processes do.
        Parallel.For(0, 64, new() { MaxDegreeOfParallelism = 16 }, i =>
        {
            if (i % 4 == 0)
            {
                try
                {
                    File.Delete(Kept);
                }
                catch (DirectoryNotFoundException)
                {
                }
            }
            Get().Should().Equal(Cubin);
        });
        Directory.GetFiles(_folder.Path("kernels")).Should().OnlyContain(f => f == Kept, "no temporary file is left");
    }

    [Fact]
    public void TheFolderIsTheUsersAlone()
    {
        if (OperatingSystem.IsWindows()) return;
        Get();
        File.GetUnixFileMode(_folder.Path("kernels")).Should().Be(UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
    }

    public void Dispose() => _folder.Dispose();

    private byte[] Get() => CubinCache.Get(_folder.Root, Name, Compile);

    private byte[] Compile()
    {
        Interlocked.Increment(ref _compiles);
        return Cubin;
    }
}
