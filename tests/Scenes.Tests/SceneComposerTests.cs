using MambaVL.Samples.Scenes;

namespace MambaVL.Tests.Scenes;

public class SceneComposerTests
{
    [Theory]
    [InlineData(192)]
    [InlineData(64)]
    [InlineData(333)]
    public void Objects_lie_within_the_picture_and_do_not_touch(int size)
    {
        foreach (var (scene, _) in Made.Scenes(Splits.Train, 300, size: size))
            foreach (var (i, a) in scene.Objects.Index())
            {
                (a.Box.X0 >= 1 && a.Box.Y0 >= 1 && a.Box.X1 < size && a.Box.Y1 < size).Should().BeTrue();
                Math.Max(a.Box.Width, a.Box.Height).Should().BeInRange((int)(27 * size / 192.0) - 2, (int)(72 * size / 192.0) + 1);
                foreach (var b in scene.Objects.Skip(i + 1))
                    (a.Box.X1 < b.Box.X0 || b.Box.X1 < a.Box.X0 || a.Box.Y1 < b.Box.Y0 || b.Box.Y1 < a.Box.Y0).Should().BeTrue();
            }
    }

    [Fact]
    public void Boxes_are_tight()
    {
        foreach (var (scene, _) in Made.Scenes(Splits.Train, 60))
        {
            var empty = (scene with { Objects = [] }).Paint(Made.Sprites);
            foreach (var o in scene.Objects) Changed((scene with { Objects = [o] }).Paint(Made.Sprites), empty, scene.Size).Should().Be(o.Box);
                    Changed(scene.Paint(Made.Sprites), empty, scene.Size).Should().Be(scene.Objects.Select(o => o.Box).Aggregate((a, b) => a.Union(b)));
        }
    }

    [Fact]
    public void Unseen_scenes_have_a_pair_that_is_in_no_other_split()
    {
        HashSet<string> unseen = [.. UnseenPairs.All.Select(u => $"{u.Item1.Name} {u.Item2.Name}")];
        foreach (var split in (string[])[Splits.Train, Splits.Validation, Splits.Test])
            foreach (var (scene, _) in Made.Scenes(split, 500)) Pairs(scene).Should().NotIntersectWith(unseen);
        foreach (var (scene, _) in Made.Scenes(Splits.Unseen, 500)) Pairs(scene).Should().Contain(pair => unseen.Contains(pair));
    }

    [Fact]
    public void A_tenth_of_all_pairs_is_set_aside_and_every_kind_has_some()
    {
        ((double)UnseenPairs.All.Count / (Kind.All.Count * (Kind.All.Count - 1) / 2)).Should().BeInRange(0.08, 0.12);
        foreach (var kind in Kind.All) UnseenPairs.All.Count(p => p.Item1 == kind || p.Item2 == kind).Should().BeInRange(1, 16);
        // The hash is written down: another one would put pairs of shipped models' training into the unseen split.
        string.Join(" ", UnseenPairs.All.Take(3).Select(p => $"{p.Item1.Name}-{p.Item2.Name}")).Should().Be("airplane-bell airplane-camera airplane-lemon");
    }

    [Fact]
    public void Layouts_counts_and_colors_all_occur()
    {
        var scenes = Made.Scenes(Splits.Train, 1500).Select(s => s.Scene).ToList();
        foreach (var layout in Enum.GetValues<Layout>()) scenes.Count(s => s.Layout == layout).Should().BeGreaterThan(150);
        foreach (var color in Background.Names) scenes.Count(s => s.Background.Name == color).Should().BeGreaterThan(90);
        foreach (var pattern in Enum.GetValues<Pattern>()) scenes.Count(s => s.Background.Pattern == pattern).Should().BeGreaterThan(100);
        for (var n = 1; n <= 4; n++) scenes.SelectMany(s => s.Groups).Count(g => g.Count == n).Should().BeGreaterThan(80);
        scenes.SelectMany(s => s.Groups).Select(g => g.Kind).Distinct().Should().HaveCount(Kind.All.Count);
    }

    [Fact]
    public void A_background_has_one_color()
    {
        foreach (var (scene, _) in Made.Scenes(Splits.Train, 200))
        {
            var empty = (scene with { Objects = [] }).Paint(Made.Sprites);
            for (var p = 0; p < empty.Length; p += 4 * 97)
                ColorName(empty[p], empty[p + 1], empty[p + 2]).Should().Be(scene.Background.Name, $"{empty[p]}, {empty[p + 1]}, {empty[p + 2]}");
        }
    }

    // The box around every pixel that differs.
    private static PixelBox Changed(byte[] picture, byte[] other, int size)
    {
        var (x0, y0, x1, y1) = (size, size, 0, 0);
        for (var p = 0; p < size * size; p++)
        {
            if (picture.AsSpan(4 * p, 4).SequenceEqual(other.AsSpan(4 * p, 4))) continue;
            var (x, y) = (p % size, p / size);
            (x0, y0, x1, y1) = (Math.Min(x0, x), Math.Min(y0, y), Math.Max(x1, x + 1), Math.Max(y1, y + 1));
        }
        return new(x0, y0, x1, y1);
    }

    // The name that hue and lightness give, by other numbers than the generator's.
    private static string ColorName(byte red, byte green, byte blue)
    {
        new SkiaSharp.SKColor(red, green, blue).ToHsl(out var hue, out var saturation, out var lightness);
        if (saturation < 12) return "gray";
        return hue switch
        {
            < 15 or > 350 => "red",
            < 40 => "orange",
            < 70 => "yellow",
            < 160 => "green",
            < 235 => "blue",
            < 300 => "purple",
            _ => lightness > 70 ? "pink" : "red",
        };
    }

    private static List<string> Pairs(Scene scene)
        => [.. scene.Groups.SelectMany(a => scene.Groups.Where(b => string.CompareOrdinal(a.Kind.Name, b.Kind.Name) < 0).Select(b => $"{a.Kind.Name} {b.Kind.Name}"))];

    [Fact]
    public void The_first_scenes_have_one_kind_once_or_twice()
        => Made.Scenes(Splits.First, 200).Should().OnlyContain(s => s.Scene.Groups.Count == 1 && s.Scene.Objects.Count <= 2);
}
