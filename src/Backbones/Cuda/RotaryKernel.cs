using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using MambaVL.Models;
using Microsoft.Extensions.Logging;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>Attention's heads, and what of them turns with its position.</summary>
/// <param name="Count">Heads.</param>
/// <param name="Width">The numbers of one.</param>
/// <param name="Turned">How many of a head's first numbers turn; even.</param>
/// <param name="Halves">Whether the pairs that turn are (i, i + Turned / 2), as in GPT-NeoX, rather than (2i, 2i + 1), as in EVA-02.</param>
/// <param name="ByHead">Whether a projection's row has each head's query, key and value side by side (GPT-NeoX), rather than all
/// queries, all keys, all values (EVA-02).</param>
internal sealed record RotaryShape(int Count, int Width, int Turned, bool Halves, bool ByHead)
{
    public const int Query = 0, Key = 1, Value = 2;

    /// <summary>Numbers of a token's query, key and value.</summary>
    public int Packed => 3 * Count * Width;

    private int Part => ByHead ? Width : Count * Width;

    private int Head => ByHead ? 3 * Width : Width;

    /// <summary>One of the three in a projection [rows, tokens, <see cref="Packed"/>].</summary>
    public Heads Of(nint packed, int elementSize, long tokens, int part) => new(packed + part * Part * elementSize, tokens * Packed, Packed, Head);

    /// <summary>The same as a view: [rows, heads, tokens, width].</summary>
    public Tensor View(Tensor packed, long rows, long tokens, int part)
        => packed.as_strided([rows, Count, tokens, Width], [tokens * Packed, Head, Packed, 1], packed.storage_offset() + part * Part);
}

/// <summary>Where the heads of one tensor lie; mirrors the kernel's. Distances are in numbers; the numbers of a head are neighbours.</summary>
[StructLayout(LayoutKind.Sequential)]
internal readonly record struct Heads(nint First, long Row, long Token, long Head)
{
    /// <summary>[rows, heads, tokens, width]; the last stride must be 1.</summary>
    public static Heads Of(Tensor t) => t.stride(3) == 1 || t.shape[3] == 1 ? new(CudaTensor.Pointer(t), t.stride(0), t.stride(2), t.stride(1))
        : throw new ArgumentException($"The heads have the strides {string.Join(", ", t.stride())}; the last is expected to be 1.", nameof(t));
}

/// <summary>Splits a projection into queries, keys and values, turned by their positions (Kernels/rotary.cu).</summary>
internal static class RotaryKernel
{
    private const int Threads = 256, MostRows = 65535;

    [StructLayout(LayoutKind.Sequential)]
    private struct Arguments
    {
        public Heads Query, Key, Value, QueryTo, KeyTo, ValueTo;
        public nint Table;
        public int Tokens;
        public float Sign;
    }

    private static readonly ConcurrentDictionary<(CudaGpu, RotaryShape, ScalarType, int Vector, int Copies), CudaKernel> Kernels = new();

    /// <summary>Queries, keys and values of a projection, [rows, heads, tokens, width] each. Where nothing is to be learned, the
    /// projection is turned in place and they are views of it; else they are new and autograd knows of them.</summary>
    /// <param name="gpu">Of the projection.</param>
    /// <param name="shape">The heads.</param>
    /// <param name="packed">[rows, tokens, 3 heads width], contiguous.</param>
    /// <param name="table">Cosine and sine of each pair of each token: float32 or complex, contiguous, of at least so many tokens.</param>
    public static (Tensor Query, Tensor Key, Tensor Value) Split(CudaGpu gpu, RotaryShape shape, Tensor packed, Tensor table)
    {
        var (rows, tokens) = Check(gpu, shape, packed, table, first: 0);
        if (is_grad_enabled() && packed.requires_grad) return RotaryFunction.Record(gpu, shape, packed, table);
        Heads q = Part(RotaryShape.Query), k = Part(RotaryShape.Key), v = Part(RotaryShape.Value);
        Run(gpu, shape, packed.dtype, rows, tokens, CudaTensor.Pointer(table), back: false, q, k, v, q, k, v);
        return (shape.View(packed, rows, tokens, RotaryShape.Query), shape.View(packed, rows, tokens, RotaryShape.Key), shape.View(packed, rows, tokens, RotaryShape.Value));

        Heads Part(int part) => shape.Of(CudaTensor.Pointer(packed), (int)packed.element_size(), tokens, part);
    }

    /// <summary>Turns queries in place, and writes keys, turned, and values behind those of a cache.</summary>
    /// <param name="gpu">Of the projection.</param>
    /// <param name="shape">The heads.</param>
    /// <param name="packed">[rows, tokens, 3 heads width], contiguous; needs no gradient.</param>
    /// <param name="table">As for <see cref="Split"/>, of at least <paramref name="first"/> and so many tokens.</param>
    /// <param name="keys">[rows, heads, places, width], each row contiguous.</param>
    /// <param name="values">The same.</param>
    /// <param name="first">The place, and the position, of the first new token.</param>
    /// <returns>The queries, [rows, heads, tokens, width], and all keys and values until now, [rows, heads, first + tokens, width].</returns>
    public static (Tensor Query, Tensor Key, Tensor Value) SplitToCache(CudaGpu gpu, RotaryShape shape, Tensor packed, Tensor table, Tensor keys, Tensor values, int first)
    {
        var (rows, tokens) = Check(gpu, shape, packed, table, first);
        var (size, source) = ((int)packed.element_size(), CudaTensor.Pointer(packed));
        var (keyTo, valueTo) = (Place(keys, nameof(keys)), Place(values, nameof(values)));
        var query = shape.Of(source, size, tokens, RotaryShape.Query);
        Run(gpu, shape, packed.dtype, rows, tokens, CudaTensor.Pointer(table) + (nint)first * shape.Turned * sizeof(float), back: false,
            query, shape.Of(source, size, tokens, RotaryShape.Key), shape.Of(source, size, tokens, RotaryShape.Value), query, keyTo, valueTo);
        return (shape.View(packed, rows, tokens, RotaryShape.Query), keys.narrow(2, 0, first + tokens), values.narrow(2, 0, first + tokens));

        Heads Place(Tensor cache, string name)
        {
            if (cache.dtype != packed.dtype || cache.device_type != DeviceType.CUDA || cache.device_index != gpu.Index
                || cache.dim() != 4 || cache.size(0) != rows || cache.size(1) != shape.Count || cache.size(2) < first + tokens || cache.size(3) != shape.Width
                || cache.stride(3) != 1 || cache.stride(2) != shape.Width || cache.stride(1) != cache.size(2) * shape.Width || cache.stride(0) < shape.Count * cache.stride(1))
                throw new ArgumentException($"The cache is {Shown(cache)}; expected [{rows}, {shape.Count}, at least {first + tokens}, {shape.Width}] of {packed.dtype} on cuda:{gpu.Index}, each row contiguous.", name);
            return new(CudaTensor.Pointer(cache) + (nint)first * shape.Width * size, cache.stride(0), shape.Width, cache.stride(1));
        }
    }

    /// <summary>One launch. Where a source is its own target, only what turns is touched, of values nothing.</summary>
    internal static void Run(CudaGpu gpu, RotaryShape shape, ScalarType type, long rows, long tokens, nint table, bool back,
        Heads query, Heads key, Heads value, Heads queryTo, Heads keyTo, Heads valueTo)
    {
        int copyQuery = Copies(query, queryTo), copyKey = Copies(key, keyTo), copyValue = Copies(value, valueTo);
        var vector = Vector(shape, type.ElementSize(), query, key, value, queryTo, keyTo, valueTo);
        var turned = shape.Turned / (shape.Halves ? 2 : 1) / vector;
        var rest = (shape.Width - shape.Turned) / vector;
        var units = tokens * shape.Count * (2L * turned + (copyQuery + copyKey) * rest + copyValue * shape.Width / vector);
        if (rows > MostRows || units > int.MaxValue - Threads)
            throw new ArgumentException($"{rows} rows of {tokens} tokens are more than one launch takes ({MostRows} rows).", nameof(rows));
        var kernel = Kernels.GetOrAdd((gpu, shape, type, vector, copyQuery + 2 * copyKey + 4 * copyValue), static key =>
        {
            var (gpu, shape, type, vector, copies) = key;
            return gpu.Kernel("rotary.cu", "rotary", $"TYPE={CudaTensor.TypeName(type)}", $"HEADS={shape.Count}", $"WIDTH={shape.Width}", $"TURNED={shape.Turned}",
                $"HALVES={(shape.Halves ? 1 : 0)}", $"VECTOR={vector}", $"COPY_Q={copies & 1}", $"COPY_K={copies >> 1 & 1}", $"COPY_V={copies >> 2}");
        });
        kernel.Run(CudaStream.Current(gpu.Index), new Launch(((int)((units + Threads - 1) / Threads), (int)rows, 1), (Threads, 1)), new Arguments
        {
            Query = query, Key = key, Value = value, QueryTo = queryTo, KeyTo = keyTo, ValueTo = valueTo,
            Table = table, Tokens = (int)tokens, Sign = back ? -1 : 1,
        });

        static int Copies(Heads from, Heads to) => from.First != to.First ? 1 : 0;
    }

    /// <summary>The most numbers that every length, distance and address here is a multiple of, up to 16 bytes.</summary>
    internal static int Vector(RotaryShape shape, int elementSize, params ReadOnlySpan<Heads> all)
    {
        long together = 16 / elementSize | shape.Width | shape.Turned / (shape.Halves ? 2 : 1);
        foreach (var heads in all) together |= heads.First / elementSize | heads.Row | heads.Token | heads.Head;
        var vector = (int)(together & -together);
        return vector > 1 || shape.Halves ? vector
            : throw new ArgumentException($"Heads of {shape.Width} numbers at odd distances ({string.Join(", ", all.ToArray())}) split the pairs that turn.", nameof(all));
    }

    private static (long Rows, long Tokens) Check(CudaGpu gpu, RotaryShape shape, Tensor packed, Tensor table, int first)
    {
        if (packed.dim() != 3 || packed.size(2) != shape.Packed || packed.device_type != DeviceType.CUDA || packed.device_index != gpu.Index || !packed.is_contiguous())
            throw new ArgumentException($"The projection is {Shown(packed)}; expected a contiguous [rows, tokens, {shape.Packed}] on cuda:{gpu.Index}.", nameof(packed));
        var (rows, tokens) = (packed.size(0), packed.size(1));
        var numbers = table.numel() * (table.dtype == ScalarType.ComplexFloat32 ? 2 : 1);
        if (table.dtype is not (ScalarType.Float32 or ScalarType.ComplexFloat32) || numbers < (first + tokens) * shape.Turned
            || table.device_type != DeviceType.CUDA || table.device_index != gpu.Index || !table.is_contiguous())
            throw new ArgumentException($"The table of angles is {Shown(table)}; expected {first + tokens} times {shape.Turned / 2} cosines and sines of Float32, contiguous, on cuda:{gpu.Index}.", nameof(table));
        return (rows, tokens);
    }

    private static string Shown(Tensor t) => $"{(t.is_contiguous() ? "" : "a strided ")}[{string.Join(", ", t.shape)}] of {t.dtype} on {t.device}";
}

/// <summary>The split as one operation of autograd: backward turns by the negative angles.</summary>
internal sealed class RotaryFunction : autograd.MultiTensorFunction<RotaryFunction>
{
    private const string Gpu = "gpu", Shape = "shape";

    // Autograd takes over what backward returns, but TorchSharp leaves the handle to the garbage collector, which does not see
    // its size. So each backward of a thread releases the handle of the one before.
    [ThreadStatic]
    private static Tensor? _returned;

    /// <inheritdoc/>
    public override string Name => "Rotary";

    public static (Tensor, Tensor, Tensor) Record(CudaGpu gpu, RotaryShape shape, Tensor packed, Tensor table)
    {
        var results = apply(packed, table, gpu, shape);
        return (results[0], results[1], results[2]);
    }

    public override List<Tensor> forward(autograd.AutogradContext ctx, params object[] vars)
    {
        var (packed, table, gpu, shape) = ((Tensor)vars[0], (Tensor)vars[1], (CudaGpu)vars[2], (RotaryShape)vars[3]);
        var (rows, tokens, size) = (packed.shape[0], packed.shape[1], (int)packed.element_size());
        ctx.save_data(Gpu, gpu);
        ctx.save_data(Shape, shape);
        ctx.save_for_backward([table]);
        ctx.set_materialize_grads(false); // TorchSharp's zeros need tensors that the caller's dispose scope has freed
        // Tokens before heads, as attention's own output lies: its gradients come back the same way.
        Tensor q = New(), k = New(), v = New();
        var source = CudaTensor.Pointer(packed);
        RotaryKernel.Run(gpu, shape, packed.dtype, rows, tokens, CudaTensor.Pointer(table), back: false,
            shape.Of(source, size, tokens, RotaryShape.Query), shape.Of(source, size, tokens, RotaryShape.Key), shape.Of(source, size, tokens, RotaryShape.Value),
            Heads.Of(q), Heads.Of(k), Heads.Of(v));
        return [q, k, v];

        Tensor New() => empty_strided([rows, shape.Count, tokens, shape.Width],
            [tokens * shape.Count * shape.Width, shape.Width, shape.Count * shape.Width, 1], packed.dtype, packed.device);
    }

    public override List<Tensor> backward(autograd.AutogradContext ctx, List<Tensor> grad_outputs)
    {
        _returned?.Dispose();
        using var scope = NewDisposeScope();
        Tensor gradient;
        try
        {
            if (is_grad_enabled()) throw new NotSupportedException(
                $"The rotary kernel has no second derivative (create_graph). Set {FusedChoice.Variable}=reference for one.");
            var (gpu, shape) = ((CudaGpu)ctx.get_data(Gpu), (RotaryShape)ctx.get_data(Shape));
            var table = ctx.get_saved_variables()[0];
            var given = grad_outputs.First(t => !t.IsInvalid);
            Tensor q = Near(grad_outputs[0], given), k = Near(grad_outputs[1], given), v = Near(grad_outputs[2], given);
            var (rows, tokens) = (q.shape[0], q.shape[2]);
            gradient = empty(rows, tokens, shape.Packed, dtype: q.dtype, device: q.device);
            var (target, size) = (CudaTensor.Pointer(gradient), (int)gradient.element_size());
            RotaryKernel.Run(gpu, shape, q.dtype, rows, tokens, CudaTensor.Pointer(table), back: true, Heads.Of(q), Heads.Of(k), Heads.Of(v),
                shape.Of(target, size, tokens, RotaryShape.Query), shape.Of(target, size, tokens, RotaryShape.Key), shape.Of(target, size, tokens, RotaryShape.Value));
        }
        catch (Exception e)
        {
            // An exception must not cross libtorch's frames: the process would end. A gradient that cannot fit makes
            // autograd throw to the caller of backward instead.
            BackwardErrors.Keep(e);
            CudaGpu.Logger.LogError(e, "The backward pass of the rotary kernel failed; autograd will report an invalid gradient.");
            gradient = zeros(0);
        }
        foreach (var t in grad_outputs) t.Dispose();
        _returned = gradient.MoveToOuterDisposeScope();
        return [_returned, null!, null!, null!];
    }

    // A gradient that does not exist is zero. Attention's have the numbers of a head side by side; those of a sum, say, are an
    // expanded scalar.
    private static Tensor Near(Tensor t, Tensor like) => t.IsInvalid ? zeros(like.shape, dtype: like.dtype, device: like.device)
        : t.stride(3) == 1 && (t.stride(0) | t.stride(1) | t.stride(2)) % 2 == 0 ? t : t.contiguous();
}
