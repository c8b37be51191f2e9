using System.Runtime.InteropServices;
using MambaVL.Images;
using Microsoft.ML.Data;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Transforms;

/// <summary>The encoded images of a batch. Rows about one image share it: it is encoded once, and the prompts about it
/// share the work of reading it.</summary>
internal sealed class PictureSet(VisionLanguageModel model, ImageDecoderOptions options) : IDisposable
{
    private const int MostAtOnce = 16; // enough to fill a GPU

    private readonly List<(RowInput Row, EncodedImage Image)> _encoded = [];
    private readonly List<(RowInput Row, Tensor Features)> _ahead = [];

    /// <summary>Encodes the images of rows together where that is quicker than one by one, which is on a GPU. A row whose image
    /// cannot be read is left out: it fails when it is asked for.</summary>
    public void EncodeAhead(IReadOnlyList<RowInput> rows, StopSignal stop)
    {
        if (model.Device.type != DeviceType.CPU) EncodeTogether(rows, stop.Check);
    }

    internal void EncodeTogether(IReadOnlyList<RowInput> rows, Action check)
    {
        var distinct = new List<RowInput>();
        foreach (var row in rows)
            if (!row.IsFeatures && row.FetchError is null && !distinct.Exists(row.HasSamePicture)) distinct.Add(row);
        if (distinct.Count < 2) return;
        foreach (var some in distinct.Chunk(MostAtOnce))
        {
            var read = new List<RowInput>();
            var pictures = new List<DecodedImage>();
            try
            {
                foreach (var row in some)
                {
                    check();
                    try
                    {
                        pictures.Add(Picture(row));
                        read.Add(row);
                    }
                    catch (Exception e) when (StepResults.IsRowError(e))
                    {
                    }
                }
                if (read.Count == 0) continue;
                using var pixels = model.ImageProcessor.ProcessBatch(pictures);          // (b, 3, h, w)
                using var features = model.EncodePatches(pixels);                        // (b, n, width)
                for (var i = 0; i < read.Count; i++) _ahead.Add((read[i], features.narrow(0, i, 1)));
            }
            finally
            {
                foreach (var picture in pictures) picture.Dispose();
            }
        }
    }

    /// <summary>The row's image as the language model reads it; stays this set's. Gives the row its width and height.</summary>
    public EncodedImage Encode(RowInput row)
    {
        foreach (var (other, encoded) in _encoded)
        {
            if (!row.HasSamePicture(other)) continue;
            if (!row.IsFeatures) (row.Width, row.Height) = (other.Width, other.Height);
            return encoded;
        }
        EncodedImage image;
        if (row.Kind == ImageKind.Embeddings)
        {
            image = new(FeatureTensor(row), Math.Max(1, row.Width), Math.Max(1, row.Height));
        }
        else
        {
            var (patches, width, height) = PatchFeatures(row);
            using (patches)
            {
                using var embeddings = model.Connect(patches);                         // (1, n, d)
                image = new(embeddings.squeeze(0), Math.Max(1, width), Math.Max(1, height));
            }
        }
        _encoded.Add((row, image));
        return image;
    }

    /// <summary>The row's patch features [1, patches, width], which the caller owns, and the size of its image.</summary>
    public (Tensor Features, int Width, int Height) PatchFeatures(RowInput row)
    {
        if (row.Kind == ImageKind.Patches)
        {
            using var features = FeatureTensor(row);
            return (features.unsqueeze(0), row.Width, row.Height);
        }
        foreach (var (other, ahead) in _ahead)
        {
            if (!row.HasSamePicture(other)) continue;
            (row.Width, row.Height) = (other.Width, other.Height);
            return (ahead.alias(), row.Width, row.Height);
        }
        using var picture = Picture(row);
        using var pixels = model.ImageProcessor.ProcessBatch([picture]);                 // (1, 3, h, w)
        return (model.EncodePatches(pixels), row.Width, row.Height);
    }

    /// <summary>The size of the row's image, which is read for that, but not encoded.</summary>
    public (int Width, int Height) Size(RowInput row)
    {
        using var picture = Picture(row);
        return (row.Width, row.Height);
    }

    public void Dispose()
    {
        foreach (var (_, image) in _encoded) image.Dispose();
        foreach (var (_, features) in _ahead) features.Dispose();
    }

    private DecodedImage Picture(RowInput row)
    {
        switch (row.Kind)
        {
            case ImageKind.Path:
                if (row.Path.Length == 0) throw new ImageException("image column", "found an empty path; expected that of an image file.");
                return Sized(DecodedImage.Decode(row.Path, options));
            case ImageKind.Bytes:
                return Sized(DecodedImage.Decode(row.Encoded.Dense(), options));
            default: // squashed when it was fetched: resizing a square to its own size changes nothing
                var side = model.ImageProcessor.Options.ImageSize;
                return DecodedImage.FromPixels(side, side, row.Square);
        }

        DecodedImage Sized(DecodedImage image)
        {
            (row.Width, row.Height) = (image.Width, image.Height);
            return image;
        }
    }

    // (patches, width), in the weights' precision and place. What has no image has features that are no numbers.
    private Tensor FeatureTensor(RowInput row)
    {
        var values = row.Features.Dense();
        if (float.IsNaN(values[0]))
            throw new InvalidDataException($"the row has no features: its image could not be read by the step before.");
        var patches = model.Config.Images.ImageSize / model.Vision.PatchSize;
        using var scope = NewDisposeScope();
        var weight = model.Connector.parameters().First();
        var features = empty(patches * patches, values.Length / (patches * patches), ScalarType.Float32);
        values.CopyTo(MemoryMarshal.Cast<byte, float>(features.bytes));
        return features.to(weight.dtype, weight.device).MoveToOuterDisposeScope();
    }
}
