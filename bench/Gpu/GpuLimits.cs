using MambaVL.Cuda;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Bench;

/// <summary>What this GPU can do at most, measured in this process.</summary>
/// <param name="BytesPerSecond">Copying on the device, bytes read plus bytes written.</param>
/// <param name="FlopsPerSecond">A bf16 matrix product of random numbers.</param>
/// <param name="ExponentialsPerSecond">By the data sheet: 16 a clock on each multiprocessor, at the highest clock.</param>
internal sealed record GpuLimits(double BytesPerSecond, double FlopsPerSecond, double ExponentialsPerSecond)
{
    /// <summary>The lines themselves, with their spread.</summary>
    public required IReadOnlyList<GpuResult> Lines { get; init; }

    public static GpuLimits Measure(CudaGpu gpu, GpuTimer timer)
    {
        using var scope = NewDisposeScope();
        using var mode = inference_mode();
        const long bytes = 2L << 30, n = 8192;
        var (from, to) = (randn([bytes / 2], ScalarType.BFloat16, CUDA), empty([bytes / 2], ScalarType.BFloat16, CUDA));
        var copy = timer.Kernels(16, _ => to.copy_(from));
        from.Dispose();
        to.Dispose();
        var (a, b) = (randn([n, n], ScalarType.BFloat16, CUDA), randn([n, n], ScalarType.BFloat16, CUDA));
        var product = timer.Kernels(16, _ => matmul(a, b).Dispose());

        var (bytesPerSecond, flopsPerSecond) = (2.0 * bytes / copy.Median * 1000, 2.0 * n * n * n / product.Median * 1000);
        return new(bytesPerSecond, flopsPerSecond, 16.0 * gpu.Multiprocessors * timer.Kilohertz * 1000)
        {
            Lines =
            [
                new("limit: device copy of 2 GiB", copy) { Note = $"{bytesPerSecond / 1e12:f2} TB/s, read plus written" },
                new("limit: bf16 product of 8192 x 8192", product) { Note = $"{flopsPerSecond / 1e12:f0} TFLOP/s" },
            ],
        };
    }

    /// <summary>Milliseconds for so many bytes.</summary>
    public double Bytes(double bytes) => bytes / BytesPerSecond * 1000;

    /// <summary>Milliseconds for so many floating-point operations.</summary>
    public double Flops(double flops) => flops / FlopsPerSecond * 1000;

    /// <summary>Milliseconds for so many exponentials.</summary>
    public double Exponentials(double count) => count / ExponentialsPerSecond * 1000;
}
