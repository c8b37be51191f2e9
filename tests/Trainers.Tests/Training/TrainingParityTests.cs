using MambaVL.Checkpoints;
using MambaVL.Prompts;
using MambaVL.Tests.Models;
using MambaVL.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Training;

/// <summary>The trainer's own loss and gradients against the authors', on their training batch.</summary>
[Trait("Category", "Parity")]
public class TrainingParityTests
{
    private const double LossTolerance = 1e-5, GradientTolerance = 1e-3;

    public static TheoryData<string> Models => ["mambavl", "pythiavl"];

    [SkippableTheory, MemberData(nameof(Models))]
    public void TheTrainersLossPathGivesTheAuthorsLossAndGradients(string folder)
    {
        using var origin = VisionLanguageModel.FromPretrained(Fixtures.Path(folder), new()
        {
            TokenizerPath = Fixtures.Path("tokenizer", "tokenizer.json"), Device = TestDevice.Current.ToString(), DType = ScalarType.Float32,
        });
        using var expected = Checkpoint.Open(Fixtures.Path(folder, "expected.safetensors"));
        using var scope = NewDisposeScope();
        using var model = new TrainingModel(new InstructionTuneOptions { Model = origin, Precision = TrainingPrecision.Float32 }, origin.Config);
        using var batch = Batch(origin, expected.Read("train.input_ids"), expected.Read("train.labels"));

        // The fixture has pixel values, not pictures: its features are given where the trainer has its own.
        var patches = origin.EncodePatches(expected.Read("train.pixel_values")).clone();
        var loss = model.Loss(batch, patches);
        Compare.Close(loss.reshape(1), expected.ReadToDevice("train.loss"), LossTolerance, "train.loss");
        loss.backward();
        model.Parameters.Gather();
        var compared = 0;
        foreach (var name in model.Parameters.Names)
        {
            var key = "train.grad." + name;
            if (!expected.Tensors.ContainsKey(key)) continue;
            Compare.CloseInNorm(model.Parameters.View(model.Parameters.Gradients, name), expected.ReadToDevice(key), GradientTolerance, key);
            compared++;
        }
        compared.Should().Be(expected.Tensors.Keys.Count(k => k.StartsWith("train.grad."))).And.BePositive();
        model.Parameters.Names.Should().NotContain(n => n.StartsWith("vision_encoder."));
    }

    // The fixture's ids and labels as the rows that the trainer makes of a data set.
    private static MicroBatch Batch(VisionLanguageModel model, Tensor inputIds, Tensor inputLabels)
    {
        var size = model.Config.Images.ImageSize;
        var image = ImageTokens.Sequence(model.Tokenizer, size, size, model.Vision.PatchSize);
        var (count, length) = ((int)inputIds.shape[0], (int)inputIds.shape[1]);
        var (ids, labels) = (inputIds.data<long>().ToArray(), inputLabels.data<long>().ToArray());
        var rows = Enumerable.Range(0, count).Select(i =>
        {
            var (row, asked) = (ids[(i * length)..((i + 1) * length)], labels[(i * length)..((i + 1) * length)]);
            var end = length;
            while (asked[end - 1] == SequenceBuilder.Ignore) end--;          // padding
            var at = Array.IndexOf(row, ImageTokens.Placeholder) - Array.IndexOf(image, ImageTokens.Placeholder);
            row[at..(at + image.Length)].Should().Equal(image);
            var text = Enumerable.Range(0, end).Where(t => t < at || t >= at + image.Length).ToList();
            return new TrainingRow(i, i, [.. text.Select(t => (int)row[t])], [.. text.Select(t => asked[t] != SequenceBuilder.Ignore)], at);
        }).ToArray();
        return new(new(rows, [], null!, image, 0, 0, ""), rows, count, model.Tokenizer.EndOfTextId, model.Device);
    }
}
