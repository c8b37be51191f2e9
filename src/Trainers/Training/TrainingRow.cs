using MambaVL.Prompts;

namespace MambaVL.Training;

/// <summary>A row as the model reads it, without the image's own ids, which are the same in every row.</summary>
/// <param name="Position">Its place in the data, the first is 0.</param>
/// <param name="Picture">Its image, an index into <see cref="PictureStore"/>.</param>
/// <param name="Ids">The text before and after the image.</param>
/// <param name="IsAnswer">Which of them the model is to say.</param>
/// <param name="ImageAt">How many of them stand before the image.</param>
internal sealed record TrainingRow(long Position, int Picture, int[] Ids, bool[] IsAnswer, int ImageAt);

/// <summary>What a validation that generates text needs of a row besides.</summary>
internal sealed record AskedRow(VisionTask Task, string Question, string[] Choices, float[] Box, string Target);

/// <summary>Rows that were read, checked and tokenised, and their pictures.</summary>
/// <param name="Rows">At least one.</param>
/// <param name="Asked">Of a validation set, the same rows as they are asked; else empty.</param>
/// <param name="Pictures">Their pictures.</param>
/// <param name="ImageIds">The ids of every row's image.</param>
/// <param name="BadRows">Rows that were left out because they cannot be used.</param>
/// <param name="LongRows">Rows that were left out because they are too long.</param>
/// <param name="Fingerprint">Says whether two data sets are the same, row by row and pixel by pixel.</param>
internal sealed record TrainingData(
    TrainingRow[] Rows, AskedRow[] Asked, PictureStore Pictures, long[] ImageIds, int BadRows, int LongRows, string Fingerprint)
{
    public int Length(TrainingRow row) => row.Ids.Length + ImageIds.Length;
}
