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

    /// <summary>One token for each of b rows. Records no gradients.</summary>
    /// <param name="ids">[b], int64.</param>
    /// <param name="states">One state a row; each is moved on by one position.</param>
    /// <returns>The logits, [b, vocabulary], float32. A row's are the same, bit for bit, whichever rows stand beside it.</returns>
    /// <exception cref="ArgumentException">There are not b states, or one stands there twice, or is another model's, or
    /// is full; or an id is no row of the embedding table.</exception>
    /// <exception cref="ObjectDisposedException">A state was disposed.</exception>
    public abstract Tensor Decode(Tensor ids, IReadOnlyList<DecoderState> states);

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
        ArgumentNullException.ThrowIfNull(states);
        if (states.Count != ids.shape[0])
            throw new ArgumentException($"There are {states.Count} states for {ids.shape[0]} ids; expected one each.", nameof(states));
        foreach (var state in states) CheckState<T>(state, this, 1);
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

    /// <summary>A copy that goes on by itself: one prompt's state serves many continuations. The caller owns it.</summary>
    public abstract DecoderState Clone();

    /// <inheritdoc/>
    public void Dispose()
    {
        Dispose(true);
        GC.SuppressFinalize(this);
    }

    /// <summary>Frees the tensors of the state.</summary>
    protected abstract void Dispose(bool disposing);
}

internal static class StateTensors
{
    /// <summary>Tensors for a state, one for each layer. They belong to the state, not to the caller's dispose scope; and
    /// they are no inference tensors, so that a state may be made and used in and out of inference mode.</summary>
    public static Tensor[] Empty(long layerCount, long[] shape, ScalarType dtype, Device device)
    {
        using var normal = inference_mode(false);
        var tensors = new Tensor[layerCount];
        for (var i = 0; i < tensors.Length; i++) tensors[i] = empty(shape, dtype: dtype, device: device).DetachFromDisposeScope();
        return tensors;
    }
}
