using MambaVL.Prompts;
using Microsoft.Extensions.AI;
using ChatMessage = Microsoft.Extensions.AI.ChatMessage;
using Said = MambaVL.Prompts.ChatMessage;

namespace MambaVL;

/// <summary>What the messages of a chat are to a model: one picture and the turns.</summary>
/// <param name="Image">The bytes of the picture's file.</param>
/// <param name="Conversation">What was said, the user's last message at the end.</param>
internal sealed record ChatPrompt(ReadOnlyMemory<byte> Image, Conversation Conversation)
{
    /// <summary>Reads messages; see docs/chat-client.md for the rules.</summary>
    /// <exception cref="ArgumentException">There is no picture, more than one, or nothing that the user said last.</exception>
    /// <exception cref="NotSupportedException">A message holds what these models cannot read.</exception>
    public static ChatPrompt Read(IEnumerable<ChatMessage> messages, string? instructions)
    {
        ReadOnlyMemory<byte>? image = null;
        var system = new List<string>();
        if (!string.IsNullOrWhiteSpace(instructions)) system.Add(instructions);
        var said = new List<Said>();
        foreach (var message in messages)
        {
            if (message is null) throw new ArgumentException("A message is null.", nameof(messages));
            CheckRole(message.Role);
            foreach (var content in message.Contents)
                if (Picture(content) is { } bytes)
                {
                    if (message.Role == ChatRole.Assistant)
                        throw new NotSupportedException("A message of the assistant holds a picture; these models write text only. Put the picture into a user message.");
                    if (image is { } first && !first.Span.SequenceEqual(bytes.Span))
                        throw new ArgumentException("The messages hold more than one picture; these models see one picture in a conversation. Start a new conversation for another, or leave out the messages of the first.", nameof(messages));
                    image = bytes;
                }
            if (string.IsNullOrWhiteSpace(message.Text)) continue; // a picture alone is no turn
            if (message.Role == ChatRole.System) system.Add(message.Text);
            else said.Add(new(message.Text, FromModel: message.Role == ChatRole.Assistant));
        }

        if (image is null)
            throw new ArgumentException("The messages hold no picture; these models answer about one. Add a DataContent with the bytes of an image file to a user message.", nameof(messages));
        if (said.Count == 0 || said[^1].FromModel)
            throw new ArgumentException(said.Count == 0
                ? "The messages hold no text of the user; expected a question or an instruction beside the picture."
                : "The last message is the assistant's; expected the user's, for the model to answer.", nameof(messages));
        if (system.Count > 0)
        {
            var at = said.FindIndex(m => !m.FromModel);
            said[at] = new(string.Join(' ', system.Select(s => TextFormat.Sentence(s, keepCase: true)).Append(said[at].Text)));
        }
        return new(image.Value, Conversation.Chat(said));
    }

    private static void CheckRole(ChatRole role)
    {
        if (role != ChatRole.System && role != ChatRole.User && role != ChatRole.Assistant)
            throw new NotSupportedException($"A message's role is '{role}'; these models know system, user and assistant, and call no tools.");
    }

    /// <summary>The bytes of a picture; null for a content that is no picture and may stand in a chat.</summary>
    private static ReadOnlyMemory<byte>? Picture(AIContent content)
    {
        switch (content)
        {
            case DataContent data:
                return data.HasTopLevelMediaType("image") ? data.Data
                    : throw new NotSupportedException($"A message holds data of the kind '{data.MediaType}'; these models read text and images (image/...).");
            case UriContent { Uri: { IsAbsoluteUri: true, Scheme: "data" } uri }:
                return Picture(new DataContent(uri.AbsoluteUri));
            case UriContent { Uri: var uri }:
                // Fetching what a message names would let whoever writes messages reach the server's network and files.
                throw new NotSupportedException($"A message names a picture by the address '{Shorten(uri.ToString())}'; the client opens no addresses. Read the picture, and give its bytes as DataContent.");
            case TextContent or TextReasoningContent or UsageContent or ErrorContent:
                return null;
            default:
                throw new NotSupportedException($"A message holds {content.GetType().Name}; these models read text (TextContent) and images (DataContent).");
        }
    }

    private static string Shorten(string text) => text.Length <= 200 ? text : text[..200] + "...";
}
