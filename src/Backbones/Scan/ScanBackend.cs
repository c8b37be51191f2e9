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

    private static readonly HashSet<(DeviceType, ScanBackend)> _logged = [];

    private ScanBackend(string name, Func<ScanArguments, (Tensor output, Tensor lastState)> run) => (Name, Run) = (name, run);

    /// <summary>What <c>MAMBAVL_SCAN</c> calls it.</summary>
    public string Name { get; }

    /// <summary>Where the first choice for each kind of device is logged; silent by default.</summary>
    public static ILogger Logger { get; set; } = NullLogger.Instance;

    internal Func<ScanArguments, (Tensor output, Tensor lastState)> Run { get; }

    /// <summary>The backend for tensors of this device and type.</summary>
    /// <param name="device">Where the tensors are.</param>
    /// <param name="type">The type of u.</param>
    /// <exception cref="InvalidOperationException"><c>MAMBAVL_SCAN</c> has an unknown value, or names a backend that
    /// does not run these tensors.</exception>
    /// <exception cref="NotSupportedException"><c>MAMBAVL_SCAN</c> is <c>cuda</c>, which this build has not.</exception>
    public static ScanBackend For(DeviceType device, ScalarType type)
    {
        var forced = Environment.GetEnvironmentVariable(Variable);
        var chosen = Choose(forced, device, type);
        lock (_logged)
        {
            if (_logged.Add((device, chosen)))
                Logger.LogInformation("Selective scan on {Device}: {Backend}{Why}.",
                    device, chosen.Name, string.IsNullOrEmpty(forced) ? "" : $" ({Variable}={forced})");
        }
        return chosen;
    }

    // The CUDA kernel belongs here: one more property above, and its line in each of the two switches below.
    internal static ScanBackend Choose(string? forced, DeviceType device, ScalarType type) => forced switch
    {
        null or "" => device switch
        {
            DeviceType.CPU when type != ScalarType.Float64 => Cpu,
            _ => Reference,
        },
        "reference" => Reference,
        "cpu" when device == DeviceType.CPU && type != ScalarType.Float64 => Cpu,
        "cpu" => throw new InvalidOperationException(
            $"{Variable}=cpu takes Float32 and BFloat16 tensors on the CPU; these are {type} on {device}. Unset {Variable}, or set it to reference."),
        "cuda" => throw new NotSupportedException(
            $"{Variable}=cuda, but this build has no CUDA kernel of the selective scan. Unset {Variable}: tensors on a GPU then run through the reference."),
        _ => throw new InvalidOperationException($"{Variable} is '{forced}'; expected reference, cpu or cuda, or not set."),
    };

    /// <summary>The name.</summary>
    public override string ToString() => Name;
}
