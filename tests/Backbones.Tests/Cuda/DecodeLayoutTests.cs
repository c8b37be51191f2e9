using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using MambaVL.Cuda;

namespace MambaVL.Tests.Cuda;

/// <summary>The index arithmetic of decode.cuh, walked through on the CPU lane by lane.</summary>
public class DecodeLayoutTests
{
    private const int Tile = 8, Warps = 8;

    // (rows, columns) of products, of 16-bit weights and of float32.
    public static TheoryData<int, int, int, int> Cases => new()
    {
        { 64, 1536, 2, 1 }, { 50, 1056, 2, 8 }, { 30, 136, 2, 2 }, { 37, 74, 2, 16 }, { 101, 37, 2, 3 }, { 50, 200, 4, 4 }, { 13, 37, 4, 2 },
    };

    // A warp's m16n8k16 as the PTX manual lays out its operands: lane (g, t) holds a[g][2t..], a[g + 8][2t..], a[g][2t + 8..],
    // a[g + 8][2t + 8..]; b[2t..][g], b[2t + 8..][g]; c[g][2t..], c[g + 8][2t..].
    private static void Multiply(double[,] c, Func<int, int, double[]> a, Func<int, double[]> b)
    {
        double[,] left = new double[16, 16], right = new double[16, 8];
        for (var lane = 0; lane < 32; lane++)
        {
            var (g, t) = (lane / 4, lane % 4);
            for (var register = 0; register < 4; register++)
                for (var half = 0; half < 2; half++) left[g + register % 2 * 8, 2 * t + half + register / 2 * 8] = a(lane, register)[half];
            for (var half = 0; half < 4; half++) right[2 * t + half % 2 + half / 2 * 8, g] = b(lane)[half];
        }
        for (var i = 0; i < 16; i++)
            for (var j = 0; j < 8; j++)
                for (var k = 0; k < 16; k++) c[i, j] += left[i, k] * right[k, j];
    }

    [Theory, MemberData(nameof(Cases))]
    public void EveryProductIsComputedOnce(int rows, int columns, int size, int b)
    {
        var (vector, group) = (16 / size, 64 / size);
        var groups = (columns + group - 1) / group;
        var random = new Random(rows);
        var w = new int[rows, columns];
        var x = new int[b, columns];
        for (var j = 0; j < columns; j++)
        {
            for (var i = 0; i < rows; i++) w[i, j] = random.Next(-4, 5);
            for (var i = 0; i < b; i++) x[i, j] = random.Next(-4, 5);
        }
        // pack()
        var packed = new double[groups * group * b];
        for (var i = 0; i < b; i++)
            for (var c = 0; c < columns; c++) packed[(c / group * b + i) * group + c % group] = x[i, c];

        var grid = new DecodeGrid(size);
        grid.Groups(columns).Should().Be(groups);
        grid.PackedBytes(columns, b).Should().Be(packed.Length * 4);
        var sums = new double[rows, b];
        for (var first = 0; first < rows; first += Tile)
        {
            var partial = new double[Warps, b, Tile];
            for (var warp = 0; warp < Warps; warp++)
                for (var four = 0; four < 2; four++)
                {
                    // Of the batch's rows 0 to 7 and 8 to 15.
                    double[][,] sum = [new double[16, 8], new double[16, 8]];
                    for (var pair = warp; 2 * pair < groups; pair += Warps)
                        if (size == 2)
                            for (var part = 0; part < 4; part++) // two products, of the first and the second half of 16 bytes
                                Multiply(sum[part / 2], (lane, register) => Activations(2 * pair + register % 2, part / 2 * 8 + lane / 4, lane % 4, part % 2 * 4 + register / 2 * 2), lane => Weights(lane, pair)[(part % 2 * 4)..(part % 2 * 4 + 4)]);
                        else
                            for (var lane = 0; lane < 32; lane++)
                                for (var i = 0; i < b; i++)
                                    for (var j = 0; j < vector; j++) partial[warp, i, 4 * four + lane / 8] += Weights(lane, pair)[j] * Packed(2 * pair + lane / 4 % 2, i, lane % 4 * vector + j);
                    for (var i = 0; i < b && size == 2; i++)
                        for (var r = 0; r < 4; r++) partial[warp, i, 4 * four + r] = sum[i / 8][i % 8, 2 * r] + sum[i / 8][i % 8 + 8, 2 * r + 1];

                    double[] Weights(int lane, int pair)
                    {
                        var row = Math.Min(first + 4 * four + lane / 8, rows - 1);
                        return [.. Enumerable.Range(2 * pair * group + lane % 8 * vector, vector).Select(c => c < columns ? (double)w[row, c] : 0)];
                    }
                }
            for (var i = 0; i < b; i++)
                for (var r = 0; r < Tile && first + r < rows; r++)
                    for (var warp = 0; warp < Warps; warp++) sums[first + r, i] += partial[warp, i, r];
        }

        double Packed(int g, int i, int at) => g < groups && i < b ? packed[(g * b + i) * group + at] : 0;

        double[] Activations(int g, int i, int t, int from) => [Packed(g, i, t * vector + from), Packed(g, i, t * vector + from + 1)];

        for (var i = 0; i < rows; i++)
            for (var r = 0; r < b; r++)
            {
                var expected = 0;
                for (var c = 0; c < columns; c++) expected += w[i, c] * x[r, c];
                sums[i, r].Should().Be(expected, $"row {i} by {r}");
            }
    }

    [Theory]
    [InlineData(37, 1)]
    [InlineData(768, 4)]
    [InlineData(1100, 2)]
    [InlineData(2560, 16)]
    [InlineData(5120, 8)]
    public void EverySquareIsAddedOnceToItsRow(int columns, int b)
    {
        const int Part = 128;
        var random = new Random(columns);
        var tiles = (columns + Tile - 1) / Tile;
        int parts = (tiles + Part - 1) / Part, width = DecodeGrid.Squares(columns);
        width.Should().Be(parts * Part);
        // leave_squares()
        int[] squares = new int[b * width], expected = new int[b], sums = new int[b * parts];
        for (var i = 0; i < b; i++)
            for (var c = 0; c < columns; c++)
            {
                var square = random.Next(10);
                squares[i * width + c / Tile] += square;
                expected[i] += square;
            }
        // Squares: four a lane, a part a warp.
        for (var warp = 0; warp < Warps; warp++)
            for (var part = warp; part < b * parts; part += Warps)
                for (var lane = 0; lane < 32; lane++) sums[part] += squares.AsSpan(4 * (part * (Part / 4) + lane), 4).ToArray().Sum();
        for (var i = 0; i < b; i++) sums[(i * parts)..((i + 1) * parts)].Sum().Should().Be(expected[i], $"row {i}");
    }

    [Fact]
    public unsafe void TheControlBlockIsLaidOutAsInTheKernels()
    {
        sizeof(DecodeControl).Should().Be(536);
        var control = new DecodeControl();
        Offset(ref control.Positions).Should().Be(64);
        Offset(ref control.Steps).Should().Be(192);
        Offset(ref control.Random).Should().Be(256);
        Offset(ref control.Greatest).Should().Be(384);
        Offset(ref control.TopP).Should().Be(512);
        Offset(ref control.TopK).Should().Be(528);

        int Offset<T>(ref T field) => (int)Unsafe.ByteOffset(ref Unsafe.As<DecodeControl, byte>(ref control), ref Unsafe.As<T, byte>(ref field));
    }
}
