using MambaVL.Samples.Scenes;

namespace MambaVL.Tests.Scenes;

/// <summary>Scenes for the tests, each with its rows.</summary>
internal static class Made
{
    public static readonly Sprites Sprites = new();

    public static IEnumerable<(Scene Scene, List<SceneRow> Rows)> Scenes(string split, int count, long seed = 11, int size = 192, bool withList = false)
        => Enumerable.Range(0, count).Select(i =>
        {
            var scene = new SceneComposer(Sprites, size).Compose(seed, split, i, out var random);
            return (scene, SceneRows.Of(scene, random, withList));
        });
}
