using MambaVL.Cuda;
using MambaVL.Kernels;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Models;

/// <summary>What Mamba and GPT-NeoX have in common: embeddings in, logits out, all at once or a token at a time.</summary>
/// <remarks>
/// Tensors that a method returns belong to the caller. Weights may be shared by any number of threads; a
/// <see cref="DecoderState"/> belongs to one.
/// </remarks>
public abstract class LanguageModel : nn.Module
{
    /// <summary>Makes a model whose module is called <paramref name="name"/>.</summary>
    protected LanguageModel(string name) : base(name) { }

    /// <summary>The width d of the embeddings.</summary>
    public abstract long HiddenSize { get; }

    /// <summary>Rows of the embedding table and of the head, padding rows included.</summary>
    public abstract long VocabularySize { get; }

    /// <summary>The embeddings of ids: [b, l] -> [b, l, d], in the precision of the weights.</summary>
    /// <exception cref="ArgumentException">The ids are not [b, l] of int64, or one is no row of the table.</exception>
    public abstract Tensor Embed(Tensor ids);

    /// <summary>The logits at every position: [b, l, d] -> [b, l, vocabulary], in the precision of the weights.
    /// Records gradients when they are enabled.</summary>
    /// <param name="embeddings">[b, l, d], from <see cref="Embed"/> or a connector; taken to the precision of the weights.</param>
    /// <param name="attentionMask">[b, l] of 1 (a token) and 0 (padding), or null where every position is a token.
    /// Logits at padding mean nothing. Mamba reads left to right: it takes padding on the right only.</param>
    /// <param name="hiddenStates">When given, receives the embeddings, the output of each layer, and the output of the
    /// final norm, all [b, l, d]; owned by the caller. (Of these, transformers leaves out the embeddings for Mamba, and
    /// the last layer's output for GPT-NeoX.)</param>
    /// <exception cref="ArgumentException">An argument has another shape.</exception>
    public abstract Tensor Forward(Tensor embeddings, Tensor? attentionMask = null, IList<Tensor>? hiddenStates = null);

    /// <summary>An empty state of one row.</summary>
    /// <param name="maxLength">Positions that the row may come to hold: the size of a key-value cache.</param>
    /// <exception cref="ArgumentOutOfRangeException">It is not positive.</exception>
    public abstract DecoderState CreateState(int maxLength);

    /// <summary>Empty states of several rows, side by side in memory, so that a GPU can read the rows' prompts at once
    /// (<see cref="Prefill(Tensor, IReadOnlyList{DecoderState})"/>). Each is disposed by itself; the memory of all is free when
    /// the last of them is.</summary>
    /// <param name="count">Rows.</param>
    /// <param name="maxLength">Positions that each row may come to hold.</param>
    /// <exception cref="ArgumentOutOfRangeException">One of them is not positive.</exception>
    public virtual IReadOnlyList<DecoderState> CreateStates(int count, int maxLength)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(count);
        return [.. Enumerable.Range(0, count).Select(_ => CreateState(maxLength))];
    }

    /// <summary>Reads the next l positions of one row, and moves its state on. Long inputs may come in pieces.
    /// Records no gradients.</summary>
    /// <param name="embeddings">[1, l, d].</param>
    /// <param name="state">The row's state; moved on by l positions. After an exception from the computation itself it
    /// is of no further use.</param>
    /// <returns>The logits after the last position, [1, vocabulary], float32.</returns>
    /// <exception cref="ArgumentException">The embeddings have another shape, the state is another model's, or it has
    /// no room for l more positions.</exception>
    /// <exception cref="ObjectDisposedException">The state was disposed.</exception>
    public abstract Tensor Prefill(Tensor embeddings, DecoderState state);

    /// <summary>Reads the next l positions of each of b rows, and moves their states on. Records no gradients.</summary>
    /// <remarks>On a GPU the rows are read at once where their states come from one <see cref="CreateStates"/>, in that order, and
    /// hold equally many positions; a row's results may then differ in the last bits from what they are alone. Otherwise, and
    /// on the CPU always, one row is read after the other, and each gives the bits that it gives alone.</remarks>
    /// <param name="embeddings">[b, l, d].</param>
    /// <param name="states">One state a row; each is moved on by l positions.</param>
    /// <returns>The logits after the last position, [b, vocabulary], float32.</returns>
    /// <inheritdoc cref="Prefill(Tensor, DecoderState)"/>
    public Tensor Prefill(Tensor embeddings, IReadOnlyList<DecoderState> states)
    {
        CheckEmbeddings(embeddings, oneRow: false);
        CheckRows(embeddings.shape[0], states);
        if ((ReadsTogether || embeddings.device_type == DeviceType.CUDA) && StateTensors.AreSideBySide(states) && PrefillTogether(embeddings, states) is { } together) return together;
        using var scope = NewDisposeScope();
        return cat([.. states.Select((state, i) => Prefill(embeddings.narrow(0, i, 1), state))]).MoveToOuterDisposeScope(); // (b, v)
    }

    /// <summary>The same as one batch, of states that lie side by side, whatever the device; null in a model that is not this library's.</summary>
    internal virtual Tensor? PrefillTogether(Tensor embeddings, IReadOnlyList<DecoderState> states) => null;

    /// <summary>One token for each of b rows. Records no gradients.</summary>
    /// <param name="ids">[b], int64.</param>
    /// <param name="states">One state a row; each is moved on by one position.</param>
    /// <returns>The logits, [b, vocabulary], float32. A row's are the same, bit for bit, whichever rows stand beside it.</returns>
    /// <exception cref="ArgumentException">There are not b states, or one stands there twice, or is another model's, or
    /// is full; or an id is no row of the embedding table.</exception>
    /// <exception cref="ObjectDisposedException">A state was disposed.</exception>
    public abstract Tensor Decode(Tensor ids, IReadOnlyList<DecoderState> states);

    /// <summary>Whether rows are read at once on any device, not only on a GPU; the tests compare with and without.</summary>
    internal bool ReadsTogether { get; set; }

    /// <summary>Whether its states have <see cref="DecoderState.CopyFrom"/>.</summary>
    internal virtual bool CopiesStates => false;

    /// <summary>The embeddings of ids that are known to be rows of the table: on a GPU, looking at them means waiting for
    /// everything that was begun. [b, l] -> [b, l, d].</summary>
    internal virtual Tensor EmbedTrusted(Tensor ids) => Embed(ids);

    /// <summary>The logits at some positions only, [p, vocabulary]. A head with 50,000 rows costs more than several layers, and
    /// in training only the answers' positions matter.</summary>
    /// <param name="embeddings">[b, l, d]; padding, if any, is on the right.</param>
    /// <param name="positions">[p], int64, row * l + position; on the weights' device.</param>
    internal virtual Tensor LogitsAt(Tensor embeddings, Tensor positions)
    {
        using var logits = Forward(embeddings);
        using var flat = logits.flatten(0, 1);
        return flat.index_select(0, positions);
    }
    /// <summary>Whether <see cref="LoraAdapters"/> are attached and not merged: then the weights alone are not the whole model.</summary>
    public bool HasAdapters => Adapters is not null;

    internal LoraAdapters? Adapters { get; set; }

    // The kernels read the weights alone; adapters are beside them.
    private protected bool UseKernels => Adapters is null && DecoderChoice.UseKernels;

    /// <summary>Decodes on the GPU; null in a model that is not this library's, and while adapters are attached.</summary>
    internal CudaDecoder? CudaDecoder => Adapters is null ? OwnCudaDecoder : null;

    private protected virtual CudaDecoder? OwnCudaDecoder => null;

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing) OwnCudaDecoder?.Dispose();
        base.Dispose(disposing);
    }

    private protected void CheckIds(Tensor ids, int rank)
    {
        ArgumentNullException.ThrowIfNull(ids);
        if (ids.dtype != ScalarType.Int64 || ids.dim() != rank || ids.numel() == 0)
            throw new ArgumentException($"The ids are {Show(ids)}; expected {(rank == 1 ? "[b]" : "[b, l]")} of Int64, not 0 long.", nameof(ids));
        using var least = ids.min();
        using var most = ids.max();
        if (least.ToInt64() < 0 || most.ToInt64() >= VocabularySize)
            throw new ArgumentException($"The ids run from {least.ToInt64()} to {most.ToInt64()}; the embedding table has " +
                $"rows 0 to {VocabularySize - 1}. Placeholders of an image have no row: the connector's output stands there.",
                nameof(ids));
    }

    private protected void CheckEmbeddings(Tensor embeddings, bool oneRow)
    {
        ArgumentNullException.ThrowIfNull(embeddings);
        if (!embeddings.is_floating_point() || embeddings.dim() != 3 || embeddings.shape[2] != HiddenSize
            || embeddings.numel() == 0 || (oneRow && embeddings.shape[0] != 1))
            throw new ArgumentException($"The embeddings are {Show(embeddings)}; expected [{(oneRow ? "1" : "b")}, l, " +
                $"{HiddenSize}] of floating point, l at least 1.", nameof(embeddings));
    }

    private protected static void CheckMask(Tensor? attentionMask, Tensor embeddings)
    {
        if (attentionMask is null) return;
        if (!attentionMask.shape.SequenceEqual(embeddings.shape[..2]))
            throw new ArgumentException($"The attention mask is {Show(attentionMask)}; expected [{embeddings.shape[0]}, " +
                $"{embeddings.shape[1]}], as the embeddings.", nameof(attentionMask));
    }

    private protected static T CheckState<T>(DecoderState state, object model, long positions) where T : DecoderState
    {
        ArgumentNullException.ThrowIfNull(state);
        if (state is not T own || !ReferenceEquals(own.Model, model))
            throw new ArgumentException("The state was made by another model; make it with this model's CreateState.", nameof(state));
        ObjectDisposedException.ThrowIf(own.IsDisposed, state);
        if (own.Length + positions > own.MaxLength)
            throw new ArgumentException($"The state holds {own.Length} of at most {own.MaxLength} positions, and {positions} " +
                "more were given; ask CreateState for a greater maxLength.", nameof(state));
        return own;
    }

    private protected void CheckStates<T>(Tensor ids, IReadOnlyList<DecoderState> states) where T : DecoderState
    {
        CheckRows(ids.shape[0], states);
        foreach (var state in states) CheckState<T>(state, this, 1);
    }

    private static void CheckRows(long rows, IReadOnlyList<DecoderState> states)
    {
        ArgumentNullException.ThrowIfNull(states);
        if (states.Count != rows)
            throw new ArgumentException($"There are {states.Count} states for {rows} rows; expected one each.", nameof(states));
        if (states.Distinct().Count() != states.Count)
            throw new ArgumentException("A state stands there twice; each row needs its own (see DecoderState.Clone).", nameof(states));
    }

    private static string Show(Tensor t) => $"[{string.Join(", ", t.shape)}] of {t.dtype}";
}

/// <summary>What a language model remembers of one row between calls.</summary>
public abstract class DecoderState : IDisposable
{
    /// <summary>The positions read so far.</summary>
    public int Length { get; protected internal set; }

    /// <summary>The model that made the state, where it is one of this library's.</summary>
    internal LanguageModel? Model { get; private protected init; }

    /// <summary>The positions that there is room for.</summary>
    internal int MaxLength { get; private protected init; } = int.MaxValue;

    internal bool IsDisposed { get; private protected set; }

    /// <summary>The same object in all states that were made together; null where it was made alone.</summary>
    internal object? Group { get; private protected init; }

    /// <summary>Its place among these.</summary>
    internal int Row { get; private protected init; }

    /// <summary>A copy that goes on by itself: one prompt's state serves many continuations. The caller owns it.</summary>
    public abstract DecoderState Clone();

    /// <summary>Becomes what another state of the same model is, which has no more positions than there is room for here.</summary>
    internal virtual void CopyFrom(DecoderState other) => throw new NotSupportedException($"A {GetType().Name} cannot take over another state.");

    /// <inheritdoc/>
    public void Dispose()
    {
        Dispose(true);
        GC.SuppressFinalize(this);
    }

    /// <summary>Frees the tensors of the state.</summary>
    protected abstract void Dispose(bool disposing);
}

/// <summary>The tensors that states are made of.</summary>
internal static class StateTensors
{
    // The distance of two rows is a multiple of this many numbers: each is aligned as memory of its own would be.
    private const long Alignment = 128;

    /// <summary>Tensors for the states of rows that lie side by side: for each row one for each layer, (1, shape). They belong to the
    /// states, not to the caller's dispose scope; and they are no inference tensors, so that a state may be made and used in and
    /// out of inference mode. They start from zeros, or where <paramref name="zero"/> is false from whatever is there.</summary>
    public static Tensor[][] Empty(int rows, long layerCount, long[] shape, ScalarType dtype, Device device, bool zero)
    {
        using var normal = inference_mode(false);
        var distance = (shape.Aggregate(1L, (a, b) => a * b) + Alignment - 1) / Alignment * Alignment;
        using var all = empty([layerCount, rows, distance], dtype: dtype, device: device);
        if (zero) all.fill_(0); // zero_ would give back a handle of its own
        var strides = Strides(shape, distance);
        return [.. Enumerable.Range(0, rows).Select(row => Enumerable.Range(0, (int)layerCount)
            .Select(layer => all.as_strided([1, .. shape], strides, (layer * rows + row) * distance).DetachFromDisposeScope()).ToArray())];
    }

    /// <summary>Whether the states can be read as one batch: made together, in this order, and of one length.</summary>
    public static bool AreSideBySide(IReadOnlyList<DecoderState> states)
    {
        var first = states[0];
        for (var i = 1; i < states.Count; i++)
            if (first.Group is null || states[i].Group != first.Group || states[i].Row != first.Row + i || states[i].Length != first.Length) return false;
        return true;
    }

    /// <summary>The same tensors of so many rows, the first of which is given, as one for each layer: (rows, shape). In the caller's
    /// dispose scope, but for a single row, whose own they are.</summary>
    public static Tensor[] Together(Tensor[] first, int rows)
        => rows == 1 ? first : [.. first.Select(t => t.as_strided([rows, .. t.shape[1..]], t.stride(), t.storage_offset()))];

    private static long[] Strides(long[] shape, long distance)
    {
        var strides = new long[shape.Length + 1];
        strides[0] = distance;
        for (var (axis, stride) = (shape.Length, 1L); axis > 0; stride *= shape[--axis]) strides[axis] = stride;
        return strides;
    }
}
