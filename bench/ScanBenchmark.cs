using MambaVL.Scan;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Bench;

/// <summary>CpuScan against ReferenceScan, d_state 16 as in every Mamba checkpoint, softplus, D and gate included.</summary>
internal static class ScanBenchmark
{
    public static IEnumerable<Result> Run(Options options)
    {
        set_num_threads(options.Threads);
        foreach (var (b, d, l) in new[] { (1, 3072, 640), (1, 5120, 640) })
            foreach (var type in new[] { ScalarType.Float32, ScalarType.BFloat16 })
            {
                using var scope = NewDisposeScope();
                yield return Forward(options, b, d, l, type);
                if (type == ScalarType.Float32 && options.Number("forward-only", 0) == 0) yield return Backward(options, b, d, l, type);
            }
    }

    private static Result Forward(Options options, int b, int d, int l, ScalarType type)
    {
        var x = Arguments(b, d, l, type);
        using var _ = inference_mode();
        return Compare($"forward ({b}, {d}, {l}) {type}", options, backend => options.Time(() =>
        {
            var (output, state) = backend.Run(x);
            output.Dispose();
            state.Dispose();
        }));
    }

    private static Result Backward(Options options, int b, int d, int l, ScalarType type)
    {
        var x = Arguments(b, d, l, type);
        var inputs = x.Tensors.OfType<Tensor>().Select(t => t.requires_grad_()).ToArray();
        var gradient = randn([b, d, l], dtype: type);
        return Compare($"backward ({b}, {d}, {l}) {type}", options, backend =>
        {
            using var scope = NewDisposeScope();
            var (output, _) = backend.Run(x);
            return options.Time(() => autograd.grad([output], inputs, [gradient]));
        });
    }

    // The two sides take turns, so that a busy machine is busy for both.
    private static Result Compare(string name, Options options, Func<ScanBackend, double> time)
    {
        var (ours, other) = (new List<double>(), new List<double>());
        for (var i = -2; i < options.Repeats; i++)
        {
            var (cpu, reference) = (time(ScanBackend.Cpu), time(ScanBackend.Reference));
            if (i < 0) continue;
            ours.Add(cpu);
            other.Add(reference);
        }
        return new(name, Timing.Of(ours), Timing.Of(other));
    }

    private static ScanArguments Arguments(int b, int d, int l, ScalarType type)
    {
        using var random = new Generator(1);
        const int n = 16;
        Tensor Normal(params long[] shape) => randn(shape, dtype: ScalarType.Float32, generator: random);
        return new ScanArguments(
            Normal(b, d, l).to(type), Normal(b, d, l).to(type), -exp(Normal(d, n)), Normal(b, n, l).to(type), Normal(b, n, l).to(type),
            Normal(d), Normal(b, d, l).to(type), Normal(d) - 3, true, null).Checked();
    }
}
