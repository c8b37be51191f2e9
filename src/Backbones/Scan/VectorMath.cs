using System.Runtime.CompilerServices;

namespace MambaVL.Scan;

/// <summary>
/// The functions that the scan needs, over vectors, each computed without branches. The relative error bounds are
/// for results that are normal float32 numbers; NaN gives NaN, and an infinity gives the limit.
/// The polynomials are minimax fits (Remez) of our own.
/// </summary>
internal static class VectorMath
{
    /// <summary>log2(e).</summary>
    public const float Log2E = 1.44269504f;

    /// <summary>ln(2).</summary>
    public const float Ln2 = 0.693147181f;

    /// <summary>2^t, within 3e-7.</summary>
    /// <remarks>2^r = 1 + r q(r) for r within half of zero: near t = 0 the error shrinks with |t|, so that a state
    /// that decays slowly over many steps does not drift.</remarks>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V Exp2<V>(V t) where V : unmanaged, ILanes<V>
    {
        var r = V.Split(t, out var k);
        var p = V.Fma(V.All(1.34004363e-3f), r, V.All(9.66637294e-3f));
        p = V.Fma(p, r, V.All(5.55033318e-2f));
        p = V.Fma(p, r, V.All(0.240223490f));
        p = V.Fma(p, r, V.All(0.693147196f));
        p = V.Fma(p, r, V.All(1));
        return V.Scale(p, k);
    }

    /// <summary>exp(x), within 3e-7 + 8e-8 |x|: the second part is the rounding of x log2(e).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V Exp<V>(V x) where V : unmanaged, ILanes<V> => Exp2(x * V.All(Log2E));

    /// <summary>log(1 + e) for e from 0 to 1, within 5e-7.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static V Log1P<V>(V e) where V : unmanaged, ILanes<V>
    {
        // log(1 + e) = 2 artanh(s), s = e / (2 + e), which is at most a third.
        var s = e / (V.All(2) + e);
        var q = s * s;
        var p = V.Fma(V.All(0.134418054f), q, V.All(0.141156397f));
        p = V.Fma(p, q, V.All(0.200038912f));
        p = V.Fma(p, q, V.All(0.333333195f));
        p = V.Fma(p, q, V.All(1));
        return (s + s) * p;
    }

    /// <summary>softplus(x) = log(1 + exp(x)), within 5e-7 for positive x, and 8e-8 |x| more for negative; and its
    /// slope, sigmoid(x).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V Softplus<V>(V x, out V slope) where V : unmanaged, ILanes<V>
    {
        // For x above 17 the logarithm is lost in the sum's rounding, so that PyTorch's threshold of 20 needs no branch.
        var e = Exp(V.All(0) - V.Abs(x));
        slope = V.WhereNotNegative(x, V.All(1), e) / (V.All(1) + e);
        return V.Positive(x) + Log1P(e);
    }

    /// <summary>Softplus alone.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V Softplus<V>(V x) where V : unmanaged, ILanes<V> => Softplus(x, out _);

    /// <summary>1 / (1 + exp(-x)), within 5e-7 for positive x, and 8e-8 |x| more for negative.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V Sigmoid<V>(V x) where V : unmanaged, ILanes<V>
    {
        var e = Exp(V.All(0) - V.Abs(x));
        return V.WhereNotNegative(x, V.All(1), e) / (V.All(1) + e);
    }
}
