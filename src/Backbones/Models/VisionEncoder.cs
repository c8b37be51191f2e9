using MambaVL.Checkpoints;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

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

    /// <summary>Checks the images, brings them to the weights' precision and device, and runs <paramref name="forward"/>.</summary>
    private protected Tensor ImageByImage(Tensor pixelValues, Func<Tensor, Tensor> forward)
    {
        Check(pixelValues);
        using var scope = NewDisposeScope();
        var images = Weight is { } weight ? pixelValues.to(weight.dtype, weight.device) : pixelValues;
        return OneByOneOnCpu(images, forward).MoveToOuterDisposeScope();
    }

    /// <summary>One batch on a GPU; on the CPU one row after the other, because a batch is no faster there, and a matrix product
    /// may round differently for each number of rows.</summary>
    internal static Tensor OneByOneOnCpu(Tensor batch, Func<Tensor, Tensor> forward)
    {
        if (batch.device_type != DeviceType.CPU || batch.shape[0] == 1) return forward(batch);
        using var scope = NewDisposeScope();
        var results = new List<Tensor>();
        for (long i = 0; i < batch.shape[0]; i++)
        {
            using var one = batch.narrow(0, i, 1);
            results.Add(forward(one));
        }
        return cat(results).MoveToOuterDisposeScope();
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

/// <summary>A convolution whose stride is its kernel: one product for each patch.</summary>
internal sealed class PatchProjection : nn.Module<Tensor, Tensor>
{
    private readonly long _numbers, _padded; // of a patch, and to how much it is padded for a GPU
    private readonly PackedMatrix _matrix;
    private readonly Parameter weight; // (d, 3, patch, patch)
    private readonly Parameter? bias;  // (d)

    public PatchProjection(ParameterScope p, int patchSize, long width, bool hasBias) : base(nameof(PatchProjection))
    {
        weight = p.Take(nameof(weight), [width, 3, patchSize, patchSize], Initial.FanIn(3L * patchSize * patchSize));
        if (hasBias) bias = p.Take(nameof(bias), [width], Initial.Zeros);
        _numbers = 3L * patchSize * patchSize;
        _padded = PackedMatrix.Padded(_numbers);
        _matrix = new(width, _padded);
        RegisterComponents();
    }

    public override Tensor forward(Tensor images)
    {
        using var scope = NewDisposeScope();
        if (images.device_type == DeviceType.CUDA) return AsProduct(images).MoveToOuterDisposeScope();
        var patches = F.conv2d(images, weight, bias, strides: [weight.shape[2], weight.shape[3]]); // (b, d, rows, cols)
        return patches.flatten(2).transpose(1, 2).MoveToOuterDisposeScope();                       // (b, n, d)
    }

    /// <summary>The same as a matrix product, which on a GPU is faster than a convolution of three channels, adds in the same
    /// order each time, and is faster again when its length (588 for patches of 14) is padded.</summary>
    internal Tensor AsProduct(Tensor images)
    {
        var (b, side) = (images.shape[0], weight.shape[2]);
        var (rows, cols) = (images.shape[2] / side, images.shape[3] / side);
        var patches = images.reshape(b, 3, rows, side, cols, side).permute(0, 2, 4, 1, 3, 5).reshape(b, rows * cols, _numbers); // (b, n, 3 side side)
        if (weight.requires_grad || _padded == _numbers)
        {
            _matrix.Unpack((weight, 0));
            return Linear.Product(patches, weight.reshape(weight.shape[0], _numbers), bias);             // (b, n, d)
        }
        patches = F.pad(patches, [0, _padded - _numbers]);
        return Linear.Product(patches, _matrix.Get(weight, (weight, 0)), bias);                          // (b, n, d)
    }

    protected override void Dispose(bool disposing)
    {
        if (disposing) _matrix.Dispose();
        base.Dispose(disposing);
    }
}
