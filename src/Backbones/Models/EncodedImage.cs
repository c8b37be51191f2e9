using static TorchSharp.torch;

namespace MambaVL;

/// <summary>A picture as the language model reads it: one embedding for each patch. Made once, it serves any number of
/// questions, from any number of threads, until it is disposed.</summary>
public sealed class EncodedImage : IDisposable
{
    private readonly Tensor _embeddings;

    /// <summary>Takes over embeddings that <see cref="VisionLanguageModel.Connect"/> gave.</summary>
    /// <param name="embeddings">[patches, d]; owned by this object from now on.</param>
    /// <param name="width">The picture's width in pixels, to which boxes are scaled; at least 1.</param>
    /// <param name="height">The picture's height in pixels.</param>
    /// <exception cref="ArgumentException">The embeddings are not [patches, d] of floating point.</exception>
    public EncodedImage(Tensor embeddings, int width, int height)
    {
        ArgumentNullException.ThrowIfNull(embeddings);
        ArgumentOutOfRangeException.ThrowIfLessThan(width, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(height, 1);
        if (embeddings.dim() != 2 || embeddings.numel() == 0 || !embeddings.is_floating_point())
            throw new ArgumentException($"The embeddings are [{string.Join(", ", embeddings.shape)}] of {embeddings.dtype}; expected [patches, d] of floating point, as VisionLanguageModel.Connect gives for one picture.", nameof(embeddings));
        _embeddings = embeddings.DetachFromDisposeScope();
        (Width, Height) = (width, height);
    }

    /// <summary>The picture's width in pixels.</summary>
    public int Width { get; }

    /// <summary>The picture's height in pixels.</summary>
    public int Height { get; }

    /// <summary>[patches, d]; stays this object's.</summary>
    /// <exception cref="ObjectDisposedException">The picture was disposed.</exception>
    public Tensor Embeddings
    {
        get
        {
            ObjectDisposedException.ThrowIf(_embeddings.IsInvalid, this);
            return _embeddings;
        }
    }

    /// <summary>Frees the embeddings.</summary>
    public void Dispose() => _embeddings.Dispose();
}
