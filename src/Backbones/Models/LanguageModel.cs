using static TorchSharp.torch;

namespace MambaVL.Models;

/// <summary>What Mamba and GPT-NeoX have in common: embeddings in, logits out, all at once or a token at a time.</summary>
/// <remarks>
/// Tensors that a method returns belong to the caller. Weights may be shared by any number of threads; a
/// <see cref="DecoderState"/> belongs to one.
/// </remarks>
public abstract class LanguageModel : nn.Module
{
    /// <summary>Makes an unnamed model.</summary>
    protected LanguageModel(string name) : base(name) { }

    /// <summary>The width d of the embeddings.</summary>
    public abstract long HiddenSize { get; }

    /// <summary>Rows of the embedding table and of the head, padding rows included.</summary>
    public abstract long VocabularySize { get; }

    /// <summary>The embeddings of ids: [b, l] -> [b, l, d].</summary>
    public abstract Tensor Embed(Tensor ids);

    /// <summary>The logits at every position: [b, l, d] -> [b, l, vocabulary]. Records gradients when they are enabled.</summary>
    /// <param name="embeddings">[b, l, d], from <see cref="Embed"/> or a connector.</param>
    /// <param name="attentionMask">[b, l] of 1 (a token) and 0 (padding), or null where every position is a token.
    /// Mamba reads left to right: it takes padding on the right only, and needs no mask for it.</param>
    /// <param name="hiddenStates">When given, receives the embeddings, the output of each layer, and (in place of the
    /// last layer's) the output of the final norm, as transformers' <c>output_hidden_states</c> does; owned by the caller.</param>
    public abstract Tensor Forward(Tensor embeddings, Tensor? attentionMask = null, IList<Tensor>? hiddenStates = null);

    /// <summary>An empty state of one row.</summary>
    /// <param name="maxLength">Positions that the row may come to hold: the size of a key-value cache.</param>
    public abstract DecoderState CreateState(int maxLength);

    /// <summary>Reads the next l positions of one row, and moves its state on. Long inputs may come in pieces.</summary>
    /// <param name="embeddings">[1, l, d].</param>
    /// <param name="state">The row's state; moved on by l positions.</param>
    /// <returns>The logits after the last position, [1, vocabulary].</returns>
    public abstract Tensor Prefill(Tensor embeddings, DecoderState state);

    /// <summary>One token for each of b rows.</summary>
    /// <param name="ids">[b], int64.</param>
    /// <param name="states">One state a row; each is moved on by one position.</param>
    /// <returns>The logits, [b, vocabulary]. A row's are the same, bit for bit, whichever rows stand beside it.</returns>
    public abstract Tensor Decode(Tensor ids, IReadOnlyList<DecoderState> states);
}

/// <summary>What a language model remembers of one row between calls.</summary>
public abstract class DecoderState : IDisposable
{
    /// <summary>The positions read so far.</summary>
    public int Length { get; protected internal set; }

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
