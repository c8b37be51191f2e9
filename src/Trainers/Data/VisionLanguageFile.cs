using MambaVL.Data;

namespace Microsoft.ML;

/// <summary>Loads data sets of images and text: <c>mlContext.Data.LoadFromVisionLanguageFile("train.jsonl")</c>.</summary>
public static class VisionLanguageDataCatalog
{
    /// <summary>A data set in JSON lines, one row a line, as docs/dataset-format.md describes it. The file is read line by line,
    /// whenever a cursor asks for rows; images are not opened.</summary>
    /// <remarks>
    /// The columns: <c>Image</c> (the full path), <c>Task</c> (the name of a <see cref="MambaVL.Prompts.VisionTask"/>),
    /// <c>Question</c>, <c>Choices</c> (a vector of text), <c>Target</c> (what is to be learnt), <c>Box</c> (x0, y0, x1, y1 in pixels; four times
    /// NaN where there is none), <c>Answers</c> (Target as a vector, empty where there is none: what the metrics read) and <c>Kind</c>.
    /// Text that a row lacks is empty.
    /// </remarks>
    /// <param name="catalog">The data operations of the MLContext.</param>
    /// <param name="path">The file. Paths of images in it are relative to its folder.</param>
    /// <exception cref="FileNotFoundException">There is no such file. A line that is no row throws an
    /// <see cref="InvalidDataException"/> when a cursor comes to it, with the file, the line, what was found and what was
    /// expected.</exception>
    public static IDataView LoadFromVisionLanguageFile(this DataOperationsCatalog catalog, string path)
    {
        ArgumentNullException.ThrowIfNull(catalog);
        ArgumentException.ThrowIfNullOrEmpty(path);
        if (!File.Exists(path)) throw new FileNotFoundException($"There is no data set '{path}'; expected a file of JSON lines.", path);
        return new VisionLanguageDataView(Path.GetFullPath(path));
    }
}
