using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using MambaVL.Scan;

namespace MambaVL.Kernels;

/// <summary>RMSNorm and LayerNorm of one row.</summary>
internal static unsafe class Norms
{
    /// <summary>y = norm(x) * weight + bias; LayerNorm where there is a bias, else RMSNorm. y has room for a whole number of vectors.</summary>
    public static void Row(float* x, int count, Values weight, Values bias, float eps, float* y)
    {
        if (Lanes512.IsSupported) Row<Lanes512>(x, count, weight, bias, eps, y);
        else if (Lanes256.IsSupported) Row<Lanes256>(x, count, weight, bias, eps, y);
        else Row<Lanes128>(x, count, weight, bias, eps, y);
    }

    /// <summary>The same at a width of the caller's choice.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Row<V>(float* x, int count, Values weight, Values bias, float eps, float* y) where V : unmanaged, ILanes<V>
    {
        var mean = bias.Exist ? Sum<V>(x, count) / count : 0;
        var scale = 1 / MathF.Sqrt(SumOfSquares<V>(x, count, mean) / count + eps);
        V shift = V.All(mean), factor = V.All(scale);
        var k = 0;
        for (; k + V.Width <= count; k += V.Width)
            V.Fma((V.Load(x + k) - shift) * factor, weight.Load<V>(k, count), bias.Load<V>(k, count)).Store(y + k);
        for (; k < count; k++) y[k] = MathF.FusedMultiplyAdd((x[k] - mean) * scale, weight[k], bias[k]);
    }

    private static float Sum<V>(float* x, int count) where V : unmanaged, ILanes<V>
    {
        V a = V.All(0), b = V.All(0);
        var k = 0;
        for (; k + 2 * V.Width <= count; k += 2 * V.Width)
        {
            a += V.Load(x + k);
            b += V.Load(x + k + V.Width);
        }
        var sum = Wide<V>.Sum(a + b);
        for (; k < count; k++) sum += x[k];
        return sum;
    }

    private static float SumOfSquares<V>(float* x, int count, float mean) where V : unmanaged, ILanes<V>
    {
        V a = V.All(0), b = V.All(0), shift = V.All(mean);
        var k = 0;
        for (; k + 2 * V.Width <= count; k += 2 * V.Width)
        {
            V u = V.Load(x + k) - shift, v = V.Load(x + k + V.Width) - shift;
            a = V.Fma(u, u, a);
            b = V.Fma(v, v, b);
        }
        var sum = Wide<V>.Sum(a + b);
        for (; k < count; k++) sum = MathF.FusedMultiplyAdd(x[k] - mean, x[k] - mean, sum);
        return sum;
    }
}
