using System.Diagnostics;
using System.Security.Cryptography;
using System.Text;

namespace MambaVL.Checkpoints;

/// <summary>One model's folder in the cache, in the layout that Hugging Face's tools share:</summary>
/// <remarks><code>
/// models--owner--name/
///   blobs/HASH                a file's bytes, named by the ETag (SHA-256, or git's SHA-1 for small files)
///   blobs/HASH.incomplete     what has arrived so far
///   refs/main                 the commit that a branch or tag stands for
///   snapshots/COMMIT/FILE     links to blobs
/// .locks/models--owner--name/HASH.lock
/// </code></remarks>
internal sealed class HubCache(string cacheFolder, string owner, string name)
{
    private readonly string _folder = Path.Combine(cacheFolder, $"models--{owner}--{name}");
    private readonly string _locks = Path.Combine(cacheFolder, ".locks", $"models--{owner}--{name}");

    public string Snapshot(string commit) => Path.Combine(_folder, "snapshots", commit);

    public string Blob(string etag) => Path.Combine(_folder, "blobs", etag);

    /// <summary>Whether the blob is there. It was checked when it got its name, so its length is enough here.</summary>
    public bool Holds(string etag, long? size)
        => File.Exists(Blob(etag)) && (size is null || new FileInfo(Blob(etag)).Length == size);

    /// <summary>The commit that the revision stood for when it was last fetched, or null.</summary>
    public string? Commit(string revision)
    {
        if (Directory.Exists(Snapshot(revision))) return revision;
        var path = Path.Combine(_folder, "refs", revision);
        if (!File.Exists(path)) return null;
        var commit = File.ReadAllText(path).Trim();
        return IsHash(commit) ? commit : null;
    }

    public void SetCommit(string revision, string commit)
    {
        if (Commit(revision) == commit) return;
        var path = Path.Combine(_folder, "refs", revision);
        Directory.CreateDirectory(Path.GetDirectoryName(path)!);
        AtomicFile.Write(path, Encoding.UTF8.GetBytes(commit));
    }

    /// <summary>Makes the snapshot's file a link to the blob; where links are not allowed (Windows without developer
    /// mode), a copy.</summary>
    public void Link(string commit, string file, string etag)
    {
        var path = Path.Combine([Snapshot(commit), .. file.Split('/')]);
        var folder = Path.GetDirectoryName(path)!;
        var target = Path.GetRelativePath(folder, Blob(etag));
        if (new FileInfo(path).LinkTarget == target) return;
        Directory.CreateDirectory(folder);
        var temporary = $"{path}.{Guid.NewGuid():N}.tmp";
        try
        {
            try
            {
                File.CreateSymbolicLink(temporary, target);
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException or PlatformNotSupportedException)
            {
                File.Copy(Blob(etag), temporary);
            }
            File.Move(temporary, path, overwrite: true);
        }
        finally
        {
            File.Delete(temporary);
        }
    }

    /// <summary>Holds the file's lock until disposed. On Linux and macOS it is a flock, as Hugging Face's own tools use, so
    /// that they and this wait for each other.</summary>
    public async Task<IDisposable> LockAsync(string etag, TimeSpan timeout, CancellationToken cancellation)
    {
        Directory.CreateDirectory(_locks);
        var path = Path.Combine(_locks, etag + ".lock");
        var watch = Stopwatch.StartNew();
        while (true)
        {
            cancellation.ThrowIfCancellationRequested();
            try
            {
                return new FileStream(path, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None);
            }
            catch (IOException) when (File.Exists(path)) // held by another process
            {
                if (watch.Elapsed >= timeout)
                    throw new HubException($"Another process has held {path} for {timeout}. If none is fetching this model, delete that file and try again.");
                await Task.Delay(100, cancellation).ConfigureAwait(false);
            }
        }
    }

    /// <summary>Whether the file's bytes are those that the ETag names; true also for ETags that are no hash.</summary>
    public static async Task<bool> HasHashAsync(string path, string etag, CancellationToken cancellation)
    {
        using var algorithm = etag.Length switch
        {
            64 when IsHash(etag) => IncrementalHash.CreateHash(HashAlgorithmName.SHA256),
            40 when IsHash(etag) => IncrementalHash.CreateHash(HashAlgorithmName.SHA1), // git's name of a blob
            _ => null,
        };
        if (algorithm is null) return true;
        await using var file = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read, 1, FileOptions.SequentialScan | FileOptions.Asynchronous);
        if (etag.Length == 40) algorithm.AppendData(Encoding.ASCII.GetBytes($"blob {file.Length}\0"));
        var buffer = new byte[1 << 20];
        int read;
        while ((read = await file.ReadAsync(buffer, cancellation).ConfigureAwait(false)) > 0) algorithm.AppendData(buffer, 0, read);
        return Convert.ToHexStringLower(algorithm.GetHashAndReset()) == etag;
    }

    public static bool IsHash(string text) => text.Length is 40 or 64 && text.All(char.IsAsciiHexDigitLower);
}
