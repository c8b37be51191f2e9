using System.Net;
using System.Net.Http.Headers;
using System.Net.Http.Json;
using System.Text.Json;
using MambaVL.Generation;
using MambaVL.Prompts;
using MambaVL.Samples;
using MambaVL.Tests.Models;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Mvc.Testing;
using Microsoft.Extensions.Logging;

namespace MambaVL.Tests.Consumer;

/// <summary>samples/CaptionService on a port of this machine, asked over HTTP.</summary>
public sealed class CaptionServiceTests : IDisposable
{
    private static readonly GenerationOptions Short = new() { MaxNewTokens = 12 };
    private static readonly byte[] Photo = File.ReadAllBytes(SavedPipeline.Picture("jpeg-420.jpg"));

    private readonly VisionLanguageModel _model = TinyVisionLanguage.Create(TinyVisionLanguage.NeoX);

    public void Dispose() => _model.Dispose();

    [Fact]
    public async Task AnswersWhatTheModelAnswers()
    {
        using var saved = new SavedPipeline(_model, Short);
        using var service = new Service(saved.Zip);
        using var client = service.Open();
        using var image = _model.EncodeImage(SavedPipeline.Picture("jpeg-420.jpg"));

        (await Read(client.PostAsync("/caption", Body(Photo)))).GetProperty("caption").GetString()
            .Should().Be(_model.Caption(image, Short)).And.NotBeEmpty();
        (await Read(client.PostAsync("/caption", Form(Photo)))).GetProperty("caption").GetString().Should().Be(_model.Caption(image, Short));
        (await Read(client.PostAsync("/answer", Form(Photo, ("question", "What is it?"))))).GetProperty("answer").GetString()
            .Should().Be(_model.Answer(image, "What is it?", Short));
        (await Read(client.PostAsync("/answer?question=What%20is%20it%3F", Body(Photo)))).GetProperty("answer").GetString()
            .Should().Be(_model.Answer(image, "What is it?", Short));

        var located = await Read(client.PostAsync("/locate", Form(Photo, ("phrase", "the cat"))));
        located.GetProperty("text").GetString().Should().Be(_model.Locate(image, "the cat", Short).Text);
        located.GetProperty("box").ValueKind.Should().Be(JsonValueKind.Null, "a random model writes no box");

        using var chat = await client.PostAsync("/chat", Form(Photo, ("message", "What is it?")));
        chat.Content.Headers.ContentType!.MediaType.Should().Be("text/event-stream");
        var events = (await chat.Content.ReadAsStringAsync()).Split("\n\n", StringSplitOptions.RemoveEmptyEntries);
        events.Should().HaveCountGreaterThan(5).And.OnlyContain(e => e.StartsWith("data: ", StringComparison.Ordinal));
        var request = _model.Request(image, Conversation.Chat([new("What is it?")]));
        string.Concat(events.Select(e => e["data: ".Length..])).Should().Be(_model.Generate(request, new() { StopSequences = ["\n"] }).Text);
    }

    [Theory]
    [InlineData("/caption", null, "hello", null, "*68656C6C6F*the start of no image format*")]
    [InlineData("/chat", "message", "hello", null, "*68656C6C6F*the start of no image format*")]
    [InlineData("/caption", null, "", null, "*no picture*")]
    [InlineData("/answer", null, null, null, "'question' is missing*")]
    [InlineData("/answer", "question", null, " ", "'question' is missing*")]
    [InlineData("/locate", "phrase", null, "0123456789012345678901234567890123456789", "'phrase' has 40 characters; at most 30 are taken.")]
    public async Task WhatIsTheClientsFaultIsToldToTheClient(string path, string? field, string? picture, string? text, string message)
    {
        using var saved = new SavedPipeline(_model, Short);
        using var service = new Service(saved.Zip, ("MaxTextLength", "30"));
        using var client = service.Open();
        (string, string)[] fields = field is null ? [] : [(field, text ?? "What?")];
        using var response = await client.PostAsync(path, Form(picture is null ? Photo : System.Text.Encoding.ASCII.GetBytes(picture), fields));
        response.StatusCode.Should().Be(HttpStatusCode.BadRequest);
        response.Content.Headers.ContentType!.MediaType.Should().Be("application/problem+json");
        (await response.Content.ReadFromJsonAsync<JsonElement>()).GetProperty("detail").GetString().Should().Match(message);

        using var next = await client.PostAsync("/caption", Body(Photo));
        next.StatusCode.Should().Be(HttpStatusCode.OK);
    }

    [Fact]
    public async Task AnUploadThatIsTooLargeIsRefused()
    {
        using var saved = new SavedPipeline(_model, Short);
        using var service = new Service(saved.Zip, ("MaxUploadBytes", "30000"));
        using var client = service.Open();
        Photo.Length.Should().BeLessThan(29_000);
        foreach (var content in new HttpContent[] { Body(new byte[30_001]), Form(new byte[30_001]) })
        {
            using var response = await client.PostAsync("/caption", content);
            response.StatusCode.Should().Be(HttpStatusCode.RequestEntityTooLarge);
        }
        (await client.PostAsync("/caption", Body(Photo))).StatusCode.Should().Be(HttpStatusCode.OK);
    }

    [Fact]
    public async Task SomeAreWorkedForSomeWaitTheOthersComeBackAndWhoLeavesIsNotWorkedFor()
    {
        using var saved = new SavedPipeline(_model, new() { MaxNewTokens = 1_000_000, IgnoreEndToken = true }); // never ends by itself
        using var service = new Service(saved.Zip, ("Concurrency", "1"), ("Queue", "1"), ("RetryAfter", "7"));
        using var client = service.Open();
        using CancellationTokenSource first = new(), second = new();

        var working = client.PostAsync("/caption", Body(Photo), first.Token);
        await Until(client, running: 1, waiting: 0);
        var waiting = client.PostAsync("/answer", Form(Photo, ("question", "What is it?")), second.Token);
        await Until(client, running: 1, waiting: 1);

        using var third = await client.PostAsync("/caption", Body(Photo));
        third.StatusCode.Should().Be(HttpStatusCode.ServiceUnavailable);
        third.Headers.RetryAfter!.Delta.Should().Be(TimeSpan.FromSeconds(7));

        first.Cancel();
        await Until(client, running: 1, waiting: 0); // now the second is worked for
        second.Cancel();
        await Until(client, running: 0, waiting: 0);
        await ((Func<Task>)(() => working)).Should().ThrowAsync<OperationCanceledException>();
        await ((Func<Task>)(() => waiting)).Should().ThrowAsync<OperationCanceledException>();
    }

    [Fact]
    public void AModelThatCannotBeLoadedEndsTheServiceAtItsStart()
    {
        using var service = new Service(SavedPipeline.Picture("jpeg-420.jpg"));
        var act = () => service.Open();
        act.Should().Throw<Exception>();
    }

    private static async Task Until(HttpClient client, int running, int waiting)
    {
        var deadline = DateTime.UtcNow.AddSeconds(60);
        JsonElement health;
        do
        {
            await Task.Delay(20);
            health = await client.GetFromJsonAsync<JsonElement>("/health");
            if (health.GetProperty("running").GetInt64() == running && health.GetProperty("waiting").GetInt64() == waiting) return;
        }
        while (DateTime.UtcNow < deadline);
        throw new TimeoutException($"Expected {running} at work and {waiting} waiting; found {health}.");
    }

    private static async Task<JsonElement> Read(Task<HttpResponseMessage> answer)
    {
        using var response = await answer;
        response.StatusCode.Should().Be(HttpStatusCode.OK, await response.Content.ReadAsStringAsync());
        return await response.Content.ReadFromJsonAsync<JsonElement>();
    }

    private static ByteArrayContent Body(byte[] picture)
        => new(picture) { Headers = { ContentType = new MediaTypeHeaderValue("image/jpeg") } };

    private static MultipartFormDataContent Form(byte[] picture, params (string Name, string Value)[] fields)
    {
        var form = new MultipartFormDataContent { { Body(picture), "image", "photo.jpg" } };
        foreach (var (name, value) in fields) form.Add(new StringContent(value), name);
        return form;
    }

    private sealed class Service(string zip, params (string Name, string Value)[] settings) : WebApplicationFactory<ServiceSettings>
    {
        public HttpClient Open()
        {
            UseKestrel(0);
            StartServer();
            return CreateClient();
        }

        protected override void ConfigureWebHost(IWebHostBuilder builder)
        {
            builder.UseSetting("Service:Model", zip).ConfigureLogging(log => log.ClearProviders());
            foreach (var (name, value) in settings) builder.UseSetting("Service:" + name, value);
        }
    }
}
