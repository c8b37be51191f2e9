using System.Buffers;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Checkpoints;

/// <summary>Where a tensor lies in a file. Made by a format's reader, which has checked every number.</summary>
/// <param name="Entry">Name, element type and shape.</param>
/// <param name="File">The file.</param>
/// <param name="Offset">The byte in the file where the first element starts.</param>
/// <param name="Extent">Bytes from the first element to the end of the last one.</param>
/// <param name="Strides">Elements from one index to the next, by dimension; null for a contiguous tensor.</param>
internal sealed record StoredTensor(TensorEntry Entry, MappedFile File, long Offset, long Extent, long[]? Strides = null)
{
    /// <summary>Smaller tensors are copied: a view takes whole pages of memory.</summary>
    public const int MinMappedBytes = 4096;

    private const int BufferBytes = 4 << 20;

    /// <summary>The tensor; the caller owns it.</summary>
    /// <remarks>
    /// It lies in the mapped file where type and device stay and it is no smaller than a page; otherwise it is filled through a small buffer by plain
    /// file reads, so that the file's pages never stand in memory beside the result.
    /// </remarks>
    public Tensor Read(ScalarType type, Device device)
    {
        var shape = Entry.Shape.ToArray();
        if (Extent == 0) return empty(shape, dtype: type, device: device);
        if (Strides is not null) return ReadStrided(shape, type, device);

        var aligned = (File.Start + Offset) % ElementTypes.Size(Entry.DType) == 0;
        if (aligned && File.CanMap && Extent >= MinMappedBytes && type == Entry.DType && device.type == DeviceType.CPU)
        {
            if (type == ScalarType.Bool) CheckBooleans();
            return File.View(Offset, Extent, shape, type);
        }
        var result = empty(shape, dtype: type, device: device);
        try
        {
            Fill(result);
            return result;
        }
        catch
        {
            result.Dispose();
            throw;
        }
    }

    /// <summary>Whether both hold the same bytes; equal type and shape are taken for granted.</summary>
    public bool HasSameBytes(StoredTensor other)
    {
        if (Strides is not null || other.Strides is not null)
        {
            using var a = Read(Entry.DType, CPU);
            using var b = other.Read(Entry.DType, CPU);
            return a.equal(b).all().item<bool>();
        }
        byte[] mine = new byte[Math.Min(Extent, BufferBytes)], theirs = new byte[mine.Length];
        for (long done = 0; done < Extent; done += mine.Length)
        {
            var n = (int)Math.Min(mine.Length, Extent - done);
            File.Read(Offset + done, mine.AsSpan(0, n));
            other.File.Read(other.Offset + done, theirs.AsSpan(0, n));
            if (!mine.AsSpan(0, n).SequenceEqual(theirs.AsSpan(0, n))) return false;
        }
        return true;
    }

    // The elements between the first and the last are read as they lie, then picked out.
    private Tensor ReadStrided(long[] shape, ScalarType type, Device device)
    {
        using var scope = NewDisposeScope();
        var size = ElementTypes.Size(Entry.DType);
        var flat = empty(Extent / size, dtype: Entry.DType);
        Fill(flat);
        var picked = flat.as_strided(shape, Strides!);
        var result = empty(shape, dtype: type, device: device);
        result.copy_(picked);
        return result.MoveToOuterDisposeScope();
    }

    // The buffer is a pooled array: allocated by libtorch for each tensor, it would leave holes in the native heap that
    // add up to the size of the buffer for every second tensor.
    private unsafe void Fill(Tensor result)
    {
        using var scope = NewDisposeScope();
        var flat = result.view(-1);
        long size = ElementTypes.Size(Entry.DType), total = Extent / size, step = Math.Min(total, BufferBytes / size);
        var buffer = ArrayPool<byte>.Shared.Rent((int)(step * size));
        try
        {
            fixed (byte* start = buffer)
            {
                for (long done = 0; done < total; done += step)
                {
                    using var pieces = NewDisposeScope();
                    var n = Math.Min(step, total - done);
                    var bytes = buffer.AsSpan(0, (int)(n * size));
                    File.Read(Offset + done * size, bytes);
                    if (Entry.DType == ScalarType.Bool) CheckBooleans(bytes);
                    flat.narrow(0, done, n).copy_(NativeTensor.Over(start, [n], Entry.DType));
                }
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    // libtorch's bool is C++'s: any other value than 0 and 1 is undefined behaviour.
    private void CheckBooleans(ReadOnlySpan<byte> bytes)
    {
        var i = bytes.IndexOfAnyExceptInRange((byte)0, (byte)1);
        if (i >= 0) throw new CheckpointException(File.Path, Entry.Name, $"a BOOL is 0 or 1, found {bytes[i]}.");
    }

    private void CheckBooleans()
    {
        var buffer = new byte[Math.Min(Extent, BufferBytes)];
        for (long done = 0; done < Extent; done += buffer.Length)
        {
            var part = buffer.AsSpan(0, (int)Math.Min(buffer.Length, Extent - done));
            File.Read(Offset + done, part);
            CheckBooleans(part);
        }
    }
}
