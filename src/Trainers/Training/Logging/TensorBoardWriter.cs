using System.Buffers.Binary;
using System.Globalization;
using System.Numerics;
using System.Text;

namespace MambaVL.Training;

/// <summary>Writes a log that TensorBoard reads while training goes on: <c>tensorboard --logdir FOLDER</c>.</summary>
/// <remarks>
/// <para>Each writer starts a file of its own, and TensorBoard joins the files of a folder into one run. Where a run goes on after
/// it was stopped, it is told the step that comes first, and what earlier files say from there on no longer counts.</para>
/// <para>A process that is killed leaves a file whose last record may be cut off; TensorBoard leaves that one out. One thread at a time.</para>
/// <para>TorchSharp's SummaryWriter was looked at (0.107.0): it opens the file anew for each value, writes ticks where seconds
/// since 1970 belong, and cannot say that a run goes on.</para>
/// </remarks>
public sealed class TensorBoardWriter : IDisposable
{
    /// <summary>The tags of a <see cref="TrainingPoint"/>'s values.</summary>
    public const string LossTag = "train/loss", LearningRateTag = "train/learning_rate", MetricTag = "validation/metric";

    /// <summary>What is written reaches the file at least that often, as long as something is written.</summary>
    public static readonly TimeSpan FlushInterval = TimeSpan.FromSeconds(5);

    private static int s_files;

    private readonly FileStream _stream;
    private readonly TimeProvider _time;
    private readonly EventRecord _record = new();
    private long _flushed;

    /// <summary>Starts a file.</summary>
    /// <param name="folder">The run's folder; made if it is not there.</param>
    /// <param name="firstStep">Where a run goes on: the first step that will be written. Null: the run is new.</param>
    /// <exception cref="IOException">The file could not be made.</exception>
    public TensorBoardWriter(string folder, long? firstStep = null) : this(folder, firstStep, TimeProvider.System) { }

    internal TensorBoardWriter(string folder, long? firstStep, TimeProvider time)
    {
        ArgumentException.ThrowIfNullOrEmpty(folder);
        Directory.CreateDirectory(folder);
        _time = time;
        // TensorBoard takes any file whose name holds "tfevents", and reads those of a folder in the order of their names.
        var name = string.Create(CultureInfo.InvariantCulture,
            $"events.out.tfevents.{time.GetUtcNow().ToUnixTimeSeconds():d10}.{Environment.MachineName}.{Environment.ProcessId}.{Interlocked.Increment(ref s_files):d6}");
        Path = System.IO.Path.Combine(System.IO.Path.GetFullPath(folder), name);
        _stream = new FileStream(Path, FileMode.CreateNew, FileAccess.Write, FileShare.ReadWrite | FileShare.Delete);
        Append(_record.Version(Seconds()));
        if (firstStep is { } step) Append(_record.Start(Seconds(), step));
        Flush();
    }

    /// <summary>The file.</summary>
    public string Path { get; }

    /// <summary>Writes what a point holds: its loss, its learning rate, and its metric where there is one.</summary>
    /// <exception cref="IOException">The disk is full, or gone.</exception>
    public void Write(TrainingPoint point)
    {
        Write(LossTag, point.Loss, point.Step);
        Write(LearningRateTag, point.LearningRate, point.Step);
        if (point.Metric is { } metric) Write(MetricTag, metric, point.Step);
    }

    /// <summary>Writes one value.</summary>
    /// <param name="tag">What it is a value of; a slash groups tags.</param>
    /// <param name="value">The value, kept in single precision. NaN and infinity are written as such.</param>
    /// <param name="step">The step that it belongs to.</param>
    /// <exception cref="IOException">The disk is full, or gone.</exception>
    public void Write(string tag, double value, long step)
    {
        ArgumentException.ThrowIfNullOrEmpty(tag);
        Append(_record.Scalar(Seconds(), step, tag, (float)value));
        if (_time.GetElapsedTime(_flushed) >= FlushInterval) Flush();
    }

    /// <summary>Everything that was written goes to the file.</summary>
    public void Flush()
    {
        _stream.Flush();
        _flushed = _time.GetTimestamp();
    }

    /// <summary>Flushes, and closes the file.</summary>
    public void Dispose() => _stream.Dispose();

    private double Seconds() => (_time.GetUtcNow() - DateTimeOffset.UnixEpoch).TotalSeconds;

    // A record of TensorFlow's record_writer: length, checksum of the length, bytes, checksum of the bytes.
    private void Append(ReadOnlySpan<byte> bytes)
    {
        Span<byte> header = stackalloc byte[12];
        BinaryPrimitives.WriteInt64LittleEndian(header, bytes.Length);
        BinaryPrimitives.WriteUInt32LittleEndian(header[8..], MaskedChecksum(header[..8]));
        Span<byte> footer = stackalloc byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(footer, MaskedChecksum(bytes));
        _stream.Write(header);
        _stream.Write(bytes);
        _stream.Write(footer);
    }

    /// <summary>CRC-32C (RFC 3720, appendix B.4).</summary>
    internal static uint Checksum(ReadOnlySpan<byte> bytes)
    {
        var crc = uint.MaxValue;
        foreach (var b in bytes) crc = BitOperations.Crc32C(crc, b);
        return ~crc;
    }

    /// <summary>The checksum, turned and shifted: that of data which holds checksums would else be a poor one.</summary>
    internal static uint MaskedChecksum(ReadOnlySpan<byte> bytes) => BitOperations.RotateRight(Checksum(bytes), 15) + 0xA282EAD8;

    /// <summary>The few messages of tensorflow/core/util/event.proto that are needed, in protobuf's encoding.</summary>
    private sealed class EventRecord
    {
        // Event: wall_time 1, step 2, file_version 3, summary 5, session_log 7. Summary: value 1. Value: tag 1,
        // simple_value 2. SessionLog: status 1, of which START is 1.
        private const int Varint = 0, Fixed64 = 1, Delimited = 2, Fixed32 = 5;

        private byte[] _bytes = new byte[256];
        private int _length;

        public ReadOnlySpan<byte> Version(double seconds)
        {
            Begin(seconds);
            Text(3, "brain.Event:2");
            return Bytes;
        }

        public ReadOnlySpan<byte> Start(double seconds, long step)
        {
            Begin(seconds, step);
            Key(7, Delimited);
            Number(2);
            Key(1, Varint);
            Number(1);
            return Bytes;
        }

        public ReadOnlySpan<byte> Scalar(double seconds, long step, string tag, float value)
        {
            var tagBytes = Encoding.UTF8.GetByteCount(tag);
            var valueBytes = 1 + VarintBytes(tagBytes) + tagBytes + 1 + sizeof(float);
            Begin(seconds, step);
            Key(5, Delimited);
            Number((ulong)(1 + VarintBytes(valueBytes) + valueBytes));
            Key(1, Delimited);
            Number((ulong)valueBytes);
            Text(1, tag);
            Key(2, Fixed32);
            BinaryPrimitives.WriteSingleLittleEndian(Take(sizeof(float)), value);
            return Bytes;
        }

        private ReadOnlySpan<byte> Bytes => _bytes.AsSpan(0, _length);

        private void Begin(double seconds, long step = 0)
        {
            _length = 0;
            Key(1, Fixed64);
            BinaryPrimitives.WriteDoubleLittleEndian(Take(sizeof(double)), seconds);
            if (step == 0) return; // a field that has its default is left out
            Key(2, Varint);
            Number((ulong)step);
        }

        private void Key(int field, int kind) => Number((ulong)(field << 3 | kind));

        private void Number(ulong value)
        {
            for (; value >= 0x80; value >>= 7) Take(1)[0] = (byte)(value | 0x80);
            Take(1)[0] = (byte)value;
        }

        private void Text(int field, string text)
        {
            Key(field, Delimited);
            var count = Encoding.UTF8.GetByteCount(text);
            Number((ulong)count);
            Encoding.UTF8.GetBytes(text, Take(count));
        }

        private Span<byte> Take(int count)
        {
            if (_length + count > _bytes.Length) Array.Resize(ref _bytes, Math.Max(_length + count, 2 * _bytes.Length));
            _length += count;
            return _bytes.AsSpan(_length - count, count);
        }

        private static int VarintBytes(int value) => (BitOperations.Log2((uint)value | 1) + 7) / 7;
    }
}
