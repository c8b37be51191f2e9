namespace MambaVL.Samples;

/// <summary>The section <c>Service</c> of the configuration: appsettings.json, environment (<c>Service__Model</c>) or command
/// line (<c>--Service:Model model.zip</c>).</summary>
internal sealed record ServiceSettings
{
    /// <summary>A pipeline that samples/Pipeline saved. Without one, a tiny model with random weights is made up.</summary>
    public string? Model { get; init; }

    /// <summary>Requests that the model works on at once. Each of them uses several cores already, and has memory of its
    /// own beside the weights, which they share.</summary>
    public int Concurrency { get; init; } = 2;

    /// <summary>Requests that wait. Whoever comes beyond them is told to come back (503).</summary>
    public int Queue { get; init; } = 16;

    /// <summary>What Retry-After says then, in seconds.</summary>
    public int RetryAfter { get; init; } = 5;

    /// <summary>The longest request, picture and texts together, in bytes.</summary>
    public long MaxUploadBytes { get; init; } = 10 << 20;

    /// <summary>Connections at once. Uploads are held in memory, so this times <see cref="MaxUploadBytes"/> bounds it.</summary>
    public int MaxConnections { get; init; } = 100;

    /// <summary>Characters of a question, phrase or message.</summary>
    public int MaxTextLength { get; init; } = 1000;
}
