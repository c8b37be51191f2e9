using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>Where a model's weights lie on one GPU, taken down anew for every batch: training and conversions put other tensors
/// in a parameter's place. What the kernels do not take is <see cref="Problem"/>.</summary>
internal sealed class DecoderWeights(int gpu, ScalarType type)
{
    private readonly List<nint> _pointers = [];

    /// <summary>The GPU's index.</summary>
    public int Gpu { get; } = gpu;

    /// <summary>The precision of the matrices.</summary>
    public ScalarType Type { get; } = type;

    /// <summary>The precision of what stays float32 in most models; null before <see cref="Wide"/> was asked.</summary>
    public ScalarType? WideType { get; private set; }

    /// <summary>The first tensor that the kernels do not take, and why; null where they take all.</summary>
    public string? Problem { get; private set; }

    /// <summary>The address of a parameter; 0 where there is none.</summary>
    public nint Of(Tensor? t, long count, string name) => t is null ? Add(0) : Take(t, count, name, Type);

    /// <summary>As <see cref="Of"/>, of a parameter that is float32 in a model of any precision, or all such have the model's.</summary>
    public nint Wide(Tensor t, long count, string name)
    {
        WideType ??= t.dtype == Type ? Type : ScalarType.Float32;
        return Take(t, count, name, WideType.Value);
    }

    /// <summary>Whether everything lies where it lay.</summary>
    public bool Same(DecoderWeights other) => Gpu == other.Gpu && Type == other.Type && WideType == other.WideType
        && _pointers.SequenceEqual(other._pointers);

    private nint Take(Tensor t, long count, string name, ScalarType expected)
    {
        if (t.device_type != DeviceType.CUDA || t.device_index != Gpu) return Refuse($"{name} is on {t.device}, not on cuda:{Gpu}");
        if (t.dtype != expected) return Refuse($"{name} is {t.dtype}, not {expected}");
        if (t.numel() != count || !t.is_contiguous()) return Refuse($"{name} is no contiguous tensor of {count} values");
        var pointer = CudaTensor.Pointer(t);
        return pointer % 16 != 0 ? Refuse($"{name} does not begin on a multiple of 16 bytes") : Add(pointer);
    }

    private nint Refuse(string problem)
    {
        Problem ??= problem;
        return 0;
    }

    private nint Add(nint pointer)
    {
        _pointers.Add(pointer);
        return pointer;
    }
}
