namespace MambaVL.Samples;

/// <summary>A picture and the texts beside it: a form with the file <c>image</c>, or the picture as the request's body with
/// the texts in the query.</summary>
internal sealed class Upload
{
    private readonly Func<string, string?> _text;
    private readonly int _longestText;

    private Upload(byte[] image, Func<string, string?> text, int longestText) => (Image, _text, _longestText) = (image, text, longestText);

    /// <summary>The bytes of an image file, or of what the client takes for one.</summary>
    public byte[] Image { get; }

    /// <summary>A text that the request must have.</summary>
    public string Text(string name)
    {
        var text = _text(name);
        if (string.IsNullOrWhiteSpace(text)) throw new BadHttpRequestException($"'{name}' is missing; give it as a field of the form or in the query.");
        if (text.Length > _longestText) throw new BadHttpRequestException($"'{name}' has {text.Length} characters; at most {_longestText} are taken.");
        return text;
    }

    /// <summary>Called by ASP.NET Core for a parameter of this type.</summary>
    public static async ValueTask<Upload?> BindAsync(HttpContext context)
    {
        var (request, longestText) = (context.Request, context.RequestServices.GetRequiredService<ServiceSettings>().MaxTextLength);
        try
        {
            if (!request.HasFormContentType)
                return new(await Read(request.Body, request.ContentLength, context.RequestAborted), name => request.Query[name], longestText);
            var form = await request.ReadFormAsync(context.RequestAborted);
            var file = form.Files.GetFile("image") ?? throw new BadHttpRequestException("The form has no file 'image'.");
            await using var stream = file.OpenReadStream();
            return new(await Read(stream, file.Length, context.RequestAborted), name => form.TryGetValue(name, out var value) ? value : request.Query[name], longestText);
        }
        catch (Exception e) when (e is InvalidDataException or (IOException and not BadHttpRequestException))
        {
            throw new BadHttpRequestException($"The request cannot be read: {e.Message}", e);
        }
    }

    private static async Task<byte[]> Read(Stream stream, long? length, CancellationToken cancellation)
    {
        // The server counts the bytes of the body, and ends a body that is too long with a 413.
        using var copy = new MemoryStream((int)Math.Min(length ?? 0, 1 << 20));
        await stream.CopyToAsync(copy, cancellation);
        return copy.Length > 0 ? copy.ToArray() : throw new BadHttpRequestException("The request has no picture: its body, or the form's file 'image', is empty.");
    }
}
