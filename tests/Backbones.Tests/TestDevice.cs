using MambaVL.Checkpoints;
using static TorchSharp.torch;

namespace MambaVL.Tests;

/// <summary>Where the parity tests run: the CPU, or the device that <c>MAMBAVL_TEST_DEVICE</c> names, such as <c>cuda</c>. The
/// tolerances are the same: on a GPU, float32 products and convolutions are computed in float32, and not in TF32.</summary>
internal static class TestDevice
{
    public const string Variable = "MAMBAVL_TEST_DEVICE";

    public static readonly Device Current = Find();

    /// <summary>The tensor, on the device.</summary>
    public static Tensor ReadToDevice(this Checkpoint checkpoint, string name) => checkpoint.Read(name, device: Current);

    private static Device Find()
    {
        if (Environment.GetEnvironmentVariable(Variable) is not { Length: > 0 } name) return CPU;
        var found = device(name);
        if (found.type != TorchSharp.DeviceType.CUDA) return found;
        Runtime.EnsureCuda(Math.Max(0, found.index));
        backends.cuda.matmul.allow_tf32 = false;
        backends.cudnn.allow_tf32 = false;
        return found;
    }
}
