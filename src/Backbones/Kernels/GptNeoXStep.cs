using System.Runtime.CompilerServices;
using MambaVL.Scan;

namespace MambaVL.Kernels;

// The names and sizes (b, d, h, k, r, t) are those of Models/GptNeoX.cs; m is the width inside the MLP.

/// <summary>Where the weights of one layer lie.</summary>
internal struct GptNeoXWeights
{
    public Values InputNorm, InputNormBias, MlpNorm, MlpNormBias; // (d)
    public Matrix Qkv;                                            // (3d, d): of each head its query, its key, its value
    public Values QkvBias;                                        // (3d)
    public Matrix Dense;                                          // (d, d)
    public Values DenseBias;                                      // (d)
    public Matrix Up, Down;                                       // (m, d), (d, m)
    public Values UpBias, DownBias;                               // (m), (d)
}

/// <summary>One row's cache in one layer.</summary>
internal readonly struct KeyValueCache(Values keys, Values values, int maxLength, int length)
{
    public readonly Values Keys = keys, Values = values; // (h, maxLength, k)
    public readonly int MaxLength = maxLength;
    public readonly int Length = length;                 // positions before the new one
}

/// <summary>One token of b rows through one layer of GPT-NeoX. With the parallel residual three regions of the team's
/// threads: both first products, attention, both second products; without it, two more.</summary>
internal unsafe struct GptNeoXStep
{
    public int B, D, H, K, R, M;
    public float NormEpsilon;
    public bool Parallel, TanhGelu;
    public GptNeoXWeights Weights;
    public KeyValueCache* Caches;         // for each row
    public float** Cos, Sin;              // for each row (r / 2): of its position
    public float* Residual;               // (b, d)
    public float* Normed, MlpNormed;      // (b, d)
    public float* Qkv;                    // (b, 3d)
    public float* Attended;               // (b, d)
    public float* Wide;                   // (b, m)
    public float* Scores;                 // (b, h, ScoreStride)
    public int DStride, QkvStride, MStride, ScoreStride;

    private const int Group = MambaStep.Group;

    private enum Stage
    {
        Qkv,
        QkvAndUp,
        Attention,
        Dense,
        Up,
        Down,
        DenseAndDown,
    }

    private readonly struct Region(GptNeoXStep* step, Stage stage) : IRegion
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
                case Stage.Qkv:
                    step->ProjectQkv<V>(chunk);
                    break;
                case Stage.QkvAndUp:
                    var first = Chunks(step->Weights.Qkv);
                    if (chunk < first) step->ProjectQkv<V>(chunk);
                    else step->ProjectUp<V>(chunk - first);
                    break;
                case Stage.Attention:
                    step->Attend<V>(chunk / step->H, chunk % step->H);
                    break;
                case Stage.Up:
                    step->ProjectUp<V>(chunk);
                    break;
                default:
                    step->AddToResidual<V>(chunk, stage);
                    break;
            }
        }
    }

    /// <summary>Residual += the layer's output; the caches hold one position more.</summary>
    public static void Run(CpuTeam team, int maxThreads, GptNeoXStep* s)
    {
        ref var w = ref s->Weights;
        s->Norm(w.InputNorm, w.InputNormBias, s->Normed);
        if (s->Parallel)
        {
            s->Norm(w.MlpNorm, w.MlpNormBias, s->MlpNormed);
            Run(Stage.QkvAndUp, Chunks(w.Qkv) + Chunks(w.Up));
            Run(Stage.Attention, s->B * s->H);
            Run(Stage.DenseAndDown, s->OutputChunks(Stage.DenseAndDown));
            return;
        }
        Run(Stage.Qkv, Chunks(w.Qkv));
        Run(Stage.Attention, s->B * s->H);
        Run(Stage.Dense, s->OutputChunks(Stage.Dense));
        s->Norm(w.MlpNorm, w.MlpNormBias, s->MlpNormed);
        Run(Stage.Up, Chunks(w.Up));
        Run(Stage.Down, s->OutputChunks(Stage.Down));

        void Run(Stage stage, int chunks)
        {
            var region = new Region(s, stage);
            team.Run(ref region, chunks, maxThreads);
        }
    }

    private static int RowsPerChunk(in Matrix w) => Math.Max(MatVec.RowsPerChunk(w) / Group, 1) * Group;

    private static int Chunks(in Matrix w) => (w.Rows + RowsPerChunk(w) - 1) / RowsPerChunk(w);

    private readonly void Norm(Values weight, Values bias, float* y)
    {
        for (var i = 0; i < B; i++) Norms.Row(Residual + (nint)i * DStride, D, weight, bias, NormEpsilon, y + (nint)i * DStride);
    }

    private readonly void ProjectQkv<V>(int chunk) where V : unmanaged, ILanes<V>
    {
        var rows = RowsPerChunk(Weights.Qkv);
        int from = chunk * rows, to = Math.Min(from + rows, Weights.Qkv.Rows);
        MatVec.Rows<V>(Weights.Qkv, from, to, Normed, DStride, B, Qkv, QkvStride);
        if (!Weights.QkvBias.Exist) return;
        for (var i = 0; i < B; i++)
        {
            var y = Qkv + (nint)i * QkvStride;
            for (var o = from; o < to; o += V.Width) (V.Load(y + o) + Weights.QkvBias.Load<V>(o, Weights.Qkv.Rows)).Store(y + o);
        }
    }

    private readonly void ProjectUp<V>(int chunk) where V : unmanaged, ILanes<V>
    {
        var rows = RowsPerChunk(Weights.Up);
        int from = chunk * rows, to = Math.Min(from + rows, M);
        MatVec.Rows<V>(Weights.Up, from, to, MlpNormed, DStride, B, Wide, MStride);
        for (var i = 0; i < B; i++)
        {
            var y = Wide + (nint)i * MStride;
            for (var o = from; o < to; o += V.Width)
            {
                var x = V.Load(y + o) + Weights.UpBias.Load<V>(o, M);
                (TanhGelu ? Activations.TanhGelu(x) : Activations.Gelu(x)).Store(y + o);
            }
        }
    }

    // softmax(q Kᵀ / sqrt(k)) V of one head of one row. The sums over positions run from the first to the last.
    private readonly void Attend<V>(int row, int head) where V : unmanaged, ILanes<V>
    {
        ref var cache = ref Caches[row];
        float* q = Qkv + (nint)row * QkvStride + (nint)head * 3 * K, key = q + K, value = key + K;
        var (length, first) = (cache.Length + 1, (nint)head * cache.MaxLength * K);
        Turn(q, Cos[row], Sin[row]);
        Turn(key, Cos[row], Sin[row]);
        Values keys = cache.Keys.From(first), values = cache.Values.From(first);
        keys.Store((nint)cache.Length * K, key, K);
        values.Store((nint)cache.Length * K, value, K);

        var scores = Scores + ((nint)row * H + head) * ScoreStride;
        MatVec.Rows<V>(keys.AsMatrix(length, K), 0, length, q, K, 1, scores, 0);
        var total = Exponentials<V>(scores, length, 1 / MathF.Sqrt(K));
        var y = Attended + (nint)row * DStride + (nint)head * K;
        switch (values.Type)
        {
            case WeightType.Float32: Weigh<V, Float32Weights<V>>(scores, total, values.Data, length, y); break;
            case WeightType.BFloat16: Weigh<V, BFloat16Weights<V>>(scores, total, values.Data, length, y); break;
            default: Weigh<V, Float16Weights<V>>(scores, total, values.Data, length, y); break;
        }
    }

    private readonly void Turn(float* x, float* cos, float* sin)
    {
        var half = R / 2;
        for (var i = 0; i < half; i++)
        {
            var (a, b) = (x[i], x[i + half]);
            x[i] = a * cos[i] - b * sin[i];
            x[i + half] = b * cos[i] + a * sin[i];
        }
    }

    // scores become exp(scale (score - greatest)); their sum.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static float Exponentials<V>(float* scores, int length, float scale) where V : unmanaged, ILanes<V>
    {
        // ScoreStride leaves room for whole vectors: what lies behind the last score counts for nothing.
        for (var t = length; t % V.Width != 0; t++) scores[t] = float.NegativeInfinity;
        var greatest = V.All(float.NegativeInfinity);
        for (var t = 0; t < length; t += V.Width) greatest = Wide<V>.Max(V.Load(scores + t), greatest);
        V shift = V.All(Wide<V>.Greatest(greatest)), factor = V.All(scale * VectorMath.Log2E), sum = V.All(0);
        for (var t = 0; t < length; t += V.Width)
        {
            var p = VectorMath.Exp2((V.Load(scores + t) - shift) * factor);
            p.Store(scores + t);
            sum += p;
        }
        return Wide<V>.Sum(sum);
    }

    // y = sum over t of p[t] values[t] / total, four vectors of a head at a time.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private readonly void Weigh<V, W>(float* p, float total, byte* values, int length, float* y)
        where V : unmanaged, ILanes<V> where W : struct, IWeights<V>
    {
        nint end = (nint)length * K;
        var whole = V.All(total);
        var j = 0;
        for (; j + 4 * V.Width <= K; j += 4 * V.Width)
        {
            V a = V.All(0), b = V.All(0), c = V.All(0), d = V.All(0);
            var weights = p;
            for (nint at = j; at < end; at += K)
            {
                MatVec.Prefetch(values + (at * W.Size + MatVec.BytesAhead), 4 * V.Width * W.Size);
                var weight = V.All(*weights++);
                a = V.Fma(weight, W.Load(values, at), a);
                b = V.Fma(weight, W.Load(values, at + V.Width), b);
                c = V.Fma(weight, W.Load(values, at + 2 * V.Width), c);
                d = V.Fma(weight, W.Load(values, at + 3 * V.Width), d);
            }
            (a / whole).Store(y + j);
            (b / whole).Store(y + j + V.Width);
            (c / whole).Store(y + j + 2 * V.Width);
            (d / whole).Store(y + j + 3 * V.Width);
        }
        for (; j + V.Width <= K; j += V.Width)
        {
            var a = V.All(0);
            var weights = p;
            for (nint at = j; at < end; at += K) a = V.Fma(V.All(*weights++), W.Load(values, at), a);
            (a / whole).Store(y + j);
        }
        for (; j < K; j++)
        {
            var sum = 0f;
            var weights = p;
            for (nint at = j; at < end; at += K) sum = MathF.FusedMultiplyAdd(*weights++, W.LoadOne(values, at), sum);
            y[j] = sum / total;
        }
    }

    private readonly int OutputChunks(Stage stage) => (D + OutputRows(stage) - 1) / OutputRows(stage);

    private readonly int OutputRows(Stage stage) => stage switch
    {
        Stage.Dense => RowsPerChunk(Weights.Dense),
        // One chunk takes its rows of both products.
        _ => RowsPerChunk(Weights.Down),
    };

    // residual += dense(attended), down(wide), or both. The norms have been read: they take the products.
    private readonly void AddToResidual<V>(int chunk, Stage stage) where V : unmanaged, ILanes<V>
    {
        var rows = OutputRows(stage);
        int from = chunk * rows, to = Math.Min(from + rows, D);
        if (stage != Stage.Down) MatVec.Rows<V>(Weights.Dense, from, to, Attended, DStride, B, Normed, DStride);
        if (stage != Stage.Dense) MatVec.Rows<V>(Weights.Down, from, to, Wide, MStride, B, MlpNormed, DStride);
        for (var i = 0; i < B; i++)
        {
            float* x = Residual + (nint)i * DStride, dense = Normed + (nint)i * DStride, down = MlpNormed + (nint)i * DStride;
            for (var o = from; o < to; o += V.Width)
            {
                var sum = V.Load(x + o);
                if (stage != Stage.Down) sum += V.Load(dense + o) + Weights.DenseBias.Load<V>(o, D);
                if (stage != Stage.Dense) sum += V.Load(down + o) + Weights.DownBias.Load<V>(o, D);
                sum.Store(x + o);
            }
        }
    }
}
