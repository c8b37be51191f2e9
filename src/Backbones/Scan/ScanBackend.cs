using MambaVL.Cuda;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Logging.Abstractions;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Scan;

/// <summary>
/// The one place where an implementation of the selective scan is chosen: by device and type, or by the environment
/// variable <c>MAMBAVL_SCAN</c> (<c>reference</c>, <c>cpu</c> or <c>cuda</c>), which is read at every call.
/// </summary>
public sealed class ScanBackend
{
    /// <summary>The environment variable that forces a backend.</summary>
    public const string Variable = "MAMBAVL_SCAN";

    /// <summary>A loop of tensor operations: any device, any type, slow.</summary>
    public static ScanBackend Reference { get; } = new("reference", ReferenceScan.Run);

    /// <summary>Vectors over channels on all cores: float32 and bfloat16 tensors on the CPU.</summary>
    public static ScanBackend Cpu { get; } = new("cpu", CpuScan.Run);

    /// <summary>Kernels compiled for the GPU at hand: float32, bfloat16 and float16 tensors on it.</summary>
    public static ScanBackend Cuda { get; } = new("cuda", CudaScan.Run);

    private static readonly HashSet<(DeviceType, ScanBackend)> _logged = [];

    private ScanBackend(string name, Func<ScanArguments, (Tensor output, Tensor lastState)> run) => (Name, Run) = (name, run);

    /// <summary>What <c>MAMBAVL_SCAN</c> calls it.</summary>
    public string Name { get; }

    /// <summary>Where the first choice for each kind of device is logged; silent by default.</summary>
    public static ILogger Logger { get; set; } = NullLogger.Instance;

    internal Func<ScanArguments, (Tensor output, Tensor lastState)> Run { get; }

    /// <summary>The backend for tensors of this device and type. On a GPU whose kernels cannot run (no driver, no NVRTC, an
    /// old GPU) it is the reference, and the log says why.</summary>
    /// <param name="device">Where the tensors are.</param>
    /// <param name="type">The type of u.</param>
    /// <param name="index">Which GPU.</param>
    /// <exception cref="InvalidOperationException"><c>MAMBAVL_SCAN</c> has an unknown value, or names a backend that
    /// does not run these tensors.</exception>
    public static ScanBackend For(DeviceType device, ScalarType type, int index = 0)
    {
        var forced = Environment.GetEnvironmentVariable(Variable);
        var (chosen, why) = Choose(forced, device, type, () => CudaGpu.TryGet(Math.Max(0, index), out var problem) is null ? problem : null);
        lock (_logged)
        {
            if (_logged.Add((device, chosen)))
                Logger.Log(why is null ? LogLevel.Information : LogLevel.Warning, "Selective scan on {Device}: {Backend}{Forced}{Why}.", device, chosen.Name,
                    string.IsNullOrEmpty(forced) ? "" : $" ({Variable}={forced})", why is null ? "" : $", as the CUDA kernel cannot run: {why}");
        }
        return chosen;
    }

    /// <summary>The choice, and why it is not the CUDA kernel where it would have been.</summary>
    /// <param name="forced">The variable's value.</param>
    /// <param name="device">Where the tensors are.</param>
    /// <param name="type">The type of u.</param>
    /// <param name="cudaProblem">Why CUDA kernels cannot run; null where they can.</param>
    internal static (ScanBackend Backend, string? Why) Choose(string? forced, DeviceType device, ScalarType type, Func<string?> cudaProblem)
    {
        switch (forced)
        {
            case null or "":
                if (type == ScalarType.Float64) return (Reference, null);
                return device switch
                {
                    DeviceType.CPU => (Cpu, null),
                    DeviceType.CUDA => CudaOrReference(),
                    _ => (Reference, null),
                };
            case "reference":
                return (Reference, null);
            case "cpu":
                return device == DeviceType.CPU && type != ScalarType.Float64 ? (Cpu, null) : throw new InvalidOperationException(
                    $"{Variable}=cpu takes Float32 and BFloat16 tensors on the CPU; these are {type} on {device}. Unset {Variable}, or set it to reference.");
            case "cuda":
                var choice = CudaOrReference();
                return choice.Backend == Reference || (device == DeviceType.CUDA && type != ScalarType.Float64) ? choice : throw new InvalidOperationException(
                    $"{Variable}=cuda takes Float32, BFloat16 and Float16 tensors on a GPU; these are {type} on {device}. Unset {Variable}, or set it to reference.");
            default:
                throw new InvalidOperationException($"{Variable} is '{forced}'; expected reference, cpu or cuda, or not set.");
        }

        (ScanBackend Backend, string? Why) CudaOrReference() => cudaProblem() is { } problem ? (Reference, problem) : (Cuda, null);
    }

    /// <summary>The name.</summary>
    public override string ToString() => Name;
}
