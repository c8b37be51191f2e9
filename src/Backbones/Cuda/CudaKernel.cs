using System.Runtime.CompilerServices;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>How a kernel is spread: blocks, threads of a block, and dynamic shared memory.</summary>
/// <param name="Grid">Blocks.</param>
/// <param name="Block">Threads of a block.</param>
/// <param name="SharedBytes">Dynamic shared memory of a block, in bytes.</param>
/// <param name="Overlap">Whether it may start before the kernel ahead of it has ended; it then has to wait by itself, with
/// griddepcontrol.wait, before it reads what that one wrote. Without effect below compute capability 9.0.</param>
internal readonly record struct Launch((int X, int Y, int Z) Grid, (int X, int Y) Block, int SharedBytes = 0, bool Overlap = false)
{
    public Launch(int grid, int block, int sharedBytes = 0, bool overlap = false) : this((grid, 1, 1), (block, 1), sharedBytes, overlap)
    {
    }
}

/// <summary>A compiled kernel. It takes one argument: a struct that is laid out alike in C# and in CUDA C++.</summary>
internal sealed unsafe class CudaKernel
{
    private const int SharedCarveout = 9, MaxDynamicSharedBytes = 8, RegisterCount = 4, LocalBytes = 3, MostThreads = 0; // CUfunction_attribute

    private readonly nint _function;
    private readonly Lock _attributes = new();
    private int _sharedBytes; // what was allowed: of its own accord a kernel gets 48 KB less its static shared memory
    private bool _prefersShared;

    internal CudaKernel(CudaGpu gpu, string name, nint function) => (Gpu, Name, _function) = (gpu, name, function);

    /// <summary>The GPU that it was compiled for.</summary>
    public CudaGpu Gpu { get; }

    /// <summary>Its file and name.</summary>
    public string Name { get; }

    /// <summary>Registers of a thread.</summary>
    public int Registers => Attribute(RegisterCount);

    /// <summary>Bytes of a thread's local memory: spilled registers and arrays indexed at run time.</summary>
    public int SpilledBytes => Attribute(LocalBytes);

    /// <summary>The most threads that a block of it may have.</summary>
    public int MaxThreads => Attribute(MostThreads);

    /// <summary>Puts the kernel into a stream. Returns at once.</summary>
    /// <param name="stream">The stream, see <see cref="CudaStream"/>.</param>
    /// <param name="launch">How it is spread.</param>
    /// <param name="arguments">Copied before this returns. The tensors behind its pointers must stay until the kernel has run;
    /// libtorch's allocator sees to that for tensors of the same stream.</param>
    /// <exception cref="CudaException">The driver refuses the launch, or a kernel ahead of it has failed.</exception>
    public void Run<T>(nint stream, Launch launch, in T arguments) where T : unmanaged
    {
        using var scope = Gpu.Enter();
        if (launch.SharedBytes > _sharedBytes) AllowShared(launch.SharedBytes);
        fixed (T* p = &arguments)
        {
            void* argument = p;
            var attribute = new LaunchAttribute { Id = LaunchAttribute.ProgrammaticStreamSerialization, Value = 1 };
            var config = new LaunchConfig
            {
                GridX = (uint)launch.Grid.X, GridY = (uint)launch.Grid.Y, GridZ = (uint)launch.Grid.Z,
                BlockX = (uint)launch.Block.X, BlockY = (uint)launch.Block.Y, BlockZ = 1,
                SharedBytes = (uint)launch.SharedBytes, Stream = stream,
                Attributes = &attribute, AttributeCount = launch.Overlap && Gpu.Capability >= 90 ? 1u : 0u,
            };
            var status = Gpu.Api.cuLaunchKernelEx(&config, _function, &argument, null);
            if (status != 0)
                throw CudaFaults.Error(Gpu, status, $"launching {Name}", $"cuda:{Gpu.Index} refused to launch {Name} with grid {launch.Grid}, block {launch.Block} (at most {MaxThreads} threads) and {launch.SharedBytes} bytes of shared memory");
        }
        CudaFaults.Launched(this, stream);
    }

    /// <summary>Asks for all of a multiprocessor's first-level memory as shared memory, whatever this kernel takes of it. Kernels
    /// that overlap want the same division: a multiprocessor changes it only when it is idle. A wish, not an order.</summary>
    public void PreferShared()
    {
        if (_prefersShared) return;
        using var scope = Gpu.Enter();
        Gpu.Api.cuFuncSetAttribute(_function, SharedCarveout, 100);
        _prefersShared = true;
    }

    /// <summary>How many blocks of this kind a multiprocessor holds at once.</summary>
    public int BlocksPerMultiprocessor(int threads, int sharedBytes = 0)
    {
        using var scope = Gpu.Enter();
        if (sharedBytes > _sharedBytes) AllowShared(sharedBytes);
        int blocks = 0;
        var status = Gpu.Api.cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, _function, threads, (nuint)sharedBytes);
        if (status != 0) throw new CudaException($"{Name} with {threads} threads and {sharedBytes} bytes of shared memory: {Gpu.Api.Meaning(status)}.");
        return blocks;
    }

    private void AllowShared(int bytes)
    {
        using var held = _attributes.EnterScope();
        if (bytes <= _sharedBytes) return;
        var status = Gpu.Api.cuFuncSetAttribute(_function, MaxDynamicSharedBytes, bytes);
        if (status != 0) throw new CudaException($"{Name} asks for {bytes} bytes of shared memory; cuda:{Gpu.Index} gives a block at most {Gpu.SharedBytes}: {Gpu.Api.Meaning(status)}.");
        _sharedBytes = bytes;
    }

    private int Attribute(int attribute)
    {
        using var scope = Gpu.Enter();
        int value = 0;
        Gpu.Api.cuFuncGetAttribute(&value, attribute, _function);
        return value;
    }
}
