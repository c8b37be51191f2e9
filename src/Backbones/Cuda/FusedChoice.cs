using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>The one place where the models' layers choose between this project's kernels and tensor operations: the kernels
/// wherever they take the tensor, unless the environment variable <c>MAMBAVL_FUSED</c>, which is read at every forward pass,
/// asks for tensor operations.</summary>
internal static class FusedChoice
{
    /// <summary>The environment variable: <c>cuda</c> or <c>reference</c>.</summary>
    public const string Variable = "MAMBAVL_FUSED";

    /// <summary>The GPU whose kernels take tensors like this one; null where tensor operations are to run.</summary>
    /// <exception cref="InvalidOperationException">The variable has another value.</exception>
    public static CudaGpu? For(Tensor x)
    {
        if (Environment.GetEnvironmentVariable(Variable) is { Length: > 0 } forced && forced != "cuda")
            return forced == "reference" ? null : throw new InvalidOperationException($"{Variable} is '{forced}'; expected cuda or reference, or not set.");
        return x.device_type == DeviceType.CUDA && x.dtype is ScalarType.Float32 or ScalarType.BFloat16 or ScalarType.Float16
            ? CudaGpu.TryGet(x.device_index, out _) : null;
    }
}
