namespace MambaVL.Tests.Prompts;

public class TinyTokenizerTests
{
    [Fact]
    public void TheFileIsWhatTheCodeMakes()
        => File.ReadAllText(Path.Combine(TinyTokenizer.Folder, "tokenizer.json")).Should().Be(TinyTokenizer.Json());
}
