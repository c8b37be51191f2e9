using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Scan;

/// <summary>The selective scan on the CPU: vectors over channels, threads over tiles of channels. A tile is computed
/// by one thread from first to last step, so that the bits of a result depend neither on the number of threads nor on
/// the rest of the batch.</summary>
internal static unsafe class CpuScan
{
    /// <summary>Steps of time between two states kept for the backward pass, and the length of the pieces that a tile
    /// is worked through in. A state costs n / Chunk floats a token and channel.</summary>
    public const int Chunk = 64;

    /// <summary>Channels whose shares in the gradients of B and C are added by one thread, in order. Fixed, so that the
    /// order of the sum depends on nothing but d.</summary>
    public const int GroupChannels = 64;

    // Below about 20 microseconds of work a second thread costs more than it saves.
    private const long WorthAThread = 8192;

    public static (Tensor output, Tensor lastState) Run(ScanArguments x) => Run(x, WidestLanes);

    /// <summary>The widest vectors that this machine has: 512, 256 or 128 bits.</summary>
    public static int WidestLanes => Lanes512.IsSupported ? 512 : Lanes256.IsSupported ? 256 : 128;

    public static (Tensor output, Tensor lastState) Run(ScanArguments x, int bits)
    {
        using var scope = NewDisposeScope();
        var (output, lastState) = x.NeedGradient ? ScanFunction.Record(x, Kernel(bits)) : Forward(x, bits);
        return (output.MoveToOuterDisposeScope(), lastState.MoveToOuterDisposeScope());
    }

    private static ScanKernel Kernel(int bits) => new("CPU",
        x => Forward(x, bits, keepCheckpoints: true)!,
        (x, checkpoints, gradOutput, gradLastState) => Backward(x, checkpoints, gradOutput, gradLastState, bits));

    private static (Tensor output, Tensor lastState) Forward(ScanArguments x, int bits)
    {
        var (output, lastState, _) = Forward(x, bits, keepCheckpoints: false);
        return (output, lastState);
    }

    /// <summary>Output, last state and, where a backward pass is to follow, the states that it starts from. They live
    /// in the caller's dispose scope.</summary>
    public static (Tensor output, Tensor lastState, Tensor? checkpoints) Forward(ScanArguments x, int bits, bool keepCheckpoints)
    {
        var (batch, channels, length, states) = ((int)x.u.shape[0], (int)x.u.shape[1], (int)x.u.shape[2], (int)x.A.shape[1]);
        var width = bits / 32;
        var tiles = (channels + width - 1) / width;
        var output = EmptyLike(x.u);
        var lastState = empty([batch, channels, states], dtype: ScalarType.Float32);
        var memory = Memory(x);
        var checkpoints = keepCheckpoints ? empty([batch, tiles, memory.Chunks, states, width], dtype: ScalarType.Float32) : null;
        memory.Output = new(output);
        memory.LastState = Strided.Pointer(lastState);
        memory.Checkpoints = Strided.Pointer(checkpoints);

        var work = (long)tiles * length * states;
        switch (bits)
        {
            case 512: Each<Lanes512>(); break;
            case 256: Each<Lanes256>(); break;
            default: Each<Lanes128>(); break;
        }
        return (output, lastState, checkpoints);

        void Each<V>() where V : unmanaged, ILanes<V> => ForEach(batch * tiles, batch * work, CpuScanKernel<V>.ForwardScratch(states),
            (i, scratch) => CpuScanKernel<V>.Forward(memory, i / tiles, i % tiles, tiles, scratch));
    }

    /// <summary>The gradients of all nine tensors, in the order of <see cref="ScanArguments.Tensors"/>; null where there
    /// is no such tensor. They live in the caller's dispose scope.</summary>
    /// <param name="x">The arguments of Forward.</param>
    /// <param name="checkpoints">What Forward gave.</param>
    /// <param name="gradOutput">[b, d, l], or null.</param>
    /// <param name="gradLastState">[b, d, n], or null.</param>
    /// <param name="bits">The width of the vectors, as in Forward.</param>
    public static Tensor?[] Backward(ScanArguments x, Tensor checkpoints, Tensor? gradOutput, Tensor? gradLastState, int bits)
    {
        var memory = Memory(x);
        var (batch, channels, length, states) = (memory.Batch, memory.Channels, memory.Length, memory.States);
        memory.Checkpoints = Strided.Pointer(checkpoints);

        var width = bits / 32;
        var padded = (states + width - 1) / width * width;
        var groups = (channels + GroupChannels - 1) / GroupChannels;
        Tensor Zeros(params long[] shape) => zeros(shape, dtype: ScalarType.Float32);
        var (u, delta, z) = (EmptyLike(x.u), EmptyLike(x.delta), x.z is null ? null : EmptyLike(x.z));
        var (A, D, bias, initial) = (Zeros(channels, states), Zeros(channels), Zeros(channels), Zeros(batch, channels, states));
        var (B, C) = (Zeros(batch, length, states), Zeros(batch, length, states));
        var (groupsB, groupsC) = (empty([groups, length, padded], ScalarType.Float32), empty([groups, length, padded], ScalarType.Float32));
        var gradients = new ScanGradients
        {
            Output = gradOutput is null ? default : new(gradOutput),
            LastState = Strided.Pointer(gradLastState?.contiguous()),
            U = new(u),
            Delta = new(delta),
            Z = z is null ? default : new(z),
            A = Strided.Pointer(A),
            D = Strided.Pointer(D),
            DeltaBias = Strided.Pointer(bias),
            InitialState = Strided.Pointer(initial),
            B = Strided.Pointer(groupsB),
            C = Strided.Pointer(groupsC),
            PaddedStates = padded,
        };
        var sumB = Strided.Pointer(B);
        var sumC = Strided.Pointer(C);
        switch (bits)
        {
            case 512: Each<Lanes512>(); break;
            case 256: Each<Lanes256>(); break;
            default: Each<Lanes128>(); break;
        }
        return
        [
            u, delta, A, B.transpose(1, 2).to(x.B.dtype), C.transpose(1, 2).to(x.C.dtype),
            x.D is null ? null : D, z, x.deltaBias is null ? null : bias, x.initialState is null ? null : initial,
        ];

        void Each<V>() where V : unmanaged, ILanes<V>
        {
            var work = (long)channels / width * length * states;
            for (var row = 0; row < batch; row++)
            {
                var now = row;
                ForEach(groups, 3 * work, CpuScanKernel<V>.BackwardScratch(states),
                    (group, scratch) => CpuScanKernel<V>.BackwardGroup(memory, gradients, now, group, scratch));
                var size = (long)now * length * states;
                ForEach(memory.Chunks, (long)groups * length * padded / width, 0, (chunk, _) =>
                {
                    var (from, to) = (chunk * Chunk, Math.Min(length, (chunk + 1) * Chunk));
                    CpuScanKernel<V>.AddGroups(gradients.B, groups, length, padded, from, to, states, sumB + size);
                    CpuScanKernel<V>.AddGroups(gradients.C, groups, length, padded, from, to, states, sumC + size);
                });
            }
        }
    }

    // The tensors made here live until the caller's dispose scope ends.
    private static ScanMemory Memory(ScanArguments x) => new()
    {
        Batch = (int)x.u.shape[0],
        Channels = (int)x.u.shape[1],
        Length = (int)x.u.shape[2],
        States = (int)x.A.shape[1],
        Softplus = x.deltaSoftplus,
        U = new(x.u),
        Delta = new(x.delta),
        Z = x.z is null ? default : new(x.z),
        A = Strided.Pointer(x.A.contiguous()),
        B = Strided.Pointer(x.B.transpose(1, 2).to(ScalarType.Float32).contiguous()),
        C = Strided.Pointer(x.C.transpose(1, 2).to(ScalarType.Float32).contiguous()),
        D = Strided.Pointer(x.D?.contiguous()),
        DeltaBias = Strided.Pointer(x.deltaBias?.contiguous()),
        InitialState = Strided.Pointer(x.initialState?.contiguous()),
    };

    // Shape and type of t, and its layout where that has the channels side by side, as a model's (b, l, d) tensors do.
    private static Tensor EmptyLike(Tensor t) => t.stride(1) == 1 && t.stride(2) != 1
        ? empty_strided(t.shape, [t.shape[1] * t.shape[2], 1, t.shape[1]], dtype: t.dtype)
        : empty(t.shape, dtype: t.dtype);

    private delegate void Work(int i, float* scratch);

    // Which thread takes which piece is left open: the pieces do not depend on one another.
    private static void ForEach(int count, long work, int scratchFloats, Work body)
    {
        var threads = work < WorthAThread ? 1 : Math.Min(count, Math.Min(Environment.ProcessorCount, get_num_threads()));
        var taken = -1;
        if (threads <= 1) Worker();
        else Parallel.For(0, threads, new ParallelOptions { MaxDegreeOfParallelism = threads }, _ => Worker());

        void Worker()
        {
            var scratch = (float*)NativeMemory.AlignedAlloc((nuint)Math.Max(1, scratchFloats) * sizeof(float), 64);
            try
            {
                for (int i; (i = Interlocked.Increment(ref taken)) < count;) body(i, scratch);
            }
            finally
            {
                NativeMemory.AlignedFree(scratch);
            }
        }
    }
}
