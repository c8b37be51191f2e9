using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

/// <summary>A folder of fixtures with a language model: the model, and what the reference answered.</summary>
internal sealed class LanguageFixture : IDisposable
{
    private readonly Checkpoint _expected;

    public LanguageFixture(string folder, ScalarType dtype = ScalarType.Float32)
    {
        var path = Fixtures.Path(folder);
        _expected = Checkpoint.Open(Fixtures.Path(folder, "expected.safetensors"));
        Model = Load(path, dtype);
    }

    public LanguageModel Model { get; }

    public IEnumerable<string> Names => _expected.Tensors.Keys;

    /// <summary>The tensor of that name, on the device of the tests; the caller owns it.</summary>
    public Tensor this[string name] => _expected.ReadToDevice(name);

    public bool Has(string name) => _expected.Tensors.ContainsKey(name);

    public static LanguageModel Load(string path, ScalarType dtype = ScalarType.Float32)
    {
        using var checkpoint = Checkpoint.Open(path);
        var config = LanguageConfig.Load(System.IO.Path.Combine(path, "config.json"), checkpoint.Tensors);
        var recorder = new ShapeRecorder();
        config.Create(recorder.Root).Dispose();
        return config.Create(new CheckpointParameters(checkpoint, recorder.Shapes, config.Names, dtype, TestDevice.Current).Root);
    }

    /// <summary>The reference's ids of each row, continued greedily from their first <paramref name="prompt"/>.</summary>
    public static long[] Greedy(LanguageModel model, long[] prompt, int count)
    {
        using var scope = NewDisposeScope();
        using var state = model.CreateState(prompt.Length + count);
        var ids = prompt.ToList();
        var logits = model.Prefill(model.Embed(tensor(prompt, device: TestDevice.Current).unsqueeze(0)), state);
        while (true)
        {
            ids.Add(logits.argmax(-1).item<long>());
            if (ids.Count == prompt.Length + count) return [.. ids];
            logits = model.Decode(tensor([ids[^1]], device: TestDevice.Current), [state]);
        }
    }

    public void Dispose()
    {
        Model.Dispose();
        _expected.Dispose();
    }
}

internal static class Compare
{
    /// <summary>The greatest difference is at most <paramref name="relative"/> times the greatest reference value.</summary>
    public static void Close(Tensor actual, Tensor reference, double relative, string what)
    {
        using var scope = NewDisposeScope();
        actual.shape.Should().Equal(reference.shape, what);
        var difference = (actual.to(ScalarType.Float64) - reference.to(ScalarType.Float64)).abs().max().item<double>();
        var tolerance = relative * reference.to(ScalarType.Float64).abs().max().item<double>();
        (difference <= tolerance).Should().BeTrue($"{what}: the greatest difference is {difference:g4}, the tolerance {tolerance:g4}");
    }

    /// <summary>||difference|| is at most <paramref name="relative"/> times ||reference||.</summary>
    public static void CloseInNorm(Tensor actual, Tensor reference, double relative, string what)
    {
        using var scope = NewDisposeScope();
        actual.shape.Should().Equal(reference.shape, what);
        var difference = (actual.to(ScalarType.Float64) - reference.to(ScalarType.Float64)).norm().item<double>();
        var tolerance = relative * reference.to(ScalarType.Float64).norm().item<double>();
        (difference <= tolerance).Should().BeTrue($"{what}: the norm of the difference is {difference:g4}, the tolerance {tolerance:g4}");
    }

    /// <summary>Every bit is the same.</summary>
    public static void Same(Tensor actual, Tensor reference, string what)
    {
        using var scope = NewDisposeScope();
        actual.shape.Should().Equal(reference.shape, what);
        actual.cpu().contiguous().bytes.SequenceEqual(reference.cpu().contiguous().bytes).Should().BeTrue($"{what}: bits differ");
    }
}
