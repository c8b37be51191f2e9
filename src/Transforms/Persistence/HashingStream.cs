using System.Security.Cryptography;

namespace MambaVL.Transforms;

/// <summary>Passes on what is written, and counts and hashes it on the way.</summary>
internal sealed class HashingStream(Stream destination) : Stream
{
    private readonly IncrementalHash _hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
    private long _length;

    public override bool CanRead => false;

    public override bool CanSeek => false;

    public override bool CanWrite => true;

    public override long Length => _length;

    public override long Position
    {
        get => _length;
        set => throw new NotSupportedException();
    }

    /// <summary>What was written, under that name.</summary>
    public StoredFile Finish(string name) => new(name, _length, Convert.ToHexStringLower(_hash.GetHashAndReset()));

    /// <summary>Reads a stream to its end, and counts and hashes it; what is read goes to <paramref name="copy"/> as well.</summary>
    public static StoredFile Read(Stream source, string name, Stream copy)
    {
        using var hashing = new HashingStream(copy);
        source.CopyTo(hashing, 1 << 20);
        return hashing.Finish(name);
    }

    public override void Write(ReadOnlySpan<byte> buffer)
    {
        destination.Write(buffer);
        _hash.AppendData(buffer);
        _length += buffer.Length;
    }

    public override void Write(byte[] buffer, int offset, int count) => Write(buffer.AsSpan(offset, count));

    public override void Flush() => destination.Flush();

    public override int Read(byte[] buffer, int offset, int count) => throw new NotSupportedException();

    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    public override void SetLength(long value) => throw new NotSupportedException();

    protected override void Dispose(bool disposing)
    {
        if (disposing) _hash.Dispose();
        base.Dispose(disposing);
    }
}
