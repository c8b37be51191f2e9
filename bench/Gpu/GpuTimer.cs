using System.Diagnostics;
using MambaVL.Cuda;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Bench;

/// <summary>Times work of one GPU, in milliseconds.</summary>
internal sealed unsafe class GpuTimer : IDisposable
{
    private const int Batch = 8, WarmUps = 3, ClockRate = 13; // CU_DEVICE_ATTRIBUTE_CLOCK_RATE

    private readonly CudaGpu _gpu;
    private readonly nint[] _events = new nint[2 * Batch];
    private readonly CudaKernel _sleep;

    public GpuTimer(CudaGpu gpu)
    {
        _gpu = gpu;
        using var scope = gpu.Enter();
        for (var i = 0; i < _events.Length; i++)
            fixed (nint* p = &_events[i]) Check(gpu.Api.cuEventCreate(p, 0), "cuEventCreate");
        int device = 0, kilohertz = 0;
        Check(gpu.Api.cuDeviceGet(&device, gpu.Index), "cuDeviceGet");
        Check(gpu.Api.cuDeviceGetAttribute(&kilohertz, ClockRate, device), "cuDeviceGetAttribute");
        Kilohertz = kilohertz;
        _sleep = gpu.Kernel("sleep.cu", "sleep");
    }

    /// <summary>The highest clock, in ticks a millisecond.</summary>
    public int Kilohertz { get; }

    /// <summary>What the GPU itself takes. The events of a batch are put behind a kernel that sleeps, so that the host, which needs
    /// some 10 us for a launch, is ahead of the GPU when they pass. PyTorch's side waits behind one too (common.py): work in its
    /// place, such as matrix products, would take the GPU to its limit of power, and what is timed would run at a lower clock.</summary>
    /// <param name="repeats">Timed runs.</param>
    /// <param name="run">Puts the i-th run into the stream.</param>
    public Timing Kernels(int repeats, Action<int> run)
    {
        var stream = CudaStream.Current(_gpu.Index);
        for (var i = 0; i < WarmUps; i++) run(i);
        Wait();
        var clock = Stopwatch.StartNew();
        for (var i = 0; i < Batch; i++) run(i);
        var host = clock.Elapsed.TotalMilliseconds;
        Wait();

        var times = new List<double>();
        for (var done = 0; done < repeats; done += Batch)
        {
            _sleep.Run(stream, new Launch(1, 1), new SleepArguments((long)((2 * host + 1) * Kilohertz)));
            for (var i = 0; i < Batch; i++)
            {
                Record(2 * i);
                run(done + i);
                Record(2 * i + 1);
            }
            Wait();
            for (var i = 0; i < Batch; i++)
            {
                float milliseconds = 0;
                Check(_gpu.Api.cuEventElapsedTime(&milliseconds, _events[2 * i], _events[2 * i + 1]), "cuEventElapsedTime");
                times.Add(milliseconds);
            }
        }
        return Timing.Of(times.Take(repeats));

        void Record(int e) => Check(_gpu.Api.cuEventRecord(_events[e], stream), "cuEventRecord");
    }

    /// <summary>What a caller waits for: host and GPU, from the call to the result.</summary>
    public Timing Wall(int repeats, Action<int> run, int warmUps = 0)
    {
        for (var i = 0; i < warmUps; i++) run(i);
        Wait();
        var times = new List<double>();
        for (var i = 0; i < repeats; i++)
        {
            var start = Stopwatch.GetTimestamp();
            run(i);
            Wait();
            times.Add(Stopwatch.GetElapsedTime(start).TotalMilliseconds);
        }
        return Timing.Of(times);
    }

    /// <summary>Waits until the GPU has done everything.</summary>
    public void Wait() => cuda.synchronize();

    public void Dispose()
    {
        using var scope = _gpu.Enter();
        foreach (var e in _events) _gpu.Api.cuEventDestroy_v2(e);
    }

    /// <summary>struct Arguments of sleep.cu.</summary>
    private readonly record struct SleepArguments(long Ticks);

    private void Check(int status, string call)
    {
        if (status != 0) throw new CudaException($"{call} gave {_gpu.Api.Meaning(status)}.");
    }
}
