using System.Reflection;
using System.Text.RegularExpressions;
using MambaVL.Tests.Models;
using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp;

namespace MambaVL.Tests.Training;

/// <summary>The program of docs/trainers.md compiles and runs.</summary>
public partial class DocumentationTests
{
    [Fact]
    public void TheProgramOfTheTrainersCompilesAndTrains()
    {
        var text = File.ReadAllText(Path.Combine(Fixtures.Repository, "docs/trainers.md"));
        var program = Code().Matches(text).Should().ContainSingle().Subject.Groups[1].Value;
        using var squares = new Squares(6);
        var root = Directory.CreateDirectory(Path.Combine(squares.Folder, "root")).FullName;
        foreach (var folder in (string[])["data/train", "data/validation", "models/mambavl"]) Directory.CreateDirectory(Path.Combine(root, folder));
        foreach (var row in squares.Rows)
            foreach (var set in (string[])["train", "validation"])
                File.Copy(row.Image, Path.Combine(root, "data", set, $"{row.Target}-{Path.GetFileName(row.Image)}"));
        using (var model = Squares.Model(TinyVisionLanguage.Mamba)) model.Save(Path.Combine(root, "models/mambavl"));
        foreach (var path in (string[])["models/mambavl", "data/train", "data/validation", "runs/mambavl", "runs/tuned.zip", "runs/tuned"])
        {
            program.Should().Contain($"\"{path}\"");
            program = program.Replace($"\"{path}\"", $"@\"{Path.Combine(root, path)}\"");
        }
        Run(Compile(program)).Should().MatchRegex(@"^1/1: \d\.\d{3} \n1/1: \d\.\d{3} [\d.]+\n[\d.]+ of the answers are right\.\n$");
        File.Exists(Path.Combine(root, "runs/tuned.zip")).Should().BeTrue();
        using var tuned = VisionLanguageModel.FromPretrained(Path.Combine(root, "runs/tuned"));
    }

    private static Assembly Compile(string program)
    {
        const string usings = "global using System; global using System.Collections.Generic; global using System.IO; global using System.Linq;";
        var references = ((string)AppContext.GetData("TRUSTED_PLATFORM_ASSEMBLIES")!).Split(Path.PathSeparator).Select(path => MetadataReference.CreateFromFile(path));
        var compilation = CSharpCompilation.Create("Trainers", [CSharpSyntaxTree.ParseText(usings), CSharpSyntaxTree.ParseText(program)], references,
            new(OutputKind.ConsoleApplication, nullableContextOptions: NullableContextOptions.Enable));
        using var image = new MemoryStream();
        compilation.Emit(image).Diagnostics.Where(d => d.Severity >= DiagnosticSeverity.Warning).Should().BeEmpty();
        return Assembly.Load(image.ToArray());
    }

    private static string Run(Assembly program)
    {
        var console = Console.Out;
        using var output = new StringWriter();
        Console.SetOut(output);
        try
        {
            program.EntryPoint!.Invoke(null, [Array.Empty<string>()]);
        }
        finally
        {
            Console.SetOut(console);
        }
        return output.ToString();
    }

    [GeneratedRegex(@"```csharp\n(.*?)```", RegexOptions.Singleline)]
    private static partial Regex Code();
}
