using System.Diagnostics;
using MambaVL.Checkpoints;
using MambaVL.Tests.Models;

namespace MambaVL.Tests.Checkpoints;

[Collection(Alone.Name)] // servers and their time-outs want threads that are free
public sealed class ModelHubTests : IDisposable
{
    private readonly FakeHub _hub = new();
    private readonly string _cache = Path.Combine(Path.GetTempPath(), $"mambavl-hub-{Guid.NewGuid():N}");

    public void Dispose()
    {
        _hub.Dispose();
        if (Directory.Exists(_cache)) Directory.Delete(_cache, recursive: true);
    }

    [Fact]
    public void AModelArrivesInTheCacheLayoutOfHuggingFace()
    {
        var folder = Download();

        folder.Should().Be(Path.Combine(_cache, "models--owner--name", "snapshots", FakeHub.Commit));
        Directory.EnumerateFiles(folder).Select(Path.GetFileName).Should().BeEquivalentTo("config.json", "model.safetensors");
        File.ReadAllBytes(Path.Combine(folder, "model.safetensors")).Should().Equal(_hub.Files["model.safetensors"]);
        File.ReadAllText(Path.Combine(_cache, "models--owner--name", "refs", "main")).Should().Be(FakeHub.Commit);
        var link = new FileInfo(Path.Combine(folder, "model.safetensors")).LinkTarget;
        link.Should().StartWith(Path.Combine("..", "..", "blobs"));
        Partials().Should().BeEmpty();
    }

    [Fact]
    public void AModelIsLoadedByItsName()
    {
        var folder = Directory.CreateTempSubdirectory("mambavl-").FullName;
        try
        {
            using var model = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba);
            model.Save(folder);
            _hub.Files.Clear();
            foreach (var file in Directory.EnumerateFiles(folder)) _hub.Files[Path.GetFileName(file)] = File.ReadAllBytes(file);
            using var loaded = VisionLanguageModel.FromPretrained("owner/name", new() { Hub = Options(new()) });
            foreach (var ((name, saved), (_, read)) in model.NamedParameters().Zip(loaded.NamedParameters())) Compare.Same(read, saved, name);

            _hub.Files.Remove("tokenizer.json"); // as the published models: the tokeniser is another repository's
            var act = () => VisionLanguageModel.FromPretrained("owner/name", new() { Hub = Options(new() { CacheFolder = folder }) });
            act.Should().Throw<FileNotFoundException>().WithMessage($"*{VisionLanguageModel.PublishedTokenizer}*404*");
            _hub.Requests.Should().Contain(r => r.Path.Contains(VisionLanguageModel.PublishedTokenizer));
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [Fact]
    public void ASecondTimeNothingIsFetchedAgain()
    {
        Download();
        _hub.Requests.Clear();
        Download();
        _hub.Requests.Should().NotContain(r => r.ToStore);
        _hub.Requests.Should().NotContain(r => r.Method == "GET" && r.Path.Contains("/resolve/"));
    }

    [Fact]
    public void TheTokenGoesToTheHubAndNotToWhereItRedirects()
    {
        Download(new() { Token = "hf_secret" });
        _hub.Requests.Where(r => !r.ToStore).Should().OnlyContain(r => r.Token == "Bearer hf_secret");
        _hub.Requests.Where(r => r.ToStore).Should().NotBeEmpty().And.OnlyContain(r => r.Token == null);
    }

    [Fact]
    public void ADownloadThatBreaksOffGoesOnWhereItStopped()
    {
        _hub.BreakOff("model.safetensors", after: 100_000);
        var folder = Download();
        File.ReadAllBytes(Path.Combine(folder, "model.safetensors")).Should().Equal(_hub.Files["model.safetensors"]);
        var ranges = _hub.Requests.Where(r => r.ToStore).Select(r => r.Range).ToList();
        ranges.Should().HaveCount(2);
        ranges[0].Should().BeNull();
        ranges[1].Should().MatchRegex("bytes=[1-9][0-9]*-");
    }

    [Fact]
    public void WhatArrivedBeforeAFailureServesTheNextCall()
    {
        _hub.BreakOff("model.safetensors", after: 200_000);
        var act = () => Download(new() { Attempts = 1 });
        act.Should().Throw<HubException>().WithMessage("*model.safetensors*what has arrived is kept*");
        Directory.Exists(Path.Combine(_cache, "models--owner--name", "refs")).Should().BeFalse("the model is not whole");
        Partials().Should().ContainSingle();

        _hub.Requests.Clear();
        Download();
        _hub.Requests.Single(r => r.ToStore).Range.Should().NotBeNull();
    }

    [Fact]
    public void AServerThatIgnoresTheRangeIsReadFromTheStart()
    {
        _hub.BreakOff("model.safetensors", after: 100_000);
        _hub.Fault(c =>
        {
            if (c.Request.Headers["Range"] is null) return false;
            var content = _hub.Files["model.safetensors"];
            c.Response.ContentLength64 = content.Length;
            c.Response.OutputStream.Write(content);
            c.Response.Close();
            return true;
        });
        var folder = Download();
        File.ReadAllBytes(Path.Combine(folder, "model.safetensors")).Should().Equal(_hub.Files["model.safetensors"]);
    }

    [Fact]
    public void AServerThatRefusesTheRangeIsAskedFromTheStart()
    {
        _hub.BreakOff("model.safetensors", after: 100_000);
        _hub.Fault("/store/model.safetensors", 416);
        File.ReadAllBytes(Path.Combine(Download(), "model.safetensors")).Should().Equal(_hub.Files["model.safetensors"]);
    }

    [Theory]
    [InlineData("model.safetensors", 64)]
    [InlineData("config.json", 40)]
    public void AWrongHashIsNeverGivenTheFilesName(string file, int length)
    {
        _hub.StatedHashes[file] = new string('a', length);
        var act = () => Download(new() { Attempts = 2 });
        act.Should().Throw<HubException>().WithMessage($"*{file}*hash*deleted*");
        Directory.EnumerateFiles(Path.Combine(_cache, "models--owner--name", "blobs")).Should().NotContain(f => f.EndsWith(new string('a', length)));
        Partials().Should().BeEmpty();
    }

    [Fact]
    public void BytesThatChangedOnTheWayAreFetchedAgain()
    {
        _hub.Fault(c =>
        {
            if (!c.Request.Url!.AbsolutePath.StartsWith("/store/")) return false;
            var content = _hub.Files["model.safetensors"].ToArray();
            content[1000] ^= 1;
            c.Response.ContentLength64 = content.Length;
            c.Response.OutputStream.Write(content);
            c.Response.Close();
            return true;
        });
        File.ReadAllBytes(Path.Combine(Download(), "model.safetensors")).Should().Equal(_hub.Files["model.safetensors"]);
    }

    [Fact]
    public void MoreBytesThanPromisedAreNotTaken()
    {
        _hub.Fault(c =>
        {
            if (!c.Request.Url!.AbsolutePath.StartsWith("/store/")) return false;
            c.Response.SendChunked = true;
            var block = new byte[1 << 16];
            for (var i = 0; i < 1000; i++) c.Response.OutputStream.Write(block);
            return true;
        });
        var act = () => Download();
        act.Should().Throw<HubException>().WithMessage("*more bytes*");
    }

    [Theory]
    [InlineData(401, "*HF_TOKEN*")]
    [InlineData(403, "*granted access*")]
    [InlineData(404, "*Check the name 'owner/name' and the revision 'main'*")]
    public void WhatWillNotPassIsAskedOnce(int status, string message)
    {
        _hub.Fault("/revision/main", status, times: 5);
        var act = () => Download();
        act.Should().Throw<HubException>().WithMessage(message).Which.StatusCode.Should().Be(status);
        _hub.Requests.Should().ContainSingle();
    }

    [Theory]
    [InlineData(429)]
    [InlineData(500)]
    [InlineData(503)]
    public void WhatMayPassIsAskedAgain(int status)
    {
        _hub.Fault("/revision/main", status, times: 2);
        Download();
        _hub.Requests.Count(r => r.Path.EndsWith("/revision/main")).Should().Be(3);
    }

    [Fact]
    public void AfterTheLastTryTheErrorSaysWhatTheServerAnswered()
    {
        _hub.Fault("/model.safetensors", 500, times: 10);
        var act = () => Download(new() { Attempts = 3 });
        act.Should().Throw<HubException>().WithMessage("*model.safetensors*3 tries*500*").Which.StatusCode.Should().Be(500);
    }

    [Fact]
    public void RetryAfterIsWaitedFor()
    {
        _hub.Fault("/revision/main", 429, retryAfter: "1");
        var watch = Stopwatch.StartNew();
        Download();
        watch.Elapsed.Should().BeGreaterThan(TimeSpan.FromSeconds(0.9));
    }

    [Fact]
    public void AVeryLongRetryAfterIsNotSatOut()
    {
        _hub.Fault("/revision/main", 429, retryAfter: "86400");
        var act = () => Download();
        act.Should().Throw<HubException>().WithMessage("*429*");
    }

    [Fact]
    public void OfflineTheCacheServesAndTheHubIsNotAsked()
    {
        var folder = Download();
        _hub.Requests.Clear();
        Download(new() { Offline = true }).Should().Be(folder);
        _hub.Requests.Should().BeEmpty();
    }

    [Fact]
    public void OfflineAModelThatIsNotWholeIsAnError()
    {
        var act = () => Download(new() { Offline = true });
        act.Should().Throw<HubException>().WithMessage("*HF_HUB_OFFLINE*Fetch it once online*");

        File.Delete(Path.Combine(Download(), "model.safetensors"));
        act.Should().Throw<HubException>();
    }

    [Fact]
    public void WithoutTheHubTheCacheServes()
    {
        var folder = Download();
        _hub.Fault("/revision/main", 502, times: 5);
        Download(new() { Attempts = 2 }).Should().Be(folder);
        _hub.Dispose();
        Download(new() { Attempts = 2 }).Should().Be(folder);
    }

    [Fact]
    public void WithoutTheHubAndWithoutTheCacheTheErrorNamesTheHub()
    {
        _hub.Dispose();
        var act = () => Download(new() { Attempts = 2 });
        act.Should().Throw<HubException>().WithMessage($"*{_hub.Endpoint.Authority}*");
    }

    [Fact]
    public void ASilentServerTimesOut()
    {
        using var silence = new ManualResetEventSlim();
        _hub.Fault(_ => silence.Wait(TimeSpan.FromSeconds(30)));
        var act = () => Download(new() { Attempts = 1, IdleTimeout = TimeSpan.FromSeconds(0.3) });
        act.Should().Throw<HubException>().WithMessage("*nothing came for 0.3 s*");
        silence.Set();
    }

    [Fact]
    public async Task TwoAtOnceFetchTheWeightsOnce()
    {
        await Task.WhenAll(Task.Run(() => Download()), Task.Run(() => Download()), Task.Run(() => Download()));
        _hub.Requests.Count(r => r.ToStore).Should().Be(1);
    }

    [Fact]
    public void ALockThatIsHeldTooLongIsNamed()
    {
        var locks = Directory.CreateDirectory(Path.Combine(_cache, ".locks", "models--owner--name")).FullName;
        Download(new() { CacheFolder = _cache + "2" });
        var etags = Directory.GetFiles(Path.Combine(_cache + "2", "models--owner--name", "blobs")).Select(Path.GetFileName).ToList();
        Directory.Delete(_cache + "2", recursive: true);
        var held = etags.ConvertAll(e => new FileStream(Path.Combine(locks, e + ".lock"), FileMode.Create, FileAccess.ReadWrite, FileShare.None));
        var act = () => Download(new() { LockTimeout = TimeSpan.FromSeconds(0.2) });
        act.Should().Throw<HubException>().WithMessage("*Another process*.lock*");
        held.ForEach(h => h.Dispose());
    }

    [Fact]
    public void CancellationStopsItAndKeepsWhatArrived()
    {
        using var cancel = new CancellationTokenSource();
        var progress = new Progress(p =>
        {
            if (p.File == "model.safetensors" && p.Bytes > 0) cancel.Cancel();
        });
        _hub.Fault(c =>
        {
            if (!c.Request.Url!.AbsolutePath.StartsWith("/store/")) return false;
            c.Response.ContentLength64 = 300_000;
            // Slow enough that progress is told in between, however late the client gets to read; never the whole file.
            for (var i = 0; i < 299 && !cancel.IsCancellationRequested; i++)
            {
                c.Response.OutputStream.Write(_hub.Files["model.safetensors"], i * 1000, 1000);
                c.Response.OutputStream.Flush();
                Thread.Sleep(50);
            }
            return true;
        });
        var act = () => ModelHub.Download("owner/name", Options(new() { Progress = progress }), cancel.Token);
        act.Should().Throw<OperationCanceledException>();
        new FileInfo(Partials().Single()).Length.Should().BeInRange(1, 299_999);
    }

    [Fact]
    public void ProgressEndsAtTheWholeSize()
    {
        var seen = new List<DownloadProgress>();
        Download(new() { Progress = new Progress(seen.Add) });
        seen.Where(p => p.File == "model.safetensors").Select(p => p.Bytes).Should().BeInAscendingOrder().And.EndWith([300_000L]);
        seen.Should().OnlyContain(p => p.FileCount == 2 && p.TotalBytes > 0);
    }

    [Fact]
    public void ShardsAreFetched()
    {
        _hub.Files.Remove("model.safetensors");
        _hub.Files["model.safetensors.index.json"] = """{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"""u8.ToArray();
        _hub.Files["model-00001-of-00002.safetensors"] = FakeHub.Bytes(10);
        _hub.Files["model-00002-of-00002.safetensors"] = FakeHub.Bytes(20);
        Directory.EnumerateFiles(Download()).Should().HaveCount(4);
        Download(new() { Offline = true });
    }

    [Fact]
    public void ARepositoryWithoutAModelIsAnError()
    {
        _hub.Files.Remove("model.safetensors");
        var act = () => Download();
        act.Should().Throw<HubException>().WithMessage("*no weights; expected one of*");
        _hub.Files.Remove("config.json");
        act.Should().Throw<HubException>().WithMessage("*no config.json*");
    }

    [Fact]
    public void AnAnswerThatIsNoListingIsAnError()
    {
        _hub.Fault(c =>
        {
            c.Response.OutputStream.Write("<html>sign in to this wireless network</html>"u8);
            c.Response.Close();
            return true;
        });
        var act = () => Download();
        act.Should().Throw<HubException>().WithMessage("*HF_ENDPOINT*");
    }

    [Theory]
    [InlineData("name")]
    [InlineData("owner/name/more")]
    [InlineData("../name")]
    [InlineData("owner/..")]
    [InlineData("owner/na me")]
    [InlineData("owner/name\n")]
    [InlineData("")]
    public void ANameOfAnotherFormIsRefused(string name)
    {
        ModelHub.IsModelName(name).Should().BeFalse();
        var act = () => ModelHub.Download(name, Options(new()));
        act.Should().Throw<ArgumentException>().WithMessage("*owner/name*");
    }

    [Fact]
    public void PlainHttpIsForThisMachineOnly()
    {
        var act = () => Download(new() { Endpoint = new("http://example.org") });
        act.Should().Throw<ArgumentException>().WithMessage("*https*");
    }

    [Theory]
    [InlineData("../../etc")]
    [InlineData("")]
    [InlineData("a//b")]
    public void ARevisionIsNoPath(string revision)
    {
        var act = () => Download(new() { Revision = revision });
        act.Should().Throw<ArgumentException>().WithMessage("*revision*");
    }

    private string Download(HubOptions? options = null) => ModelHub.Download("owner/name", Options(options ?? new()));

    private HubOptions Options(HubOptions options) => options with
    {
        Endpoint = options.Endpoint ?? _hub.Endpoint,
        CacheFolder = options.CacheFolder ?? _cache,
        Offline = options.Offline ?? false,
        RetryDelay = TimeSpan.FromMilliseconds(10),
    };

    private string[] Partials() => Directory.Exists(_cache) ? Directory.GetFiles(_cache, "*.incomplete", SearchOption.AllDirectories) : [];

    private sealed class Progress(Action<DownloadProgress> report) : IProgress<DownloadProgress>
    {
        public void Report(DownloadProgress value) => report(value);
    }
}
