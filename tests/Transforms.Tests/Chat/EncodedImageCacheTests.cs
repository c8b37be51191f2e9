using TorchSharp;

namespace MambaVL.Tests.Chat;

public class EncodedImageCacheTests
{
    private int _encoded;

    private EncodedImageCache Cache(int capacity) => new(_ =>
    {
        Interlocked.Increment(ref _encoded);
        return new(torch.ones(2, 3), 10, 10);
    }, capacity);

    [Fact]
    public void TheSameBytesAreEncodedOnce()
    {
        using var cache = Cache(2);
        using var first = cache.Rent(new byte[] { 1, 2 });
        using var again = cache.Rent(new byte[] { 1, 2 });
        using var other = cache.Rent(new byte[] { 1, 3 });
        again.Image.Should().BeSameAs(first.Image);
        other.Image.Should().NotBeSameAs(first.Image);
        _encoded.Should().Be(2);
    }

    [Fact]
    public void TheOneUsedLeastLatelyLeavesAndIsFreed()
    {
        using var cache = Cache(2);
        var images = new EncodedImage[3];
        foreach (var i in (int[])[0, 1, 0, 2]) // 1 is the oldest when 2 comes
        {
            using var lease = cache.Rent(new[] { (byte)i });
            images[i] = lease.Image;
        }
        cache.Count.Should().Be(2);
        IsFreed(images[1]).Should().BeTrue();
        IsFreed(images[0]).Should().BeFalse();
        IsFreed(images[2]).Should().BeFalse();
        cache.Dispose();
        images.Should().OnlyContain(i => IsFreed(i));
    }

    [Theory, InlineData(0), InlineData(1)]
    public void APictureInUseIsFreedAfterItsLastUse(int capacity)
    {
        using var cache = Cache(capacity);
        var first = cache.Rent(new byte[] { 1 });
        cache.Rent(new byte[] { 2 }).Dispose();
        cache.Count.Should().Be(capacity);
        IsFreed(first.Image).Should().BeFalse();
        first.Dispose();
        first.Dispose(); // counts once
        IsFreed(first.Image).Should().BeTrue();

        var last = cache.Rent(new byte[] { 3 });
        cache.Dispose();
        IsFreed(last.Image).Should().BeFalse();
        last.Dispose();
        IsFreed(last.Image).Should().BeTrue();
    }

    [Fact]
    public void ManyThreadsEncodeAPictureOnce()
    {
        using var cache = new EncodedImageCache(_ =>
        {
            Interlocked.Increment(ref _encoded);
            Thread.Sleep(50);
            return new(torch.ones(2, 3), 10, 10);
        }, 1);
        var threads = Enumerable.Range(0, 6).Select(_ => new Thread(() => cache.Rent(new byte[] { 1 }).Dispose())).ToList();
        threads.ForEach(t => t.Start());
        threads.ForEach(t => t.Join());
        _encoded.Should().Be(1);
    }

    [Fact]
    public void AFailureIsNotKept()
    {
        using var cache = new EncodedImageCache(_ => ++_encoded == 1 ? throw new IOException("once") : new(torch.ones(2, 3), 10, 10), 4);
        var act = () => cache.Rent(new byte[] { 1 });
        act.Should().Throw<IOException>();
        cache.Count.Should().Be(0);
        act().Dispose();
        cache.Count.Should().Be(1);
    }

    private static bool IsFreed(EncodedImage image)
    {
        try
        {
            _ = image.Embeddings;
            return false;
        }
        catch (ObjectDisposedException)
        {
            return true;
        }
    }
}
