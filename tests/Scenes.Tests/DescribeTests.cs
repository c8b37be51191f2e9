using System.Diagnostics;
using System.Reflection;
using System.Text.Json.Nodes;

namespace MambaVL.Tests.Scenes;

/// <summary>samples/Describe as a process of its own.</summary>
public sealed class DescribeTests : IDisposable
{
    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("mambavl-describe-");

    public void Dispose() => _folder.Delete(recursive: true);

    [Fact]
    public void Every_picture_is_described_drawn_on_and_in_the_results()
    {
        Copy("1.png", "a.png");
        Copy("2.png", "b.png");
        File.WriteAllText(Path("broken.png"), "no picture");
        File.WriteAllText(Path("rows.jsonl"), """{"image": "a.png", "task": "QuestionAnswering", "question": "How many?"}""" + "\n" + """{"image": "a.png", "task": "Grounding", "question": "the airplane"}""");

        var (code, output, error) = Run(_folder.FullName, "--out", Path("out"), "--max-tokens", "5");
        code.Should().Be(1); // for the picture that is none
        error.Should().Contain("broken.png");
        output.Should().Contain("a.png").And.Contain("How many?").And.Contain("3 pictures");

        var results = JsonNode.Parse(File.ReadAllText(Path("out/results.json")))!.AsArray();
        results.Select(r => System.IO.Path.GetFileName((string)r!["file"]!)).Should().Equal("a.png", "b.png", "broken.png");
        results[0]!.AsObject().Select(p => p.Key).Should().Equal("file", "caption", "question", "answer", "phrase", "box", "milliseconds");
        (((string)results[0]!["question"]!, (string)results[0]!["phrase"]!), ((string)results[1]!["question"]!, (string)results[1]!["phrase"]!))
            .Should().Be((("How many?", "the airplane"), ("What is in the picture?", "the largest object")));
        ((string)results[2]!["error"]!).Should().NotBeEmpty();
        Directory.GetFiles(Path("out"), "*.png").Select(System.IO.Path.GetFileName).Should().BeEquivalentTo("a.png", "b.png");
    }

    [Fact]
    public void What_is_asked_can_be_said_and_the_pictures_themselves_are_left_alone()
    {
        Copy("1.png", "a.png");
        Run(Path("a.png"), "--out", Path("out"), "--max-tokens", "1", "--question", "Why?", "--phrase", "the sky").Code.Should().Be(0);
        File.ReadAllText(Path("out/results.json")).Should().Contain("Why?").And.Contain("the sky");

        var before = File.ReadAllBytes(Path("a.png"));
        var (code, _, error) = Run(_folder.FullName, "--out", _folder.FullName);
        (code, error).Should().Match<(int, string)>(r => r.Item1 == 1 && r.Item2.Contains("--out"));
        File.ReadAllBytes(Path("a.png")).Should().Equal(before);
    }

    private string Path(string name) => System.IO.Path.Combine(_folder.FullName, name);

    private void Copy(string picture, string name) => File.Copy(System.IO.Path.Combine(Fixtures.Repository, "samples/Scenes/pictures", picture), Path(name));

    private (int Code, string Output, string Error) Run(params string[] arguments)
    {
        var configuration = typeof(DescribeTests).Assembly.GetCustomAttribute<AssemblyConfigurationAttribute>()!.Configuration;
        var dll = System.IO.Path.Combine(Fixtures.Repository, "samples/Describe/bin", configuration, "net10.0/MambaVL.Samples.Describe.dll");
        using var process = Process.Start(new ProcessStartInfo("dotnet", [dll, .. arguments]) { WorkingDirectory = _folder.FullName, RedirectStandardOutput = true, RedirectStandardError = true })!;
        var error = process.StandardError.ReadToEndAsync();
        var output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return (process.ExitCode, output, error.Result);
    }
}
