using MambaVL.Prompts;

namespace MambaVL.Samples.Scenes;

/// <summary>What is asked about a scene. Nothing is asked that two people could answer differently.</summary>
internal sealed class SceneRows
{
    private const int QuestionsPerScene = 3, PhrasesPerScene = 2;

    // One area is that of the largest object if it exceeds all others so many times.
    private const double ClearlyLarger = 1.6;

    private readonly Scene _scene;
    private readonly SceneRandom _random;
    private readonly List<SceneObject> _singles;   // the only ones of their kind: "the cat" is enough
    private readonly List<Kind> _absent;

    private SceneRows(Scene scene, SceneRandom random)
    {
        (_scene, _random) = (scene, random);
        _singles = [.. scene.Objects.Where(o => scene.Groups.Any(g => g.Kind == o.Kind && g.Count == 1))];
        _absent = [.. Kind.All.Where(k => scene.Groups.All(g => g.Kind != k))];
    }

    /// <summary>The rows of a scene: a caption where there can be one, three questions, one with choices, two phrases (one where
    /// there are no more) and a description that fits or does not.</summary>
    /// <param name="scene">The scene.</param>
    /// <param name="random">What chooses among the questions.</param>
    /// <param name="withList">Whether to add a row that lists every object with its box.</param>
    public static List<SceneRow> Of(Scene scene, SceneRandom random, bool withList = false)
    {
        var rows = new SceneRows(scene, random);
        List<SceneRow> all = [];
        if (CaptionText.Of(scene) is { } caption) all.Add(new(VisionTask.Captioning, Name(scene.Layout), "", caption.ToString()));
        all.AddRange(rows.Questions());
        all.Add(rows.Choice());
        all.AddRange(rows.Phrases());
        all.Add(rows.Match());
        if (withList) all.Add(rows.List());
        return all;
    }

    private static string Name(Layout layout) => layout.ToString().ToLowerInvariant();

    // ---- The list

    /// <summary>Every object with its box, from left to right. No other row says so much about a picture: a model that starts from
    /// random weights learns from these what things look like and where they are.</summary>
    private SceneRow List()
    {
        var said = _scene.Objects.OrderBy(o => o.Box.CentreX).ThenBy(o => o.Box.CentreY)
            .Select(o => $"{o.Kind.Name} {new BoundingBox(Share(o.Box.X0), Share(o.Box.Y0), Share(o.Box.X1), Share(o.Box.Y1)).ToText(fullStop: false)}");
        return new(VisionTask.Captioning, "list", "List every object with its box.", string.Join(", ", said));

        double Share(int pixels) => (double)pixels / _scene.Size;
    }

    // ---- Questions

    private IEnumerable<SceneRow> Questions()
        => _random.Shuffled<Func<SceneRow?>>([What, Count, Where, Half, Relation, YesOrNo, Color]).Select(ask => ask()).OfType<SceneRow>().Take(QuestionsPerScene);

    private static SceneRow Question(string kind, string question, string answer) => new(VisionTask.QuestionAnswering, kind, question, answer);

    private SceneRow? What()
    {
        if (_scene.Layout == Layout.Alone)
            return _scene.Groups[0] is var only ? Question("what", "What is in the picture?", only.Count == 1 ? only.Kind.Name : only.Kind.Plural) : null;
        List<(string Question, SceneObject Answer)> all =
        [
            .. Neighbours().Select(n => ($"What is {n.Side.Of()} the {n.From.Kind.Name}?", n.Object)),
            .. InCorners().Select(c => ($"What is in the {c.Corner} corner?", c.Object)),
        ];
        if (Extreme(_scene.Objects, largest: true) is { } large) all.Add(("What is the largest object?", large));
        if (Extreme(_scene.Objects, largest: false) is { } small) all.Add(("What is the smallest object?", small));
        return all.Count > 0 && _random.Pick(all) is var (question, answer) ? Question("what", question, answer.Kind.Name) : null;
    }

    private SceneRow Count()
    {
        if (_scene.Groups.Count > 1 && _random.Chance(0.15)) return Question("count", "How many objects are there?", Numbers.Word(_scene.Objects.Count));
        var (kind, count) = _random.Chance(0.1) ? new Group(_random.Pick(_absent), 0) : _random.Pick(_scene.Groups);
        return Question("count", $"How many {kind.Plural} are there?", Numbers.Word(count));
    }

    private SceneRow? Where()
    {
        var all = _singles.Where(o => Places.Corner(o.Box, _scene.Size) is not null).ToList();
        return all.Count > 0 && _random.Pick(all) is var o ? Question("where", $"In which corner is the {o.Kind.Name}?", Places.Corner(o.Box, _scene.Size)!) : null;
    }

    private SceneRow? Half()
    {
        List<(string, string)> all = [];
        foreach (var o in _singles)
        {
            if (Places.Horizontal(o.Box, _scene.Size) is { } across) all.Add(($"Is the {o.Kind.Name} in the left half or in the right half?", across));
            if (Places.Vertical(o.Box, _scene.Size) is { } down) all.Add(($"Is the {o.Kind.Name} in the top half or in the bottom half?", down));
        }
        return all.Count > 0 && _random.Pick(all) is var (question, answer) ? Question("half", question, answer) : null;
    }

    private SceneRow? Relation()
    {
        var all = ClearPairs().ToList();
        if (all.Count == 0) return null;
        var (a, b, side) = _random.Pick(all);
        return Question("relation", $"On which side of the {b.Kind.Name} is the {a.Kind.Name}?", side.ToString().ToLowerInvariant());
    }

    private SceneRow YesOrNo()
    {
        var yes = _random.Chance(0.5); // first, so that both answers are equally frequent whatever the scene
        var question = _random.Shuffled<Func<bool, string?>>([IsThere, IsBeside, AreThere, IsLarger, IsColor]).Select(ask => ask(yes)).First(q => q is not null)!;
        return Question("yes or no", question, yes ? "yes" : "no");
    }

    private string IsThere(bool yes)
        => $"Is there {(yes ? _random.Pick(_scene.Groups).Kind : _random.Pick(_absent)).WithArticle}?";

    private string? IsBeside(bool yes)
    {
        var all = ClearPairs().ToList();
        if (all.Count == 0) return null;
        var (a, b, side) = _random.Pick(all);
        return $"Is the {a.Kind.Name} {(yes ? side : side.Opposite()).Of()} the {b.Kind.Name}?";
    }

    private string AreThere(bool yes)
    {
        var (kind, count) = _random.Pick(_scene.Groups);
        var said = yes ? count : Other(count);
        return said == 1 ? $"Is there exactly one {kind.Name}?" : $"Are there exactly {Numbers.Word(said)} {kind.Plural}?";
    }

    private string? IsLarger(bool yes)
    {
        var all = _singles.SelectMany(a => _singles.Where(b => a.Box.Area > ClearlyLarger * b.Box.Area).Select(b => (Large: a.Kind.Name, Small: b.Kind.Name))).ToList();
        if (all.Count == 0) return null;
        var (large, small) = _random.Pick(all);
        return yes ? $"Is the {large} larger than the {small}?" : $"Is the {small} larger than the {large}?";
    }

    private string IsColor(bool yes) => $"Is the background {(yes ? _scene.Background.Name : OtherColor())}?";

    private SceneRow Color() => Question("color", "What color is the background?", _scene.Background.Name);

    // ---- Choices

    private SceneRow Choice()
    {
        var question = _random.Shuffled<Func<SceneRow?>>([IsOneOf, What, Count, Where, Relation, Color]).Select(ask => ask()).First(q => q is not null)!;
        var choices = _random.Shuffled(Wrong(question).Append(question.Target));
        return question with { Task = VisionTask.MultipleChoice, Choices = choices };
    }

    private SceneRow IsOneOf() => Question("which", "Which of these is in the picture?", _random.Pick(_scene.Groups).Kind.Name);

    private List<string> Wrong(SceneRow question)
    {
        var all = question.Kind switch
        {
            "color" => Background.Names,
            "count" => Enumerable.Range(0, 7 + 1).Select(Numbers.Word),
            "where" => ["top left", "top right", "bottom left", "bottom right"],
            "relation" => Enum.GetNames<Side>().Select(s => s.ToLowerInvariant()),
            // What is there, but elsewhere, is the best of wrong answers.
            "what" when _scene.Layout != Layout.Alone => _random.Shuffled(_scene.Groups.Select(g => g.Kind.Name)).Concat(_random.Shuffled(_absent).Select(k => k.Name)),
            "what" => _random.Shuffled(_absent).Select(k => _scene.Groups[0].Count == 1 ? k.Name : k.Plural),
            _ => _random.Shuffled(_absent).Select(k => k.Name),
        };
        var wrong = all.Where(a => a != question.Target);
        return [.. (question.Kind is "color" or "count" ? _random.Shuffled(wrong) : wrong).Take(3)];
    }

    // ---- Phrases

    private IEnumerable<SceneRow> Phrases()
    {
        List<(string Phrase, SceneObject Object)> names = [.. _singles.Select(o => ($"the {o.Kind.Name}", o))];
        List<(string Phrase, SceneObject Object)> others = [.. WithinKinds(), .. WithinScene()];
        List<SceneRow> rows = [];
        while (rows.Count < PhrasesPerScene && names.Count + others.Count > 0)
        {
            // A kind's name where it is enough, half of the time; the rest takes more than knowing the kind.
            var from = names.Count > 0 && (others.Count == 0 || _random.Chance(0.5)) ? names : others;
            var at = _random.Below(from.Count);
            var (phrase, o) = from[at];
            from.RemoveAt(at);
            rows.Add(new(VisionTask.Grounding, from == names ? "name" : "description", phrase, "") { Box = o.Box });
        }
        return rows;
    }

    private IEnumerable<(string, SceneObject)> WithinKinds()
    {
        foreach (var group in _scene.Groups.Where(g => g.Count > 1))
        {
            var name = group.Kind.Name;
            var same = _scene.Objects.Where(o => o.Kind == group.Kind).ToList();
            if (Extreme(same, largest: true) is { } large) yield return ($"the largest {name}", large);
            if (Extreme(same, largest: false) is { } small) yield return ($"the smallest {name}", small);
            foreach (var o in same)
            {
                var rest = same.Where(s => s != o).ToList();
                foreach (var (side, words) in ((Side, string)[])[(Side.Left, "on the left"), (Side.Right, "on the right"), (Side.Above, "at the top"), (Side.Below, "at the bottom")])
                    if (rest.TrueForAll(r => Places.Clear(o.Box, r.Box) == side)) yield return ($"the {name} {words}", o);
            }
        }
    }

    private IEnumerable<(string, SceneObject)> WithinScene()
    {
        foreach (var (side, from, o) in Neighbours()) yield return ($"the object {side.Of()} the {from.Kind.Name}", o);
        if (_scene.Objects.Count == 1) yield break; // its name says more
        foreach (var (corner, o) in InCorners()) yield return ($"the object in the {corner} corner", o);
        if (Extreme(_scene.Objects, largest: true) is { } large) yield return ("the largest object", large);
        if (Extreme(_scene.Objects, largest: false) is { } small) yield return ("the smallest object", small);
    }

    // ---- Descriptions that fit, or do not

    private SceneRow Match()
    {
        var matches = _random.Chance(0.5);
        var (kind, text) = CaptionText.Of(_scene) is { } caption && _random.Chance(0.7)
            ? ("caption", (matches ? caption : Wrong(caption)).ToString())
            : ("statement", Statement(matches));
        return new(VisionTask.ImageTextMatch, kind, text, matches ? "True" : "False");
    }

    private string Statement(bool matches)
    {
        if (_random.Chance(0.25)) return $"The background is {(matches ? _scene.Background.Name : OtherColor())}.";
        var (kind, count) = _random.Pick(_scene.Groups);
        if (!matches)
            if (_random.Chance(0.5)) count = Other(count);
            else kind = _random.Pick(_absent);
        return count == 1 ? $"There is exactly one {kind.Name}." : $"There are exactly {Numbers.Word(count)} {kind.Plural}.";
    }

    // One thing in it is not so.
    private CaptionText Wrong(CaptionText caption)
    {
        var at = _random.Below(caption.Groups.Count);
        var group = caption.Groups[at];
        return _random.Pick<Func<CaptionText>>(
            (() => With(group with { Kind = _random.Pick(_absent) }), 3),
            (() => With(group with { Count = Other(group.Count) }), 2),
            (() => caption with { Background = OtherColor() }, caption.Background is null ? 0 : 2),
            (() => caption with { Groups = Swapped() }, caption.Groups.Count > 1 ? 3 : 0))();

        CaptionText With(Group other) => caption with { Groups = [.. caption.Groups.Select((g, i) => i == at ? other : g)] };

        List<Group> Swapped()
        {
            List<Group> groups = [.. caption.Groups];
            var other = (at + 1 + _random.Below(groups.Count - 1)) % groups.Count;
            (groups[at], groups[other]) = (groups[other], groups[at]);
            return groups;
        }
    }

    // ---- What is beyond doubt

    private string OtherColor() => _random.Pick([.. Background.Names.Where(n => n != _scene.Background.Name)]);

    // Another count, 1 to 4, the neighbours first: they are the ones that must be told apart.
    private int Other(int count) => count switch { 1 => 2, 4 => 3, _ => count + (_random.Chance(0.5) ? 1 : -1) };

    private IEnumerable<(SceneObject A, SceneObject B, Side Side)> ClearPairs()
    {
        foreach (var a in _singles)
            foreach (var b in _singles)
                if (a != b && Places.Clear(a.Box, b.Box) is { } side) yield return (a, b, side);
    }

    /// <summary>The one object on a side of a single one: clearly there, and no other could be meant.</summary>
    private IEnumerable<(Side Side, SceneObject From, SceneObject Object)> Neighbours()
    {
        foreach (var from in _singles)
            foreach (var side in Enum.GetValues<Side>())
            {
                var possible = _scene.Objects.Where(o => o != from && side.CouldBe(o.Box, from.Box)).ToList();
                if (possible is [var only] && Places.Clear(only.Box, from.Box) == side) yield return (side, from, only);
            }
    }

    private IEnumerable<(string Corner, SceneObject Object)> InCorners()
    {
        foreach (var o in _scene.Objects)
            if (Places.Corner(o.Box, _scene.Size) is { } corner && _scene.Objects.Count(other => Places.CouldBeIn(corner, other.Box, _scene.Size)) == 1)
                yield return (corner, o);
    }

    private static SceneObject? Extreme(IReadOnlyList<SceneObject> objects, bool largest)
    {
        if (objects.Count < 2) return null;
        var inOrder = objects.OrderBy(o => largest ? -o.Box.Area : o.Box.Area).ToList();
        var (larger, smaller) = largest ? (inOrder[0], inOrder[1]) : (inOrder[1], inOrder[0]);
        return larger.Box.Area > ClearlyLarger * smaller.Box.Area ? inOrder[0] : null;
    }
}
