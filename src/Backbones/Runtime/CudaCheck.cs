using System.Runtime.InteropServices;
using TorchSharp;

namespace MambaVL;

/// <summary>A CUDA device as its driver describes it.</summary>
/// <param name="Index">As PyTorch counts, after CUDA_VISIBLE_DEVICES.</param>
/// <param name="Name">Such as NVIDIA H100 80GB HBM3.</param>
/// <param name="Major">Compute capability, before the point.</param>
/// <param name="Minor">Compute capability, after the point.</param>
/// <param name="MemoryBytes">The device's memory, in bytes.</param>
public sealed record CudaDevice(int Index, string Name, int Major, int Minor, long MemoryBytes)
{
    /// <summary>One line.</summary>
    public override string ToString() => $"cuda:{Index} {Name}, compute capability {Major}.{Minor}, {MemoryBytes / (1024.0 * 1024 * 1024):0.0} GiB";
}

/// <summary>What NVIDIA's driver says, asked through its own interface so that it can be told what is missing.</summary>
/// <param name="Problem">Why there is no device to use; null where there is one.</param>
/// <param name="DriverVersion">The newest CUDA that the driver runs, such as 13000 for 13.0; 0 where there is no driver.</param>
/// <param name="Devices">The devices that this process may use.</param>
internal sealed record CudaDriver(string? Problem, int DriverVersion, IReadOnlyList<CudaDevice> Devices)
{
    public static string LibraryName => OperatingSystem.IsWindows() ? "nvcuda.dll" : "libcuda.so.1";

    public static unsafe CudaDriver Ask()
    {
        if (!NativeLibrary.TryLoad(LibraryName, out var library)) return new($"{LibraryName} is not on the system's library path", 0, []);
        // CUresult is an int; 0 is success. Names and numbers as in cuda.h.
        if (!TryGet("cuInit", out var init) || !TryGet("cuDriverGetVersion", out var getVersion) || !TryGet("cuDeviceGetCount", out var getCount) ||
            !TryGet("cuDeviceGet", out var get) || !TryGet("cuDeviceGetName", out var getName) || !TryGet("cuDeviceTotalMem_v2", out var getMemory) ||
            !TryGet("cuDeviceGetAttribute", out var getAttribute))
            return new($"{LibraryName} is not NVIDIA's driver library, or is a stub of it", 0, []);
        const int capabilityMajor = 75, capabilityMinor = 76;
        int version = 0, count = 0;
        ((delegate* unmanaged<int*, int>)getVersion)(&version);
        var status = ((delegate* unmanaged<uint, int>)init)(0);
        if (status != 0) return new($"the driver does not start: cuInit gave error {status}{Meaning(status)}", version, []);
        status = ((delegate* unmanaged<int*, int>)getCount)(&count);
        if (status != 0 || count == 0) return new($"the driver shows no device (status {status}; is CUDA_VISIBLE_DEVICES set?)", version, []);
        var devices = new List<CudaDevice>();
        var name = stackalloc byte[256];
        for (var i = 0; i < count; i++)
        {
            int device = 0, major = 0, minor = 0;
            nuint memory = 0;
            if (((delegate* unmanaged<int*, int, int>)get)(&device, i) != 0) continue;
            name[0] = 0;
            ((delegate* unmanaged<byte*, int, int, int>)getName)(name, 255, device);
            ((delegate* unmanaged<int*, int, int, int>)getAttribute)(&major, capabilityMajor, device);
            ((delegate* unmanaged<int*, int, int, int>)getAttribute)(&minor, capabilityMinor, device);
            ((delegate* unmanaged<nuint*, int, int>)getMemory)(&memory, device);
            devices.Add(new CudaDevice(i, Marshal.PtrToStringUTF8((nint)name) ?? "", major, minor, (long)memory));
        }
        return new(null, version, devices);

        bool TryGet(string export, out nint function) => NativeLibrary.TryGetExport(library, export, out function);
    }

    private static string Meaning(int status) => status switch
    {
        100 => " (no CUDA device)",
        803 => " (the driver and its kernel module differ in version: restart the machine)",
        999 => " (unknown: often a missing /dev/nvidia-uvm, or a container without --gpus)",
        _ => "",
    };
}

/// <summary>Why CUDA does not work here, in one error.</summary>
internal static class CudaCheck
{
    private const string CudaLibtorch = "set " + LibtorchInstall.Variable + " to the lib folder of a CUDA build of PyTorch " + LibtorchInstall.SupportedVersions +
        ", or build with TorchSharp-cuda-linux or TorchSharp-cuda-windows";

    public static void Ensure(NativeState state, int device)
    {
        var available = torch.cuda.is_available();
        var hasCuda = available || state.CudaMajor is not null || NativeFolders.Find(NativeFolders.Candidates(), OperatingSystem.IsWindows() ? "torch_cuda.dll" : "libtorch_cuda.so") is not null;
        var driver = CudaDriver.Ask();
        if (Explain(hasCuda, state.CudaMajor, available, driver, device, state.Loaded) is { } error) throw error;
        try
        {
            using var one = torch.ones(1, device: new torch.Device(DeviceType.CUDA, device));
            using var two = one + 1;
            if (two.item<float>() == 2f) return;
            throw new InvalidOperationException("1 + 1 came out wrong");
        }
        catch (Exception e) when (e is ExternalException or InvalidOperationException)
        {
            throw new NativeRuntimeException($"A first kernel failed on {driver.Devices.FirstOrDefault(d => d.Index == device)}: {e.Message.Split('\n')[0]}",
                "a libtorch with kernels for this device, and free memory on it", state.Loaded,
                "'no kernel image' means that this build of libtorch leaves the device's generation out: use a build for an older CUDA (cu126 has the widest range); otherwise free the device or update the driver", e);
        }
    }

    /// <summary>The first thing that stands in the way; null where nothing does.</summary>
    /// <param name="hasCuda">libtorch was built with CUDA.</param>
    /// <param name="cudaMajor">CUDA's major version that libtorch was linked with, where known.</param>
    /// <param name="available">libtorch itself says that it can use CUDA.</param>
    /// <param name="driver">What the driver says.</param>
    /// <param name="device">The device that is asked for.</param>
    /// <param name="loaded">The libraries in use.</param>
    public static NativeRuntimeException? Explain(bool hasCuda, int? cudaMajor, bool available, CudaDriver driver, int device, IReadOnlyList<string> loaded)
    {
        if (!hasCuda)
            return new("CUDA was asked for, and the libtorch in use was built without it.", "libtorch_cuda", loaded, CudaLibtorch);
        if (driver.Problem is { } problem)
            return new($"CUDA was asked for, and no NVIDIA device can be used: {problem}.", $"NVIDIA's driver ({CudaDriver.LibraryName})", ["the system's library path"],
                "install NVIDIA's driver (nvidia-smi shows whether it works); in a container, start it with --gpus all; or use the CPU");
        if (device >= driver.Devices.Count)
            return new($"Device cuda:{device} was asked for; this process sees {driver.Devices.Count}.", $"cuda:{device}", driver.Devices.Select(d => d.ToString()),
                "choose one of them, or change CUDA_VISIBLE_DEVICES");
        if (cudaMajor is { } built && driver.DriverVersion / 1000 < built)
            return new($"The driver runs CUDA up to {driver.DriverVersion / 1000}.{driver.DriverVersion % 1000 / 10}; this libtorch was built with CUDA {built}.", $"a driver for CUDA {built}", loaded,
                $"update NVIDIA's driver, or use a libtorch for CUDA {driver.DriverVersion / 1000}");
        var found = driver.Devices[device];
        var (major, minor) = Oldest(cudaMajor);
        if (found.Major < major || (found.Major == major && found.Minor < minor))
            return new($"{found} is too old for this libtorch (CUDA {cudaMajor?.ToString() ?? "12 or later"}).", $"compute capability {major}.{minor} or later",
                driver.Devices.Select(d => d.ToString()), "use a newer device, a build of PyTorch for an older CUDA, or the CPU");
        return available
            ? null
            : new("libtorch has CUDA, the driver shows the device, and libtorch still cannot use it.", $"cuda:{device}", [.. driver.Devices.Select(d => d.ToString()), .. loaded],
                "compare nvidia-smi with python -c \"import torch; torch.zeros(1).cuda()\", whose message says more");
    }

    /// <summary>The oldest compute capability that a CUDA toolkit can still build for (its release notes): 5.0 for CUDA 12, 7.5
    /// for CUDA 13. A build of libtorch may leave out more; the first kernel shows that.</summary>
    public static (int Major, int Minor) Oldest(int? cudaMajor) => cudaMajor >= 13 ? (7, 5) : (5, 0);
}
