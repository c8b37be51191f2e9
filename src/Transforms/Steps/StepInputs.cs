using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Transforms;

/// <summary>What a step needs to know of a column that is there, from a schema or from the shape of one.</summary>
/// <param name="Name">Its name.</param>
/// <param name="Kind">Scalar, vector of a known size, or of a size that differs from row to row.</param>
/// <param name="ItemType">The type of the value, or of a vector's items.</param>
/// <param name="Size">Items of a vector; 0 where that is not known.</param>
/// <param name="Features">What its annotation says that it holds, or null.</param>
/// <param name="TypeName">Its type as an error names it.</param>
internal sealed record ColumnFacts(string Name, SchemaShape.Column.VectorKind Kind, DataViewType ItemType, int Size, FeatureKind? Features, string TypeName);

/// <summary>How a step's image column gives its images.</summary>
internal enum ImageKind
{
    MLImage,
    Path,
    Bytes,
    Patches,
    Embeddings,
}

/// <summary>The input columns of a step, checked.</summary>
/// <param name="Image">How the image column gives its images.</param>
/// <param name="SizeColumn">The column with the original image's size, where the step has features and one is there.</param>
internal sealed record StepInputs(ImageKind Image, string? SizeColumn);
