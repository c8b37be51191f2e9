using MambaVL.Checkpoints;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

namespace MambaVL.Models;

/// <summary>The sizes of a <see cref="Connector"/>.</summary>
/// <param name="FeatureWidth">The width of a patch feature.</param>
/// <param name="HiddenSize">The width d of the language model.</param>
/// <param name="Norm">Whether a LayerNorm ends it: in the pixel-based Mamba-VL alone, whose layers would otherwise meet raw
/// patches without one (Pythia normalises what it reads anyway).</param>
public sealed record ConnectorConfig(int FeatureWidth, int HiddenSize, bool Norm = false)
{
    /// <summary>The epsilon of the LayerNorm, PyTorch's default.</summary>
    internal const double NormEps = 1e-5;

    /// <summary>Learns the sizes from a checkpoint.</summary>
    /// <param name="tensors">What the checkpoint holds; <see cref="Checkpoint.Tensors"/>.</param>
    /// <param name="prefix">What the connector's names begin with.</param>
    /// <exception cref="InvalidDataException">The checkpoint holds no connector.</exception>
    public static ConnectorConfig Resolve(IReadOnlyDictionary<string, TensorEntry> tensors, string prefix = "vision_embed_tokens.")
    {
        ArgumentNullException.ThrowIfNull(tensors);
        ArgumentNullException.ThrowIfNull(prefix);
        var name = prefix + "0.weight";
        if (!tensors.TryGetValue(name, out var first))
            throw new InvalidDataException($"'{name}' is missing; a checkpoint of a vision-language model is expected to hold the connector.");
        if (first.Shape is not [ > 0 and <= VisionConfig.MostWidth and var hidden, > 0 and <= 3L * VisionConfig.MostPatchPixels * VisionConfig.MostPatchPixels and var features])
            throw new InvalidDataException($"'{name}' has the shape [{string.Join(", ", first.Shape)}]; [hidden size, feature width] is expected.");
        return new((int)features, (int)hidden, tensors.ContainsKey(prefix + "3.weight"));
    }
}

/// <summary>From the width of a patch feature to that of the language model: Linear, exact GELU, Linear, and in one variant a
/// LayerNorm.</summary>
/// <remarks>The reference is an <c>nn.Sequential</c>: its layers are called 0, 2 and 3.</remarks>
public sealed class Connector : nn.Module<Tensor, Tensor>
{
    private readonly Linear _first;
    private readonly Linear _second;
    private readonly Norm? _norm;

    /// <summary>Builds the connector from the parameters of <paramref name="p"/>, the scope of its own names.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A width is not positive.</exception>
    public Connector(ConnectorConfig config, ParameterScope p) : base(nameof(Connector))
    {
        ArgumentNullException.ThrowIfNull(config);
        ArgumentOutOfRangeException.ThrowIfLessThan(config.FeatureWidth, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(config.HiddenSize, 1);
        Config = config;
        register_module("0", _first = new(p["0"], config.FeatureWidth, config.HiddenSize));
        register_module("2", _second = new(p["2"], config.HiddenSize, config.HiddenSize));
        if (config.Norm) register_module("3", _norm = new(p["3"], config.HiddenSize, ConnectorConfig.NormEps, NormKind.LayerNorm));
    }

    /// <summary>The sizes.</summary>
    public ConnectorConfig Config { get; }

    /// <summary>[b, patches, feature width] -> [b, patches, d], in the precision of the weights. Records gradients when they are
    /// enabled. The caller owns the result.</summary>
    /// <remarks>On the CPU each image of a batch gives the same bits as it does alone.</remarks>
    /// <exception cref="ArgumentException">The features have another width.</exception>
    public override Tensor forward(Tensor features)
    {
        ArgumentNullException.ThrowIfNull(features);
        if (features.shape is not [_, _, var width] || width != Config.FeatureWidth)
            throw new ArgumentException($"The features have the shape [{string.Join(", ", features.shape)}]; [b, patches, {Config.FeatureWidth}] is expected. "
                + "They must come from the encoder that this connector was trained with.", nameof(features));
        using var scope = NewDisposeScope();
        return VisionEncoder.OneByOneOnCpu(features.to(_first.weight.dtype, _first.weight.device), Connect).MoveToOuterDisposeScope();
    }

    private Tensor Connect(Tensor features)
    {
        using var scope = NewDisposeScope();
        var x = _second.forward(F.gelu(_first.forward(features))); // (b, n, d)
        if (_norm is not null) x = _norm.forward(x);
        return x.MoveToOuterDisposeScope();
    }
}
