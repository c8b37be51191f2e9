using MambaVL.Cuda;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Bench;

/// <summary>EVA-02-L at 336 pixels, bf16, from pixel values on the GPU to patch features.</summary>
internal static class GpuVisionBenchmark
{
    public static IEnumerable<GpuResult> Run(Options options, CudaGpu gpu, GpuTimer timer, GpuLimits limits)
    {
        using var scope = NewDisposeScope();
        using var mode = inference_mode();
        var config = GpuModels.Eva02Large;
        using var model = config.Create(new DeviceParameters(1, ScalarType.BFloat16, CUDA).Root);
        var tokens = Math.Pow(config.ImageSize / config.PatchSize, 2) + 1;
        foreach (var (images, target) in new[] { (1, 5.0), (16, 20.0), (64, 75.0) })
        {
            using var pixels = randn([images, 3, config.ImageSize, config.ImageSize], ScalarType.BFloat16, CUDA);
            var time = timer.Wall(options.Number("vision-repeats", 9), _ => model.Encode(pixels).Dispose(), warmUps: 3);
            // Scores and their products with the values: 4 operations for each pair of tokens and each feature.
            var flops = 2 * GpuModels.MatrixParameters(model) * tokens + 4.0 * config.Depth * tokens * tokens * config.Width;
            yield return new($"EVA-02-L/336, b{images}", time)
            {
                Items = images, Target = target,
                Limit = Math.Max(limits.Flops(images * flops), limits.Bytes(GpuModels.WeightBytes(model))), LimitOf = "products",
            };
        }
    }
}
