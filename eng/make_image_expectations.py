#!/usr/bin/env python3
"""Makes tests/data/images: small pictures of every kind that the decoder reads, and the pixels that Pillow sees in them.

    /usr/bin/python3 eng/make_image_expectations.py      (Pillow 9.4 or newer; Debian: apt-get install python3-pil)

    decode/NAME.EXT, decode/NAME.ppm     a file, and its pixels: upright, alpha on white, 8-bit RGB
    resize/WxH-to-S.in.ppm, .out.ppm     a picture, and Pillow's bilinear resize of it to S x S
    resize/large-WxH-to-S.out.ppm        the same of a picture that a formula makes

The tests read the files and need no Python. Where Pillow cannot give the answer (16-bit pixels: it keeps the high byte
of colour and clips grey), the pixels come from the numbers that were written into the file.
"""
import io, pathlib, random, shutil, struct, zlib
from PIL import Image, ImageCms, ImageOps

root = pathlib.Path(__file__).resolve().parent.parent / "tests/data/images"
W, H = 17, 11


def picture(w, h, bands, seed, low=0):
    """Slopes with noise: smooth enough for JPEG, different enough in every pixel and band."""
    r = random.Random(seed)
    def value(x, y, b):
        slope = (x * 255 // max(w - 1, 1), y * 255 // max(h - 1, 1), (x + y) * 255 // max(w + h - 2, 1), (x * 40 + y * 9) % 256)[b]
        return max(low, min(255, slope + r.randint(-12, 12)))
    return bytes(value(x, y, b) for y in range(h) for x in range(w) for b in range(bands))


RGB = Image.frombytes("RGB", (W, H), picture(W, H, 3, 1))
RGBA = Image.frombytes("RGBA", (W, H), picture(W, H, 4, 2))
GREY = Image.frombytes("L", (W, H), picture(W, H, 1, 3))
GREY_ALPHA = Image.frombytes("LA", (W, H), picture(W, H, 2, 4))


def on_white(image):
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def ppm(path, image):
    path.write_bytes(b"P6\n%d %d\n255\n" % image.size + image.tobytes())


def write(name, data, expected=None):
    (root / "decode" / name).write_bytes(data)
    if expected is None:
        expected = on_white(Image.open(io.BytesIO(data)))
    ppm((root / "decode" / name).with_suffix(".ppm"), expected)


def save(name, image, **options):
    buffer = io.BytesIO()
    expected = options.pop("expected", None)
    image.save(buffer, name.rsplit(".")[-1].replace("jpg", "jpeg"), **options)
    write(name, buffer.getvalue(), expected)


def png(w, h, depth, colour, rows, chunks=(), interlaced=False):
    """A PNG from packed rows; Pillow writes no 16-bit colour, no Adam7 and no gAMA."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    raw = b"".join(b"\0" + r for r in rows)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, int(interlaced)))
            + b"".join(chunk(k, d) for k, d in chunks) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b""))


def samples(bands, seed):
    r = random.Random(seed)
    return [[[r.randint(0, 65535) for _ in range(bands)] for _ in range(W)] for _ in range(H)]


def rows16(values):
    return [b"".join(struct.pack(">H", v) for pixel in row for v in pixel) for row in values]


def high(values, bands):
    return Image.frombytes({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[bands], (W, H), bytes(v >> 8 for row in values for p in row for v in p))


def adam7(pixels, w, h, bands):
    out = []
    for x0, y0, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):
        for y in range(y0, h, dy):
            row = b"".join(pixels[(y * w + x) * bands:(y * w + x + 1) * bands] for x in range(x0, w, dx))
            if row:
                out.append(row)
    return out


def swapped_profile():
    """An sRGB profile whose red and green primaries have changed places: applied, it is seen at once."""
    p = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    p[24:36] = struct.pack(">6H", 2020, 1, 1, 0, 0, 0)  # not the time of this run
    tags = {bytes(p[132 + 12 * i:136 + 12 * i]): 132 + 12 * i for i in range(struct.unpack(">I", p[128:132])[0])}
    r, g = tags[b"rXYZ"], tags[b"gXYZ"]
    p[r + 4:r + 12], p[g + 4:g + 12] = p[g + 4:g + 12], p[r + 4:r + 12]
    return bytes(p)


def bmp(w, h, bits, data, palette=b"", compression=0, masks=b""):
    offset = 14 + 40 + len(masks) + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, w, h, 1, bits, compression, len(data), 2835, 2835, len(palette) // 4, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + info + masks + palette + data


def rle8(indices, w, h):
    out = bytearray()
    for y in reversed(range(h)):
        x = 0
        while x < w:
            run = 1
            while x + run < w and run < 255 and indices[y * w + x + run] == indices[y * w + x]:
                run += 1
            out += bytes((run, indices[y * w + x]))
            x += run
        out += b"\0\0"
    return bytes(out + b"\0\1")


def exif(orientation):
    e = Image.Exif()
    e[0x0112] = orientation
    return e


shutil.rmtree(root / "decode", ignore_errors=True)
shutil.rmtree(root / "resize", ignore_errors=True)
(root / "decode").mkdir(parents=True)
(root / "resize").mkdir()
profile = swapped_profile()

save("jpeg-444.jpg", RGB, quality=90, subsampling=0)
save("jpeg-422.jpg", RGB, quality=90, subsampling=1)
save("jpeg-420.jpg", RGB, quality=80, subsampling=2)
save("jpeg-progressive.jpg", RGB, quality=80, progressive=True)
save("jpeg-grey.jpg", GREY, quality=85)
save("jpeg-cmyk.jpg", Image.frombytes("CMYK", (W, H), picture(W, H, 4, 5)), quality=90)
save("jpeg-profile.jpg", RGB, quality=90, icc_profile=profile)
for i in range(1, 9):
    save(f"jpeg-orientation-{i}.jpg", RGB, quality=75, exif=exif(i))
save("png-rgb.png", RGB)
save("png-rgba.png", RGBA)
save("png-grey.png", GREY)
save("png-grey-alpha.png", GREY_ALPHA)
save("png-black-white.png", GREY.convert("1"))
save("png-palette.png", RGB.quantize(32))
save("png-palette-4-bits.png", RGB.quantize(13), bits=4)
save("png-palette-transparent.png", RGB.quantize(32), transparency=bytes((i * 37) % 256 for i in range(32)))
save("png-colour-key.png", RGB, transparency=RGB.getpixel((3, 4)))
save("png-profile.png", RGB, icc_profile=profile)
save("png-orientation-6.png", RGB, exif=exif(6))
rgb_rows = [RGB.tobytes()[y * W * 3:(y + 1) * W * 3] for y in range(H)]
write("png-gamma.png", png(W, H, 8, 2, rgb_rows, [(b"gAMA", struct.pack(">I", 100000))]), RGB)
write("png-interlaced.png", png(W, H, 8, 2, adam7(RGB.tobytes(), W, H, 3), interlaced=True), RGB)
for bands, colour, name in ((1, 0, "grey"), (2, 4, "grey-alpha"), (3, 2, "rgb"), (4, 6, "rgba")):
    v = samples(bands, 10 + bands)
    write(f"png-16-{name}.png", png(W, H, 16, colour, rows16(v)), on_white(high(v, bands)))
v = samples(3, 20)
write("png-16-gamma.png", png(W, H, 16, 2, rows16(v), [(b"gAMA", struct.pack(">I", 100000))]), high(v, 3))
for bits in (2, 4):
    levels = [[min(2 ** bits - 1, GREY.getpixel((x, y)) >> (8 - bits)) for x in range(W)] for y in range(H)]
    packed = []
    for row in levels:
        n = 0
        for q in row + [0] * (-W % (8 // bits)):
            n = n << bits | q
        packed.append(n.to_bytes((W * bits + 7) // 8, "big"))
    grey = Image.frombytes("L", (W, H), bytes(q * 255 // (2 ** bits - 1) for row in levels for q in row))
    write(f"png-grey-{bits}-bits.png", png(W, H, bits, 0, packed), grey.convert("RGB"))
save("webp-lossy.webp", RGB, quality=80)
save("webp-lossless.webp", RGB, lossless=True)
save("webp-lossy-alpha.webp", RGBA, quality=80)
save("webp-lossless-alpha.webp", RGBA, lossless=True, exact=True)
save("webp-orientation-8.webp", RGB, lossless=True, exif=exif(8))
save("webp-profile.webp", RGB, lossless=True, icc_profile=profile)
save("webp-animated.webp", RGB, lossless=True, save_all=True, append_images=[RGB.transpose(Image.FLIP_LEFT_RIGHT)], duration=50)
save("gif-palette.gif", RGB.quantize(32), interlace=0)
save("gif-interlaced.gif", RGB.quantize(32), interlace=1)
save("gif-transparent.gif", RGB.quantize(32), transparency=5)
save("gif-animated.gif", RGB.quantize(32), save_all=True, append_images=[RGB.transpose(Image.FLIP_LEFT_RIGHT).quantize(32)], duration=50)
save("bmp-24.bmp", RGB)
save("bmp-8.bmp", RGB.quantize(32))
save("bmp-1.bmp", GREY.convert("1"))
save("bmp-grey.bmp", GREY)
blue = RGB.tobytes("raw", "BGR")
pad = b"\0" * (-W * 3 % 4)
write("bmp-top-down.bmp", bmp(W, -H, 24, b"".join(blue[y * W * 3:(y + 1) * W * 3] + pad for y in range(H))))
write("bmp-32.bmp", bmp(W, -H, 32, RGB.tobytes("raw", "BGRX")))
q = RGB.quantize(16)
colours = b"".join(bytes((b, g, r, 0)) for r, g, b in zip(*[iter(q.getpalette()[:48])] * 3))
write("bmp-rle8.bmp", bmp(W, H, 8, rle8(q.tobytes(), W, H), colours, 1), q.convert("RGB"))
write("bmp-565.bmp", bmp(W, -H, 16, b"".join(struct.pack("<%dH" % (W + 1), *[(RGB.getpixel((x, y))[0] >> 3) << 11 | (RGB.getpixel((x, y))[1] >> 2) << 5
      | RGB.getpixel((x, y))[2] >> 3 for x in range(W)], 0) for y in range(H)), b"", 3, struct.pack("<III", 0xF800, 0x7E0, 0x1F)))

for w, h, size in ((1, 1, 5), (1, 40, 16), (40, 1, 16), (2, 2, 1), (7, 5, 24), (12, 12, 12), (12, 30, 12), (23, 21, 20), (25, 19, 14), (200, 3, 16), (3, 200, 16)):
    r = random.Random(w * 1000 + h)
    source = Image.frombytes("RGB", (w, h), bytes(r.randint(0, 255) for _ in range(w * h * 3)))
    ppm(root / "resize" / f"{w}x{h}-to-{size}.in.ppm", source)
    ppm(root / "resize" / f"{w}x{h}-to-{size}.out.ppm", source.resize((size, size), Image.BILINEAR))

# One that is large, and resized to more rows than one block; the tests make its pixels by the same formula.
w, h, size = 1100, 700, 66
source = Image.frombytes("RGB", (w, h), bytes((x * x * 3 + y * y * (c + 2) + x * y) >> 4 & 255 for y in range(h) for x in range(w) for c in range(3)))
ppm(root / "resize" / f"large-{w}x{h}-to-{size}.out.ppm", source.resize((size, size), Image.BILINEAR))

(root / ".gitattributes").write_text("# The bytes matter.\n*.* -text\n")
