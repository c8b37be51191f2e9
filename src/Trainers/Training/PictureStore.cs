using System.Security.Cryptography;
using MambaVL.Images;

namespace MambaVL.Training;

/// <summary>The distinct pictures of a data set, squashed to the model's square.</summary>
/// <remarks>
/// Every picture is decoded once before training, which finds all that cannot be read and gives its size. As many as the
/// memory has room for stay; the others are decoded again when they are needed. Those that stay are the first ones and
/// never change: epochs go round all pictures, so that throwing out the oldest would throw out each before its turn.
/// </remarks>
/// <param name="processor">Squashes them.</param>
/// <param name="options">How they are read.</param>
/// <param name="memory">Bytes for pictures that stay.</param>
internal sealed class PictureStore(ImageProcessor processor, ImageDecoderOptions options, long memory)
{
    private readonly Dictionary<string, int> _indices = new(StringComparer.Ordinal);
    private readonly List<Picture> _pictures = [];
    private long _used;

    public int Count => _pictures.Count;

    /// <summary>Bytes of a squashed picture: [size, size, 3].</summary>
    public int SquareBytes { get; } = processor.Options.ImageSize * processor.Options.ImageSize * 3;

    public int AddPath(string path) => Add("path:" + path, () => new() { Path = path });

    public int AddBytes(ReadOnlySpan<byte> file)
    {
        var bytes = file.ToArray();
        return Add("bytes:" + Convert.ToHexString(SHA256.HashData(bytes)), () => new() { File = bytes });
    }

    /// <summary>A picture that its source has decoded; it is squashed at once, and always stays.</summary>
    public int AddDecoded(DecodedImage image)
    {
        var square = processor.Resize(image);
        var (width, height) = (image.Width, image.Height);
        return Add($"pixels:{width}x{height}:{Convert.ToHexString(SHA256.HashData(square))}", () => new() { Square = square, Width = width, Height = height });
    }

    /// <summary>Decodes every picture, in parallel, and keeps what there is room for. Problems are kept for <see cref="Problem"/>.</summary>
    /// <param name="done">Called with the number of pictures that were looked at, from any thread.</param>
    /// <param name="cancellation">Ends it.</param>
    public void Load(Action<int> done, CancellationToken cancellation)
    {
        _used = _pictures.Sum(p => (long)(p.Square?.Length ?? 0));
        var room = Math.Max(0, memory - _used) / SquareBytes;
        var count = 0;
        Parallel.For(0, _pictures.Count, new() { CancellationToken = cancellation, MaxDegreeOfParallelism = Environment.ProcessorCount }, i =>
        {
            var picture = _pictures[i];
            try
            {
                var square = picture.Square ?? Decode(picture);
                picture.Hash = SHA256.HashData(square);
                if (i < room) picture.Square = square;
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException or NotSupportedException)
            {
                picture.Problem = e;
            }
            done(Interlocked.Increment(ref count));
        });
    }

    /// <summary>Why the picture cannot be read; null where it can.</summary>
    public Exception? Problem(int index) => _pictures[index].Problem;

    public (int Width, int Height) Size(int index) => (_pictures[index].Width, _pictures[index].Height);

    public string? Path(int index) => _pictures[index].Path;

    /// <summary>SHA-256 of the squashed pixels.</summary>
    public byte[] Hash(int index) => _pictures[index].Hash;

    /// <summary>Whether the squashed pixels are in memory.</summary>
    public bool IsKept(int index) => _pictures[index].Square is not null;

    /// <summary>The squashed pixels, [size, size, 3]. Not to be changed. From any thread.</summary>
    public byte[] Square(int index)
    {
        var picture = _pictures[index];
        if (picture.Square is { } kept) return kept;
        var (width, height, hash) = (picture.Width, picture.Height, picture.Hash);
        var square = Decode(picture);
        if ((picture.Width, picture.Height) != (width, height) || !SHA256.HashData(square).AsSpan().SequenceEqual(hash))
            throw new TrainingException($"'{picture.Path}' was changed while a model was trained on it. Train again from the beginning, or bring the file back and go on.");
        return square;
    }

    private int Add(string key, Func<Picture> make)
    {
        if (_indices.TryGetValue(key, out var index)) return index;
        _pictures.Add(make());
        return _indices[key] = _pictures.Count - 1;
    }

    private byte[] Decode(Picture picture)
    {
        using var image = picture.File is { } file ? DecodedImage.Decode(file, options)
            : picture.Path!.Length > 0 ? DecodedImage.Decode(picture.Path, options)
            : throw new ImageException("image column", "found an empty path; expected that of an image file.");
        (picture.Width, picture.Height) = (image.Width, image.Height);
        return processor.Resize(image);
    }

    private sealed class Picture
    {
        public string? Path { get; init; }

        public byte[]? File { get; init; }

        public byte[]? Square { get; set; }

        public byte[] Hash { get; set; } = [];

        public int Width { get; set; }

        public int Height { get; set; }

        public Exception? Problem { get; set; }
    }
}
