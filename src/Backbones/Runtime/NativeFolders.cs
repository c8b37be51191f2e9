using System.Runtime.InteropServices;
using TorchSharp;

namespace MambaVL;

/// <summary>Where an application's native libraries may lie.</summary>
internal static class NativeFolders
{
    /// <summary>Such as linux-x64: the folder name that NuGet packages use.</summary>
    public static string Rid { get; } =
        (OperatingSystem.IsWindows() ? "win" : OperatingSystem.IsMacOS() ? "osx" : "linux") + "-" +
        RuntimeInformation.ProcessArchitecture.ToString().ToLowerInvariant();

    /// <summary>The folders that the .NET runtime itself searches, in its order. With a deps.json they are those of the
    /// application's packages; in a single-file application, the folder that it was unpacked to.</summary>
    public static IReadOnlyList<string> SearchedByDotNet()
    {
        var folders = (AppContext.GetData("NATIVE_DLL_SEARCH_DIRECTORIES") as string ?? "")
            .Split(Path.PathSeparator, StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries).ToList();
        if (AssemblyFolder() is { } assembly) folders.Add(assembly);
        return Existing(folders);
    }

    /// <summary><see cref="SearchedByDotNet"/>, then the application's folder and TorchSharp's, flat or laid out as in a
    /// package, then (a notebook or script runs TorchSharp.dll from the NuGet cache) the packages beside TorchSharp's.</summary>
    public static IReadOnlyList<string> Candidates()
    {
        var folders = SearchedByDotNet().ToList();
        foreach (var root in (string?[])[AppContext.BaseDirectory, AssemblyFolder()])
        {
            if (root is null) continue;
            folders.Add(root);
            folders.Add(Path.Combine(root, "runtimes", Rid, "native"));
        }
        if (AssemblyFolder() is { } lib && PackageRoot(lib) is { } package)
        {
            folders.Add(Path.Combine(package, "runtimes", Rid, "native"));
            // .../packages/torchsharp/<version>/lib/net8.0 -> .../packages
            var packages = Path.GetDirectoryName(Path.GetDirectoryName(package));
            if (Directory.Exists(packages))
                foreach (var version in Directory.GetDirectories(packages, $"libtorch-c*-{Rid}").Order().SelectMany(Directory.GetDirectories)
                    .Where(v => Path.GetFileName(v) == LibtorchPackageVersion).Order())
                    folders.Add(Path.Combine(version, "runtimes", Rid, "native"));
        }
        return Existing(folders);
    }

    /// <summary>The first of the folders with this file; null where none has it.</summary>
    public static string? Find(IEnumerable<string> folders, string file) =>
        folders.Select(f => Path.Combine(f, file)).FirstOrDefault(File.Exists);

    /// <summary>The libtorch package that belongs to the TorchSharp this was built with.</summary>
    internal const string LibtorchPackageVersion = "2.10.0";

    // Null in a single-file application, which has no assembly files.
#pragma warning disable IL3000
    private static string? AssemblyFolder() =>
        typeof(torch).Assembly.Location is { Length: > 0 } file ? Path.GetDirectoryName(file) : null;
#pragma warning restore IL3000

    private static string? PackageRoot(string lib)
    {
        var package = Path.GetDirectoryName(Path.GetDirectoryName(lib));
        return package is not null && Path.GetFileName(Path.GetDirectoryName(lib)) == "lib" && Directory.Exists(Path.Combine(package, "runtimes"))
            ? package
            : null;
    }

    private static List<string> Existing(IEnumerable<string> folders) =>
        folders.Select(f => Path.TrimEndingDirectorySeparator(Path.GetFullPath(f))).Distinct().Where(Directory.Exists).ToList();
}
