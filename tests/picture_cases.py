"""Files of every kind that people have, each with the reader that judges it; none of them is the reader under test."""

import collections
import itertools

import imagecodecs
import numpy as np
import pyvips
import tifffile
from PIL import Image

# judge: function of the path to the pixels as they are to be read, or None where the file is to be refused by name.
# device: what the device's reader makes of it: "same" (rounded to 8 bit), "high" (colour's high byte), or "refused".
Case = collections.namedtuple("Case", ["name", "suffix", "write", "judge", "device", "tolerance"])
SHAPE = (24, 32)


def values(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def vips(path):
    """libvips, with libtiff, libspng, libjpeg, libwebp and libheif of its own build."""
    pixels = pyvips.Image.new_from_file(str(path)).autorot().numpy()
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def vips_inks(path):
    """libvips reads the inks; Pillow's plain formula makes RGB of them."""
    inks = np.ascontiguousarray(vips(path))
    return np.asarray(Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()).convert("RGB"))


def codec(decode):
    """A decoder of imagecodecs."""
    return lambda path: np.asarray(decode(path.read_bytes()))


def raw(kind, pixels):
    """A Netpbm file, and its values as they were put in."""
    largest = np.iinfo(pixels.dtype).max
    header = f"{kind} {pixels.shape[1]} {pixels.shape[0]} {largest}\n".encode()
    data = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    return lambda path: path.write_bytes(header + data), lambda path: pixels


def by_tifffile(pixels, **options):
    return lambda path: tifffile.imwrite(path, pixels, **options)


def by_pillow(picture, **options):
    return lambda path: picture.save(path, **options)


def by_codec(encode, *arguments, **options):
    return lambda path: path.write_bytes(encode(*arguments, **options))


def turned(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def tiff_layouts():
    kinds = {
        "gray": (SHAPE, {"photometric": "minisblack"}),
        "white": (SHAPE, {"photometric": "miniswhite"}),
        "rgb": ((*SHAPE, 3), {"photometric": "rgb"}),
        "planes": ((3, *SHAPE), {"photometric": "rgb", "planarconfig": "separate"}),
    }
    for (kind, (shape, options)), dtype, order, packed in itertools.product(
        kinds.items(), (np.uint8, np.uint16), "<>", (None, "lzw", "zlib", "packbits")
    ):
        device = "same" if dtype == np.uint8 or kind == "gray" else "refused"
        name = f"tiff {kind} {np.dtype(dtype)} {order} {packed}"
        write = by_tifffile(values(*shape, dtype=dtype), byteorder=order, compression=packed, **options)
        yield Case(name, ".tif", write, vips, device, 0)
    for (kind, (shape, options)), dtype in itertools.product(kinds.items(), (np.uint8, np.uint16)):
        if kind == "planes":
            continue
        device = "same" if dtype == np.uint8 or kind == "gray" else "refused"
        for name, more in (("tiles", {"tile": (16, 16)}), ("big", {"bigtiff": True})):
            write = by_tifffile(values(*shape, dtype=dtype), **options, **more)
            yield Case(f"tiff {kind} {np.dtype(dtype)} {name}", ".tif", write, vips, device, 0)


def tiff_kinds():
    for channels, dtype in itertools.product((2, 4), (np.uint8, np.uint16)):
        pixels = values(*SHAPE, channels, dtype=dtype)
        photometric = "rgb" if channels == 4 else "minisblack"
        write = by_tifffile(pixels, photometric=photometric, planarconfig="contig", extrasamples=["unassalpha"])
        device = "same" if dtype == np.uint8 else "refused"
        yield Case(f"tiff alpha {channels} {np.dtype(dtype)}", ".tif", write, vips, device, 0)
    colors = np.moveaxis(values(3, 256, dtype=np.uint16), 0, 0) // 257 * 257
    write = by_tifffile(values(*SHAPE), photometric="palette", colormap=colors)
    yield Case("tiff palette", ".tif", write, vips, "same", 0)
    bits = Image.fromarray(values(*SHAPE) > 127)
    for packed, white in itertools.product((None, "group3", "group4", "packbits"), (0, 1)):
        write = by_pillow(bits, compression=packed, tiffinfo={262: white})
        yield Case(f"tiff bilevel {packed} {white}", ".tif", write, vips, "same", 0)
    write = by_tifffile(values(*SHAPE, 4), photometric="separated")
    yield Case("tiff cmyk", ".tif", write, vips_inks, "same", 0)
    lab = by_tifffile(values(*SHAPE, 3) // 8 + 100, photometric="cielab")
    yield Case("tiff lab", ".tif", lab, vips_lab, "refused", 3)
    for dtype in (np.float16, np.float32, np.float64, np.int8, np.int16, np.int32):
        write = by_tifffile(np.full(SHAPE, -0.5 if np.dtype(dtype).kind == "f" else -1, dtype))
        yield Case(f"tiff {np.dtype(dtype)}", ".tif", write, None, "refused", 0)


def vips_lab(path):
    """The values that tifffile finds, through libvips's own colour management."""
    lab = tifffile.imread(path)
    stored = np.dstack([lab[..., 0] / 2.55, lab[..., 1].view(np.int8), lab[..., 2].view(np.int8)]).astype(np.float32)
    image = pyvips.Image.new_from_array(stored, interpretation="lab")
    return image.icc_export(output_profile="srgb", depth=8, intent="relative").numpy()


def turned_files():
    inks = Image.frombytes("CMYK", SHAPE[::-1], values(*SHAPE, 4).tobytes())
    pictures = {
        "gray": (Image.fromarray(values(*SHAPE)), {}, vips),
        "deep": (Image.fromarray(values(*SHAPE, dtype=np.uint16)), {}, vips),
        "rgb lzw": (Image.fromarray(values(*SHAPE, 3)), {"compression": "tiff_lzw"}, vips),
        "cmyk": (inks, {}, vips_inks),
    }
    for (name, (picture, options, judge)), orientation in itertools.product(pictures.items(), range(1, 9)):
        write = by_pillow(picture, exif=turned(orientation), **options)
        yield Case(f"tiff turned {name} {orientation}", ".tif", write, judge, "same", 0)
    smooth = Image.fromarray(values(*SHAPE, 3)).resize(SHAPE[::-1], box=(0, 0, 4, 4))
    for orientation in range(1, 9):
        write = by_pillow(smooth, exif=turned(orientation), quality=90)
        yield Case(f"jpeg turned {orientation}", ".jpg", write, vips, "same", 1)


def other_formats():
    for channels in (1, 2, 3, 4):
        shape = SHAPE if channels == 1 else (*SHAPE, channels)
        for dtype, device in ((np.uint8, "same"), (np.uint16, "same" if channels == 1 else "high")):
            write = by_codec(imagecodecs.png_encode, values(*shape, dtype=dtype))
            yield Case(f"png {channels} {np.dtype(dtype)}", ".png", write, vips, device, 0)
    palette = Image.fromarray(values(*SHAPE, 3)).quantize(17)
    yield Case("png palette", ".png", by_pillow(palette), vips, "same", 0)
    yield Case("png transparent palette", ".png", by_pillow(palette, transparency=3), vips, "same", 0)
    yield Case("png bilevel", ".png", by_pillow(Image.fromarray(values(*SHAPE) > 127)), vips, "same", 0)
    smooth = Image.fromarray(values(*SHAPE, 3)).resize(SHAPE[::-1], box=(0, 0, 4, 4))
    for name, options in (
        ("444", {"subsampling": 0}),
        ("420", {"subsampling": 2}),
        ("progressive", {"progressive": 1}),
    ):
        yield Case(f"jpeg {name}", ".jpg", by_pillow(smooth, **options), vips, "same", 1)
    yield Case("jpeg gray", ".jfif", by_pillow(smooth.convert("L"), format="JPEG"), vips, "same", 1)
    for channels in (3, 4):
        write = by_codec(imagecodecs.webp_encode, values(*SHAPE, channels), lossless=True)
        yield Case(f"webp {channels}", ".webp", write, codec(imagecodecs.webp_decode), "same", 0)
    yield Case("webp lossy", ".webp", by_pillow(smooth, quality=80), vips, "same", 1)
    for name, picture in (("gray", values(*SHAPE)), ("rgb", values(*SHAPE, 3))):
        write = by_pillow(Image.fromarray(picture))
        yield Case(f"bmp {name}", ".bmp", write, codec(imagecodecs.bmp_decode), "same", 0)
    yield Case("gif", ".gif", by_pillow(palette), lambda path: vips(path)[..., :3], "same", 0)
    yield Case("avif", ".avif", by_pillow(smooth), codec(imagecodecs.avif_decode), "refused", 0)
    for kind, shape in (("P5", SHAPE), ("P6", (*SHAPE, 3))):
        for dtype in (np.uint8, np.uint16):
            write, judge = raw(kind, values(*shape, dtype=dtype))
            device = "same" if dtype == np.uint8 or kind == "P5" else "high"
            yield Case(f"netpbm {kind} {np.dtype(dtype)}", ".ppm", write, judge, device, 0)


CASES = [*tiff_layouts(), *tiff_kinds(), *turned_files(), *other_formats()]
