using System.Text.RegularExpressions;

namespace MambaVL;

/// <summary>The libtorch that is used: where it lies, and where the libraries lie that it needs.</summary>
/// <param name="Folder">The folder of libtorch_cpu.so; null where the system's library path has it.</param>
/// <param name="SearchFolders"><paramref name="Folder"/> first, then the folders of NVIDIA's libraries.</param>
/// <param name="Source">In words: which setting or package led to it.</param>
/// <param name="Version">As its version file says, such as 2.11.0+cu130; null where there is no such file.</param>
internal sealed partial record LibtorchInstall(string? Folder, IReadOnlyList<string> SearchFolders, string Source, string? Version)
{
    public const string Variable = "MAMBAVL_LIBTORCH_DIR";

    /// <summary>The versions whose binary interface TorchSharp's native library was seen to work with.</summary>
    public const string SupportedVersions = "2.10 or 2.11";

    private static readonly string[] Required = ["libc10.so", "libtorch_cpu.so", "libtorch.so"];

    public static bool Supports(int major, int minor) => major == 2 && minor is 10 or 11;

    /// <summary>The install whose lib folder the variable names.</summary>
    /// <exception cref="NativeRuntimeException">No folder, no libtorch in it, or another version.</exception>
    public static LibtorchInstall FromVariable(string value)
    {
        const string how = "set " + Variable + " to the folder that this prints: " +
            "python -c \"import os, torch; print(os.path.join(os.path.dirname(torch.__file__), 'lib'))\"";
        var folder = Path.TrimEndingDirectorySeparator(Path.GetFullPath(value));
        if (!Directory.Exists(folder))
            throw new NativeRuntimeException($"{Variable} is '{value}', which is no folder.", "the lib folder of a Python install of PyTorch", [folder], how);
        var missing = Required.Where(f => !File.Exists(Path.Combine(folder, f))).ToList();
        if (missing.Count > 0)
        {
            var below = Path.Combine(folder, "lib");
            throw new NativeRuntimeException($"{Variable} is '{value}', a folder without {string.Join(", ", missing)}.", string.Join(", ", Required), [folder],
                Required.All(f => File.Exists(Path.Combine(below, f))) ? $"its folder lib has them: set {Variable}={below}" : how);
        }
        var (version, file) = ReadVersion(folder);
        if (version is not null && !(Parse(version) is { } v && Supports(v.Major, v.Minor)))
            throw new NativeRuntimeException($"{Variable} names libtorch {version}, whose binary interface is not that of this TorchSharp.",
                $"PyTorch {SupportedVersions}", [file!], "install that version: pip install 'torch>=2.10,<2.12'");
        return new LibtorchInstall(folder, WithNeighbours(folder), Variable, version);
    }

    /// <summary>The install that comes with the application.</summary>
    public static LibtorchInstall InFolder(string folder) => new(folder, WithNeighbours(folder), "the application's native package", ReadVersion(folder).Version);

    /// <summary>The install that the system's loader finds by name (LD_LIBRARY_PATH, ld.so.conf).</summary>
    public static LibtorchInstall OnLibraryPath(string? folder) =>
        new(folder, folder is null ? [] : WithNeighbours(folder), "the system's library path", folder is null ? null : ReadVersion(folder).Version);

    /// <summary>The number of a version text, such as (2, 11) of 2.11.0+cu130.</summary>
    public static (int Major, int Minor)? Parse(string version) =>
        Number().Match(version) is { Success: true } m && int.TryParse(m.Groups[1].Value, out var major) && int.TryParse(m.Groups[2].Value, out var minor)
            ? (major, minor)
            : null;

    // torch/version.py of a Python install; build-version of a libtorch archive.
    private static (string? Version, string? File) ReadVersion(string folder)
    {
        var root = Path.GetDirectoryName(folder);
        if (root is null) return default;
        var python = Path.Combine(root, "version.py");
        if (File.Exists(python) && PythonVersion().Match(ReadStart(python)) is { Success: true } m) return (m.Groups[1].Value, python);
        var build = Path.Combine(root, "build-version");
        return File.Exists(build) && ReadStart(build).Trim() is { Length: > 0 and < 100 } text ? (text, build) : default;
    }

    private static string ReadStart(string file)
    {
        using var reader = new StreamReader(file);
        var buffer = new char[16_384];
        return new string(buffer, 0, reader.ReadBlock(buffer));
    }

    // site-packages/torch/lib, site-packages/torch.libs, site-packages/nvidia/<part>/lib
    private static IReadOnlyList<string> WithNeighbours(string folder)
    {
        var folders = new List<string> { folder };
        if (Path.GetDirectoryName(Path.GetDirectoryName(folder)) is not { } packages) return folders;
        var nvidia = Path.Combine(packages, "nvidia");
        if (Directory.Exists(nvidia))
            folders.AddRange(Directory.GetDirectories(nvidia).Order(StringComparer.Ordinal).Select(d => Path.Combine(d, "lib")).Where(Directory.Exists));
        var bundled = Path.Combine(packages, "torch.libs");
        if (Directory.Exists(bundled)) folders.Add(bundled);
        return folders;
    }

    [GeneratedRegex(@"^\s*__version__\s*(?::[^=]*)?=\s*['""]([0-9][^'""]{0,80})['""]", RegexOptions.Multiline)]
    private static partial Regex PythonVersion();

    [GeneratedRegex(@"^\s*(\d{1,6})\.(\d{1,6})")]
    private static partial Regex Number();
}
