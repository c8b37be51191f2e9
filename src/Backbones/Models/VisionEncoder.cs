using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Models;

/// <summary>What turns a picture into one vector for each of its patches.</summary>
/// <remarks>Tensors that a method returns belong to the caller. Any number of threads may use one encoder.</remarks>
public abstract class VisionEncoder : nn.Module
{
    /// <summary>Makes an unnamed encoder.</summary>
    protected VisionEncoder(string name) : base(name) { }

    /// <summary>The width of a patch feature.</summary>
    public abstract long Width { get; }

    /// <summary>Pixels on a side of one square patch.</summary>
    public abstract int PatchSize { get; }

    /// <summary>Pixels on a side of the square images that the encoder's positions were made for.</summary>
    public abstract int ImageSize { get; }

    /// <summary>The patch features that the connector takes: [b, 3, h, w] -> [b, patches, width], row by row, the class
    /// token dropped. The caller owns the result.</summary>
    /// <param name="pixelValues">[b, 3, h, w], normalised; of any floating type, and on any device (both are brought to
    /// the weights' own). The height and the width are multiples of <see cref="PatchSize"/>; where they differ from
    /// <see cref="ImageSize"/>, the positions are resampled.</param>
    /// <remarks>On the CPU each image of a batch gives the same bits as it does alone.</remarks>
    /// <exception cref="ArgumentException">The shape or the element type is none of these.</exception>
    public Tensor Encode(Tensor pixelValues) => ImageByImage(pixelValues, EncodeImages);

    /// <summary><see cref="Encode"/> of images that were checked and have the weights' precision and device.</summary>
    private protected abstract Tensor EncodeImages(Tensor images);

    /// <summary>A weight whose precision and device the images take; null where there is none.</summary>
    private protected virtual Tensor? Weight => null;

    /// <summary>Checks the images and runs <paramref name="forward"/> on them: one batch on a GPU; on the CPU one after the
    /// other, because a batch is no faster there and a matrix product may round differently for each number of rows.</summary>
    private protected Tensor ImageByImage(Tensor pixelValues, Func<Tensor, Tensor> forward)
    {
        Check(pixelValues);
        using var scope = NewDisposeScope();
        var images = Weight is { } weight ? pixelValues.to(weight.dtype, weight.device) : pixelValues;
        if (images.device_type != DeviceType.CPU || images.shape[0] == 1) return forward(images).MoveToOuterDisposeScope();
        var features = new List<Tensor>();
        for (long i = 0; i < images.shape[0]; i++)
        {
            using var image = images.narrow(0, i, 1);
            features.Add(forward(image));
        }
        return cat(features).MoveToOuterDisposeScope();
    }

    private void Check(Tensor pixelValues)
    {
        ArgumentNullException.ThrowIfNull(pixelValues);
        var shape = pixelValues.shape;
        if (!pixelValues.is_floating_point())
            throw new ArgumentException($"The pixel values are {pixelValues.dtype}; normalised floating-point values are expected.", nameof(pixelValues));
        if (shape is not [ > 0, 3, > 0, > 0] || shape[2] % PatchSize != 0 || shape[3] % PatchSize != 0)
            throw new ArgumentException($"The pixel values have the shape [{string.Join(", ", shape)}]; [b, 3, h, w] is expected, h and w "
                + $"multiples of the patch size {PatchSize}. Resize the images first, to {ImageSize}x{ImageSize} unless you mean another size.", nameof(pixelValues));
    }
}
