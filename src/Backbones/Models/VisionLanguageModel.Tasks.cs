using MambaVL.Generation;
using MambaVL.Prompts;

namespace MambaVL;

/// <summary>The answer to a question with options.</summary>
/// <param name="Index">The option chosen, the first is 0; null where the text names none of them.</param>
/// <param name="Text">What the model wrote.</param>
public sealed record ChoiceAnswer(int? Index, string Text);

/// <summary>Where a phrase is in a picture.</summary>
/// <param name="Box">In pixels of the original picture, within it; null where the text holds no box.</param>
/// <param name="Text">What the model wrote.</param>
public sealed record GroundingAnswer(BoundingBox? Box, string Text);

public sealed partial class VisionLanguageModel
{
    /// <summary>A conversation about a picture as the model reads it.</summary>
    /// <param name="image">The picture; stays the caller's.</param>
    /// <param name="conversation">What is asked.</param>
    /// <param name="seed">See <see cref="GenerationRequest"/>.</param>
    public GenerationRequest Request(EncodedImage image, Conversation conversation, long seed = 0)
    {
        ArgumentNullException.ThrowIfNull(image);
        return new(image, Sequence.Build(conversation).Ids, seed);
    }

    /// <summary>Describes the picture in a sentence.</summary>
    /// <inheritdoc cref="Generate(GenerationRequest, GenerationOptions?, CancellationToken)"/>
    public string Caption(EncodedImage image, GenerationOptions? options = null, CancellationToken cancellationToken = default)
        => Answer(image, Conversation.Caption(), options, cancellationToken).Trim();

    /// <summary>Answers a question about the picture in a word or phrase.</summary>
    /// <inheritdoc cref="Generate(GenerationRequest, GenerationOptions?, CancellationToken)"/>
    public string Answer(EncodedImage image, string question, GenerationOptions? options = null, CancellationToken cancellationToken = default)
        => AnswerText.Short(Answer(image, Conversation.Ask(question), options, cancellationToken));

    /// <summary>Chooses one of several answers to a question about the picture.</summary>
    /// <inheritdoc cref="Generate(GenerationRequest, GenerationOptions?, CancellationToken)"/>
    public ChoiceAnswer Choose(EncodedImage image, string question, IReadOnlyList<string> choices,
        GenerationOptions? options = null, CancellationToken cancellationToken = default)
    {
        var text = Answer(image, Conversation.Choose(question, choices), options, cancellationToken);
        return new(AnswerText.Choice(text, choices.Count), text);
    }

    /// <summary>Finds what a phrase describes.</summary>
    /// <inheritdoc cref="Generate(GenerationRequest, GenerationOptions?, CancellationToken)"/>
    public GroundingAnswer Locate(EncodedImage image, string phrase, GenerationOptions? options = null, CancellationToken cancellationToken = default)
    {
        var text = Answer(image, Conversation.Locate(phrase), options, cancellationToken);
        var box = BoxParser.Parse(text, image.Width, image.Height);
        return new(box.IsReadable ? box.Pixels : null, text);
    }

    /// <summary>Describes what is in a box.</summary>
    /// <param name="image">The picture.</param>
    /// <param name="box">In pixels of the original picture.</param>
    /// <param name="options">How tokens are chosen; greedy when null.</param>
    /// <param name="cancellationToken">Looked at before each token.</param>
    public string Describe(EncodedImage image, BoundingBox box, GenerationOptions? options = null, CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(image);
        return Answer(image, Conversation.Describe(box.ToShares(image.Width, image.Height)), options, cancellationToken).Trim();
    }

    /// <summary>Whether a description fits the picture; null where the model's text says neither.</summary>
    /// <inheritdoc cref="Generate(GenerationRequest, GenerationOptions?, CancellationToken)"/>
    public bool? Matches(EncodedImage image, string caption, GenerationOptions? options = null, CancellationToken cancellationToken = default)
        => AnswerText.TrueOrFalse(Answer(image, Conversation.Match(caption), options, cancellationToken));

    private string Answer(EncodedImage image, Conversation conversation, GenerationOptions? options, CancellationToken cancellation)
        => Generate(Request(image, conversation), options, cancellation).Text;
}
