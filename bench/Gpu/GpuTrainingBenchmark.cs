using MambaVL.Checkpoints;
using MambaVL.Cuda;
using MambaVL.Models;
using MambaVL.Training;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MambaVL.Bench;

/// <summary>A step of training mamba-790m as the trainers make it: bf16 with float32 master weights, gradients clipped, AdamW; 8 rows
/// of 640, a loss at every position.</summary>
internal static class GpuTrainingBenchmark
{
    private const int Rows = 8, Length = 640;

    public static IEnumerable<GpuResult> Run(Options options, CudaGpu gpu, GpuTimer timer, GpuLimits limits)
    {
        var config = GpuModels.Mamba790M;
        var plan = new Plan();
        config.Create(plan.Root).Dispose();
        var values = new DeviceParameters(1, ScalarType.Float32, CUDA);
        using var parameters = new FlatParameters(plan.Parameters, _ => 1, name => values.Take(name, plan.Shape(name), plan.Initial(name), keepFloat32: true), ScalarType.BFloat16, CUDA);
        using var optimizer = new Training.AdamW(parameters.Master.shape[0], CUDA, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01, parameters.CreateKernels());
        using var model = config.Create(parameters.Root);
        using var ids = randint(0, 50_000, [Rows, Length + 1], ScalarType.Int64, CUDA);
        var steps = 0;
        var losses = new List<double>();
        var time = timer.Wall(options.Number("training-repeats", 7), _ => losses.Add(Step()), warmUps: 3);
        var (free, total) = gpu.Memory();
        if (!losses.All(double.IsFinite) || losses[^1] >= losses[0])
            throw new InvalidOperationException($"Training on one batch does not lower its loss: {string.Join(", ", losses.Select(l => $"{l:f3}"))}.");
        yield return new($"training mamba-790m, b{Rows} l{Length}", time)
        {
            Items = Rows * Length, Target = Rows * Length / 60_000.0 * 1000, Gigabytes = (total - free) / 1e9,
            Limit = limits.Flops(6 * GpuModels.MatrixParameters(model) * Rows * Length), LimitOf = "products",
        };

        double Step()
        {
            using var scope = NewDisposeScope();
            var loss = Loss();
            loss.backward();
            using var noGradients = no_grad();
            optimizer.Step(parameters, clip: 1, steps++, learningRate: 1e-4);
            return loss.item<float>();
        }

        // As the trainers' own: what it makes is freed here, but for what the backward pass needs.
        Tensor Loss()
        {
            using var scope = NewDisposeScope();
            var logits = model.Forward(model.Embed(ids.narrow(1, 0, Length)));                             // (b, l, v)
            return TokenLoss.Of(logits.flatten(0, 1), ids.narrow(1, 1, Length).flatten(), overwrites: true).MoveToOuterDisposeScope();
        }
    }

    /// <summary>The model's parameters and their first values.</summary>
    private sealed class Plan : ParameterSource
    {
        private readonly Dictionary<string, ParameterInitializer> _initial = [];

        public List<PlannedParameter> Parameters { get; } = [];

        public long[] Shape(string name) => Parameters.Single(p => p.Name == name).Shape;

        public ParameterInitializer Initial(string name) => _initial[name];

        public override Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32)
        {
            Parameters.Add(new(name, shape, keepFloat32));
            _initial.Add(name, initial);
            return new Parameter(empty(shape, dtype: ScalarType.Float32, device: META), requires_grad: false);
        }
    }
}
