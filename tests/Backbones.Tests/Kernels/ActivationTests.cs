using MambaVL.Kernels;
using MambaVL.Scan;
using TorchSharp;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

namespace MambaVL.Tests.Kernels;

public unsafe class ActivationTests
{
    private interface IFunction
    {
        static abstract V Of<V>(V x) where V : unmanaged, ILanes<V>;
    }

    private readonly struct Silu : IFunction
    {
        public static V Of<V>(V x) where V : unmanaged, ILanes<V> => Activations.Silu(x);
    }

    private readonly struct Gelu : IFunction
    {
        public static V Of<V>(V x) where V : unmanaged, ILanes<V> => Activations.Gelu(x);
    }

    private readonly struct TanhGelu : IFunction
    {
        public static V Of<V>(V x) where V : unmanaged, ILanes<V> => Activations.TanhGelu(x);
    }

    private static float[] Map<V, T>(float[] x) where V : unmanaged, ILanes<V> where T : IFunction
    {
        var y = new float[x.Length];
        fixed (float* p = x, q = y)
            for (var i = 0; i < x.Length; i += V.Width) T.Of(V.Load(p + i)).Store(q + i);
        return y;
    }

    private static IEnumerable<float[]> MapAll<T>(float[] x) where T : IFunction
    {
        yield return Map<Lanes128, T>(x);
        if (Lanes256.IsSupported) yield return Map<Lanes256, T>(x);
        if (Lanes512.IsSupported) yield return Map<Lanes512, T>(x);
    }

    // A multiple of sixteen numbers, dense around zero.
    private static readonly float[] Inputs = [.. Enumerable.Range(-4000, 8000).Select(i => (float)(i * 0.003 + Math.Pow(i / 4000.0, 7) * 80))];

    private static void Check<T>(Func<Tensor, Tensor> exact, Func<double, double, double> bound) where T : IFunction
    {
        using var scope = NewDisposeScope();
        var expected = exact(tensor(Inputs).to(ScalarType.Float64)).data<double>().ToArray();
        foreach (var y in MapAll<T>(Inputs))
            for (var i = 0; i < Inputs.Length; i++)
                if (!(Math.Abs(y[i] - expected[i]) <= bound(Inputs[i], expected[i])))
                    Math.Abs(y[i] - expected[i]).Should().BeLessThanOrEqualTo(bound(Inputs[i], expected[i]), $"x {Inputs[i]}: {y[i]} for {expected[i]}");
    }

    [Fact]
    public void SiluIsWithinItsBound()
        => Check<Silu>(x => F.silu(x), (x, y) => (x > -20 ? 1.1e-6 : 1e-6 + 1.2e-7 * Math.Abs(x)) * Math.Abs(y) + 1e-37);

    [Fact]
    public void GeluIsWithinItsBound()
        => Check<Gelu>(x => x * 0.5 * special.erfc(x * -Math.Sqrt(0.5)), (x, y) => (2e-6 + 2e-7 * x * x) * Math.Abs(y) + 1e-37);

    [Fact]
    public void TanhGeluIsCloseToTorchs()
        => Check<TanhGelu>(x => x * sigmoid(2 * Math.Sqrt(2 / Math.PI) * (x + 0.044715 * x.pow(3))),
            (x, y) => 1e-6 * Math.Max(Math.Abs(y), 0.1));

    [Fact]
    public void NotANumberStaysAndInfinitiesGiveTheLimit()
    {
        float[] x = [.. Enumerable.Repeat(float.NaN, 16), .. Enumerable.Repeat(float.PositiveInfinity, 16)];
        foreach (var y in MapAll<Silu>(x).Concat(MapAll<Gelu>(x)).Concat(MapAll<TanhGelu>(x)))
        {
            y[..16].Should().OnlyContain(v => float.IsNaN(v));
            y[16..].Should().OnlyContain(v => float.IsPositiveInfinity(v));
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(5)]
    [InlineData(33)]
    [InlineData(768)]
    public void NormsEqualThoseInFloat64(int count)
    {
        using var scope = NewDisposeScope();
        using var random = new Generator(3);
        var (x, w, b) = (randn([count], generator: random) * 3 + 1, randn([count], generator: random), randn([count], generator: random));
        var (wide, wideW, wideB) = (x.to(ScalarType.Float64), w.to(ScalarType.Float64), b.to(ScalarType.Float64));
        var rms = wide * rsqrt(wide.square().mean() + 1e-5) * wideW;
        var layer = F.layer_norm(wide, [count], wideW, wideB, 1e-5);
        fixed (float* px = x.data<float>().ToArray(), pw = w.data<float>().ToArray(), pb = b.data<float>().ToArray())
        {
            Values weight = new(pw, WeightType.Float32), bias = new(pb, WeightType.Float32);
            Compare(Norm<Lanes128>(px, weight, bias, count), layer);
            Compare(Norm<Lanes128>(px, weight, default, count), rms);
            if (Lanes256.IsSupported) Compare(Norm<Lanes256>(px, weight, bias, count), layer);
            if (Lanes256.IsSupported) Compare(Norm<Lanes256>(px, weight, default, count), rms);
            if (Lanes512.IsSupported) Compare(Norm<Lanes512>(px, weight, bias, count), layer);
            if (Lanes512.IsSupported) Compare(Norm<Lanes512>(px, weight, default, count), rms);
        }

        static Tensor Norm<V>(float* x, Values weight, Values bias, int count) where V : unmanaged, ILanes<V>
        {
            var y = new float[count + 16];
            fixed (float* p = y) Norms.Row<V>(x, count, weight, bias, 1e-5f, p);
            return tensor(y[..count]);
        }

        static void Compare(Tensor actual, Tensor expected)
            => (actual - expected).abs().max().ToDouble().Should().BeLessThan(2e-6 * (1 + expected.abs().max().ToDouble()));
    }
}
