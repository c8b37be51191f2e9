using System.Runtime.InteropServices;
using MambaVL.Generation;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>Up to <see cref="DecodeControl.MostRows"/> rows that are decoded together on a GPU. A step is one CUDA graph; it
/// takes the tokens that the step before chose, so steps can be put into the stream without waiting for any, and the chosen
/// tokens come to the host's memory beside them.</summary>
/// <remarks>The rows' states stay where they are: the kernels find them by a table of addresses. Owns everything else that a
/// step writes. Belongs to one thread at a time.</remarks>
internal abstract unsafe class DecodeBatch : IDisposable
{
    // Steps that the host may lag behind (RING of decode.cuh).
    private const int Ring = 64;

    // Tables of addresses for each layer: two.
    private const int TablesPerLayer = 2;

    // Of a multiprocessor's first-level memory: the kernels want little, and activations of several rows are read through the rest.
    private const int SharedPercent = 25;

    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(1);

    private readonly List<Tensor> _buffers = [];
    private readonly CudaGraph?[] _graphs = new CudaGraph?[DecodeControl.MostRows + 1];
    private readonly EndArguments _ends;
    private readonly NormArguments _norm;
    private readonly HeadArguments _head;
    private readonly int _layers;
    private readonly Tensor _control, _seen, _logits;
    private byte* _staging; // the host's copy of the control block with its tables, then of the tokens seen
    private ulong* _ring;
    private uint _step, _waited;

    // foldNorm: FOLD_NORM of decode_head.cuh.
    protected DecodeBatch(CudaGpu gpu, DecoderWeights weights, DecoderShape shape, DecoderEnds ends, bool foldNorm = false)
    {
        (Gpu, Weights, Shape, FoldNorm, _layers) = (gpu, weights, shape, foldNorm, shape.Layers);
        Grid = new(weights.Type == ScalarType.Float32 ? 4 : 2);
        try
        {
            _control = Buffer(ControlBytes);
            _seen = Buffer(SeenBytes);
            _logits = Owned(() => zeros([DecodeControl.MostRows, shape.Vocabulary], dtype: ScalarType.Float32, device: new Device(DeviceType.CUDA, gpu.Index)));
            void* staging = null, ring = null;
            using (gpu.Enter())
            {
                Check(gpu.Api.cuMemHostAlloc(&staging, (nuint)(ControlBytes + SeenBytes), 0), "cuMemHostAlloc");
                _staging = (byte*)staging;
                Check(gpu.Api.cuMemHostAlloc(&ring, Ring * DecodeControl.MostRows * sizeof(ulong), 0), "cuMemHostAlloc");
                _ring = (ulong*)ring;
            }
            new Span<ulong>(_ring, Ring * DecodeControl.MostRows).Clear();
            Residual = Floats(shape.Hidden);
            (NormX, NormX2) = (Packed(shape.Hidden), Packed(shape.Hidden));
            if (foldNorm) Squares = Floats(DecodeGrid.Squares(shape.Hidden));
            var logits = CudaTensor.Pointer(_logits);
            _ends = new()
            {
                Table = ends.Table, Residual = Residual, Logits = logits, Control = CudaTensor.Pointer(_control), Listed = Floats(shape.Vocabulary), Seen = CudaTensor.Pointer(_seen), Ring = (nint)_ring,
                Hidden = shape.Hidden, Vocabulary = shape.Vocabulary,
            };
            _norm = Norm(ends.Norm);
            _head = new() { Weight = ends.Head, X = NormX, Squares = Squares, Logits = logits, Control = Control, Epsilon = ends.Norm.Epsilon };
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    ~DecodeBatch() => Dispose(false);

    /// <summary>Whether a kernel may start while the one before it ends. For measuring what that gives.</summary>
    public static bool Overlap { get; set; } = true;

    /// <summary>The weights that the steps read.</summary>
    public DecoderWeights Weights { get; }

    /// <summary>Rows that are in it now.</summary>
    public int Count { get; private set; }

    /// <summary>Steps that were put into the stream and not yet waited for.</summary>
    public int InFlight => (int)(_step - _waited);

    /// <summary>The logits of the last step, (at least <see cref="Count"/>, vocabulary), once the stream is there.</summary>
    public Tensor Logits => _logits;

    protected CudaGpu Gpu { get; }

    protected DecoderShape Shape { get; }

    protected DecodeGrid Grid { get; }

    /// <summary>(rows, d), float32.</summary>
    protected nint Residual { get; }

    /// <summary>Where norms of the residual go, (rows, d) as the products read them, and where a second norm of the same goes.</summary>
    protected nint NormX { get; }

    /// <inheritdoc cref="NormX"/>
    protected nint NormX2 { get; }

    /// <summary>Whether the norms have no kernels of their own: what writes the residual leaves it times the norm's weights in
    /// <see cref="NormX"/>, and <see cref="Squares"/>.</summary>
    protected bool FoldNorm { get; }

    /// <summary>With <see cref="FoldNorm"/>: (rows, <see cref="DecodeGrid.Squares"/>), float32.</summary>
    protected nint Squares { get; }

    /// <summary>The control block on the GPU.</summary>
    protected nint Control => CudaTensor.Pointer(_control);

    private int ControlBytes => sizeof(DecodeControl) + _layers * TablesPerLayer * DecodeControl.MostRows * sizeof(nint);

    private int SeenWords => (Shape.Vocabulary + 31) / 32;

    private int SeenBytes => DecodeControl.MostRows * SeenWords * sizeof(uint);

    /// <summary>Puts rows in the place of those before, whose steps were all waited for.</summary>
    /// <param name="states">Of the model that the weights are of; each has room for the tokens to come.</param>
    /// <param name="ids">The last token of each row, not yet read.</param>
    /// <param name="options">How tokens are chosen; null: greedily.</param>
    /// <param name="samplers">What each row drew and saw; not looked at without options.</param>
    public void Load(IReadOnlyList<DecoderState> states, ReadOnlySpan<int> ids, GenerationOptions? options, IReadOnlyList<Sampler>? samplers)
    {
        if (InFlight > 0) throw new InvalidOperationException($"{InFlight} steps are still on their way.");
        if (states.Count < 1 || states.Count > DecodeControl.MostRows) throw new ArgumentException($"{states.Count} rows were given; expected 1 to {DecodeControl.MostRows}.", nameof(states));
        Prepare(states);
        Count = states.Count;
        ref var control = ref *(DecodeControl*)_staging;
        control = new()
        {
            Count = Count, TopK = options?.TopK ?? 0, TopP = options?.TopP ?? 1, Penalty = (float)(options?.RepetitionPenalty ?? 1),
            InverseTemperature = options is { Temperature: > 0 } ? (float)(1 / options.Temperature) : 0,
        };
        for (var row = 0; row < DecodeControl.MostRows; row++)
        {
            var real = row < Count;
            control.Ids[row] = real ? ids[row] : 0;
            control.Positions[row] = real ? states[row].Length : 0;
            control.Room[row] = real ? states[row].MaxLength : 1;
            control.Steps[row] = _step;
            control.Random[row] = real && samplers is not null ? samplers[row].Random : 0;
        }
        var tables = (nint*)(_staging + sizeof(DecodeControl));
        for (var layer = 0; layer < _layers; layer++)
            for (var row = 0; row < DecodeControl.MostRows; row++)
            {
                var (first, second) = row < Count ? State(states[row], layer) : Spare;
                tables[layer * TablesPerLayer * DecodeControl.MostRows + row] = first;
                tables[(layer * TablesPerLayer + 1) * DecodeControl.MostRows + row] = second;
            }
        var bytes = ControlBytes;
        Upload(Control, _staging, bytes);
        if (control.Penalty != 1)
        {
            var seen = new Span<uint>(_staging + bytes, SeenBytes / sizeof(uint));
            seen.Clear();
            for (var row = 0; row < Count && samplers is not null; row++)
                foreach (var id in samplers[row].Seen)
                    if (id < Shape.Vocabulary) seen[row * SeenWords + (id >> 5)] |= 1u << (id & 31);
            Upload(CudaTensor.Pointer(_seen), _staging + bytes, SeenBytes);
        }
    }

    /// <summary>Puts a step for all rows into libtorch's stream. Returns at once.</summary>
    public void Enqueue()
    {
        if (InFlight == Ring) throw new InvalidOperationException($"{Ring} steps are on their way already.");
        var stream = CudaStream.Current(Gpu.Index);
        var b = 1;
        while (b < Count) b *= 2;
        // Recorded, a kernel could not be waited for by itself.
        if (CudaFaults.Synchronous) Launches(b, overlap: false)(stream);
        else (_graphs[b] ??= Record(b)).Run(stream);
        _step++;
    }

    /// <summary>Waits for the oldest step on its way.</summary>
    /// <param name="ids">The token that it chose for each row; -1 where the logits were not finite.</param>
    public void Wait(Span<int> ids)
    {
        if (InFlight == 0) throw new InvalidOperationException("No step is on its way.");
        var step = _waited + 1;
        var slot = _ring + step % Ring * DecodeControl.MostRows;
        var wait = new SpinWait();
        long started = Environment.TickCount64;
        for (var row = 0; row < Count; row++)
        {
            ulong word;
            while ((word = Volatile.Read(ref slot[row])) >> 32 != step)
            {
                wait.SpinOnce(sleep1Threshold: -1);
                if (wait.Count % 1024 != 0 || Environment.TickCount64 - started < Patience.TotalMilliseconds) continue;
                CudaFaults.Synchronize(Gpu, CudaStream.Current(Gpu.Index)); // a fault shows here
                if (Volatile.Read(ref slot[row]) >> 32 != step) throw new CudaException($"Step {step} of a decoding batch ended on cuda:{Gpu.Index} without a token for row {row}.");
            }
            ids[row] = (int)(uint)word;
        }
        _waited = step;
    }

    /// <summary>Waits for all steps on their way; their tokens are of no use.</summary>
    public void Drain()
    {
        Span<int> ids = stackalloc int[DecodeControl.MostRows];
        while (InFlight > 0) Wait(ids);
    }

    /// <summary>Compiles the kernels for every number of rows, side by side; else each is compiled when it is first wanted.</summary>
    public void CompileAll() => Parallel.For(0, 5, i => Launches(1 << i, overlap: false));

    public void Dispose()
    {
        GC.SuppressFinalize(this);
        Dispose(true);
    }

    protected virtual void Dispose(bool disposing)
    {
        Forget();
        if (disposing)
        {
            foreach (var buffer in _buffers) buffer.Dispose();
            _buffers.Clear();
        }
        if (_staging == null && _ring == null) return;
        using var scope = Gpu.Enter();
        if (_staging != null) Gpu.Api.cuMemFreeHost(_staging);
        if (_ring != null) Gpu.Api.cuMemFreeHost(_ring);
        _staging = null;
        _ring = null;
    }

    /// <summary>Makes what the layers need for rows to come.</summary>
    protected virtual void Prepare(IReadOnlyList<DecoderState> states)
    {
    }

    /// <summary>Drops the graphs: an address in them has changed.</summary>
    protected void Forget()
    {
        foreach (var graph in _graphs) graph?.Dispose();
        Array.Clear(_graphs);
    }

    /// <summary>What the tables hold of a row's state.</summary>
    protected abstract (nint First, nint Second) State(DecoderState state, int layer);

    /// <summary>What the tables hold for rows that are not there: memory that they may write.</summary>
    protected abstract (nint First, nint Second) Spare { get; }

    /// <summary>The module of all kernels for b rows but those of decode_ends.cu: 1, 2, 4, 8 or 16.</summary>
    protected abstract CudaModule Module(int b);

    /// <summary>What launches all layers for b rows.</summary>
    protected abstract Action<nint> Layers(CudaModule module, int b, bool overlap);

    /// <summary>What launches the embedding of b rows; with <see cref="FoldNorm"/>, one that leaves what that asks for.</summary>
    protected virtual Action<nint> Embedding(CudaModule module, int b)
    {
        var embed = Of(EndsModule, "embed");
        return stream => embed.Run(stream, new Launch((Math.Min((Shape.Hidden + 255) / 256, 16), b, 1), (256, 1)), _ends);
    }

    /// <summary>The table of a layer on the GPU.</summary>
    protected nint Table(int layer, int which) => Control + sizeof(DecodeControl) + (layer * TablesPerLayer + which) * DecodeControl.MostRows * sizeof(nint);

    /// <summary>Memory of float32 for all rows, zeros; disposed with this.</summary>
    protected nint Floats(int width) => CudaTensor.Pointer(Buffer((long)DecodeControl.MostRows * width * sizeof(float)));

    /// <summary>Memory for all rows of activations as the products read them, zeros.</summary>
    protected nint Packed(int width) => CudaTensor.Pointer(Buffer(Grid.PackedBytes(width, DecodeControl.MostRows)));

    /// <summary>The arguments of a norm of the residual, written to <see cref="NormX"/>, and of a second one to <see cref="NormX2"/>.</summary>
    protected NormArguments Norm(NormWeights first, NormWeights second = default) => new()
    {
        Weight = first.Weight, Bias = first.Bias, Weight2 = second.Weight, Bias2 = second.Bias, Residual = Residual, X = NormX, X2 = NormX2, Epsilon = first.Epsilon,
    };

    /// <summary>The source of a model's layers with its macros, and those that all have.</summary>
    /// <param name="file">The source.</param>
    /// <param name="b">Rows.</param>
    /// <param name="layerNorm">LayerNorm, else RMSNorm.</param>
    /// <param name="more">The model's own macros.</param>
    protected CudaModule Module(string file, int b, bool layerNorm, params ReadOnlySpan<string> more) => Gpu.Module(file,
    [
        $"TYPE={TypeName}", .. Weights.Type == ScalarType.Float32 ? (string[])[] : ["WEIGHTS_16=1"], $"B={b}", $"SMS={Gpu.Multiprocessors}",
        $"D={Shape.Hidden}", $"V={Shape.Vocabulary}", $"LAYER_NORM={(layerNorm ? "true" : "false")}", $"FOLD_NORM={(FoldNorm ? "true" : "false")}", .. more,
    ]);

    /// <summary>A kernel of the step with what it says of its blocks.</summary>
    protected static Spread SpreadOf(CudaModule module, string entry)
    {
        var numbers = module.Numbers(entry + "_spread");
        return new(Of(module, entry), numbers[0], numbers[1]);
    }

    /// <summary>A kernel of the step.</summary>
    protected static CudaKernel Of(CudaModule module, string entry)
    {
        var kernel = module.Kernel(entry);
        kernel.PreferShared(SharedPercent);
        return kernel;
    }

    /// <summary>Norms of b rows, a block each.</summary>
    protected static void Run(CudaKernel normalise, nint stream, int b, bool overlap, in NormArguments arguments)
        => normalise.Run(stream, new Launch(b, DecodeGrid.NormThreads, 0, overlap), arguments);

    /// <summary>Memory, zeros; disposed with this.</summary>
    protected Tensor Buffer(long bytes) => Owned(() => zeros([bytes], dtype: ScalarType.Byte, device: new Device(DeviceType.CUDA, Gpu.Index)));

    private Tensor Owned(Func<Tensor> make)
    {
        using var normal = inference_mode(false);
        var t = make().DetachFromDisposeScope();
        _buffers.Add(t);
        return t;
    }

    private CudaGraph Record(int b)
    {
        var name = $"a decode step of {b} rows";
        if (!Overlap) return CudaGraph.Record(Gpu, name, Launches(b, overlap: false));
        try
        {
            return CudaGraph.Record(Gpu, name, Launches(b, overlap: true));
        }
        catch (CudaException) // drivers before CUDA 12.3 cannot record an overlap
        {
            return CudaGraph.Record(Gpu, name, Launches(b, overlap: false));
        }
    }

    // Everything is compiled and looked up before: a recording suffers nothing else.
    private Action<nint> Launches(int b, bool overlap)
    {
        var module = Module(b);
        CudaKernel choose = Of(EndsModule, "choose"), normalise = Of(module, "normalise");
        var head = SpreadOf(module, "head");
        Action<nint> embedding = Embedding(module, b), layers = Layers(module, b, overlap);
        return stream =>
        {
            embedding(stream);
            layers(stream);
            if (!FoldNorm) Run(normalise, stream, b, overlap, _norm);
            head.Run(stream, overlap, _head);
            choose.Run(stream, new Launch(b, 1024, 0, overlap), _ends);
        };
    }

    private CudaModule EndsModule => Gpu.Module("decode_ends.cu", $"TYPE={TypeName}");

    private string TypeName => CudaTensor.TypeName(Weights.Type);

    private void Upload(nint to, byte* from, int bytes)
    {
        using var scope = Gpu.Enter();
        Check(Gpu.Api.cuMemcpyHtoDAsync_v2((ulong)to, from, (nuint)bytes, CudaStream.Current(Gpu.Index)), "cuMemcpyHtoDAsync");
    }

    private void Check(int status, string call)
    {
        if (status != 0) throw new CudaException($"{call} for a decoding batch on cuda:{Gpu.Index} gave {Gpu.Api.Meaning(status)}.");
    }
}

/// <summary>The sizes that a batch of any model needs.</summary>
/// <param name="Hidden">d.</param>
/// <param name="Vocabulary">v.</param>
/// <param name="Layers">Layers.</param>
internal readonly record struct DecoderShape(int Hidden, int Vocabulary, int Layers);

/// <summary>The weights before and behind the layers.</summary>
/// <param name="Table">Of the embedding.</param>
/// <param name="Head">The head's.</param>
/// <param name="Norm">The last norm's.</param>
internal readonly record struct DecoderEnds(nint Table, nint Head, NormWeights Norm);

/// <summary>The weights of a norm.</summary>
/// <param name="Weight">(d).</param>
/// <param name="Bias">(d); 0 in an RMSNorm.</param>
/// <param name="Epsilon">What is added to the variance.</param>
internal readonly record struct NormWeights(nint Weight, nint Bias, float Epsilon);

/// <summary>Ends of decode_ends.cu.</summary>
[StructLayout(LayoutKind.Sequential)]
internal record struct EndArguments
{
    public nint Table, Residual, Logits, Control, Listed, Seen, Ring;
    public int Hidden, Vocabulary;
}

/// <summary>Norm of decode_head.cuh.</summary>
[StructLayout(LayoutKind.Sequential)]
internal record struct NormArguments
{
    public nint Weight, Bias, Weight2, Bias2, Residual, X, X2;
    public float Epsilon;
}

/// <summary>Head of decode_head.cuh.</summary>
[StructLayout(LayoutKind.Sequential)]
internal record struct HeadArguments
{
    public nint Weight, X, Squares, Logits, Control;
    public float Epsilon;
}
