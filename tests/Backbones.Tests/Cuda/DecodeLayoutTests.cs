using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using MambaVL.Cuda;

namespace MambaVL.Tests.Cuda;

/// <summary>The index arithmetic of decode.cuh, walked through on the CPU lane by lane.</summary>
public class DecodeLayoutTests
{
    private const int Tile = 8, Warps = 8, Places = 264, MostTiles = 6;

    // (rows, columns) of products, of 16-bit weights and of float32.
    public static TheoryData<int, int, int, int> Cases => new()
    {
        { 14000, 40, 2, 1 }, { 50, 1536, 2, 8 }, { 1100, 136, 2, 2 }, { 37, 74, 2, 16 }, { 101, 37, 2, 3 }, { 50, 200, 4, 4 }, { 13, 37, 4, 2 },
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

        var grid = new DecodeGrid(232448, size);
        grid.Groups(columns).Should().Be(groups);
        grid.PackedBytes(columns, b).Should().Be(packed.Length * 4);
        // Product<rows, blocks, columns>
        int blocks = Math.Min((rows + 3) / 4, Places), tiles = ((rows + blocks - 1) / blocks + Tile - 1) / Tile, passes = (tiles + MostTiles - 1) / MostTiles, atOnce = (tiles + passes - 1) / passes;
        var sums = new double[rows, b];
        for (var block = 0; block < blocks; block++)
        {
            int first = (int)((long)rows * block / blocks), end = (int)((long)rows * (block + 1) / blocks);
            for (var tile = 0; tile < passes * atOnce; tile++)
            {
                var partial = new double[Warps, b, Tile];
                for (var warp = 0; warp < Warps; warp++)
                {
                    var sum = new double[16, 8];
                    for (var step = 0; step < (groups + Warps - 1) / Warps; step++)
                    {
                        var at = step * Warps + warp;
                        if (at >= groups) continue; // zeros by zeros
                        if (size == 2)
                            for (var part = 0; part < 2; part++)
                                Multiply(sum, (lane, register) => Activations(at, lane / 4 + register % 2 * 8, lane % 4, part * 4 + register / 2 * 2), lane => Weights(lane, at)[(part * 4)..(part * 4 + 4)]);
                        else
                            for (var lane = 0; lane < 32; lane++)
                                for (var i = 0; i < b; i++)
                                    for (var j = 0; j < vector; j++) sum[i, lane / 4] += Weights(lane, at)[j] * packed[(at * b + i) * group + lane % 4 * vector + j];
                    }
                    for (var i = 0; i < b; i++)
                        for (var r = 0; r < Tile; r++) partial[warp, i, r] = sum[i, r];
                }
                for (var r = 0; r < Tile; r++)
                    for (var i = 0; i < b && first + tile * Tile + r < end; i++)
                        for (var warp = 0; warp < Warps; warp++) sums[first + tile * Tile + r, i] += partial[warp, i, r];

                double[] Weights(int lane, int g)
                {
                    var row = first + tile * Tile + lane / 4;
                    return [.. Enumerable.Range(g * group + lane % 4 * vector, vector).Select(c => c < columns && row < end ? (double)w[row, c] : 0)];
                }

                double[] Activations(int g, int i, int t, int from) => i < b ? packed[((g * b + i) * group + t * vector + from)..][..2] : [0, 0];
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

    // The most shared memory of a block on compute capability 7.5, 8.0, 8.6 and 9.0; a multiprocessor has 1 KB more from 8.0 on.
    [Theory]
    [InlineData(65536, 0)]
    [InlineData(166912, 1024)]
    [InlineData(101376, 1024)]
    [InlineData(232448, 1024)]
    public void TheBlocksOfTwoKernelsShareAMultiprocessor(int sharedBytes, int more)
    {
        var room = new DecodeGrid(sharedBytes, 2).Room;
        (4 * (room + (more == 0 ? 0 : 1024))).Should().BeLessThan(sharedBytes + more);
        // The least that a product of 16 rows needs: the sums of one tile, and the weights of one step.
        (Warps * Tile * 16 * sizeof(float) + DecodeGrid.Threads * 16).Should().BeLessThanOrEqualTo(room);
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
