using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.Http.Headers;
using System.Text.Json;
using System.Text.RegularExpressions;

namespace MambaVL.Checkpoints;

/// <summary>Fetches models by name from a Hugging Face hub into the cache that its own tools use.</summary>
public static partial class ModelHub
{
    private const long LargestListing = 16 << 20; // a repository of 100,000 files lists in less

    /// <summary>Whether the text is of the form <c>owner/name</c>.</summary>
    public static bool IsModelName(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        return ModelName().IsMatch(text) && !text.Contains("..", StringComparison.Ordinal) && !text.Contains("--", StringComparison.Ordinal);
    }

    /// <inheritdoc cref="DownloadAsync(string, HubOptions?, CancellationToken)"/>
    public static string Download(string name, HubOptions? options = null, CancellationToken cancellationToken = default)
        // On the thread pool: no synchronisation context of the caller's can dead-lock with the wait.
        => Task.Run(() => DownloadAsync(name, options, cancellationToken), cancellationToken).GetAwaiter().GetResult();

    /// <summary>Fetches what the cache lacks of a model: its config, tokeniser and weights.</summary>
    /// <param name="name"><c>owner/name</c>.</param>
    /// <param name="options">Where from, where to, which revision.</param>
    /// <param name="cancellationToken">Stops the download; what has arrived is kept for the next one.</param>
    /// <returns>The folder that holds the model's files.</returns>
    /// <remarks>Each file is checked against the SHA-256 (or git's SHA-1) that the hub gives as its ETag, and has its
    /// final name only then. Where the hub cannot be reached, a model that the cache holds whole is used.</remarks>
    /// <exception cref="ArgumentException">The name or an option is not of the right form.</exception>
    /// <exception cref="HubException">The model is not to be had: see the message.</exception>
    public static async Task<string> DownloadAsync(string name, HubOptions? options = null, CancellationToken cancellationToken = default)
        => await DownloadAsync(name, options, ModelFiles.Choose, cancellationToken).ConfigureAwait(false);

    /// <summary>Fetches one file of a repository; returns its path in the cache.</summary>
    internal static string DownloadFile(string name, string file, HubOptions? options, CancellationToken cancellationToken)
    {
        var folder = Task.Run(() => DownloadAsync(name, options, (available, where) => available.Contains(file)
            ? [file]
            : throw new HubException($"{where} has no {file}."), cancellationToken), cancellationToken).GetAwaiter().GetResult();
        return Path.Combine(folder, file);
    }

    private static async Task<string> DownloadAsync(string name, HubOptions? options,
        Func<IReadOnlyCollection<string>, string, IReadOnlyList<string>> choose, CancellationToken cancellation)
    {
        if (!IsModelName(name))
            throw new ArgumentException($"'{name}' is no model's name; expected owner/name, as in gpantaz/finetuned_mambavl_790m.", nameof(name));
        var settings = (options ?? new()).Resolved();
        var (owner, repository) = (name[..name.IndexOf('/')], name[(name.IndexOf('/') + 1)..]);
        var cache = new HubCache(settings.CacheFolder!, owner, repository);

        if (settings.Offline == true)
            return FromCache(cache, name, settings.Revision, choose)
                ?? throw new HubException($"'{name}' ({settings.Revision}) is not whole in {settings.CacheFolder}, and the hub may not be asked (HubOptions.Offline or HF_HUB_OFFLINE). Fetch it once online.");

        using var session = new Session(name, settings);
        string commit;
        HashSet<string> available;
        try
        {
            (commit, available) = await session.ListAsync(cancellation).ConfigureAwait(false);
        }
        catch (HubException e) when (e.StatusCode is null or 429 or >= 500 && FromCache(cache, name, settings.Revision, choose) is not null)
        {
            return FromCache(cache, name, settings.Revision, choose)!; // the hub is out of reach, but nothing is missing
        }

        var files = choose(available, $"'{name}'");
        for (var i = 0; i < files.Count; i++)
            await session.FetchAsync(cache, commit, files[i], i + 1, files.Count, cancellation).ConfigureAwait(false);
        cache.SetCommit(settings.Revision, commit);
        return cache.Snapshot(commit);
    }

    /// <summary>The snapshot's folder if it holds the whole model, else null.</summary>
    private static string? FromCache(HubCache cache, string name, string revision,
        Func<IReadOnlyCollection<string>, string, IReadOnlyList<string>> choose)
    {
        if (cache.Commit(revision) is not { } commit || cache.Snapshot(commit) is var folder && !Directory.Exists(folder)) return null;
        try
        {
            var present = Directory.EnumerateFiles(folder).Where(File.Exists).Select(f => Path.GetFileName(f)).ToHashSet();
            var chosen = choose(present, $"'{name}' in the cache");
            return chosen.Where(f => f.EndsWith(".index.json", StringComparison.Ordinal)).All(f => HoldsShards(folder, f)) ? folder : null;
        }
        catch (Exception e) when (e is HubException or JsonException)
        {
            return null;
        }
    }

    private static bool HoldsShards(string folder, string index)
    {
        using var json = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(folder, index)));
        return json.RootElement.TryGetProperty("weight_map", out var map) && map.ValueKind == JsonValueKind.Object
            && map.EnumerateObject().All(t => t.Value.ValueKind == JsonValueKind.String && File.Exists(Path.Combine(folder, t.Value.GetString()!)));
    }

    [GeneratedRegex(@"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}\z")]
    private static partial Regex ModelName();

    [GeneratedRegex(@"^[A-Za-z0-9][A-Za-z0-9._-]*\z")]
    private static partial Regex PlainFileName();

    /// <summary>The requests for one model.</summary>
    private sealed class Session : IDisposable
    {
        private readonly string _name;
        private readonly HubOptions _options;
        private readonly HttpClient _http;
        private readonly string _endpoint;

        public Session(string name, HubOptions options)
        {
            (_name, _options) = (name, options);
            _endpoint = options.Endpoint!.AbsoluteUri.TrimEnd('/');
            // Redirects are followed by hand: the token goes to the endpoint's host only, and https never turns into http.
            var handler = new SocketsHttpHandler
            {
                AllowAutoRedirect = false,
                ConnectTimeout = options.IdleTimeout,
                AutomaticDecompression = DecompressionMethods.None,
            };
            _http = new HttpClient(handler) { Timeout = Timeout.InfiniteTimeSpan };
            _http.DefaultRequestHeaders.UserAgent.ParseAdd("MambaVL.MLNet/0.1");
        }

        public void Dispose() => _http.Dispose();

        /// <summary>The commit that the revision stands for, and the files in the repository's top folder.</summary>
        public async Task<(string Commit, HashSet<string> Files)> ListAsync(CancellationToken cancellation)
        {
            var url = $"{_endpoint}/api/models/{_name}/revision/{Uri.EscapeDataString(_options.Revision)}";
            var bytes = await RetryAsync($"the list of files of '{_name}'", async token =>
            {
                using var response = await SendAsync(HttpMethod.Get, url, null, token).ConfigureAwait(false);
                RequireSuccess(response, $"the list of files of '{_name}' ({_options.Revision})");
                using var content = new MemoryStream();
                await CopyAsync(response, content, LargestListing, null, token).ConfigureAwait(false);
                return content.ToArray();
            }, cancellation).ConfigureAwait(false);

            try
            {
                using var json = JsonDocument.Parse(bytes);
                var commit = json.RootElement.GetProperty("sha").GetString() ?? "";
                if (!HubCache.IsHash(commit)) throw new HubException($"{url} gave the commit '{commit}'; expected 40 hexadecimal digits.");
                var files = json.RootElement.GetProperty("siblings").EnumerateArray()
                    .Select(s => s.GetProperty("rfilename").GetString() ?? "")
                    .Where(f => PlainFileName().IsMatch(f)); // what we fetch lies in the top folder; other names are never used as paths
                return (commit, [.. files]);
            }
            catch (Exception e) when (e is JsonException or KeyNotFoundException or InvalidOperationException)
            {
                throw new HubException($"{url} did not answer with a list of files. Is HF_ENDPOINT ({_endpoint}) a Hugging Face hub?", e);
            }
        }

        /// <summary>Brings one file into the cache, unless it is there.</summary>
        public async Task FetchAsync(HubCache cache, string commit, string file, int number, int count, CancellationToken cancellation)
        {
            var url = $"{_endpoint}/{_name}/resolve/{commit}/{Uri.EscapeDataString(file)}";
            var what = $"{file} of '{_name}'";
            var (etag, size) = await RetryAsync(what, token => HeadAsync(url, what, token), cancellation).ConfigureAwait(false);

            if (!cache.Holds(etag, size))
            {
                using var alone = await cache.LockAsync(etag, _options.LockTimeout, cancellation).ConfigureAwait(false);
                if (!cache.Holds(etag, size)) // else another process fetched it while this one waited
                {
                    var progress = new Throttle(_options.Progress, file, size, number, count);
                    await RetryAsync(what, async token =>
                    {
                        await FetchBlobAsync(url, what, cache.Blob(etag), etag, size, progress, token).ConfigureAwait(false);
                        return true;
                    }, cancellation).ConfigureAwait(false);
                }
            }
            cache.Link(commit, file, etag);
        }

        // Large files are answered with a redirect to a store; the hash and size are in this first answer.
        private async Task<(string ETag, long? Size)> HeadAsync(string url, string what, CancellationToken cancellation)
        {
            for (var hops = 0; ; hops++)
            {
                using var response = await SendOnceAsync(HttpMethod.Head, url, null, cancellation).ConfigureAwait(false);
                var linked = Header(response, "X-Linked-Etag");
                if (IsRedirect(response.StatusCode) && linked is null && hops < MaxRedirects)
                {
                    url = RedirectTarget(response, url);
                    continue;
                }
                if (!IsRedirect(response.StatusCode)) RequireSuccess(response, what);
                var etag = (linked ?? Header(response, "ETag") ?? "").Trim();
                if (etag.StartsWith("W/", StringComparison.Ordinal)) etag = etag[2..];
                etag = etag.Trim('"');
                if (etag.Length is 0 or > 128 || !PlainFileName().IsMatch(etag))
                    throw new HubException($"The server gave {what} the ETag '{etag}'; expected its hash. Is HF_ENDPOINT ({_endpoint}) a Hugging Face hub?");
                long? size = long.TryParse(Header(response, "X-Linked-Size"), NumberStyles.None, CultureInfo.InvariantCulture, out var n)
                    ? n
                    : IsRedirect(response.StatusCode) ? null : response.Content.Headers.ContentLength;
                return (etag, size);
            }
        }

        private async Task FetchBlobAsync(string url, string what, string blob, string etag, long? size, Throttle progress, CancellationToken cancellation)
        {
            Directory.CreateDirectory(Path.GetDirectoryName(blob)!);
            var partial = blob + ".incomplete";
            var have = File.Exists(partial) ? new FileInfo(partial).Length : 0;
            if (size is { } known && have > known) have = 0;
            if (size is { } total) RequireSpace(Path.GetDirectoryName(blob)!, total - have, what);

            if (have == 0 || have != size)
            {
                using var response = await SendAsync(HttpMethod.Get, url, have > 0 ? new RangeHeaderValue(have, null) : null, cancellation).ConfigureAwait(false);
                if (response.StatusCode == HttpStatusCode.RequestedRangeNotSatisfiable)
                {
                    File.Delete(partial);
                    throw new RetryException($"the server refused to go on with {what} at byte {have}; starting over");
                }
                RequireSuccess(response, what);
                var goesOn = response.StatusCode == HttpStatusCode.PartialContent && response.Content.Headers.ContentRange?.From == have;
                if (!goesOn) have = 0; // the server sends it from the start
                await using var file = new FileStream(partial, FileMode.OpenOrCreate, FileAccess.Write, FileShare.Read, 1, FileOptions.Asynchronous);
                file.SetLength(have);
                file.Seek(have, SeekOrigin.Begin);
                progress.Start(have);
                await CopyAsync(response, file, (size ?? long.MaxValue) - have, progress, cancellation).ConfigureAwait(false);
                file.Flush(flushToDisk: true);
                have = file.Length;
            }

            if (size is { } whole && have != whole)
                throw new RetryException($"{what} broke off after {have} of {whole} bytes");
            if (!await HubCache.HasHashAsync(partial, etag, cancellation).ConfigureAwait(false))
            {
                File.Delete(partial);
                throw new RetryException($"what arrived of {what} does not have the hash {etag} that the hub gives for it; it was deleted");
            }
            File.Move(partial, blob, overwrite: true);
            progress.Done(have);
        }

        private static void RequireSpace(string folder, long bytes, string what)
        {
            var free = new DriveInfo(folder).AvailableFreeSpace;
            if (bytes > free)
                throw new HubException($"{what} needs {bytes:N0} more bytes, and {folder} has {free:N0} free. Free some, or name another folder (HF_HOME).");
        }

        private async Task CopyAsync(HttpResponseMessage response, Stream target, long limit, Throttle? progress, CancellationToken cancellation)
        {
            await using var source = await response.Content.ReadAsStreamAsync(cancellation).ConfigureAwait(false);
            var buffer = new byte[1 << 17];
            while (true)
            {
                using var idle = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
                idle.CancelAfter(_options.IdleTimeout);
                var read = await source.ReadAsync(buffer, idle.Token).ConfigureAwait(false);
                if (read == 0) return;
                limit -= read;
                if (limit < 0) throw new HubException($"{response.RequestMessage?.RequestUri} sent more bytes than it should have.");
                await target.WriteAsync(buffer.AsMemory(0, read), cancellation).ConfigureAwait(false);
                progress?.Add(read);
            }
        }

        private const int MaxRedirects = 8;

        private async Task<HttpResponseMessage> SendAsync(HttpMethod method, string url, RangeHeaderValue? range, CancellationToken cancellation)
        {
            for (var hops = 0; hops <= MaxRedirects; hops++)
            {
                var response = await SendOnceAsync(method, url, range, cancellation).ConfigureAwait(false);
                if (!IsRedirect(response.StatusCode)) return response;
                using (response) url = RedirectTarget(response, url);
            }
            throw new HubException($"{_endpoint} redirected more than {MaxRedirects} times.");
        }

        private async Task<HttpResponseMessage> SendOnceAsync(HttpMethod method, string url, RangeHeaderValue? range, CancellationToken cancellation)
        {
            using var request = new HttpRequestMessage(method, url);
            request.Headers.Range = range;
            request.Headers.AcceptEncoding.ParseAdd("identity"); // a compressed answer would have another length and hash
            if (_options.Token is not null && request.RequestUri!.Authority == _options.Endpoint!.Authority && request.RequestUri.Scheme == _options.Endpoint.Scheme)
                request.Headers.Authorization = new AuthenticationHeaderValue("Bearer", _options.Token);
            using var idle = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
            idle.CancelAfter(_options.IdleTimeout);
            return await _http.SendAsync(request, HttpCompletionOption.ResponseHeadersRead, idle.Token).ConfigureAwait(false);
        }

        private static bool IsRedirect(HttpStatusCode status) => status is HttpStatusCode.MovedPermanently or HttpStatusCode.Found
            or HttpStatusCode.SeeOther or HttpStatusCode.TemporaryRedirect or HttpStatusCode.PermanentRedirect;

        private static string RedirectTarget(HttpResponseMessage response, string url)
        {
            var from = new Uri(url);
            if (response.Headers.Location is not { } location) throw new HubException($"{url} redirects without saying where to.");
            var target = new Uri(from, location);
            if (target.Scheme != "https" && !(target.Scheme == "http" && from.Scheme == "http" && target.IsLoopback))
                throw new HubException($"{url} redirects to {target.Scheme}://{target.Authority}; expected https.");
            return target.AbsoluteUri;
        }

        private static string? Header(HttpResponseMessage response, string name)
            => response.Headers.TryGetValues(name, out var values) || response.Content.Headers.TryGetValues(name, out values)
                ? values.FirstOrDefault()
                : null;

        private void RequireSuccess(HttpResponseMessage response, string what)
        {
            if (response.IsSuccessStatusCode) return;
            var status = (int)response.StatusCode;
            if (status is 408 or 429 or >= 500)
            {
                var after = response.Headers.RetryAfter is { } header
                    ? header.Delta ?? header.Date - DateTimeOffset.UtcNow
                    : null;
                throw new RetryException($"the server answered {status} ({response.ReasonPhrase})") { StatusCode = status, After = after };
            }
            var (found, advice) = status switch
            {
                401 when _options.Token is null => ("asks who you are", "The model is private, gated or misspelt. Set HF_TOKEN to a token of an account that may read it."),
                401 or 403 => ("refuses the token", "Check that HF_TOKEN is valid and that its account was granted access on the model's page."),
                404 => ("has no such thing", $"Check the name '{_name}' and the revision '{_options.Revision}'."),
                _ => ("refused", "Check HF_ENDPOINT, and the hub's status page."),
            };
            throw new HubException($"Asked for {what}, {_endpoint} {found} ({status} {response.ReasonPhrase}). {advice}") { StatusCode = status };
        }

        private async Task<T> RetryAsync<T>(string what, Func<CancellationToken, Task<T>> attempt, CancellationToken cancellation)
        {
            var delay = _options.RetryDelay;
            for (var tries = 1; ; tries++)
            {
                cancellation.ThrowIfCancellationRequested();
                Exception failure;
                var wait = delay;
                try
                {
                    return await attempt(cancellation).ConfigureAwait(false);
                }
                catch (RetryException e)
                {
                    failure = e;
                    if (e.After is { } asked && asked > wait) wait = asked;
                }
                catch (Exception e) when (e is HttpRequestException or IOException and not HubException
                    || e is OperationCanceledException && !cancellation.IsCancellationRequested)
                {
                    failure = e;
                }

                // A wait of many minutes is better left to the user than sat out in silence.
                if (tries == _options.Attempts || wait > TimeSpan.FromMinutes(5))
                {
                    var reason = failure is OperationCanceledException ? $"nothing came for {_options.IdleTimeout.TotalSeconds:0.#} s" : failure.Message;
                    throw new HubException($"Could not fetch {what} from {_endpoint} after {tries} tries: {reason}. Check the connection and try again: what has arrived is kept.", failure)
                    {
                        StatusCode = (failure as RetryException)?.StatusCode,
                    };
                }
                await Task.Delay(wait, cancellation).ConfigureAwait(false);
                delay *= 2;
            }
        }
    }

    /// <summary>A failure that may pass.</summary>
    private sealed class RetryException(string message) : Exception(message)
    {
        public int? StatusCode { get; init; }

        public TimeSpan? After { get; init; }
    }

    /// <summary>Passes progress on at most ten times a second.</summary>
    private sealed class Throttle(IProgress<DownloadProgress>? target, string file, long? size, int number, int count)
    {
        private long _bytes;
        private long _last;

        public void Start(long bytes)
        {
            _bytes = bytes;
            Report();
        }

        public void Add(int bytes)
        {
            _bytes += bytes;
            if (Stopwatch.GetElapsedTime(_last) >= TimeSpan.FromMilliseconds(100)) Report();
        }

        public void Done(long bytes) => Start(bytes);

        private void Report()
        {
            _last = Stopwatch.GetTimestamp();
            target?.Report(new(file, _bytes, size, number, count));
        }
    }
}
