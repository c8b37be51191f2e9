using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using TorchSharp;

namespace MambaVL;

/// <summary>What the bootstrap found and did.</summary>
internal sealed record NativeState
{
    /// <summary>The package's LibTorchSharp; never changed.</summary>
    public string? Binding { get; init; }

    /// <summary>The patched copy that is loaded instead; null where nothing was patched.</summary>
    public string? PatchedCopy { get; init; }

    /// <summary>What the copy has changed, in words.</summary>
    public IReadOnlyList<string> Changes { get; init; } = [];

    /// <summary>The libtorch in use; null where TorchSharp found it by itself (not Linux).</summary>
    public LibtorchInstall? Libtorch { get; init; }

    /// <summary>As the loaded library says itself, such as (2, 10).</summary>
    public (int Major, int Minor)? LibtorchVersion { get; init; }

    /// <summary>The C++ library that the process uses.</summary>
    public string? StandardLibrary { get; init; }

    /// <summary>CUDA's major version that libtorch_cuda was linked with; null in a libtorch without CUDA.</summary>
    public int? CudaMajor { get; init; }

    /// <summary>The libraries that were loaded, in order, as files.</summary>
    public IReadOnlyList<string> Loaded { get; init; } = [];
}

/// <summary>
/// Loads libtorch and LibTorchSharp before TorchSharp looks for them. On Linux the loader knows a loaded library by its name
/// (SONAME): TorchSharp's own search then ends at ours. Elsewhere TorchSharp's search is left to itself, and only explained
/// where it fails.
/// </summary>
internal sealed class NativeBootstrap
{
    private const string Binding = "libLibTorchSharp.so";
    private const string AddPackage =
        "add a native package of the same version as TorchSharp to the application: TorchSharp-cpu, TorchSharp-cuda-linux or TorchSharp-cuda-windows" +
        " (in this repository: build with -p:TorchBackend=cpu)";

    private readonly List<string> _loaded = [];
    private readonly Dictionary<string, nint> _handles = [];
    private int? _cudaMajor;

    /// <summary>Runs it. Every failure comes out as a <see cref="NativeRuntimeException"/>.</summary>
    public static NativeState Run()
    {
        try
        {
            if (!Environment.Is64BitProcess)
                throw new NativeRuntimeException("This is a 32-bit process; libtorch exists for 64 bits only.", "a 64-bit .NET runtime", [], "run the x64 or arm64 runtime");
            var bootstrap = new NativeBootstrap();
            var state = OperatingSystem.IsLinux() ? bootstrap.LoadOnLinux() : LoadElsewhere();
            StartTorchSharp(state);
            return state;
        }
        catch (Exception e) when (e is not NativeRuntimeException)
        {
            throw new NativeRuntimeException($"TorchSharp's native libraries could not be loaded: {e.Message}", "LibTorchSharp and libtorch", NativeFolders.Candidates(),
                "see docs/native-runtime.md; MambaVL.Runtime.Describe() prints what this process found", e);
        }
    }

    private NativeState LoadOnLinux()
    {
        if (RuntimeInformation.RuntimeIdentifier.Contains("musl", StringComparison.Ordinal))
            throw new NativeRuntimeException("This system's C library is musl; libtorch and TorchSharp are built for glibc.", "libc.so.6", [],
                "use an image with glibc, such as Debian's or Ubuntu's");
        var folders = NativeFolders.Candidates();
        var binding = NativeFolders.Find(folders, Binding)
            ?? throw new NativeRuntimeException($"TorchSharp's native library for {NativeFolders.Rid} is not there.", Binding, folders,
                "TorchSharp's own package carries it for linux-x64 (TorchSharp 0.107 has none for linux-arm64): " + AddPackage);
        var original = File.ReadAllBytes(binding);
        using var stream = new MemoryStream(original, writable: false);
        var elf = Inspect(stream, binding);

        var standardLibrary = Dl.Open("libstdc++.so.6", Dl.Lazy, out var error);
        if (standardLibrary == 0)
            throw new NativeRuntimeException($"The C++ standard library is not on this system: {error}", "libstdc++.so.6", ["the system's library path"], "apt-get install libstdc++6, or dnf install libstdc++");
        var plan = Plan(elf, original, binding);

        var libtorch = FindLibtorch(folders);
        LoadLibtorch(libtorch, folders);
        var version = LibtorchVersion(libtorch);
        var copy = LoadBinding(binding, original, plan, libtorch);
        return new NativeState
        {
            Binding = binding,
            PatchedCopy = copy,
            Changes = plan?.Changes ?? [],
            Libtorch = libtorch,
            LibtorchVersion = version,
            StandardLibrary = Dl.PathOf(standardLibrary),
            CudaMajor = _cudaMajor,
            Loaded = _loaded,
        };
    }

    /// <summary>The patch that this machine needs; null where it needs none.</summary>
    private static VersionPatch.Result? Plan(ElfFile elf, byte[] original, string binding)
    {
        var libraries = new Dictionary<string, (string Path, IReadOnlySet<string> Versions)?>();
        var missing = VersionPatch.Missing(elf, file =>
        {
            if (!libraries.TryGetValue(file, out var found)) libraries[file] = found = Provided(file);
            return found?.Versions;
        });
        if (missing.Count == 0) return null;
        if (VersionPatch.TryApply(original, elf, missing, out var why) is { } patch) return patch;
        throw new NativeRuntimeException($"This system is too old for {Path.GetFileName(binding)}: {why}.",
            string.Join(", ", missing.Select(m => $"{m.Version} of {m.File}")), missing.Select(m => libraries[m.File]!.Value.Path).Distinct(),
            "use a newer system (Debian 12, Ubuntu 22.04, RHEL 9 or later), or put a newer libstdc++.so.6 (conda's libstdcxx-ng has one) first on LD_LIBRARY_PATH");
    }

    // Null for a library that is not on the system by itself: it is not checked here, and its absence shows at loading.
    private static (string Path, IReadOnlySet<string> Versions)? Provided(string library)
    {
        var handle = Dl.Open(library, Dl.Lazy, out _);
        if (handle == 0 || Dl.PathOf(handle) is not { } path || !File.Exists(path)) return null;
        using var stream = File.OpenRead(path);
        return (path, Inspect(stream, path).VersionDefinitions());
    }

    private static LibtorchInstall FindLibtorch(IReadOnlyList<string> folders)
    {
        if (Environment.GetEnvironmentVariable(LibtorchInstall.Variable) is { Length: > 0 } named) return LibtorchInstall.FromVariable(named);
        if (NativeFolders.Find(folders, "libtorch_cpu.so") is { } file) return LibtorchInstall.InFolder(Path.GetDirectoryName(file)!);
        var handle = Dl.Open("libtorch_cpu.so", Dl.Lazy, out var error);
        if (handle != 0) return LibtorchInstall.OnLibraryPath(Path.GetDirectoryName(Dl.PathOf(handle)));
        throw new NativeRuntimeException("libtorch is not there: the application has no native package of TorchSharp.", "libtorch_cpu.so",
            [.. folders, $"the system's library path ({error})"], $"{AddPackage}; or set {LibtorchInstall.Variable} to the lib folder of a Python install of PyTorch {LibtorchInstall.SupportedVersions}");
    }

    private void LoadLibtorch(LibtorchInstall libtorch, IReadOnlyList<string> folders)
    {
        if (libtorch.Folder is null) return;
        IReadOnlyList<string> search = libtorch.Source == LibtorchInstall.Variable ? libtorch.SearchFolders : [.. libtorch.SearchFolders, .. folders];
        var names = ((string[])["libc10.so", "libtorch_cpu.so", "libc10_cuda.so", "libtorch_cuda.so", "libtorch.so"])
            .Where(n => File.Exists(Path.Combine(libtorch.Folder, n))).ToList();
        foreach (var name in names) LoadWithNeeded(Path.Combine(libtorch.Folder, name), search, isNeeded: false);

        // TorchSharp asks for these by name, and .NET looks into its own folders first. Another copy there would be loaded
        // beside ours: two registries of operators in one process.
        foreach (var name in names.Where(n => n is "libtorch_cpu.so" or "libtorch_cuda.so"))
        {
            if (NativeFolders.Find(NativeFolders.SearchedByDotNet(), name) is not { } other || Dl.Open(other, Dl.Lazy | Dl.NoLoad, out _) == _handles[name]) continue;
            throw new NativeRuntimeException($"The application carries its own {name}, and TorchSharp would load it beside the one of {libtorch.Source}.",
                $"one {name}", [Path.Combine(libtorch.Folder, name), other],
                $"build the application without a native package (in this repository: -p:TorchBackend=none), delete libtorch*.so and libc10*.so from {Path.GetDirectoryName(other)}, or unset {LibtorchInstall.Variable}");
        }
    }

    /// <summary>Loads what a library needs, as far as it lies in the folders, then the library; the rest is the system's.</summary>
    /// <param name="path">The library.</param>
    /// <param name="folders">Where its needs may lie.</param>
    /// <param name="isNeeded">Whether another library needs it. If the loader refuses such a one, it is left to the loading of
    /// that other: PyTorch 2.11's libtorch_nvshmem.so takes symbols of libc10_cuda.so without naming it, and loads only
    /// together with libtorch_cuda.so.</param>
    private void LoadWithNeeded(string path, IReadOnlyList<string> folders, bool isNeeded)
    {
        var name = Path.GetFileName(path);
        if (_handles.ContainsKey(name)) return;
        _handles[name] = 0;
        using (var stream = File.OpenRead(path))
        {
            foreach (var needed in Inspect(stream, path).Needed)
            {
                if (needed.Contains('/')) continue;
                if (name == "libtorch_cuda.so" && needed.StartsWith("libcudart.so.", StringComparison.Ordinal) && int.TryParse(needed["libcudart.so.".Length..].Split('.')[0], out var major))
                    _cudaMajor = major;
                if (NativeFolders.Find(folders, needed) is { } file) LoadWithNeeded(file, folders, isNeeded: true);
            }
        }
        var handle = Dl.Open(path, Dl.Lazy, out var error);
        if (handle == 0 && isNeeded) return;
        if (handle == 0)
            throw new NativeRuntimeException($"The system's loader refused {name}: {error}", path, folders,
                name.Contains("cuda", StringComparison.Ordinal) || error.Contains("cuda", StringComparison.Ordinal) || error.Contains("nvidia", StringComparison.Ordinal)
                    ? "complete the CUDA install of PyTorch (its nvidia-* packages lie in site-packages/nvidia), or use a CPU build"
                    : "restore or reinstall the native package (dotnet restore --force), or the Python install of PyTorch");
        _handles[name] = handle;
        _loaded.Add(path);
    }

    private (int Major, int Minor)? LibtorchVersion(LibtorchInstall libtorch)
    {
        // uint64_t aoti_torch_abi_version(): major, minor, patch, tweak in the four bytes from the top, then zeros
        var handle = _handles.GetValueOrDefault("libtorch_cpu.so");
        if (handle == 0) handle = Dl.Open("libtorch_cpu.so", Dl.Lazy | Dl.NoLoad, out _);
        (int Major, int Minor)? version = null;
        if (handle != 0 && NativeLibrary.TryGetExport(handle, "aoti_torch_abi_version", out var function))
        {
            ulong packed;
            unsafe { packed = ((delegate* unmanaged[Cdecl]<ulong>)function)(); }
            version = ((int)(packed >> 56), (int)(packed >> 48) & 0xff);
        }
        if (version is { } v && LibtorchInstall.Supports(v.Major, v.Minor)) return version;
        throw new NativeRuntimeException(
            $"The libtorch of {libtorch.Source} {(version is { } other ? $"is {other.Major}.{other.Minor}" : "does not say its version")}; its binary interface is not that of this TorchSharp.",
            $"libtorch {LibtorchInstall.SupportedVersions}", libtorch.SearchFolders,
            $"use the native package of TorchSharp's own version, or name a PyTorch {LibtorchInstall.SupportedVersions} by {LibtorchInstall.Variable}");
    }

    /// <summary>Loads TorchSharp's library, patched or not; returns the patched copy's path.</summary>
    private string? LoadBinding(string binding, byte[] original, VersionPatch.Result? plan, LibtorchInstall libtorch)
    {
        string? copy = null;
        var tried = new List<string>();
        nint handle = 0;
        var error = "";
        if (plan is null) handle = OpenBinding(binding, tried, out error);
        else
        {
            if (PatchCache.Folder(Environment.GetEnvironmentVariable) is { } folder)
            {
                copy = PatchCache.FileFor(folder, original, plan.Versions);
                try
                {
                    PatchCache.Put(copy, plan.Bytes);
                    handle = OpenBinding(copy, tried, out error);
                }
                catch (Exception e) when (e is IOException or UnauthorizedAccessException)
                {
                    tried.Add($"{copy} ({e.Message})");
                }
            }
            if (handle == 0) (handle, copy) = OpenPrivateCopy(plan.Bytes, tried, ref error);
        }
        if (handle != 0)
        {
            _loaded.Add(copy ?? binding);
            return copy;
        }
        throw new NativeRuntimeException($"{Binding} could not be loaded: {(error.Length > 0 ? error : "no folder for its patched copy can be written")}", Binding, tried,
            error.Contains("undefined symbol", StringComparison.Ordinal)
                ? $"the libtorch of {libtorch.Source} lacks that symbol: use the native package of TorchSharp's own version, or PyTorch {LibtorchInstall.SupportedVersions}"
                : "set MAMBAVL_CACHE to a folder that can be written and that programs may be run from (not mounted noexec)");
    }

    private static nint OpenBinding(string file, List<string> tried, out string error)
    {
        var handle = Dl.Open(file, Dl.Now, out error);
        if (handle == 0) tried.Add(error.StartsWith(file, StringComparison.Ordinal) ? error : $"{file}: {error}");
        return handle;
    }

    // For a system without a writable cache folder. The loaded library needs its file no longer.
    private static (nint Handle, string? Copy) OpenPrivateCopy(byte[] bytes, List<string> tried, ref string error)
    {
        string? folder = null;
        try
        {
            folder = Directory.CreateTempSubdirectory("mambavl-").FullName;
            var file = Path.Combine(folder, Binding);
            File.WriteAllBytes(file, bytes);
            var handle = OpenBinding(file, tried, out error);
            return (handle, handle == 0 ? null : $"{file} (private to this process, deleted after loading)");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            tried.Add($"{Path.GetTempPath()} ({e.Message})");
            return default;
        }
        finally
        {
            if (folder is not null && Directory.Exists(folder)) Directory.Delete(folder, recursive: true);
        }
    }

    private static NativeState LoadElsewhere()
    {
        if (Environment.GetEnvironmentVariable(LibtorchInstall.Variable) is { Length: > 0 } named)
            throw new NativeRuntimeException($"{LibtorchInstall.Variable} is '{named}'; it is read on Linux only.", LibtorchInstall.Variable, [],
                "unset it, and use the native package TorchSharp-cpu or TorchSharp-cuda-windows");
        var (binding, libtorch) = OperatingSystem.IsWindows() ? ("LibTorchSharp.dll", "torch_cpu.dll") : ("libLibTorchSharp.dylib", "libtorch_cpu.dylib");
        var folders = NativeFolders.Candidates();
        var assembly = typeof(torch).Assembly;
        NativeLibrary.TryLoad("torch_cpu", assembly, null, out _);
        if (!NativeLibrary.TryLoad("LibTorchSharp", assembly, null, out _))
        {
            var missing = ((string[])[binding, libtorch]).Where(f => NativeFolders.Find(folders, f) is null).ToList();
            throw new NativeRuntimeException(
                missing.Count > 0 ? $"{string.Join(" and ", missing)} for {NativeFolders.Rid} not found." : $"{binding} is there, and the system's loader refused it or a library that it needs.",
                $"{binding}, {libtorch}", folders,
                missing.Count > 0 ? AddPackage : OperatingSystem.IsWindows() ? "install the Microsoft Visual C++ Redistributable (x64), and a native package for this architecture" : AddPackage);
        }
        return new NativeState { Binding = NativeFolders.Find(folders, binding), Loaded = [.. ((string?[])[NativeFolders.Find(folders, libtorch), NativeFolders.Find(folders, binding)]).OfType<string>()] };
    }

    /// <summary>Lets TorchSharp find what is loaded, so that a failure shows here with a reason.</summary>
    private static void StartTorchSharp(NativeState state)
    {
        try
        {
            RuntimeHelpers.RunClassConstructor(typeof(torch).TypeHandle);
        }
        catch (TypeInitializationException e)
        {
            throw new NativeRuntimeException(
                "The native libraries are loaded, and TorchSharp did not start. Most often the application used TorchSharp before MambaVL: the first failure of TorchSharp stays for the whole process." +
                $" ({e.InnerException?.Message.Split('\n')[0]})",
                "TorchSharp's native library", state.Loaded, "call MambaVL.Runtime.EnsureLoaded() as the application's first line", e);
        }
    }

    private static ElfFile Inspect(Stream stream, string path)
    {
        ElfFile elf;
        try
        {
            elf = new ElfFile(stream);
        }
        catch (InvalidDataException e)
        {
            throw new NativeRuntimeException($"{path} is {e.Message}.", $"a shared library for {NativeFolders.Rid}", [path],
                "restore or reinstall the package that it came with (dotnet restore --force; pip install --force-reinstall torch)", e);
        }
        var expected = RuntimeInformation.ProcessArchitecture switch { Architecture.X64 => ElfFile.X64, Architecture.Arm64 => ElfFile.Arm64, _ => (ushort)0 };
        if (elf.Machine == expected) return elf;
        throw new NativeRuntimeException($"{path} is a library for {ElfFile.MachineName(elf.Machine)}; this process is {NativeFolders.Rid}.",
            $"a shared library for {NativeFolders.Rid}", [path], $"install the package for {NativeFolders.Rid}, or run the .NET runtime of the library's architecture");
    }
}
