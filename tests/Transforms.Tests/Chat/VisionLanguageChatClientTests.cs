using MambaVL.Generation;
using MambaVL.Images;
using MambaVL.Prompts;
using MambaVL.Tests.Models;
using Microsoft.Extensions.AI;
using ChatMessage = Microsoft.Extensions.AI.ChatMessage;

namespace MambaVL.Tests.Chat;

public sealed class VisionLanguageChatClientTests : IDisposable
{
    private const string Question = "What is in the picture?";

    private static readonly byte[] Photo = Read("jpeg-420.jpg");
    private static readonly byte[] Other = Read("png-16-rgb.png");

    private readonly VisionLanguageModel _model = TinyVisionLanguage.Create(TinyVisionLanguage.NeoX);
    private readonly VisionLanguageChatClient _client;

    public VisionLanguageChatClientTests() => _client = new(_model, new() { ModelId = "tiny", Generation = new() { MaxNewTokens = 20, StopSequences = ["\n"] } });

    public void Dispose()
    {
        _client.Dispose();
        _model.Dispose();
    }

    [Fact]
    public async Task AnswersWhatTheModelAnswers()
    {
        var response = await _client.GetResponseAsync([Ask(Question)]);
        var (expected, prompt) = Direct([new(Question)], new() { MaxNewTokens = 20 });
        response.Text.Should().Be(expected.Text).And.NotBeEmpty();
        response.FinishReason.Should().Be(ChatFinishReason.Length);
        response.ModelId.Should().Be("tiny");
        response.Messages.Should().ContainSingle().Which.Role.Should().Be(ChatRole.Assistant);
        response.Usage!.InputTokenCount.Should().Be(prompt);
        response.Usage.OutputTokenCount.Should().Be(20);
        response.Usage.TotalTokenCount.Should().Be(prompt + 20);
    }

    [Fact]
    public async Task StreamsWhatItAnswers()
    {
        var updates = new List<ChatResponseUpdate>();
        await foreach (var update in _client.GetStreamingResponseAsync([Ask(Question)])) updates.Add(update);

        updates.Should().HaveCountGreaterThan(5);
        updates.Select(u => u.ResponseId).Distinct().Should().ContainSingle().Which.Should().NotBeNull();
        updates.SkipLast(1).Should().OnlyContain(u => u.FinishReason == null && u.Text.Length > 0 && u.Role == ChatRole.Assistant);
        var whole = await _client.GetResponseAsync([Ask(Question)]);
        var streamed = updates.ToChatResponse();
        streamed.Text.Should().Be(whole.Text);
        streamed.FinishReason.Should().Be(whole.FinishReason);
        streamed.ModelId.Should().Be("tiny");
        streamed.Usage!.TotalTokenCount.Should().Be(whole.Usage!.TotalTokenCount);
        streamed.Messages.Should().ContainSingle();
    }

    [Fact]
    public async Task TheHistoryAndTheInstructionsReachTheModel()
    {
        List<ChatMessage> messages =
        [
            new(ChatRole.System, "Answer briefly"), Ask(Question), new(ChatRole.Assistant, "A red circle."), Ask("And to its left?"),
        ];
        var response = await _client.GetResponseAsync(messages, new() { Instructions = "Look closely" });
        var expected = Direct([new("Look closely. Answer briefly. " + Question), new("A red circle.", true), new("And to its left?")], new() { MaxNewTokens = 20 });
        response.Text.Should().Be(expected.Result.Text);
        response.Usage!.InputTokenCount.Should().Be(expected.PromptTokens);
    }

    [Fact]
    public async Task OptionsReachTheModel()
    {
        var options = new ChatOptions { MaxOutputTokens = 12, Temperature = 1.5f, TopK = 40, TopP = 0.75f, Seed = 9, StopSequences = [] };
        var expected = Direct([new(Question)], new() { MaxNewTokens = 12, Temperature = 1.5, TopK = 40, TopP = 0.75, Seed = 9 });
        (await _client.GetResponseAsync([Ask(Question)], options)).Text.Should().Be(expected.Result.Text);

        // What ChatOptions has no name for comes through the factory; the others still apply.
        options = new() { Temperature = 1, Seed = 2, RawRepresentationFactory = _ => new GenerationOptions { MaxNewTokens = 15, RepetitionPenalty = 1.7 } };
        expected = Direct([new(Question)], new() { MaxNewTokens = 15, RepetitionPenalty = 1.7, Temperature = 1, Seed = 2 });
        (await _client.GetResponseAsync([Ask(Question)], options)).Text.Should().Be(expected.Result.Text);
    }

    [Fact]
    public async Task AnAnswerEndsAtTheLineBreakThatEndsEveryMessageOfAChat()
    {
        using var client = new VisionLanguageChatClient(_model);
        // The model is random: sooner or later it writes a line break.
        var (seed, text) = Enumerable.Range(0, 50).Select(s => (s, Direct([new(Question)], Sampled(s)).Result.Text)).First(t => t.Text.IndexOf('\n') > 3);
        var options = new ChatOptions { MaxOutputTokens = 200, Temperature = 4, Seed = seed };
        var response = await client.GetResponseAsync([Ask(Question)], options);
        response.Text.Should().Be(text[..text.IndexOf('\n')]);
        response.FinishReason.Should().Be(ChatFinishReason.Stop);
        response.Usage!.OutputTokenCount.Should().BeLessThan(200);

        options.StopSequences = [];
        (await client.GetResponseAsync([Ask(Question)], options)).Text.Should().Be(text);

        options.StopSequences = [text.Substring(text.IndexOf('\n') + 1, 4)];
        var streamed = await client.GetStreamingResponseAsync([Ask(Question)], options).ToChatResponseAsync();
        streamed.Text.Should().Be(text[..text.IndexOf(options.StopSequences[0], StringComparison.Ordinal)]);
        streamed.FinishReason.Should().Be(ChatFinishReason.Stop);

        static GenerationOptions Sampled(int seed) => new() { MaxNewTokens = 200, Temperature = 4, Seed = seed };
    }

    [Fact]
    public async Task OnePictureMayComeAgainButNoSecondOne()
    {
        var first = await _client.GetResponseAsync([Ask(Question), new(ChatRole.Assistant, "A cat."), Ask(Question)]);
        var once = await _client.GetResponseAsync([Ask(Question), new(ChatRole.Assistant, "A cat."), new(ChatRole.User, Question)]);
        first.Text.Should().Be(once.Text);

        var act = () => _client.GetResponseAsync([Ask(Question), new(ChatRole.Assistant, "A cat."), Ask(Question, Other)]);
        (await act.Should().ThrowAsync<ArgumentException>()).WithMessage("*more than one picture*");
    }

    [Fact]
    public async Task ADataAddressIsAPictureAndOtherAddressesAreNotOpened()
    {
        var expected = await _client.GetResponseAsync([Ask(Question)]);
        var address = "data:image/jpeg;base64," + Convert.ToBase64String(Photo);
        (await _client.GetResponseAsync([Message(new DataContent(address), new TextContent(Question))])).Text.Should().Be(expected.Text);
        (await _client.GetResponseAsync([Message(new UriContent(address, "image/jpeg"), new TextContent(Question))])).Text.Should().Be(expected.Text);

        foreach (var other in new[] { "https://example.org/cat.jpg", "http://127.0.0.1/cat.jpg", "file:///etc/passwd" })
        {
            var act = () => _client.GetResponseAsync([Message(new UriContent(other, "image/jpeg"), new TextContent(Question))]);
            (await act.Should().ThrowAsync<NotSupportedException>()).WithMessage($"*'{other}'*opens no addresses*DataContent*");
        }
    }

    public static TheoryData<string, Type, string, ChatMessage[]> Unreadable => new()
    {
        { "nothing", typeof(ArgumentException), "*hold no picture*", [] },
        { "no picture", typeof(ArgumentException), "*hold no picture*DataContent*", [new(ChatRole.User, Question)] },
        { "no text", typeof(ArgumentException), "*hold no text of the user*", [Message(new DataContent(Photo, "image/jpeg"))] },
        { "blank text", typeof(ArgumentException), "*hold no text of the user*", [Ask(" \n")] },
        { "no text but the system's", typeof(ArgumentException), "*hold no text of the user*", [new(ChatRole.System, "Be brief"), Message(new DataContent(Photo, "image/jpeg"))] },
        { "the assistant last", typeof(ArgumentException), "*last message is the assistant's*", [Ask(Question), new(ChatRole.Assistant, "A cat.")] },
        { "a null", typeof(ArgumentException), "*null*", [Ask(Question), null!] },
        { "another role", typeof(NotSupportedException), "*role is 'tool'*", [Ask(Question), new(ChatRole.Tool, "42")] },
        { "a picture of the assistant's", typeof(NotSupportedException), "*assistant holds a picture*", [Ask(Question), new(ChatRole.Assistant, [new DataContent(Photo, "image/jpeg")]), Ask(Question)] },
        { "sound", typeof(NotSupportedException), "*'audio/wav'*", [Message(new DataContent(Photo, "audio/wav"), new TextContent(Question))] },
        { "a tool's call", typeof(NotSupportedException), "*FunctionCallContent*", [Ask(Question), new(ChatRole.Assistant, [new FunctionCallContent("1", "f")]), Ask(Question)] },
        { "bytes that are no picture", typeof(ImageException), "the picture of the conversation:*", [Ask(Question, "hello"u8.ToArray())] },
        { "half a picture", typeof(ImageException), "the picture of the conversation:*", [Ask(Question, Photo[..(Photo.Length / 2)])] },
    };

    [Theory, MemberData(nameof(Unreadable))]
    public async Task WhatCannotBeReadIsAnErrorThatSaysWhy(string what, Type exception, string message, ChatMessage[] messages)
    {
        var whole = await Record.ExceptionAsync(() => _client.GetResponseAsync(messages));
        var streamed = await Record.ExceptionAsync(() => _client.GetStreamingResponseAsync(messages).ToChatResponseAsync());
        foreach (var error in new[] { whole, streamed })
        {
            error.Should().BeOfType(exception, what);
            error!.Message.Should().Match(message);
        }
    }

    [Fact]
    public async Task OptionsThatAskForWhatTheModelsCannotDoAreRefused()
    {
        foreach (var (options, name) in new (ChatOptions, string)[]
        {
            (new() { ToolMode = ChatToolMode.RequireAny }, "ToolMode"),
            (new() { ResponseFormat = ChatResponseFormat.Json }, "ResponseFormat"),
            (new() { ConversationId = "1" }, "ConversationId"),
        })
        {
            var act = () => _client.GetResponseAsync([Ask(Question)], options);
            (await act.Should().ThrowAsync<NotSupportedException>()).WithMessage($"ChatOptions.{name} *");
        }
        foreach (var options in new ChatOptions[] { new() { MaxOutputTokens = 0 }, new() { Temperature = float.NaN }, new() { TopK = -1 }, new() { TopP = 0 }, new() { StopSequences = [""] } })
        {
            var act = () => _client.GetResponseAsync([Ask(Question)], options);
            await act.Should().ThrowAsync<ArgumentOutOfRangeException>();
        }

        // Hints that a model may leave aside.
        var plain = await _client.GetResponseAsync([Ask(Question)]);
        var hints = await _client.GetResponseAsync([Ask(Question)], new() { FrequencyPenalty = 1, PresencePenalty = 1, ModelId = "other", ResponseFormat = ChatResponseFormat.Text, ToolMode = ChatToolMode.Auto });
        hints.Text.Should().Be(plain.Text);
    }

    [Fact]
    public async Task CancellationEndsACallWithinATokenAndTheClientGoesOn()
    {
        using var cancel = new CancellationTokenSource();
        var endless = new ChatOptions { MaxOutputTokens = 1_000_000, RawRepresentationFactory = _ => new GenerationOptions { IgnoreEndToken = true } };
        var pieces = 0;
        var stream = async () =>
        {
            await foreach (var _ in _client.GetStreamingResponseAsync([Ask(Question)], endless, cancel.Token))
                if (++pieces == 3) cancel.Cancel();
        };
        (await stream.Should().ThrowAsync<OperationCanceledException>()).Which.CancellationToken.Should().Be(cancel.Token);
        pieces.Should().Be(3);

        using var later = new CancellationTokenSource();
        var running = _client.GetResponseAsync([Ask(Question)], endless, later.Token);
        running.IsCompleted.Should().BeFalse("the work is not done on the caller's thread");
        later.CancelAfter(50);
        var whole = () => running.WaitAsync(TimeSpan.FromSeconds(60));
        await whole.Should().ThrowAsync<OperationCanceledException>();

        var late = () => _client.GetResponseAsync([Ask(Question)], null, cancel.Token);
        await late.Should().ThrowAsync<OperationCanceledException>();
        (await _client.GetResponseAsync([Ask(Question)])).Text.Should().NotBeEmpty();
    }

    [Fact]
    public async Task LeavingAStreamEndsItsWork()
    {
        var endless = new ChatOptions { MaxOutputTokens = 1_000_000, RawRepresentationFactory = _ => new GenerationOptions { IgnoreEndToken = true } };
        var leave = async () =>
        {
            await foreach (var _ in _client.GetStreamingResponseAsync([Ask(Question)], endless)) break;
        };
        await leave().WaitAsync(TimeSpan.FromSeconds(60)); // the stream's disposal waits for the work
    }

    [Fact]
    public async Task ManyChatsShareOneClient()
    {
        var options = new ChatOptions { Temperature = 1, MaxOutputTokens = 25 };
        ChatMessage[][] chats = [[Ask(Question)], [Ask("Where is the circle?", Other)], [Ask("Who is it?")], [Ask(Question), new(ChatRole.Assistant, "A cat."), Ask("Which?")]];
        var expected = new List<string>();
        foreach (var chat in chats) expected.Add((await _client.GetResponseAsync(chat, options)).Text);
        expected.Distinct().Should().HaveCount(chats.Length);

        using var fresh = new VisionLanguageChatClient(_model, new() { CachedImages = 1, Generation = new() { StopSequences = ["\n"] } });
        var answers = await Task.WhenAll(Enumerable.Range(0, 16).Select(i => i % 2 == 0
            ? fresh.GetResponseAsync(chats[i % 4], options)
            : fresh.GetStreamingResponseAsync(chats[i % 4], options).ToChatResponseAsync()));
        answers.Select(a => a.Text).Should().Equal(Enumerable.Range(0, 16).Select(i => expected[i % 4]));
    }

    [Fact]
    public void TellsWhatItIs()
    {
        IChatClient client = _client;
        client.GetService<ChatClientMetadata>()!.DefaultModelId.Should().Be("tiny");
        client.GetService<ChatClientMetadata>()!.ProviderName.Should().Be("mambavl");
        client.GetService<VisionLanguageModel>().Should().BeSameAs(_model);
        client.GetService<IChatClient>().Should().BeSameAs(_client);
        client.GetService<string>().Should().BeNull();
        client.GetService(typeof(ChatClientMetadata), "key").Should().BeNull();
    }

    [Fact]
    public async Task ADisposedClientSaysSoAndLeavesTheModel()
    {
        await _client.GetResponseAsync([Ask(Question)]);
        _client.Dispose();
        var act = () => _client.GetResponseAsync([Ask(Question)]);
        await act.Should().ThrowAsync<ObjectDisposedException>();
        Direct([new(Question)], new() { MaxNewTokens = 2 }).Result.Ids.Should().NotBeEmpty();
    }

    private (GenerationResult Result, int PromptTokens) Direct(MambaVL.Prompts.ChatMessage[] messages, GenerationOptions options)
    {
        using var picture = DecodedImage.Decode(Photo);
        using var image = _model.EncodeImage(picture);
        var request = _model.Request(image, Conversation.Chat(messages));
        return (_model.Generate(request, options), request.InputIds.Count);
    }

    private static ChatMessage Ask(string text, byte[]? picture = null) => Message(new TextContent(text), new DataContent(picture ?? Photo, "image/jpeg"));

    private static ChatMessage Message(params AIContent[] contents) => new(ChatRole.User, [.. contents]);

    private static byte[] Read(string name) => File.ReadAllBytes(Path.Combine(Fixtures.Repository, "tests/data/images/decode", name));
}
