using System.Text;
using CsCheck;
using MambaVL.Checkpoints;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Checkpoints;

public class SafetensorsTests : IDisposable
{
    private static readonly ScalarType[] Types =
    [
        ScalarType.Float64, ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16, ScalarType.Int64,
        ScalarType.Int32, ScalarType.Int16, ScalarType.Int8, ScalarType.Byte, ScalarType.Bool,
    ];

    private readonly TemporaryFolder _folder = new();
    private readonly DisposeScope _scope = NewDisposeScope();

    public void Dispose()
    {
        _scope.Dispose();
        _folder.Dispose();
    }

    // ---- reading ----

    [Fact]
    public void ReadsEveryElementType()
    {
        foreach (var type in Types)
        {
            var t = tensor(new[] { 0, 1, 1, 0, 1, 0 }).reshape(2, 3).to(type);
            var read = RoundTrip(t);
            read.dtype.Should().Be(type);
            read.shape.Should().Equal(2, 3);
            read.equal(t).all().item<bool>().Should().BeTrue($"{type} keeps its values");
        }
    }

    [SkippableFact]
    public void EveryFixtureIsReadWhole()
    {
        var files = FixtureFiles();
        Skip.If(files.Length == 0, $"There is no .safetensors file under {Fixtures.Root}.");
        foreach (var file in files)
        {
            using var checkpoint = Checkpoint.Open(file);
            checkpoint.Tensors.Should().NotBeEmpty();
            foreach (var entry in checkpoint.Tensors.Values)
            {
                using var t = checkpoint.Read(entry.Name);
                (t.dtype, string.Join(",", t.shape)).Should().Be((entry.DType, string.Join(",", entry.Shape)));
            }
        }
    }

    [SkippableFact]
    public void WritesWhatTheReferenceImplementationWroteByteForByte()
    {
        var files = FixtureFiles();
        Skip.If(files.Length == 0, $"There is no .safetensors file under {Fixtures.Root}.");
        foreach (var file in files)
        {
            using var checkpoint = Checkpoint.Open(file);
            var copy = _folder.Path("copy.safetensors");
            SafetensorsWriter.Write(copy, checkpoint.Tensors.Values, e => checkpoint.Read(e.Name), checkpoint.Metadata);
            File.ReadAllBytes(copy).AsSpan().SequenceEqual(File.ReadAllBytes(file)).Should().BeTrue($"{file} comes back unchanged");
        }
    }

    [Theory]
    [InlineData(ScalarType.Float16, ScalarType.Float32)]
    [InlineData(ScalarType.Float32, ScalarType.BFloat16)]
    [InlineData(ScalarType.Float64, ScalarType.Float32)]
    [InlineData(ScalarType.BFloat16, ScalarType.Float16)]
    public void ConvertsAsTorchDoes(ScalarType stored, ScalarType wanted)
    {
        var t = randn(1_500_000, dtype: ScalarType.Float32).to(stored); // more than one buffer
        Save("a", t);
        using var checkpoint = Checkpoint.Open(_folder.Path("model.safetensors"));
        var read = checkpoint.Read("a", wanted);
        read.dtype.Should().Be(wanted);
        read.equal(t.to(wanted)).all().item<bool>().Should().BeTrue();
    }

    [Fact]
    public void TensorsOutliveTheCheckpoint()
    {
        var t = randn(100_000);
        Save("a", t);
        Tensor read;
        using (var checkpoint = Checkpoint.Open(_folder.Root)) read = checkpoint.Read("a");
        File.Delete(_folder.Path("model.safetensors"));
        GC.Collect();
        GC.WaitForPendingFinalizers();
        read.equal(t).all().item<bool>().Should().BeTrue();
    }

    [SkippableFact]
    public void ATensorIsTheMappedFileAndGoesWithItsLastUse()
    {
        Skip.IfNot(OperatingSystem.IsLinux());
        Save("a", randn(100_000));
        using var checkpoint = Checkpoint.Open(_folder.Root);
        Maps().Should().Be(0);
        var read = checkpoint.Read("a");
        Maps().Should().Be(1);
        var half = read.narrow(0, 0, 10);
        read.Dispose();
        Maps().Should().Be(1, "a view of the tensor still uses the file");
        half.Dispose();
        Maps().Should().Be(0);

        int Maps() => File.ReadLines("/proc/self/maps").Count(l => l.Contains(_folder.Root));
    }

    [Fact]
    public void ChangesInPlaceReachNeitherTheFileNorOtherReads()
    {
        Save("a", ones(100_000));
        var before = File.ReadAllBytes(_folder.Path("model.safetensors"));
        using (var checkpoint = Checkpoint.Open(_folder.Root))
        {
            var (first, second) = (checkpoint.Read("a"), checkpoint.Read("a"));
            first.mul_(3);
            first.sum().item<float>().Should().Be(300_000);
            second.sum().item<float>().Should().Be(100_000);
            checkpoint.Read("a").sum().item<float>().Should().Be(100_000);
            first.Dispose();
        }
        File.ReadAllBytes(_folder.Path("model.safetensors")).Should().Equal(before);
    }

    [SkippableFact]
    public void TheNativeLibraryIsLoadedOnce()
    {
        Skip.IfNot(OperatingSystem.IsLinux());
        RoundTrip(randn(5000));
        File.ReadLines("/proc/self/maps").Where(l => l.Contains("LibTorchSharp")).Select(l => l.Split(' ', StringSplitOptions.RemoveEmptyEntries)[4])
            .Distinct().Should().HaveCount(1);
    }

    [Fact]
    public void MisalignedDataIsCopied()
    {
        var values = Enumerable.Range(0, 3000).Select(i => i * 0.5f).ToArray();
        var bytes = new byte[12000];
        Buffer.BlockCopy(values, 0, bytes, 0, bytes.Length);
        foreach (var padding in new[] { 0, 1, 2, 3 })
        {
            var path = Raw("""{"a":{"dtype":"F32","shape":[3000],"data_offsets":[0,12000]}}""" + new string(' ', padding), bytes);
            using var checkpoint = Checkpoint.Open(path);
            var read = checkpoint.Read("a");
            read.data<float>().ToArray().Should().Equal(values);
            if (OperatingSystem.IsLinux()) File.ReadLines("/proc/self/maps").Any(l => l.Contains(_folder.Root)).Should().Be(padding == 3, $"with {padding} bytes of padding");
            read.Dispose();
        }
    }

    [Fact]
    public void ReadsFromManyThreads()
    {
        Save("a", arange(50_000, dtype: ScalarType.Float32));
        using var checkpoint = Checkpoint.Open(_folder.Root);
        Parallel.For(0, 200, i =>
        {
            using var scope = NewDisposeScope();
            checkpoint.Read("a", i % 2 == 0 ? null : ScalarType.Float64)[49_999].to(ScalarType.Float32).item<float>().Should().Be(49_999);
        });
    }

    [Fact]
    public void AnUnknownTensorIsNamed()
    {
        Save("a", ones(3));
        using var checkpoint = Checkpoint.Open(_folder.Root);
        FluentActions.Invoking(() => checkpoint.Read("b")).Should().Throw<CheckpointException>()
            .WithMessage("*model.safetensors: tensor 'b'*").Which.Tensor.Should().Be("b");
        checkpoint.Dispose();
        FluentActions.Invoking(() => checkpoint.Read("a")).Should().Throw<ObjectDisposedException>();
    }

    [Fact]
    public void AMissingFileOrAnEmptyFolderIsNamed()
    {
        FluentActions.Invoking(() => Checkpoint.Open(_folder.Path("no.safetensors"))).Should().Throw<FileNotFoundException>().WithMessage("*no.safetensors*");
        FluentActions.Invoking(() => Checkpoint.Open(_folder.Root)).Should().Throw<CheckpointException>().WithMessage("*none of model.safetensors*");
        FluentActions.Invoking(() => Checkpoint.Open(_folder.Write("model.onnx", [1, 2, 3]))).Should().Throw<CheckpointException>().WithMessage("*unknown kind*");
    }

    // ---- headers that lie ----

    [Theory]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}""", "*not valid JSON*")]
    [InlineData("""[1,2]""", "*0x5b instead of*")]
    [InlineData("""{"a":[]}""", "*tensor 'a': is an array*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} x""", "*not valid JSON*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", "*tensor 'a': is in the header twice*")]
    [InlineData("""{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", "*dtype is there twice*")]
    [InlineData("""{"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}""", "*tensor 'a': element type 'F8_E4M3' is not supported*F64*")]
    [InlineData("""{"a":{"dtype":7,"shape":[8],"data_offsets":[0,8]}}""", "*dtype is a number*")]
    [InlineData("""{"a":{"shape":[2],"data_offsets":[0,8]}}""", "*lacks dtype*")]
    [InlineData("""{"a":{"dtype":"F32","data_offsets":[0,8]}}""", "*lacks shape*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2]}}""", "*lacks data_offsets*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"scale":2}}""", "*unknown field 'scale'*")]
    [InlineData("""{"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}}""", "*shape is a number*")]
    [InlineData("""{"a":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}}""", "*shape holds a string*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}}""", "*not valid JSON*depth*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}""", "*shape holds -2*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}""", "*shape holds 2.0*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}}""", "*shape holds 2e0*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[99999999999999999999999999999999999999999999999999],"data_offsets":[0,8]}}""", "*shape holds 9999999999999999999999999999999999999999,*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}""", "*does not fit*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}""", "*does not fit*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}}""", "*does not fit*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}""", "*shape [3] of F32 does not fit data_offsets [0, 8], 8 bytes*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,16]}}""", "*more than 2 numbers*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[8]}}""", "*1 numbers, expected 2*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}""", "*start <= end*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}""", "*start <= end <= 8*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[9223372036854775800,9223372036854775807]}}""", "*start <= end <= 8*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}""", "*4 bytes after the last tensor*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}""", "*tensor 'a': starts at byte 4*leave a hole*")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}""", "*tensor 'b'*overlap*")]
    [InlineData("""{"__metadata__":{"a":1},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", "*__metadata__ 'a' is a number*")]
    [InlineData("""{"__metadata__":{"a":{"b":"c"}},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", "*__metadata__ 'a' is an object*")]
    [InlineData("""{"__metadata__":[],"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", "*__metadata__ is an array*")]
    [InlineData("""{"__metadata__":{"a":"1","a":"2"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", "*__metadata__ 'a' is there twice*")]
    [InlineData("""{"\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", "*not valid JSON*")]
    [InlineData("""{"a\n\u001b[2J":{"dtype":"X","shape":[2],"data_offsets":[0,8]}}""", @"*tensor 'a\u000a\u001b[2J'*")]
    public void ABadHeaderIsRefused(string header, string message) => Refused(Raw(header, new byte[8]), message);

    [Fact]
    public void ManyDimensionsAreRefused()
        => Refused(Raw($$$"""{"a":{"dtype":"F32","shape":[{{{string.Join(",", Enumerable.Repeat("1", 65))}}}],"data_offsets":[0,4]}}""", new byte[4]), "*more than 64 numbers*");

    [Fact]
    public void DeepJsonIsRefused()
        => Refused(Raw($$$"""{"a":{"shape":{{{new string('[', 100_000)}}}""", []), "*not valid JSON*depth*");

    [Theory]
    [InlineData("", "*0 bytes long*")]
    [InlineData("01 00 00", "*3 bytes long*")]
    [InlineData("00 00 00 00 00 00 00 00", "*too short for a JSON object*")]
    [InlineData("ff ff ff ff ff ff ff ff 7b 7d", "*18446744073709551615 bytes long, in a file of 10*")]
    [InlineData("ff ff ff ff ff ff ff 7f 7b 7d", "*9223372036854775807 bytes long*")]
    [InlineData("03 00 00 00 00 00 00 00 7b 7d", "*3 bytes long, in a file of 10*")]
    [InlineData("03 00 00 00 00 00 00 00 7b ff 7d", "*not UTF-8*")]
    public void ABadLengthIsRefused(string hex, string message)
        => Refused(_folder.Write("bad.safetensors", Convert.FromHexString(hex.Replace(" ", ""))), message);

    [Fact]
    public void AnAbsurdHeaderIsRefusedBeforeItIsRead()
    {
        var path = _folder.Path("bad.safetensors");
        using (var file = File.Create(path))
        {
            file.Write(BitConverter.GetBytes(1L << 30));
            file.SetLength(2L << 30); // sparse
        }
        var before = GC.GetAllocatedBytesForCurrentThread();
        Refused(path, "*1073741824 bytes long; at most 100000000*");
        (GC.GetAllocatedBytesForCurrentThread() - before).Should().BeLessThan(1 << 20);
    }

    [Fact]
    public void ABoolThatIsNeitherIsRefused()
    {
        foreach (var count in new[] { 3, 100_000 })
        {
            var bytes = new byte[count];
            bytes[^1] = 2;
            using var checkpoint = Checkpoint.Open(Raw($$$"""{"a":{"dtype":"BOOL","shape":[{{{count}}}],"data_offsets":[0,{{{count}}}]}}""", bytes));
            foreach (var type in new ScalarType?[] { null, ScalarType.Float32 })
                FluentActions.Invoking(() => checkpoint.Read("a", type)).Should().Throw<CheckpointException>().WithMessage("*tensor 'a': a BOOL is 0 or 1, found 2*");
        }
    }

    [SkippableFact]
    public void AFileThatShrinksWhileItIsOpenIsAnError()
    {
        Skip.If(OperatingSystem.IsWindows(), "Windows keeps an open file from being changed.");
        Save("a", randn(10_000));
        using var checkpoint = Checkpoint.Open(_folder.Root);
        using (var file = new FileStream(_folder.Path("model.safetensors"), FileMode.Open, FileAccess.Write, FileShare.ReadWrite | FileShare.Delete)) file.SetLength(1000);
        FluentActions.Invoking(() => checkpoint.Read("a", ScalarType.Float64)).Should().Throw<CheckpointException>().WithMessage("*ends at byte*");
    }

    [Fact]
    public void AnLfsPointerIsExplained()
        => Refused(_folder.Write("bad.safetensors", Encoding.ASCII.GetBytes("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")), "*git lfs pull*");

    [Fact]
    public void EmptyAndZeroSizedFilesAreValid()
    {
        using (var none = Checkpoint.Open(Raw("{}", []))) none.Tensors.Should().BeEmpty();
        RoundTrip(zeros(0, 5)).shape.Should().Equal(0, 5);
        RoundTrip(tensor(3f)).shape.Should().BeEmpty();
    }

    // ---- writing ----

    [Fact]
    public void AnyTensorsComeBackAsTheyWere()
    {
        var shape = Gen.Long[0, 5].Array[0, 4];
        var one = Gen.Select(Gen.String[1, 8], Gen.OneOfConst(Types), shape, Gen.Bool);
        Gen.Select(one.Array[0, 6], Gen.Dictionary(Gen.String[1, 5], Gen.String)[0, 3]).Sample((specs, metadata) =>
        {
            using var scope = NewDisposeScope();
            var tensors = new Dictionary<string, Tensor>();
            foreach (var (name, type, dimensions, transpose) in specs)
            {
                if (!IsText(name)) continue;
                var t = randint(0, 2, dimensions, dtype: ScalarType.Int64).to(type);
                tensors[name] = transpose && dimensions.Length > 1 ? t.transpose(0, 1) : t;
            }
            metadata = metadata.Where(m => IsText(m.Key) && IsText(m.Value)).ToDictionary();
            var path = _folder.Path("any.safetensors");
            SafetensorsWriter.Write(path, tensors, metadata);
            using var read = Checkpoint.Open(path);
            return read.Tensors.Count == tensors.Count
                && read.Metadata.Count == metadata.Count && metadata.All(m => read.Metadata[m.Key] == m.Value)
                && tensors.All(t => read.Read(t.Key) is var r && r.dtype == t.Value.dtype && r.shape.SequenceEqual(t.Value.shape)
                    && (r.numel() == 0 || r.equal(t.Value).all().item<bool>()));
        }, iter: 300, threads: 1);

        static bool IsText(string s) => !s.Any(char.IsSurrogate);
    }

    [Fact]
    public void EveryTensorIsAligned()
    {
        var path = _folder.Path("a.safetensors");
        SafetensorsWriter.Write(path, Types.ToDictionary(t => t.ToString(), t => zeros(3, dtype: t)));
        using var checkpoint = Checkpoint.Open(path);
        foreach (var e in checkpoint.Tensors.Values)
            (checkpoint.Stored(e.Name).Offset % ElementTypes.Size(e.DType)).Should().Be(0, e.Name);
    }

    [Fact]
    public void WhatCannotBeWrittenIsRefusedAndLeavesNothing()
    {
        var path = _folder.Path("model.safetensors");
        Save("a", ones(3));
        var before = File.ReadAllBytes(path);

        Fails<ArgumentException>(() => SafetensorsWriter.Write(path, new Dictionary<string, Tensor> { ["c"] = zeros(3, dtype: ScalarType.ComplexFloat32) }), "*'c'*ComplexFloat32*");
        Fails<ArgumentException>(() => SafetensorsWriter.Write(path, new Dictionary<string, Tensor> { ["__metadata__"] = zeros(3) }), "*__metadata__*");
        TensorEntry a = new("a", ScalarType.Float32, [3]), b = new("b", ScalarType.Float32, [3]);
        Fails<ArgumentException>(() => SafetensorsWriter.Write(path, [a, a], _ => ones(3)), "*'a' is there twice*");
        Fails<ArgumentException>(() => SafetensorsWriter.Write(path, [a with { Shape = [-1] }], _ => ones(3)), "*impossible shape*");
        Fails<ArgumentException>(() => SafetensorsWriter.Write(path, [a, b], e => ones(e.Name == "a" ? 3 : 4)), "*'b' was announced*");
        Fails<IOException>(() => SafetensorsWriter.Write(path, [a, b], e => e.Name == "a" ? ones(3) : throw new IOException("no more")), "no more");
        Fails<IOException>(() => SafetensorsWriter.WriteFolder(_folder.Root, [a, b], _ => ones(3), maxShardBytes: 12), "*model.safetensors is there already*");

        File.ReadAllBytes(path).Should().Equal(before);

        void Fails<T>(Action write, string message) where T : Exception
        {
            write.Should().Throw<T>().WithMessage(message);
            Directory.GetFileSystemEntries(_folder.Root).Should().Equal(path);
        }
    }

    // ---- shards ----

    [Fact]
    public void ShardsComeBackWhole()
    {
        var tensors = Enumerable.Range(0, 10).ToDictionary(i => $"layer.{i}", i => full([100], i, dtype: ScalarType.Float32));
        var written = SafetensorsWriter.WriteFolder(_folder.Root, tensors, maxShardBytes: 1000);
        written.Select(Path.GetFileName).Should().Equal(
            [.. Enumerable.Range(1, 5).Select(i => $"model-{i:d5}-of-00005.safetensors"), "model.safetensors.index.json"]);
        foreach (var path in new[] { _folder.Root, written[^1] })
        {
            using var checkpoint = Checkpoint.Open(path);
            checkpoint.Tensors.Keys.Should().BeEquivalentTo(tensors.Keys);
            foreach (var (name, t) in tensors) checkpoint.Read(name).equal(t).all().item<bool>().Should().BeTrue();
        }
    }

    [Fact]
    public void OneShardIsAPlainFile()
        => SafetensorsWriter.WriteFolder(_folder.Root, new Dictionary<string, Tensor> { ["a"] = ones(3) }).Should().Equal(_folder.Path("model.safetensors"));

    [Theory]
    [InlineData("""{"weight_map":{"a":"../one.safetensors"}}""", "*tensor 'a'*'../one.safetensors'*plain name*")]
    [InlineData("""{"weight_map":{"a":"/etc/one.safetensors"}}""", "*plain name*")]
    [InlineData("""{"weight_map":{"a":"C:\\one.safetensors"}}""", "*plain name*")]
    [InlineData("""{"weight_map":{"a":".."}}""", "*plain name*")]
    [InlineData("""{"weight_map":{"a":""}}""", "*plain name*")]
    [InlineData("""{"weight_map":{"a":"one\u0000.safetensors"}}""", "*plain name*")]
    [InlineData("""{"weight_map":{"a":3}}""", "*tensor 'a': its file is not a string*")]
    [InlineData("""{"weight_map":{"a":"one.safetensors","a":"one.safetensors"}}""", "*tensor 'a': is in the weight_map twice*")]
    [InlineData("""{"weight_map":{"a":"one.safetensors"},"weight_map":{}}""", "*weight_map is there twice*")]
    [InlineData("""{"weight_map":[]}""", "*weight_map is not an object*")]
    [InlineData("""{"metadata":{}}""", "*no weight_map*")]
    [InlineData("""["weight_map"]""", "*expected a JSON object*")]
    [InlineData("", "*not a valid JSON index*")]
    [InlineData("""{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}""", "*1 of 2 files*'two.safetensors'*")]
    [InlineData("""{"weight_map":{"a":"one.safetensors","z":"one.safetensors"}}""", "*tensor 'z': is not in 'one.safetensors'*")]
    [InlineData("""{"weight_map":{"a":"one.safetensors","b":"copy.safetensors"}}""", "*tensor 'a': is in * as well*")]
    [InlineData("""{"weight_map":{"a":"other.safetensors","c":"one.safetensors"}}""", "*tensor 'a': is in 'one.safetensors'; the index places it in 'other.safetensors'*")]
    [InlineData("""{"weight_map":{"a":"one.onnx"}}""", "*unknown kind*")]
    [InlineData("""{"weight_map":{"a":"nested.json"}}""", "*unknown kind*")]
    public void ABadIndexIsRefused(string index, string message)
    {
        SafetensorsWriter.Write(_folder.Path("one.safetensors"), new Dictionary<string, Tensor> { ["a"] = ones(3), ["c"] = ones(3) });
        SafetensorsWriter.Write(_folder.Path("other.safetensors"), new Dictionary<string, Tensor> { ["d"] = ones(3) });
        File.Copy(_folder.Path("one.safetensors"), _folder.Path("copy.safetensors"));
        File.WriteAllText(_folder.Path("one.onnx"), "x");
        File.WriteAllText(_folder.Path("nested.json"), "{}");
        Refused(_folder.Write("model.safetensors.index.json", Encoding.UTF8.GetBytes(index)), message);
    }

    private static string[] FixtureFiles()
        => Directory.Exists(Fixtures.Root) ? Directory.GetFiles(Fixtures.Root, "*.safetensors", SearchOption.AllDirectories) : [];

    private void Refused(string path, string message)
        => FluentActions.Invoking(() => Checkpoint.Open(path)).Should().Throw<CheckpointException>().WithMessage(message)
            .Which.Message.Should().Contain(_folder.Root);

    private string Raw(string header, byte[] data)
    {
        var json = Encoding.UTF8.GetBytes(header);
        return _folder.Write("bad.safetensors", [.. BitConverter.GetBytes((long)json.Length), .. json, .. data]);
    }

    private void Save(string name, Tensor t) => SafetensorsWriter.Write(_folder.Path("model.safetensors"), new Dictionary<string, Tensor> { [name] = t });

    private Tensor RoundTrip(Tensor t)
    {
        Save("a", t);
        using var checkpoint = Checkpoint.Open(_folder.Root);
        return checkpoint.Read("a");
    }
}
