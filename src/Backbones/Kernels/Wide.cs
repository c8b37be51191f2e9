using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using MambaVL.Scan;

namespace MambaVL.Kernels;

/// <summary>What products need of <see cref="ILanes{V}"/> beyond what the scan does: weights of 16 bits, and sums over the
/// lanes. The compiler keeps the one branch that fits V.</summary>
internal static unsafe class Wide<V> where V : unmanaged, ILanes<V>
{
    // 2^112, the difference of the exponents' biases: a half's bits, moved up, read as a float are its value over this.
    private const float HalfScale = 5.192296858534828e33f;

    /// <summary>One vector of bfloat16, widened.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V LoadBFloat16(ushort* p)
    {
        if (typeof(V) == typeof(Lanes512))
            return Of((Avx512F.ConvertToVector512UInt32(Vector256.Load(p)) << 16).AsSingle());
        if (typeof(V) == typeof(Lanes256))
            return Of((Avx2.ConvertToVector256Int32(Vector128.Load(p)) << 16).AsSingle());
        return Of((Four(p) << 16).AsSingle());
    }

    /// <summary>One vector of float16, widened; .NET offers no instruction for it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V LoadHalf(ushort* p)
    {
        // From 65536 on, what was an infinity or a NaN of the half lies here: give it the float's greatest exponent.
        if (typeof(V) == typeof(Lanes512))
        {
            var h = Avx512F.ConvertToVector512UInt32(Vector256.Load(p));
            var x = ((h & Vector512.Create(0x7fffu)) << 13).AsSingle() * Vector512.Create(HalfScale);
            var special = Vector512.GreaterThanOrEqual(x, Vector512.Create(65536f)).AsUInt32() & Vector512.Create(0x7f800000u);
            return Of((x.AsUInt32() | special | ((h & Vector512.Create(0x8000u)) << 16)).AsSingle());
        }
        if (typeof(V) == typeof(Lanes256))
        {
            var h = Avx2.ConvertToVector256Int32(Vector128.Load(p)).AsUInt32();
            var x = ((h & Vector256.Create(0x7fffu)) << 13).AsSingle() * Vector256.Create(HalfScale);
            var special = Vector256.GreaterThanOrEqual(x, Vector256.Create(65536f)).AsUInt32() & Vector256.Create(0x7f800000u);
            return Of((x.AsUInt32() | special | ((h & Vector256.Create(0x8000u)) << 16)).AsSingle());
        }
        else
        {
            var h = Four(p);
            var x = ((h & Vector128.Create(0x7fffu)) << 13).AsSingle() * Vector128.Create(HalfScale);
            var special = Vector128.GreaterThanOrEqual(x, Vector128.Create(65536f)).AsUInt32() & Vector128.Create(0x7f800000u);
            return Of((x.AsUInt32() | special | ((h & Vector128.Create(0x8000u)) << 16)).AsSingle());
        }
    }

    /// <summary>The sum of the lanes of each of four vectors. Every one in the same order, which is spelled out because the
    /// framework's own may differ between the quick and the optimised compilation of a method: halves are added until four
    /// floats are left, then (0 + 2) + (1 + 3).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<float> SumFour(V a, V b, V c, V d)
    {
        Vector128<float> p = Four(a), q = Four(b), r = Four(c), s = Four(d);
        if (!Sse.IsSupported) return Vector128.Create(Sum(p), Sum(q), Sum(r), Sum(s));
        var pq = Sse.UnpackLow(p, q) + Sse.UnpackHigh(p, q); // p0 + p2, q0 + q2, p1 + p3, q1 + q3
        var rs = Sse.UnpackLow(r, s) + Sse.UnpackHigh(r, s);
        return Sse.MoveLowToHigh(pq, rs) + Sse.MoveHighToLow(rs, pq);
    }

    /// <summary>The sum of the lanes, in the order of <see cref="SumFour"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Sum(V v) => Sum(Four(v));

    /// <summary>Lane by lane the greater; b where one is NaN.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V Max(V a, V b)
    {
        if (typeof(V) == typeof(Lanes512)) return Of(Avx512F.Max(In512(a), In512(b)));
        if (typeof(V) == typeof(Lanes256)) return Of(Avx.Max(In256(a), In256(b)));
        return Of(Vector128.ConditionalSelect(Vector128.GreaterThan(In128(a), In128(b)), In128(a), In128(b)));
    }

    /// <summary>The greatest lane; NaN lanes do not count.</summary>
    public static float Greatest(V v)
    {
        var lanes = stackalloc float[V.Width];
        v.Store(lanes);
        var greatest = float.NegativeInfinity;
        for (var i = 0; i < V.Width; i++)
            if (lanes[i] > greatest) greatest = lanes[i];
        return greatest;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector128<float> Four(V v)
    {
        if (typeof(V) == typeof(Lanes512))
        {
            var half = In512(v).GetLower() + In512(v).GetUpper();
            return half.GetLower() + half.GetUpper();
        }
        return typeof(V) == typeof(Lanes256) ? In256(v).GetLower() + In256(v).GetUpper() : In128(v);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Sum(Vector128<float> v) => (v.GetElement(0) + v.GetElement(2)) + (v.GetElement(1) + v.GetElement(3));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector128<uint> Four(ushort* p)
        => Vector128.WidenLower(Vector128.CreateScalar(Unsafe.ReadUnaligned<ulong>(p)).AsUInt16());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static V Of(Vector512<float> v) => Unsafe.BitCast<Vector512<float>, V>(v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static V Of(Vector256<float> v) => Unsafe.BitCast<Vector256<float>, V>(v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static V Of(Vector128<float> v) => Unsafe.BitCast<Vector128<float>, V>(v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> In512(V v) => Unsafe.BitCast<V, Vector512<float>>(v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<float> In256(V v) => Unsafe.BitCast<V, Vector256<float>>(v);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector128<float> In128(V v) => Unsafe.BitCast<V, Vector128<float>>(v);
}
