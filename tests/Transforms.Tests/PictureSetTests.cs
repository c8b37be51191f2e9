using MambaVL.Images;
using MambaVL.Tests.Models;
using MambaVL.Transforms;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests;

/// <summary>Images that are encoded together, which a GPU does, are those that are encoded one by one.</summary>
public sealed class PictureSetTests : IDisposable
{
    private readonly Pictures _pictures = new(5);
    private readonly VisionLanguageModel _model = TinyVisionLanguage.Create(TinyVisionLanguage.NeoX);

    public void Dispose()
    {
        _model.Dispose();
        _pictures.Dispose();
    }

    [Fact]
    public void TogetherTheyAreWhatTheyAreAlone()
    {
        using var scope = NewDisposeScope();
        var paths = _pictures.Examples.Select(e => e.Path).Distinct().ToArray();
        // One of them twice, and one that cannot be read.
        RowInput[] rows = [.. paths.Append(paths[0]).Prepend("absent.png").Select((path, i) => new RowInput(i, ImageKind.Path) { Path = path })];
        using PictureSet together = new(_model, new()), alone = new(_model, new());
        var looks = 0;
        together.EncodeTogether(rows, () => looks++);
        looks.Should().Be(paths.Length + 1, "the row that comes twice is read once");
        File.Delete(paths[1]); // what was encoded is not read again
        together.Invoking(t => t.PatchFeatures(rows[0])).Should().Throw<IOException>();
        foreach (var row in rows[1..])
        {
            if (row.Path == paths[1]) continue;
            var (expected, width, height) = alone.PatchFeatures(new RowInput(0, ImageKind.Path) { Path = row.Path });
            var (features, w, h) = together.PatchFeatures(row);
            (features == expected).all().item<bool>().Should().BeTrue(row.Path); // on the CPU, bit for bit
            (w, h).Should().Be((width, height));
            (row.Width, row.Height).Should().Be((width, height));
        }
        together.PatchFeatures(rows[2]).Features.shape.Should().Equal(1, _model.Config.Images.ImageSize * _model.Config.Images.ImageSize / _model.Vision.PatchSize / _model.Vision.PatchSize, _model.Vision.Width);
        together.Encode(rows[^1]).Width.Should().Be(rows[1].Width);
    }

    [Fact]
    public void ACheckThatThrowsStopsTheReading()
    {
        RowInput[] rows = [.. _pictures.Examples.Select((e, i) => new RowInput(i, ImageKind.Path) { Path = e.Path })];
        using var set = new PictureSet(_model, new());
        set.Invoking(s => s.EncodeTogether(rows, () => throw new OperationCanceledException())).Should().Throw<OperationCanceledException>();
    }
}
