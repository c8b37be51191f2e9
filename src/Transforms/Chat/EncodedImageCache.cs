using System.Security.Cryptography;

namespace MambaVL;

/// <summary>The pictures that were encoded last, by the hash of their bytes. Thread-safe; a picture that several ask for at
/// once is encoded once.</summary>
/// <param name="encode">From the bytes of a file to a picture that the cache owns.</param>
/// <param name="capacity">How many pictures stay that nobody uses.</param>
internal sealed class EncodedImageCache(Func<ReadOnlyMemory<byte>, EncodedImage> encode, int capacity) : IDisposable
{
    private readonly Lock _lock = new();
    private readonly Dictionary<string, LinkedListNode<Entry>> _byHash = [];
    private readonly LinkedList<Entry> _latestFirst = [];
    private bool _disposed;

    /// <summary>How many pictures are kept.</summary>
    public int Count
    {
        get
        {
            lock (_lock) return _byHash.Count;
        }
    }

    /// <summary>A picture for as long as the lease is not disposed, even if the cache is.</summary>
    public Lease Rent(ReadOnlyMemory<byte> bytes)
    {
        var hash = Convert.ToHexString(SHA256.HashData(bytes.Span));
        Entry entry;
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_disposed, typeof(VisionLanguageChatClient));
            if (_byHash.TryGetValue(hash, out var node)) _latestFirst.Remove(node);
            else _byHash[hash] = node = new(new(hash, new(() => encode(bytes))));
            _latestFirst.AddFirst(node);
            entry = node.Value;
            entry.Users++;
            while (_byHash.Count > capacity) Remove(_latestFirst.Last!.Value);
        }
        try
        {
            return new(this, entry, entry.Image.Value);
        }
        catch
        {
            lock (_lock) Remove(entry); // a failure is not kept
            Return(entry);
            throw;
        }
    }

    /// <summary>Frees the pictures that nobody uses, now, and each of the others when its last user is done.</summary>
    public void Dispose()
    {
        lock (_lock)
        {
            _disposed = true;
            while (_latestFirst.Last is { } last) Remove(last.Value);
        }
    }

    private void Remove(Entry entry)
    {
        if (!_byHash.TryGetValue(entry.Hash, out var node) || node.Value != entry) return;
        _byHash.Remove(entry.Hash);
        _latestFirst.Remove(node);
        entry.IsKept = false;
        if (entry.Users == 0) entry.Free();
    }

    private void Return(Entry entry)
    {
        lock (_lock)
            if (--entry.Users == 0 && !entry.IsKept) entry.Free();
    }

    /// <summary>One use of a picture.</summary>
    public sealed class Lease : IDisposable
    {
        private EncodedImageCache? _cache;
        private readonly Entry _entry;

        internal Lease(EncodedImageCache cache, Entry entry, EncodedImage image) => (_cache, _entry, Image) = (cache, entry, image);

        /// <summary>The picture; stays the cache's.</summary>
        public EncodedImage Image { get; }

        public void Dispose() => Interlocked.Exchange(ref _cache, null)?.Return(_entry);
    }

    internal sealed class Entry(string hash, Lazy<EncodedImage> image)
    {
        public string Hash { get; } = hash;

        public Lazy<EncodedImage> Image { get; } = image;

        public int Users { get; set; }

        public bool IsKept { get; set; } = true;

        public void Free()
        {
            if (Image.IsValueCreated) Image.Value.Dispose();
        }
    }
}
