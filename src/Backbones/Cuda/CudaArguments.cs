using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>Checks of tensors that go to a kernel, which itself would read whatever is there.</summary>
internal static class CudaArguments
{
    /// <summary>Throws unless the tensor is on this GPU and has this type and shape.</summary>
    /// <param name="t">The tensor.</param>
    /// <param name="name">What the caller calls it.</param>
    /// <param name="gpu">Where it should be.</param>
    /// <param name="type">Its type.</param>
    /// <param name="axes">What its axes are, such as (b, e, l).</param>
    /// <param name="shape">Its shape.</param>
    /// <exception cref="ArgumentException">It has another.</exception>
    public static void Fits(Tensor t, string name, CudaGpu gpu, ScalarType type, string axes, params ReadOnlySpan<long> shape)
    {
        ArgumentNullException.ThrowIfNull(t, name);
        if (t.device_type != DeviceType.CUDA || t.device_index != gpu.Index)
            throw new ArgumentException($"{name} is on {t.device}; expected cuda:{gpu.Index}.", name);
        if (t.dtype != type) throw new ArgumentException($"{name} is {t.dtype}; expected {type}.", name);
        if (!shape.SequenceEqual(t.shape))
            throw new ArgumentException($"{name} has shape {Show(t.shape)}; expected {Show(shape)} {axes}.", name);
    }

    /// <summary>Throws unless the tensor is contiguous as well.</summary>
    /// <exception cref="ArgumentException">It is not.</exception>
    public static void FitsContiguous(Tensor t, string name, CudaGpu gpu, ScalarType type, string axes, params ReadOnlySpan<long> shape)
    {
        Fits(t, name, gpu, type, axes, shape);
        if (!t.is_contiguous()) throw new ArgumentException($"{name} has strides {Show(t.stride())}; expected a contiguous {axes}.", name);
    }

    /// <summary>Throws unless the last axis is contiguous as well; the strides of the others are free.</summary>
    /// <exception cref="ArgumentException">It is not.</exception>
    public static void FitsInTime(Tensor t, string name, CudaGpu gpu, ScalarType type, string axes, params ReadOnlySpan<long> shape)
    {
        Fits(t, name, gpu, type, axes, shape);
        if (t.shape[^1] > 1 && t.stride((int)t.dim() - 1) != 1)
            throw new ArgumentException($"{name} has strides {Show(t.stride())}; expected 1 along the last of {axes}.", name);
    }

    private static string Show(ReadOnlySpan<long> shape) => $"[{string.Join(", ", shape.ToArray())}]";
}
