namespace MambaVL.Tests;

public class SmallFixturesTests
{
    private static readonly FileInfo[] Files = new DirectoryInfo(Path.Combine(Fixtures.Repository, "tests/data/fixtures")).GetFiles("*", SearchOption.AllDirectories);

    [Fact]
    public void A_clone_carries_a_set_of_at_most_3_MB() => Files.Sum(f => f.Length).Should().BeInRange(1, 3_000_000);

    [Fact]
    public void The_tokenizer_of_GPT_NeoX_is_not_among_it() => Files.Should().NotContain(f => f.Name == "tokenizer.json");
}
