namespace MambaVL.Samples.Scenes;

/// <summary>Thinks scenes up: kinds, counts, sizes, places and background.</summary>
/// <param name="sprites">The pictures, whose sizes decide what touches.</param>
/// <param name="size">Pixels on a side; lengths are given for 192 and grow with it.</param>
internal sealed class SceneComposer(Sprites sprites, int size)
{
    public const int LeastSize = 64, MostSize = 1024;

    // At 192 pixels.
    private const double SmallestObject = 28, LargestObject = 72, Margin = 3, LeastStep = 18;

    private const int MostObjects = 7, PlacesTried = 30, AttemptsTried = 100_000;

    private readonly double _unit = size / 192.0;

    /// <summary>A scene of a split: the same for the same seed, split and index.</summary>
    /// <param name="seed">The data set's seed.</param>
    /// <param name="split">The split's name; that of <see cref="Splits.Unseen"/> has a pair that is in no other, and that of
    /// <see cref="Splits.First"/> one kind, once or twice.</param>
    /// <param name="index">The scene's number in its split.</param>
    /// <param name="random">The generator, after what was drawn of it.</param>
    public Scene Compose(long seed, string split, int index, out SceneRandom random)
    {
        random = SceneRandom.For(seed, split, index);
        return Compose(random, split == Splits.Unseen, split == Splits.First);
    }

    private Scene Compose(SceneRandom random, bool unseen, bool first)
    {
        // A scene of one kind has no pair.
        var layout = first ? Layout.Alone : random.Pick((Layout.Alone, unseen ? 0 : 20), (Layout.Pair, 36), (Layout.Line, 30), (Layout.Scattered, 14));
        int[] counts = layout switch
        {
            Layout.Alone when first => [random.Pick((1, 70), (2, 30))],
            Layout.Alone => [random.Pick((1, 35), (2, 25), (3, 20), (4, 20))],
            Layout.Pair => random.Pick(((int[])[1, 1], 11), ([1, 2], 2), ([2, 1], 2), ([1, 3], 1), ([3, 1], 1), ([2, 2], 2)),
            Layout.Line => random.Pick(((int[])[1, 1, 1], 10), ([1, 1, 1, 1], 6), ([2, 1, 1], 2), ([1, 2, 1], 2), ([1, 1, 2], 2)),
            _ => Scatter(random),
        };
        var kinds = Kinds(random, counts.Length, unseen);
        List<Group> groups = [.. kinds.Zip(counts, (kind, count) => new Group(kind, count))];
        var relation = layout == Layout.Pair ? (random.Chance(0.5) ? Side.Left : Side.Above) : (Side?)null;
        var objects = Arrange(random, layout, relation, groups);
        if (layout == Layout.Line) groups = [.. groups.OrderBy(g => objects.First(o => o.Kind == g.Kind).Box.CentreX)];
        var background = Background.Create(random, [.. kinds.Select(k => sprites.Colors[k])]);
        return new(size, layout, relation, background, groups, objects);
    }

    private static int[] Scatter(SceneRandom random)
    {
        while (true)
        {
            var counts = new int[random.Between(2, 4)];
            for (var i = 0; i < counts.Length; i++) counts[i] = random.Pick((1, 4), (2, 3), (3, 2), (4, 1));
            if (counts.Sum() <= MostObjects) return counts;
        }
    }

    private static List<Kind> Kinds(SceneRandom random, int count, bool unseen)
    {
        List<Kind> kinds = [];
        if (unseen)
        {
            var (a, b) = random.Pick(UnseenPairs.All);
            kinds.AddRange([a, b]);
        }
        while (kinds.Count < count)
        {
            var kind = random.Pick(Kind.All);
            if (!kinds.Contains(kind) && (unseen || !kinds.Exists(k => UnseenPairs.Contains(k, kind)))) kinds.Add(kind);
        }
        return random.Shuffled(kinds);
    }

    // Throws the objects down until they lie as they should. Each time that they do not, they are a little smaller.
    private List<SceneObject> Arrange(SceneRandom random, Layout layout, Side? relation, IReadOnlyList<Group> groups)
    {
        var count = groups.Sum(g => g.Count);
        var largest = count switch { <= 2 => LargestObject, 3 => 64, 4 => 56, 5 => 50, _ => 44 };
        for (var attempt = 0; attempt < AttemptsTried; attempt++)
        {
            var cut = random.Between(0.35, 0.65) * size;
            List<SceneObject>? objects = [];
            foreach (var (g, group) in groups.Index())
                for (var i = 0; i < group.Count && objects is not null; i++)
                {
                    // A pair's groups have a side of the cut each.
                    (double, double) whole = (0, size), part = g == 0 ? (0, cut) : (cut, size);
                    var placed = Place(random, group.Kind, largest, objects, relation == Side.Left ? part : whole, relation == Side.Above ? part : whole);
                    if (placed is null) objects = null;
                    else objects.Add(placed);
                }
            if (objects is not null && IsClear(layout, relation, groups, objects)) return objects;
            largest = Math.Max(SmallestObject, largest * 0.995);
        }
        throw new InvalidOperationException($"No arrangement of {string.Join(", ", groups)} was found; this is a mistake in the rules, please report it.");
    }

    private SceneObject? Place(SceneRandom random, Kind kind, double largest, List<SceneObject> others, (double Least, double Most) x, (double Least, double Most) y)
    {
        var side = (int)Math.Round(random.Between(SmallestObject, largest) * _unit);
        var sprite = sprites.Get(kind, side);
        var margin = (int)Math.Ceiling(Margin * _unit);
        var (left, right) = ((int)x.Least + margin, (int)x.Most - margin - sprite.Width);
        var (top, bottom) = ((int)y.Least + margin, (int)y.Most - margin - sprite.Height);
        if (right < left || bottom < top) return null;
        for (var i = 0; i < PlacesTried; i++)
        {
            var (x0, y0) = (random.Between(left, right), random.Between(top, bottom));
            var box = new PixelBox(x0, y0, x0 + sprite.Width, y0 + sprite.Height);
            if (others.TrueForAll(o => o.Box.IsApartFrom(box, margin))) return new(kind, box, side);
        }
        return null;
    }

    // Whether the caption of the layout says what everybody sees.
    private bool IsClear(Layout layout, Side? relation, IReadOnlyList<Group> groups, List<SceneObject> objects)
    {
        switch (layout)
        {
            case Layout.Pair:
                return Places.Clear(Around(groups[0].Kind), Around(groups[1].Kind)) == relation;
            case Layout.Line:
                var inOrder = objects.OrderBy(o => o.Box.CentreX).ToList();
                var changes = 0;
                foreach (var (a, b) in inOrder.Zip(inOrder.Skip(1)))
                {
                    if (a.Kind == b.Kind) continue;
                    if (b.Box.CentreX - a.Box.CentreX < LeastStep * _unit) return false;
                    changes++;
                }
                return changes == groups.Count - 1;
            default:
                return true;
        }

        PixelBox Around(Kind kind) => objects.Where(o => o.Kind == kind).Select(o => o.Box).Aggregate((a, b) => a.Union(b));
    }
}

/// <summary>The names of the splits.</summary>
internal static class Splits
{
    public const string First = "first", Train = "train", Validation = "validation", Test = "test", Unseen = "unseen";

    public static readonly IReadOnlyList<string> All = [First, Train, Validation, Test, Unseen];

    /// <summary>Whether a split is there to learn from: its scenes have rows that list every object with its box.</summary>
    public static bool Teaches(string split) => split is First or Train;
}
