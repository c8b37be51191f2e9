using System.Buffers.Binary;
using System.Globalization;
using System.Text;
using MambaVL.Images;

namespace MambaVL.Tests.Images;

[Collection(Alone.Name)] // measures the memory of the process
public sealed class DecodedImageTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("images-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    public static TheoryData<string> Files() => [.. Pictures.Decodable];

    [Theory, MemberData(nameof(Files))]
    public void EveryKindOfFileHasPillowsPixels(string name)
    {
        var (w, h, expected) = Pictures.Expected(name);
        using var image = DecodedImage.Decode(Pictures.File(name));
        (image.Width, image.Height).Should().Be((w, h));
        // Skia widens 5 and 6 bits to 8 another way than Pillow; both are within rounding.
        var tolerance = name == "bmp-565.bmp" ? 1 : 0;
        Pictures.Difference(image.Pixels, expected).Greatest.Should().BeLessThanOrEqualTo(tolerance);
    }

    [Theory, MemberData(nameof(Files))]
    public void PathBytesAndStreamsGiveTheSame(string name)
    {
        var bytes = Pictures.Bytes(name);
        using var expected = DecodedImage.Decode(Pictures.File(name));
        using var fromBytes = DecodedImage.Decode(bytes);
        using var fromStream = DecodedImage.Decode(new OneWayStream(bytes));
        using var inTheMiddle = new MemoryStream([1, 2, 3, .. bytes]) { Position = 3 };
        using var fromMiddle = DecodedImage.Decode(inTheMiddle);
        foreach (var image in (DecodedImage[])[fromBytes, fromStream, fromMiddle])
        {
            image.Pixels.SequenceEqual(expected.Pixels).Should().BeTrue();
            (image.Width, image.Height, image.Orientation).Should().Be((expected.Width, expected.Height, expected.Orientation));
        }
        inTheMiddle.CanRead.Should().BeTrue("the stream is the caller's");
    }

    [Fact]
    public void ACanvasAroundTheFirstFrameIsWhite()
    {
        var (w, h, frame) = Pictures.Expected("gif-palette.gif");
        using var image = DecodedImage.Decode(WithSize(Pictures.Bytes("gif-palette.gif"), "gif-palette.gif", w + 3, h + 2));
        (image.Width, image.Height).Should().Be((w + 3, h + 2));
        for (var y = 0; y < h + 2; y++)
        {
            var row = image.Pixels.Slice(y * (w + 3) * 3, (w + 3) * 3).ToArray();
            var inside = y < h ? w * 3 : 0;
            row[..inside].Should().Equal(frame.AsSpan(y < h ? y * w * 3 : 0, inside).ToArray());
            row[inside..].Should().OnlyContain(v => v == 255);
        }
    }

    [Theory]
    [InlineData("jpeg-orientation-1.jpg", 1)]
    [InlineData("jpeg-orientation-2.jpg", 2)]
    [InlineData("jpeg-orientation-3.jpg", 3)]
    [InlineData("jpeg-orientation-4.jpg", 4)]
    [InlineData("jpeg-orientation-5.jpg", 5)]
    [InlineData("jpeg-orientation-6.jpg", 6)]
    [InlineData("jpeg-orientation-7.jpg", 7)]
    [InlineData("jpeg-orientation-8.jpg", 8)]
    [InlineData("png-orientation-6.png", 6)]
    [InlineData("webp-orientation-8.webp", 8)]
    public void OrientationCanBeTurnedOff(string name, int orientation)
    {
        using var upright = DecodedImage.Decode(Pictures.File(name));
        using var stored = DecodedImage.Decode(Pictures.File(name), new() { ApplyOrientation = false });
        upright.Orientation.Should().Be(orientation);
        stored.Orientation.Should().Be(1);
        (stored.Width > stored.Height).Should().BeTrue();
        (upright.Width > upright.Height).Should().Be(orientation < 5);
        upright.Pixels.SequenceEqual(stored.Pixels).Should().Be(orientation == 1);
    }

    [Fact]
    public void OrientationTurnsPicturesLargerThanATile()
    {
        const int W = 70, H = 45;
        var pixels = new byte[W * H * 4];
        new Random(1).NextBytes(pixels);
        for (var i = 3; i < pixels.Length; i += 4) pixels[i] = 255;
        var straight = new byte[W * H * 3];
        PixelConversion.ToRgb(pixels, W, H, straight, 1, opaque: true, swapRedAndBlue: false);
        for (var orientation = 1; orientation <= 8; orientation++)
        {
            var turned = new byte[W * H * 3];
            PixelConversion.ToRgb(pixels, W, H, turned, orientation, opaque: true, swapRedAndBlue: false);
            var (w, h) = orientation >= 5 ? (H, W) : (W, H);
            for (var y = 0; y < h; y++)
                for (var x = 0; x < w; x++)
                {
                    // EXIF's definition: where the stored row 0 and column 0 are shown.
                    var (sx, sy) = orientation switch
                    {
                        1 => (x, y), 2 => (W - 1 - x, y), 3 => (W - 1 - x, H - 1 - y), 4 => (x, H - 1 - y),
                        5 => (y, x), 6 => (y, H - 1 - x), 7 => (W - 1 - y, H - 1 - x), _ => (W - 1 - y, x),
                    };
                    if (!turned.AsSpan((y * w + x) * 3, 3).SequenceEqual(straight.AsSpan((sy * W + sx) * 3, 3)))
                        Assert.Fail($"orientation {orientation}: pixel ({x}, {y}) is not the stored ({sx}, {sy})");
                }
        }
    }

    [Fact]
    public void AlphaOnWhiteIsRoundedExactly()
    {
        var pixels = new byte[256 * 256 * 4];
        for (var i = 0; i < 256 * 256; i++) (pixels[i * 4], pixels[i * 4 + 1], pixels[i * 4 + 3]) = ((byte)i, (byte)(255 - i), (byte)(i >> 8));
        using var image = DecodedImage.FromPixels(256, 256, pixels, PixelLayout.Rgba);
        for (var i = 0; i < 256 * 256; i++)
        {
            int c = i & 255, a = i >> 8;
            var expected = ((byte)Math.Round((c * a + 255m * (255 - a)) / 255m), (byte)Math.Round(((255 - c) * a + 255m * (255 - a)) / 255m));
            if ((image.Pixels[i * 3], image.Pixels[i * 3 + 1]) != expected) Assert.Fail($"colour {c}, alpha {a}: found {image.Pixels[i * 3]}, expected {expected.Item1}");
        }
    }

    [Fact]
    public void RawPixelsComeInThreeLayouts()
    {
        using var rgb = DecodedImage.FromPixels(2, 1, [1, 2, 3, 4, 5, 6]);
        using var rgba = DecodedImage.FromPixels(2, 1, [1, 2, 3, 255, 4, 5, 6, 255], PixelLayout.Rgba);
        using var bgra = DecodedImage.FromPixels(2, 1, [3, 2, 1, 255, 6, 5, 4, 255], PixelLayout.Bgra);
        using var clear = DecodedImage.FromPixels(1, 2, [9, 9, 9, 0, 9, 9, 9, 255], PixelLayout.Bgra);
        rgb.Pixels.ToArray().Should().Equal(1, 2, 3, 4, 5, 6);
        rgba.Pixels.ToArray().Should().Equal(1, 2, 3, 4, 5, 6);
        bgra.Pixels.ToArray().Should().Equal(1, 2, 3, 4, 5, 6);
        clear.Pixels.ToArray().Should().Equal(255, 255, 255, 9, 9, 9);
        (clear.Width, clear.Height, clear.Orientation).Should().Be((1, 2, 1));
    }

    [Fact]
    public void RawPixelsMustFit()
    {
        Action(() => DecodedImage.FromPixels(0, 1, [])).Should().Throw<ArgumentOutOfRangeException>();
        Action(() => DecodedImage.FromPixels(1, -1, [])).Should().Throw<ArgumentOutOfRangeException>();
        Action(() => DecodedImage.FromPixels(2, 2, new byte[11])).Should().Throw<ArgumentException>().WithMessage("Found 11 bytes; expected 12 (2 x 2 x 3)*");
        Action(() => DecodedImage.FromPixels(2, 2, new byte[12], PixelLayout.Bgra)).Should().Throw<ArgumentException>().WithMessage("*expected 16*");
        Action(() => DecodedImage.FromPixels(int.MaxValue, int.MaxValue, new byte[12])).Should().Throw<ArgumentOutOfRangeException>();
        Action(() => DecodedImage.FromPixels(1, 1, new byte[3], (PixelLayout)7)).Should().Throw<ArgumentOutOfRangeException>();
    }

    [Theory, MemberData(nameof(Files))]
    public void AFileThatEndsTooEarlyIsRefused(string name)
    {
        var bytes = Pictures.Bytes(name);
        var needed = LastNeeded(name, bytes);
        for (var length = 0; length < needed; length++)
        {
            try
            {
                DecodedImage.Decode(bytes.AsSpan(0, length)).Dispose();
                Assert.Fail($"{length} of {bytes.Length} bytes were enough");
            }
            catch (ImageException)
            {
                // as it should be
            }
        }
    }

    /// <summary>What may be missing at the end: end marks, padding, metadata, and later frames.</summary>
    private static int LastNeeded(string name, byte[] bytes) => Path.GetExtension(name) switch
    {
        ".png" => bytes.AsSpan().IndexOf("IDAT"u8) + 8,
        ".jpg" => bytes.Length - 16,
        ".webp" => name == "webp-animated.webp" ? 100 : bytes.Length / 2,
        ".gif" => name == "gif-animated.gif" ? 300 : bytes.Length - 16,
        _ => bytes.Length - 8,
    };

    [Fact]
    public void ErrorsNameTheSourceAndWhatWasFound()
    {
        var path = Path.Combine(_folder, "torn.png");
        File.WriteAllBytes(path, Pictures.Bytes("png-rgb.png")[..200]);
        Action(() => DecodedImage.Decode(path)).Should().Throw<ImageException>()
            .Where(e => e.ImageName == path && e.Message.StartsWith(path + ": found a PNG picture of") && e.Message.Contains("truncated"));
        Action(() => DecodedImage.Decode([1, 2, 3], name: "row 7")).Should().Throw<ImageException>()
            .WithMessage("row 7: found 3 bytes that begin with 010203, the start of no image format; expected a JPEG, PNG, WebP, GIF or BMP picture.");
        Action(() => DecodedImage.Decode(ReadOnlySpan<byte>.Empty)).Should().Throw<ImageException>().WithMessage("image data: found no bytes at all*");
        Action(() => DecodedImage.Decode(new MemoryStream())).Should().Throw<ImageException>().WithMessage("stream: found no bytes at all*");
        Action(() => DecodedImage.Decode(_folder)).Should().Throw<ImageException>().WithMessage("*found a folder; expected an image file.");
        Action(() => DecodedImage.Decode(Path.Combine(_folder, "absent.png"))).Should().Throw<FileNotFoundException>();
        Action(() => DecodedImage.Decode("")).Should().Throw<ArgumentException>();
        Action(() => DecodedImage.Decode((Stream)null!)).Should().Throw<ArgumentNullException>();
    }

    public static TheoryData<string, byte[]> OtherFormats() => new()
    {
        { "TIFF", [.. "II*\0"u8, 8, 0, 0, 0] },
        { "TIFF", [.. "MM\0*"u8, 0, 0, 0, 8] },
        { "HEIC", [0, 0, 0, 24, .. "ftypheic"u8] },
        { "HEIC", [0, 0, 0, 24, .. "ftypmif1"u8] },
        { "AVIF", [0, 0, 0, 24, .. "ftypavif"u8] },
        { "MP4", [0, 0, 0, 24, .. "ftypisom"u8] },
        { "SVG", [.. "<?xml version=\"1.0\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\"/>"u8] },
        { "SVG", [0xEF, 0xBB, 0xBF, .. "  <svg>"u8] },
        { "HTML", [.. "<!DOCTYPE html><title>404</title>"u8] },
        { "XML", [.. "<?xml version=\"1.0\"?><a/>"u8] },
        { "ICO", [0, 0, 1, 0, 1, 0] },
        { "JPEG 2000", [0, 0, 0, 12, .. "jP  \r\n"u8] },
        { "JPEG XL", [0xFF, 0x0A, 0] },
        { "Photoshop", [.. "8BPS\0\x01"u8] },
        { "PDF", [.. "%PDF-1.7"u8] },
        { "ZIP", [.. "PK\x03\x04"u8] },
        { "gzip", [0x1F, 0x8B, 8] },
        { "PNM", [.. "P6\n2 2\n255\n"u8] },
        { "Git LFS pointer", [.. "version https://git-lfs.github.com/spec/v1\n"u8] },
    };

    [Theory, MemberData(nameof(OtherFormats))]
    public void OtherFormatsAreNamed(string format, byte[] data) =>
        Action(() => DecodedImage.Decode(data)).Should().Throw<ImageException>()
            .WithMessage($"image data: found {format}; expected JPEG, PNG, WebP, GIF or BMP. Convert the picture to one of these.");

    [Theory]
    [InlineData("jpeg-444.jpg")]
    [InlineData("jpeg-progressive.jpg")]
    [InlineData("png-rgb.png")]
    [InlineData("webp-lossy.webp")]
    [InlineData("webp-lossless.webp")]
    [InlineData("gif-palette.gif")]
    [InlineData("bmp-24.bmp")]
    [InlineData("bmp-rle8.bmp")]
    public void AHugePictureIsRefusedFromItsHeader(string name)
    {
        var huge = WithSize(Pictures.Bytes(name), name, 16_000, 16_000);
        var before = Native();
        Action(() => DecodedImage.Decode(huge)).Should().Throw<ImageException>()
            .WithMessage("*found 16000 x 16000 = 256,000,000 pixels in the * header; expected at most 178,956,970.*MaxPixels.");
        (Native() - before).Should().BeLessThan(100L << 20, "nothing of the picture's size was allocated");
        // Within the pixel limit, but no file of this length can hold so much: known from the header, too (WebP can).
        if (name.StartsWith("webp")) return;
        Action(() => DecodedImage.Decode(WithSize(Pictures.Bytes(name), name, 12_000, 12_000))).Should().Throw<ImageException>()
            .WithMessage("*found 12000 x 12000 pixels in the * header of a file of * bytes, which cannot hold them*");
    }

    private static long Native() => Environment.WorkingSet;

    /// <summary>The file with another size in its header.</summary>
    private static byte[] WithSize(byte[] file, string name, int w, int h)
    {
        var f = (byte[])file.Clone();
        switch (Path.GetExtension(name))
        {
            case ".png":
                BinaryPrimitives.WriteInt32BigEndian(f.AsSpan(16), w);
                BinaryPrimitives.WriteInt32BigEndian(f.AsSpan(20), h);
                BinaryPrimitives.WriteUInt32BigEndian(f.AsSpan(29), Crc32(f.AsSpan(12, 17)));
                break;
            case ".jpg":
                var i = 2;
                while (f[i + 1] is not (0xC0 or 0xC2)) i += 2 + BinaryPrimitives.ReadUInt16BigEndian(f.AsSpan(i + 2));
                BinaryPrimitives.WriteUInt16BigEndian(f.AsSpan(i + 5), (ushort)h);
                BinaryPrimitives.WriteUInt16BigEndian(f.AsSpan(i + 7), (ushort)w);
                break;
            case ".gif":
                BinaryPrimitives.WriteUInt16LittleEndian(f.AsSpan(6), (ushort)w);
                BinaryPrimitives.WriteUInt16LittleEndian(f.AsSpan(8), (ushort)h);
                break;
            case ".bmp":
                BinaryPrimitives.WriteInt32LittleEndian(f.AsSpan(18), w);
                BinaryPrimitives.WriteInt32LittleEndian(f.AsSpan(22), h);
                break;
            case ".webp" when f[15] == 'L':
                BinaryPrimitives.WriteUInt32LittleEndian(f.AsSpan(21), (uint)(w - 1 | h - 1 << 14));
                break;
            default:
                BinaryPrimitives.WriteUInt16LittleEndian(f.AsSpan(26), (ushort)w);
                BinaryPrimitives.WriteUInt16LittleEndian(f.AsSpan(28), (ushort)h);
                break;
        }
        return f;
    }

    private static uint Crc32(ReadOnlySpan<byte> data)
    {
        var crc = 0xFFFFFFFFu;
        foreach (var b in data)
        {
            crc ^= b;
            for (var i = 0; i < 8; i++) crc = (crc & 1) != 0 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
        }
        return ~crc;
    }

    [Fact]
    public void LimitsAreOptions()
    {
        var (w, h, _) = Pictures.Expected("png-rgb.png");
        var bytes = Pictures.Bytes("png-rgb.png");
        DecodedImage.Decode(bytes, new() { MaxPixels = w * h, MaxBytes = bytes.Length }).Dispose();
        Action(() => DecodedImage.Decode(bytes, new() { MaxPixels = w * h - 1 })).Should().Throw<ImageException>().WithMessage($"*expected at most {w * h - 1}.*");
        var tooLong = $"*found {bytes.Length.ToString("N0", CultureInfo.CurrentCulture)} bytes; expected at most*MaxBytes*";
        Action(() => DecodedImage.Decode(bytes, new() { MaxBytes = bytes.Length - 1 })).Should().Throw<ImageException>().WithMessage(tooLong);
        Action(() => DecodedImage.Decode(Pictures.File("png-rgb.png"), new() { MaxBytes = bytes.Length - 1 })).Should().Throw<ImageException>().WithMessage(tooLong);
        Action(() => DecodedImage.Decode(new OneWayStream(bytes), new() { MaxBytes = bytes.Length - 1 })).Should().Throw<ImageException>().WithMessage("*found more bytes*");
        Action(() => DecodedImage.Decode(new EndlessStream(), new() { MaxBytes = 1 << 20 })).Should().Throw<ImageException>().WithMessage("*found more bytes*");
        Action(() => new ImageDecoderOptions { MaxPixels = 0 }).Should().Throw<ArgumentOutOfRangeException>();
        Action(() => new ImageDecoderOptions { MaxPixels = 1L << 30 }).Should().Throw<ArgumentOutOfRangeException>();
        Action(() => new ImageDecoderOptions { MaxBytes = 0 }).Should().Throw<ArgumentOutOfRangeException>();
    }

    [Fact]
    public void AJpegOfEndlessScansIsRefused()
    {
        // Each scan header costs a few bytes and makes the decoder pass over all pixels again.
        var bytes = WithSize(Pictures.Bytes("jpeg-progressive.jpg"), "jpeg-progressive.jpg", 10_000, 10_000);
        byte[] scan = [0xFF, 0xDA, 0, 8, 1, 1, 0, 0, 63, 0, 0, 0];
        byte[] bomb = [.. bytes[..^2], .. Enumerable.Repeat(scan, 2_000).SelectMany(s => s), 0xFF, 0xD9];
        Action(() => DecodedImage.Decode(bomb)).Should().Throw<ImageException>().WithMessage("*JPEG whose scans pass over*");
    }

    [Fact]
    public void ADisposedPictureHasNoPixels()
    {
        var image = DecodedImage.Decode(Pictures.Bytes("gif-palette.gif"));
        image.Dispose();
        image.Dispose();
        Action(() => { _ = image.Pixels; return null; }).Should().Throw<ObjectDisposedException>();
        image.Width.Should().BePositive();
    }

    [Fact]
    public void AThousandDecodesKeepTheMemoryFlat()
    {
        // 300 kB of pixels each: a leak of any buffer would show as hundreds of megabytes.
        using var bitmap = new SkiaSharp.SKBitmap(320, 320);
        bitmap.Pixels = [.. Enumerable.Range(0, 320 * 320).Select(i => new SkiaSharp.SKColor((uint)(i * 40) | 0xFF000000))];
        using var encoded = bitmap.Encode(SkiaSharp.SKEncodedImageFormat.Jpeg, 80);
        var bytes = encoded.ToArray();
        var torn = bytes[..(bytes.Length / 2)];
        for (var i = 0; i < 20; i++) DecodedImage.Decode(bytes).Dispose();
        var before = Environment.WorkingSet;
        Parallel.For(0, 1000, new() { MaxDegreeOfParallelism = 2 }, i =>
        {
            if (i % 4 > 0) DecodedImage.Decode(bytes).Dispose();
            else Action(() => DecodedImage.Decode(torn)).Should().Throw<ImageException>();
        });
        (Environment.WorkingSet - before).Should().BeLessThan(100L << 20);
    }

    [Fact]
    public void DamagedFilesAreDecodedOrRefused()
    {
        // Small enough to be quick, one of each decoder's branches. Whatever comes of a damaged file, it is a picture or
        // an ImageException: the run is in one process with native decoders, so a crash of theirs fails it as well.
        string[] names = ["jpeg-420.jpg", "jpeg-progressive.jpg", "jpeg-cmyk.jpg", "jpeg-orientation-6.jpg", "png-rgba.png", "png-palette-transparent.png", "png-interlaced.png", "png-orientation-6.png", "webp-lossy-alpha.webp", "webp-lossless.webp", "webp-animated.webp", "gif-animated.gif", "gif-interlaced.gif", "bmp-8.bmp", "bmp-rle8.bmp", "bmp-565.bmp"];
        var options = new ImageDecoderOptions { MaxPixels = 1 << 20 };
        var (decoded, refused) = Damage(names, 20_000, options, seed: 11);
        decoded.Should().BePositive();
        refused.Should().BePositive();
    }

    private static (int Decoded, int Refused) Damage(string[] names, int count, ImageDecoderOptions options, int seed)
    {
        var random = new Random(seed);
        var files = names.Select(Pictures.Bytes).ToArray();
        var (decoded, refused) = (0, 0);
        for (var i = 0; i < count; i++)
        {
            var data = Mutate(files[i % files.Length], random, isPng: names[i % files.Length].EndsWith(".png"));
            try
            {
                using var image = DecodedImage.Decode(data, options);
                image.Pixels.Length.Should().Be(image.Width * image.Height * 3);
                decoded++;
            }
            catch (ImageException)
            {
                refused++;
            }
        }
        return (decoded, refused);
    }

    private static byte[] Mutate(byte[] file, Random random, bool isPng)
    {
        var data = (byte[])file.Clone();
        for (var n = random.Next(1, 5); n > 0; n--)
        {
            var at = random.Next(random.Next(2) == 0 ? Math.Min(64, data.Length) : data.Length);
            switch (random.Next(5))
            {
                case 0: data[at] = (byte)random.Next(256); break;
                case 1: data[at] ^= (byte)(1 << random.Next(8)); break;
                case 2: data[at] = random.Next(2) == 0 ? (byte)0 : (byte)255; break;
                case 3: data = [.. data.AsSpan(0, at), .. data.AsSpan(Math.Min(data.Length, at + random.Next(1, 9)))]; break;
                default: data = [.. data.AsSpan(0, at), .. data.AsSpan(at, Math.Min(data.Length - at, random.Next(1, 9))), .. data.AsSpan(at)]; break;
            }
            if (data.Length == 0) return data;
        }
        // A wrong checksum would end most damaged PNGs at once: set half of them right, to get behind that check.
        if (isPng && random.Next(2) == 0) MendChecksums(data);
        return data;
    }

    private static void MendChecksums(byte[] png)
    {
        for (long at = 8; at + 12 <= png.Length;)
        {
            long length = BinaryPrimitives.ReadUInt32BigEndian(png.AsSpan((int)at));
            if (at + 12 + length > png.Length) return;
            BinaryPrimitives.WriteUInt32BigEndian(png.AsSpan((int)(at + 8 + length)), Crc32(png.AsSpan((int)at + 4, (int)length + 4)));
            at += 12 + length;
        }
    }

    private static Action Action(Func<object?> f) => () => (f() as IDisposable)?.Dispose();

    /// <summary>Gives its bytes a few at a time, and cannot seek.</summary>
    private sealed class OneWayStream(byte[] data) : MemoryStream(data)
    {
        public override bool CanSeek => false;

        public override long Length => throw new NotSupportedException();

        public override int Read(byte[] buffer, int offset, int count) => base.Read(buffer, offset, Math.Min(count, 100));
    }

    private sealed class EndlessStream : Stream
    {
        public override bool CanRead => true;

        public override bool CanSeek => false;

        public override bool CanWrite => false;

        public override long Length => throw new NotSupportedException();

        public override long Position { get => throw new NotSupportedException(); set => throw new NotSupportedException(); }

        public override int Read(byte[] buffer, int offset, int count) => count;

        public override void Flush() { }

        public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

        public override void SetLength(long value) => throw new NotSupportedException();

        public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();
    }
}
