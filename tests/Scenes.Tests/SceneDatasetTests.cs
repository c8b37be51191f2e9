using System.Security.Cryptography;
using MambaVL.Samples.Scenes;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Tests.Scenes;

public sealed class SceneDatasetTests : IDisposable
{
    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("mambavl-scenes-");

    public void Dispose() => _folder.Delete(recursive: true);

    [Fact]
    public void The_same_seed_gives_the_same_files_on_any_number_of_threads()
    {
        SceneDataset.Write(Folder("a"), Options(threads: 1));
        SceneDataset.Write(Folder("b"), Options(threads: 7));
        SceneDataset.Write(Folder("c"), Options(threads: 1) with { Seed = 2 });
        var (a, b, c) = (Hashes("a"), Hashes("b"), Hashes("c"));
        a.Should().Equal(b);
        a.Values.Should().NotIntersectWith(c.Values);
        // And on any machine, in any version of .NET: shipped models name the seed that they were trained on.
        a["train.jsonl"][..16].Should().Be("68F6A866987282FB");
    }

    [Fact]
    public void More_scenes_do_not_change_the_first_ones()
    {
        SceneDataset.Write(Folder("a"), Options());
        SceneDataset.Write(Folder("b"), Options() with { Splits = new Dictionary<string, int> { [Splits.Test] = 3, [Splits.Train] = 40 } });
        File.ReadAllText(Path.Combine(Folder("b"), "train.jsonl")).Should().StartWith(File.ReadAllText(Path.Combine(Folder("a"), "train.jsonl")));
    }

    [Fact]
    public void The_rows_are_a_data_set_and_its_pictures_are_there()
    {
        var counts = SceneDataset.Write(Folder("a"), Options());
        var data = new MLContext().Data.LoadFromVisionLanguageFile(Path.Combine(Folder("a"), "train.jsonl"));
        var images = data.GetColumn<string>("Image").ToList();
        images.Should().HaveCount(counts[Splits.Train]);
        images.Distinct().Should().HaveCount(20).And.OnlyContain(image => File.Exists(image));
        using var picture = Images.DecodedImage.Decode(images[0]);
        (picture.Width, picture.Height).Should().Be((96, 96));
        foreach (var box in data.GetColumn<float[]>("Box").Where(b => !float.IsNaN(b[0]))) box.Should().OnlyContain(edge => edge >= 0 && edge <= 96);
    }

    [Fact]
    public void A_run_that_was_stopped_leaves_no_rows_and_the_next_one_replaces_it()
    {
        using var stop = new CancellationTokenSource();
        var written = new Progress(() => stop.Cancel());
        FluentActions.Invoking(() => SceneDataset.Write(Folder("a"), Options(), written, stop.Token)).Should().Throw<OperationCanceledException>();
        Directory.GetFiles(Folder("a"), "*.jsonl").Should().BeEmpty();
        SceneDataset.Write(Folder("a"), Options());
        SceneDataset.Write(Folder("b"), Options());
        Hashes("a").Should().Equal(Hashes("b"));
        // Fewer scenes than before: nothing of them remains.
        SceneDataset.Write(Folder("a"), Options() with { Splits = new Dictionary<string, int> { [Splits.Train] = 2 } });
        Directory.GetFiles(Folder("a"), "*.png", SearchOption.AllDirectories).Should().HaveCount(2);
        Directory.GetFiles(Folder("a"), "*.jsonl").Should().ContainSingle();
    }

    [Fact]
    public void A_folder_of_something_else_is_left_alone()
    {
        Directory.CreateDirectory(Folder("a"));
        File.WriteAllText(Path.Combine(Folder("a"), "train.jsonl"), "precious");
        FluentActions.Invoking(() => SceneDataset.Write(Folder("a"), Options())).Should().Throw<IOException>().WithMessage("*not empty*scenes.json*");
        File.ReadAllText(Path.Combine(Folder("a"), "train.jsonl")).Should().Be("precious");
    }

    private static SceneDatasetOptions Options(int threads = 2)
        => new() { Seed = 1, Size = 96, Threads = threads, Splits = new Dictionary<string, int> { [Splits.Train] = 20, [Splits.Unseen] = 5 } };

    private string Folder(string name) => Path.Combine(_folder.FullName, name);

    private Dictionary<string, string> Hashes(string name) => Directory.GetFiles(Folder(name), "*", SearchOption.AllDirectories)
        .Where(f => Path.GetFileName(f) != SceneDataset.Manifest)
        .ToDictionary(f => Path.GetRelativePath(Folder(name), f), f => Convert.ToHexString(SHA256.HashData(File.ReadAllBytes(f))));

    private sealed class Progress(Action first) : IProgress<int>
    {
        public void Report(int value) => first();
    }
}
