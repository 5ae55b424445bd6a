"""What goes along with the pixels of a file: colour profile, EXIF, XMP, resolution and PNG's chunks on colour."""

import dataclasses
import io
import re
import warnings

import png
from absl import logging
from PIL import ExifTags, Image

# Of EXIF's first directory, what describes the photograph; the rest is how its file was laid out.
_DESCRIBING = (
    *(ExifTags.Base[name] for name in ("ImageDescription", "Make", "Model", "Software", "DateTime", "Artist")),
    *(ExifTags.Base[name] for name in ("HostComputer", "Copyright", "Rating")),
)
_INNER = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
_WIDTH, _HEIGHT, _INTEROPERABILITY = 40962, 40963, 40965  # In EXIF's inner directory; the last is an offset.
_COLOR_CHUNKS = (b"gAMA", b"cHRM", b"cICP", b"sRGB", b"mDCV", b"cLLI")
_GAMMA_OF_SRGB = (45455).to_bytes(4, "big")


@dataclasses.dataclass(frozen=True)
class Metadata:
    """exif: bytes that start with Exif and two zeros. dpi: across and down. chunks: (name, data) of PNG, on colour."""

    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()

    def without_private(self) -> "Metadata":
        """What the colours need, and nothing that tells of camera, place or time."""
        return Metadata(chunks=self.chunks)


def read_metadata(contents: bytes, name: str) -> Metadata:
    """The metadata of an image file. What cannot be read of it is left out with a warning that calls it `name`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(contents)) as image:
                exif = image.getexif()
                if image.format == "TIFF":
                    # The file is an EXIF directory itself; of the open image Pillow finds no inner ones.
                    exif = Image.Exif()
                    exif.load(b"Exif\0\0" + contents)
                xmp = _upright_xmp(image.info.get("xmp"))
                dpi = image.info.get("dpi")
                kept = png.Reader(bytes=contents).chunks() if image.format == "PNG" else ()
                chunks = tuple((kind, bytes(data)) for kind, data in kept if kind in _COLOR_CHUNKS)
                return Metadata(_upright_exif(exif), xmp, dpi and (float(dpi[0]), float(dpi[1])), chunks)
    except Exception as error:  # Metadata is damaged in many ways, and the pixels are not.
        logging.warning("%s: its EXIF, XMP and resolution are left out: %s", name, error)
        return Metadata()


def _upright_exif(exif):
    kept = Image.Exif()
    for tag in _DESCRIBING:
        if tag in exif:
            kept[tag] = exif[tag]
    for inner in _INNER:
        values = {tag: value for tag, value in exif.get_ifd(inner).items() if tag != _INTEROPERABILITY}
        if values:
            kept.get_ifd(inner).update(values)
    if not kept and not any(kept.get_ifd(inner) for inner in _INNER):
        return None
    # The size is another now; a reader takes the file's own.
    for tag in (_WIDTH, _HEIGHT):
        kept.get_ifd(ExifTags.IFD.Exif).pop(tag, None)
    kept[ExifTags.Base.Orientation] = 1
    return kept.tobytes()


def _upright_xmp(xmp):
    if not xmp:
        return None
    xmp = xmp.encode() if isinstance(xmp, str) else bytes(xmp)
    return re.sub(rb'(tiff:Orientation(?:="|>))[0-9]', rb"\g<1>1", xmp)


def warn_of_brightness(path: str, metadata: Metadata, icc_profile: bytes | None) -> None:
    """Says where a format without PNG's chunks would make a viewer show other colours than the source's."""
    gamma = dict(metadata.chunks).get(b"gAMA", _GAMMA_OF_SRGB)
    if not icc_profile and (gamma != _GAMMA_OF_SRGB or b"cICP" in dict(metadata.chunks)):
        logging.warning("%s: cannot hold the source's gAMA or cICP: colours may look different; write .png", path)
