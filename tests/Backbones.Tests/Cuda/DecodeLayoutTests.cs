using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using MambaVL.Cuda;

namespace MambaVL.Tests.Cuda;

/// <summary>The index arithmetic of decode.cuh, walked through on the CPU lane by lane.</summary>
public class DecodeLayoutTests
{
    private const int Tile = 8, Warps = 16;

    // (rows, columns) of products, of 16-bit weights and of float32.
    public static TheoryData<int, int, int, int> Cases => new()
    {
        { 3072, 1536, 2, 1 }, { 192, 5120, 2, 8 }, { 37, 74, 2, 16 }, { 101, 37, 2, 3 }, { 50, 200, 4, 4 }, { 13, 37, 4, 2 },
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

        var grid = new DecodeGrid(132, 232448, size);
        int slices = grid.Slices(rows, columns, 132), blocks = grid.Blocks(rows, columns, 132), width = Warps / slices * Tile;
        grid.Groups(columns).Should().Be(groups);
        grid.PackedBytes(columns, b).Should().Be(packed.Length * 4);
        var sums = new double[rows, b];
        for (var block = 0; block < blocks; block++)
            for (var first = block * width; first < rows; first += blocks * width)
            {
                var partial = new double[Warps, b, Tile];
                for (var warp = 0; warp < Warps; warp++)
                {
                    var (tile, slice) = (warp / slices, warp % slices);
                    var sum = new double[16, 8];
                    for (var at = groups * slice / slices; at < groups * (slice + 1) / slices; at++)
                        if (size == 2)
                            for (var part = 0; part < 2; part++)
                                Multiply(sum, (lane, register) => Activations(at, lane / 4 + register % 2 * 8, lane % 4, part * 4 + register / 2 * 2), lane => Weights(lane, at)[(part * 4)..(part * 4 + 4)]);
                        else
                            for (var lane = 0; lane < 32; lane++)
                                for (var i = 0; i < b; i++)
                                    for (var j = 0; j < vector; j++) sum[i, lane / 4] += Weights(lane, at)[j] * packed[(at * b + i) * group + lane % 4 * vector + j];
                    for (var i = 0; i < b; i++)
                        for (var r = 0; r < Tile; r++) partial[warp, i, r] = sum[i, r];

                    double[] Weights(int lane, int g)
                    {
                        var row = Math.Min(first + tile * Tile + lane / 4, rows - 1);
                        return [.. Enumerable.Range(g * group + lane % 4 * vector, vector).Select(c => c < columns ? (double)w[row, c] : 0)];
                    }

                    double[] Activations(int g, int i, int t, int from) => i < b ? packed[((g * b + i) * group + t * vector + from)..][..2] : [0, 0];
                }
                for (var i = 0; i < width * b; i++)
                {
                    var (r, row) = (i % width, i / width);
                    for (var s = 0; s < slices && first + r < rows; s++) sums[first + r, row] += partial[r / Tile * slices + s, row, r % Tile];
                }
            }
        for (var i = 0; i < rows; i++)
            for (var r = 0; r < b; r++)
            {
                var expected = 0;
                for (var c = 0; c < columns; c++) expected += w[i, c] * x[r, c];
                sums[i, r].Should().Be(expected, $"row {i} by {r}");
            }
    }

    [Theory]
    [InlineData(1536, 3072)]
    [InlineData(3072, 1536)]
    [InlineData(5120, 2560)]
    [InlineData(2560, 5120)]
    [InlineData(10240, 2560)]
    [InlineData(50280, 2560)]
    public void ThePublishedSizesStandOnTheMultiprocessorsAtOnce(int rows, int columns)
    {
        var grid = new DecodeGrid(132, 232448, 2);
        var blocks = grid.Blocks(rows, columns, 132);
        blocks.Should().BeInRange(rows > 20_000 ? 132 : 80, 132);
        (grid.Groups(columns) % grid.Slices(rows, columns, 132)).Should().Be(0, "every warp then has the same number of loads");
    }

    [Fact]
    public unsafe void TheControlBlockIsLaidOutAsInTheKernels()
    {
        sizeof(DecodeControl).Should().Be(408);
        var control = new DecodeControl();
        Offset(ref control.Positions).Should().Be(64);
        Offset(ref control.Steps).Should().Be(192);
        Offset(ref control.Random).Should().Be(256);
        Offset(ref control.TopP).Should().Be(384);
        Offset(ref control.TopK).Should().Be(400);

        int Offset<T>(ref T field) => (int)Unsafe.ByteOffset(ref Unsafe.As<DecodeControl, byte>(ref control), ref Unsafe.As<T, byte>(ref field));
    }
}
