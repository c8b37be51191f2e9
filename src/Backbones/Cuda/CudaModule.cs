using System.Collections.Concurrent;
using System.Diagnostics;
using Microsoft.Extensions.Logging;

namespace MambaVL.Cuda;

/// <summary>One source compiled for one GPU with one set of macros, and loaded. Stays for the life of the process.</summary>
internal sealed unsafe class CudaModule
{
    private readonly ConcurrentDictionary<string, CudaKernel> _kernels = new();
    private readonly CudaGpu _gpu;
    private readonly string _name;
    private readonly nint _module;

    public CudaModule(CudaGpu gpu, string file, IReadOnlyList<string> defines)
    {
        (_gpu, _name) = (gpu, file);
        var compiler = Nvrtc.Instance!;
        var cubin = CubinCache.Get(PatchCache.Folder(Environment.GetEnvironmentVariable), FileName(file, gpu.Capability, defines, compiler), () =>
        {
            var watch = Stopwatch.StartNew();
            var code = Compile(file, gpu.Capability, defines, compiler);
            CudaGpu.Logger.LogInformation("Compiled {File} ({Defines}) for sm_{Capability} in {Milliseconds} ms.", file, string.Join(' ', defines), gpu.Capability, watch.ElapsedMilliseconds);
            return code;
        });
        using var scope = gpu.Enter();
        nint module = 0;
        int status;
        fixed (byte* p = cubin) status = gpu.Api.cuModuleLoadData(&module, p);
        if (status != 0) throw new CudaException($"{file} does not load on cuda:{gpu.Index}: {gpu.Api.Meaning(status)}.");
        _module = module;
    }

    /// <summary>Machine code for one architecture; needs no GPU.</summary>
    public static byte[] Compile(string file, int capability, IReadOnlyList<string> defines, Nvrtc compiler) =>
        compiler.Compile(file, KernelSources.Read(file), KernelSources.Headers, Options(capability, defines, compiler));

    /// <summary>A kernel by its name in the source.</summary>
    public CudaKernel Kernel(string entry) => _kernels.GetOrAdd(entry, e =>
    {
        using var scope = _gpu.Enter();
        nint function = 0;
        int status;
        fixed (byte* p = System.Text.Encoding.UTF8.GetBytes(e + '\0')) status = _gpu.Api.cuModuleGetFunction(&function, _module, p);
        if (status != 0) throw new CudaException($"{_name} has no kernel '{e}': {_gpu.Api.Meaning(status)}.");
        return new(_gpu, $"{_name}:{e}", function);
    });

    /// <summary>The whole numbers of a constant in the source (<c>extern "C" __constant__ int name[]</c>).</summary>
    public int[] Numbers(string name)
    {
        using var scope = _gpu.Enter();
        ulong address = 0;
        nuint bytes = 0;
        int status;
        fixed (byte* p = System.Text.Encoding.UTF8.GetBytes(name + '\0')) status = _gpu.Api.cuModuleGetGlobal_v2(&address, &bytes, _module, p);
        var numbers = new int[(int)bytes / sizeof(int)];
        if (status == 0)
            fixed (int* p = numbers) status = _gpu.Api.cuMemcpyDtoH_v2(p, address, bytes);
        return status == 0 ? numbers : throw new CudaException($"{_name} has no constant '{name}': {_gpu.Api.Meaning(status)}.");
    }

    private static string[] Options(int capability, IReadOnlyList<string> defines, Nvrtc compiler)
    {
        // The GPU's own architecture, or the newest of its generation that this compiler knows: machine code runs on later ones of the same generation.
        var architecture = compiler.Architectures.Where(a => a <= capability && a / 10 == capability / 10).DefaultIfEmpty(capability).Max();
        // sm_90a has Hopper's own instructions. NVRTC takes a constexpr function without __device__ for the host's, unless told.
        return [$"--gpu-architecture=sm_{architecture}{(architecture == 90 ? "a" : "")}", "--std=c++17", "--device-as-default-execution-space", "--extra-device-vectorization", .. defines.Select(d => "-D" + d)];
    }

    private static string FileName(string file, int capability, IReadOnlyList<string> defines, Nvrtc compiler) =>
        $"{Path.GetFileNameWithoutExtension(file)}-{KernelSources.Hash(file, Options(capability, defines, compiler), compiler.Version)}-sm_{capability}.cubin";
}
