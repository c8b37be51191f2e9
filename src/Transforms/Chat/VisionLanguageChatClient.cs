using System.Runtime.CompilerServices;
using System.Threading.Channels;
using MambaVL.Generation;
using MambaVL.Images;
using Microsoft.Extensions.AI;

namespace MambaVL;

/// <summary>A chat about a picture through <see cref="IChatClient"/>, the way .NET applications call models.</summary>
/// <remarks>
/// <para>A conversation has one picture, as <see cref="DataContent"/> in a user message, and ends with the user's message.
/// docs/chat-client.md tells how messages and options reach the model.</para>
/// <para>Any number of threads may use one client. The work is done on the thread pool; a call that is cancelled, or a
/// stream that is left, ends within one token, and not before its work has ended. Never changes messages or
/// options.</para>
/// </remarks>
public sealed class VisionLanguageChatClient : IChatClient
{
    private readonly VisionLanguageModel _model;
    private readonly VisionLanguageChatClientOptions _options;
    private readonly ChatClientMetadata _metadata;
    private readonly EncodedImageCache _images;

    /// <summary>Makes a client.</summary>
    /// <param name="model">The model. It stays the caller's, who disposes it after the client.</param>
    /// <param name="options">Defaults and limits; <see cref="VisionLanguageChatClientOptions"/>' own when null.</param>
    public VisionLanguageChatClient(VisionLanguageModel model, VisionLanguageChatClientOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        (_model, _options) = (model, options ?? new());
        _metadata = new("mambavl", defaultModelId: _options.ModelId);
        _images = new(Encode, _options.CachedImages);
    }

    /// <summary>Answers the last message.</summary>
    /// <param name="messages">The whole conversation; it holds one picture.</param>
    /// <param name="options">What differs from <see cref="VisionLanguageChatClientOptions.Generation"/>.</param>
    /// <param name="cancellationToken">Looked at before each token.</param>
    /// <returns>One message of text, with the number of tokens read (one for each patch of the picture among them) and
    /// written.</returns>
    /// <exception cref="ArgumentException">The conversation has no picture, more than one, or no message of the user at
    /// its end; or an option is out of range.</exception>
    /// <exception cref="NotSupportedException">The messages or options ask for what these models cannot do.</exception>
    /// <exception cref="ImageException">The picture cannot be read.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public async Task<ChatResponse> GetResponseAsync(
        IEnumerable<ChatMessage> messages, ChatOptions? options = null, CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(messages);
        var generation = ReadOptions(options);
        var prompt = ChatPrompt.Read(messages, options?.Instructions);
        var answer = await Task.Run(() => Answer(prompt, generation, null, cancellationToken), cancellationToken).ConfigureAwait(false);
        var id = NewId();
        return new(new ChatMessage(ChatRole.Assistant, answer.Result.Text) { MessageId = id })
        {
            ResponseId = id,
            ModelId = _options.ModelId,
            CreatedAt = DateTimeOffset.UtcNow,
            FinishReason = answer.FinishReason,
            Usage = answer.Usage,
            RawRepresentation = answer.Result,
        };
    }

    /// <summary>Answers the last message piece by piece, as its text comes.</summary>
    /// <inheritdoc cref="GetResponseAsync" path="/param"/>
    /// <inheritdoc cref="GetResponseAsync" path="/exception"/>
    /// <returns>Pieces of text, never a part of a character; then an update with the reason of the end and the number of
    /// tokens.</returns>
    public IAsyncEnumerable<ChatResponseUpdate> GetStreamingResponseAsync(
        IEnumerable<ChatMessage> messages, ChatOptions? options = null, CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(messages);
        return Stream(messages, options, cancellationToken);
    }

    /// <summary>Gives the <see cref="ChatClientMetadata"/>, the <see cref="VisionLanguageModel"/> or the client itself.</summary>
    /// <param name="serviceType">What is asked for.</param>
    /// <param name="serviceKey">Null; nothing has a key.</param>
    /// <returns>Null where there is no such thing.</returns>
    public object? GetService(Type serviceType, object? serviceKey = null)
    {
        ArgumentNullException.ThrowIfNull(serviceType);
        return serviceKey is not null ? null
            : serviceType == typeof(ChatClientMetadata) ? _metadata
            : serviceType == typeof(VisionLanguageModel) ? _model
            : serviceType.IsInstanceOfType(this) ? this
            : null;
    }

    /// <summary>Frees the pictures that were kept. The model stays.</summary>
    public void Dispose() => _images.Dispose();

    private async IAsyncEnumerable<ChatResponseUpdate> Stream(
        IEnumerable<ChatMessage> messages, ChatOptions? options, [EnumeratorCancellation] CancellationToken cancellationToken)
    {
        var generation = ReadOptions(options);
        var prompt = ChatPrompt.Read(messages, options?.Instructions);
        var id = NewId();
        // Unbounded: the writer is to hold no thread for a slow reader, and an answer is short.
        var pieces = Channel.CreateUnbounded<string>(new() { SingleReader = true, SingleWriter = true });
        using var left = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        var work = Task.Run(() =>
        {
            try
            {
                return Answer(prompt, generation, (_, text) => pieces.Writer.TryWrite(text), left.Token);
            }
            finally
            {
                pieces.Writer.Complete();
            }
        }, CancellationToken.None);
        try
        {
            await foreach (var piece in pieces.Reader.ReadAllAsync(cancellationToken).ConfigureAwait(false))
            {
                cancellationToken.ThrowIfCancellationRequested(); // pieces may be waiting
                yield return Update(new TextContent(piece));
            }
            cancellationToken.ThrowIfCancellationRequested(); // rather than the linked token's exception
            var answer = await work.ConfigureAwait(false);
            var last = Update(new UsageContent(answer.Usage));
            last.FinishReason = answer.FinishReason;
            last.RawRepresentation = answer.Result;
            yield return last;
        }
        finally
        {
            await left.CancelAsync().ConfigureAwait(false);
            await ((Task)work).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing); // the model may be disposed from here on
        }

        ChatResponseUpdate Update(AIContent content) => new(ChatRole.Assistant, [content])
        {
            ResponseId = id,
            MessageId = id,
            ModelId = _options.ModelId,
            CreatedAt = DateTimeOffset.UtcNow,
        };
    }

    private Answered Answer(ChatPrompt prompt, GenerationOptions generation, Action<int, string>? onText, CancellationToken cancellation)
    {
        cancellation.ThrowIfCancellationRequested();
        using var lease = _images.Rent(prompt.Image);
        var request = _model.Request(lease.Image, prompt.Conversation);
        return new(request.InputIds.Count, _model.Generate([request], generation, onText, cancellation)[0]);
    }

    private EncodedImage Encode(ReadOnlyMemory<byte> file)
    {
        using var image = DecodedImage.Decode(file.Span, _options.Images, "the picture of the conversation");
        return _model.EncodeImage(image);
    }

    private GenerationOptions ReadOptions(ChatOptions? options)
    {
        if (options is null) return _options.Generation;
        Refuse(options.ToolMode is RequiredChatToolMode, nameof(ChatOptions.ToolMode), "these models call no tools");
        Refuse(options.ResponseFormat is ChatResponseFormatJson, nameof(ChatOptions.ResponseFormat), "these models do not write JSON; leave it null, or say Text");
        Refuse(options.ConversationId is not null, nameof(ChatOptions.ConversationId), "the client keeps no conversations; give all messages with each call");
        var generation = options.RawRepresentationFactory?.Invoke(this) as GenerationOptions ?? _options.Generation;
        return generation with
        {
            MaxNewTokens = options.MaxOutputTokens ?? generation.MaxNewTokens,
            Temperature = options.Temperature ?? generation.Temperature,
            TopK = options.TopK ?? generation.TopK,
            TopP = options.TopP ?? generation.TopP,
            Seed = options.Seed ?? generation.Seed,
            StopSequences = options.StopSequences is { } stop ? [.. stop] : generation.StopSequences,
        };

        static void Refuse(bool given, string name, string reason)
        {
            if (given) throw new NotSupportedException($"{nameof(ChatOptions)}.{name} is set; {reason}.");
        }
    }

    private static string NewId() => Guid.NewGuid().ToString("N");

    private sealed record Answered(int PromptTokens, GenerationResult Result)
    {
        public ChatFinishReason FinishReason => Result.FinishReason == Generation.FinishReason.MaxNewTokens ? ChatFinishReason.Length : ChatFinishReason.Stop;

        public UsageDetails Usage => new()
        {
            InputTokenCount = PromptTokens,
            OutputTokenCount = Result.Ids.Count,
            TotalTokenCount = PromptTokens + Result.Ids.Count,
        };
    }
}
