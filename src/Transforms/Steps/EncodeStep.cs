using System.Runtime.InteropServices;
using Microsoft.ML;
using Microsoft.ML.Data;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Transforms;

/// <summary>Images to patch features and the size of the original.</summary>
internal sealed class EncodeStep(StepSettings settings, VisionLanguageConfig config) : Step(settings, config)
{
    private const int Features = 0, Size = 1;

    public override IEnumerable<DataViewSchema.DetachedColumn> Outputs(StepInputs inputs)
        => WithError(FeatureColumn(PatchWidth, FeatureKind.Patches), new(Settings.Output + SizeSuffix, SizeType));

    public override void Run(VisionLanguageModel model, IReadOnlyList<RowInput> rows, StepResults results, bool[] wanted, StopSignal stop)
    {
        using var pictures = new PictureSet(model, Settings.Images);
        if (wanted[Features]) pictures.EncodeAhead(rows, stop);
        foreach (var row in rows)
        {
            stop.Check();
            results.Try(row, () =>
            {
                // Without the features, reading the image is all there is to do.
                var (width, height) = wanted[Features] ? Encode(pictures, row, results) : pictures.Size(row);
                results.Set(Size, row.Index, new VBuffer<int>(2, [width, height]));
            });
        }
    }

    public override void SetEmpty(StepResults results, int row)
    {
        results.Vector(Features, row, Patches * PatchWidth).Fill(float.NaN);
        results.Set(Size, row, new VBuffer<int>(2, [0, 0]));
    }

    protected override ImageKind? ReadKind(ColumnFacts column) => base.ReadKind(column) is { } kind and not (ImageKind.Patches or ImageKind.Embeddings) ? kind : null;

    protected override string ExpectedImage(ColumnFacts column) => "an image (MLImage), a path (text) or a file's bytes (a vector of byte)";

    private (int Width, int Height) Encode(PictureSet pictures, RowInput row, StepResults results)
    {
        var (features, width, height) = pictures.PatchFeatures(row);
        using (features) CopyTo(features, results.Vector(Features, row.Index, Patches * PatchWidth));
        return (width, height);
    }

    internal static void CopyTo(Tensor features, Span<float> destination)
    {
        using var plain = features.to(ScalarType.Float32, CPU, copy: true).contiguous();
        MemoryMarshal.Cast<byte, float>(plain.bytes).CopyTo(destination);
    }
}

/// <summary>Patch features to embeddings.</summary>
internal sealed class ConnectStep(StepSettings settings, VisionLanguageConfig config) : Step(settings, config)
{
    private const int Embeddings = 0, Size = 1;

    public override IEnumerable<DataViewSchema.DetachedColumn> Outputs(StepInputs inputs)
    {
        var column = FeatureColumn(EmbeddingWidth, FeatureKind.Embeddings);
        return inputs.SizeColumn is null ? WithError(column) : WithError(column, new(Settings.Output + SizeSuffix, SizeType));
    }

    public override void Run(VisionLanguageModel model, IReadOnlyList<RowInput> rows, StepResults results, bool[] wanted, StopSignal stop)
    {
        using var pictures = new PictureSet(model, Settings.Images);
        foreach (var row in rows)
        {
            stop.Check();
            results.Try(row, () =>
            {
                if (wanted[Embeddings])
                    EncodeStep.CopyTo(pictures.Encode(row).Embeddings, results.Vector(Embeddings, row.Index, Patches * EmbeddingWidth));
                if (results.HasColumn(Size)) results.Set(Size, row.Index, new VBuffer<int>(2, [row.Width, row.Height]));
            });
        }
    }

    public override void SetEmpty(StepResults results, int row)
    {
        results.Vector(Embeddings, row, Patches * EmbeddingWidth).Fill(float.NaN);
        if (results.HasColumn(Size)) results.Set(Size, row, new VBuffer<int>(2, [0, 0]));
    }

    protected override ImageKind? ReadKind(ColumnFacts column) => base.ReadKind(column) is ImageKind.Patches ? ImageKind.Patches : null;

    protected override string ExpectedImage(ColumnFacts column) => $"patch features, a {Patches} x {PatchWidth} vector of Single, as EncodeImages gives with this model";
}
