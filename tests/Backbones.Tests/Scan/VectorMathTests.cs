using MambaVL.Scan;

namespace MambaVL.Tests.Scan;

public unsafe class VectorMathTests
{
    private enum Function { Exp2, Exp, Softplus, Slope, Sigmoid }

    private static V Slope<V>(V x) where V : unmanaged, ILanes<V>
    {
        VectorMath.Softplus(x, out var slope);
        return slope;
    }

    private static float[] Apply(Function f, float[] x, int bits) => bits switch
    {
        512 => Apply<Lanes512>(f, x),
        256 => Apply<Lanes256>(f, x),
        _ => Apply<Lanes128>(f, x),
    };

    private static float[] Apply<V>(Function f, float[] x) where V : unmanaged, ILanes<V>
    {
        var result = new float[(x.Length + V.Width - 1) / V.Width * V.Width];
        x.CopyTo(result, 0);
        fixed (float* p = result)
            for (var i = 0; i < result.Length; i += V.Width)
            {
                var v = V.Load(p + i);
                (f switch
                {
                    Function.Exp2 => VectorMath.Exp2(v),
                    Function.Exp => VectorMath.Exp(v),
                    Function.Softplus => VectorMath.Softplus(v),
                    Function.Slope => Slope(v),
                    _ => VectorMath.Sigmoid(v),
                }).Store(p + i);
            }
        return result[..x.Length];
    }

    private static void Within(Function f, Func<double, double> exact, Func<double, double> bound, float from, float to)
    {
        const int count = 100_000;
        var x = new float[count];
        for (var i = 0; i < count; i++) x[i] = from + (to - from) * i / (count - 1);
        foreach (var bits in ScanTesting.Widths)
        {
            var y = Apply(f, x, bits);
            var (worst, at) = (0.0, 0);
            for (var i = 0; i < count; i++)
            {
                var expected = exact(x[i]);
                var error = Math.Abs(y[i] - expected) / Math.Abs(expected) / bound(x[i]);
                if (!(error <= worst)) (worst, at) = (error, i);
            }
            (worst <= 1).Should().BeTrue($"{f}({x[at]:r}) at {bits} bits may have a relative error of {bound(x[at]):g2}, and has {worst:g3} times that");
        }
    }

    private static double LogOnePlusExp(double x) => x > 30 ? x : x < -30 ? Math.Exp(x) - Math.Exp(2 * x) / 2 : Log1P(Math.Exp(x));

    private static double Log1P(double e) => e < 1e-4 ? e - e * e / 2 + e * e * e / 3 : Math.Log(1 + e);

    [Fact]
    public void Exp2IsWithinItsBound() => Within(Function.Exp2, x => Math.Pow(2, x), _ => 3e-7, -126, 127.9f);

    // Near zero the error goes down with the argument: no more than rounding to float32 is left.
    [Fact]
    public void Exp2OfSmallArgumentsIsRounded() => Within(Function.Exp2, x => Math.Pow(2, x), x => 6.1e-8 + 4e-7 * Math.Abs(x), -0.1f, 0.1f);

    [Fact]
    public void ExpIsWithinItsBound() => Within(Function.Exp, Math.Exp, x => 3e-7 + 8e-8 * Math.Abs(x), -87, 88.5f);

    [Fact]
    public void SoftplusIsWithinItsBound() => Within(Function.Softplus, LogOnePlusExp, BoundOfSigmoid, -87, 60);

    [Fact]
    public void SigmoidIsWithinItsBound() => Within(Function.Sigmoid, x => 1 / (1 + Math.Exp(-x)), BoundOfSigmoid, -87, 60);

    [Fact]
    public void TheSlopeOfSoftplusIsSigmoid() => Within(Function.Slope, x => 1 / (1 + Math.Exp(-x)), BoundOfSigmoid, -87, 60);

    private static double BoundOfSigmoid(double x) => 5e-7 + 8e-8 * Math.Max(0, -x);

    [Fact]
    public void LimitsAndNaN()
    {
        float[] x = [float.NegativeInfinity, -1e30f, -200, -0.0f, 0, 200, 1e30f, float.PositiveInfinity, float.NaN];
        foreach (var bits in ScanTesting.Widths)
        {
            Apply(Function.Exp2, x, bits).Should().Equal([0, 0, 0, 1, 1, float.PositiveInfinity, float.PositiveInfinity, float.PositiveInfinity, float.NaN]);
            Apply(Function.Exp, x, bits).Should().Equal([0, 0, 0, 1, 1, float.PositiveInfinity, float.PositiveInfinity, float.PositiveInfinity, float.NaN]);
            foreach (var sigmoid in new[] { Function.Sigmoid, Function.Slope })
                Apply(sigmoid, x, bits).Should().Equal([0, 0, 0, 0.5f, 0.5f, 1, 1, 1, float.NaN]);
            var softplus = Apply(Function.Softplus, x, bits);
            softplus[..3].Should().Equal(0, 0, 0);
            softplus[5..].Should().Equal([200, 1e30f, float.PositiveInfinity, float.NaN]);
        }
    }

    [Fact]
    public void SumEachAddsTheLanesOfEachVector()
    {
        foreach (var bits in ScanTesting.Widths)
        {
            var w = bits / 32;
            var vectors = Enumerable.Range(0, 2 * w * w).Select(i => (float)(i * i % 97)).ToArray();
            var sums = new float[w];
            fixed (float* p = vectors, s = sums)
                switch (bits)
                {
                    case 512: Sum<Lanes512>(p, s); break;
                    case 256: Sum<Lanes256>(p, s); break;
                    default: Sum<Lanes128>(p, s); break;
                }
            sums.Should().Equal(Enumerable.Range(0, w).Select(i => 2 * vectors[(2 * i * w)..((2 * i + 1) * w)].Sum()));
        }

        // Every second vector, times two.
        void Sum<V>(float* p, float* s) where V : unmanaged, ILanes<V> => V.SumEach(p, 2 * V.Width, V.All(2)).Store(s);
    }
}
