using System.Text.Json;
using MambaVL.Checkpoints;
using MambaVL.Generation;
using MambaVL.Prompts;

namespace MambaVL.Tests.Cuda;

/// <summary>Answers of whole models on the GPU, whose tokens it chooses itself.</summary>
[Trait("Category", "Parity")]
public class CudaGenerationTests
{
    public static TheoryData<string> Models => ["mambavl", "pythiavl"];

    [SkippableTheory, MemberData(nameof(Models))]
    public void AllTasksInOneBatchGiveTheAuthorsIds(string folder)
    {
        using var model = Load(folder);
        using var expected = Checkpoint.Open(Fixtures.Path(folder, "expected.safetensors"));
        using var file = JsonDocument.Parse(File.ReadAllBytes(Fixtures.Path(folder, "expected.json")));
        var examples = file.RootElement.EnumerateArray().ToList();
        var images = examples.Select(e => e.GetProperty("image").GetString()!).Distinct().ToDictionary(p => p, p => model.EncodeImage(Fixtures.Path("images", p)));
        var keys = examples.ConvertAll(e => $"{Path.GetFileNameWithoutExtension(e.GetProperty("image").GetString())}.{e.GetProperty("task").GetString()}.greedy");
        var requests = examples.ConvertAll(e => new GenerationRequest(images[e.GetProperty("image").GetString()!], model.Sequence.Build(Conversation(e)).Ids));

        var options = new GenerationOptions { MaxNewTokens = (int)expected.Tensors[keys[0]].Shape[0], IgnoreEndToken = true };
        var texts = new string[requests.Count];
        var answers = model.Generate(requests, options, (row, text) => texts[row] += text);
        for (var i = 0; i < keys.Count; i++)
        {
            using var greedy = expected.Read(keys[i]);
            answers[i].Ids.Select(id => (long)id).Should().Equal(greedy.data<long>().ToArray(), keys[i]);
            (texts[i] ?? "").Should().Be(answers[i].Text, "the pieces are the text, in its order");
            string.Concat(model.Stream(requests[i], options)).Should().Be(answers[i].Text, "a row alone says the same");
        }
        foreach (var image in images.Values) image.Dispose();
    }

    [SkippableTheory, MemberData(nameof(Models))]
    public void CancellationAndLeavingInTheMiddleStopBeforeTheNextPiece(string folder)
    {
        using var model = Load(folder);
        using var image = model.EncodeImage(Directory.EnumerateFiles(Fixtures.Path("images"), "*.png").Order(StringComparer.Ordinal).First());
        var request = new GenerationRequest(image, model.Sequence.Build(MambaVL.Prompts.Conversation.Caption()).Ids);
        var options = new GenerationOptions { MaxNewTokens = 1000, IgnoreEndToken = true };
        using var cancel = new CancellationTokenSource();
        var pieces = 0;
        model.Invoking(m => m.Generate([request], options, (_, _) =>
        {
            if (++pieces == 3) cancel.Cancel();
        }, cancel.Token)).Should().Throw<OperationCanceledException>();
        pieces.Should().Be(3);

        var first = model.Stream(request, options).Take(2).ToList();
        model.Stream(request, options).Take(2).Should().Equal(first, "steps that were on their way leave nothing behind");
    }

    private static VisionLanguageModel Load(string folder)
    {
        CudaTesting.Gpu();
        return VisionLanguageModel.FromPretrained(Fixtures.Path(folder), new() { TokenizerPath = Fixtures.Path("tokenizer", "tokenizer.json"), Device = "cuda", DType = TorchSharp.torch.ScalarType.Float32 });
    }

    private static Conversation Conversation(JsonElement example) => example.GetProperty("task").GetString() switch
    {
        "captioning" => MambaVL.Prompts.Conversation.Caption(),
        "vqa" => MambaVL.Prompts.Conversation.Ask(example.GetProperty("question").GetString()!),
        "visual_grounding" => MambaVL.Prompts.Conversation.Locate(example.GetProperty("phrase").GetString()!),
        var other => throw new InvalidDataException($"The fixtures have a task '{other}'."),
    };
}
