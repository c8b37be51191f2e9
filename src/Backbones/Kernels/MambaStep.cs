using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using MambaVL.Scan;

namespace MambaVL.Kernels;

// The names and sizes (b, d, e, n, r, k) are those of Models/Mamba.cs.

/// <summary>Where the weights of one layer lie.</summary>
internal struct MambaWeights
{
    public Values Norm, NormBias;         // (d)
    public Matrix InProj;                 // (2e, d)
    public Values InProjBias;             // (2e)
    public Values Conv, ConvBias;         // (e, k), (e)
    public Matrix XProj;                  // (r + 2n, e)
    public Matrix DtProj;                 // (e, r)
    public Values DtBias;                 // (e)
    public Values ALog;                   // (e, n)
    public Values D;                      // (e)
    public Matrix OutProj;                // (d, e)
    public Values OutProjBias;            // (d)
}

/// <summary>One token of b rows through one layer of Mamba, in four regions of the team's threads:
/// the input projection with convolution, the selection, the state, and the output projection.</summary>
internal unsafe struct MambaStep
{
    public int B, E, N, R, K;
    public MambaWeights Weights;
    public float** Convolution;           // for each row (e, k), the oldest input first
    public float** Scan;                  // for each row (e, n)
    public float* Residual;               // (b, d)
    public float* Normed;                 // (b, d)
    public float* U, Z, Delta, Y;         // (b, e)
    public float* Selected;               // (b, r + 2n)
    public float* BC;                     // (b, 2, n): zeros behind the n up to a whole number of vectors
    public int DStride, EStride, SelectedStride, NStride;

    // Channels come in groups of the widest vector, so that a chunk's vectors never reach into the next chunk.
    public const int Group = 16;

    // The state takes about 20 ns a channel and row: enough of them to cover what taking a chunk costs.
    private const int StateChannels = 2 * Group;

    // Memory would rest while the exponentials are computed: each channel asks for so many bytes of its share of the output
    // projection, which comes next.
    private const int NextBytes = 256;

    private readonly struct Region(MambaStep* step, Stage stage) : IRegion
    {
        public void Execute(int chunk)
        {
            if (Lanes512.IsSupported) Run<Lanes512>(chunk);
            else if (Lanes256.IsSupported) Run<Lanes256>(chunk);
            else Run<Lanes128>(chunk);
        }

        private void Run<V>(int chunk) where V : unmanaged, ILanes<V>
        {
            switch (stage)
            {
                case Stage.Input: step->Input<V>(chunk); break;
                case Stage.State: step->State<V>(chunk); break;
                default: step->Output<V>(chunk); break;
            }
        }
    }

    private enum Stage
    {
        Input,
        State,
        Output,
    }

    /// <summary>Residual += the layer's output; the states move on.</summary>
    public static void Run(CpuTeam team, int maxThreads, MambaStep* s)
    {
        var input = new Region(s, Stage.Input);
        team.Run(ref input, Chunks(s->Weights.InProj), maxThreads);
        MatVec.Run(team, s->Weights.XProj, s->U, s->EStride, s->B, s->Selected, s->SelectedStride, maxThreads);
        s->SplitSelected();
        var state = new Region(s, Stage.State);
        team.Run(ref state, (s->E + StateChannels - 1) / StateChannels, maxThreads);
        var output = new Region(s, Stage.Output);
        team.Run(ref output, Chunks(s->Weights.OutProj), maxThreads);
    }

    private static int RowsPerChunk(in Matrix w) => Math.Max(MatVec.RowsPerChunk(w) / Group, 1) * Group;

    private static int Chunks(in Matrix w) => (w.Rows + RowsPerChunk(w) - 1) / RowsPerChunk(w);

    // u and z = in_proj(x); u = silu(conv(u)). The rows of u and of z are dealt out apart, each from a multiple of Group.
    private readonly void Input<V>(int chunk) where V : unmanaged, ILanes<V>
    {
        var rows = RowsPerChunk(Weights.InProj);
        int from = chunk * rows, to = Math.Min(from + rows, 2 * E);
        if (from < E)
        {
            var end = Math.Min(to, E);
            MatVec.Rows<V>(Weights.InProj, from, end, Normed, DStride, B, U, EStride);
            for (var i = 0; i < B; i++) Convolve<V>(Convolution[i], U + (nint)i * EStride, from, end);
        }
        if (to > E)
        {
            var begin = Math.Max(from, E);
            MatVec.Rows<V>(Weights.InProj, begin, to, Normed, DStride, B, Z - E, EStride);
            if (!Weights.InProjBias.Exist) return;
            for (var i = 0; i < B; i++)
                for (var o = begin; o < to; o++) Z[(nint)i * EStride + o - E] += Weights.InProjBias[o];
        }
    }

    private readonly void Convolve<V>(float* window, float* u, int from, int to) where V : unmanaged, ILanes<V>
    {
        if (Weights.InProjBias.Exist)
            for (var c = from; c < to; c++) u[c] += Weights.InProjBias[c];
        if (K == 4) ConvolveFour(window, u, from, to);
        else
            for (var c = from; c < to; c++)
            {
                var inputs = window + (nint)c * K;
                var sum = Weights.ConvBias[c];
                for (var j = 0; j < K; j++)
                {
                    inputs[j] = j + 1 < K ? inputs[j + 1] : u[c];
                    sum = MathF.FusedMultiplyAdd(inputs[j], Weights.Conv[(nint)c * K + j], sum);
                }
                u[c] = sum;
            }
        for (var c = from; c < to; c += V.Width) Activations.Silu(V.Load(u + c)).Store(u + c);
    }

    // Every published Mamba's: a channel's window is one vector of four.
    private readonly void ConvolveFour(float* window, float* u, int from, int to)
    {
        for (var c = from; c < to; c++)
        {
            var inputs = Vector128.Shuffle(Vector128.Load(window + 4 * (nint)c), Vector128.Create(1, 2, 3, 3)).WithElement(3, u[c]);
            inputs.Store(window + 4 * (nint)c);
            var terms = inputs * Weights.Conv.Four(4 * (nint)c);
            u[c] = (terms.GetElement(0) + terms.GetElement(2)) + (terms.GetElement(1) + terms.GetElement(3)) + Weights.ConvBias[c];
        }
    }

    private readonly void SplitSelected()
    {
        for (var i = 0; i < B; i++)
        {
            var selected = Selected + (nint)i * SelectedStride + R;
            var bc = new Span<float>(BC + (nint)i * 2 * NStride, 2 * NStride);
            bc.Clear();
            new ReadOnlySpan<float>(selected, N).CopyTo(bc);
            new ReadOnlySpan<float>(selected + N, N).CopyTo(bc[NStride..]);
        }
    }

    // delta = softplus(dt_proj(selected)); state = exp(delta A) state + delta B u; y = (C state + D u) silu(z).
    private readonly void State<V>(int chunk) where V : unmanaged, ILanes<V>
    {
        int from = chunk * StateChannels, to = Math.Min(from + StateChannels, E);
        MatVec.Rows<V>(Weights.DtProj, from, to, Selected, SelectedStride, B, Delta, EStride);
        for (var i = 0; i < B; i++)
        {
            var delta = Delta + (nint)i * EStride;
            for (var c = from; c < to; c += V.Width) VectorMath.Softplus(V.Load(delta + c) + Weights.DtBias.Load<V>(c, E)).Store(delta + c);
        }
        var a = stackalloc float[4 * NStride];
        var next = Weights.OutProj.Data + Weights.OutProj.Bytes / E * from;
        for (var c = from; c < to; c += 4, next += 4 * NextBytes)
        {
            for (var ahead = 0; ahead < 4 * NextBytes; ahead += 256) MatVec.Prefetch(next + ahead, 256);
            FourChannels<V>(c, Math.Min(4, to - c), a);
        }
        for (var i = 0; i < B; i++)
        {
            float* u = U + (nint)i * EStride, z = Z + (nint)i * EStride, y = Y + (nint)i * EStride;
            for (var c = from; c < to; c += V.Width)
                (V.Fma(Weights.D.Load<V>(c, E), V.Load(u + c), V.Load(y + c)) * Activations.Silu(V.Load(z + c))).Store(y + c);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private readonly void FourChannels<V>(int channel, int count, float* a) where V : unmanaged, ILanes<V>
    {
        // A log2(e), for all rows. A channel that is not there is computed as the last one, and not stored.
        for (var j = 0; j < 4; j++)
        {
            var row = Weights.ALog.From((nint)(channel + Math.Min(j, count - 1)) * N);
            for (var q = 0; q < N; q += V.Width)
                (VectorMath.Exp(row.Load<V>(q, N)) * V.All(-VectorMath.Log2E)).Store(a + j * NStride + q);
        }
        for (var i = 0; i < B; i++)
        {
            var at = (nint)i * EStride + channel;
            var state = Scan[i] + (nint)channel * N;
            var bc = BC + (nint)i * 2 * NStride;
            V y0 = Channel<V>(state, a, Delta[at], U[at], bc), y1 = V.All(0), y2 = V.All(0), y3 = V.All(0);
            if (count > 1) y1 = Channel<V>(state + N, a + NStride, Delta[at + 1], U[at + 1], bc);
            if (count > 2) y2 = Channel<V>(state + 2 * N, a + 2 * NStride, Delta[at + 2], U[at + 2], bc);
            if (count > 3) y3 = Channel<V>(state + 3 * N, a + 3 * NStride, Delta[at + 3], U[at + 3], bc);
            Wide<V>.SumFour(y0, y1, y2, y3).Store(Y + at);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private readonly V Channel<V>(float* state, float* a, float delta, float u, float* bc) where V : unmanaged, ILanes<V>
    {
        V step = V.All(delta), entering = V.All(delta * u), y = V.All(0);
        var q = 0;
        for (; q + V.Width <= N; q += V.Width)
        {
            var next = V.Fma(VectorMath.Exp2(step * V.Load(a + q)), V.Load(state + q), entering * V.Load(bc + q));
            next.Store(state + q);
            y = V.Fma(next, V.Load(bc + NStride + q), y);
        }
        return q < N ? LastOfChannel(state, a, step, entering, bc, q, y) : y;
    }

    // B and C are zero behind n, so what is computed there counts for nothing.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private readonly V LastOfChannel<V>(float* state, float* a, V step, V entering, float* bc, int q, V y) where V : unmanaged, ILanes<V>
    {
        var lanes = stackalloc float[V.Width];
        var old = new Values(state, WeightType.Float32).Load<V>(q, N);
        var next = V.Fma(VectorMath.Exp2(step * V.Load(a + q)), old, entering * V.Load(bc + q));
        next.Store(lanes);
        for (var j = q; j < N; j++) state[j] = lanes[j - q];
        return V.Fma(next, V.Load(bc + NStride + q), y);
    }

    // residual += out_proj(y)
    private readonly void Output<V>(int chunk) where V : unmanaged, ILanes<V>
    {
        var rows = RowsPerChunk(Weights.OutProj);
        int from = chunk * rows, to = Math.Min(from + rows, Weights.OutProj.Rows);
        // Normed has been read: it takes the product.
        MatVec.Rows<V>(Weights.OutProj, from, to, Y, EStride, B, Normed, DStride);
        for (var i = 0; i < B; i++)
        {
            float* x = Residual + (nint)i * DStride, y = Normed + (nint)i * DStride;
            for (var o = from; o < to; o += V.Width)
                (V.Load(x + o) + (V.Load(y + o) + Weights.OutProjBias.Load<V>(o, Weights.OutProj.Rows))).Store(x + o);
        }
    }
}
