using System.Runtime.InteropServices;
using MambaVL.Kernels;
using MambaVL.Scan;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Kernels;

public unsafe class MatVecTests
{
    private static readonly int[] Columns = [1, 3, 15, 16, 17, 31, 32, 33, 48, 64, 80, 100, 768, 1000];
    private static readonly int[] RowCounts = [1, 2, 3, 4, 5, 7, 8, 13, 40];

    /// <summary>Weights at an address with the given rest, as a memory-mapped file may have them; x; y.</summary>
    private sealed class Case : IDisposable
    {
        private readonly byte* _memory;
        public readonly Matrix W;
        public readonly Tensor Weights, X; // float64
        public readonly float* XRows;
        public readonly int B;

        public Case(int rows, int columns, int b, WeightType type, int misalignment = 0, int seed = 1)
        {
            using var generator = new Generator((ulong)seed);
            var dtype = type switch { WeightType.Float32 => ScalarType.Float32, WeightType.BFloat16 => ScalarType.BFloat16, _ => ScalarType.Float16 };
            using var weights = randn([rows, columns], generator: generator).to(dtype);
            using var x = randn([b, columns], generator: generator);
            (Weights, X, B) = (weights.to(ScalarType.Float64), x.to(ScalarType.Float64), b);
            var bytes = weights.bytes;
            _memory = (byte*)NativeMemory.AlignedAlloc((nuint)(bytes.Length + 64 + b * columns * 4 + 64), 64);
            bytes.CopyTo(new Span<byte>(_memory + misalignment, bytes.Length));
            W = new(_memory + misalignment, rows, columns, type);
            XRows = (float*)(_memory + (bytes.Length + 64) / 64 * 64);
            x.data<float>().CopyTo(new Span<float>(XRows, b * columns));
        }

        public float[] Run<V>(int pieces = 1) where V : unmanaged, ILanes<V>
        {
            var y = new float[B * W.Rows];
            fixed (float* p = y)
                for (var i = 0; i < pieces; i++)
                    MatVec.Rows<V>(W, W.Rows * i / pieces, W.Rows * (i + 1) / pieces, XRows, W.Columns, B, p, W.Rows);
            return y;
        }

        public float[] Run(CpuTeam team)
        {
            var y = new float[B * W.Rows];
            fixed (float* p = y) MatVec.Run(team, W, XRows, W.Columns, B, p, W.Rows);
            return y;
        }

        public void Check(float[] y)
        {
            using var scope = NewDisposeScope();
            var expected = X.matmul(Weights.t());
            var bound = X.abs().matmul(Weights.abs().t()) * 2.4e-7; // two roundings of each term's share
            var actual = tensor(y, [B, W.Rows]).to(ScalarType.Float64);
            var excess = ((actual - expected).abs() / bound).max().ToDouble();
            excess.Should().BeLessThan(1, $"rows {W.Rows}, columns {W.Columns}, b {B}, {W.Type}");
        }

        public void Dispose()
        {
            NativeMemory.AlignedFree(_memory);
            Weights.Dispose();
            X.Dispose();
        }
    }

    private static IEnumerable<Func<Case, int, float[]>> Widths()
    {
        yield return (c, pieces) => c.Run<Lanes128>(pieces);
        if (Lanes256.IsSupported) yield return (c, pieces) => c.Run<Lanes256>(pieces);
        if (Lanes512.IsSupported) yield return (c, pieces) => c.Run<Lanes512>(pieces);
    }

    [Theory]
    [InlineData((int)WeightType.Float32)]
    [InlineData((int)WeightType.BFloat16)]
    [InlineData((int)WeightType.Float16)]
    public void EqualsTheProductInFloat64(int type)
    {
        foreach (var columns in Columns)
            foreach (var rows in RowCounts)
                foreach (var b in new[] { 1, 2, 3, 4, 5, 7 })
                {
                    using var c = new Case(rows, columns, b, (WeightType)type);
                    foreach (var run in Widths()) c.Check(run(c, 1));
                }
    }

    [Theory]
    [InlineData((int)WeightType.Float32)]
    [InlineData((int)WeightType.BFloat16)]
    [InlineData((int)WeightType.Float16)]
    public void ARowOfXGivesTheSameBitsWhateverStandsBesideIt(int type)
    {
        foreach (var columns in new[] { 5, 16, 48, 50, 96, 1000 })
            foreach (var run in Widths())
            {
                const int rows = 23;
                using var all = new Case(rows, columns, 16, (WeightType)type);
                var together = run(all, 1);
                for (var b = 1; b <= 16; b++)
                {
                    using var some = new Case(rows, columns, b, (WeightType)type);
                    new ReadOnlySpan<float>(all.XRows, b * columns).CopyTo(new Span<float>(some.XRows, b * columns));
                    Bits(run(some, 1)).Should().Equal(Bits(together[..(b * rows)]), $"b {b}, columns {columns}");
                }
            }
    }

    [Theory]
    [InlineData((int)WeightType.Float32)]
    [InlineData((int)WeightType.BFloat16)]
    public void PiecesThreadsAndRepeatsGiveTheSameBits(int type)
    {
        foreach (var b in new[] { 1, 2, 3, 4, 9 })
        {
            using var c = new Case(1037, 96, b, (WeightType)type);
            foreach (var run in Widths())
            {
                var whole = Bits(run(c, 1));
                foreach (var pieces in new[] { 2, 3, 10, 1037 }) Bits(run(c, pieces)).Should().Equal(whole, $"{pieces} pieces, b {b}");
            }
            var one = Bits(c.Run(new CpuTeam(1)));
            foreach (var threads in new[] { 2, 3, 5 })
            {
                var team = new CpuTeam(threads);
                for (var repeat = 0; repeat < 10; repeat++) Bits(c.Run(team)).Should().Equal(one, $"{threads} threads, b {b}");
            }
        }
    }

    [Theory]
    [InlineData((int)WeightType.Float32, 4)]
    [InlineData((int)WeightType.Float32, 1)]
    [InlineData((int)WeightType.BFloat16, 2)]
    [InlineData((int)WeightType.BFloat16, 1)]
    [InlineData((int)WeightType.Float16, 6)]
    public void WeightsMayLieAtAnyAddress(int type, int misalignment)
    {
        foreach (var columns in new[] { 17, 64 })
        {
            using var aligned = new Case(9, columns, 3, (WeightType)type);
            using var shifted = new Case(9, columns, 3, (WeightType)type, misalignment);
            foreach (var run in Widths()) Bits(run(shifted, 1)).Should().Equal(Bits(run(aligned, 1)));
        }
    }

    [Fact]
    public void EveryHalfIsWidenedExactly()
    {
        var all = Enumerable.Range(0, 1 << 16).Select(i => (ushort)i).ToArray();
        fixed (ushort* p = all)
            for (var i = 0; i < all.Length; i += 16)
            {
                Check(Widen<Lanes128>(p + i), i);
                if (Lanes256.IsSupported) Check(Widen<Lanes256>(p + i), i);
                if (Lanes512.IsSupported) Check(Widen<Lanes512>(p + i), i);
            }

        static float[] Widen<V>(ushort* p) where V : unmanaged, ILanes<V>
        {
            var y = new float[16];
            fixed (float* q = y)
                for (var i = 0; i < 16; i += V.Width) Wide<V>.LoadHalf(p + i).Store(q + i);
            return y;
        }

        static void Check(float[] y, int first)
        {
            for (var i = 0; i < 16; i++)
            {
                var expected = (float)BitConverter.UInt16BitsToHalf((ushort)(first + i));
                if (!(y[i].Equals(expected) && (float.IsNaN(expected) || float.IsNegative(y[i]) == float.IsNegative(expected))))
                    y[i].Should().Be(expected, $"half {first + i:x4}");
            }
        }
    }

    [Fact]
    public void NotANumberAndInfinityComeThrough()
    {
        foreach (var columns in new[] { 7, 64 })
            foreach (var run in Widths())
            {
                using var c = new Case(6, columns, 3, WeightType.Float32);
                c.XRows[columns + 2] = float.NaN;           // row 1
                c.XRows[2 * columns + 1] = float.PositiveInfinity; // row 2
                var y = run(c, 1);
                y[..6].Should().OnlyContain(v => float.IsFinite(v));
                y[6..12].Should().OnlyContain(v => float.IsNaN(v));
                y[12..].Should().OnlyContain(v => float.IsInfinity(v));
            }
    }

    private static int[] Bits(float[] y) => MemoryMarshal.Cast<float, int>(y).ToArray();
}
