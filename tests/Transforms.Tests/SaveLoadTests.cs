using MambaVL.Tests.Models;
using MambaVL.Transforms;
using Microsoft.ML;

namespace MambaVL.Tests;

public class SaveLoadTests
{
    [Theory, MemberData(nameof(TinyVisionLanguage.Backbones), MemberType = typeof(TinyVisionLanguage))]
    public void ALoadedPipelineGivesTheSameText(string backbone)
    {
        using var pictures = new Pictures();
        var ml = new MLContext(1);
        using var model = TinyVisionLanguage.Create(backbone);
        var data = pictures.Data(ml);
        var transformer = ml.Transforms.CaptionImages("Caption", "Path", model, Pictures.Short).Fit(data);
        ml.Model.Save(transformer, data.Schema, pictures.Zip);

        var loaded = new MLContext(2).Model.Load(pictures.Zip, out _);
        var texts = Pictures.Texts(transformer.Transform(data), "Caption");
        texts.Should().HaveCount(pictures.Examples.Count).And.OnlyHaveUniqueItems();
        Pictures.Texts(loaded.Transform(data), "Caption").Should().Equal(texts);
        ((IDisposable)loaded).Dispose();
    }
}
