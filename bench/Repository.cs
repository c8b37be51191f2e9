namespace MambaVL.Bench;

/// <summary>The clone of the repository that the program lies in.</summary>
internal static class Repository
{
    public static string Path(string relative)
    {
        for (var d = new DirectoryInfo(AppContext.BaseDirectory); d is not null; d = d.Parent)
            if (File.Exists(System.IO.Path.Combine(d.FullName, "MambaVL.MLNet.sln"))) return System.IO.Path.Combine(d.FullName, relative);
        throw new DirectoryNotFoundException("The benchmarks run inside a clone of the repository.");
    }
}
