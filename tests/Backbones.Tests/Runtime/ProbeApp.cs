using System.Diagnostics;

namespace MambaVL.Tests;

/// <summary>An application folder of its own, with chosen native libraries, in which the probe runs as a child process.</summary>
internal sealed class ProbeApp : IDisposable
{
    public static readonly string Natives = Path.Combine(AppContext.BaseDirectory, "runtimes", NativeFolders.Rid, "native");
    public static readonly string Binding = Path.Combine(Natives, "libLibTorchSharp.so");
    public static readonly string[] Libtorch = ["libc10.so", "libtorch_cpu.so", "libtorch.so", Path.GetFileName(Directory.GetFiles(Natives, "libgomp*").FirstOrDefault() ?? "libgomp.so.1")];

    /// <summary>True where this system's C++ library is too old for TorchSharp's library as it comes.</summary>
    public static bool SystemNeedsPatch => Runtime.Describe().PatchedCopy is not null;

    private readonly DirectoryInfo _root = Directory.CreateTempSubdirectory("mambavl-tests-");

    public ProbeApp()
    {
        Directory.CreateDirectory(Folder);
        Directory.CreateDirectory(NativeFolder);
        // Without the deps.json: .NET then searches the application's own folder only.
        foreach (var file in (string[])["MambaVL.Backbones.Tests.dll", "MambaVL.Backbones.Tests.runtimeconfig.json", "MambaVL.Backbones.dll", "TorchSharp.dll"])
            File.Copy(Path.Combine(AppContext.BaseDirectory, file), Path.Combine(Folder, file));
    }

    public string Root => _root.FullName;
    public string Folder => Path.Combine(Root, "app");
    public string NativeFolder => Path.Combine(Folder, "runtimes", NativeFolders.Rid, "native");
    public string Cache => Path.Combine(Root, "cache");
    public string[] CacheFiles => Directory.Exists(Path.Combine(Cache, "native")) ? Directory.GetFiles(Path.Combine(Cache, "native")) : [];

    /// <summary>Links the package's libraries into a folder.</summary>
    public ProbeApp With(string folder, params string[] files)
    {
        Directory.CreateDirectory(folder);
        foreach (var file in files) File.CreateSymbolicLink(Path.Combine(folder, file), Path.Combine(Natives, file));
        return this;
    }

    public ProbeApp WithAll() => With(NativeFolder, ["libLibTorchSharp.so", .. Libtorch]);

    /// <summary>Runs the probe and returns its exit code and what it printed.</summary>
    public (int Code, string Output) Run(string command = "use", params (string Name, string Value)[] environment) => Finish(Start(command, environment));

    public Process Start(string command = "use", params (string Name, string Value)[] environment)
    {
        var dotnet = Environment.ProcessPath is { } host && Path.GetFileNameWithoutExtension(host) == "dotnet" ? host : "dotnet";
        var start = new ProcessStartInfo(dotnet, ["exec", Path.Combine(Folder, "MambaVL.Backbones.Tests.dll"), command]) { RedirectStandardOutput = true, RedirectStandardError = true };
        foreach (var name in (string[])["MAMBAVL_LIBTORCH_DIR", "LD_LIBRARY_PATH", "XDG_CACHE_HOME"]) start.Environment.Remove(name);
        start.Environment["MAMBAVL_CACHE"] = Cache;
        // Where TorchSharp fails by itself, it copies libtorch out of the package cache.
        start.Environment["NUGET_PACKAGES"] = Path.Combine(Root, "no-packages");
        // ICU is a C++ library too; an imitated C++ library is not made for it.
        start.Environment["DOTNET_SYSTEM_GLOBALIZATION_INVARIANT"] = "1";
        foreach (var (name, value) in environment) start.Environment[name] = value;
        return Process.Start(start)!;
    }

    public static (int Code, string Output) Finish(Process process)
    {
        using (process)
        {
            var error = process.StandardError.ReadToEndAsync();
            var output = process.StandardOutput.ReadToEnd();
            if (!process.WaitForExit(TimeSpan.FromSeconds(60)))
            {
                process.Kill();
                throw new TimeoutException($"The probe hangs. It printed: {output}");
            }
            return (process.ExitCode, output + error.Result);
        }
    }

    public void Dispose() => _root.Delete(recursive: true);
}
