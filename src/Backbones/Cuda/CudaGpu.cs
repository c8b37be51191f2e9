using System.Collections.Concurrent;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Logging.Abstractions;

namespace MambaVL.Cuda;

/// <summary>One GPU as the kernels see it: libtorch's primary context, and the kernels compiled for it.</summary>
internal sealed unsafe class CudaGpu
{
    private const int CapabilityMajor = 75, CapabilityMinor = 76, MultiprocessorCount = 16, SharedBytesOptIn = 97; // CUdevice_attribute
    private static readonly ConcurrentDictionary<int, Lazy<(CudaGpu? Gpu, string? Problem)>> Known = new();

    private readonly ConcurrentDictionary<(string File, string Defines), Lazy<CudaModule>> _modules = new();
    private readonly DriverApi _api;

    private CudaGpu(DriverApi api, int index)
    {
        (_api, Index) = (api, index);
        int ordinal = 0;
        nint context = 0;
        Check(api.cuDeviceGet(&ordinal, index), "cuDeviceGet");
        var device = ordinal;
        // The primary context is the one that libtorch uses; it stays for the life of the process.
        Check(api.cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
        Context = context;
        (Capability, Multiprocessors, SharedBytes) = (Attribute(CapabilityMajor) * 10 + Attribute(CapabilityMinor), Attribute(MultiprocessorCount), Attribute(SharedBytesOptIn));

        int Attribute(int attribute)
        {
            int value = 0;
            Check(api.cuDeviceGetAttribute(&value, attribute, device), "cuDeviceGetAttribute");
            return value;
        }

        void Check(int status, string call)
        {
            if (status != 0) throw new CudaException($"{call} for cuda:{index} gave {api.Meaning(status)}.");
        }
    }

    /// <summary>The least compute capability that the kernels are written for, times ten.</summary>
    public const int LeastCapability = 75;

    /// <summary>Where compiles and reasons for doing without kernels are logged; silent by default.</summary>
    public static ILogger Logger { get; set; } = NullLogger.Instance;

    /// <summary>The index, as PyTorch counts.</summary>
    public int Index { get; }

    /// <summary>libtorch's primary context.</summary>
    public nint Context { get; }

    /// <summary>Compute capability times ten: 90 for 9.0.</summary>
    public int Capability { get; }

    /// <summary>How many multiprocessors there are.</summary>
    public int Multiprocessors { get; }

    /// <summary>The most shared memory that a block may ask for, in bytes.</summary>
    public int SharedBytes { get; }

    /// <summary>The driver.</summary>
    public DriverApi Api => _api;

    /// <summary>The GPU, or why kernels cannot run on it. Never throws, and asks once for each index.</summary>
    public static CudaGpu? TryGet(int index, out string? problem)
    {
        var (gpu, why) = Known.GetOrAdd(index, i => new(() => Open(i))).Value;
        problem = why;
        return gpu;
    }

    /// <summary>The GPU.</summary>
    /// <exception cref="CudaException">Kernels cannot run on it; the message says why.</exception>
    public static CudaGpu Get(int index) => TryGet(index, out var problem) ?? throw new CudaException($"The CUDA kernels cannot run on cuda:{index}: {problem}.");

    /// <summary>A kernel, compiled when it is first asked for.</summary>
    /// <param name="file">Its source, such as <c>selective_scan.cu</c>.</param>
    /// <param name="entry">Its name there (<c>extern "C"</c>).</param>
    /// <param name="defines">Macros as <c>NAME=VALUE</c>: another set is another compile.</param>
    /// <exception cref="CudaException">It does not compile or load.</exception>
    public CudaKernel Kernel(string file, string entry, params ReadOnlySpan<string> defines) => Module(file, defines).Kernel(entry);

    /// <summary>A source with a set of macros, compiled when it is first asked for; see <see cref="Kernel"/>.</summary>
    public CudaModule Module(string file, params ReadOnlySpan<string> defines)
    {
        var key = (file, defines.Length == 0 ? "" : string.Join(' ', defines!));
        return _modules.GetOrAdd(key, k => new(() => new CudaModule(this, k.File, k.Defines.Split(' ', StringSplitOptions.RemoveEmptyEntries)))).Value;
    }

    /// <summary>Makes the context current for the calling thread until the result is disposed.</summary>
    public Scope Enter()
    {
        nint current = 0;
        _api.cuCtxGetCurrent(&current);
        if (current == Context) return default;
        _api.cuCtxPushCurrent_v2(Context);
        return new(_api);
    }

    /// <summary>Free and total memory of the device, in bytes, as the driver counts: what libtorch keeps for later is not free.</summary>
    public (long Free, long Total) Memory()
    {
        nuint free = 0, total = 0;
        using var scope = Enter();
        _api.cuMemGetInfo_v2(&free, &total);
        return ((long)free, (long)total);
    }

    private static (CudaGpu?, string?) Open(int index)
    {
        if (DriverApi.Instance is not { } api) return Without(DriverApi.Problem!);
        if (Nvrtc.Instance is not { } compiler) return Without(Nvrtc.Problem!);
        try
        {
            var gpu = new CudaGpu(api, index);
            if (gpu.Capability < LeastCapability)
                return Without($"its compute capability is {gpu.Capability / 10}.{gpu.Capability % 10}, and the kernels need {LeastCapability / 10}.{LeastCapability % 10}");
            if (!compiler.Architectures.Any(a => a <= gpu.Capability && a / 10 == gpu.Capability / 10))
                return Without($"NVRTC {compiler.Version} does not compile for compute capability {gpu.Capability / 10}.{gpu.Capability % 10}; a newer libtorch brings a newer one");
            return (gpu, null);
        }
        catch (CudaException e)
        {
            return Without(e.Message);
        }

        (CudaGpu?, string?) Without(string problem)
        {
            Logger.LogWarning("No CUDA kernels on cuda:{Index}: {Problem}. Tensor operations run instead.", index, problem);
            return (null, problem);
        }
    }

    /// <summary>Gives the context back that was current before.</summary>
    public readonly ref struct Scope(DriverApi? api)
    {
        public void Dispose()
        {
            if (api is null) return;
            nint popped = 0;
            api.cuCtxPopCurrent_v2(&popped);
        }
    }
}
