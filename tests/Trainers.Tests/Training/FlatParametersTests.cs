using MambaVL.Checkpoints;
using MambaVL.Cuda;
using MambaVL.Models;
using MambaVL.Tests.Models;
using MambaVL.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Training;

/// <summary>Gradients that are written over and not set to zero, against gradients that are set to zero after every step.</summary>
public sealed class FlatParametersTests
{
    private static readonly MambaConfig Config = new() { HiddenSize = 24, LayerCount = 3, VocabularySize = 40, StateSize = 5, TimeStepRank = 3 };

    // Steps, and of each the passes, and what is between micro-batches:
    //   f  the layers as one operation       u  one operation at a time       h  not through the layers
    //   t  f twice in one graph              b  f and u in one graph          n  f, and not every parameter wants a gradient
    //   e  forward alone                     |  a micro-batch ends
    public static TheoryData<string> Runs =>
    [
        "f f f", "f h f h h f", "f u u f u", "ff f fff", "t f t", "b b f b", "f n f n h f", "fef ef f", "e e f",
        "f|f|f f f|f", "f|h f|h h|f f", "f|u u|f f|b", "f|n n|f h|h f|u", "hu|tf b|e f",
    ];

    public FlatParametersTests() => MambaVL.Runtime.EnsureLoaded();

    [Theory, MemberData(nameof(Runs))]
    public void AUsedGradientIsNeverSeenAgain(string run) => AreTheSame(run, ScalarType.Float32, CPU, 1e-5);

    [SkippableTheory, MemberData(nameof(Runs))]
    public void AUsedGradientIsNeverSeenAgainOnAGpu(string run)
    {
        Skip.If(CudaGpu.TryGet(0, out var problem) is null, $"No GPU for kernels: {problem}.");
        AreTheSame(run, ScalarType.Float32, CUDA, 1e-4);
        AreTheSame(run, ScalarType.BFloat16, CUDA, 3e-2); // products with and without an addend may round differently
    }

    [Fact]
    public void WhatWasWrittenIsReleasedAndNothingElse()
    {
        using var test = new Trained(ScalarType.Float32, CPU);
        Released().Should().BeEmpty();
        test.Step("f");
        Released().Should().BeEquivalentTo(test.Model.named_parameters().Where(p => p.name.StartsWith("backbone.layers") && p.parameter.requires_grad).Select(p => p.name));
        test.Step("h"); // none was written: all are zeros in their places, for autograd to add to
        Released().Should().BeEmpty();
        test.Step("u");
        Released().Should().BeEmpty();

        IEnumerable<string> Released() => test.Model.named_parameters().Where(p => p.parameter is PlacedParameter && p.parameter.grad is null).Select(p => p.name);
    }

    [Fact]
    public void TheFlatGradientsAreThoseOfTheParameters()
    {
        using var test = new Trained(ScalarType.Float32, CPU);
        test.Step("f");
        foreach (var passes in new[] { "f", "u", "h", "fu" })
        {
            using var scope = NewDisposeScope();
            test.Run(passes);
            var expected = test.Parameters.Names.ToDictionary(n => n, n => test.Gradient(n)?.clone());
            test.Parameters.Gather();
            foreach (var (name, gradient) in expected)
            {
                var flat = test.Parameters.View(test.Parameters.Gradients, name);
                Compare.Close(flat, gradient ?? zeros_like(flat), 0, $"{passes}: {name}");
                Compare.Close(test.Gradient(name)!, gradient ?? zeros_like(flat), 0, $"{passes}: {name}");
            }
            test.Update();
        }
    }

    // Kernels for narrow gradients are a GPU's; here the test writes them.
    [Fact]
    public void NarrowGradientsAreReleasedBetweenMicroBatches()
    {
        using var scope = NewDisposeScope();
        using var parameters = new FlatParameters([new("a", [3], false), new("b", [70], false), new("c", [2], true)], _ => 1, _ => null, ScalarType.BFloat16, CPU);
        using var optimizer = new AdamW(parameters.Master.shape[0], CPU, 0.9, 0.999, 1e-8, 0);
        var (a, b, c) = (Take("a", 3), Take("b", 70), Take("c", 2));
        for (var step = 0; step < 2; step++)
        {
            Write(a, 1);
            Write(c, 1);
            b.grad!.fill_(4);
            parameters.Gather();
            (a.grad is null).Should().BeTrue("it was gathered");
            b.grad!.eq(0).all().item<bool>().Should().BeTrue("autograd adds to it");
            (c.grad is null).Should().BeFalse("it is the step's");
            a.Place.fill_(double.NaN);
            b.grad.add_(1);
            parameters.Gather(); // a micro-batch without a gradient of a, and with one that autograd made
            a.grad!.eq(0).all().item<bool>().Should().BeTrue();
            a.Release();
            a.Place.fill_(double.NaN);
            a.grad = full([3], 2, ScalarType.BFloat16);
            parameters.Gather();
            Gradient("a").Should().Equal(3, 3, 3);
            Gradient("b").Should().HaveCount(70).And.OnlyContain(x => x == 5);
            Gradient("c").Should().Equal(1, 1);
            optimizer.Step(parameters, null, step, 0.1).item<float>().Should().BeApproximately(MathF.Sqrt(3 * 9 + 70 * 25 + 2), 1e-3f);
            parameters.Gradients.narrow(0, 64, 64 + 128).eq(0).all().item<bool>().Should().BeTrue("micro-batches are added up there");
            (c.grad is null).Should().BeTrue();
            c.Place.fill_(double.NaN);
        }

        PlacedParameter Take(string name, long count) => (PlacedParameter)parameters.Take(name, [count], (_, _) => { }, name == "c");
        float[] Gradient(string name) => parameters.View(parameters.Gradients, name).data<float>().ToArray();
        static void Write(PlacedParameter p, double value)
        {
            var anew = p.grad is null;
            if (anew) p.Place.fill_(value);
            else p.Place.add_(value);
            p.Written(anew);
        }
    }

    private static void AreTheSame(string run, ScalarType precision, Device device, double tolerance)
    {
        using var scope = NewDisposeScope();
        using var test = new Trained(precision, device);
        using var expected = new Trained(precision, device) { ClearsEverything = true };
        foreach (var step in run.Split(' '))
        {
            var (norm, expectedNorm) = (test.Step(step), expected.Step(step));
            Compare.CloseInNorm(norm.reshape(1), expectedNorm.reshape(1), tolerance, $"{run}: the norm of {step}");
            foreach (var name in test.Parameters.Names)
                foreach (var (flat, expectedFlat, what) in new[] { (test.Optimizer.Mean, expected.Optimizer.Mean, "mean"), (test.Optimizer.Square, expected.Optimizer.Square, "square"), (test.Parameters.Master, expected.Parameters.Master, "weights") })
                {
                    var reference = test.Parameters.View(expectedFlat, name);
                    if (reference.eq(0).all().item<bool>()) test.Parameters.View(flat, name).eq(0).all().item<bool>().Should().BeTrue($"{run}: {what} of {name} after {step}");
                    else Compare.CloseInNorm(test.Parameters.View(flat, name), reference, tolerance, $"{run}: {what} of {name} after {step}");
                }
        }
    }

    /// <summary>A small Mamba over flat weights, and its optimiser. Of its parameters one does not learn and some do by half.</summary>
    private sealed class Trained : IDisposable
    {
        private readonly Device _device;
        private int _passes, _steps;

        public Trained(ScalarType precision, Device device)
        {
            _device = device;
            var recorder = new ShapeRecorder();
            Config.Create(recorder.Root).Dispose();
            using var first = Config.Create(new RandomParameters(1).Root);
            var values = first.named_parameters().ToDictionary(p => p.name, p => (Tensor)p.parameter);
            MambaValues.TellApart(first.named_parameters().Select(p => (p.name, (Tensor)p.parameter)));
            using (no_grad())
                foreach (var (name, value) in values)
                    if (name.EndsWith("embedding.weight")) value.mul_(50);
            Parameters = new([.. recorder.Shapes.Select(s => new PlannedParameter(s.Key, s.Value, recorder.KeptFloat32.Contains(s.Key)))],
                name => name.EndsWith("layers.1.mixer.in_proj.weight") ? 0 : name.Contains("x_proj") ? 0.5 : 1, name => values[name], precision, device);
            Optimizer = new(Parameters.Master.shape[0], device, 0.5, 0.9, 1e-3, 0.01, Parameters.CreateKernels());
            Model = (Mamba)Config.Create(Parameters.Root);
            if (device.type == DeviceType.CPU) Model.backbone.ForcedKernels = new PlainMambaKernels(Config);
        }

        public FlatParameters Parameters { get; }

        public AdamW Optimizer { get; }

        public Mamba Model { get; }

        /// <summary>Whether all gradients are zeros in their places after each step; else what lies in the place of a released one
        /// shows wherever it is read.</summary>
        public bool ClearsEverything { get; init; }

        public Tensor? Gradient(string name) => Model.named_parameters().Single(p => p.name == name).parameter.grad;

        public Tensor Step(string passes)
        {
            Run(passes);
            return Update();
        }

        public Tensor Update()
        {
            var norm = Optimizer.Step(Parameters, clip: 1, _steps++, learningRate: 1e-3).clone();
            Used(_ => true);
            return norm;
        }

        public void Run(string passes)
        {
            foreach (var pass in passes)
            {
                if (pass == '|')
                {
                    Parameters.Gather();
                    Used(p => p.dtype != ScalarType.Float32);
                    continue;
                }
                using var scope = NewDisposeScope();
                using var random = new Generator((ulong)++_passes);
                var l = 5 + _passes % 8;
                var x = randn([2, l, Config.HiddenSize], dtype: ScalarType.Float32, generator: random).to(Model.backbone.embedding.weight.dtype).to(_device);
                var weights = randn([2, l, Config.VocabularySize], dtype: ScalarType.Float32, generator: random).to(_device);
                if (pass == 'e')
                {
                    using var noGradients = no_grad();
                    Model.Forward(x);
                    continue;
                }
                var unwanted = pass == 'n' ? Model.backbone.layers.parameters().Where((p, i) => p.requires_grad && i % 3 == 0).ToList() : [];
                foreach (var p in unwanted) p.requires_grad = false;
                var logits = pass switch
                {
                    'h' => nn.functional.linear(Model.backbone.norm_f.forward(x), Model.backbone.embedding.weight),
                    't' => Logits(true) + Logits(true),
                    'b' => Logits(true) + Logits(false),
                    _ => Logits(pass != 'u'),
                };
                (logits.to(ScalarType.Float32) * weights).sum().backward();
                foreach (var p in unwanted) p.requires_grad = true;

                Tensor Logits(bool useKernels)
                {
                    Model.backbone.UseKernels = useKernels;
                    return Model.Forward(x);
                }
            }
        }

        public void Dispose()
        {
            Model.Dispose();
            Optimizer.Dispose();
            Parameters.Dispose();
        }

        // After a step, or a micro-batch: the gradients of these parameters were used.
        private void Used(Func<PlacedParameter, bool> which)
        {
            if (ClearsEverything) Parameters.Settle();
            foreach (var p in Model.parameters().OfType<PlacedParameter>().Where(which))
                if (ClearsEverything) p.grad!.zero_();
                else if (p.grad is null) p.Place.fill_(double.NaN);
        }
    }
}
