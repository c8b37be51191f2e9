using System.Collections.Concurrent;
using System.Runtime.InteropServices;

namespace MambaVL.Cuda;

/// <summary>Names the kernel behind a fault. A kernel runs long after its launch has returned, and CUDA reports its failure to
/// whoever calls next, which may be libtorch. So the launches of each stream are remembered, and which of them have ended
/// (<see cref="LaunchLog"/>); an error says which had not. With <c>MAMBAVL_CUDA_SYNC=1</c> every launch is waited for, and the error
/// is about that kernel alone.</summary>
internal static unsafe class CudaFaults
{
    /// <summary>The environment variable; read once.</summary>
    public const string Variable = "MAMBAVL_CUDA_SYNC";

    /// <summary>Whether every launch is waited for. Nothing can be recorded as a graph then.</summary>
    public static bool Synchronous { get; } = Environment.GetEnvironmentVariable(Variable) == "1";

    // Errors of a kernel that ran, rather than of a launch that was refused (cuda.h): the context is lost after them.
    private static readonly HashSet<int> Faults = [700, 702, 710, 713, 714, 715, 716, 717, 718, 719, 999];

    private const string Lost = "The process can use this GPU no more; start it again.";

    private static readonly ConcurrentDictionary<(CudaGpu Gpu, nint Stream), LaunchLog> Logs = new();

    [ThreadStatic]
    private static List<string>? _recorded;

    /// <summary>The kernels that the calling thread records into a graph: they run later, and cannot be waited for. Null where
    /// launches run.</summary>
    public static List<string>? Recorded { set => _recorded = value; }

    /// <summary>Remembers a launch; in synchronous mode waits for it. The GPU's context is current.</summary>
    public static void Launched(CudaKernel kernel, nint stream)
    {
        if (_recorded is { } recorded)
        {
            recorded.Add(kernel.Name);
            return;
        }
        Log(kernel.Gpu, stream).Add(kernel.Name);
        if (!Synchronous) return;
        var status = kernel.Gpu.Api.cuStreamSynchronize(stream);
        if (status != 0) throw new CudaException($"The kernel {kernel.Name} failed on cuda:{kernel.Gpu.Index}: {kernel.Gpu.Api.Meaning(status)}. {Lost}");
    }

    /// <summary>Remembers a graph that was started; in synchronous mode waits for it. The GPU's context is current.</summary>
    /// <param name="gpu">Where.</param>
    /// <param name="graph">What it is called, and its kernels.</param>
    /// <param name="stream">The stream.</param>
    public static void Launched(CudaGpu gpu, string graph, nint stream)
    {
        Log(gpu, stream).Add(graph);
        if (!Synchronous) return;
        var status = gpu.Api.cuStreamSynchronize(stream);
        if (status != 0) throw new CudaException($"A kernel of {graph} failed on cuda:{gpu.Index}: {gpu.Api.Meaning(status)}. {Lost}");
    }

    /// <summary>Waits for a stream; a fault in it names the kernels.</summary>
    public static void Synchronize(CudaGpu gpu, nint stream)
    {
        using var scope = gpu.Enter();
        var status = gpu.Api.cuStreamSynchronize(stream);
        if (status != 0) throw new CudaException(Explain(gpu, status, "waiting for the GPU"));
    }

    /// <summary>The error of a call that put work into a stream.</summary>
    /// <param name="gpu">Where.</param>
    /// <param name="status">What the call gave.</param>
    /// <param name="doing">What it was to do, for a fault of an earlier kernel.</param>
    /// <param name="refused">What to say where the call itself was at fault.</param>
    public static CudaException Error(CudaGpu gpu, int status, string doing, string refused)
        => new(Faults.Contains(status) ? Explain(gpu, status, doing) : $"{refused}: {gpu.Api.Meaning(status)}.");

    /// <summary>What to throw for an error that libtorch raised because a kernel had failed on a GPU: it names the kernels. Null for
    /// any other error. To be asked wherever work on a GPU ends for the caller: <c>catch (Exception e) when (CudaFaults.Behind(e)
    /// is { } fault) { throw fault; }</c>.</summary>
    public static CudaException? Behind(Exception e)
    {
        if (e is not ExternalException) return null; // what TorchSharp throws
        foreach (var (gpu, stream) in Logs.Keys)
        {
            // After a fault every call gives it again, at once.
            using var scope = gpu.Enter();
            var status = gpu.Api.cuStreamSynchronize(stream);
            if (Faults.Contains(status)) return new(Explain(gpu, status, "libtorch called the GPU"), e);
        }
        return null;
    }

    private static LaunchLog Log(CudaGpu gpu, nint stream) => Logs.TryGetValue((gpu, stream), out var log) ? log
        : Logs.GetOrAdd((gpu, stream), static key => new LaunchLog(new MarkedStream(key.Gpu, key.Stream).Mark));

    private static string Explain(CudaGpu gpu, int status, string when)
    {
        var suspects = Logs.Where(l => l.Key.Gpu == gpu).Select(l => l.Value.Suspects()).ToList();
        return $"A kernel failed on cuda:{gpu.Index}, and it showed when {when}: {gpu.Api.Meaning(status)}. {Describe([.. suspects.SelectMany(s => s.Names)], suspects.All(s => s.AreAll))} {Lost}";
    }

    /// <summary>A sentence about the launches that may have failed.</summary>
    /// <param name="names">These, the oldest first.</param>
    /// <param name="areAll">Whether it can have been no other of this project's.</param>
    internal static string Describe(IReadOnlyList<string> names, bool areAll)
    {
        if (names.Count == 0) return "All kernels of this project had ended: it was one of libtorch's.";
        string[] distinct = [.. names.Distinct()];
        var which = distinct.Length == 1 ? distinct[0] : $"one of {string.Join(", ", distinct)} (the oldest first)";
        return $"It was {which}, {(areAll ? "" : "one launched before, ")}or one of libtorch's at that place."
            + (distinct.Length == 1 && areAll ? "" : $" Run once more with {Variable}=1: the error then names the one.");
    }

    /// <summary>Page-locked memory that a stream writes numbers to as its work gets there: readable when the GPU is lost.</summary>
    private sealed class MarkedStream
    {
        private const int DeviceMap = 2, Portable = 1; // CU_MEMHOSTALLOC

        private readonly CudaGpu _gpu;
        private readonly nint _stream;
        private readonly uint* _reached; // never freed: the GPU may write to it for as long as there is a context

        public MarkedStream(CudaGpu gpu, nint stream)
        {
            (_gpu, _stream) = (gpu, stream);
            void* memory = null;
            if (gpu.Api.cuMemHostAlloc(&memory, sizeof(uint), Portable | DeviceMap) != 0) return;
            _reached = (uint*)memory;
            *_reached = 0;
        }

        /// <summary>Has the stream write a number when it comes here.</summary>
        /// <returns>The number that it wrote last; null where it writes none.</returns>
        public uint? Mark(uint? number)
        {
            if (_reached == null) return null;
            if (number is { } value && _gpu.Api.cuStreamWriteValue32_v2(_stream, (ulong)_reached, value, 0) != 0) return null;
            return Volatile.Read(ref *_reached);
        }
    }
}
