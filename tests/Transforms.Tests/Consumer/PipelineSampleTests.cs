namespace MambaVL.Tests.Consumer;

/// <summary>samples/Pipeline as a process of its own.</summary>
public sealed class PipelineSampleTests : IDisposable
{
    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("mambavl-sample-");

    private string Zip => Path.Combine(_folder.FullName, "model.zip");

    public void Dispose() => _folder.Delete(recursive: true);

    [Fact]
    public void DescribesPicturesSavesLoadsAndSaysTheSame()
    {
        string[] pictures = [SavedPipeline.Picture("jpeg-420.jpg"), SavedPipeline.Picture("png-16-rgb.png")];
        var lines = Run([.. pictures, "--save", Zip, "--max-tokens", "10"]).Split('\n');
        lines.Should().Contain(pictures);
        lines.Count(l => l.StartsWith("  answer:  ", StringComparison.Ordinal)).Should().Be(2);
        lines.Count(l => l.StartsWith("  box:     ", StringComparison.Ordinal)).Should().Be(2);
        File.Exists(Zip).Should().BeTrue();
        const string caption = "  caption: ";
        var said = lines.First(l => l.StartsWith(caption, StringComparison.Ordinal))[caption.Length..];
        said.Should().NotBeEmpty();
        lines.Should().Contain($"loaded again, it says of {pictures[0]}: {said}");
    }

    [Fact]
    public void APictureThatCannotBeReadIsNamed()
    {
        var broken = Path.Combine(_folder.FullName, "broken.png");
        File.WriteAllText(broken, "no picture");
        var act = () => Run(SavedPipeline.Picture("jpeg-420.jpg"), broken, "--save", Zip);
        act.Should().Throw<InvalidOperationException>().WithMessage($"*ended with 1:*row 1*'{broken}'*the start of no image format*");
        File.Exists(Zip).Should().BeFalse();
    }

    private string Run(params string[] arguments)
        => Packages.Run(_folder.FullName, ["exec", Path.Combine(Fixtures.Repository, "samples/Pipeline/bin", Packages.Configuration, "net10.0/MambaVL.Samples.Pipeline.dll"), .. arguments]);
}
