namespace MambaVL.Checkpoints;

/// <summary>How models are fetched by name. Every value that is null comes from the environment variable that Hugging
/// Face's own tools read, so that a machine that is set up for those is set up for this.</summary>
public sealed record HubOptions
{
    /// <summary>A branch, tag or commit of the model's repository. Default: <c>main</c>.</summary>
    public string Revision { get; init; } = "main";

    /// <summary>Where the hub is. Null: <c>HF_ENDPOINT</c>, else https://huggingface.co. Plain http is accepted for this
    /// machine itself only (a mirror on the loopback address).</summary>
    public Uri? Endpoint { get; init; }

    /// <summary>The access token of private and gated models. Null: <c>HF_TOKEN</c>, else the file that
    /// <c>huggingface-cli login</c> writes (<c>HF_TOKEN_PATH</c>, or <c>token</c> in <c>HF_HOME</c>). It is sent to the
    /// endpoint's host only, never to where that redirects.</summary>
    public string? Token { get; init; }

    /// <summary>The folder of the cache. Null: <c>HF_HUB_CACHE</c>, else <c>hub</c> in <c>HF_HOME</c>, else
    /// <c>~/.cache/huggingface/hub</c>.</summary>
    public string? CacheFolder { get; init; }

    /// <summary>Whether to use only what the cache holds. Null: whether <c>HF_HUB_OFFLINE</c> is 1, true, yes or on.</summary>
    public bool? Offline { get; init; }

    /// <summary>Told of the bytes that arrive, at most some ten times a second, on any thread.</summary>
    public IProgress<DownloadProgress>? Progress { get; init; }

    /// <summary>How often a request that failed for a reason that may pass (no connection, a connection that broke,
    /// statuses 408, 429 and 500 to 599) is made, the first time included; at least 1. Default 5. Before each further
    /// try it waits twice as long, or as long as the server's Retry-After asks; what arrived is kept.</summary>
    public int Attempts { get; init; } = 5;

    /// <summary>The wait before the second try. Default: 1 second.</summary>
    public TimeSpan RetryDelay { get; init; } = TimeSpan.FromSeconds(1);

    /// <summary>How long a connection may stay silent before the try counts as failed. Default: 30 seconds.</summary>
    public TimeSpan IdleTimeout { get; init; } = TimeSpan.FromSeconds(30);

    /// <summary>How long to wait for another process that is fetching the same file. Default: 30 minutes.</summary>
    public TimeSpan LockTimeout { get; init; } = TimeSpan.FromMinutes(30);

    internal HubOptions Resolved()
    {
        var home = Variable("HF_HOME") ?? Path.Combine(
            Variable("XDG_CACHE_HOME") ?? Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.UserProfile), ".cache"),
            "huggingface");
        var resolved = this with
        {
            Endpoint = Endpoint ?? EndpointFromEnvironment(),
            Token = Token ?? Variable("HF_TOKEN") ?? TokenFromFile(Variable("HF_TOKEN_PATH") ?? Path.Combine(home, "token")),
            CacheFolder = Path.GetFullPath(CacheFolder ?? Variable("HF_HUB_CACHE") ?? Path.Combine(home, "hub")),
            Offline = Offline ?? Variable("HF_HUB_OFFLINE")?.ToUpperInvariant() is "1" or "TRUE" or "YES" or "ON",
        };
        resolved.Check();
        return resolved;
    }

    private void Check()
    {
        var endpoint = Endpoint!;
        if (!endpoint.IsAbsoluteUri || endpoint.Scheme is not ("https" or "http") || endpoint.Scheme == "http" && !endpoint.IsLoopback)
            throw new ArgumentException($"The hub's endpoint is '{endpoint}'; expected an https address (HubOptions.Endpoint or HF_ENDPOINT).");
        if (string.IsNullOrWhiteSpace(Revision) || Revision.Split('/').Any(part => part is "" or "." or "..") || Revision.Contains('\\'))
            throw new ArgumentException($"The revision is '{Revision}'; expected the name of a branch or tag, or a commit.");
        if (Token is not null && Token.AsSpan().ContainsAnyExceptInRange('!', '~'))
            throw new ArgumentException("The hub's token holds a space, a line break or another character that no token has (HubOptions.Token, HF_TOKEN or the token file).");
        ArgumentOutOfRangeException.ThrowIfLessThan(Attempts, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(RetryDelay, TimeSpan.Zero);
        ArgumentOutOfRangeException.ThrowIfLessThanOrEqual(IdleTimeout, TimeSpan.Zero);
        ArgumentOutOfRangeException.ThrowIfLessThan(LockTimeout, TimeSpan.Zero);
    }

    private static Uri EndpointFromEnvironment()
    {
        var text = Variable("HF_ENDPOINT") ?? "https://huggingface.co";
        return Uri.TryCreate(text, UriKind.Absolute, out var uri)
            ? uri
            : throw new ArgumentException($"HF_ENDPOINT is '{text}'; expected an https address.");
    }

    private static string? TokenFromFile(string path)
    {
        if (!File.Exists(path)) return null;
        try
        {
            return File.ReadAllText(path).Trim() is { Length: > 0 } token ? token : null;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null; // not ours to read: go on as a visitor, and the hub's answer says if that is not enough
        }
    }

    private static string? Variable(string name)
        => Environment.GetEnvironmentVariable(name) is { } value && value.Trim() is { Length: > 0 } text ? text : null;
}

/// <summary>How far a download is.</summary>
/// <param name="File">The file that is arriving, as the repository names it.</param>
/// <param name="Bytes">What has arrived of it, bytes of earlier tries included.</param>
/// <param name="TotalBytes">Its size, or null where the server did not say.</param>
/// <param name="FileNumber">Which file of the model this is, from 1.</param>
/// <param name="FileCount">How many files the model has.</param>
public readonly record struct DownloadProgress(string File, long Bytes, long? TotalBytes, int FileNumber, int FileCount);

/// <summary>A model could not be fetched. The message says what was asked for, what came back and what to do.</summary>
public sealed class HubException : IOException
{
    /// <summary>Makes the exception.</summary>
    public HubException(string message, Exception? innerException = null) : base(message, innerException) { }

    /// <summary>The server's HTTP status, or null where none came.</summary>
    public int? StatusCode { get; init; }
}
