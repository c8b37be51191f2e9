using System.Buffers.Binary;
using System.Text;
using MambaVL.Training;
using Tensorboard;

namespace MambaVL.Tests.Training;

public sealed class TensorBoardWriterTests : IDisposable
{
    private readonly string _folder = Path.Combine(Path.GetTempPath(), $"mambavl-tensorboard-{Guid.NewGuid():n}");

    public TensorBoardWriterTests() => Directory.CreateDirectory(_folder);

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    // RFC 3720, appendix B.4.
    [Theory]
    [InlineData("0000000000000000000000000000000000000000000000000000000000000000", 0x8A9136AAu)]
    [InlineData("FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF", 0x62A8AB43u)]
    [InlineData("000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F", 0x46DD794Eu)]
    [InlineData("1F1E1D1C1B1A191817161514131211100F0E0D0C0B0A09080706050403020100", 0x113FDB5Cu)]
    [InlineData("01C000000000000000000000000000001400000000000400000000140000001828000000000000000200000000000000", 0xD9963A56u)]
    public void TheChecksumIsThatOfTheStandard(string hex, uint expected)
        => TensorBoardWriter.Checksum(Convert.FromHexString(hex)).Should().Be(expected);

    // What TensorFlow wrote, as tensorboard/data/server/tf_record.rs has it in its tests (an xxd of an event file).
    [Theory]
    [InlineData("090000803899D6D7411A0D627261696E2E4576656E743A32", "A37F4B22", "124B36AB")]
    [InlineData("09C405B73D99D6D741104D2A250A230A086163637572616379420A080112002204A4707D3F4A0B0A090A077363616C617273", "241956EC", "A55B6433")]
    public void RecordsHaveTheChecksumsThatTensorFlowGivesThem(string payload, string lengthChecksum, string checksum)
    {
        var bytes = Convert.FromHexString(payload);
        var length = new byte[8];
        BinaryPrimitives.WriteInt64LittleEndian(length, bytes.Length);
        TensorBoardWriter.MaskedChecksum(length).Should().Be(BinaryPrimitives.ReadUInt32LittleEndian(Convert.FromHexString(lengthChecksum)));
        TensorBoardWriter.MaskedChecksum(bytes).Should().Be(BinaryPrimitives.ReadUInt32LittleEndian(Convert.FromHexString(checksum)));
    }

    [Fact]
    public void AFileStartsWithTheBytesThatTensorFlowWritesAtThatTime()
    {
        // The time of the test above.
        using var writer = new TensorBoardWriter(_folder, null, new Clock(1599759586));
        writer.Dispose();
        Convert.ToHexString(File.ReadAllBytes(writer.Path)).Should().Be(
            "1800000000000000" + "A37F4B22" + "0900008038" + "99D6D7411A0D627261696E2E4576656E743A32" + "124B36AB");
    }

    [Fact]
    public void WhatIsWrittenIsWhatTensorBoardReads()
    {
        var clock = new Clock(1_700_000_000.25);
        using (var writer = new TensorBoardWriter(_folder, null, clock))
        {
            writer.Write(new TrainingPoint(1, 2.5, 1e-4));
            writer.Write(new TrainingPoint(300, 0.125, 0, 0.75));
            writer.Write("größe/" + new string('x', 300), double.NaN, -1);
            writer.Write("large", double.PositiveInfinity, long.MaxValue);
        }
        var events = Read();
        events[0].FileVersion.Should().Be("brain.Event:2");
        events.Should().OnlyContain(e => e.WallTime == 1_700_000_000.25);
        Scalars(events).Should().Equal(
            (1, TensorBoardWriter.LossTag, 2.5f), (1, TensorBoardWriter.LearningRateTag, 1e-4f),
            (300, TensorBoardWriter.LossTag, 0.125f), (300, TensorBoardWriter.LearningRateTag, 0f), (300, TensorBoardWriter.MetricTag, 0.75f),
            (-1, "größe/" + new string('x', 300), float.NaN), (long.MaxValue, "large", float.PositiveInfinity));
    }

    [Fact]
    public void TagsOfEveryLengthAreRead()
    {
        var tags = Enumerable.Range(1, 300).Append(20_000).Select(n => new string('t', n)).ToList();
        using (var writer = new TensorBoardWriter(_folder))
            foreach (var tag in tags) writer.Write(tag, tag.Length, 1);
        Scalars(Read()).Should().Equal(tags.Select(t => (1L, t, (float)t.Length)));
    }

    [Fact]
    public void EachStartHasAFileAndSaysWhereItGoesOn()
    {
        var clock = new Clock(1_700_000_000);
        using (var writer = new TensorBoardWriter(_folder, null, clock))
            for (var step = 1; step <= 5; step++) writer.Write("loss", step, step);
        using (var writer = new TensorBoardWriter(_folder, firstStep: 4, clock)) writer.Write("loss", 40, 4);

        Directory.GetFiles(_folder).Should().HaveCount(2, "within one second, too");
        var events = Read();
        Scalars(events).Should().HaveCount(6);
        var start = events.Single(e => e.SessionLog is not null);
        (start.Step, start.SessionLog.Status).Should().Be((4L, SessionLog.Types.SessionStatus.Start));
        events.IndexOf(start).Should().Be(7, "it stands in the second file, after the version");
    }

    [Fact]
    public void FilesOfOneSecondAreInTheOrderOfTheirStarts()
    {
        var clock = new Clock(1_700_000_000);
        for (var i = 0; i < 12; i++) // more than there are digits
            using (var writer = new TensorBoardWriter(_folder, null, clock)) writer.Write("loss", i, 1);
        Scalars(Read()).Select(s => (int)s.Item3).Should().Equal(Enumerable.Range(0, 12));
    }

    [Fact]
    public void ARunningTrainingIsReadFromTheFile()
    {
        var clock = new Clock(1_700_000_000);
        using var writer = new TensorBoardWriter(_folder, null, clock);
        Read().Should().HaveCount(1, "the version is there at once");
        writer.Write("loss", 1, 1);
        Read().Should().HaveCount(1, "no write goes to the disk alone");
        clock.Advance(TensorBoardWriter.FlushInterval);
        writer.Write("loss", 2, 2);
        Read().Should().HaveCount(3);
        writer.Write("loss", 3, 3);
        Read().Should().HaveCount(3);
        writer.Flush();
        Read().Should().HaveCount(4);
    }

    [Fact]
    public void ATagIsNeeded()
    {
        using var writer = new TensorBoardWriter(_folder);
        writer.Invoking(w => w.Write("", 1, 1)).Should().Throw<ArgumentException>();
    }

    private static List<(long, string, float)> Scalars(IEnumerable<Event> events)
        => [.. events.Where(e => e.Summary is not null).SelectMany(e => e.Summary.Value.Select(v => (e.Step, v.Tag, v.SimpleValue)))];

    /// <summary>The events of all files in the order of their names, decoded by protobuf's own code from TorchSharp's classes.</summary>
    private List<Event> Read()
    {
        var events = new List<Event>();
        foreach (var path in Directory.GetFiles(_folder).Order(StringComparer.Ordinal))
        {
            using var file = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite);
            using var reader = new BinaryReader(file, Encoding.UTF8);
            while (file.Position < file.Length)
            {
                var header = reader.ReadBytes(8);
                reader.ReadUInt32().Should().Be(Masked(header));
                var bytes = reader.ReadBytes((int)BinaryPrimitives.ReadInt64LittleEndian(header));
                reader.ReadUInt32().Should().Be(Masked(bytes));
                events.Add(Event.Parser.ParseFrom(bytes));
            }
        }
        return events;

        static uint Masked(byte[] bytes)
        {
            var crc = BitByBit(bytes);
            return unchecked(((crc >> 15) | (crc << 17)) + 0xa282ead8u);
        }
    }

    private static uint BitByBit(byte[] bytes)
    {
        var crc = ~0u;
        foreach (var b in bytes)
        {
            crc ^= b;
            for (var i = 0; i < 8; i++) crc = (crc & 1) != 0 ? crc >> 1 ^ 0x82F63B78u : crc >> 1; // Castagnoli's polynomial, reflected
        }
        return ~crc;
    }
}
