using System.Collections.Concurrent;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>Names the kernel behind a fault. A kernel runs long after its launch has returned, and CUDA reports its failure to
/// whoever calls next; so the launches of each GPU are remembered, and an error says which they were. With
/// <c>MAMBAVL_CUDA_SYNC=1</c> every launch is waited for, and the error is about that kernel alone.</summary>
internal static unsafe class CudaFaults
{
    /// <summary>The environment variable; read once.</summary>
    public const string Variable = "MAMBAVL_CUDA_SYNC";

    /// <summary>Whether every launch is waited for. Nothing can be recorded as a graph then.</summary>
    public static bool Synchronous { get; } = Environment.GetEnvironmentVariable(Variable) == "1";

    // Errors of a kernel that ran, rather than of a launch that was refused (cuda.h): the context is lost after them.
    private static readonly HashSet<int> Faults = [700, 702, 710, 713, 714, 715, 716, 717, 718, 719, 999];

    private static readonly ConcurrentDictionary<int, Recent> ByGpu = new();

    [ThreadStatic]
    private static bool _recording;

    /// <summary>Whether the calling thread records launches into a graph: they run later, and cannot be waited for.</summary>
    public static bool Recording { set => _recording = value; }

    /// <summary>Remembers a launch; in synchronous mode waits for it.</summary>
    public static void Launched(CudaKernel kernel, nint stream)
    {
        ByGpu.GetOrAdd(kernel.Gpu.Index, _ => new()).Add(kernel);
        if (!Synchronous || _recording) return;
        var status = kernel.Gpu.Api.cuStreamSynchronize(stream);
        if (status != 0) throw new CudaException($"The kernel {kernel.Name} failed on cuda:{kernel.Gpu.Index}: {kernel.Gpu.Api.Meaning(status)}. {Lost}");
    }

    /// <summary>In synchronous mode waits for a graph that was started.</summary>
    public static void Launched(CudaGpu gpu, string graph, nint stream)
    {
        if (!Synchronous) return;
        var status = gpu.Api.cuStreamSynchronize(stream);
        if (status != 0) throw new CudaException($"A kernel of the graph {graph} failed on cuda:{gpu.Index}: {gpu.Api.Meaning(status)}. {Lost}");
    }

    /// <summary>Waits for a stream; a fault in it names the kernels.</summary>
    public static void Synchronize(CudaGpu gpu, nint stream)
    {
        using var scope = gpu.Enter();
        var status = gpu.Api.cuStreamSynchronize(stream);
        if (status != 0) throw new CudaException(Explain(gpu, status, "waiting for the GPU"));
    }

    /// <summary>The error of a launch.</summary>
    public static void Throw(CudaKernel kernel, Launch launch, int status) => throw new CudaException(Faults.Contains(status)
        ? Explain(kernel.Gpu, status, $"launching {kernel.Name}")
        : $"cuda:{kernel.Gpu.Index} refused to launch {kernel.Name} with grid {launch.Grid}, block {launch.Block} (at most {kernel.MaxThreads} threads) and {launch.SharedBytes} bytes of shared memory: {kernel.Gpu.Api.Meaning(status)}.");

    private const string Lost = "The process can use this GPU no more; start it again.";

    private static string Explain(CudaGpu gpu, int status, string when)
    {
        var recent = ByGpu.TryGetValue(gpu.Index, out var r) ? r.Names() : [];
        return $"A kernel failed on cuda:{gpu.Index}, and it showed when {when}: {gpu.Api.Meaning(status)}. Of this project's kernels, the last launched, newest first: " +
            $"{(recent.Count == 0 ? "none" : string.Join(", ", recent))}. Run once more with {Variable}=1: the error then names the one. {Lost}";
    }

    private sealed class Recent
    {
        private readonly CudaKernel?[] _ring = new CudaKernel?[16];
        private int _next;

        public void Add(CudaKernel kernel) => _ring[Interlocked.Increment(ref _next) & 15] = kernel;

        public IReadOnlyList<string> Names()
        {
            var next = _next;
            return [.. Enumerable.Range(0, 16).Select(i => _ring[(next - i) & 15]?.Name).OfType<string>().Distinct()];
        }
    }
}
