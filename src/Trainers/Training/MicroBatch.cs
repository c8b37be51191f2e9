using MambaVL.Prompts;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Training;

/// <summary>Rows that go through the model together, laid out so that no operation on a GPU has to be waited for.</summary>
/// <remarks>
/// Rows are padded on the right, which neither backbone's answers see. What the model must say is a list of places: the
/// head runs there alone. Every place weighs 1 / (answer tokens of its row x rows of the step), so that the sum over all
/// micro-batches of a step is the mean over rows of the mean over tokens (<see cref="VisionLanguageModel.AnswerLoss"/>).
/// </remarks>
internal sealed class MicroBatch : IDisposable
{
    private readonly Tensor _integers; // ids, places, pictures, asked and targets, one after the other: one copy to the GPU

    /// <param name="data">Where the rows are.</param>
    /// <param name="rows">At least one.</param>
    /// <param name="rowsOfStep">Rows of the whole step.</param>
    /// <param name="padding">The id that rows are filled up with.</param>
    /// <param name="device">Where they will be sent.</param>
    public MicroBatch(TrainingData data, IReadOnlyList<TrainingRow> rows, int rowsOfStep, long padding, Device device)
    {
        Rows = rows.Count;
        Length = rows.Max(data.Length);
        Tokens = rows.Sum(r => (long)data.Length(r));
        Pictures = data.Pictures;
        PictureIndices = [.. rows.Select(r => r.Picture).Distinct()];
        Patches = data.ImageIds.Count(id => id == ImageTokens.Placeholder);

        Asked = rows.Sum(Answers);
        var (text, patches) = (Rows * Length, Rows * Patches);
        _integers = HostTensor.Empty([text + patches + Rows + 2 * Asked], ScalarType.Int64, device);
        Weights = HostTensor.Empty([Asked], ScalarType.Float32, device);
        var all = HostTensor.Elements<long>(_integers);
        var weights = HostTensor.Elements<float>(Weights);
        var ids = all[..text];
        var places = all.Slice(text, patches);
        var pictures = all.Slice(text + patches, Rows);
        var asked = all.Slice(text + patches + Rows, Asked);
        var targets = all[^Asked..];
        ids.Fill(padding);
        var (place, answer) = (0, 0);
        for (var i = 0; i < Rows; i++)
        {
            var (row, start, image) = (rows[i], i * Length, data.ImageIds.Length);
            pictures[i] = Array.IndexOf(PictureIndices, row.Picture);
            weights.Slice(answer, Answers(row)).Fill((float)(1.0 / Answers(row) / rowsOfStep));
            for (var t = 0; t < data.Length(row); t++)
            {
                if (t >= row.ImageAt && t < row.ImageAt + image)
                {
                    var id = data.ImageIds[t - row.ImageAt];
                    if (id == ImageTokens.Placeholder) places[place++] = start + t;
                    ids[start + t] = id == ImageTokens.Placeholder ? 0 : id;
                    continue;
                }
                var at = t < row.ImageAt ? t : t - image;
                ids[start + t] = row.Ids[at];
                if (!row.IsAnswer[at] || t == 0) continue;
                asked[answer] = start + t - 1; // the position before a token predicts it
                targets[answer++] = row.Ids[at];
            }
        }

        // Nothing predicts a row's first id.
        static int Answers(TrainingRow row) => row.IsAnswer.AsSpan(row.ImageAt > 0 ? 1 : 0).Count(true);
    }

    public int Rows { get; }

    /// <summary>Ids of the longest row.</summary>
    public int Length { get; }

    /// <summary>Ids of all rows, without padding.</summary>
    public long Tokens { get; }

    /// <summary>Patches of a picture.</summary>
    public int Patches { get; }

    /// <summary>Positions whose next token is an answer's.</summary>
    public int Asked { get; }

    /// <summary>Where the pictures are.</summary>
    public PictureStore Pictures { get; }

    /// <summary>The distinct pictures of the rows.</summary>
    public int[] PictureIndices { get; }

    /// <summary>[p], float32: what each asked position weighs in the loss.</summary>
    public Tensor Weights { get; }

    /// <summary>The pixels of the distinct pictures, [k, size, size, 3] of bytes; null where their features are kept.</summary>
    public Tensor? Pixels { get; set; }

    /// <summary>Everything on the device. From here on the host may run ahead: nothing reads these tensors' values.</summary>
    public Inputs To(Device device)
    {
        var all = HostTensor.Send(_integers, device);
        long at = 0;
        return new(Take((long)Rows * Length).view(Rows, Length), Take((long)Rows * Patches), Take(Rows), Take(Asked), Take(Asked), HostTensor.Send(Weights, device));

        Tensor Take(long count) => all.narrow(0, (at += count) - count, count);
    }

    public void Dispose()
    {
        _integers.Dispose();
        Weights.Dispose();
        Pixels?.Dispose();
    }

    /// <param name="Ids">[b, l]; 0 where a patch goes.</param>
    /// <param name="Places">[b * n]: where the patches go, of b * l.</param>
    /// <param name="Pictures">[b]: each row's picture among the distinct ones.</param>
    /// <param name="Asked">[p]: positions whose next token is an answer's, of b * l.</param>
    /// <param name="Targets">[p]: those tokens.</param>
    /// <param name="Weights">[p]: what each weighs in the loss.</param>
    public readonly record struct Inputs(Tensor Ids, Tensor Places, Tensor Pictures, Tensor Asked, Tensor Targets, Tensor Weights);
}
