using System.Text.Json;
using MambaVL.Prompts;

namespace MambaVL.Tests.Prompts;

[Trait("Category", "Parity")]
public class TokenizerParityTests
{
    [SkippableFact]
    public void IdsAndTextsAreThoseOfTheTokenizersLibrary()
    {
        var tokenizer = Tokenizer.Load(Fixtures.Path("tokenizer", "tokenizer.json"));
        using var cases = JsonDocument.Parse(File.ReadAllBytes(Fixtures.Path("tokenizer", "cases.json")));
        foreach (var c in cases.RootElement.EnumerateArray())
        {
            var text = c.GetProperty("text").GetString()!;
            var ids = c.GetProperty("ids").EnumerateArray().Select(i => i.GetInt32()).ToArray();
            tokenizer.Encode(text).Should().Equal(ids, "{0}", JsonSerializer.Serialize(text));
            tokenizer.Decode(ids).Should().Be(c.GetProperty("decoded").GetString());
            tokenizer.Decode(ids, skipSpecialTokens: true).Should().Be(c.GetProperty("decoded_skip_special").GetString());
        }
    }
}
