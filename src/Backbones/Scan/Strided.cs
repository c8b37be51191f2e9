using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Scan;

/// <summary>The memory of a tensor [b, d, l] in float32 or bfloat16, with any strides, and its way into tiles of
/// [steps, width] float32 and back. Valid while the tensor lives.</summary>
internal readonly unsafe struct Strided
{
    private readonly byte* _data;
    private readonly long _row, _channel, _time;
    private readonly bool _narrow;

    public Strided(Tensor t)
    {
        _data = (byte*)Pointer(t);
        _narrow = t.dtype == ScalarType.BFloat16;
        var strides = t.stride();
        (_row, _channel, _time) = (strides[0], strides[1], strides[2]);
    }

    /// <summary>Whether there is a tensor at all.</summary>
    public bool Exists => _data != null;

    /// <summary>The address of a tensor's first element; null for none and for an empty one.</summary>
    public static float* Pointer(Tensor? t)
    {
        if (t is null || t.numel() == 0) return null;
        using var first = t.detach().as_strided([1], [1], t.storage_offset()); // `bytes` wants a contiguous tensor below 2 GB
        return (float*)Unsafe.AsPointer(ref first.bytes[0]);
    }

    /// <summary>Fills a tile [steps, width] with the steps of some channels; lanes without a channel become zero.</summary>
    /// <param name="row">The row of the batch.</param>
    /// <param name="channel">The first channel.</param>
    /// <param name="channels">How many channels there are, at most the width.</param>
    /// <param name="time">The first step.</param>
    /// <param name="steps">How many steps, at most <see cref="CpuScan.Chunk"/>.</param>
    /// <param name="width">Lanes of the tile.</param>
    /// <param name="tile">Where to write: room for <see cref="CpuScan.Chunk"/> steps.</param>
    /// <param name="stage">Working memory, as large as the tile.</param>
    public void Load(int row, int channel, int channels, int time, int steps, int width, float* tile, float* stage)
    {
        var origin = row * _row + channel * _channel + time * _time;
        if (_channel == 1)
        {
            for (var t = 0; t < steps; t++)
            {
                Read(origin + t * _time, 1, channels, tile + t * width);
                for (var c = channels; c < width; c++) tile[t * width + c] = 0;
            }
            return;
        }
        if (InBlocks(channels, steps, width))
        {
            Transpose((float*)_data + origin, _channel, width, steps, tile, width, width);
            return;
        }
        for (var c = 0; c < channels; c++) Read(origin + c * _channel, _time, steps, stage + c * CpuScan.Chunk);
        new Span<float>(stage + channels * CpuScan.Chunk, (width - channels) * CpuScan.Chunk).Clear();
        Transpose(stage, CpuScan.Chunk, width, steps, tile, width, width);
    }

    /// <summary>Writes a tile back; the opposite of Load.</summary>
    public void Store(int row, int channel, int channels, int time, int steps, int width, float* tile, float* stage)
    {
        var origin = row * _row + channel * _channel + time * _time;
        if (_channel == 1)
        {
            for (var t = 0; t < steps; t++) Write(tile + t * width, channels, origin + t * _time, 1);
            return;
        }
        if (InBlocks(channels, steps, width))
        {
            Transpose(tile, width, steps, width, (float*)_data + origin, _channel, width);
            return;
        }
        Transpose(tile, width, steps, width, stage, CpuScan.Chunk, width);
        for (var c = 0; c < channels; c++) Write(stage + c * CpuScan.Chunk, steps, origin + c * _channel, _time);
    }

    // Whether memory can be transposed in place, with no copy to the stage in between.
    private bool InBlocks(int channels, int steps, int width) =>
        Avx.IsSupported && !_narrow && _time == 1 && channels == width && width % 8 == 0 && steps % 8 == 0;

    /// <summary>Asks for the memory of a tile ahead of its Load or Store, into the second level of cache: the strides are
    /// too large for the processor to foresee, and the first level is full of states.</summary>
    public void Prefetch(int row, int channel, int channels, int time, int steps)
    {
        if (!Sse.IsSupported || steps <= 0) return;
        var size = _narrow ? sizeof(ushort) : sizeof(float);
        var origin = _data + (row * _row + channel * _channel + time * _time) * size;
        var (lines, line, run) = _channel == 1 ? (steps, _time * size, channels * size) : (channels, _channel * size, steps * size);
        for (var i = 0; i < lines; i++, origin += line)
            for (var at = 0; at < run; at += 64)
                Sse.Prefetch1(origin + at);
    }

    private void Read(long from, long stride, int count, float* to)
    {
        var i = 0;
        if (!_narrow)
        {
            var p = (float*)_data + from;
            if (stride == 1) new ReadOnlySpan<float>(p, count).CopyTo(new Span<float>(to, count));
            else for (; i < count; i++) to[i] = p[i * stride];
            return;
        }
        var q = (ushort*)_data + from;
        if (stride == 1)
        {
            for (; i <= count - 8; i += 8)
            {
                var (low, high) = Vector128.Widen(Vector128.Load(q + i));
                Vector128.ShiftLeft(low, 16).AsSingle().Store(to + i);
                Vector128.ShiftLeft(high, 16).AsSingle().Store(to + i + 4);
            }
        }
        for (; i < count; i++) to[i] = BitConverter.UInt32BitsToSingle((uint)q[i * stride] << 16);
    }

    private void Write(float* from, int count, long to, long stride)
    {
        var i = 0;
        if (!_narrow)
        {
            var p = (float*)_data + to;
            if (stride == 1) new ReadOnlySpan<float>(from, count).CopyTo(new Span<float>(p, count));
            else for (; i < count; i++) p[i * stride] = from[i];
            return;
        }
        var q = (ushort*)_data + to;
        if (stride == 1)
            for (; i <= count - 8; i += 8)
                Vector128.Narrow(ToBFloat16(Vector128.Load(from + i)), ToBFloat16(Vector128.Load(from + i + 4))).Store(q + i);
        for (; i < count; i++) q[i * stride] = (ushort)ToBFloat16(Vector128.Create(from[i])).ToScalar();
    }

    // To the nearest, ties to even; NaN stays NaN.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector128<uint> ToBFloat16(Vector128<float> x)
    {
        var bits = x.AsUInt32();
        var even = Vector128.ShiftRightLogical(bits, 16) & Vector128<uint>.One;
        var rounded = Vector128.ShiftRightLogical(bits + Vector128.Create(0x7fffu) + even, 16);
        return Vector128.ConditionalSelect(Vector128.Equals(x, x).AsUInt32(), rounded, Vector128.Create(0x7fc0u));
    }

    /// <summary>[rows, columns] to [columns, rows], one of which is the width of a tile. Where that is a multiple of 8, so
    /// is what is read and written: a tile and the stage have room for whole blocks.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Transpose(float* from, long fromStride, int rows, int columns, float* to, long toStride, int width)
    {
        if (Avx.IsSupported && width % 8 == 0)
        {
            for (var r = 0; r < rows; r += 8)
                for (var c = 0; c < columns; c += 8)
                    TransposeBlock(from + r * fromStride + c, fromStride, to + c * toStride + r, toStride);
            return;
        }
        for (var r = 0; r < rows; r++)
            for (var c = 0; c < columns; c++)
                to[c * toStride + r] = from[r * fromStride + c];
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void TransposeBlock(float* from, long fromStride, float* to, long toStride)
    {
        // Halves of rows r and r + 4 side by side, then two rounds of interleaving.
        for (var half = 0; half < 2; half++, from += 4, to += 4 * toStride)
        {
            var a = Vector256.Create(Vector128.Load(from), Vector128.Load(from + 4 * fromStride));
            var b = Vector256.Create(Vector128.Load(from + fromStride), Vector128.Load(from + 5 * fromStride));
            var c = Vector256.Create(Vector128.Load(from + 2 * fromStride), Vector128.Load(from + 6 * fromStride));
            var d = Vector256.Create(Vector128.Load(from + 3 * fromStride), Vector128.Load(from + 7 * fromStride));
            var (ac, bd) = (Avx.UnpackLow(a, c), Avx.UnpackLow(b, d));
            Avx.UnpackLow(ac, bd).Store(to);
            Avx.UnpackHigh(ac, bd).Store(to + toStride);
            (ac, bd) = (Avx.UnpackHigh(a, c), Avx.UnpackHigh(b, d));
            Avx.UnpackLow(ac, bd).Store(to + 2 * toStride);
            Avx.UnpackHigh(ac, bd).Store(to + 3 * toStride);
        }
    }
}
