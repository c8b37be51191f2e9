using static TorchSharp.torch;

namespace MambaVL.Models;

/// <summary>What turns a picture into one vector for each of its patches.</summary>
public abstract class VisionEncoder : nn.Module
{
    /// <summary>Makes an unnamed encoder.</summary>
    protected VisionEncoder(string name) : base(name) { }

    /// <summary>The width of a patch feature.</summary>
    public abstract long Width { get; }

    /// <summary>Pixels on a side of one square patch.</summary>
    public abstract int PatchSize { get; }

    /// <summary>The patch features that the connector takes: [b, 3, h, w] -> [b, patches, width], row by row, the class
    /// token dropped. The caller owns the result.</summary>
    public abstract Tensor Encode(Tensor pixelValues);
}
