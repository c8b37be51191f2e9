using Microsoft.ML;

namespace MambaVL.Tests;

/// <summary>The test assembly as a program of its own: what an application does that knows a model.zip and nothing else.</summary>
internal static class LoadProbe
{
    private static int Main(string[] args)
    {
        var ml = new MLContext();
        var transformer = ml.Model.Load(args[0], out _);
        var data = ml.Data.LoadFromEnumerable(args[1..].Select(path => new Example { Path = path }));
        foreach (var text in Pictures.Texts(transformer.Transform(data), "Caption")) Console.WriteLine($"caption: {text.ReplaceLineEndings("|")}");
        return 0;
    }
}
