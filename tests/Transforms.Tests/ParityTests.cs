using System.Text.Json;
using MambaVL.Checkpoints;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Tests;

/// <summary>The steps against the authors' own answers, also after saving and loading.</summary>
[Trait("Category", "Parity")]
public class ParityTests
{
    [SkippableTheory, InlineData("mambavl"), InlineData("pythiavl")]
    public void EveryTaskGivesTheAuthorsIdsAndText(string folder)
    {
        using var model = VisionLanguageModel.FromPretrained(Fixtures.Path(folder), new() { TokenizerPath = Fixtures.Path("tokenizer", "tokenizer.json") });
        using var expected = Checkpoint.Open(Fixtures.Path(folder, "expected.safetensors"));
        using var file = JsonDocument.Parse(File.ReadAllBytes(Fixtures.Path(folder, "expected.json")));
        var zip = System.IO.Path.Combine(System.IO.Path.GetTempPath(), $"mambavl-parity-{Guid.NewGuid():n}.zip");
        var compared = 0;
        try
        {
            foreach (var task in file.RootElement.EnumerateArray().GroupBy(e => e.GetProperty("task").GetString()!))
            {
                var ml = new MLContext(1);
                var rows = task.Select(e => new Row
                {
                    Image = Fixtures.Path("images", e.GetProperty("image").GetString()!),
                    Text = (e.GetProperty("question").GetString() ?? e.GetProperty("phrase").GetString()) ?? "",
                    Greedy = Greedy(expected, e),
                    GreedyText = e.GetProperty("greedy_text").GetString()!,
                }).ToList();
                var data = ml.Data.LoadFromEnumerable(rows);
                var options = new TextStepOptions { Generation = new() { MaxNewTokens = rows[0].Greedy.Length, IgnoreEndToken = true } };
                IEstimator<ITransformer> Step(string output, string image) => task.Key switch
                {
                    "captioning" => ml.Transforms.CaptionImages(output, image, model, options),
                    "vqa" => ml.Transforms.AnswerQuestions(output, image, "Text", model, options),
                    "visual_grounding" => ml.Transforms.GroundPhrases(output, image, "Text", model, options),
                    _ => throw new InvalidDataException($"The fixtures have a task '{task.Key}'."),
                };
                var transformer = Step("Out", "Image").Append(ml.Transforms.EncodeImages("Patches", "Image", model)).Append(Step("FromPatches", "Patches")).Fit(data);
                ml.Model.Save(transformer, data.Schema, zip);
                var loaded = new MLContext().Model.Load(zip, out _);
                using var disposing = (IDisposable)loaded;
                foreach (var result in new[] { transformer.Transform(data), loaded.Transform(data) })
                    foreach (var column in new[] { "Out", "FromPatches" })
                    {
                        var ids = result.GetColumn<int[]>(column + ".Ids").ToList();
                        ids.Should().HaveCount(rows.Count);
                        for (var i = 0; i < rows.Count; i++)
                        {
                            ids[i].Should().Equal(rows[i].Greedy, $"{folder}, {task.Key}, {rows[i].Image}");
                            model.Tokenizer.Decode(ids[i]).Should().Be(rows[i].GreedyText);
                            compared++;
                        }
                        result.GetColumn<string>(column + ".Text").Should().Equal(rows.Select(r => model.Tokenizer.Decode(r.Greedy, skipSpecialTokens: true)));
                    }
            }
        }
        finally
        {
            File.Delete(zip);
        }
        compared.Should().Be(4 * file.RootElement.GetArrayLength()).And.BePositive();
    }

    private static int[] Greedy(Checkpoint expected, JsonElement example)
    {
        var name = $"{System.IO.Path.GetFileNameWithoutExtension(example.GetProperty("image").GetString())}.{example.GetProperty("task").GetString()}.greedy";
        using var greedy = expected.Read(name);
        return [.. greedy.data<long>().Select(id => (int)id)];
    }

    private sealed class Row
    {
        public string Image { get; set; } = "";

        public string Text { get; set; } = "";

        [NoColumn]
        public int[] Greedy { get; set; } = [];

        [NoColumn]
        public string GreedyText { get; set; } = "";
    }
}
