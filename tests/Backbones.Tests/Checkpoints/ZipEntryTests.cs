using System.IO.Compression;
using MambaVL.Checkpoints;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Checkpoints;

public class ZipEntryTests
{
    [Fact]
    public void AStoredEntryIsReadInPlace()
    {
        using var folder = new TemporaryFolder();
        var zip = Write(folder, CompressionLevel.NoCompression);
        using var checkpoint = Checkpoint.OpenZipEntry(zip, "a/weights.safetensors");
        checkpoint.Tensors.Keys.Should().BeEquivalentTo("large", "small");
        using var large = checkpoint.Read("large");
        using var small = checkpoint.Read("small");
        using var expected = arange(5000, dtype: ScalarType.Float32);
        large.equal(expected).all().item<bool>().Should().BeTrue();
        small.data<long>().Should().Equal(3, 4);
    }

    [Fact]
    public void ACompressedMissingOrForeignEntryIsNamed()
    {
        using var folder = new TemporaryFolder();
        var zip = Write(folder, CompressionLevel.Optimal);
        FluentActions.Invoking(() => Checkpoint.OpenZipEntry(zip, "a/weights.safetensors")).Should().Throw<CheckpointException>().WithMessage("*a/weights.safetensors*compressed*");
        FluentActions.Invoking(() => Checkpoint.OpenZipEntry(zip, "b")).Should().Throw<CheckpointException>().WithMessage("*no entry 'b'*");
        FluentActions.Invoking(() => Checkpoint.OpenZipEntry(zip, "stored.txt")).Should().Throw<CheckpointException>();
        FluentActions.Invoking(() => Checkpoint.OpenZipEntry(zip + "x", "b")).Should().Throw<FileNotFoundException>();
    }

    [Fact]
    public void AFileThatMayNotBeMappedCanGoOnceItsTensorsAreRead()
    {
        using var folder = new TemporaryFolder();
        var path = folder.Path("w.safetensors");
        using (var source = arange(5000, dtype: ScalarType.Float32)) SafetensorsWriter.Write(path, new Dictionary<string, Tensor> { ["t"] = source });
        Tensor read;
        using (var checkpoint = Checkpoint.Open(path, canMap: false)) read = checkpoint.Read("t");
        var bytes = File.ReadAllBytes(path);
        Array.Clear(bytes, bytes.Length / 2, bytes.Length / 2);
        using (var file = File.OpenWrite(path)) file.Write(bytes); // a mapped tensor would show it
        using (read) read[4999].item<float>().Should().Be(4999);
    }

    [Fact, Trait("Category", "Slow")]
    public void AnEntryAboveFourGigabytesIsReadInPlace()
    {
        using var folder = new TemporaryFolder(inMemory: false);
        var path = folder.Path("large.zip");
        using (var zeros = torch.zeros((1L << 30) + 1000, dtype: ScalarType.Float32)) // pages that are only read take no memory
        using (var last = tensor(new float[] { 1, 2, 3 }))
        using (var zip = ZipFile.Open(path, ZipArchiveMode.Create))
        {
            using (var stream = zip.CreateEntry("a/weights.safetensors", CompressionLevel.NoCompression).Open())
                SafetensorsWriter.Write(stream, new Dictionary<string, Tensor> { ["a"] = zeros, ["last"] = last });
            using (var text = zip.CreateEntry("after.txt").Open()) text.Write(new byte[1000]);
        }
        new FileInfo(path).Length.Should().BeGreaterThan(1L << 32);
        using var checkpoint = Checkpoint.OpenZipEntry(path, "a/weights.safetensors");
        using var read = checkpoint.Read("last");
        read.data<float>().Should().Equal(1, 2, 3);
        using var large = checkpoint.Read("a");
        large[-1].item<float>().Should().Be(0);
    }

    private static string Write(TemporaryFolder folder, CompressionLevel level)
    {
        var path = folder.Path("model.zip");
        using var large = arange(5000, dtype: ScalarType.Float32);
        using var small = tensor(new long[] { 3, 4 });
        using var zip = ZipFile.Open(path, ZipArchiveMode.Create);
        using (var text = zip.CreateEntry("stored.txt", CompressionLevel.NoCompression).Open()) text.Write("some text, which is no tensor"u8);
        using (var text = zip.CreateEntry("deflated.txt").Open()) text.Write(new byte[1000]);
        using var stream = zip.CreateEntry("a/weights.safetensors", level).Open();
        SafetensorsWriter.Write(stream, new Dictionary<string, Tensor> { ["large"] = large, ["small"] = small });
        return path;
    }
}
