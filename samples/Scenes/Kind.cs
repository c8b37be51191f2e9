namespace MambaVL.Samples.Scenes;

/// <summary>A kind of object: one English word, and a picture of that name in assets.</summary>
internal sealed record Kind(string Name, string Plural)
{
    /// <summary>Every kind there is, in the order of the alphabet. Another list makes other scenes of the same seed.</summary>
    public static readonly IReadOnlyList<Kind> All =
    [
        .. "airplane apple ball balloon banana bear bee bell boat book burger butterfly cactus camera car carrot castle cat chair clock crab crown cup dog donut drum duck elephant fish fox frog gift guitar hammer hat helicopter horse house key lemon lion moon mushroom octopus owl panda parrot penguin pig pineapple pizza rabbit robot rocket rose shoe snail snowman star strawberry teapot tractor train tree turtle umbrella whale"
            .Split(' ').Select(name => new Kind(name, Many(name))),
    ];

    /// <summary><c>an apple</c>.</summary>
    public string WithArticle => $"{("aeiou".Contains(Name[0], StringComparison.Ordinal) ? "an" : "a")} {Name}";

    /// <summary><c>an apple</c>, <c>two apples</c>.</summary>
    public string Counted(int count) => count == 1 ? WithArticle : $"{Numbers.Word(count)} {Plural}";

    private static string Many(string name) => name switch
    {
        "butterfly" => "butterflies",
        "cactus" => "cacti",
        "fish" => "fish",
        "fox" => "foxes",
        "octopus" => "octopuses",
        "snowman" => "snowmen",
        "strawberry" => "strawberries",
        _ => name + "s",
    };
}

internal static class Numbers
{
    private static readonly string[] s_words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

    public static string Word(int number) => s_words[number];

    public static int? Read(string word) => Array.IndexOf(s_words, word) is >= 0 and var number ? number : null;
}

/// <summary>The pairs of kinds that training never sees in one picture: one pair in ten, the same for every seed.</summary>
internal static class UnseenPairs
{
    private const ulong OneOf = 10;

    public static readonly IReadOnlyList<(Kind, Kind)> All =
        [.. Kind.All.SelectMany((a, i) => Kind.All.Skip(i + 1).Where(b => Contains(a, b)).Select(b => (a, b)))];

    public static bool Contains(Kind a, Kind b)
    {
        var (first, second) = string.CompareOrdinal(a.Name, b.Name) < 0 ? (a, b) : (b, a);
        return first != second && SceneRandom.Hash($"{first.Name}|{second.Name}") % OneOf == 0;
    }
}
