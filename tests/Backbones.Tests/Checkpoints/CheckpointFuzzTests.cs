using System.Diagnostics;
using System.Text;
using MambaVL.Checkpoints;
using TorchSharp;
using Xunit.Abstractions;
using static TorchSharp.torch;

namespace MambaVL.Tests.Checkpoints;

/// <summary>Random damage to valid files: each ends in tensors or in a <see cref="CheckpointException"/>, soon, and without
/// a large allocation. Failures name the seed and the number of the mutation, which give the same file again.</summary>
public sealed class CheckpointFuzzTests(ITestOutputHelper output) : IDisposable
{
    private const int Quick = 2_000, Full = 100_000;

    private readonly TemporaryFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void DamagedSafetensors() => Run("model.safetensors", Quick, seed: 1, Safetensors());

    [Fact]
    public void DamagedIndexes() => Run("model.safetensors.index.json", Quick, seed: 2, Index());

    [Fact]
    public void DamagedTorchFiles() => Run("pytorch_model.bin", Quick, seed: 3, Torch());

    [Fact, Trait("Category", "Slow")]
    public void ManyDamagedSafetensors() => Run("model.safetensors", Full, seed: 4, Safetensors());

    [Fact, Trait("Category", "Slow")]
    public void ManyDamagedIndexes() => Run("model.safetensors.index.json", Full, seed: 5, Index());

    [Fact, Trait("Category", "Slow")]
    public void ManyDamagedTorchFiles() => Run("pytorch_model.bin", Full, seed: 6, Torch());

    [SkippableFact, Trait("Category", "Slow")]
    public void ManyDamagedFixtures()
    {
        var files = FixtureFiles("model.safetensors").Concat(FixtureFiles("pytorch_model.bin")).ToList();
        Skip.If(files.Count == 0, $"There is no checkpoint under {Fixtures.Root}.");
        foreach (var file in files)
        {
            var seed = File.ReadAllBytes(file);
            output.WriteLine(Path.GetRelativePath(Fixtures.Root, file));
            // In place: the mutation is written over a copy and then taken back, for the files are of some size.
            RunInPlace(Path.GetFileName(file), seed, Full, seed: 7);
        }
    }

    // ---- seeds, with the mutations that keep the rest of the file consistent ----

    private static Func<Random, byte[]> Safetensors()
    {
        using var folder = new TemporaryFolder();
        var path = folder.Path("seed.safetensors");
        SafetensorsWriter.Write(path, new Dictionary<string, Tensor>
        {
            ["a.weight"] = ones(2, 3), ["a.bias"] = ones(3, dtype: ScalarType.Float16), ["mask"] = ones(5, dtype: ScalarType.Bool),
            ["empty"] = zeros(0, 4), ["scalar"] = tensor(1L), ["large"] = zeros(40, 40),
        }, new Dictionary<string, string> { ["format"] = "pt" });
        var file = File.ReadAllBytes(path);
        var start = 8 + (int)BitConverter.ToInt64(file);
        return random =>
        {
            if (random.Next(3) == 0) return Mutation.Of(file, random);
            var header = Mutation.Of(file[8..start], random);
            return [.. BitConverter.GetBytes((long)header.Length), .. header, .. file[start..]];
        };
    }

    private Func<Random, byte[]> Index()
    {
        using var scope = NewDisposeScope();
        SafetensorsWriter.Write(_folder.Path("one.safetensors"), new Dictionary<string, Tensor> { ["a"] = ones(3) });
        SafetensorsWriter.Write(_folder.Path("two.safetensors"), new Dictionary<string, Tensor> { ["b"] = ones(3), ["c"] = ones(2, 2) });
        var index = """{"metadata":{"total_size":40,"x":[1,{"y":null}]},"weight_map":{"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"}}"""u8.ToArray();
        return random => Mutation.Of(index, random);
    }

    private static Func<Random, byte[]> Torch()
    {
        var pickle = Pickle.Of(("a", "Float", "0", 6, 0, [2, 3], [3, 1]), ("b", "Half", "1", 4, 1, [2], [2]), ("c", "Bool", "2", 3, 0, [3], [1]), ("large", "Float", "3", 1600, 0, [40, 40], [1, 40]));
        var storages = new[] { new byte[24], new byte[8], new byte[3], new byte[6400] };
        var file = new TorchFile(pickle, storages).Bytes();
        var zip64 = new TorchFile(pickle, storages) { Zip64 = true }.Bytes();
        return random => random.Next(4) switch
        {
            0 => Mutation.Of(file, random),
            1 => Mutation.Of(zip64, random),
            _ => new TorchFile(Mutation.Of(pickle, random), storages).Bytes(),
        };
    }

    private static string[] FixtureFiles(string name)
        => Directory.Exists(Fixtures.Root) ? Directory.GetFiles(Fixtures.Root, name, SearchOption.AllDirectories) : [];

    // ---- what must hold for each ----

    private void Run(string name, int count, int seed, Func<Random, byte[]> mutate)
    {
        var random = new Random(seed);
        var check = new Check(_folder.Path(name));
        for (var i = 0; i < count; i++)
        {
            File.WriteAllBytes(check.Path, mutate(random));
            check.Once($"seed {seed}, mutation {i}");
        }
        output.WriteLine($"{name}: {check}");
    }

    private void RunInPlace(string name, byte[] original, int count, int seed)
    {
        var random = new Random(seed);
        var check = new Check(_folder.Write(name, original)) { ReadsEverything = false };
        for (var i = 0; i < count; i++)
        {
            var patches = Enumerable.Range(0, random.Next(1, 4)).Select(_ => Mutation.Patch(original.Length, random)).ToList();
            var length = random.Next(20) == 0 ? random.Next(original.Length) : original.Length;
            using (var file = File.OpenHandle(check.Path, FileMode.Open, FileAccess.Write))
            {
                foreach (var (at, bytes) in patches) RandomAccess.Write(file, bytes, at);
                RandomAccess.SetLength(file, length);
            }
            check.Once($"seed {seed}, mutation {i}");
            using (var file = File.OpenHandle(check.Path, FileMode.Open, FileAccess.Write))
            {
                foreach (var (at, bytes) in patches) RandomAccess.Write(file, original.AsSpan(at, bytes.Length), at);
                if (length < original.Length) RandomAccess.Write(file, original.AsSpan(length), length);
            }
        }
        output.WriteLine($"{name}: {check}");
    }

    private sealed class Check(string path)
    {
        private readonly Dictionary<string, int> _refusals = [];
        private int _opened;
        private double _slowest;
        private long _mostAllocated;

        public string Path => path;

        public bool ReadsEverything { get; init; } = true;

        public void Once(string mutation)
        {
            var length = new FileInfo(path).Length;
            var before = GC.GetAllocatedBytesForCurrentThread();
            var watch = Stopwatch.StartNew();
            try
            {
                using var scope = NewDisposeScope();
                using var checkpoint = Checkpoint.Open(path);
                _opened++;
                foreach (var (i, e) in checkpoint.Tensors.Values.Index())
                {
                    var bytes = e.Shape.Aggregate((Int128)ElementTypes.Size(e.DType), (n, d) => n * d);
                    if (bytes > Math.Max(length, 100_000)) throw new InvalidOperationException($"A tensor of {bytes} bytes from a file of {length}.");
                    if (!ReadsEverything && i != _opened % checkpoint.Tensors.Count) continue;
                    using var t = checkpoint.Read(e.Name);
                    using var converted = checkpoint.Read(e.Name, ScalarType.Float32);
                    if (ReadsEverything) using (converted.sum()) { }
                }
            }
            catch (CheckpointException e)
            {
                var kind = new string([.. e.Message[(e.Message.LastIndexOf(System.IO.Path.DirectorySeparatorChar) + 1)..].Where(c => !char.IsDigit(c)).Take(60)]);
                _refusals[kind] = _refusals.GetValueOrDefault(kind) + 1;
            }
            catch (Exception e)
            {
                throw new InvalidOperationException($"{mutation} of {path} ended in another exception.", e);
            }
            var seconds = watch.Elapsed.TotalSeconds;
            var allocated = GC.GetAllocatedBytesForCurrentThread() - before;
            (_slowest, _mostAllocated) = (Math.Max(_slowest, seconds), Math.Max(_mostAllocated, allocated));
            if (seconds > 10) throw new TimeoutException($"{mutation} took {seconds:f1} s.");
            if (allocated > 500_000 + 32 * length) throw new InvalidOperationException($"{mutation} allocated {allocated} bytes for a file of {length}.");
        }

        public override string ToString()
            => $"{_opened} opened, {_refusals.Values.Sum()} refused (some when read) in {_refusals.Count} ways, slowest {_slowest * 1000:f0} ms, most allocated {_mostAllocated} bytes";
    }

    private static class Mutation
    {
        private static readonly long[] Numbers =
            [0, 1, -1, 2, 7, 8, 127, 128, 255, 256, 65535, 65536, int.MaxValue, uint.MaxValue, 1L << 32, 1L << 61, 1L << 62, long.MaxValue, long.MinValue];

        private static readonly byte[][] Snippets =
        [
            .. new[]
            {
                "{", "}", "[", "]", ",", ":", "\"", "null", "true", "-1", "1e9", "0.5", "9223372036854775807", "99999999999999999999", "\"a\"", "\\ud800", "\\u0000",
                "\"__metadata__\":{}", "\"dtype\":\"F64\"", "\"shape\":[]", "F8_E4M3", "BF16", "../", "/", ".json", "\"weight_map\":{}", "one.safetensors",
                "cposix\nsystem\n", "ccollections\nOrderedDict\n", "ctorch\nFloatStorage\n", "ctorch._utils\n_rebuild_tensor_v2\n", "PK\u0005\u0006", "PK\u0001\u0002",
            }.Select(Encoding.UTF8.GetBytes),
            .. "(.)tRQ}]seaubNX".Select(c => new[] { (byte)c }), [0x85], [0x86], [0x87], [0x88], [0x93], [0x94], [0x8a, 8], [0x95], [(byte)'h', 0], [(byte)'q', 0],
            [(byte)'r', 255, 255, 255, 255], [(byte)'X', 255, 255, 255, 127], [0xff], [0xc3, 0x28],
        ];

        public static byte[] Of(byte[] original, Random random)
        {
            var file = new List<byte>(original);
            for (var n = random.Next(1, 4); n > 0; n--)
            {
                if (file.Count == 0) break;
                int at = random.Next(file.Count), length = Math.Min(random.Next(1, random.Next(2, 64)), file.Count - at);
                switch (random.Next(8))
                {
                    case 0: file[at] ^= (byte)(1 << random.Next(8)); break;
                    case 1: file[at] = (byte)random.Next(256); break;
                    case 2: file.RemoveRange(at, length); break;
                    case 3: file.InsertRange(random.Next(file.Count), file.GetRange(at, length)); break;
                    case 4: file.InsertRange(at, Snippets[random.Next(Snippets.Length)]); break;
                    case 5: file.RemoveRange(at, file.Count - at); break;
                    case 6: ReplaceNumber(file, at, random); break;
                    default:
                        var bytes = BitConverter.GetBytes(Numbers[random.Next(Numbers.Length)]);
                        for (var i = 0; i < 1 << random.Next(4) && at + i < file.Count; i++) file[at + i] = bytes[i];
                        break;
                }
            }
            return [.. file];
        }

        /// <summary>Bytes to be written over others, mostly near the ends, where the formats have their structure.</summary>
        public static (int At, byte[] Bytes) Patch(int length, Random random)
        {
            var bytes = random.Next(3) switch
            {
                0 => [(byte)random.Next(256)],
                1 => BitConverter.GetBytes(Numbers[random.Next(Numbers.Length)])[..(1 << random.Next(4))],
                _ => Snippets[random.Next(Snippets.Length)],
            };
            var at = random.Next(5) switch
            {
                0 => random.Next(length),
                1 => length - 1 - random.Next(Math.Min(length, 4096)),
                2 => random.Next(Math.Min(length, 64)),
                _ => random.Next(Math.Min(length, 8192)),
            };
            return (at, bytes[..Math.Min(bytes.Length, length - at)]);
        }

        // The next number in text becomes another one.
        private static void ReplaceNumber(List<byte> file, int at, Random random)
        {
            var start = file.FindIndex(at, b => b is >= (byte)'0' and <= (byte)'9');
            if (start < 0) return;
            var end = start;
            while (end < file.Count && file[end] is >= (byte)'0' and <= (byte)'9') end++;
            file.RemoveRange(start, end - start);
            file.InsertRange(start, Encoding.ASCII.GetBytes(Numbers[random.Next(Numbers.Length)].ToString(System.Globalization.CultureInfo.InvariantCulture)));
        }
    }
}
