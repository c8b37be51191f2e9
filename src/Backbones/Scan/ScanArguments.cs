using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Scan;

/// <summary>The checked arguments of one scan. The tensors stay the caller's.</summary>
internal sealed record ScanArguments(
    Tensor u,             // (b, d, l)
    Tensor delta,         // (b, d, l)
    Tensor A,             // (d, n)
    Tensor B,             // (b, n, l)
    Tensor C,             // (b, n, l)
    Tensor? D,            // (d)
    Tensor? z,            // (b, d, l)
    Tensor? deltaBias,    // (d)
    bool deltaSoftplus,
    Tensor? initialState) // (b, d, n)
{
    /// <summary>The largest d_state that a scan takes.</summary>
    public const int MaxState = 256;

    /// <summary>What is computed in, and the type of the states: float64 for float64 input, else float32.</summary>
    public ScalarType ComputeType => u.dtype == ScalarType.Float64 ? ScalarType.Float64 : ScalarType.Float32;

    /// <summary>Whether autograd would record an operation on these tensors now.</summary>
    public bool NeedGradient => is_grad_enabled() && Tensors.Any(t => t is { requires_grad: true });

    /// <summary>Every tensor in the order of the record; null where an optional one is absent.</summary>
    public Tensor?[] Tensors => [u, delta, A, B, C, D, z, deltaBias, initialState];

    /// <summary>Throws for the first argument that does not fit, before any work is done.</summary>
    public ScanArguments Checked()
    {
        Rank(u, nameof(u), "(b, d, l)", 3);
        var (batch, channels, length) = (u.shape[0], u.shape[1], u.shape[2]);
        Rank(A, nameof(A), "(d, n)", 2);
        var states = A.shape[1];
        if (states is < 1 or > MaxState)
            throw new ArgumentException($"A has shape {Show(A.shape)}, so d_state {states}; expected 1 to {MaxState}.", nameof(A));

        if (!(u.dtype is ScalarType.Float32 or ScalarType.BFloat16 or ScalarType.Float64 || (u.dtype == ScalarType.Float16 && OnGpu)))
            throw new ArgumentException($"u is {u.dtype}; expected Float32, BFloat16 or Float64{(OnGpu ? ", or Float16" : " (Float16 on a GPU only)")}.", nameof(u));

        Fits(delta, nameof(delta), "(b, d, l)", [batch, channels, length], mayBeNarrow: true);
        Fits(A, nameof(A), "(d, n)", [channels, states], mayBeNarrow: false);
        Fits(B, nameof(B), "(b, n, l)", [batch, states, length], mayBeNarrow: true);
        Fits(C, nameof(C), "(b, n, l)", [batch, states, length], mayBeNarrow: true);
        if (D is not null) Fits(D, nameof(D), "(d)", [channels], mayBeNarrow: false);
        if (z is not null) Fits(z, nameof(z), "(b, d, l)", [batch, channels, length], mayBeNarrow: true);
        if (deltaBias is not null) Fits(deltaBias, nameof(deltaBias), "(d)", [channels], mayBeNarrow: false);
        if (initialState is not null) Fits(initialState, nameof(initialState), "(b, d, n)", [batch, channels, states], mayBeNarrow: false);
        return this;
    }

    private bool OnGpu => u.device_type == DeviceType.CUDA;

    private void Fits(Tensor t, string name, string axes, long[] shape, bool mayBeNarrow)
    {
        Rank(t, name, axes, shape.Length);
        if (!t.shape.SequenceEqual(shape))
            throw new ArgumentException(
                $"{name} has shape {Show(t.shape)}; expected {Show(shape)} {axes}, from u {Show(u.shape)} (b, d, l) and A {Show(A.shape)} (d, n).", name);
        mayBeNarrow &= ComputeType == ScalarType.Float32;
        if (t.dtype != ComputeType && !(mayBeNarrow && (t.dtype == ScalarType.BFloat16 || (t.dtype == ScalarType.Float16 && OnGpu))))
            throw new ArgumentException(
                $"{name} is {t.dtype}; expected {ComputeType}{(!mayBeNarrow ? "" : OnGpu ? ", BFloat16 or Float16" : " or BFloat16")} where u is {u.dtype}{(t.dtype == ScalarType.Float16 && mayBeNarrow ? " (Float16 on a GPU only)" : "")}.", name);
        if (t.device_type != u.device_type || t.device_index != u.device_index)
            throw new ArgumentException($"{name} is on {t.device}; expected {u.device}, where u is.", name);
    }

    private static void Rank(Tensor t, string name, string axes, int rank)
    {
        ArgumentNullException.ThrowIfNull(t, name);
        if (t.shape.Length != rank)
            throw new ArgumentException($"{name} has shape {Show(t.shape)}; expected {rank} axes {axes}.", name);
    }

    private static string Show(long[] shape) => $"[{string.Join(", ", shape)}]";
}
