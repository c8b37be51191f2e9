using System.Diagnostics.CodeAnalysis;

namespace MambaVL.Samples.Scenes;

/// <summary>What a caption says.</summary>
/// <param name="Groups">What is there, from left to right or from top to bottom where <see cref="Relation"/> says so.</param>
/// <param name="Relation">Between the groups that follow each other: left or above; null of a single group.</param>
/// <param name="Background">The background's colour; null where the caption is silent about it.</param>
internal sealed record CaptionText(IReadOnlyList<Group> Groups, Side? Relation, string? Background)
{
    private const string InOrder = "from left to right: ", OnA = " on a ", OnAn = " on an ", Behind = " background";

    private static readonly Dictionary<string, Group> s_groups = Kind.All
        .SelectMany(kind => Enumerable.Range(2, 3).Select(n => new Group(kind, n)).Append(new(kind, 1)))
        .ToDictionary(g => g.ToString());

    /// <summary>The caption of a scene; null where words could not say how the objects lie.</summary>
    public static CaptionText? Of(Scene scene) => scene.Layout switch
    {
        Layout.Alone => new(scene.Groups, null, scene.Background.Name),
        Layout.Pair => new(scene.Groups, scene.Relation, scene.Background.Name),
        Layout.Line => new(scene.Groups, Side.Left, null),
        _ => null,
    };

    /// <summary>Reads a caption of the form that <see cref="ToString"/> gives; capitals do not matter, and <c>to the right of</c> and
    /// <c>below</c> are read as well.</summary>
    public static bool TryParse(string text, [NotNullWhen(true)] out CaptionText? caption)
    {
        caption = null;
        text = text.Trim().TrimEnd('.').ToLowerInvariant();
        string? background = null;
        if (text.EndsWith(Behind, StringComparison.Ordinal))
        {
            var (at, on) = text.LastIndexOf(OnAn, StringComparison.Ordinal) is >= 0 and var an ? (an, OnAn) : (text.LastIndexOf(OnA, StringComparison.Ordinal), OnA);
            if (at < 0) return false;
            background = text[(at + on.Length)..^Behind.Length];
            if (!Scenes.Background.Names.Contains(background)) return false;
            text = text[..at];
        }

        if (text.StartsWith(InOrder, StringComparison.Ordinal))
            return Finish(text[InOrder.Length..].Replace(" and ", ", ", StringComparison.Ordinal).Split(", "), Side.Left, out caption);
        foreach (var side in Enum.GetValues<Side>())
        {
            if (text.Split($" {side.Of()} ") is not [var first, var second]) continue;
            return side is Side.Left or Side.Above ? Finish([first, second], side, out caption) : Finish([second, first], side.Opposite(), out caption);
        }
        return Finish([text], null, out caption);

        bool Finish(string[] parts, Side? relation, out CaptionText? read)
        {
            var groups = parts.Select(p => s_groups.GetValueOrDefault(p)).ToList();
            // The same kind twice says nothing that could be checked.
            read = groups.TrueForAll(g => g.Kind is not null) && groups.DistinctBy(g => g.Kind).Count() == groups.Count && (relation is null || groups.Count > 1)
                ? new(groups, relation, background) : null;
            return read is not null;
        }
    }

    /// <summary>Whether every object is named, as often as it is there, and in the right place: all but the background.</summary>
    public bool HasSameObjects(CaptionText other) => Relation == other.Relation && Groups.SequenceEqual(other.Groups);

    /// <summary>The caption.</summary>
    public override string ToString()
    {
        var words = Relation switch
        {
            null => Groups[0].ToString(),
            { } side when Groups.Count == 2 => $"{Groups[0]} {side.Of()} {Groups[1]}",
            _ => InOrder + string.Join(", ", Groups.SkipLast(1)) + " and " + Groups[^1],
        };
        if (Background is not null) words += (Background[0] == 'o' ? OnAn : OnA) + Background + Behind;
        return char.ToUpperInvariant(words[0]) + words[1..] + ".";
    }
}
