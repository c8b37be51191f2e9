namespace MambaVL.Tests.Checkpoints;

/// <summary>A folder of its own for each test; in memory where the system has such a place.</summary>
internal sealed class TemporaryFolder : IDisposable
{
    public TemporaryFolder(bool inMemory = true)
    {
        var parent = inMemory && Directory.Exists("/dev/shm") ? "/dev/shm" : System.IO.Path.GetTempPath();
        Root = Directory.CreateDirectory(System.IO.Path.Combine(parent, $"mambavl-{Guid.NewGuid():n}")).FullName;
    }

    public string Root { get; }

    public string Path(string name) => System.IO.Path.Combine(Root, name);

    public string Write(string name, byte[] content)
    {
        File.WriteAllBytes(Path(name), content);
        return Path(name);
    }

    public void Dispose() => Directory.Delete(Root, recursive: true);
}
