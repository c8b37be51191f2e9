using static TorchSharp.torch;

namespace MambaVL.Models;

/// <summary>The pixel-based variant's place-holder for an encoder: a patch's feature is its pixels.</summary>
/// <remarks>The authors' model without an encoder (modeling_vlmamba.py, modeling_vlpythia.py) has only the layers that this
/// project calls the connector. So this class has no parameters, and no positions: any grid of patches goes.</remarks>
public sealed class PixelEncoder : VisionEncoder
{
    private readonly PixelConfig _config;

    /// <summary>Builds the encoder.</summary>
    /// <exception cref="ArgumentException">A size is impossible.</exception>
    public PixelEncoder(PixelConfig config) : base(nameof(PixelEncoder))
    {
        ArgumentNullException.ThrowIfNull(config);
        config.ThrowIfImpossible();
        _config = config;
    }

    /// <inheritdoc/>
    public override long Width => _config.FeatureWidth;

    /// <inheritdoc/>
    public override int PatchSize => _config.PatchSize;

    /// <inheritdoc/>
    public override int ImageSize => _config.ImageSize;

    // Within a patch the rows of pixels follow each other, and the three colours of a pixel stand together.
    private protected override Tensor EncodeImages(Tensor images)
    {
        using var scope = NewDisposeScope();
        var (b, side) = (images.shape[0], PatchSize);
        var (rows, cols) = (images.shape[2] / side, images.shape[3] / side);
        return images.reshape(b, 3, rows, side, cols, side)
            .permute(0, 2, 4, 3, 5, 1)                       // (b, rows, cols, side, side, 3)
            .reshape(b, rows * cols, -1)                     // (b, n, side * side * 3)
            .MoveToOuterDisposeScope();
    }
}
