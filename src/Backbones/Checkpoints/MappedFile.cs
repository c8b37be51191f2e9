using System.Collections.Concurrent;
using System.IO.MemoryMappedFiles;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;
using static TorchSharp.torch;

namespace MambaVL.Checkpoints;

/// <summary>A file that is read by plain reads, or in place by tensors on memory-mapped views of it.</summary>
/// <remarks>
/// Every tensor has a copy-on-write view of its own: training it in place changes neither the file nor what the next read
/// of the same bytes gives. A view goes with the last tensor on it, which may be long after <see cref="Dispose"/>.
/// </remarks>
internal sealed unsafe class MappedFile : IDisposable
{
    // libtorch hands its deleter the tensor's address and nothing else; this finds the view that starts there.
    private static readonly ConcurrentDictionary<nint, MemoryMappedViewAccessor> Views = [];

    private readonly SafeFileHandle _handle;
    private readonly Lazy<MemoryMappedFile> _mapping;

    /// <summary>Opens the file; nothing is mapped before the first <see cref="View"/>.</summary>
    /// <param name="path">The file.</param>
    /// <param name="canMap">Whether tensors may use the file in place; if not, it is needed no longer than they are read.</param>
    public MappedFile(string path, bool canMap = true)
    {
        (Path, CanMap) = (path, canMap);
        _handle = File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.Read | FileShare.Delete);
        var length = Length = RandomAccess.GetLength(_handle);
        _mapping = new(() => MemoryMappedFile.CreateFromFile(_handle, null, length, MemoryMappedFileAccess.CopyOnWrite, HandleInheritability.None, leaveOpen: true));
    }

    public string Path { get; }

    /// <summary>Whether tensors may use the file in place.</summary>
    public bool CanMap { get; }

    /// <summary>Where the part of the file begins that offsets and <see cref="Length"/> are about; 0 for the whole file.</summary>
    public long Start { get; private set; }

    /// <summary>Bytes in the file, or in that part of it, when it was opened.</summary>
    public long Length { get; private set; }

    /// <summary>From now on offsets are about a part of the file. The caller has checked that it lies in the file.</summary>
    public void Narrow(long start, long length) => (Start, Length) = (start, length);

    /// <summary>Reads with a plain file read, which leaves no page of the file in this process's memory.</summary>
    public void Read(long offset, Span<byte> destination)
    {
        while (!destination.IsEmpty)
        {
            var n = RandomAccess.Read(_handle, destination, Start + offset);
            if (n == 0) throw new CheckpointException(Path, null, $"the file ends at byte {offset}; it was {Length} bytes long when it was opened.");
            destination = destination[n..];
            offset += n;
        }
    }

    /// <summary>A tensor on the mapped bytes. The caller owns it, and has checked the range and the alignment.</summary>
    public Tensor View(long offset, long bytes, ReadOnlySpan<long> shape, ScalarType type)
    {
        var view = _mapping.Value.CreateViewAccessor(Start + offset, bytes, MemoryMappedFileAccess.CopyOnWrite);
        byte* start = null;
        view.SafeMemoryMappedViewHandle.AcquirePointer(ref start);
        start += view.PointerOffset;
        Views[(nint)start] = view;
        try
        {
            return NativeTensor.Over(start, shape, type, &Release);
        }
        catch
        {
            Free((nint)start); // whether libtorch called the deleter is not known; a second call does nothing
            throw;
        }
    }

    /// <summary>Closes the file; views stay.</summary>
    public void Dispose()
    {
        if (_mapping.IsValueCreated) _mapping.Value.Dispose();
        _handle.Dispose();
    }

    [UnmanagedCallersOnly(CallConvs = [typeof(CallConvCdecl)])]
    private static void Release(void* data) => Free((nint)data);

    private static void Free(nint start)
    {
        if (!Views.TryRemove(start, out var view)) return;
        view.SafeMemoryMappedViewHandle.ReleasePointer();
        view.Dispose();
    }
}
