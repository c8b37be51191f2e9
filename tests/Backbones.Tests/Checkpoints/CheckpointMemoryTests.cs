using System.Diagnostics;
using System.Globalization;
using MambaVL.Checkpoints;
using TorchSharp;
using TorchSharp.Modules;
using Xunit.Abstractions;
using static TorchSharp.torch;

namespace MambaVL.Tests.Checkpoints;

/// <summary>The peak of resident memory while a made-up checkpoint of 1.6 GB is loaded, each time in a process of its own.</summary>
[Trait("Category", "Slow")]
public sealed class CheckpointMemoryTests(ITestOutputHelper output)
{
    private const string PathVariable = "MAMBAVL_TEST_LOAD_PATH", TypeVariable = "MAMBAVL_TEST_LOAD_DTYPE";
    private const int Layers = 25;
    private const long LayerBytes = 64 << 20;
    private const double Limit = 1.15;

    [SkippableTheory]
    [InlineData("one file", ScalarType.Float32, ScalarType.Float32)]
    [InlineData("one file", ScalarType.Float16, ScalarType.Float32)]
    [InlineData("one file", ScalarType.Float32, ScalarType.BFloat16)]
    [InlineData("shards", ScalarType.Float32, ScalarType.Float32)]
    [InlineData("shards", ScalarType.Float16, ScalarType.Float32)]
    [InlineData("bin", ScalarType.Float32, ScalarType.Float32)]
    [InlineData("bin", ScalarType.Float16, ScalarType.Float32)]
    public void ALoadTakesLittleMoreThanTheWeights(string layout, ScalarType stored, ScalarType wanted)
    {
        Skip.IfNot(OperatingSystem.IsLinux(), "Peak memory is read from /proc.");
        using var folder = new TemporaryFolder(inMemory: false);
        Write(folder, layout, stored);

        var start = new ProcessStartInfo("dotnet", ["test", typeof(CheckpointMemoryTests).Assembly.Location, "--filter", $"FullyQualifiedName={typeof(CheckpointMemoryTests).FullName}.{nameof(MeasuredLoad)}"])
        {
            RedirectStandardOutput = true,
            Environment = { [PathVariable] = folder.Root, [TypeVariable] = wanted.ToString() },
        };
        using var child = Process.Start(start)!;
        var log = child.StandardOutput.ReadToEnd();
        child.WaitForExit();
        File.Exists(folder.Path("measured")).Should().BeTrue(log);

        var numbers = File.ReadAllText(folder.Path("measured")).Split(' ').Select(n => long.Parse(n, CultureInfo.InvariantCulture)).ToArray();
        var (weights, before, peak) = (numbers[0], numbers[1], numbers[2]);
        var ratio = (double)(peak - before) / weights;
        output.WriteLine($"{layout}, {stored} -> {wanted}: weights {weights >> 20} MiB; the process {before >> 20} MiB before, {peak >> 20} MiB at most; {ratio:f3} of the weights, limit {Limit}");
        ratio.Should().BeInRange(0.9, Limit);
    }

    /// <summary>What the child process does.</summary>
    [SkippableFact]
    public void MeasuredLoad()
    {
        var path = Environment.GetEnvironmentVariable(PathVariable);
        Skip.If(path is null, "This is the part of the other test that runs in a child process.");
        var type = Enum.Parse<ScalarType>(Environment.GetEnvironmentVariable(TypeVariable)!);
        using (ones(1000, 1000).sum()) { } // libtorch and its threads are there
        var before = Status("VmRSS:");
        var parameters = new List<Parameter>();
        using (var checkpoint = Checkpoint.Open(path!))
        {
            var shapes = checkpoint.Tensors.ToDictionary(t => t.Key, t => t.Value.Shape.ToArray());
            var source = new CheckpointParameters(checkpoint, shapes, dtype: type);
            foreach (var (name, shape) in shapes) parameters.Add(source.Take(name, shape, (_, _) => { }, keepFloat32: false));
        }
        foreach (var p in parameters) // every page of the weights is touched
            using (p.sum()) { }
        var weights = parameters.Sum(p => p.numel() * p.element_size());
        File.WriteAllText(Path.Combine(path!, "measured"), string.Create(CultureInfo.InvariantCulture, $"{weights} {before} {Status("VmHWM:")}"));
    }

    private static void Write(TemporaryFolder folder, string layout, ScalarType type)
    {
        var count = LayerBytes / ElementTypes.Size(type);
        if (layout == "bin")
        {
            var name = type == ScalarType.Float16 ? "Half" : "Float";
            var storage = new byte[LayerBytes];
            var pickle = Pickle.Of([.. Enumerable.Range(0, Layers).Select(i => ($"layer.{i}", name, $"{i}", count, 0L, new[] { count / 1024, 1024 }, new[] { 1024L, 1 }))]);
            using var file = File.Create(folder.Path("pytorch_model.bin"));
            new TorchFile(pickle, [.. Enumerable.Repeat(storage, Layers)]) { Zip64 = true }.WriteTo(file);
            return;
        }
        var entries = Enumerable.Range(0, Layers).Select(i => new TensorEntry($"layer.{i}", type, [count / 1024, 1024]));
        SafetensorsWriter.WriteFolder(folder.Root, entries, e => ones([.. e.Shape], dtype: e.DType), layout == "shards" ? 500_000_000 : long.MaxValue);
    }

    private static long Status(string field)
    {
        var line = File.ReadLines("/proc/self/status").First(l => l.StartsWith(field, StringComparison.Ordinal));
        return long.Parse(line[field.Length..].Replace("kB", ""), CultureInfo.InvariantCulture) * 1024;
    }
}
