using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace MambaVL.Scan;

/// <summary>A vector of float32, one lane for each channel of a tile. One kernel is written over it, and compiled for
/// each width; every lane is computed alike, so a result does not depend on its place in a tile.</summary>
internal unsafe interface ILanes<V> where V : unmanaged, ILanes<V>
{
    /// <summary>Number of lanes.</summary>
    static abstract int Width { get; }

    static abstract V Load(float* p);

    static abstract V All(float x);

    void Store(float* p);

    static abstract V operator +(V a, V b);

    static abstract V operator -(V a, V b);

    static abstract V operator *(V a, V b);

    static abstract V operator /(V a, V b);

    /// <summary>a b + c, rounded once where the machine can.</summary>
    static abstract V Fma(V a, V b, V c);

    /// <summary>At least zero; NaN stays NaN.</summary>
    static abstract V Positive(V x);

    static abstract V Abs(V x);

    /// <summary>The nearest integer k, and the rest t - k: zero for an infinity. Above 250 either way, k may be 250.</summary>
    static abstract V Split(V t, out V k);

    /// <summary>x 2^k for a k of Split: infinity and zero where the result leaves float32.</summary>
    static abstract V Scale(V x, V k);

    /// <summary>Lane by lane: condition at least zero ? a : b.</summary>
    static abstract V WhereNotNegative(V condition, V a, V b);

    /// <summary>Lane i of the result is the sum over the lanes of factor times the i-th of Width vectors, which lie
    /// stride floats apart.</summary>
    static abstract V SumEach(float* vectors, int stride, V factor);
}

/// <summary>Sixteen lanes: AVX-512.</summary>
internal readonly unsafe struct Lanes512(Vector512<float> v) : ILanes<Lanes512>
{
    private readonly Vector512<float> v = v;

    public static bool IsSupported => Avx512F.IsSupported && Avx512DQ.IsSupported;

    public static int Width => 16;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Load(float* p) => new(Vector512.Load(p));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 All(float x) => new(Vector512.Create(x));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Store(float* p) => v.Store(p);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator +(Lanes512 a, Lanes512 b) => new(a.v + b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator -(Lanes512 a, Lanes512 b) => new(a.v - b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator *(Lanes512 a, Lanes512 b) => new(a.v * b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 operator /(Lanes512 a, Lanes512 b) => new(a.v / b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Fma(Lanes512 a, Lanes512 b, Lanes512 c) => new(Avx512F.FusedMultiplyAdd(a.v, b.v, c.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Positive(Lanes512 x) => new(Avx512F.Max(Vector512<float>.Zero, x.v)); // NaN passes: it stands last

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Abs(Lanes512 x) => new(Vector512.Abs(x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Split(Lanes512 t, out Lanes512 k)
    {
        k = new(Avx512F.RoundScale(t.v, 0));
        return new(Avx512DQ.Reduce(t.v, 0));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 Scale(Lanes512 x, Lanes512 k) => new(Avx512F.Scale(x.v, k.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 WhereNotNegative(Lanes512 condition, Lanes512 a, Lanes512 b) =>
        new(Vector512.ConditionalSelect(Vector512.GreaterThanOrEqual(condition.v, Vector512<float>.Zero), a.v, b.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 SumEach(float* vectors, int stride, Lanes512 factor)
    {
        // Four vectors at a time to four partial sums of each in every quarter, then the quarters together.
        var a = SumFour(vectors, stride, factor.v);
        var b = SumFour(vectors + 4 * stride, stride, factor.v);
        var c = SumFour(vectors + 8 * stride, stride, factor.v);
        var d = SumFour(vectors + 12 * stride, stride, factor.v);
        var ab = Avx512F.Shuffle4x128(a, b, 0x88) + Avx512F.Shuffle4x128(a, b, 0xdd);
        var cd = Avx512F.Shuffle4x128(c, d, 0x88) + Avx512F.Shuffle4x128(c, d, 0xdd);
        return new(Avx512F.Shuffle4x128(ab, cd, 0x88) + Avx512F.Shuffle4x128(ab, cd, 0xdd));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> SumFour(float* p, int stride, Vector512<float> factor)
    {
        var a = Vector512.Load(p) * factor;
        var b = Vector512.Load(p + stride) * factor;
        var c = Vector512.Load(p + 2 * stride) * factor;
        var d = Vector512.Load(p + 3 * stride) * factor;
        var ab = (Avx512F.UnpackLow(a, b) + Avx512F.UnpackHigh(a, b)).AsDouble();
        var cd = (Avx512F.UnpackLow(c, d) + Avx512F.UnpackHigh(c, d)).AsDouble();
        return Avx512F.UnpackLow(ab, cd).AsSingle() + Avx512F.UnpackHigh(ab, cd).AsSingle();
    }
}

/// <summary>Eight lanes: AVX2 with FMA.</summary>
internal readonly unsafe struct Lanes256(Vector256<float> v) : ILanes<Lanes256>
{
    private readonly Vector256<float> v = v;

    public static bool IsSupported => Avx2.IsSupported && System.Runtime.Intrinsics.X86.Fma.IsSupported;

    public static int Width => 8;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Load(float* p) => new(Vector256.Load(p));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 All(float x) => new(Vector256.Create(x));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Store(float* p) => v.Store(p);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator +(Lanes256 a, Lanes256 b) => new(a.v + b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator -(Lanes256 a, Lanes256 b) => new(a.v - b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator *(Lanes256 a, Lanes256 b) => new(a.v * b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 operator /(Lanes256 a, Lanes256 b) => new(a.v / b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Fma(Lanes256 a, Lanes256 b, Lanes256 c) =>
        new(System.Runtime.Intrinsics.X86.Fma.MultiplyAdd(a.v, b.v, c.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Positive(Lanes256 x) => new(Avx.Max(Vector256<float>.Zero, x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Abs(Lanes256 x) => new(Vector256.Abs(x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Split(Lanes256 t, out Lanes256 k)
    {
        var within = Avx.Min(Vector256.Create(250f), Avx.Max(Vector256.Create(-250f), t.v)); // NaN passes: it stands last
        k = new(Avx.RoundToNearestInteger(within));
        return new(within - k.v);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 Scale(Lanes256 x, Lanes256 k)
    {
        // In two factors, as 2^k alone may lie outside float32 where the result does not.
        var whole = Avx.ConvertToVector256Int32(k.v);
        var half = Vector256.ShiftRightArithmetic(whole, 1);
        return new(x.v * Power(half) * Power(whole - half));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<float> Power(Vector256<int> k) => Vector256.ShiftLeft(k + Vector256.Create(127), 23).AsSingle();

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 WhereNotNegative(Lanes256 condition, Lanes256 a, Lanes256 b) =>
        new(Vector256.ConditionalSelect(Vector256.GreaterThanOrEqual(condition.v, Vector256<float>.Zero), a.v, b.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 SumEach(float* vectors, int stride, Lanes256 factor)
    {
        var a = SumFour(vectors, stride, factor.v);
        var b = SumFour(vectors + 4 * stride, stride, factor.v);
        return new(Avx.Permute2x128(a, b, 0x20) + Avx.Permute2x128(a, b, 0x31));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<float> SumFour(float* p, int stride, Vector256<float> factor) => Avx.HorizontalAdd(
        Avx.HorizontalAdd(Vector256.Load(p) * factor, Vector256.Load(p + stride) * factor),
        Avx.HorizontalAdd(Vector256.Load(p + 2 * stride) * factor, Vector256.Load(p + 3 * stride) * factor));
}

/// <summary>Four lanes, on any machine that .NET runs on.</summary>
internal readonly unsafe struct Lanes128(Vector128<float> v) : ILanes<Lanes128>
{
    private readonly Vector128<float> v = v;

    public static int Width => 4;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Load(float* p) => new(Vector128.Load(p));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 All(float x) => new(Vector128.Create(x));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Store(float* p) => v.Store(p);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator +(Lanes128 a, Lanes128 b) => new(a.v + b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator -(Lanes128 a, Lanes128 b) => new(a.v - b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator *(Lanes128 a, Lanes128 b) => new(a.v * b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 operator /(Lanes128 a, Lanes128 b) => new(a.v / b.v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Fma(Lanes128 a, Lanes128 b, Lanes128 c) => new(Vector128.MultiplyAddEstimate(a.v, b.v, c.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Positive(Lanes128 x) => new(Vector128.Max(Vector128<float>.Zero, x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Abs(Lanes128 x) => new(Vector128.Abs(x.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Split(Lanes128 t, out Lanes128 k)
    {
        var within = Vector128.Min(Vector128.Create(250f), Vector128.Max(Vector128.Create(-250f), t.v));
        k = new(Vector128.Round(within));
        return new(within - k.v);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 Scale(Lanes128 x, Lanes128 k)
    {
        var whole = Vector128.ConvertToInt32(k.v);
        var half = Vector128.ShiftRightArithmetic(whole, 1);
        return new(x.v * Power(half) * Power(whole - half));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector128<float> Power(Vector128<int> k) => Vector128.ShiftLeft(k + Vector128.Create(127), 23).AsSingle();

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 WhereNotNegative(Lanes128 condition, Lanes128 a, Lanes128 b) =>
        new(Vector128.ConditionalSelect(Vector128.GreaterThanOrEqual(condition.v, Vector128<float>.Zero), a.v, b.v));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 SumEach(float* vectors, int stride, Lanes128 factor) => new(Vector128.Create(
        Vector128.Dot(Vector128.Load(vectors), factor.v),
        Vector128.Dot(Vector128.Load(vectors + stride), factor.v),
        Vector128.Dot(Vector128.Load(vectors + 2 * stride), factor.v),
        Vector128.Dot(Vector128.Load(vectors + 3 * stride), factor.v)));
}
