using MambaVL.Models;
using TorchSharp;

namespace MambaVL.Transforms;

/// <summary>How many rows go to the model at once where nobody says.</summary>
internal static class BatchSize
{
    // Decoding reads the weights once a token for all rows of a batch. Beyond this, little is gained and rows wait longer.
    private const int Most = 16;

    public static int Choose(BoundStep step)
    {
        var settings = step.Transformer.Settings;
        if (settings.BatchSize is { } given) return given;
        var memory = GC.GetGCMemoryInfo();
        var free = Math.Max(0, memory.TotalAvailableMemoryBytes - memory.MemoryLoadBytes);
        // A quarter of what is free: other cursors and the rest of the application need memory as well.
        return (int)Math.Clamp(free / 4 / BytesOfRow(step.Transformer.Step, settings), 1, Most);
    }

    /// <summary>About what a row takes while it is in a batch: its input, its embeddings, and what decoding keeps.</summary>
    private static long BytesOfRow(Step step, StepSettings settings)
    {
        var config = step.Config;
        long patches = step.Patches, width = config.Language.HiddenSize, length = patches + 256 + settings.Generation.MaxNewTokens;
        var features = patches * (config.Vision.FeatureWidth + width) * sizeof(float);
        var picture = 3L * config.Images.ImageSize * config.Images.ImageSize * sizeof(float);
        var state = config.Language is GptNeoXConfig neoX
            ? 2 * neoX.LayerCount * length * width * sizeof(float)       // keys and values of every position
            : config.Language.LayerCount * 2 * width * 32 * sizeof(float); // d_inner x (d_state + d_conv), generously
        return features + picture + state;
    }
}
