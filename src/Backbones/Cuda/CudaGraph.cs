namespace MambaVL.Cuda;

/// <summary>A sequence of launches, recorded once and then started by one call. Owns the executable graph.</summary>
internal sealed unsafe class CudaGraph : IDisposable
{
    private const int NonBlocking = 1; // CU_STREAM_NON_BLOCKING
    private const int Relaxed = 2; // CU_STREAM_CAPTURE_MODE_RELAXED: other threads may go on using the GPU

    private readonly CudaGpu _gpu;
    private readonly string _name;
    private nint _executable;

    private CudaGraph(CudaGpu gpu, string name, nint executable) => (_gpu, _name, _executable) = (gpu, name, executable);

    /// <summary>Records what <paramref name="launches"/> puts into the stream that it is given; nothing runs yet. Every kernel
    /// must have been compiled before, and no tensor may be made meanwhile.</summary>
    /// <exception cref="CudaException">A launch was refused, or the graph cannot be made.</exception>
    public static CudaGraph Record(CudaGpu gpu, string name, Action<nint> launches)
    {
        using var scope = gpu.Enter();
        var api = gpu.Api;
        nint stream = 0, graph = 0, executable = 0;
        var kernels = new List<string>();
        // Not tied to the default stream: work that another thread puts there meanwhile would end the capture.
        Check(api.cuStreamCreate(&stream, NonBlocking), "cuStreamCreate");
        try
        {
            Check(api.cuStreamBeginCapture_v2(stream, Relaxed), "cuStreamBeginCapture");
            try
            {
                CudaFaults.Recorded = kernels;
                launches(stream);
            }
            finally
            {
                CudaFaults.Recorded = null;
                var status = api.cuStreamEndCapture(stream, &graph);
                if (status != 0 && graph != 0)
                {
                    api.cuGraphDestroy(graph);
                    graph = 0;
                }
            }
            if (graph == 0) throw new CudaException($"Recording {name} as a CUDA graph failed.");
            Check(api.cuGraphInstantiateWithFlags(&executable, graph, 0), "cuGraphInstantiate");
            return new(gpu, $"the graph {name} ({string.Join(", ", kernels.Distinct())})", executable);
        }
        finally
        {
            if (graph != 0) api.cuGraphDestroy(graph);
            api.cuStreamDestroy_v2(stream);
        }

        void Check(int status, string call)
        {
            if (status != 0) throw new CudaException($"{call} for {name} gave {api.Meaning(status)}.");
        }
    }

    /// <summary>Starts it in a stream.</summary>
    /// <exception cref="CudaException">The driver refuses, or a kernel before it has failed.</exception>
    public void Run(nint stream)
    {
        ObjectDisposedException.ThrowIf(_executable == 0, this);
        using var scope = _gpu.Enter();
        var status = _gpu.Api.cuGraphLaunch(_executable, stream);
        if (status != 0) throw CudaFaults.Error(_gpu, status, $"starting {_name}", $"cuda:{_gpu.Index} refused to start {_name}");
        CudaFaults.Launched(_gpu, _name, stream);
    }

    public void Dispose()
    {
        if (_executable == 0) return;
        using var scope = _gpu.Enter();
        _gpu.Api.cuGraphExecDestroy(_executable);
        _executable = 0;
    }
}
