namespace MambaVL.Tests;

/// <summary>The folder of reference answers: <c>MAMBAVL_FIXTURES</c>, else ../shared/fixtures beside the repository,
/// else the small set in tests/data/fixtures.</summary>
internal static class Fixtures
{
    public static readonly string Repository = FindRepository();

    public static readonly string Root = FindRoot();

    /// <summary>The file or folder; skips the test, and says why, where this set of fixtures has none.</summary>
    public static string Path(params string[] parts)
    {
        var path = System.IO.Path.Combine([Root, .. parts]);
        Skip.IfNot(File.Exists(path) || Directory.Exists(path),
            $"'{System.IO.Path.Combine(parts)}' is not in {Root}; the larger fixtures have it (set MAMBAVL_FIXTURES).");
        return path;
    }

    private static string FindRoot()
    {
        if (Environment.GetEnvironmentVariable("MAMBAVL_FIXTURES") is { Length: > 0 } named)
            return Directory.Exists(named) ? named : throw new DirectoryNotFoundException($"MAMBAVL_FIXTURES names '{named}', which is no folder.");
        var shared = System.IO.Path.GetFullPath(System.IO.Path.Combine(Repository, "../shared/fixtures"));
        return Directory.Exists(shared) ? shared : System.IO.Path.Combine(Repository, "tests/data/fixtures");
    }

    private static string FindRepository()
    {
        for (var d = new DirectoryInfo(AppContext.BaseDirectory); d is not null; d = d.Parent)
            if (File.Exists(System.IO.Path.Combine(d.FullName, "MambaVL.MLNet.sln"))) return d.FullName;
        throw new DirectoryNotFoundException("The tests run inside a clone of the repository.");
    }
}
