using System.Reflection;
using System.Text.RegularExpressions;
using MambaVL.Tests.Models;
using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp;

namespace MambaVL.Tests;

/// <summary>What the README says is so: its code runs, and what it points at is there.</summary>
public partial class ReadmeTests
{
    private static readonly string Text = File.ReadAllText(Path.Combine(Fixtures.Repository, "README.md"));

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    public void EachProgramCompilesAndRuns(int index)
    {
        var folder = Directory.CreateTempSubdirectory("mambavl-readme-").FullName;
        try
        {
            using (var model = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba)) model.Save(folder);
            var picture = Directory.EnumerateFiles(Path.Combine(Fixtures.Repository, "tests/data/fixtures/images"), "*.png").First();
            var program = Code().Matches(Text)[index].Groups[1].Value;
            program.Should().Contain("\"models/mambavl\"").And.Contain("\"photo.png\"");
            program = program.Replace("\"models/mambavl\"", $"@\"{folder}\"").Replace("\"photo.png\"", $"@\"{picture}\"")
                .Replace("\"model.zip\"", $"@\"{Path.Combine(folder, "model.zip")}\"");

            Run(Compile(program)).Should().NotBeEmpty();
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [Fact]
    public void WhatItNamesIsThere()
    {
        Code().Count(Text).Should().Be(2, "each program has its test");
        var links = Link().Matches(Text).Select(m => m.Groups[1].Value).Where(l => !l.StartsWith("http")).ToList();
        links.Should().NotBeEmpty();
        var named = Command().Matches(Text).SelectMany(m => m.Value.Split(' ')).Where(w => w.Contains('/') || w.EndsWith(".sln"));
        foreach (var path in links.Concat(named))
            (File.Exists(Path.Combine(Fixtures.Repository, path)) || Directory.Exists(Path.Combine(Fixtures.Repository, path)))
                .Should().BeTrue($"the README names '{path}'");
    }

    private static Assembly Compile(string program)
    {
        // What ImplicitUsings gives a console project.
        const string usings = "global using System; global using System.Collections.Generic; global using System.IO; global using System.Linq; global using System.Threading; global using System.Threading.Tasks;";
        var references = ((string)AppContext.GetData("TRUSTED_PLATFORM_ASSEMBLIES")!).Split(Path.PathSeparator)
            .Select(path => MetadataReference.CreateFromFile(path));
        var compilation = CSharpCompilation.Create("Readme", [CSharpSyntaxTree.ParseText(usings), CSharpSyntaxTree.ParseText(program)], references,
            new(OutputKind.ConsoleApplication, nullableContextOptions: NullableContextOptions.Enable));
        using var image = new MemoryStream();
        var result = compilation.Emit(image);
        result.Diagnostics.Where(d => d.Severity >= DiagnosticSeverity.Warning).Should().BeEmpty();
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

    [GeneratedRegex(@"\]\(([^)]+)\)")]
    private static partial Regex Link();

    [GeneratedRegex(@"^dotnet (run|test) .*$", RegexOptions.Multiline)]
    private static partial Regex Command();
}
