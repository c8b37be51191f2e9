namespace MambaVL.Prompts;

/// <summary>The input of a model.</summary>
/// <param name="Ids">[l]; <see cref="ImageTokens.Placeholder"/> where a patch goes.</param>
/// <param name="Labels">[l]; the id at an answer's positions, <see cref="SequenceBuilder.Ignore"/> elsewhere. Not shifted.</param>
public sealed record InputSequence(long[] Ids, long[] Labels);

/// <summary>Puts an image and a conversation into one sequence of ids.</summary>
/// <param name="tokenizer">The tokenizer of the model.</param>
/// <param name="imageSize">The side in pixels of the square image that the encoder sees.</param>
/// <param name="patchSize">The side in pixels of a patch.</param>
public sealed class SequenceBuilder(Tokenizer tokenizer, int imageSize, int patchSize)
{
    /// <summary>The label of a position that nothing is to be learnt at.</summary>
    public const long Ignore = -100;

    private readonly Tokenizer _tokenizer = tokenizer ?? throw new ArgumentNullException(nameof(tokenizer));
    private readonly long[] _image = ImageTokens.Sequence(tokenizer, imageSize, imageSize, patchSize);

    /// <summary>Whether the first turn stands before the image ("task-aware encoding"). False by default: the image
    /// comes first, as the published models have it.</summary>
    public bool InstructionFirst { get; init; }

    /// <summary>The sequence: the image, then the turns, each tokenised by itself.</summary>
    /// <param name="conversation">What is said about the image.</param>
    /// <param name="maxLength">Ids beyond it are cut off, as in training; the answer may be among them. Unlimited by default.</param>
    /// <exception cref="ArgumentException">The image does not fit into <paramref name="maxLength"/>.</exception>
    public InputSequence Build(Conversation conversation, int maxLength = int.MaxValue)
    {
        ArgumentNullException.ThrowIfNull(conversation);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(maxLength);
        var turns = conversation.Turns.Select(turn => (Ids: Encode(turn), turn.IsAnswer)).ToList();
        turns.Insert(InstructionFirst ? 1 : 0, (_image, false));

        var ids = turns.SelectMany(t => t.Ids).ToArray();
        var labels = turns.SelectMany(t => t.IsAnswer ? t.Ids : Enumerable.Repeat(Ignore, t.Ids.Length)).ToArray();
        if (ids.Length <= maxLength) return new(ids, labels);

        var image = (InstructionFirst ? turns[0].Ids.Length : 0) + _image.Length;
        if (image > maxLength)
            throw new ArgumentException($"The sequence is to have {maxLength} ids at most, but the image ends at {image}.", nameof(maxLength));
        return new(ids[..maxLength], labels[..maxLength]);
    }

    private long[] Encode(Turn turn)
    {
        var ids = _tokenizer.Encode(turn.Text).Select(id => (long)id);
        return turn.EndsText ? [.. ids, _tokenizer.EndOfTextId] : [.. ids];
    }
}
