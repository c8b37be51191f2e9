using System.IO.Compression;
using System.Text;
using CsCheck;
using MambaVL.Checkpoints;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Checkpoints;

public class TorchPickleTests : IDisposable
{
    private readonly TemporaryFolder _folder = new();
    private readonly DisposeScope _scope = NewDisposeScope();

    public void Dispose()
    {
        _scope.Dispose();
        _folder.Dispose();
    }

    // ---- reading ----

    [SkippableFact]
    public void EveryFixtureHoldsTheBytesOfItsEntries()
    {
        var files = Directory.Exists(Fixtures.Root) ? Directory.GetFiles(Fixtures.Root, "pytorch_model.bin", SearchOption.AllDirectories) : [];
        Skip.If(files.Length == 0, $"There is no pytorch_model.bin under {Fixtures.Root}.");
        foreach (var file in files)
        {
            using var zip = ZipFile.OpenRead(file);
            var entries = zip.Entries.Select(e => Hash(e.Open())).ToHashSet();
            using var checkpoint = Checkpoint.Open(file);
            checkpoint.Tensors.Should().NotBeEmpty();
            foreach (var name in checkpoint.Tensors.Keys)
            {
                using var t = checkpoint.Read(name);
                entries.Should().Contain(Hash(new MemoryStream(t.bytes.ToArray())), $"{name} is one of the entries");
            }
        }

        static string Hash(Stream s)
        {
            using (s) return Convert.ToHexString(System.Security.Cryptography.SHA256.HashData(s));
        }
    }

    // What Python's own pickler writes, at protocols 2 and 4, for a state dictionary of a matrix 'a', a parameter 'b' that
    // is every second element of the same storage, a scalar 'c' and the _metadata that modules add.
    [Theory]
    [InlineData("gAJjY29sbGVjdGlvbnMKT3JkZXJlZERpY3QKcQApUnEBKFgBAAAAYXECY3RvcmNoLl91dGlscwpfcmVidWlsZF90ZW5zb3JfdjIKcQMoKFgHAAAAc3RvcmFnZXEEY3RvcmNoCkZsb2F0U3RvcmFnZQpxBVgBAAAAMHEGWAMAAABjcHVxB0sGdHEIUUsASwJLA4ZxCUsDSwGGcQqJaAApUnELdHEMUnENWAEAAABicQ5jdG9yY2guX3V0aWxzCl9yZWJ1aWxkX3BhcmFtZXRlcgpxD2gDKChoBGgFaAZoB0sGdHEQUUsCSwKFcRFoEYloAClScRJ0cRNScRSIaAApUnEVh3EWUnEXWAEAAABjcRhoAygoaARoBWgGaAdLBnRxGVFLBSkpiWgAKVJxGnRxG1JxHHV9cR1YCQAAAF9tZXRhZGF0YXEeaAApUnEfKFgAAAAAcSB9cSFYBwAAAHZlcnNpb25xIksBc1gBAAAAeHEjfXEkKGgiSiBs+/9YAQAAAGZxJUc/+AAAAAAAAFgBAAAAbHEmXXEnKEsBSwJLA2VYAQAAAG5xKE5YAwAAAGJpZ3EpigYAAAAAAAF1dXNiLg==")]
    [InlineData("gASVbQEAAAAAAACMC2NvbGxlY3Rpb25zlIwLT3JkZXJlZERpY3SUk5QpUpQojAFhlIwMdG9yY2guX3V0aWxzlIwSX3JlYnVpbGRfdGVuc29yX3YylJOUKCiMB3N0b3JhZ2WUjAV0b3JjaJSMDEZsb2F0U3RvcmFnZZSTlIwBMJSMA2NwdZRLBnSUUUsASwJLA4aUSwNLAYaUiWgCKVKUdJRSlIwBYpRoBYwSX3JlYnVpbGRfcGFyYW1ldGVylJOUaAcoKGgIaAtoDGgNSwZ0lFFLAksChZRoGIloAilSlHSUUpSIaAIpUpSHlFKUjAFjlGgHKChoCGgLaAxoDUsGdJRRSwUpKYloAilSlHSUUpR1fZSMCV9tZXRhZGF0YZRoAilSlCiMAJR9lIwHdmVyc2lvbpRLAXOMAXiUfZQoaClKIGz7/4wBZpRHP/gAAAAAAACMAWyUXZQoSwFLAksDZYwBbpROjANiaWeUigYAAAAAAAF1dXNiLg==")]
    public void ReadsWhatPythonPickles(string base64)
    {
        using var checkpoint = Open(new TorchFile(Convert.FromBase64String(base64), Floats(0, 1, 2, 3, 4, 5)));
        checkpoint.Tensors.Keys.Should().Equal("a", "b", "c");
        checkpoint.Read("a").shape.Should().Equal(2, 3);
        checkpoint.Read("a").data<float>().ToArray().Should().Equal(0, 1, 2, 3, 4, 5);
        checkpoint.Read("b").data<float>().ToArray().Should().Equal(2, 4);
        checkpoint.Read("c").shape.Should().BeEmpty();
        checkpoint.Read("c").item<float>().Should().Be(5);
    }

    [Theory]
    [InlineData("Double", ScalarType.Float64)]
    [InlineData("Float", ScalarType.Float32)]
    [InlineData("Half", ScalarType.Float16)]
    [InlineData("BFloat16", ScalarType.BFloat16)]
    [InlineData("Long", ScalarType.Int64)]
    [InlineData("Int", ScalarType.Int32)]
    [InlineData("Short", ScalarType.Int16)]
    [InlineData("Char", ScalarType.Int8)]
    [InlineData("Byte", ScalarType.Byte)]
    [InlineData("Bool", ScalarType.Bool)]
    public void ReadsEveryElementType(string storage, ScalarType type)
    {
        var t = tensor(new[] { 0, 1, 1, 0, 1, 0 }).to(type);
        foreach (ushort alignment in new ushort[] { 64, 1 })
        {
            using var checkpoint = Open(new TorchFile(Pickle.Of(("t", storage, "0", 6, 0, [2, 3], [3, 1])), t.bytes.ToArray()) { Alignment = alignment });
            var read = checkpoint.Read("t");
            read.dtype.Should().Be(type);
            read.equal(t.reshape(2, 3)).all().item<bool>().Should().BeTrue();
        }
    }

    [Fact]
    public void AnyViewOfAStorageIsWhatTorchSeesThere()
    {
        var values = arange(5000, dtype: ScalarType.Float32);
        var bytes = values.bytes.ToArray();
        var shape = Gen.Long[0, 12].Array[0, 3];
        Gen.Select(shape, Gen.Long[0, 40].Array[3], Gen.Long[0, 200], Gen.Bool).Sample((size, allStrides, offset, convert) =>
        {
            using var scope = NewDisposeScope();
            var strides = allStrides[..size.Length];
            long extent = 1 + size.Zip(strides, (n, s) => Math.Max(n - 1, 0) * s).Sum();
            if (offset + extent > 5000) return true;
            using var checkpoint = Open(new TorchFile(Pickle.Of(("t", "Float", "0", 5000, offset, size, strides)), bytes));
            var read = checkpoint.Read("t", convert ? ScalarType.Float64 : null);
            var expected = values.as_strided(size, strides, offset).to(read.dtype);
            return read.is_contiguous() && read.shape.SequenceEqual(size) && (read.numel() == 0 || read.equal(expected).all().item<bool>());
        }, iter: 300, threads: 1);
    }

    [SkippableFact]
    public void StoragesAreMappedAndShared()
    {
        Skip.IfNot(OperatingSystem.IsLinux());
        var values = arange(20_000, dtype: ScalarType.Float32);
        using var checkpoint = Open(new TorchFile(
            Pickle.Of(("a", "Float", "0", 20_000, 0, [20_000], [1]), ("b", "Float", "0", 20_000, 10_000, [100, 100], [100, 1])), values.bytes.ToArray()));
        var (a, b) = (checkpoint.Read("a"), checkpoint.Read("b"));
        File.ReadLines("/proc/self/maps").Count(l => l.Contains(_folder.Root)).Should().Be(2);
        a.zero_();
        b[99, 99].item<float>().Should().Be(19_999, "each read has pages of its own");
    }

    [Theory]
    [InlineData("state_dict")]
    [InlineData("model")]
    public void TheStateMayLieInAWrapper(string wrapper)
    {
        var p = new Pickle().Start().Op('}').Op('(').Text("epoch").Int(3).Text(wrapper).Op('}')
            .Text("w").Tensor("Float", "0", 2, 0, [2], [1]).Op('s').Op('u').Op('.');
        using var checkpoint = Open(new TorchFile(p.Bytes, Floats(1, 2)));
        checkpoint.Tensors.Keys.Should().Equal("w");
    }

    [Fact]
    public void Zip64AndACommentAreRead()
    {
        var pickle = Pickle.Of(("w", "Float", "0", 2, 0, [2], [1]));
        using (var checkpoint = Open(new TorchFile(pickle, Floats(1, 2)) { Zip64 = true })) checkpoint.Read("w").sum().item<float>().Should().Be(3);
        using (var checkpoint = Open(new TorchFile(pickle, Floats(1, 2)) { Comment = "PK\x5\x6 and more than twenty-two characters" })) checkpoint.Read("w").sum().item<float>().Should().Be(3);
    }

    [Fact]
    public void ShardsAreRead()
    {
        _folder.Write("one.bin", new TorchFile(Pickle.Of(("a", "Float", "0", 2, 0, [2], [1])), Floats(1, 2)).Bytes());
        _folder.Write("two.bin", new TorchFile(Pickle.Of(("b", "Float", "0", 2, 0, [2], [1])), Floats(3, 4)).Bytes());
        File.WriteAllText(_folder.Path("pytorch_model.bin.index.json"), """{"metadata":{"total_size":16},"weight_map":{"a":"one.bin","b":"two.bin"}}""");
        using var checkpoint = Checkpoint.Open(_folder.Root);
        checkpoint.Read("b").data<float>().ToArray().Should().Equal(3, 4);
        checkpoint.Tensors.Should().HaveCount(2);
    }

    // ---- pickles that are no state dictionaries ----

    [Theory]
    [InlineData("posix", "system")]
    [InlineData("builtins", "eval")]
    [InlineData("__builtin__", "eval")]
    [InlineData("torch.jit", "load")]
    [InlineData("numpy.core.multiarray", "_reconstruct")]
    [InlineData("torch", "ComplexFloatStorage")]
    [InlineData("torch._utils", "_rebuild_tensor_v3")]
    [InlineData("collections", "OrderedDict\u001b[2J")]
    public void AnyOtherClassIsNamed(string module, string name)
    {
        var shown = $"'{module}.{name}'".Replace("\u001b", @"\u001b");
        RefusedPickle(new Pickle().Start().Global(module, name).Text("touch /tmp/x").Op(0x85).Op('R').Op('.').Bytes, $"*{shown}*nothing was run*");
        RefusedPickle(new Pickle().Start().Text(module).Text(name).Op(0x93).Op('.').Bytes, $"*{shown}*nothing was run*");
    }

    [Theory]
    [InlineData('i', "INST")]
    [InlineData('o', "OBJ")]
    [InlineData('\u0081', "NEWOBJ")]
    [InlineData('\u0092', "NEWOBJ_EX")]
    [InlineData('P', "PERSID")]
    [InlineData('\u0082', "EXT1")]
    [InlineData('\u0097', "NEXT_BUFFER")]
    [InlineData('2', "DUP")]
    [InlineData('\u00ff', "unknown")]
    public void AnyOtherOpcodeIsNamed(char opcode, string name)
        => RefusedPickle(new Pickle().Start().Op('(').Op((byte)opcode).Bytes, $"*byte 3 of data.pkl: opcode 0x{(int)opcode:x2} ({name})*");

    [Fact]
    public void ABrokenProgramIsRefused()
    {
        Pickle P() => new Pickle().Start();
        RefusedPickle([], "*ends in the middle*");
        RefusedPickle(P().Op('}').Bytes, "*ends in the middle*");
        RefusedPickle(P().Op('X').Op(255, 255, 255, 255).Bytes, "*text of 4294967295 bytes*");
        RefusedPickle(P().Op('X').Op(2, 0, 0, 0, 0xff, 0xff).Op('.').Bytes, "*not UTF-8*");
        RefusedPickle(P().Op('c').Op(Encoding.ASCII.GetBytes(new string('a', 10_000))).Bytes, "*does not end within*");
        RefusedPickle([0x80, 9], "*protocol 9*");
        RefusedPickle(P().Op('.').Bytes, "*ends with 0 values*");
        RefusedPickle(P().Op('}').Op('}').Op('.').Bytes, "*ends with 2 values*");
        RefusedPickle(P().Int(1).Op('.').Bytes, "*other than a dictionary*");
        RefusedPickle(P().Op('(').Op('.').Bytes, "*other than a dictionary*");
        RefusedPickle(P().Op('t').Bytes, "*no mark*");
        RefusedPickle(P().Op(0x87).Bytes, "*too few values on the stack*");
        RefusedPickle(P().Op('(').Int(1).Op(0x86).Bytes, "*too few values after the mark*");
        RefusedPickle(P().Op((byte)'q', 0).Bytes, "*expected a value*");
        RefusedPickle(P().Op('(').Op((byte)'q', 0).Bytes, "*expected a value*");
        RefusedPickle(P().Op((byte)'h', 7).Bytes, "*value 7 was never remembered*");
        RefusedPickle(P().Op('j').Op(255, 255, 255, 255).Bytes, "*value 4294967295 was never remembered*");
        RefusedPickle(P().Int(1).Text("a").Text("b").Op('s').Bytes, "*expected a dictionary*");
        RefusedPickle(P().Op('}').Op('(').Text("a").Op('u').Bytes, "*a key without a value*");
        RefusedPickle(P().Op('}').Int(1).Op('a').Bytes, "*expected a list*");
        RefusedPickle(P().Op(']').Op('}').Op('b').Bytes, "*expected an OrderedDict*");
        RefusedPickle(P().Op(0x8a, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9).Bytes, "*integer of 9 bytes*");
        RefusedPickle(P().Text("f").Op(')').Op('R').Bytes, "*no function*");
        RefusedPickle(P().Global("torch", "FloatStorage").Op(')').Op('R').Bytes, "*no function*");
        RefusedPickle(P().Global("collections", "OrderedDict").Tuple(1).Op('R').Bytes, "*OrderedDict is called with other arguments*");
        RefusedPickle(P().Global("torch._utils", "_rebuild_tensor_v2").Tuple(1, 2, 3, 4, 5, 6).Op('R').Bytes, "*RebuildTensor is called with other arguments*");
        RefusedPickle(P().Global("torch._utils", "_rebuild_parameter").Tuple(1, 2, 3).Op('R').Bytes, "*RebuildParameter is called with other arguments*");
        RefusedPickle(P().Text("0").Op('Q').Bytes, "*persistent id*");
        RefusedPickle(P().Tuple(1, 2, 3, 4, 5).Op('Q').Bytes, "*persistent id*");
    }

    [Fact]
    public void StackAndMemoHaveLimits()
    {
        RefusedPickle(Enumerable.Repeat((byte)'(', 200_000).ToArray(), "*more than 100000 values on the stack*");
        RefusedPickle(new byte[(16 << 20) + 1], "*16777217 bytes long; at most 16777216*");
    }

    [Fact]
    public void ADictionaryOfOtherThingsIsRefused()
    {
        RefusedPickle(new Pickle().Start().Op('}').Op('.').Bytes, "*no tensors at the top*");
        RefusedPickle(new Pickle().Start().Op('}').Text("lr").Int(3).Op('s').Op('.').Bytes, "*no tensors at the top*");
        var mixed = new Pickle().Start().Op('}').Text("w").Tensor("Float", "0", 1, 0, [1], [1]).Op('s');
        RefusedPickle(new Pickle().Op(mixed.Bytes).Text("step").Int(3).Op('s').Op('.').Bytes, "*tensor 'step': is not a tensor*");
        RefusedPickle(new Pickle().Op(mixed.Bytes).Int(3).Int(3).Op('s').Op('.').Bytes, "*a key that is not text*");
        RefusedPickle(Pickle.Of(("w", "Float", "0", 1, 0, [1], [1]), ("w", "Float", "0", 1, 0, [1], [1])), "*tensor 'w': is there twice*");
    }

    [Fact]
    public void ATensorBeyondItsStorageIsRefused()
    {
        Try("0", 2, 0, [3], [1], "*beyond its storage of 2*");
        Try("0", 2, 1, [2], [1], "*beyond its storage*");
        Try("0", 2, 3, [0], [1], "*make no tensor*");
        Try("0", 2, -1, [1], [1], "*make no tensor*");
        Try("0", 2, 0, [-1], [1], "*make no tensor*");
        Try("0", 2, 0, [2], [-1], "*make no tensor*");
        Try("0", 2, 0, [2], [1, 1], "*make no tensor*");
        Try("0", 2, 0, [long.MaxValue, 3], [0, 0], "*make no tensor*");
        Try("0", 2, 0, [2], [long.MaxValue], "*beyond its storage*");
        Try("0", 2, 0, [1L << 30, 1L << 30], [long.MaxValue, long.MaxValue], "*beyond its storage*");
        Try("0", 2, 0, [1L << 40], [0], "*expanded view of 1099511627776*");
        Try("0", 3, 0, [2], [1], "*said to hold 3 elements of 4 bytes, in an entry of 8*");
        Try("0", long.MaxValue, 0, [2], [1], "*said to hold*");
        Try("0", -1, 0, [0], [1], "*said to hold*");
        Try("7", 2, 0, [2], [1], "*its storage '7' is not in the file*");
        Try("../data.pkl", 2, 0, [2], [1], "*its storage '../data.pkl' is not in the file*");
        Try("0", 2, 0, [.. Enumerable.Repeat(1L, 65)], [.. Enumerable.Repeat(1L, 65)], "*65 dimensions*");

        void Try(string key, long count, long offset, long[] shape, long[] strides, string message)
            => RefusedPickle(Pickle.Of(("w", "Float", key, count, offset, shape, strides)), message);
    }

    // ---- zips that lie ----

    [Fact]
    public void ABadZipIsRefused()
    {
        var pickle = Pickle.Of(("w", "Float", "0", 2, 0, [2], [1]));
        TorchFile Good() => new(pickle, Floats(1, 2));
        Refused(new TorchFile(pickle, Floats(1, 2)) { Method = 8 }.Bytes(), "*compressed (method 8)*save_file*");
        Refused(new TorchFile(pickle, Floats(1, 2)) { Flags = 1 }.Bytes(), "*encrypted*");
        Refused(With(f => f.Entries.Add(f.Entries[0])), "*'archive/data.pkl' is there twice*");
        Refused(With(f => f.Entries.Add(("other/data.pkl", []))), "*found 2*");
        Refused(With(f => f.Entries.RemoveAt(0)), "*found 0*");
        Refused(With(f => f.Entries[0] = ("a/b/data.pkl", pickle)), "*found 0*");
        Refused(With(f => f.Entries[1] = ("archive/byteorder", "big"u8.ToArray())), "*byte order is 'big'*");
        Refused(Good().Bytes()[..^1], "*no end record*");
        Refused(Good().Bytes()[..100], "*no end record*");
        Refused(Patch(-18, 1, 0), "*one part of several*");
        Refused(Patch(-10, 0xff, 0xff, 0, 0), "*outside the file*");
        Refused(Patch(-6, 0xff, 0xff, 0, 0), "*outside the file*");
        Refused(Patch(-14, 9, 0, 9, 0), "*9 entries do not fit*");
        Refused(Patch(0, [.. "PK"u8, 9, 9]), "*damaged header*");
        Refused([.. BitConverter.GetBytes(0x06054b50), .. new byte[4], 0xff, 0xff, 0xff, 0xff, .. new byte[10]], "*locator is missing*");
        Refused([0x80, 2, .. new byte[100]], "*before PyTorch 1.6*save_file(torch.load(*");
        Refused([], "*0 bytes long*");
        Refused("<!DOCTYPE html>"u8.ToArray(), "*starts with bytes 0x3c 0x21*");

        var zip64 = new TorchFile(pickle, Floats(1, 2)) { Zip64 = true }.Bytes();
        var locator = zip64.Length - 22 - 20;
        Refused(Overwrite(zip64, locator, 0), "*locator is missing*");
        Refused(Overwrite(zip64, locator + 8 + 7, 0xff), "*points outside*");
        Refused(Overwrite(zip64, locator - 56, 0), "*zip64 end record is damaged*");
        Refused(Overwrite(zip64, locator - 56 + 32 + 7, 0x7f), "*entries do not fit*");
        Refused(Overwrite(zip64, locator - 56 + 40 + 7, 0x7f), "*outside the file*");
        Refused(Overwrite(zip64, locator - 56 + 48 + 7, 0x80), "*outside the file*");

        byte[] With(Action<TorchFile> change)
        {
            var f = Good();
            change(f);
            return f.Bytes();
        }

        byte[] Patch(int at, params byte[] bytes)
        {
            var f = Good().Bytes();
            return Overwrite(f, at < 0 ? f.Length + at : at, bytes);
        }

        static byte[] Overwrite(byte[] file, int at, params byte[] bytes)
        {
            var copy = file.ToArray();
            bytes.CopyTo(copy, at);
            return copy;
        }
    }

    [Fact]
    public void OverlappingEntriesAreRefused()
    {
        var file = new TorchFile(Pickle.Of(("w", "Float", "0", 2, 0, [2], [1])), Floats(1, 2), Floats(3, 4)).Bytes();
        // The directory's entry for data/1 gets the offset of data/0.
        var offsets = Enumerable.Range(0, file.Length - 4).Where(i => BitConverter.ToInt32(file, i) == 0x02014b50).Select(i => i + 42).ToArray();
        file.AsSpan(offsets[2], 4).CopyTo(file.AsSpan(offsets[3]));
        Refused(file, "*overlaps another one*");
    }

    private void RefusedPickle(byte[] pickle, string message) => Refused(new TorchFile(pickle, Floats(1, 2)).Bytes(), message);

    private void Refused(byte[] file, string message)
        => FluentActions.Invoking(() => Checkpoint.Open(_folder.Write("bad.bin", file))).Should().Throw<CheckpointException>()
            .WithMessage(message).Which.Message.Should().Contain("bad.bin");

    private static byte[] Floats(params float[] values) => [.. values.SelectMany(BitConverter.GetBytes)];

    private Checkpoint Open(TorchFile file) => Checkpoint.Open(_folder.Write("pytorch_model.bin", file.Bytes()));
}
