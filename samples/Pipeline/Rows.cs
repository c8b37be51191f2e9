using MambaVL.Transforms;
using Microsoft.ML.Data;

namespace MambaVL.Samples;

/// <summary>A row that goes in.</summary>
internal sealed class Example
{
    /// <summary>A path. The step takes a file's bytes and an MLImage as well: samples/CaptionService loads the model that is
    /// saved here and gives it bytes.</summary>
    public string Image { get; set; } = "";

    public string Question { get; set; } = "";

    public string Phrase { get; set; } = "";
}

/// <summary>The columns of a row that comes out. Only what this class has is computed.</summary>
internal sealed class Described
{
    public string Image { get; set; } = "";

    public string Caption { get; set; } = "";

    public string Answer { get; set; } = "";

    /// <summary>x0, y0, x1, y1 in pixels of the original picture; not numbers where the model's text holds no box.</summary>
    [VectorType(BoxColumn.Length)]
    public float[] Box { get; set; } = [];

    [ColumnName("Box.Text")]
    public string BoxText { get; set; } = "";
}

/// <summary>The same pipeline, asked for a caption only: no question is answered and no box is looked for.</summary>
internal sealed class Captioned
{
    public string Caption { get; set; } = "";
}
