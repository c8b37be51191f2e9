using MambaVL.Cuda;
using MambaVL.Scan;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Bench;

/// <summary>The selective scan with d_state 16, bf16 inputs, softplus, gate and D, as mamba_ssm's CUDA kernel has it.</summary>
internal static class GpuScanBenchmark
{
    private const int States = 16;

    // With the ratios to mamba_ssm that are aimed at.
    private static readonly (int B, int D, int L, double Forward, double Backward)[] Shapes =
    [
        (1, 3072, 640, 4, 3), (1, 5120, 640, 4, 3), (8, 5120, 640, 6, 4), (16, 4096, 640, 6, 4), (4, 5120, 2048, 2, 2), (1, 5120, 8192, 2, 2),
    ];

    public static IEnumerable<GpuResult> Run(Options options, CudaGpu gpu, GpuTimer timer, GpuLimits limits)
    {
        foreach (var (b, d, l, forward, backward) in Shapes)
        {
            if (ScanBackend.For(DeviceType.CUDA, ScalarType.BFloat16).Name == "reference")
                throw new InvalidOperationException("The scan would run through the reference, which takes minutes here; see the log for why.");
            using var scope = NewDisposeScope();
            // Inputs in turn, so that none is in the cache (50 MB) when its turn comes again.
            var size = 4.0 * 2 * b * d * l;
            var sets = Enumerable.Range(0, (int)Math.Max(2, Math.Ceiling(3e8 / size))).Select(i => Arguments(i, b, d, l)).ToArray();
            double shared = 2.0 * 2 * b * States * l + 4.0 * d * (States + 2);
            double exponentials = (double)b * d * l * States;

            using (inference_mode())
            {
                var time = timer.Kernels(options.Number("scan-repeats", 48), i =>
                {
                    var (output, state) = Run(sets[i % sets.Length]);
                    output.Dispose();
                    state.Dispose();
                });
                yield return new($"scan forward ({b}, {d}, {l})", time)
                {
                    // u, delta and z in, the output and the last state out.
                    Limit = limits.Bytes(4.0 * 2 * b * d * l + shared + 4.0 * b * d * States), LimitOf = "bytes", TargetRatio = forward,
                    Note = $"exponentials at 16 a clock: {limits.Exponentials(exponentials):f3} ms",
                };
            }
            var gradient = randn([b, d, l], ScalarType.BFloat16, CUDA);
            yield return new($"scan backward ({b}, {d}, {l})", Backward(options, timer, sets, gradient))
            {
                // u, delta, z and the output's gradient in, three gradients out; B, C and their gradients.
                Limit = limits.Bytes(7.0 * 2 * b * d * l + 2 * shared), LimitOf = "bytes", TargetRatio = backward,
                Note = $"exponentials at 16 a clock: {limits.Exponentials(2 * exponentials):f3} ms",
            };
        }
    }

    private static Timing Backward(Options options, GpuTimer timer, ScanArguments[] sets, Tensor gradient)
    {
        // The forward passes stay out of the times: they are run before, and their graphs kept.
        var few = sets.Take(4).Select(x => x.With(t => t.detach().requires_grad_())).ToArray();
        var inputs = few.Select(x => x.Tensors.OfType<Tensor>().ToArray()).ToArray();
        var outputs = few.Select(x => Run(x).output).ToArray();
        return timer.Kernels(options.Number("scan-repeats", 48), i =>
        {
            using var scope = NewDisposeScope();
            autograd.grad([outputs[i % few.Length]], inputs[i % few.Length], [gradient], retain_graph: true);
        });
    }

    private static (Tensor output, Tensor lastState) Run(ScanArguments x) => ScanBackend.For(DeviceType.CUDA, x.u.dtype).Run(x);

    private static ScanArguments Arguments(int seed, int b, int d, int l)
    {
        torch.cuda.manual_seed(seed + 1);
        Tensor Normal(params long[] shape) => randn(shape, dtype: ScalarType.Float32, device: CUDA);
        Tensor Narrow(params long[] shape)
        {
            using var wide = Normal(shape);
            return wide.to(ScalarType.BFloat16);
        }
        return new ScanArguments(Narrow(b, d, l), Narrow(b, d, l), -exp(Normal(d, States)), Narrow(b, States, l), Narrow(b, States, l),
            Normal(d), Narrow(b, d, l), Normal(d) - 3, true, null).Checked();
    }

    private static ScanArguments With(this ScanArguments x, Func<Tensor, Tensor> f) => new(
        f(x.u), f(x.delta), f(x.A), f(x.B), f(x.C), f(x.D!), f(x.z!), f(x.deltaBias!), x.deltaSoftplus, null);
}
