using System.Runtime.CompilerServices;

namespace MambaVL.Scan;

/// <summary>The memory that one scan works on. Everything that is not <see cref="Strided"/> is contiguous float32.</summary>
internal unsafe struct ScanMemory
{
    public int Batch, Channels, Length, States;
    public bool Softplus;
    public Strided U, Delta, Z, Output;   // (b, d, l)
    public float* A;                      // (d, n)
    public float* B, C;                   // (b, l, n)
    public float* D, DeltaBias;           // (d), or null
    public float* InitialState;           // (b, d, n), or null
    public float* LastState;              // (b, d, n)
    public float* Checkpoints;            // (b, tiles, chunks, n, width): the state before each chunk; null where no backward follows

    public readonly int Chunks => (Length + CpuScan.Chunk - 1) / CpuScan.Chunk;

    public readonly float* Checkpoint(int row, int tile, int tiles, int chunk, int width) =>
        Checkpoints + (((long)row * tiles + tile) * Chunks + chunk) * States * width;
}

/// <summary>The recurrence over one tile: as many channels of one row as a vector has lanes, all steps of time.
/// In the shapes below w is the width.</summary>
internal static unsafe partial class CpuScanKernel<V> where V : unmanaged, ILanes<V>
{
    /// <summary>Floats of working memory that Forward needs.</summary>
    public static int ForwardScratch(int states) => (2 * states + 7 * CpuScan.Chunk) * V.Width;

    /// <summary>All steps of one tile.</summary>
    public static void Forward(in ScanMemory x, int row, int tile, int tiles, float* scratch)
    {
        var (w, n) = (V.Width, x.States);
        var channel = tile * w;
        var channels = Math.Min(w, x.Channels - channel);
        var a = Take(ref scratch, n);                 // (n, w), times log2(e)
        var state = Take(ref scratch, n);             // (n, w)
        var step = Take(ref scratch, CpuScan.Chunk);  // (chunk, w), and so are the next ones
        var u = Take(ref scratch, CpuScan.Chunk);
        var entering = Take(ref scratch, CpuScan.Chunk);
        var z = Take(ref scratch, CpuScan.Chunk);
        var y = Take(ref scratch, CpuScan.Chunk);
        var stage = Take(ref scratch, CpuScan.Chunk);
        var (D, bias) = (Channel(x.D, channel, channels), Channel(x.DeltaBias, channel, channels));

        LoadStates(x.A, channel, channels, n, VectorMath.Log2E, a, w);
        LoadStates(x.InitialState, row * x.Channels + channel, channels, n, 1, state, w);
        for (var (time, chunk) = (0, 0); time < x.Length; time += CpuScan.Chunk, chunk++)
        {
            var steps = Math.Min(CpuScan.Chunk, x.Length - time);
            if (x.Checkpoints != null)
                Buffer.MemoryCopy(state, x.Checkpoint(row, tile, tiles, chunk, w), (long)n * w * 4, (long)n * w * 4);
            x.U.Load(row, channel, channels, time, steps, w, u, stage);
            x.Delta.Load(row, channel, channels, time, steps, w, step, stage);
            if (x.Z.Exists) x.Z.Load(row, channel, channels, time, steps, w, z, stage);
            var (ahead, more) = (time + steps, Math.Min(CpuScan.Chunk, x.Length - time - steps));
            x.U.Prefetch(row, channel, channels, ahead, more);
            x.Delta.Prefetch(row, channel, channels, ahead, more);
            if (x.Z.Exists) x.Z.Prefetch(row, channel, channels, ahead, more);
            x.Output.Prefetch(row, channel, channels, time, steps);
            Steps(steps, step, bias, x.Softplus, u, entering, null);
            var inputs = ((long)row * x.Length + time) * n;
            Recur(steps, n, step, entering, x.B + inputs, x.C + inputs, a, state, y);
            Finish(steps, y, u, D, x.Z.Exists ? z : null);
            x.Output.Store(row, channel, channels, time, steps, w, y, stage);
        }
        StoreStates(state, w, row * x.Channels + channel, channels, n, x.LastState);
    }

    // step becomes softplus(delta + bias), and slope its derivative; entering = step u.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Steps(int steps, float* step, V bias, bool softplus, float* u, float* entering, float* slope)
    {
        for (var i = 0; i < steps * V.Width; i += V.Width)
        {
            var dt = V.Load(step + i) + bias;
            var derivative = V.All(1);
            if (softplus) dt = VectorMath.Softplus(dt, out derivative);
            dt.Store(step + i);
            (dt * V.Load(u + i)).Store(entering + i);
            if (slope != null) derivative.Store(slope + i);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Recur(int steps, int n, float* step, float* entering, float* B, float* C, float* a, float* state, float* y)
    {
        for (var t = 0; t < steps; t++)
        {
            var dt = V.Load(step);
            var v = V.Load(entering);
            var sum = V.All(0);
            for (var i = 0; i < n; i++)
            {
                var decay = VectorMath.Exp2(dt * V.Load(a + i * V.Width));
                var next = V.Fma(decay, V.Load(state + i * V.Width), v * V.All(B[i]));
                next.Store(state + i * V.Width);
                sum = V.Fma(next, V.All(C[i]), sum);
            }
            sum.Store(y);
            step += V.Width;
            entering += V.Width;
            y += V.Width;
            B += n;
            C += n;
        }
    }

    // y becomes (y + D u) silu(z).
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Finish(int steps, float* y, float* u, V D, float* z)
    {
        for (var i = 0; i < steps * V.Width; i += V.Width)
        {
            var sum = V.Fma(D, V.Load(u + i), V.Load(y + i));
            if (z != null) sum *= V.Load(z + i) * VectorMath.Sigmoid(V.Load(z + i));
            sum.Store(y + i);
        }
    }

    private static float* Take(ref float* scratch, int vectors)
    {
        var taken = scratch;
        scratch += vectors * V.Width;
        return taken;
    }

    // One value a channel; zero where there is none.
    private static V Channel(float* values, int channel, int channels)
    {
        var lanes = stackalloc float[V.Width];
        for (var c = 0; c < V.Width; c++) lanes[c] = values != null && c < channels ? values[channel + c] : 0;
        return V.Load(lanes);
    }

    // (channels, n) to (n, w), scaled, with a stride between the states; zero where there is nothing.
    private static void LoadStates(float* from, int channel, int channels, int n, float scale, float* to, int stride)
    {
        for (var i = 0; i < n; i++) V.All(0).Store(to + i * stride);
        if (from == null) return;
        from += (long)channel * n;
        for (var c = 0; c < channels; c++)
            for (var i = 0; i < n; i++)
                to[i * stride + c] = from[c * n + i] * scale;
    }

    // (n, w) to (channels, n).
    private static void StoreStates(float* from, int stride, int channel, int channels, int n, float* to)
    {
        to += (long)channel * n;
        for (var c = 0; c < channels; c++)
            for (var i = 0; i < n; i++)
                to[c * n + i] = from[i * stride + c];
    }
}
