using MambaVL.Checkpoints;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>What kernels need to know of tensors.</summary>
internal static unsafe class CudaTensor
{
    private static readonly delegate* unmanaged[Cdecl]<nint, nint> Data = (delegate* unmanaged[Cdecl]<nint, nint>)NativeTensor.Export("THSTensor_data");

    /// <summary>The device address of the first element; 0 for no tensor. Valid while the tensor lives.</summary>
    public static nint Pointer(Tensor? t) => t is null ? 0 : Data(t.Handle);

    /// <summary>Whether two tensors have one shape. <see cref="Tensor.shape"/> costs over a microsecond, a single length a hundredth of that.</summary>
    public static bool SameShape(Tensor a, Tensor b)
    {
        var axes = (int)a.dim();
        if (axes != b.dim()) return false;
        for (var axis = 0; axis < axes; axis++)
            if (a.size(axis) != b.size(axis)) return false;
        return true;
    }

    /// <summary>What kernels call a type (the macro of common.cuh): float, bf16 or f16.</summary>
    /// <exception cref="ArgumentException">The type is another.</exception>
    public static string TypeName(ScalarType type) => type switch
    {
        ScalarType.Float32 => "float",
        ScalarType.BFloat16 => "bf16",
        ScalarType.Float16 => "f16",
        _ => throw new ArgumentException($"The kernels take Float32, BFloat16 and Float16; this is {type}.", nameof(type)),
    };
}
