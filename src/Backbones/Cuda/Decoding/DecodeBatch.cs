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

    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(1);

    private readonly List<Tensor> _buffers = [];
    private readonly CudaGraph?[] _graphs = new CudaGraph?[DecodeControl.MostRows + 1];
    private readonly EndArguments _ends;
    private readonly int _layers;
    private readonly Tensor _control, _seen, _logits;
    private byte* _staging; // the host's copy of the control block with its tables, then of the tokens seen
    private ulong* _ring;
    private uint _step, _waited;

    protected DecodeBatch(CudaGpu gpu, DecoderWeights weights, DecoderShape shape, EndArguments ends)
    {
        (Gpu, Weights, Shape, _layers) = (gpu, weights, shape, shape.Layers);
        Grid = new(gpu.Multiprocessors, gpu.SharedBytes, weights.Type == ScalarType.Float32 ? 4 : 2);
        var rows = 1;
        while (rows < DecodeControl.MostRows && Grid.PackedBytes(shape.Hidden, 2 * rows) + DecodeGrid.StaticBytes(2 * rows) <= gpu.SharedBytes) rows *= 2;
        MaxRows = rows;
        try
        {
            _control = Buffer(ControlBytes);
            _seen = Buffer(SeenBytes);
            _logits = Owned(() => zeros([rows, shape.Vocabulary], dtype: ScalarType.Float32, device: new Device(DeviceType.CUDA, gpu.Index)));
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
            _ends = ends with
            {
                Residual = Residual, Logits = CudaTensor.Pointer(_logits), Control = CudaTensor.Pointer(_control), Listed = Floats(shape.Vocabulary), Seen = CudaTensor.Pointer(_seen), Ring = (nint)_ring,
            };
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    ~DecodeBatch() => Dispose(false);

    /// <summary>Whether a kernel may start while the one before it ends. Off: as the kernels are, the blocks that come early take
    /// the memory from those that work (a layer of mamba-2.8b takes 84 us with it and 60 without, H100, 2026-11-25).</summary>
    public static bool Overlap { get; set; }

    /// <summary>The weights that the steps read.</summary>
    public DecoderWeights Weights { get; }

    /// <summary>The most rows: what the shared memory of a multiprocessor holds.</summary>
    public int MaxRows { get; }

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
        if (states.Count < 1 || states.Count > MaxRows) throw new ArgumentException($"{states.Count} rows were given; expected 1 to {MaxRows}.", nameof(states));
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
        if (CudaFaults.Synchronous) Launches(stream, b, overlap: false);
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

    /// <summary>Launches all layers for b rows: 1, 2, 4, 8 or 16.</summary>
    protected abstract void Layers(nint stream, int b, bool overlap);

    /// <summary>Compiles what <see cref="Layers"/> launches.</summary>
    protected abstract void Compile(int b);

    /// <summary>The table of a layer on the GPU.</summary>
    protected nint Table(int layer, int which) => Control + sizeof(DecodeControl) + (layer * TablesPerLayer + which) * DecodeControl.MostRows * sizeof(nint);

    /// <summary>Memory of float32 for all rows, zeros; disposed with this.</summary>
    protected nint Floats(int width) => CudaTensor.Pointer(Buffer((long)MaxRows * width * sizeof(float)));

    /// <summary>Memory for all rows of activations as the products read them, zeros.</summary>
    protected nint Packed(int width) => CudaTensor.Pointer(Buffer(Grid.PackedBytes(width, MaxRows)));

    /// <summary>Macros of every source.</summary>
    protected string[] Defines(int b, params ReadOnlySpan<string> more) =>
    [
        $"TYPE={CudaTensor.TypeName(Weights.Type)}", .. Weights.Type == ScalarType.Float32 ? (string[])[] : ["WEIGHTS_16=1"], $"B={b}", $"SMS={Gpu.Multiprocessors}", $"STAGED={Grid.Staged(b)}", $"D={Shape.Hidden}", .. more,
    ];

    /// <summary>A kernel of the step.</summary>
    protected CudaKernel Kernel(string file, string entry, string[] defines)
    {
        var kernel = Gpu.Kernel(file, entry, defines);
        kernel.PreferShared();
        return kernel;
    }

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
        EndKernels(b);
        Compile(b);
        if (!Overlap) return CudaGraph.Record(Gpu, name, stream => Launches(stream, b, overlap: false));
        try
        {
            return CudaGraph.Record(Gpu, name, stream => Launches(stream, b, overlap: true));
        }
        catch (CudaException) // drivers before CUDA 12.3 cannot record an overlap
        {
            return CudaGraph.Record(Gpu, name, stream => Launches(stream, b, overlap: false));
        }
    }

    private void Launches(nint stream, int b, bool overlap)
    {
        var (embed, head, choose) = EndKernels(b);
        embed.Run(stream, new Launch((Math.Min((Shape.Hidden + 255) / 256, 16), b, 1), (256, 1)), _ends);
        Layers(stream, b, overlap);
        head.Run(stream, new Launch(Grid.Blocks(Shape.Vocabulary, Shape.Hidden, Gpu.Multiprocessors), DecodeGrid.Threads, Grid.PackedBytes(Shape.Hidden, b), overlap), _ends);
        choose.Run(stream, new Launch(b, 1024, 0, overlap), _ends);
    }

    private (CudaKernel Embed, CudaKernel Head, CudaKernel Choose) EndKernels(int b)
    {
        var defines = Defines(b, $"V={Shape.Vocabulary}", $"LAYER_NORM={(_ends.NormBias != 0 ? "true" : "false")}");
        return (Kernel("embed"), Kernel("head"), Kernel("choose"));

        CudaKernel Kernel(string entry) => this.Kernel("decode_ends.cu", entry, defines);
    }

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

/// <summary>Ends of decode_ends.cu.</summary>
[StructLayout(LayoutKind.Sequential)]
internal record struct EndArguments
{
    public nint Table, Norm, NormBias, Head, Residual, Logits, Control, Listed, Seen, Ring;
    public float Epsilon;
}
