using MambaVL.Generation;
using MambaVL.Tests.Models;
using MambaVL.Transforms;
using Microsoft.ML;

namespace MambaVL.Tests.Consumer;

/// <summary>A model.zip as the author's sample saves it, of a tiny model; deleted when it is disposed of.</summary>
internal sealed class SavedPipeline : IDisposable
{
    public SavedPipeline(VisionLanguageModel model, GenerationOptions generation)
    {
        var ml = new MLContext();
        var options = new TextStepOptions { Generation = generation };
        var pipeline = ml.Transforms.EncodeImages("Patches", "Image", model)
            .Append(ml.Transforms.CaptionImages("Caption", "Patches", model, options))
            .Append(ml.Transforms.AnswerQuestions("Answer", "Patches", "Question", model, options))
            .Append(ml.Transforms.GroundPhrases("Box", "Patches", "Phrase", model, options));
        var none = ml.Data.LoadFromEnumerable<Row>([]);
        ml.Model.Save(pipeline.Fit(none), none.Schema, Zip);
    }

    public string Zip { get; } = Path.Combine(Path.GetTempPath(), $"mambavl-tests-{Guid.NewGuid():N}.zip");

    public static string Picture(string name) => Path.Combine(Fixtures.Repository, "tests/data/images/decode", name);

    public void Dispose() => File.Delete(Zip);

    private sealed class Row
    {
        public string Image { get; set; } = "";

        public string Question { get; set; } = "";

        public string Phrase { get; set; } = "";
    }
}
