using System.Collections.Concurrent;
using System.Net;
using System.Net.Sockets;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;

namespace MambaVL.Tests.Checkpoints;

/// <summary>A hub on the loopback address that answers as huggingface.co does, and fails as a test tells it to. Weights
/// are answered with a redirect to a second address, as large files are there.</summary>
internal sealed class FakeHub : IDisposable
{
    public const string Commit = "0123456789abcdef0123456789abcdef01234567";

    private readonly HttpListener _hub = new();
    private readonly HttpListener _store = new();
    private readonly ConcurrentQueue<Func<HttpListenerContext, bool>> _faults = new();

    public FakeHub()
    {
        Endpoint = Start(_hub, "127.0.0.1", AnswerHub);
        Store = Start(_store, "localhost", AnswerStore);
    }

    public Uri Endpoint { get; }

    public Uri Store { get; }

    public Dictionary<string, byte[]> Files { get; } = new()
    {
        ["config.json"] = "{}"u8.ToArray(),
        ["model.safetensors"] = Bytes(300_000),
        ["README.md"] = "not fetched"u8.ToArray(),
        ["../../escape.json"] = "never a path"u8.ToArray(),
    };

    /// <summary>Overrides the hash that the hub states for a file.</summary>
    public Dictionary<string, string> StatedHashes { get; } = [];

    /// <summary>Requests in order: method, host, path, range, whether a token came.</summary>
    public ConcurrentQueue<(string Method, bool ToStore, string Path, string? Range, string? Token)> Requests { get; } = new();

    /// <summary>The next request for which the function is asked and gives true has been answered by it.</summary>
    public void Fault(Func<HttpListenerContext, bool> fault) => _faults.Enqueue(fault);

    /// <summary>The next <paramref name="times"/> requests whose path ends so are answered with the status.</summary>
    public void Fault(string pathEnd, int status, int times = 1, string? retryAfter = null)
    {
        for (var i = 0; i < times; i++)
            Fault(c =>
            {
                if (!c.Request.Url!.AbsolutePath.EndsWith(pathEnd, StringComparison.Ordinal)) return false;
                c.Response.StatusCode = status;
                if (retryAfter is not null) c.Response.Headers["Retry-After"] = retryAfter;
                c.Response.Close();
                return true;
            });
    }

    /// <summary>The next download of that file stops after so many bytes.</summary>
    public void BreakOff(string file, int after) => Fault(c =>
    {
        if (c.Request.HttpMethod != "GET" || c.Request.Url!.AbsolutePath != $"/store/{file}") return false;
        var content = Files[file];
        c.Response.ContentLength64 = content.Length;
        c.Response.OutputStream.Write(content, 0, after);
        c.Response.OutputStream.Flush();
        c.Response.Abort();
        return true;
    });

    public static byte[] Bytes(int length)
    {
        var bytes = new byte[length];
        new Random(length).NextBytes(bytes);
        return bytes;
    }

    public void Dispose()
    {
        _hub.Close();
        _store.Close();
    }

    private Uri Start(HttpListener listener, string host, Action<HttpListenerContext> answer)
    {
        using (var probe = new TcpListener(IPAddress.Loopback, 0))
        {
            probe.Start();
            listener.Prefixes.Add($"http://{host}:{((IPEndPoint)probe.LocalEndpoint).Port}/");
        }
        listener.Start();
        _ = Task.Run(async () =>
        {
            while (listener.IsListening)
            {
                HttpListenerContext context;
                try
                {
                    context = await listener.GetContextAsync();
                }
                catch (Exception e) when (e is HttpListenerException or ObjectDisposedException)
                {
                    return;
                }
                _ = Task.Run(() => Answer(context, listener == _store, answer));
            }
        });
        return new Uri(listener.Prefixes.First());
    }

    private void Answer(HttpListenerContext context, bool toStore, Action<HttpListenerContext> answer)
    {
        var request = context.Request;
        Requests.Enqueue((request.HttpMethod, toStore, request.Url!.AbsolutePath, request.Headers["Range"], request.Headers["Authorization"]));
        try
        {
            if (_faults.TryPeek(out var fault) && fault(context))
            {
                _faults.TryDequeue(out _);
                return;
            }
            answer(context);
        }
        catch (Exception e) when (e is HttpListenerException or IOException or ObjectDisposedException or InvalidOperationException)
        {
            // the client went away
        }
    }

    private void AnswerHub(HttpListenerContext context)
    {
        var path = context.Request.Url!.AbsolutePath;
        if (path.StartsWith("/api/models/owner/name/revision/", StringComparison.Ordinal))
        {
            Send(context, JsonSerializer.SerializeToUtf8Bytes(new { sha = Commit, siblings = Files.Keys.Select(f => new { rfilename = f }) }));
            return;
        }
        var file = path.Split('/')[^1];
        if (path != $"/owner/name/resolve/{Commit}/{file}" || !Files.TryGetValue(file, out var content))
        {
            context.Response.StatusCode = 404;
            context.Response.Close();
            return;
        }
        if (file.EndsWith(".json", StringComparison.Ordinal))
        {
            context.Response.Headers["ETag"] = $"\"{StatedHashes.GetValueOrDefault(file, GitHash(content))}\"";
            Send(context, content);
            return;
        }
        context.Response.Headers["X-Linked-Etag"] = $"\"{StatedHashes.GetValueOrDefault(file, Sha256(content))}\"";
        context.Response.Headers["X-Linked-Size"] = content.Length.ToString();
        context.Response.StatusCode = 302;
        context.Response.Headers["Location"] = $"{Store}store/{file}";
        context.Response.Close();
    }

    private void AnswerStore(HttpListenerContext context)
    {
        var content = Files[context.Request.Url!.AbsolutePath.Split('/')[^1]];
        if (context.Request.Headers["Range"] is { } range)
        {
            var from = int.Parse(range["bytes=".Length..^1]);
            context.Response.StatusCode = 206;
            context.Response.Headers["Content-Range"] = $"bytes {from}-{content.Length - 1}/{content.Length}";
            content = content[from..];
        }
        Send(context, content);
    }

    private static void Send(HttpListenerContext context, byte[] content)
    {
        context.Response.ContentLength64 = content.Length;
        if (context.Request.HttpMethod != "HEAD") context.Response.OutputStream.Write(content);
        context.Response.Close();
    }

    private static string GitHash(byte[] content)
        => Convert.ToHexStringLower(SHA1.HashData([.. Encoding.ASCII.GetBytes($"blob {content.Length}\0"), .. content]));

    private static string Sha256(byte[] content) => Convert.ToHexStringLower(SHA256.HashData(content));
}
