using System.Diagnostics;
using System.Reflection;

namespace MambaVL.Tests.Consumer;

/// <summary>The packages as `dotnet pack` makes them of what the tests were built from, and a folder outside the repository
/// for an application that uses them.</summary>
public sealed class Packages : IDisposable
{
    /// <summary>Debug or Release: that of the tests, and so of what was built with them.</summary>
    public static readonly string Configuration = typeof(Packages).Assembly.GetCustomAttribute<AssemblyConfigurationAttribute>()!.Configuration;
    private static readonly string DotNet = Environment.ProcessPath is { } host && Path.GetFileNameWithoutExtension(host) == "dotnet" ? host : "dotnet";

    private readonly DirectoryInfo _root = Directory.CreateTempSubdirectory("mambavl-consumer-");

    public Packages()
    {
        foreach (var project in (string[])["Backbones", "Transforms"])
            Run(Fixtures.Repository, "pack", $"src/{project}", "--no-build", "-c", Configuration, "-o", Feed);
    }

    public string Root => _root.FullName;

    public string Feed => Path.Combine(Root, "feed");

    /// <summary>The folder of the packages that this machine has restored. The application takes all but ours from there, so
    /// nothing is downloaded; ours have a folder of their own, so that no older ones of the same version are found.</summary>
    public static string MachineFolder
    {
        get
        {
            var line = Run(Fixtures.Repository, "nuget", "locals", "global-packages", "--list");
            return line[(line.IndexOf(": ", StringComparison.Ordinal) + 2)..].Trim();
        }
    }

    public string Package(string id) => Directory.GetFiles(Feed, $"{id}.*.nupkg").Single();

    /// <summary>Writes and builds an application. Its warnings are errors: NU1603 would say that a version is not to be had.</summary>
    public string Build(string program, params string[] packages)
    {
        var folder = Directory.CreateDirectory(Path.Combine(Root, "app")).FullName;
        File.WriteAllText(Path.Combine(folder, "Program.cs"), program);
        File.WriteAllText(Path.Combine(folder, "nuget.config"), $"""
            <configuration>
              <packageSources><clear /><add key="packed" value="{Feed}" /></packageSources>
              <fallbackPackageFolders><clear /><add key="machine" value="{MachineFolder}" /></fallbackPackageFolders>
            </configuration>
            """);
        File.WriteAllText(Path.Combine(folder, "Consumer.csproj"), $"""
            <Project Sdk="Microsoft.NET.Sdk">
              <PropertyGroup>
                <OutputType>Exe</OutputType>
                <TargetFramework>net10.0</TargetFramework>
                <ImplicitUsings>enable</ImplicitUsings>
                <Nullable>enable</Nullable>
                <TreatWarningsAsErrors>true</TreatWarningsAsErrors>
                <CreateHardLinksForCopyLocalIfPossible>true</CreateHardLinksForCopyLocalIfPossible>
              </PropertyGroup>
              <ItemGroup>
                {string.Concat(packages.Select(p => $"<PackageReference Include=\"{p.Split(' ')[0]}\" Version=\"{p.Split(' ')[1]}\" />"))}
              </ItemGroup>
            </Project>
            """);
        Run(folder, "build", "-c", "Release", "-o", "out", "--disable-build-servers");
        return Path.Combine(folder, "out", "Consumer.dll");
    }

    /// <summary>Runs dotnet; gives its output, or throws with it.</summary>
    public static string Run(string folder, params string[] arguments)
    {
        var start = new ProcessStartInfo(DotNet, arguments) { WorkingDirectory = folder, RedirectStandardOutput = true, RedirectStandardError = true };
        // What the runner of the tests set for its own build.
        foreach (var name in start.Environment.Keys.Where(k => k.StartsWith("MSBUILD", StringComparison.OrdinalIgnoreCase)).ToList()) start.Environment.Remove(name);
        if (folder != Fixtures.Repository) start.Environment["NUGET_PACKAGES"] = Path.Combine(Path.GetDirectoryName(folder)!, "packages");
        start.Environment["DOTNET_NOLOGO"] = "1";
        start.Environment["DOTNET_CLI_UI_LANGUAGE"] = "en";
        using var process = Process.Start(start)!;
        var error = process.StandardError.ReadToEndAsync();
        var output = process.StandardOutput.ReadToEndAsync();
        if (!process.WaitForExit(TimeSpan.FromMinutes(5)))
        {
            process.Kill(entireProcessTree: true);
            throw new TimeoutException($"'dotnet {string.Join(' ', arguments)}' hangs.");
        }
        return process.ExitCode == 0 ? output.Result
            : throw new InvalidOperationException($"'dotnet {string.Join(' ', arguments)}' ended with {process.ExitCode}:\n{output.Result}{error.Result}");
    }

    public void Dispose() => _root.Delete(recursive: true);
}
