using System.Collections.Concurrent;
using System.Globalization;
using System.Numerics;
using System.Runtime.InteropServices;
using MambaVL.Cuda;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Scan;

/// <summary>Tensors of the caller's that results are written to, in any strides: a layer writes into slices of larger
/// buffers. Null: a new tensor is made.</summary>
/// <param name="u">The output of the forward pass, or u's gradient [b, d, l].</param>
/// <param name="delta">delta's gradient [b, d, l].</param>
/// <param name="z">z's gradient [b, d, l].</param>
/// <param name="B">B's gradient [b, n, l].</param>
/// <param name="C">C's gradient [b, n, l].</param>
internal sealed record ScanTargets(Tensor? u = null, Tensor? delta = null, Tensor? z = null, Tensor? B = null, Tensor? C = null);

/// <summary>The selective scan on an NVIDIA GPU: the kernels of Cuda/Kernels/selective_scan*.cu, and how they are spread.
/// Results are in the caller's dispose scope; everything runs in libtorch's stream, and nothing is waited for.</summary>
internal static class CudaScan
{
    /// <summary>Steps between two states that the forward pass keeps for the backward pass.</summary>
    public const int Chunk = 64;

    /// <summary>What the sums of B's and C's gradients over parts of the channels may take while a backward pass runs, in
    /// bytes. With more parts than fit, the pass is launched several times, and adds to the sums.</summary>
    public const long WorkspaceBytes = 384L << 20;

    /// <summary>Output and last state, recorded by autograd where a tensor asks for it.</summary>
    public static (Tensor output, Tensor lastState) Run(ScanArguments x)
    {
        using var scope = NewDisposeScope();
        var (output, lastState) = x.NeedGradient ? ScanFunction.Record(x, Autograd) : Forward(x, keepCheckpoints: false) is var r ? (r.output, r.lastState) : default;
        return (output.MoveToOuterDisposeScope(), lastState.MoveToOuterDisposeScope());
    }

    private static ScanKernel Autograd { get; } = new("CUDA",
        x => Forward(x, keepCheckpoints: true)!,
        (x, checkpoints, gradOutput, gradLastState) => Backward(x, checkpoints, gradOutput, gradLastState));

    /// <summary>The forward pass, without autograd.</summary>
    /// <param name="x">Checked arguments on a GPU, not in float64.</param>
    /// <param name="keepCheckpoints">Whether a backward pass is to follow.</param>
    /// <param name="into">Where the output goes (<see cref="ScanTargets.u"/>, of u's type); null: a new tensor in u's layout.</param>
    /// <returns>The output [b, d, l], the last state [b, d, n] in float32, and the states that a backward pass starts from,
    /// [b, chunks, d, n] in float32, n / 64 floats a token and channel; null where they are not kept.</returns>
    public static (Tensor output, Tensor lastState, Tensor? checkpoints) Forward(ScanArguments x, bool keepCheckpoints, ScanTargets? into = null)
    {
        var gpu = Gpu(x);
        var (batch, channels, length, states) = (x.u.shape[0], x.u.shape[1], x.u.shape[2], (int)x.A.shape[1]);
        var output = Target(into?.u, nameof(ScanTargets.u), x.u);
        var lastState = empty([batch, channels, states], ScalarType.Float32, x.u.device);
        var checkpoints = keepCheckpoints ? empty([batch, Chunks(length), channels, states], ScalarType.Float32, x.u.device) : null;
        if (batch * channels == 0) return (output, lastState, checkpoints);

        using var scope = NewDisposeScope();
        var (u, delta, z, B, C, to) = (new View(x.u), new View(x.delta), new View(x.z), new View(x.B), new View(x.C), new View(output));
        var variant = new Variant(u.Type, delta.Type, x.z is null ? u.Type : z.Type, B.Type, C.Type, u.Type, states, x.deltaSoftplus, x.z is not null,
            u.Aligned && delta.Aligned && z.Aligned && to.Aligned, B.Aligned && C.Aligned);
        var plan = ForwardPlan.For(states, batch, channels, gpu.Multiprocessors, gpu.SharedBytes, variant.Wide);
        var piece = PieceSteps(length, plan.Pieces(batch * channels, length, gpu.Multiprocessors));
        var arguments = new ForwardArguments
        {
            U = u.Pointer, Delta = delta.Pointer, Z = z.Pointer, B = B.Pointer, C = C.Pointer,
            A = Contiguous(x.A), D = Contiguous(x.D), DeltaBias = Contiguous(x.deltaBias), InitialState = Contiguous(x.initialState),
            Output = to.Pointer, LastState = Pointer(lastState), Checkpoints = Pointer(checkpoints),
            ByU = u.Strides, ByDelta = delta.Strides, ByZ = z.Strides, ByB = B.Strides, ByC = C.Strides, ByOutput = to.Strides,
            Batch = (int)batch, Channels = (int)channels, Length = Steps(length), Piece = (int)piece,
        };
        var blocks = Blocks(plan.Tiles(batch, channels));
        if (length <= piece)
        {
            Launch(0, 1);
            return (output, lastState, checkpoints);
        }
        var pieces = (int)((length + piece - 1) / piece);
        arguments.PieceStates = Pointer(empty([pieces - 1, batch, channels, states], ScalarType.Float32, x.u.device));
        arguments.PieceSteps = Pointer(empty([pieces - 1, batch, channels], ScalarType.Float32, x.u.device));
        Launch(1, pieces - 1);
        Launch(2, pieces);
        return (output, lastState, checkpoints);

        void Launch(int pass, int pieces) =>
            Kernel(gpu, variant, plan with { Pass = pass }).Run(CudaStream.Current(gpu.Index), new Launch((blocks, pieces, 1), (plan.Threads, 1), plan.SharedBytes, Overlap: pass == 2), arguments);
    }

    /// <summary>The gradients of all nine tensors, in the order of <see cref="ScanArguments.Tensors"/>; null where there is no
    /// such tensor. Without autograd.</summary>
    /// <param name="x">The arguments of Forward.</param>
    /// <param name="checkpoints">What Forward gave.</param>
    /// <param name="gradOutput">[b, d, l] in any type that u may have, or null.</param>
    /// <param name="gradLastState">[b, d, n] in float32, or null.</param>
    /// <param name="into">Where gradients go, of the types of their tensors; null: new tensors.</param>
    /// <param name="workspaceBytes">See <see cref="WorkspaceBytes"/>.</param>
    public static Tensor?[] Backward(
        ScanArguments x, Tensor checkpoints, Tensor? gradOutput, Tensor? gradLastState, ScanTargets? into = null, long workspaceBytes = WorkspaceBytes)
    {
        var gpu = Gpu(x);
        var (batch, channels, length, states) = (x.u.shape[0], x.u.shape[1], x.u.shape[2], (int)x.A.shape[1]);
        Floats(checkpoints, nameof(checkpoints), [batch, Chunks(length), channels, states], x.u.device);
        if (!checkpoints.is_contiguous()) throw new ArgumentException("checkpoints is not contiguous; expected what Forward gave.", nameof(checkpoints));
        if (gradOutput is not null) Fits(gradOutput, nameof(gradOutput), x.u, gradOutput.dtype);
        if (gradLastState is not null) Floats(gradLastState, nameof(gradLastState), [batch, channels, states], x.u.device);

        var (u, delta) = (Target(into?.u, nameof(ScanTargets.u), x.u), Target(into?.delta, nameof(ScanTargets.delta), x.delta));
        var z = x.z is null ? null : Target(into?.z, nameof(ScanTargets.z), x.z);
        var (B, C) = (Target(into?.B, nameof(ScanTargets.B), x.B), Target(into?.C, nameof(ScanTargets.C), x.C));
        var initialState = x.initialState is null ? null : empty([batch, channels, states], ScalarType.Float32, x.u.device);
        var plan = BackwardPlan.For(states, gpu.SharedBytes);
        var piece = PieceSteps(length, plan.Pieces(batch, channels, length, gpu.Multiprocessors));
        var pieces = Math.Max(1, (length + piece - 1) / piece);
        var rows = pieces * batch;
        Tensor PerRow(params long[] shape) => empty([rows, .. shape], ScalarType.Float32, x.u.device);
        using var scope = NewDisposeScope();
        var (A, D, bias) = (PerRow(channels, states), x.D is null ? null : PerRow(channels), x.deltaBias is null ? null : PerRow(channels));
        // The gradients themselves: what selective_scan_sum adds up, or the only row.
        Tensor? OverRows(Tensor? t) => t is null ? null : rows == 1 ? t.squeeze(0) : empty(t.shape[1..], ScalarType.Float32, x.u.device);
        var (sumA, sumD, sumBias) = (OverRows(A), OverRows(D), OverRows(bias));
        if (batch * channels == 0)
        {
            foreach (var t in new[] { B, C, sumA, sumD, sumBias }) t?.zero_();
        }
        else
        {
            // Parts of the channels that have sums of their own for B and C; a launch takes as many as fit.
            var parts = (channels + plan.TileChannels - 1) / plan.TileChannels;
            var part = batch * length * plan.Width * sizeof(float);
            var perLaunch = Math.Clamp(workspaceBytes / Math.Max(1, part), 1, parts);
            var workspace = empty([perLaunch, batch, length, plan.Width], ScalarType.Float32, x.u.device);
            View vu = new(x.u), vdelta = new(x.delta), vz = new(x.z), vB = new(x.B), vC = new(x.C), vg = new(gradOutput), tu = new(u), tdelta = new(delta), tz = new(z);
            var variant = new Variant(vu.Type, vdelta.Type, x.z is null ? vu.Type : vz.Type, vB.Type, vC.Type, gradOutput is null ? vu.Type : vg.Type,
                states, x.deltaSoftplus, x.z is not null,
                vu.Aligned && vdelta.Aligned && vz.Aligned && vg.Aligned && tu.Aligned && tdelta.Aligned && tz.Aligned, vB.Aligned && vC.Aligned);
            var stream = CudaStream.Current(gpu.Index);
            var arguments = new BackwardArguments
            {
                U = vu.Pointer, Delta = vdelta.Pointer, Z = vz.Pointer, B = vB.Pointer, C = vC.Pointer, GradOutput = vg.Pointer,
                A = Contiguous(x.A), D = Contiguous(x.D), DeltaBias = Contiguous(x.deltaBias),
                Checkpoints = Pointer(checkpoints), GradLastState = Contiguous(gradLastState),
                GradU = tu.Pointer, GradDelta = tdelta.Pointer, GradZ = tz.Pointer,
                GradA = Pointer(A), GradD = Pointer(D), GradDeltaBias = Pointer(bias), GradInitialState = Pointer(initialState),
                Workspace = Pointer(workspace),
                ByU = vu.Strides, ByDelta = vdelta.Strides, ByZ = vz.Strides, ByB = vB.Strides, ByC = vC.Strides, ByGradOutput = vg.Strides,
                ByGradU = tu.Strides, ByGradDelta = tdelta.Strides, ByGradZ = tz.Strides,
                Batch = (int)batch, Channels = (int)channels, Length = Steps(length),
                PieceStates = pieces > 1 ? Pointer(empty([pieces - 1, batch, channels, states], ScalarType.Float32, x.u.device)) : 0,
                PieceSteps = pieces > 1 ? Pointer(empty([pieces - 1, batch, channels], ScalarType.Float32, x.u.device)) : 0,
                Piece = (int)piece,
            };
            for (var first = 0L; first < parts; first += perLaunch)
            {
                var now = Math.Min(perLaunch, parts - first);
                (arguments.FirstChannel, arguments.Parts, arguments.Add) = ((int)(first * plan.TileChannels), (int)now, first > 0 ? 1 : 0);
                if (pieces > 1) Launch(1, pieces - 1);
                Launch(pieces > 1 ? 2 : 0, pieces);

                void Launch(int pass, long pieces) =>
                    Kernel(gpu, plan with { Pass = pass }, variant).Run(stream, new Launch((Blocks(now * batch), (int)pieces, 1), (plan.Threads, 1), plan.SharedBytes, Overlap: pass == 2), arguments);
            }
            const int threads = 512;                     // the widest step's
            var split = Math.Min(8, threads / plan.Width);
            var steps = threads / plan.Width / split;
            var blocks = batch * ((length + steps - 1) / steps) + (rows > 1 ? (channels * (states + 2) + threads - 1) / threads : 0);
            if (blocks > 0)
            {
                gpu.Kernel("selective_scan_sum.cu", "selective_scan_sum",
                [
                    $"B_TYPE={CudaTensor.TypeName(x.B.dtype)}", $"C_TYPE={CudaTensor.TypeName(x.C.dtype)}",
                    $"N={states}", $"LANES={plan.Lanes}", $"STATES={plan.States}", $"THREADS={threads}", $"SPLIT={split}",
                ]).Run(stream, new Launch(Blocks(blocks), threads, overlap: true), new SumArguments
                {
                    Workspace = Pointer(workspace), GradB = Pointer(B), GradC = Pointer(C), ByB = new View(B).Strides, ByC = new View(C).Strides,
                    Batch = (int)batch, Length = (int)length, Parts = (int)perLaunch,
                    RowsA = Pointer(A), RowsD = Pointer(D), RowsBias = Pointer(bias), GradA = Pointer(sumA), GradD = Pointer(sumD), GradBias = Pointer(sumBias),
                    Rows = (int)rows, Channels = (int)channels,
                });
            }
        }
        return [u, delta, sumA?.MoveToOuterDisposeScope(), B, C, sumD?.MoveToOuterDisposeScope(), z, sumBias?.MoveToOuterDisposeScope(), initialState];
    }

    /// <summary>How the forward kernel is spread: the macros of selective_scan.cu.</summary>
    /// <param name="Lanes">Threads that share a channel's states.</param>
    /// <param name="States">States of a thread.</param>
    /// <param name="Steps">Steps of a tile; divides <see cref="Chunk"/>.</param>
    /// <param name="Threads">Threads of a block.</param>
    /// <param name="Blocks">Blocks that a multiprocessor should hold, which bounds the registers.</param>
    /// <param name="Packed">Whether B and C stay in their 16 bits in shared memory.</param>
    /// <param name="Unroll">How many times 8 steps are written out.</param>
    /// <param name="Pass">0: all of time at once; 1 and 2: in pieces.</param>
    internal readonly record struct ForwardPlan(int Lanes, int States, int Steps, int Threads, int Blocks, bool Packed, int Unroll, int Pass = 0)
    {
        /// <summary>What every GPU that the kernels run on gives a block.</summary>
        public const int MaxSharedBytes = 64 << 10;

        /// <summary>Channels of a block.</summary>
        public int TileChannels => Threads / Lanes;

        /// <summary>Blocks that hold all channels of all rows; none has channels of two rows.</summary>
        public long Tiles(long batch, long channels) => batch * ((channels + TileChannels - 1) / TileChannels);

        /// <summary>The size of the kernel's struct Shared.</summary>
        public int SharedBytes => 2 * Steps * 2 * Lanes * States * (Packed ? sizeof(ushort) : sizeof(float))
            + sizeof(float) * (TileChannels * (Steps / 8 * 20 + 4) + Threads * (Steps + 4));

        /// <summary>Many channels: few lanes, as what is done once a step and channel costs the same for any number of states of
        /// a thread. Few channels: more lanes, so that every multiprocessor has something to do; then what shared memory hands out
        /// is the first limit, and B and C are left in 16 bits where they have no more. Where one block a multiprocessor then holds
        /// all channels it does: no multiprocessor has more warps than it must, and a tile's B and C are loaded by more threads.
        /// The numbers are the best of those that were tried on an H100 with 16 states (docs/selective-scan.md).</summary>
        /// <param name="states">n.</param>
        /// <param name="batch">Rows.</param>
        /// <param name="channels">Of a row.</param>
        /// <param name="multiprocessors">Of the GPU.</param>
        /// <param name="sharedBytes">What the GPU gives a block.</param>
        /// <param name="wide">Whether any of what is loaded is float32: a tile that is loaded ahead then takes twice the registers.</param>
        public static ForwardPlan For(int states, long batch, long channels, int multiprocessors, int sharedBytes, bool wide)
        {
            var all = batch * channels;
            var lanesOfFew = Math.Min(32, PowerOfTwo(states, states <= 4 ? 4 : 2));
            if (wide) return Shortened(all >= 128L * multiprocessors ? Spread(Lanes(8), 8, 64, 6, packed: false, 1) : Spread(lanesOfFew, 8, 64, 5, packed: false, 1));
            return all >= 80L * multiprocessors ? Shortened(Many()) : OneBlockEach(Shortened(Spread(lanesOfFew, 8, 128, 4, packed: true, 8)));

            ForwardPlan Shortened(ForwardPlan plan)
            {
                while (plan.SharedBytes > MaxSharedBytes) plan = plan with { Steps = plan.Steps / 2 };
                return plan;
            }

            ForwardPlan OneBlockEach(ForwardPlan plan)
            {
                var wider = plan with { Blocks = 1 };
                while (!HaveRoom(wider) && wider.Threads < 384) wider = wider with { Threads = wider.Threads + 32 };
                return wider.Threads > plan.Threads && HaveRoom(wider) && wider.SharedBytes <= sharedBytes ? wider : plan;
            }

            // Two lanes for very many, and where all of their blocks have room at once while those of four lanes have not.
            ForwardPlan Many()
            {
                ForwardPlan two = Spread(Lanes(8), 16, 128, 3, packed: false, 2), four = Spread(Lanes(4), 8, 128, 5, packed: true, 2);
                return all >= 240L * multiprocessors || (HaveRoom(two) && !HaveRoom(four)) ? two : four;
            }

            // Its blocks, all at once.
            bool HaveRoom(ForwardPlan plan) => plan.Tiles(batch, channels) <= (long)plan.Blocks * multiprocessors;

            int Lanes(int each) => Math.Min(32, PowerOfTwo(states, each));

            ForwardPlan Spread(int lanes, int stepsOfLane, int threads, int blocks, bool packed, int unroll)
            {
                var each = PowerOfTwo(states, lanes);
                return new(lanes, each, Math.Min(64, stepsOfLane * lanes), threads, blocks, packed && each % 2 == 0, unroll);
            }
        }

        /// <summary>Into how many pieces time is cut: so many that a multiprocessor has some eight warps, and none shorter than
        /// 512 steps. A second walk over time pays only where at least half of the GPU would be idle.</summary>
        public int Pieces(long channels, long length, int multiprocessors)
        {
            var warps = Math.Max(1, channels * Lanes / 32);
            return (int)Math.Clamp(Math.Min(8L * multiprocessors / warps, length / 512), 1, 32);
        }

        public string[] Defines() =>
        [
            $"LANES={Lanes}", $"STATES={States}", $"STEPS={Steps}", $"THREADS={Threads}", $"BLOCKS={Blocks}",
            $"PACKED={(Packed ? "true" : "false")}", $"UNROLL={Unroll}", $"PASS={Pass}",
        ];
    }

    /// <summary>How the backward kernel is spread: the macros of selective_scan_backward.cu.</summary>
    /// <param name="Lanes">Threads that share a channel's states.</param>
    /// <param name="States">States of a thread.</param>
    /// <param name="Steps">Steps of a tile; divides <see cref="Chunk"/>.</param>
    /// <param name="Threads">Threads of a block.</param>
    /// <param name="Pass">0: all of time at once; 1 and 2: in pieces.</param>
    internal readonly record struct BackwardPlan(int Lanes, int States, int Steps, int Threads, int Pass = 0)
    {
        /// <summary>Steps whose states are in registers at once.</summary>
        public const int Segment = 4;

        /// <summary>Channels of a block.</summary>
        public int TileChannels => Threads / Lanes;

        /// <summary>Floats of a step in the workspace: B's and C's gradients, with the states padded.</summary>
        public int Width => 2 * Lanes * States;

        /// <summary>Blocks that a multiprocessor should hold, which bounds the registers: 168 for 4 states.</summary>
        public int Blocks => States <= 4 ? 384 / Threads : 1;

        /// <summary>The size of the kernel's struct Shared.</summary>
        public int SharedBytes
        {
            get
            {
                var orders = Math.Min(States, 32 / Lanes);
                var sums = Segment * Width <= 32 * States ? 4 : Threads / 32 * Steps * Width;
                return sizeof(float) * (orders * (Steps * Width + (orders > 1 ? 4 : 0)) + TileChannels * (2 * Steps + 4 + Steps + 4)
                    + Chunk / Segment * States * Threads + sums);
            }
        }

        public static BackwardPlan For(int states, int sharedBytes)
        {
            var lanes = Math.Min(32, PowerOfTwo(states, 4));
            var each = PowerOfTwo(states, lanes);
            var plan = new BackwardPlan(lanes, each, lanes <= 8 ? Math.Min(32, 8 * lanes) : lanes == 16 ? 16 : 8, each <= 4 ? 128 : 64);
            // On a GPU with little shared memory.
            while (plan.SharedBytes > sharedBytes && plan.Threads > 32) plan = plan with { Threads = plan.Threads / 2 };
            return plan;
        }

        /// <summary>Into how many pieces time is cut, each of whole chunks: more than one where the channels' blocks fill less than
        /// half of the GPU. The additional pass costs a fifth of a walk back; four pieces were the best of 1 to 10 for few rows
        /// on an H100, and more where even those do not fill it.</summary>
        public int Pieces(long batch, long channels, long length, int multiprocessors)
        {
            long blocks = Math.Max(1, batch * ((channels + TileChannels - 1) / TileChannels)), places = (long)multiprocessors * Blocks;
            return 2 * blocks > places ? 1 : (int)Math.Clamp(Math.Max(4, places / blocks), 1, Math.Clamp(Chunks(length), 1, 32));
        }

        public string[] Defines() =>
        [
            $"LANES={Lanes}", $"STATES={States}", $"STEPS={Steps}", $"SEGMENT={Segment}", $"THREADS={Threads}", $"BLOCKS={Blocks}", $"PASS={Pass}",
        ];
    }

    /// <summary>What else a kernel is compiled for.</summary>
    private readonly record struct Variant(
        ScalarType U, ScalarType Delta, ScalarType Z, ScalarType B, ScalarType C, ScalarType GradOutput,
        int States, bool Softplus, bool Gated, bool Aligned, bool AlignedInputs)
    {
        /// <summary>Whether any of what is loaded is float32.</summary>
        public bool Wide => U == ScalarType.Float32 || Delta == ScalarType.Float32 || B == ScalarType.Float32 || C == ScalarType.Float32;

        public string[] Defines() =>
        [
            $"U_TYPE={CudaTensor.TypeName(U)}", $"DELTA_TYPE={CudaTensor.TypeName(Delta)}", $"Z_TYPE={CudaTensor.TypeName(Z)}",
            $"B_TYPE={CudaTensor.TypeName(B)}", $"C_TYPE={CudaTensor.TypeName(C)}", $"G_TYPE={CudaTensor.TypeName(GradOutput)}",
            $"N={States}", $"SOFTPLUS={(Softplus ? 1 : 0)}", $"GATED={(Gated ? 1 : 0)}",
            $"ALIGNED={(Aligned ? "true" : "false")}", $"ALIGNED_INPUTS={(AlignedInputs ? "true" : "false")}",
        ];
    }

    // Found without making the macros' text: a scan is called for every layer.
    private static readonly ConcurrentDictionary<(CudaGpu, Variant, ForwardPlan), CudaKernel> _forward = new();
    private static readonly ConcurrentDictionary<(CudaGpu, Variant, BackwardPlan), CudaKernel> _backward = new();

    private static CudaKernel Kernel(CudaGpu gpu, Variant variant, ForwardPlan plan) => _forward.GetOrAdd((gpu, variant, plan),
        static k => k.Item1.Kernel("selective_scan.cu", "selective_scan", [.. k.Item2.Defines(), .. k.Item3.Defines()]));

    private static CudaKernel Kernel(CudaGpu gpu, BackwardPlan plan, Variant variant) => _backward.GetOrAdd((gpu, variant, plan),
        static k => k.Item1.Kernel("selective_scan_backward.cu", "selective_scan_backward", [.. k.Item2.Defines(), .. k.Item3.Defines()]));

    /// <summary>The least power of two that is at least n / by.</summary>
    private static int PowerOfTwo(int n, int by) => (int)BitOperations.RoundUpToPowerOf2((uint)((n + by - 1) / by));

    private static long Chunks(long length) => (length + Chunk - 1) / Chunk;

    // The steps of each of so many pieces of time: whole chunks.
    private static long PieceSteps(long length, int pieces) => Math.Max(1, Chunks((length + pieces - 1) / pieces)) * Chunk;

    private static CudaGpu Gpu(ScanArguments x) => x.u.device_type == DeviceType.CUDA
        ? CudaGpu.Get(x.u.device_index)
        : throw new ArgumentException($"u is on {x.u.device}; the CUDA kernel expects every tensor on one GPU.", nameof(ScanArguments.u));

    private static nint Pointer(Tensor? t) => CudaTensor.Pointer(t);

    // The copy of a tensor that is not contiguous is in the dispose scope at hand: the kernel is in the stream before it ends.
    private static nint Contiguous(Tensor? t) => t is null ? 0 : Pointer(t.is_contiguous() ? t : t.contiguous());

    private static int Steps(long length) => length <= int.MaxValue - 2 * Chunk ? (int)length
        : throw new ArgumentException(string.Create(CultureInfo.InvariantCulture, $"u has {length} steps; the CUDA kernel takes at most {int.MaxValue - 2 * Chunk}."), nameof(ScanArguments.u));

    private static int Blocks(long count) => count <= int.MaxValue ? (int)count
        : throw new ArgumentException($"u has too many rows and channels for one launch: {count} blocks, at most {int.MaxValue}.", nameof(ScanArguments.u));

    // The caller's tensor, or a new one of the shape, type and memory order of `like`.
    private static Tensor Target(Tensor? given, string name, Tensor like)
    {
        if (given is null) return empty_strided(like.shape, DenseStrides(like), dtype: like.dtype, device: like.device);
        Fits(given, name, like, like.dtype);
        return given;
    }

    /// <summary>Strides without gaps, the axes in the order that they have in the memory of t.</summary>
    internal static long[] DenseStrides(Tensor t)
    {
        var (shape, strides) = (t.shape, t.stride());
        // An axis of stride zero is repeated memory and an axis of one element has no place: both go where they are counted.
        var order = strides.Any(s => s == 0) ? Enumerable.Range(0, shape.Length).Reverse() : Enumerable.Range(0, shape.Length).OrderBy(i => strides[i]).ThenByDescending(i => i);
        var (dense, next) = (new long[shape.Length], 1L);
        foreach (var axis in order)
        {
            dense[axis] = next;
            next *= Math.Max(1, shape[axis]);
        }
        return dense;
    }

    private static void Fits(Tensor t, string name, Tensor like, ScalarType type)
    {
        if (!t.shape.SequenceEqual(like.shape))
            throw new ArgumentException($"{name} has shape [{string.Join(", ", t.shape)}]; expected [{string.Join(", ", like.shape)}].", name);
        if (t.dtype != type) throw new ArgumentException($"{name} is {t.dtype}; expected {type}.", name);
        CudaTensor.TypeName(t.dtype);
        OnDevice(t, name, like.device);
    }

    private static void Floats(Tensor t, string name, long[] shape, Device device)
    {
        if (!t.shape.SequenceEqual(shape))
            throw new ArgumentException($"{name} has shape [{string.Join(", ", t.shape)}]; expected [{string.Join(", ", shape)}].", name);
        if (t.dtype != ScalarType.Float32) throw new ArgumentException($"{name} is {t.dtype}; expected Float32.", name);
        OnDevice(t, name, device);
    }

    private static void OnDevice(Tensor t, string name, Device device)
    {
        if (t.device_type != device.type || t.device_index != device.index)
            throw new ArgumentException($"{name} is on {t.device}; expected {device}.", name);
    }

    /// <summary>struct Strides of selective_scan.cuh, in elements.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private readonly record struct Strides(long Row, long Channel, long Time);

    /// <summary>A tensor [b, d, l] or [b, n, l] as a kernel sees it, each thing asked for once.</summary>
    private readonly struct View
    {
        public readonly nint Pointer;
        public readonly ScalarType Type;
        public readonly Strides Strides;

        /// <summary>Whether 8 steps from every eighth on are one or two accesses of 16 bytes, in every row and channel. So they
        /// are where there is no tensor.</summary>
        public readonly bool Aligned = true;

        public View(Tensor? t)
        {
            if (t is null) return;
            (Pointer, Type, Strides) = (CudaTensor.Pointer(t), t.dtype, new(t.stride(0), t.stride(1), t.stride(2)));
            var size = Type == ScalarType.Float32 ? 4 : 2;
            Aligned = (Strides.Time == 1 || t.size(2) <= 1) && Pointer % 16 == 0
                && (t.size(0) <= 1 || Strides.Row * size % 16 == 0) && (t.size(1) <= 1 || Strides.Channel * size % 16 == 0);
        }
    }

    /// <summary>struct Arguments of selective_scan.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct ForwardArguments
    {
        public nint U, Delta, Z, B, C, A, D, DeltaBias, InitialState, Output, LastState, Checkpoints, PieceStates, PieceSteps;
        public Strides ByU, ByDelta, ByZ, ByB, ByC, ByOutput;
        public int Batch, Channels, Length, Piece;
    }

    /// <summary>struct Arguments of selective_scan_backward.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct BackwardArguments
    {
        public nint U, Delta, Z, B, C, GradOutput, A, D, DeltaBias, Checkpoints, GradLastState;
        public nint GradU, GradDelta, GradZ, GradA, GradD, GradDeltaBias, GradInitialState, Workspace;
        public Strides ByU, ByDelta, ByZ, ByB, ByC, ByGradOutput, ByGradU, ByGradDelta, ByGradZ;
        public int Batch, Channels, Length, FirstChannel, Parts, Add;
        public nint PieceStates, PieceSteps;
        public int Piece;
    }

    /// <summary>struct Arguments of selective_scan_sum.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct SumArguments
    {
        public nint Workspace, GradB, GradC;
        public Strides ByB, ByC;
        public int Batch, Length, Parts;
        public nint RowsA, RowsD, RowsBias, GradA, GradD, GradBias;
        public int Rows, Channels;
    }
}
