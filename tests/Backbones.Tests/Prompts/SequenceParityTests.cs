using System.Globalization;
using System.Text.Json;
using MambaVL.Checkpoints;
using MambaVL.Prompts;

namespace MambaVL.Tests.Prompts;

[Trait("Category", "Parity")]
public class SequenceParityTests
{
    [SkippableFact]
    public void ImagesOfEverySizeHaveTheAuthorsIds()
    {
        var tokenizer = Tokenizer.Load(Fixtures.Path("tokenizer", "tokenizer.json"));
        using var sizes = JsonDocument.Parse(File.ReadAllBytes(Fixtures.Path("prompts", "image_tokens.json")));
        foreach (var size in sizes.RootElement.EnumerateObject())
        {
            var side = int.Parse(size.Name, CultureInfo.InvariantCulture);
            ImageTokens.Sequence(tokenizer, side, side, patchSize: 14).Should().Equal(size.Value.EnumerateArray().Select(i => i.GetInt64()));
        }
    }

    [SkippableTheory]
    [InlineData("mambavl")]
    [InlineData("pythiavl")]
    public void InputsOfEveryImageAndTaskAreThoseOfTheAuthors(string model)
    {
        var tokenizer = Tokenizer.Load(Fixtures.Path("tokenizer", "tokenizer.json"));
        using var checkpoint = Checkpoint.Open(Fixtures.Path(model, "expected.safetensors"));
        using var config = JsonDocument.Parse(File.ReadAllBytes(Fixtures.Path(model, "config.json")));
        using var file = JsonDocument.Parse(File.ReadAllBytes(Fixtures.Path(model, "expected.json")));

        var checkedInputs = 0;
        foreach (var example in file.RootElement.EnumerateArray())
        {
            var task = example.GetProperty("task").GetString()!;
            var conversation = task switch
            {
                "captioning" => Conversation.Caption(),
                "vqa" => Conversation.Ask(example.GetProperty("question").GetString()!),
                "visual_grounding" => Conversation.Locate(example.GetProperty("phrase").GetString()!),
                _ => throw new InvalidDataException(task),
            };
            foreach (var instructionFirst in new[] { false, true })
            {
                var name = $"{Path.GetFileNameWithoutExtension(example.GetProperty("image").GetString())}.{task}.{(instructionFirst ? "instruction_first." : "")}input_ids";
                if (!checkpoint.Tensors.ContainsKey(name)) continue;
                using var expected = checkpoint.Read(name);
                var patches = Math.Sqrt(expected.data<long>().Count(id => id == ImageTokens.Placeholder));
                var imageSize = config.RootElement.GetProperty("image_size").GetInt32();
                var builder = new SequenceBuilder(tokenizer, imageSize, (int)(imageSize / patches)) { InstructionFirst = instructionFirst };
                builder.Build(conversation).Ids.Should().Equal(expected.data<long>().ToArray(), name);
                checkedInputs++;
            }
        }
        checkedInputs.Should().Be(checkpoint.Tensors.Keys.Count(k => k.EndsWith(".input_ids") && !k.StartsWith("train.")));
        checkedInputs.Should().BePositive();
    }
}
