using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MambaVL.Bench;

/// <summary>The published sizes.</summary>
internal static class GpuModels
{
    public static readonly MambaConfig Mamba790M = new() { HiddenSize = 1536, LayerCount = 48, VocabularySize = 50280 };
    public static readonly MambaConfig Mamba3B = new() { HiddenSize = 2560, LayerCount = 64, VocabularySize = 50280 };
    public static readonly GptNeoXConfig Pythia3B = new() { HiddenSize = 2560, LayerCount = 32, VocabularySize = 50304, HeadCount = 32 };
    public static readonly Eva02Config Eva02Large = new() { PatchSize = 14, ImageSize = 336, Depth = 24, Width = 1024, Heads = 16, MlpWidth = 2730 };

    /// <summary>Parameters that a token is multiplied with: all matrices but a table that is only looked up in.</summary>
    public static double MatrixParameters(nn.Module model) => model.named_parameters()
        .Where(p => p.parameter.dim() >= 2 && !p.name.EndsWith("A_log", StringComparison.Ordinal) && !p.name.EndsWith("embed_in.weight", StringComparison.Ordinal))
        .Sum(p => (double)p.parameter.numel());

    /// <summary>Bytes of everything that a token reads of a model.</summary>
    public static double WeightBytes(nn.Module model) => model.named_parameters()
        .Where(p => !p.name.EndsWith("embed_in.weight", StringComparison.Ordinal))
        .Sum(p => (double)p.parameter.numel() * p.parameter.element_size());
}

/// <summary>Random weights made on the GPU: a model of 2.8 billion takes a second. Matrices keep the variance of what they are
/// multiplied with, so that the logits of a deep model are neither flat nor infinite; everything small has the model's own first
/// values.</summary>
internal sealed class DeviceParameters(long seed, ScalarType dtype, Device device) : ParameterSource
{
    private const long Small = 1 << 18;
    private long _next = seed;

    public override Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32)
    {
        using var noGradients = no_grad();
        using var scope = NewDisposeScope();
        Tensor values;
        if (shape.Length < 2 || name.EndsWith("A_log", StringComparison.Ordinal) || shape.Aggregate(1L, (a, b) => a * b) < Small)
        {
            values = empty(shape, dtype: ScalarType.Float32);
            using var random = new Generator((ulong)_next++);
            initial(values, random);
        }
        else
        {
            // A table that is also the head: its rows give logits of a standard deviation of about 3.
            var isTable = shape[0] > 50_000;
            var deviation = isTable ? 3 / Math.Sqrt(shape[1]) : 1 / Math.Sqrt(shape[1..].Aggregate(1L, (a, b) => a * b));
            // TorchSharp's generators are the CPU's, whatever device they are made for; the GPU has one of its own.
            torch.cuda.manual_seed(_next++);
            values = empty(shape, dtype: ScalarType.Float32, device: device).normal_(0, deviation);
        }
        return new Parameter(values.to(keepFloat32 ? ScalarType.Float32 : dtype).to(device).MoveToOuterDisposeScope(), requires_grad: false);
    }
}
