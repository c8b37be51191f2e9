using System.Runtime.InteropServices;
using System.Text;
using TorchSharp;

namespace MambaVL;

/// <summary>What <see cref="Runtime.Describe"/> found; <see cref="ToString"/> is the report to read, over several lines.</summary>
public sealed record RuntimeReport
{
    /// <summary>Name and version of the operating system.</summary>
    public required string OperatingSystem { get; init; }

    /// <summary>System and architecture of this process as NuGet names them, such as linux-x64.</summary>
    public required string RuntimeIdentifier { get; init; }

    /// <summary>Such as .NET 10.0.0.</summary>
    public required string Framework { get; init; }

    /// <summary>Version of the C library, such as 2.36; null outside Linux.</summary>
    public string? Glibc { get; init; }

    /// <summary>File of the C++ library that the process uses; null outside Linux.</summary>
    public string? StandardLibrary { get; init; }

    /// <summary>Why TorchSharp cannot be used; null where it can.</summary>
    public string? Error { get; init; }

    /// <summary>Version of the managed TorchSharp.</summary>
    public required string TorchSharpVersion { get; init; }

    /// <summary>Version of libtorch, such as 2.11.0+cu130, or 2.10 where no file says more.</summary>
    public string? LibtorchVersion { get; init; }

    /// <summary>Which package, variable or path led to this libtorch.</summary>
    public string? LibtorchSource { get; init; }

    /// <summary>The native library of TorchSharp as its package has it.</summary>
    public string? BindingFile { get; init; }

    /// <summary>The patched copy that is loaded instead; null where nothing was patched.</summary>
    public string? PatchedCopy { get; init; }

    /// <summary>What the copy changes; empty where nothing was patched.</summary>
    public IReadOnlyList<string> Patches { get; init; } = [];

    /// <summary>The native libraries that were loaded, in order, as files.</summary>
    public IReadOnlyList<string> NativeLibraries { get; init; } = [];

    /// <summary>libtorch can use CUDA here.</summary>
    public bool CudaAvailable { get; init; }

    /// <summary>Why no CUDA device is to be seen; null where one is.</summary>
    public string? CudaProblem { get; init; }

    /// <summary>The CUDA devices that the driver shows.</summary>
    public IReadOnlyList<CudaDevice> CudaDevices { get; init; } = [];

    /// <summary>Threads that libtorch uses in one operation; 0 where it is not loaded.</summary>
    public int Threads { get; init; }

    /// <summary>Environment variables that matter here and are set.</summary>
    public IReadOnlyDictionary<string, string> EnvironmentVariables { get; init; } = new Dictionary<string, string>();

    private static readonly string[] Variables =
        ["MAMBAVL_LIBTORCH_DIR", "MAMBAVL_CACHE", "MAMBAVL_SCAN", "XDG_CACHE_HOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"];

    internal static RuntimeReport Make(NativeState? state, NativeRuntimeException? error)
    {
        var driver = CudaDriver.Ask();
        var report = new RuntimeReport
        {
            OperatingSystem = RuntimeInformation.OSDescription,
            RuntimeIdentifier = NativeFolders.Rid,
            Framework = RuntimeInformation.FrameworkDescription,
            Glibc = GlibcVersion(),
            Error = error?.Message,
            TorchSharpVersion = typeof(torch).Assembly.GetName().Version?.ToString(3) ?? "unknown",
            CudaProblem = driver.Problem,
            CudaDevices = driver.Devices,
            EnvironmentVariables = Variables.Select(v => (v, Environment.GetEnvironmentVariable(v))).Where(p => !string.IsNullOrEmpty(p.Item2)).ToDictionary(p => p.v, p => p.Item2!),
        };
        return state is null
            ? report
            : report with
            {
                StandardLibrary = state.StandardLibrary is { } file ? File.ResolveLinkTarget(file, returnFinalTarget: true)?.FullName ?? file : null,
                LibtorchVersion = state.Libtorch?.Version ?? (state.LibtorchVersion is { } v ? $"{v.Major}.{v.Minor}" : torch.__version__),
                LibtorchSource = state.Libtorch?.Source ?? "found by TorchSharp",
                BindingFile = state.Binding,
                PatchedCopy = state.PatchedCopy,
                Patches = state.Changes,
                NativeLibraries = state.Loaded,
                CudaAvailable = torch.cuda.is_available(),
                Threads = torch.get_num_threads(),
            };
    }

    /// <summary>The report, over several lines.</summary>
    public override string ToString()
    {
        var text = new StringBuilder();
        Line("system", $"{OperatingSystem} ({RuntimeIdentifier}), {Framework}, {Environment.ProcessorCount} processors");
        if (Glibc is not null) Line("C library", $"glibc {Glibc}");
        if (StandardLibrary is not null) Line("C++ library", StandardLibrary);
        Line("TorchSharp", TorchSharpVersion);
        if (Error is not null) Line("not usable", Error);
        if (LibtorchSource is not null) Line("libtorch", $"{LibtorchVersion}, from {LibtorchSource}");
        if (BindingFile is not null) Line("binding", BindingFile);
        if (Error is null) Line("patched", PatchedCopy ?? "no");
        foreach (var patch in Patches) Line("", patch);
        for (var i = 0; i < NativeLibraries.Count; i++) Line(i == 0 ? "loaded" : "", NativeLibraries[i]);
        Line("CUDA", CudaAvailable ? "available" : $"not available{(CudaProblem is null ? "" : $": {CudaProblem}")}");
        foreach (var device in CudaDevices) Line("", device.ToString());
        if (Threads > 0) Line("threads", $"{Threads}");
        foreach (var (name, value) in EnvironmentVariables) Line(name, value);
        return text.ToString(0, text.Length - 1);

        void Line(string label, string value) => text.Append($"{label,-12} {value.Replace("\n", "\n             ")}\n");
    }

    private static string? GlibcVersion()
    {
        if (!System.OperatingSystem.IsLinux()) return null;
        try
        {
            return Dl.GlibcVersion();
        }
        catch (Exception e) when (e is DllNotFoundException or EntryPointNotFoundException)
        {
            return null;
        }
    }
}
