using System.Text.RegularExpressions;
using MambaVL.Prompts;
using MambaVL.Samples.Scenes;

namespace MambaVL.Tests.Scenes;

/// <summary>Reads every row as a person would, with rules of its own, and demands that there is exactly one answer: the row's.</summary>
public class SceneRowsTests
{
    [Theory]
    [InlineData(Splits.Train, 192)]
    [InlineData(Splits.Unseen, 192)]
    [InlineData(Splits.Test, 96)]
    public void Every_row_has_one_answer(string split, int size)
    {
        foreach (var (scene, rows) in Made.Scenes(split, 400, seed: 5, size: size))
            foreach (var row in rows)
            {
                var found = new Reader(scene).Answers(row);
                found.Should().Equal([row.Box is { } box ? Reader.Text(box) : row.Target.ToLowerInvariant()],
                    $"of '{row.Question}' with {string.Join("; ", scene.Objects.Select(o => $"{o.Kind.Name} {Reader.Text(o.Box)}"))}, {scene.Background.Name}");
            }
    }

    [Fact]
    public void Every_scene_has_a_row_of_each_task_and_captions_where_they_can_be()
    {
        foreach (var (scene, rows) in Made.Scenes(Splits.Train, 400))
        {
            rows.Count(r => r.Task == VisionTask.Captioning).Should().Be(scene.Layout == Layout.Scattered ? 0 : 1);
            rows.Count(r => r.Task == VisionTask.QuestionAnswering).Should().Be(3);
            rows.Count(r => r.Task == VisionTask.MultipleChoice).Should().Be(1);
            rows.Count(r => r.Task == VisionTask.ImageTextMatch).Should().Be(1);
            rows.Count(r => r.Task == VisionTask.Grounding).Should().BeInRange(0, 2);
            rows.Select(r => (r.Task, r.Question)).Should().OnlyHaveUniqueItems();
        }
    }

    [Fact]
    public void A_list_has_every_object_with_its_box_from_left_to_right()
    {
        foreach (var (scene, rows) in Made.Scenes(Splits.Train, 100, withList: true))
        {
            var list = rows.Should().ContainSingle(r => r.Kind == "list").Subject;
            list.Task.Should().Be(VisionTask.Captioning);
            var entries = Regex.Matches(list.Target, @"(?:^|, )([^\[]+) \[([\d.,]+)\]").Select(m => (Name: m.Groups[1].Value, Edges: m.Groups[2].Value.Split(',').Select(e => double.Parse(e, System.Globalization.CultureInfo.InvariantCulture) * scene.Size).ToArray())).ToList();
            entries.Select(e => e.Edges[0] + e.Edges[2]).Should().BeInAscendingOrder((a, b) => Math.Abs(a - b) < 0.04 * scene.Size ? 0 : a.CompareTo(b));
            var left = scene.Objects.ToList();
            foreach (var (name, edges) in entries)
            {
                double[] half = [.. edges.Select(_ => 0.0051 * scene.Size)]; // two decimals
                var named = left.First(o => o.Kind.Name == name && new double[] { o.Box.X0, o.Box.Y0, o.Box.X1, o.Box.Y1 }.Zip(edges, half).All(e => Math.Abs(e.First - e.Second) <= e.Third));
                left.Remove(named);
            }
            left.Should().BeEmpty();
        }
    }

    [Fact]
    public void Answers_are_balanced()
    {
        var rows = Made.Scenes(Splits.Train, 2000).SelectMany(s => s.Rows).ToList();
        IsAbout(0.5, rows.Where(r => r.Kind == "yes or no"), "yes", "yes or no");
        IsAbout(0.5, rows.Where(r => r.Task == VisionTask.ImageTextMatch), "True", "matches");
        // Whatever a question is about, its words alone do not give the answer away.
        foreach (var about in (string[])["Is there a", "Is the background", "larger", "exactly", "above", "below", "to the left of", "to the right of"])
            IsAbout(0.5, rows.Where(r => r.Kind == "yes or no" && r.Question.Contains(about, StringComparison.Ordinal)), "yes", about);
        foreach (var side in (string[])["left", "right"]) IsAbout(0.5, rows.Where(r => r.Question.Contains("left half", StringComparison.Ordinal)), side, side);
        foreach (var side in (string[])["left", "right", "above", "below"]) IsAbout(0.25, rows.Where(r => r.Kind == "relation"), side, side);
        var choices = rows.Where(r => r.Task == VisionTask.MultipleChoice).ToList();
        foreach (var at in Enumerable.Range(0, 4)) IsAbout(0.25, choices.Select(r => r with { Target = $"{r.Choices.ToList().IndexOf(r.Target)}" }), $"{at}", $"choice {at}");

        // Within four deviations of what chance gives.
        static void IsAbout(double share, IEnumerable<SceneRow> asked, string answer, string what)
        {
            var targets = asked.Select(r => r.Target).ToList();
            targets.Count.Should().BeGreaterThan(15, what);
            targets.Average(t => t == answer ? 1.0 : 0).Should().BeApproximately(share, 4 * Math.Sqrt(share * (1 - share) / targets.Count), what);
        }
    }

    [Fact]
    public void Phrases_are_told_apart_by_more_than_names()
    {
        var phrases = Made.Scenes(Splits.Train, 1000).SelectMany(s => s.Rows).Where(r => r.Task == VisionTask.Grounding).ToList();
        phrases.Average(r => r.Kind == "name" ? 1.0 : 0).Should().BeInRange(0.3, 0.6);
        foreach (var words in (string[])["largest", "smallest", "on the left", "at the top", "to the right of", "below", "corner"])
            phrases.Count(r => r.Question.Contains(words, StringComparison.Ordinal)).Should().BeGreaterThan(10, words);
    }

    /// <summary>All the answers that somebody could give: each place has a strict sense and a loose one, and what only the loose one
    /// admits counts as a second answer.</summary>
    private sealed class Reader(Scene scene)
    {
        private static readonly string[] s_numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven"];

        private static readonly Dictionary<string, string> s_singular = Kind.All.ToDictionary(k => k.Plural, k => k.Name);

        private IReadOnlyList<SceneObject> Objects => scene.Objects;

        public static string Text(PixelBox box) => $"[{box.X0},{box.Y0},{box.X1},{box.Y1}]";

        public IEnumerable<string> Answers(SceneRow row)
        {
            switch (row.Task)
            {
                case VisionTask.Captioning:
                    return [Says(row.Target) ? row.Target.ToLowerInvariant() : "this caption is not so"];
                case VisionTask.ImageTextMatch:
                    return [Says(row.Question) ? "true" : "false"];
                case VisionTask.Grounding:
                    return Meant(row.Question).Select(o => Text(o.Box)).Distinct();
                case VisionTask.MultipleChoice:
                    row.Choices.Should().OnlyHaveUniqueItems().And.HaveCountGreaterThan(1);
                    return row.Choices.Where(c => row.Kind == "which" ? Objects.Any(o => o.Kind.Name == c) : Ask(row.Question).Contains(c));
                default:
                    return Ask(row.Question).Distinct();
            }
        }

        private IEnumerable<string> Ask(string question)
        {
            if (question == "What color is the background?") return [scene.Background.Name];
            if (question == "How many objects are there?") return [s_numbers[Objects.Count]];
            if (Match(question, "^How many (.+) are there\\?$") is [var many]) return [s_numbers[Of(s_singular[many]).Count()]];
            if (question == "What is in the picture?") return [Objects.Count == 1 ? Objects[0].Kind.Name : Objects.Select(o => o.Kind.Plural).Distinct().Single()];
            if (Match(question, "^What is the (largest|smallest) object\\?$") is [var extreme]) return Extreme(Objects, extreme).Select(o => o.Kind.Name);
            if (Match(question, "^What is in the (.+) corner\\?$") is [var corner]) return In(corner).Select(o => o.Kind.Name);
            if (Match(question, "^What is (to the left of|to the right of|above|below) the (.+)\\?$") is [var side, var from])
                return Beside(side, Only(from)).Select(o => o.Kind.Name);
            if (Match(question, "^In which corner is the (.+)\\?$") is [var inCorner])
                return ((string[])["top left", "top right", "bottom left", "bottom right"]).Where(c => IsIn(c, Only(inCorner).Box, slack: 0.1));
            if (Match(question, "^Is the (.+) in the (left|top) half or in the (right|bottom) half\\?$") is [var inHalf, var one, var other])
                return ((string[])[one, other]).Where(h => IsIn(h, Only(inHalf).Box, slack: 0.1));
            if (Match(question, "^On which side of the (.+) is the (.+)\\?$") is [var b, var a])
                return ((string[])["left", "right", "above", "below"]).Where(s => CouldBe(s is "above" or "below" ? s : $"to the {s} of", Only(a).Box, Only(b).Box) && (Is(s is "above" or "below" ? s : $"to the {s} of", Only(a).Box, Only(b).Box) || IsDiagonal(Only(a).Box, Only(b).Box)));
            return [YesOrNo(question) ? "yes" : "no"];
        }

        private bool YesOrNo(string question)
        {
            if (Match(question, "^Is there an? (.+)\\?$") is [var name]) return Of(name).Any();
            if (Match(question, "^Is there exactly one (.+)\\?$") is [var single]) return Of(single).Count() == 1;
            if (Match(question, "^Are there exactly (.+?) (.+)\\?$") is [var number, var many]) return Of(s_singular[many]).Count() == Array.IndexOf(s_numbers, number);
            if (Match(question, "^Is the background (.+)\\?$") is [var color]) return scene.Background.Name == color;
            if (Match(question, "^Is the (.+) larger than the (.+)\\?$") is [var large, var small])
            {
                var (a, b) = (Only(large).Box.Area, Only(small).Box.Area);
                ((double)Math.Max(a, b) / Math.Min(a, b)).Should().BeGreaterThan(1.5, question);
                return a > b;
            }
            if (Match(question, "^Is the (.+) (to the left of|to the right of|above|below) the (.+)\\?$") is [var first, var side, var second])
            {
                var (a, b) = (Only(first).Box, Only(second).Box);
                // Beyond doubt either way: there, or just opposite.
                (Is(side, a, b) || Is(side, b, a)).Should().BeTrue(question);
                return Is(side, a, b);
            }
            throw new InvalidOperationException($"What is '{question}'?");
        }

        private bool Says(string caption)
        {
            caption = caption.TrimEnd('.').ToLowerInvariant();
            if (Match(caption, "^the background is (.+)$") is [var only]) return only == scene.Background.Name;
            if (Match(caption, "^there (?:is|are) exactly (.+?) (.+)$") is [var number, var what])
                return Of(s_singular.GetValueOrDefault(what, what)).Count() == Array.IndexOf(s_numbers, number);
            if (Match(caption, "^(.+) on an? (\\w+) background$") is [var rest, var color])
            {
                if (color != scene.Background.Name) return false;
                caption = rest;
            }
            if (Match(caption, "^from left to right: (.+)$") is [var list])
            {
                var parts = list.Split(", ").SelectMany(p => p.Split(" and ")).Select(Group).ToList();
                var inOrder = Objects.OrderBy(o => o.Box.CentreX).Select(o => o.Kind.Name).ToList();
                foreach (var (a, b) in Objects.SelectMany(a => Objects.Select(b => (a, b))).Where(p => p.a.Kind != p.b.Kind))
                    Math.Abs(a.Box.CentreX - b.Box.CentreX).Should().BeGreaterThan(scene.Size * 0.08, caption);
                return inOrder.SequenceEqual(parts.SelectMany(p => Enumerable.Repeat(p.Name, p.Count)));
            }
            if (Match(caption, "^(.+) (to the left of|above) (.+)$") is [var left, var side, var right])
            {
                var (a, b) = (Group(left), Group(right));
                return Fits(a) && Fits(b) && Objects.Count == a.Count + b.Count && Of(a.Name).All(x => Of(b.Name).All(y => Ordered(side, x.Box, y.Box)));
            }
            return Group(caption) is var alone && Fits(alone) && Objects.Count == alone.Count;

            bool Fits((string Name, int Count) group) => Of(group.Name).Count() == group.Count;

            static bool Ordered(string side, PixelBox a, PixelBox b) => side == "above" ? a.Y1 <= b.Y0 : a.X1 <= b.X0;
        }

        private IEnumerable<SceneObject> Meant(string phrase)
        {
            if (Match(phrase, "^the (largest|smallest) object$") is [var extreme]) return Extreme(Objects, extreme);
            if (Match(phrase, "^the object in the (.+) corner$") is [var corner]) return In(corner);
            if (Match(phrase, "^the object (to the left of|to the right of|above|below) the (.+)$") is [var side, var from]) return Beside(side, Only(from));
            if (Match(phrase, "^the (largest|smallest) (\\w+)$") is [var extremeOf, var kind]) return Extreme([.. Of(kind)], extremeOf);
            if (Match(phrase, "^the (\\w+) (on the left|on the right|at the top|at the bottom)$") is [var name, var place])
            {
                var word = place switch { "on the left" => "to the left of", "on the right" => "to the right of", "at the top" => "above", _ => "below" };
                return Of(name).Where(o => Of(name).All(other => other == o || Is(word, o.Box, other.Box) || !CouldBe(word, other.Box, o.Box) && CouldBe(word, o.Box, other.Box)));
            }
            return Match(phrase, "^the (\\w+)$") is [var single] ? Of(single) : throw new InvalidOperationException($"What is '{phrase}'?");
        }

        private IEnumerable<SceneObject> Of(string name) => Objects.Where(o => o.Kind.Name == name);

        private SceneObject Only(string name)
        {
            Of(name).Should().ContainSingle($"'the {name}' is one");
            return Of(name).Single();
        }

        // The clear one, and all that are nearly as large.
        private static IEnumerable<SceneObject> Extreme(IReadOnlyList<SceneObject> objects, string which) => which == "largest"
            ? objects.Where(o => o.Box.Area * 1.5 > objects.Max(x => x.Box.Area))
            : objects.Where(o => o.Box.Area < 1.5 * objects.Min(x => x.Box.Area));

        private IEnumerable<SceneObject> In(string corner) => Objects.Where(o => IsIn(corner, o.Box, slack: 0.08));

        private bool IsIn(string place, PixelBox box, double slack) => place.Split(' ').All(word => word switch
        {
            "left" => box.CentreX < scene.Size * (0.5 + slack),
            "right" => box.CentreX > scene.Size * (0.5 - slack),
            "top" => box.CentreY < scene.Size * (0.5 + slack),
            _ => box.CentreY > scene.Size * (0.5 - slack),
        });

        private IEnumerable<SceneObject> Beside(string side, SceneObject from)
            => Objects.Where(o => o != from && CouldBe(side, o.Box, from.Box));

        private static bool Is(string side, PixelBox a, PixelBox b) => side switch
        {
            "to the left of" => a.X1 <= b.X0 && b.CentreX - a.CentreX > 1.4 * Math.Abs(a.CentreY - b.CentreY),
            "to the right of" => Is("to the left of", b, a),
            "above" => a.Y1 <= b.Y0 && b.CentreY - a.CentreY > 1.4 * Math.Abs(a.CentreX - b.CentreX),
            _ => Is("above", b, a),
        };

        private static bool CouldBe(string side, PixelBox a, PixelBox b) => side switch
        {
            "to the left of" => b.CentreX - a.CentreX > 0.55 * Math.Abs(a.CentreY - b.CentreY),
            "to the right of" => CouldBe("to the left of", b, a),
            "above" => b.CentreY - a.CentreY > 0.55 * Math.Abs(a.CentreX - b.CentreX),
            _ => CouldBe("above", b, a),
        };

        private static bool IsDiagonal(PixelBox a, PixelBox b)
            => Math.Abs(a.CentreX - b.CentreX) < 1.4 * Math.Abs(a.CentreY - b.CentreY) && Math.Abs(a.CentreY - b.CentreY) < 1.4 * Math.Abs(a.CentreX - b.CentreX);

        private static (string Name, int Count) Group(string words)
        {
            var parts = words.Split(' ');
            parts.Should().HaveCount(2, words);
            return parts[0] is "a" or "an" ? (parts[1], 1) : (s_singular[parts[1]], Array.IndexOf(s_numbers, parts[0]));
        }

        private static string[]? Match(string text, string pattern)
            => Regex.Match(text, pattern) is { Success: true } match ? [.. match.Groups.Values.Skip(1).Select(g => g.Value)] : null;
    }
}
