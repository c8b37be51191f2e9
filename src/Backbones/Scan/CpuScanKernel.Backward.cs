using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace MambaVL.Scan;

/// <summary>What the backward pass reads and writes beside the memory of the forward pass.</summary>
internal unsafe struct ScanGradients
{
    public Strided Output;             // (b, d, l), may be absent
    public float* LastState;           // (b, d, n), or null
    public Strided U, Delta, Z;        // (b, d, l); Z absent where there is no gate
    public float* A;                   // (d, n), summed over rows
    public float* D, DeltaBias;        // (d), summed over rows
    public float* InitialState;        // (b, d, n)
    public float* B, C;                // (groups, l, padded n) of the row at work: one sum for each group of channels
    public int PaddedStates;           // n rounded up to the width
}

internal static unsafe partial class CpuScanKernel<V>
{
    /// <summary>Floats of working memory that Backward needs.</summary>
    public static int BackwardScratch(int states) =>
        (3 * states + 2 * (CpuScan.Chunk + 1) * states + 3 * V.Width + 9 * CpuScan.Chunk) * V.Width;

    /// <summary>All tiles of one group of channels of one row, from the last step to the first.</summary>
    public static void BackwardGroup(in ScanMemory x, in ScanGradients g, int row, int group, float* scratch)
    {
        var size = (long)x.Length * g.PaddedStates;
        var B = g.B + group * size;
        var C = g.C + group * size;
        NativeMemory.Clear(B, (nuint)size * sizeof(float));
        NativeMemory.Clear(C, (nuint)size * sizeof(float));
        var tiles = (x.Channels + V.Width - 1) / V.Width;
        var perGroup = CpuScan.GroupChannels / V.Width;
        for (var tile = group * perGroup; tile < Math.Min(tiles, (group + 1) * perGroup); tile++)
            Backward(x, g, row, tile, tiles, B, C, scratch);
    }

    private static void Backward(in ScanMemory x, in ScanGradients g, int row, int tile, int tiles, float* gradB, float* gradC, float* scratch)
    {
        var (w, n) = (V.Width, x.States);
        var channel = tile * w;
        var channels = Math.Min(w, x.Channels - channel);
        var states = row * x.Channels + channel;
        var p = new Pieces
        {
            Sums = Take(ref scratch, 3 * n),
            History = Take(ref scratch, 2 * (CpuScan.Chunk + 1) * n + 2 * w), // SumEach reads on to a multiple of w states
            Products = Take(ref scratch, w),
            U = Take(ref scratch, CpuScan.Chunk),
            Step = Take(ref scratch, CpuScan.Chunk),
            Slope = Take(ref scratch, CpuScan.Chunk),
            Entering = Take(ref scratch, CpuScan.Chunk),
            Y = Take(ref scratch, CpuScan.Chunk),
            Z = Take(ref scratch, CpuScan.Chunk),
            GradY = Take(ref scratch, CpuScan.Chunk),
            GradU = Take(ref scratch, CpuScan.Chunk),
            D = Channel(x.D, channel, channels),
            DeltaBias = Channel(x.DeltaBias, channel, channels),
            GradD = V.All(0),
            GradBias = V.All(0),
        };
        var stage = Take(ref scratch, CpuScan.Chunk);
        LoadStates(g.LastState, states, channels, n, 1, p.Sums + GradState, 3 * w);
        LoadStates(null, 0, 0, n, 1, p.Sums + GradA, 3 * w);
        LoadStates(x.A, channel, channels, n, VectorMath.Log2E, p.Sums + A, 3 * w);

        for (var chunk = x.Chunks - 1; chunk >= 0; chunk--)
        {
            var time = chunk * CpuScan.Chunk;
            var steps = Math.Min(CpuScan.Chunk, x.Length - time);
            x.U.Load(row, channel, channels, time, steps, w, p.U, stage);
            x.Delta.Load(row, channel, channels, time, steps, w, p.Step, stage);
            if (g.Output.Exists) g.Output.Load(row, channel, channels, time, steps, w, p.GradY, stage);
            else new Span<float>(p.GradY, steps * w).Clear();
            if (x.Z.Exists) x.Z.Load(row, channel, channels, time, steps, w, p.Z, stage);
            var checkpoint = x.Checkpoint(row, tile, tiles, chunk, w);
            for (var i = 0; i < n; i++) V.Load(checkpoint + i * w).Store(p.History + (2 * i + 1) * w);

            var (ahead, more) = (time - CpuScan.Chunk, chunk > 0 ? CpuScan.Chunk : 0);
            x.U.Prefetch(row, channel, channels, ahead, more);
            x.Delta.Prefetch(row, channel, channels, ahead, more);
            if (g.Output.Exists) g.Output.Prefetch(row, channel, channels, ahead, more);
            if (x.Z.Exists) x.Z.Prefetch(row, channel, channels, ahead, more);
            g.U.Prefetch(row, channel, channels, time, steps);
            g.Delta.Prefetch(row, channel, channels, time, steps);
            if (x.Z.Exists) g.Z.Prefetch(row, channel, channels, time, steps);

            Steps(steps, p.Step, p.DeltaBias, x.Softplus, p.U, p.Entering, p.Slope);
            var inputs = ((long)row * x.Length + time) * n;
            Recompute(steps, n, p, x.B + inputs, x.C + inputs);
            if (x.Z.Exists) Gate(steps, p);
            var sums = (long)time * g.PaddedStates;
            Reverse(steps, n, ref p, x.B + inputs, x.C + inputs, gradB + sums, gradC + sums, g.PaddedStates);

            g.U.Store(row, channel, channels, time, steps, w, p.GradU, stage);
            g.Delta.Store(row, channel, channels, time, steps, w, p.Slope, stage);
            if (x.Z.Exists) g.Z.Store(row, channel, channels, time, steps, w, p.Z, stage);
        }
        StoreStates(p.Sums + GradState, 3 * w, states, channels, n, g.InitialState);
        // Rows follow one another, so that these sums too have one order.
        AddStates(p.Sums + GradA, 3 * w, channel, channels, n, g.A);
        AddChannel(p.GradD, channel, channels, g.D);
        AddChannel(p.GradBias, channel, channels, g.DeltaBias);
    }

    // Of one tile and chunk. What the loop over states needs lies together, as it would run out of registers for addresses.
    private struct Pieces
    {
        public float* Sums;     // (n, 3, w): gradient of the state, gradient of A, A times log2(e)
        public float* History;  // (chunk + 1, n, 2, w): decay of a step, state before it
        public float* Products; // (w, w)
        public float* U, Step, Entering, Y, GradU; // (chunk, w), and so are the next ones
        public float* Slope;    // of softplus; then the gradient of delta
        public float* Z;        // then its gradient
        public float* GradY;    // the gradient of the output; then of y, before the gate
        public V D, DeltaBias, GradD, GradBias;
    }

    private static int GradState => 0;

    private static int GradA => V.Width;

    private static int A => 2 * V.Width;

    // As Recur, and keeps each step's decay and state.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Recompute(int steps, int n, in Pieces p, float* B, float* C)
    {
        var history = p.History;
        for (var t = 0; t < steps; t++)
        {
            var dt = V.Load(p.Step + t * V.Width);
            var v = V.Load(p.Entering + t * V.Width);
            var sum = V.All(0);
            var a = p.Sums + A;
            var after = history + 2 * n * V.Width;
            for (var i = 0; i < n; i++)
            {
                var decay = VectorMath.Exp2(dt * V.Load(a));
                decay.Store(history);
                var next = V.Fma(decay, V.Load(history + V.Width), v * V.All(*B++));
                next.Store(after + V.Width);
                sum = V.Fma(next, V.All(*C++), sum);
                a += 3 * V.Width;
                history += 2 * V.Width;
                after += 2 * V.Width;
            }
            V.Fma(p.D, V.Load(p.U + t * V.Width), sum).Store(p.Y + t * V.Width);
        }
    }

    // out = y silu(z)
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Gate(int steps, in Pieces p)
    {
        for (var i = 0; i < steps * V.Width; i += V.Width)
        {
            var z = V.Load(p.Z + i);
            var sigmoid = VectorMath.Sigmoid(z);
            var gradOutput = V.Load(p.GradY + i);
            (gradOutput * V.Load(p.Y + i) * sigmoid * V.Fma(z, V.All(1) - sigmoid, V.All(1))).Store(p.Z + i);
            (gradOutput * z * sigmoid).Store(p.GradY + i);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Reverse(int steps, int n, ref Pieces p, float* B, float* C, float* gradB, float* gradC, int padded)
    {
        var (gradD, gradBias) = (p.GradD, p.GradBias);
        var products = p.Products;
        for (var t = steps - 1; t >= 0; t--)
        {
            var lane = t * V.Width;
            var (gradY, dt, v) = (V.Load(p.GradY + lane), V.Load(p.Step + lane), V.Load(p.Entering + lane));
            var (throughA, throughB) = (V.All(0), V.All(0));
            var sums = p.Sums;
            var history = p.History + (long)t * n * 2 * V.Width;
            var after = history + n * 2 * V.Width;
            var b = B + (long)t * n;
            var c = C + (long)t * n;
            for (var first = 0; first < n; first += V.Width)
            {
                var product = products;
                for (var left = Math.Min(V.Width, n - first); left > 0; left--)
                {
                    var grad = V.Fma(gradY, V.All(*c++), V.Load(sums));        // of the state after step t
                    grad.Store(product);
                    var earlier = V.Load(history) * grad;                      // of the state before it
                    earlier.Store(sums);
                    var exponent = earlier * V.Load(history + V.Width);        // of step A
                    V.Fma(exponent, dt, V.Load(sums + V.Width)).Store(sums + V.Width);
                    throughA = V.Fma(exponent, V.Load(sums + 2 * V.Width), throughA);
                    throughB = V.Fma(grad, V.All(*b++), throughB);
                    product += V.Width;
                    sums += 3 * V.Width;
                    history += 2 * V.Width;
                }
                var sum = (long)t * padded + first;
                (V.Load(gradB + sum) + V.SumEach(products, V.Width, v)).Store(gradB + sum);
                (V.Load(gradC + sum) + V.SumEach(after + V.Width, 2 * V.Width, gradY)).Store(gradC + sum);
                after += 2 * V.Width * V.Width;
            }
            var u = V.Load(p.U + lane);
            V.Fma(gradY, p.D, dt * throughB).Store(p.GradU + lane);
            var gradDelta = V.Fma(u, throughB, V.All(VectorMath.Ln2) * throughA) * V.Load(p.Slope + lane);
            gradDelta.Store(p.Slope + lane);
            gradBias += gradDelta;
            gradD = V.Fma(gradY, u, gradD);
        }
        (p.GradD, p.GradBias) = (gradD, gradBias);
    }

    /// <summary>Adds up the groups, in order, for some steps of the row: (groups, l, padded n) to (l, n).</summary>
    public static void AddGroups(float* groups, int count, int length, int padded, int from, int to, int states, float* sum)
    {
        var lanes = stackalloc float[V.Width];
        for (var t = from; t < to; t++)
            for (var first = 0; first < states; first += V.Width)
            {
                var total = V.All(0);
                for (var g = 0; g < count; g++) total += V.Load(groups + ((long)g * length + t) * padded + first);
                total.Store(lanes);
                for (var i = 0; i < Math.Min(V.Width, states - first); i++) sum[(long)t * states + first + i] = lanes[i];
            }
    }

    private static void AddStates(float* from, int stride, int channel, int channels, int n, float* to)
    {
        to += (long)channel * n;
        for (var c = 0; c < channels; c++)
            for (var i = 0; i < n; i++)
                to[c * n + i] += from[i * stride + c];
    }

    private static void AddChannel(V from, int channel, int channels, float* to)
    {
        var lanes = stackalloc float[V.Width];
        from.Store(lanes);
        for (var c = 0; c < channels; c++) to[channel + c] += lanes[c];
    }
}
