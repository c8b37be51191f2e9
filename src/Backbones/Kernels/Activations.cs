using System.Runtime.CompilerServices;
using MambaVL.Scan;

namespace MambaVL.Kernels;

/// <summary>The functions between the products, over vectors.</summary>
internal static class Activations
{
    /// <summary>x sigmoid(x), within 1.1e-6 of it above -20; below, within the error of exp.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V Silu<V>(V x) where V : unmanaged, ILanes<V> => x * VectorMath.Sigmoid(x);

    /// <summary>x times the share of the normal distribution below x: GELU by erf. Within 2e-6 + 2e-7 x² of it.</summary>
    /// <remarks>
    /// The share above |x| is erfc(a) / 2 with a = |x| / sqrt(2), so that nothing cancels where it is small. erfc falls as
    /// exp(-a²) / a: what is left, log(erfc(a)) + a² - log(t) with t = 1 / (1 + a / 2), is smooth in t, and the polynomial is
    /// a minimax fit (Remez) of our own to it, within 2.3e-7 for a up to 10, where float32 ends.
    /// </remarks>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V Gelu<V>(V x) where V : unmanaged, ILanes<V>
    {
        var size = V.Abs(x);
        var t = V.All(1) / V.Fma(size, V.All(0.353553391f), V.All(1));
        var p = V.Fma(V.All(0.0742680462f), t, V.All(-0.535430452f));
        p = V.Fma(p, t, V.All(1.437552f));
        p = V.Fma(p, t, V.All(-1.74291883f));
        p = V.Fma(p, t, V.All(0.828367548f));
        p = V.Fma(p, t, V.All(-0.227114869f));
        p = V.Fma(p, t, V.All(0.437264962f));
        p = V.Fma(p, t, V.All(0.99321536f));
        p = V.Fma(p, t, V.All(-1.26520399f));
        var above = V.All(0.5f) * t * VectorMath.Exp(V.Fma(V.All(-0.5f) * x, x, p));
        return x * V.WhereNotNegative(x, V.All(1) - above, above);
    }

    /// <summary>GELU by tanh: x sigmoid(2 sqrt(2/pi) (x + 0.044715 x³)).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V TanhGelu<V>(V x) where V : unmanaged, ILanes<V>
        => x * VectorMath.Sigmoid(V.All(1.59576912f) * V.Fma(V.All(0.044715f) * x * x, x, x));
}
