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
    public const long WorkspaceBytes = 256L << 20;

    /// <summary>Output and last state, recorded by autograd where a tensor asks for it.</summary>
    public static (Tensor output, Tensor lastState) Run(ScanArguments x)
    {
        using var scope = NewDisposeScope();
        var (output, lastState) = x.NeedGradient ? ScanFunction.Record(x, Kernel) : Forward(x, keepCheckpoints: false) is var r ? (r.output, r.lastState) : default;
        return (output.MoveToOuterDisposeScope(), lastState.MoveToOuterDisposeScope());
    }

    private static ScanKernel Kernel { get; } = new("CUDA",
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

        var plan = ForwardPlan.For(states, batch * channels, gpu.Multiprocessors);
        var kernel = gpu.Kernel("selective_scan.cu", "selective_scan",
        [
            .. Types(x), .. plan.Defines(states), Softplus(x),
            Define("ALIGNED", Aligned(x.u, x.delta, x.z, output)), Define("ALIGNED_INPUTS", Aligned(x.B, x.C)),
        ]);
        using var scope = NewDisposeScope();
        var blocks = (channels + plan.TileChannels - 1) / plan.TileChannels;
        kernel.Run(CudaStream.Current(gpu.Index), new Launch(Blocks(batch * blocks), plan.Threads), new ForwardArguments
        {
            U = Pointer(x.u), Delta = Pointer(x.delta), Z = Pointer(x.z), B = Pointer(x.B), C = Pointer(x.C),
            A = Pointer(x.A.contiguous()), D = Pointer(x.D?.contiguous()), DeltaBias = Pointer(x.deltaBias?.contiguous()),
            InitialState = Pointer(x.initialState?.contiguous()),
            Output = Pointer(output), LastState = Pointer(lastState), Checkpoints = Pointer(checkpoints),
            ByU = new(x.u), ByDelta = new(x.delta), ByZ = new(x.z), ByB = new(x.B), ByC = new(x.C), ByOutput = new(output),
            Channels = (int)channels, Length = Steps(length),
        });
        return (output, lastState, checkpoints);
    }

    /// <summary>The gradients of all nine tensors, in the order of <see cref="ScanArguments.Tensors"/>; null where there is no
    /// such tensor. Without autograd.</summary>
    /// <param name="x">The arguments of Forward.</param>
    /// <param name="checkpoints">What Forward gave.</param>
    /// <param name="gradOutput">[b, d, l] in any type that u may have, or null.</param>
    /// <param name="gradLastState">[b, d, n] in float32, or null.</param>
    /// <param name="into">Where gradients go, of the types of their tensors; null: new tensors.</param>
    public static Tensor?[] Backward(ScanArguments x, Tensor checkpoints, Tensor? gradOutput, Tensor? gradLastState, ScanTargets? into = null)
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
        Tensor PerRow(params long[] shape) => empty([batch, .. shape], ScalarType.Float32, x.u.device);
        using var scope = NewDisposeScope();
        var (A, D, bias) = (PerRow(channels, states), x.D is null ? null : PerRow(channels), x.deltaBias is null ? null : PerRow(channels));
        if (batch * channels == 0)
        {
            B.zero_();
            C.zero_();
        }
        else
        {
            var plan = BackwardPlan.For(states, gpu.SharedBytes);
            // Parts of the channels that have sums of their own for B and C; a launch takes as many as fit.
            var parts = (channels + plan.TileChannels - 1) / plan.TileChannels;
            var part = batch * length * plan.Width * sizeof(float);
            var perLaunch = Math.Clamp(WorkspaceBytes / Math.Max(1, part), 1, parts);
            var workspace = empty([perLaunch, batch, length, plan.Width], ScalarType.Float32, x.u.device);
            var kernel = gpu.Kernel("selective_scan_backward.cu", "selective_scan_backward",
            [
                .. Types(x), $"G_TYPE={CudaTensor.TypeName((gradOutput ?? x.u).dtype)}", .. plan.Defines(states), Softplus(x), $"GATED={(x.z is null ? 0 : 1)}",
                Define("ALIGNED", Aligned(x.u, x.delta, x.z, gradOutput, u, delta, z)), Define("ALIGNED_INPUTS", Aligned(x.B, x.C)),
            ]);
            var stream = CudaStream.Current(gpu.Index);
            var arguments = new BackwardArguments
            {
                U = Pointer(x.u), Delta = Pointer(x.delta), Z = Pointer(x.z), B = Pointer(x.B), C = Pointer(x.C), GradOutput = Pointer(gradOutput),
                A = Pointer(x.A.contiguous()), D = Pointer(x.D?.contiguous()), DeltaBias = Pointer(x.deltaBias?.contiguous()),
                Checkpoints = Pointer(checkpoints), GradLastState = Pointer(gradLastState?.contiguous()),
                GradU = Pointer(u), GradDelta = Pointer(delta), GradZ = Pointer(z),
                GradA = Pointer(A), GradD = Pointer(D), GradDeltaBias = Pointer(bias), GradInitialState = Pointer(initialState),
                Workspace = Pointer(workspace),
                ByU = new(x.u), ByDelta = new(x.delta), ByZ = new(x.z), ByB = new(x.B), ByC = new(x.C), ByGradOutput = new(gradOutput),
                ByGradU = new(u), ByGradDelta = new(delta), ByGradZ = new(z),
                Batch = (int)batch, Channels = (int)channels, Length = Steps(length),
            };
            for (var first = 0L; first < parts; first += perLaunch)
            {
                var now = Math.Min(perLaunch, parts - first);
                (arguments.FirstChannel, arguments.Parts, arguments.Add) = ((int)(first * plan.TileChannels), (int)now, first > 0 ? 1 : 0);
                kernel.Run(stream, new Launch(Blocks(now * batch), plan.Threads, plan.SharedBytes), arguments);
            }
            if (length > 0)
            {
                var threads = Math.Max(256, plan.Width);
                var steps = threads / plan.Width;
                gpu.Kernel("selective_scan_sum.cu", "selective_scan_sum",
                [
                    $"B_TYPE={CudaTensor.TypeName(x.B.dtype)}", $"C_TYPE={CudaTensor.TypeName(x.C.dtype)}",
                    $"N={states}", $"LANES={plan.Lanes}", $"STATES={plan.States}", $"THREADS={threads}",
                ]).Run(stream, new Launch(Blocks(batch * ((length + steps - 1) / steps)), threads), new SumArguments
                {
                    Workspace = Pointer(workspace), GradB = Pointer(B), GradC = Pointer(C), ByB = new(B), ByC = new(C),
                    Batch = (int)batch, Length = (int)length, Parts = (int)perLaunch,
                });
            }
        }
        Tensor? OverRows(Tensor? t) => t is null ? null : (batch == 1 ? t.squeeze(0) : t.sum([0L])).MoveToOuterDisposeScope();
        return [u, delta, OverRows(A), B, C, OverRows(D), z, OverRows(bias), initialState];
    }

    /// <summary>How the forward kernel is spread: the macros of selective_scan.cu.</summary>
    /// <param name="Lanes">Threads that share a channel's states.</param>
    /// <param name="States">States of a thread.</param>
    /// <param name="Channels">Channels of a thread.</param>
    /// <param name="Steps">Steps of a tile.</param>
    /// <param name="Threads">Threads of a block.</param>
    /// <param name="Blocks">Blocks that a multiprocessor should hold, which bounds the registers.</param>
    internal readonly record struct ForwardPlan(int Lanes, int States, int Channels, int Steps, int Threads, int Blocks)
    {
        /// <summary>Channels of a block.</summary>
        public int TileChannels => Threads / Lanes * Channels;

        /// <summary>Many channels: few lanes, as each step costs the same sums and loads for any number of states. Few channels:
        /// more lanes, so that every multiprocessor has something to do.</summary>
        public static ForwardPlan For(int states, long channels, int multiprocessors)
        {
            var many = channels >= 128L * multiprocessors;
            var lanes = Math.Min(32, PowerOfTwo(states, many || states <= 4 ? 4 : 2));
            var each = PowerOfTwo(states, lanes);
            var steps = lanes <= 8 ? 8 * lanes : states <= 128 ? 32 : 16;
            return many && lanes == 4 ? new(lanes, each, 2, steps, 64, 10) : new(lanes, each, 1, steps, 64, 8);
        }

        public string[] Defines(int states) =>
        [
            $"N={states}", $"LANES={Lanes}", $"STATES={States}", $"CHANNELS={Channels}", $"STEPS={Steps}", $"THREADS={Threads}", $"BLOCKS={Blocks}",
        ];
    }

    /// <summary>How the backward kernel is spread: the macros of selective_scan_backward.cu.</summary>
    /// <param name="Lanes">Threads that share a channel's states.</param>
    /// <param name="States">States of a thread.</param>
    /// <param name="Steps">Steps of a tile; divides <see cref="Chunk"/>.</param>
    /// <param name="Segment">Steps whose states are in registers at once.</param>
    /// <param name="Threads">Threads of a block.</param>
    internal readonly record struct BackwardPlan(int Lanes, int States, int Steps, int Segment, int Threads)
    {
        /// <summary>Channels of a block.</summary>
        public int TileChannels => Threads / Lanes;

        /// <summary>Floats of a step in the workspace: B's and C's gradients, with the states padded.</summary>
        public int Width => 2 * Lanes * States;

        /// <summary>The size of the kernel's struct Shared.</summary>
        public int SharedBytes => sizeof(float) *
            (Steps * Width + TileChannels * (Steps / 8 * 20 + 4) + TileChannels * (Steps + 8) + Chunk / Segment * States * Threads + 2 * (Threads / 32) * Segment * Width);

        public static BackwardPlan For(int states, int sharedBytes)
        {
            var lanes = Math.Min(32, PowerOfTwo(states, 2));
            var each = PowerOfTwo(states, lanes);
            var (steps, segment, threads) = each switch
            {
                8 => (8, 4, 64),
                4 => (16, 4, 64),
                _ when lanes == 32 => (32, 8, 128),
                _ => (Math.Min(64, 8 * lanes), 8, 256),
            };
            var plan = new BackwardPlan(lanes, each, steps, segment, threads);
            // Fewer threads on a GPU with little shared memory.
            while (plan.SharedBytes > sharedBytes && plan.Threads > 32) plan = plan with { Threads = plan.Threads / 2 };
            return plan;
        }

        public string[] Defines(int states) =>
        [
            $"N={states}", $"LANES={Lanes}", $"STATES={States}", $"STEPS={Steps}", $"SEGMENT={Segment}", $"THREADS={Threads}",
            $"BLOCKS={(Threads * 2 <= 512 && States <= 2 ? 2 : 1)}",
        ];
    }

    /// <summary>The least power of two that is at least n / by.</summary>
    private static int PowerOfTwo(int n, int by) => (int)BitOperations.RoundUpToPowerOf2((uint)((n + by - 1) / by));

    private static long Chunks(long length) => (length + Chunk - 1) / Chunk;

    private static CudaGpu Gpu(ScanArguments x) => x.u.device_type == DeviceType.CUDA
        ? CudaGpu.Get(x.u.device_index)
        : throw new ArgumentException($"u is on {x.u.device}; the CUDA kernel expects every tensor on one GPU.", nameof(ScanArguments.u));

    private static nint Pointer(Tensor? t) => CudaTensor.Pointer(t);

    private static string Define(string name, bool value) => $"{name}={(value ? "true" : "false")}";

    private static string Softplus(ScanArguments x) => $"SOFTPLUS={(x.deltaSoftplus ? 1 : 0)}";

    private static string[] Types(ScanArguments x) =>
    [
        $"U_TYPE={CudaTensor.TypeName(x.u.dtype)}", $"DELTA_TYPE={CudaTensor.TypeName(x.delta.dtype)}", $"Z_TYPE={CudaTensor.TypeName((x.z ?? x.u).dtype)}",
        $"B_TYPE={CudaTensor.TypeName(x.B.dtype)}", $"C_TYPE={CudaTensor.TypeName(x.C.dtype)}",
    ];

    /// <summary>Whether 8 steps from every eighth on are one or two accesses of 16 bytes, in every row and channel of each.</summary>
    private static bool Aligned(params ReadOnlySpan<Tensor?> tensors)
    {
        foreach (var t in tensors)
        {
            if (t is null) continue;
            var (shape, strides, size) = (t.shape, t.stride(), t.element_size());
            if ((strides[2] != 1 && shape[2] > 1) || Pointer(t) % 16 != 0) return false;
            if ((shape[0] > 1 && strides[0] * size % 16 != 0) || (shape[1] > 1 && strides[1] * size % 16 != 0)) return false;
        }
        return true;
    }

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
    private readonly struct Strides
    {
        public readonly long Row, Channel, Time;

        public Strides(Tensor? t)
        {
            if (t is not null && t.stride() is var strides) (Row, Channel, Time) = (strides[0], strides[1], strides[2]);
        }
    }

    /// <summary>struct Arguments of selective_scan.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct ForwardArguments
    {
        public nint U, Delta, Z, B, C, A, D, DeltaBias, InitialState, Output, LastState, Checkpoints;
        public Strides ByU, ByDelta, ByZ, ByB, ByC, ByOutput;
        public int Channels, Length;
    }

    /// <summary>struct Arguments of selective_scan_backward.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct BackwardArguments
    {
        public nint U, Delta, Z, B, C, GradOutput, A, D, DeltaBias, Checkpoints, GradLastState;
        public nint GradU, GradDelta, GradZ, GradA, GradD, GradDeltaBias, GradInitialState, Workspace;
        public Strides ByU, ByDelta, ByZ, ByB, ByC, ByGradOutput, ByGradU, ByGradDelta, ByGradZ;
        public int Batch, Channels, Length, FirstChannel, Parts, Add;
    }

    /// <summary>struct Arguments of selective_scan_sum.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct SumArguments
    {
        public nint Workspace, GradB, GradC;
        public Strides ByB, ByC;
        public int Batch, Length, Parts;
    }
}
