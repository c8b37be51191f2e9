namespace MambaVL.Data;

/// <summary>The lines of a file as bytes, one at a time, whatever the file's length.</summary>
/// <param name="path">The file.</param>
internal sealed class LineReader(string path) : IDisposable
{
    /// <summary>A longer line is no row that anybody wrote, but a file without line ends.</summary>
    public const int MostBytes = 16 << 20;

    private readonly FileStream _file = new(path, FileMode.Open, FileAccess.Read, FileShare.Read, bufferSize: 1, FileOptions.SequentialScan);
    private byte[] _buffer = new byte[1 << 16];
    private int _start, _end;

    /// <summary>The number of the line that was read last; the first is 1.</summary>
    public long Number { get; private set; }

    /// <summary>The next line without its end, until the next call; false after the last one.</summary>
    /// <exception cref="FormatException">The line is too long.</exception>
    public bool TryRead(out ReadOnlyMemory<byte> line)
    {
        var seen = 0;
        int at;
        while ((at = _buffer.AsSpan((_start + seen)..(_end)).IndexOf((byte)'\n')) < 0)
        {
            seen = _end - _start;
            if (seen > MostBytes)
            {
                Number++;
                throw new FormatException($"found more than {MostBytes:N0} bytes without a line end; expected one row a line.");
            }
            if (Fill()) continue;
            line = Trimmed(_start, seen);
            _start = _end;
            if (seen == 0) return false;
            Number++;
            return true;
        }
        line = Trimmed(_start, seen + at);
        _start += seen + at + 1;
        Number++;
        return true;
    }

    public void Dispose() => _file.Dispose();

    // Windows' line ends, and the mark that some editors put at a file's start.
    private ReadOnlyMemory<byte> Trimmed(int start, int length)
    {
        ReadOnlyMemory<byte> line = _buffer.AsMemory(start, length);
        if (Number == 0 && line.Span.StartsWith("\uFEFF"u8)) line = line[3..];
        return line.Span.EndsWith("\r"u8) ? line[..^1] : line;
    }

    private bool Fill()
    {
        if (_start > 0)
        {
            _buffer.AsSpan(_start, _end - _start).CopyTo(_buffer);
            (_start, _end) = (0, _end - _start);
        }
        if (_end == _buffer.Length) Array.Resize(ref _buffer, 2 * _buffer.Length);
        var read = _file.Read(_buffer, _end, _buffer.Length - _end);
        _end += read;
        return read > 0;
    }
}
