namespace MambaVL.Checkpoints;

/// <summary>A file that is there whole or not at all: written under a temporary name in the same folder, flushed to the disk,
/// and renamed by <see cref="Commit"/>. Disposed without that, it leaves nothing behind.</summary>
internal sealed class AtomicFile : IDisposable
{
    private readonly string _temporary;
    private bool _committed;

    public AtomicFile(string path)
    {
        Path = System.IO.Path.GetFullPath(path);
        _temporary = System.IO.Path.Combine(System.IO.Path.GetDirectoryName(Path)!, $".{System.IO.Path.GetFileName(Path)}.{Guid.NewGuid():n}.tmp");
        Stream = new FileStream(_temporary, FileMode.CreateNew, FileAccess.Write, FileShare.None, bufferSize: 1 << 16);
    }

    /// <summary>Writes a small file.</summary>
    public static void Write(string path, ReadOnlySpan<byte> content)
    {
        using var file = new AtomicFile(path);
        file.Stream.Write(content);
        file.Commit();
    }

    public string Path { get; }

    public FileStream Stream { get; }

    /// <summary>Everything to the disk; the name is still to come.</summary>
    public void Close()
    {
        if (!Stream.CanWrite) return;
        Stream.Flush(flushToDisk: true);
        Stream.Dispose();
    }

    /// <summary>Everything to the disk, and the file gets its name.</summary>
    public void Commit()
    {
        Close();
        File.Move(_temporary, Path, overwrite: true);
        _committed = true;
    }

    public void Dispose()
    {
        Stream.Dispose();
        if (!_committed) File.Delete(_temporary);
    }
}
