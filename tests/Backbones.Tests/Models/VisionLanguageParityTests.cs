using System.Text.Json;
using MambaVL.Checkpoints;
using MambaVL.Generation;
using MambaVL.Prompts;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

/// <summary>The whole model against the authors' own, from the picture's file to the text.</summary>
[Trait("Category", "Parity")]
public class VisionLanguageParityTests
{
    private const double Tolerance = 2e-4, LossTolerance = 1e-5, GradientTolerance = 1e-3;

    public static TheoryData<string> Models => ["mambavl", "pythiavl"];

    [SkippableTheory, MemberData(nameof(Models))]
    public void EveryPictureAndTaskGivesTheAuthorsNumbersIdsAndText(string folder)
    {
        using var model = Load(folder);
        using var expected = Checkpoint.Open(Fixtures.Path(folder, "expected.safetensors"));
        using var file = JsonDocument.Parse(File.ReadAllBytes(Fixtures.Path(folder, "expected.json")));
        using var inference = inference_mode();

        foreach (var example in file.RootElement.EnumerateArray())
        {
            using var scope = NewDisposeScope();
            var path = example.GetProperty("image").GetString()!;
            var task = example.GetProperty("task").GetString()!;
            var key = $"{Path.GetFileNameWithoutExtension(path)}.{task}.";
            using var image = model.EncodeImage(Fixtures.Path("images", path));
            Compare.Close(image.Embeddings, expected.ReadToDevice(key + "patch_embeddings"), Tolerance, key + "patch_embeddings");

            var conversation = Conversation(task, example);
            var ids = model.Sequence.Build(conversation).Ids;
            var logits = model.Forward(tensor(ids, device: TestDevice.Current).unsqueeze(0), image.Embeddings.unsqueeze(0))[0];      // (l, vocabulary)
            var head = expected.ReadToDevice(key + "logits_head64");
            Compare.Close(logits[.., ..(int)head.shape[1]], head, Tolerance, key + "logits_head64");
            Compare.Close(logits[-1], expected.ReadToDevice(key + "last_logits"), Tolerance, key + "last_logits");

            var greedy = expected.Read(key + "greedy").data<long>().ToArray();
            var answer = model.Generate(new GenerationRequest(image, ids), new() { MaxNewTokens = greedy.Length, IgnoreEndToken = true });
            answer.Ids.Select(id => (long)id).Should().Equal(greedy, key + "greedy");
            model.Tokenizer.Decode(answer.Ids).Should().Be(example.GetProperty("greedy_text").GetString());

            var first = key + "instruction_first.last_logits";
            if (expected.Tensors.ContainsKey(first))
            {
                var sequence = new SequenceBuilder(model.Tokenizer, model.Config.Images.ImageSize, model.Vision.PatchSize) { InstructionFirst = true };
                var firstIds = sequence.Build(conversation).Ids;
                var last = model.Forward(tensor(firstIds, device: TestDevice.Current).unsqueeze(0), image.Embeddings.unsqueeze(0))[0, -1];
                Compare.Close(last, expected.ReadToDevice(first), Tolerance, first);
            }
        }
    }

    [SkippableTheory, MemberData(nameof(Models))]
    public void TheTrainingBatchGivesTheAuthorsLossAndGradients(string folder)
    {
        using var model = Load(folder);
        using var expected = Checkpoint.Open(Fixtures.Path(folder, "expected.safetensors"));
        using var scope = NewDisposeScope();
        foreach (var (name, parameter) in model.NamedParameters())
            parameter.requires_grad = !name.StartsWith("vision_encoder.", StringComparison.Ordinal);

        using var patches = model.EncodePatches(expected.ReadToDevice("train.pixel_values"));
        var labels = expected.ReadToDevice("train.labels");
        var logits = model.Forward(expected.ReadToDevice("train.input_ids"), model.Connector.forward(patches.clone()));
        var loss = VisionLanguageModel.AnswerLoss(logits, labels);
        Compare.Close(loss.reshape(1), expected.ReadToDevice("train.loss"), LossTolerance, "train.loss");

        loss.backward();
        var compared = 0;
        foreach (var (name, parameter) in model.NamedParameters())
        {
            var key = "train.grad." + name;
            if (!expected.Tensors.ContainsKey(key)) continue;
            Compare.CloseInNorm(parameter.grad!, expected.ReadToDevice(key), GradientTolerance, key);
            compared++;
        }
        compared.Should().Be(expected.Tensors.Keys.Count(k => k.StartsWith("train.grad."))).And.BePositive();
        model.NamedParameters().Where(p => p.Name.StartsWith("vision_encoder.")).Select(p => p.Parameter.grad).Should().AllSatisfy(g => (g is null).Should().BeTrue());
    }

    [SkippableTheory, MemberData(nameof(Models))]
    public void AllTasksInOneBatchGiveTheSameIds(string folder)
    {
        using var model = Load(folder);
        using var expected = Checkpoint.Open(Fixtures.Path(folder, "expected.safetensors"));
        using var file = JsonDocument.Parse(File.ReadAllBytes(Fixtures.Path(folder, "expected.json")));
        var examples = file.RootElement.EnumerateArray().ToList();
        var paths = examples.ConvertAll(e => e.GetProperty("image").GetString()!);
        var images = paths.Distinct().ToDictionary(p => p, p => model.EncodeImage(Fixtures.Path("images", p)));
        var keys = examples.ConvertAll(e => $"{Path.GetFileNameWithoutExtension(e.GetProperty("image").GetString())}.{e.GetProperty("task").GetString()}.greedy");

        var requests = examples.ConvertAll(e => new GenerationRequest(images[e.GetProperty("image").GetString()!],
            model.Sequence.Build(Conversation(e.GetProperty("task").GetString()!, e)).Ids));
        var answers = model.Generate(requests, new() { MaxNewTokens = (int)expected.Tensors[keys[0]].Shape[0], IgnoreEndToken = true });

        for (var i = 0; i < keys.Count; i++)
        {
            using var greedy = expected.Read(keys[i]);
            answers[i].Ids.Select(id => (long)id).Should().Equal(greedy.data<long>().ToArray(), keys[i]);
        }
        foreach (var image in images.Values) image.Dispose();
    }

    private static VisionLanguageModel Load(string folder)
    {
        var tokenizer = Fixtures.Path("tokenizer", "tokenizer.json");
        return VisionLanguageModel.FromPretrained(Fixtures.Path(folder), new() { TokenizerPath = tokenizer, Device = TestDevice.Current.ToString(), DType = ScalarType.Float32 });
    }

    private static Conversation Conversation(string task, JsonElement example) => task switch
    {
        "captioning" => MambaVL.Prompts.Conversation.Caption(),
        "vqa" => MambaVL.Prompts.Conversation.Ask(example.GetProperty("question").GetString()!),
        "visual_grounding" => MambaVL.Prompts.Conversation.Locate(example.GetProperty("phrase").GetString()!),
        _ => throw new InvalidDataException($"The fixtures have a task '{task}'."),
    };
}
