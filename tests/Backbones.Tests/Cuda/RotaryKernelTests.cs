using MambaVL.Cuda;
using TorchSharp;
using Xunit.Abstractions;
using static TorchSharp.torch;

namespace MambaVL.Tests.Cuda;

public class RotaryKernelTests(ITestOutputHelper output)
{
    // Heads, width, turned, halves, by head, rows, tokens: EVA-02-L, a small one, odd ones; Pythia 160m, 2.8b, and odd ones.
    public static TheoryData<int, int, int, bool, bool, int, int> Shapes => new()
    {
        { 16, 64, 64, false, false, 2, 577 }, { 6, 32, 32, false, false, 3, 65 }, { 3, 20, 20, false, false, 1, 7 }, { 5, 4, 4, false, false, 3, 1 },
        { 12, 64, 16, true, true, 1, 640 }, { 32, 80, 20, true, true, 2, 33 }, { 3, 19, 6, true, true, 3, 5 }, { 1, 80, 80, true, true, 1, 1 }, { 4, 16, 4, true, true, 2, 100 },
    };

    private static readonly ScalarType[] Types = [ScalarType.Float32, ScalarType.BFloat16, ScalarType.Float16];

    [Theory]
    [MemberData(nameof(Shapes))]
    public void TheKernelsWalkReachesEveryNumberOnce(int count, int width, int turned, bool halves, bool byHead, int rows, int tokens)
    {
        var shape = new RotaryShape(count, width, turned, halves, byHead);
        using var scope = NewDisposeScope();
        using var random = new Generator(5);
        var packed = randn([rows, tokens, shape.Packed], generator: random);
        var table = Table(shape, tokens, random);
        var expected = Reference(shape, packed, table);
        foreach (var inPlace in new[] { false, true })
        {
            // Addresses from zero on stand for memory; the results follow the projection.
            var size = sizeof(float);
            var memory = packed.data<float>().ToArray();
            Array.Resize(ref memory, 2 * memory.Length);
            Array.Fill(memory, float.NaN, memory.Length / 2, memory.Length / 2);
            var one = (nint)rows * tokens * count * width * size;
            var from = Enumerable.Range(0, 3).Select(part => shape.Of(0, size, tokens, part)).ToArray();
            var to = inPlace ? from : [.. Enumerable.Range(0, 3).Select(part => new Heads(3 * one + part * one, tokens * count * width, count * width, width))];
            Emulate(shape, memory, table.data<float>().ToArray(), 1, RotaryKernel.Vector(shape, size, [.. from, .. to]), rows, tokens, from, to);
            for (var part = 0; part < 3; part++)
            {
                var actual = tensor(memory).as_strided([rows, count, tokens, width], [to[part].Row, to[part].Head, to[part].Token, 1], to[part].First / size);
                output.Close(actual, expected[part], 1e-6, $"part {part}{(inPlace ? " in place" : "")}");
            }
        }
    }

    [SkippableTheory]
    [MemberData(nameof(Shapes))]
    public void EqualsTheReferenceForwardAndBackward(int count, int width, int turned, bool halves, bool byHead, int rows, int tokens)
    {
        var gpu = CudaTesting.Gpu();
        var shape = new RotaryShape(count, width, turned, halves, byHead);
        foreach (var type in Types)
        {
            using var scope = NewDisposeScope();
            using var random = new Generator((ulong)(width + tokens));
            var packed = CudaNumbers.Normal(random, type, rows, tokens, shape.Packed);
            var table = Table(shape, tokens, random);
            var onGpu = (halves ? table : table.view_as_complex()).to(CUDA);
            var exact = packed.to(ScalarType.Float64).cpu().requires_grad_();
            var expected = Reference(shape, exact, table.to(ScalarType.Float64));
            var gradients = expected.Select(_ => CudaNumbers.Normal(random, type, rows, count, tokens, width)).ToArray();
            autograd.backward([.. expected], [.. gradients.Select(g => g.to(ScalarType.Float64).cpu())]);
            var tolerance = CudaNumbers.Tolerance(type);

            var learning = packed.clone().requires_grad_();
            var (q, k, v) = RotaryKernel.Split(gpu, shape, learning, onGpu);
            autograd.backward([q, k, v], [.. gradients]);
            var again = packed.clone().requires_grad_();
            var (q2, k2, v2) = RotaryKernel.Split(gpu, shape, again, onGpu);
            autograd.backward([q2, k2, v2], [.. gradients]);
            var turnedInPlace = packed.clone();
            var (q3, k3, v3) = RotaryKernel.Split(gpu, shape, turnedInPlace, onGpu);

            foreach (var (name, i, first, second, third) in new[] { ("queries", 0, q, q2, q3), ("keys", 1, k, k2, k3), ("values", 2, v, v2, v3) })
            {
                output.Close(first, expected[i], tolerance, $"{type} {name}");
                CudaNumbers.SameBits(second, first, name);
                CudaNumbers.SameBits(third, first, $"{name} in place");
            }
            output.Close(learning.grad!, exact.grad!, tolerance, $"{type} gradient");
            CudaNumbers.SameBits(again.grad!, learning.grad!, "gradient");
        }
    }

    [SkippableFact]
    public void QueriesAloneHaveAGradientToo()
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        using var random = new Generator(1);
        var shape = new RotaryShape(3, 8, 8, Halves: false, ByHead: false);
        var (packed, table) = (CudaNumbers.Normal(random, ScalarType.Float32, 2, 5, shape.Packed), Table(shape, 5, random));
        var exact = packed.to(ScalarType.Float64).cpu().requires_grad_();
        Reference(shape, exact, table.to(ScalarType.Float64))[0].sum().backward();
        packed.requires_grad_();
        RotaryKernel.Split(gpu, shape, packed, table.to(CUDA)).Query.sum().backward(); // the gradient of a sum is an expanded scalar
        output.Close(packed.grad!, exact.grad!, 1e-5, "gradient");
    }

    [SkippableTheory]
    [MemberData(nameof(Shapes))]
    public void ACacheGetsKeysAndValuesAndKeepsTheRest(int count, int width, int turned, bool halves, bool byHead, int rows, int tokens)
    {
        var gpu = CudaTesting.Gpu();
        const int first = 11;
        var shape = new RotaryShape(count, width, turned, halves, byHead);
        foreach (var type in Types)
        {
            using var scope = NewDisposeScope();
            using var random = new Generator((ulong)width);
            var packed = CudaNumbers.Normal(random, type, rows, tokens, shape.Packed);
            var table = Table(shape, first + tokens, random);
            var expected = Reference(shape, packed.to(ScalarType.Float64).cpu(), table.to(ScalarType.Float64)[first..]);
            var (keys, values) = (CudaNumbers.Poisoned(type, rows, count, first + tokens + 2, width), CudaNumbers.Poisoned(type, rows, count, first + tokens + 2, width));
            keys.narrow(2, 0, first).fill_(2);
            values.narrow(2, 0, first).fill_(3);
            var (q, k, v) = RotaryKernel.SplitToCache(gpu, shape, packed, table.to(CUDA), keys, values, first);
            output.Close(q, expected[0], CudaNumbers.Tolerance(type), $"{type} queries");
            foreach (var (name, i, all, cache, before) in new[] { ("keys", 1, k, keys, 2), ("values", 2, v, values, 3) })
            {
                all.shape.Should().Equal(rows, count, first + tokens, width);
                output.Close(all.narrow(2, first, tokens), expected[i], CudaNumbers.Tolerance(type), $"{type} {name}");
                all.narrow(2, 0, first).eq(before).all().item<bool>().Should().BeTrue($"{name} that were there stay");
                cache.narrow(2, first + tokens, 2).isnan().all().item<bool>().Should().BeTrue($"{name} behind the last are not touched");
            }
        }
    }

    [SkippableFact]
    public void WrongArgumentsAreNamedBeforeAnyLaunch()
    {
        var gpu = CudaTesting.Gpu();
        using var scope = NewDisposeScope();
        var shape = new RotaryShape(2, 8, 8, Halves: false, ByHead: false);
        var (packed, table, cache) = (zeros(1, 5, 48, device: CUDA), zeros(5, 4, 2, device: CUDA), zeros(1, 2, 9, 8, device: CUDA));
        Refused(() => RotaryKernel.Split(gpu, shape, packed.cpu(), table), "packed", "*on cpu; expected a contiguous [rows, tokens, 48]*");
        Refused(() => RotaryKernel.Split(gpu, shape, packed[.., .., ..47], table), "packed", "*47*");
        Refused(() => RotaryKernel.Split(gpu, shape, zeros(1, 48, 5, device: CUDA).transpose(1, 2), table), "packed", "*strided*");
        Refused(() => RotaryKernel.Split(gpu, shape, packed.to(ScalarType.Float64), table), "type", "*Float64*");
        Refused(() => RotaryKernel.Split(gpu, shape, packed, table[..4]), "table", "*5 times 4 cosines*");
        Refused(() => RotaryKernel.Split(gpu, shape, packed, table.to(ScalarType.BFloat16)), "table", "*BFloat16*");
        Refused(() => RotaryKernel.SplitToCache(gpu, shape, packed, zeros(9, 4, 2, device: CUDA), cache, cache.to(ScalarType.BFloat16), 2), "values", "*BFloat16*at least 7*");
        Refused(() => RotaryKernel.SplitToCache(gpu, shape, packed, zeros(12, 4, 2, device: CUDA), cache, cache, 5), "keys", "*at least 10*");
        Refused(() => RotaryKernel.SplitToCache(gpu, shape, zeros(2, 5, 48, device: CUDA), table, cache, cache, 0), "keys", "*[2, 2, at least 5, 8]*");

        static void Refused(Action call, string argument, string message) => call.Should().Throw<ArgumentException>().WithParameterName(argument).WithMessage(message);
    }

    private static Tensor Table(RotaryShape shape, int tokens, Generator random)
    {
        var angles = randn([tokens, shape.Turned / 2], generator: random) * 3;
        return stack([angles.cos(), angles.sin()], -1); // (tokens, turned / 2, 2)
    }

    private static Tensor[] Reference(RotaryShape shape, Tensor packed, Tensor table)
    {
        var (b, l, n) = (packed.shape[0], packed.shape[1], shape.Turned / 2);
        var parts = shape.ByHead
            ? packed.view(b, l, shape.Count, 3, shape.Width).permute(3, 0, 2, 1, 4)
            : packed.view(b, l, 3, shape.Count, shape.Width).permute(2, 0, 3, 1, 4);  // (3, b, h, l, k)
        return [Turn(parts[0]), Turn(parts[1]), parts[2]];

        Tensor Turn(Tensor x)
        {
            var (cos, sin) = (table[.., .., 0], table[.., .., 1]);                      // (l, n)
            var moving = x.narrow(-1, 0, 2 * n);
            var pairs = shape.Halves ? moving.unflatten(3, 2, n).transpose(-1, -2) : moving.unflatten(3, n, 2); // (b, h, l, n, 2)
            var (first, second) = (pairs.select(-1, 0), pairs.select(-1, 1));
            var turned = stack([first * cos - second * sin, second * cos + first * sin], -1);
            turned = (shape.Halves ? turned.transpose(-1, -2) : turned).flatten(-2);
            return cat([turned, x.narrow(-1, 2 * n, shape.Width - 2 * n)], -1);
        }
    }

    /// <summary>rotary.cu, thread after thread.</summary>
    private static void Emulate(RotaryShape shape, float[] memory, float[] table, float sign, int vector, int rows, int tokens, Heads[] from, Heads[] to)
    {
        var copied = Enumerable.Range(0, 3).Select(i => from[i].First != to[i].First).ToArray();
        var turnedUnits = shape.Turned / (shape.Halves ? 2 : 1) / vector;
        var rest = (shape.Width - shape.Turned) / vector;
        int[] each = [turnedUnits + (copied[0] ? rest : 0), turnedUnits + (copied[1] ? rest : 0), copied[2] ? shape.Width / vector : 0];
        var units = shape.Count * each.Sum();
        for (var row = 0; row < rows; row++)
        for (var index = 0; index < (tokens * units + 255) / 256 * 256; index++)
        {
            var (token, unit, part) = (index / units, index % units, 0);
            if (token >= tokens) continue;
            for (; unit >= shape.Count * each[part]; part++) unit -= shape.Count * each[part];
            var head = unit / each[part];
            unit %= each[part];
            var source = At(from[part]);
            var target = At(to[part]);
            if (part == 2 || unit >= turnedUnits)
            {
                var at = part == 2 ? unit * vector : shape.Turned + (unit - turnedUnits) * vector;
                for (var i = 0; i < vector; i++) memory[target + at + i] = memory[source + at + i];
                continue;
            }
            for (var i = 0; i < vector; i += shape.Halves ? 1 : 2)
            {
                var (a, b) = shape.Halves ? (unit * vector + i, shape.Turned / 2 + unit * vector + i) : (unit * vector + i, unit * vector + i + 1);
                var pair = token * shape.Turned / 2 + (shape.Halves ? a : a / 2);
                var (x, y, cos, sin) = (memory[source + a], memory[source + b], table[2 * pair], sign * table[2 * pair + 1]);
                (memory[target + a], memory[target + b]) = (x * cos - y * sin, y * cos + x * sin);
            }

            long At(Heads heads) => heads.First / sizeof(float) + row * heads.Row + token * heads.Token + head * heads.Head;
        }
    }
}
