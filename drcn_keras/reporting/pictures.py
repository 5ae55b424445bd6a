"""The report's pictures: which images of a set to show, and what part of them."""

import base64
import io
import os

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from drcn_keras import image, image_files
from drcn_keras.metrics import eight_bit
from drcn_keras.reporting.tables import gain

CROP = 160  # Pixels of a side of the part that is carried along, and twice what is shown at first.
WHOLE = 320  # Pixels of the longer side of the small whole picture.


def pictures(results: list[dict]) -> list[dict]:
    """For each set and scale, the frames of the pictures with the largest, the middle and the smallest gain."""
    groups = {}
    for result in results:
        groups.setdefault((result["dataset"], result["scale"]), []).append(result)
    shown = []
    with tqdm(total=3 * len(groups), desc="pictures", unit="picture") as progress:
        for (dataset, scale), group in groups.items():
            pictures = []
            for index, why in chosen(group):
                pictures.append(_picture(group, index, why, scale))
                progress.update()
            shown.append({"dataset": dataset, "scale": scale, "pictures": pictures})
    return shown


def chosen(group: list[dict]) -> list[tuple[int, str]]:
    """Which images of a set to show: [(index, why)], by the mean gain over the models of `group`."""
    gains = np.mean([[gain(entry) for entry in result["images"]] for result in group], axis=0)
    order = np.argsort(-gains)
    places = {0: "largest gain", len(order) // 2: "middle gain", len(order) - 1: "smallest gain"}
    return [(int(order[place]), f"{why}: {gains[order[place]]:+.2f} dB") for place, why in places.items()]


def _picture(group, index, why, scale):
    """One picture, for the page: the whole of it, and a part as it was, as bicubic and as each model made it."""
    name = group[0]["images"][index]["name"]
    hr = image.mod_crop(image_files.read_image(os.path.join(group[0]["folder"], name)), scale)
    bicubic = eight_bit(image.enlarge(image.shrink(hr / 255.0, scale), scale))
    part, (x, y) = hardest_part(hr, bicubic)
    first = group[0]["images"][index]
    frames = [
        {"title": "original", "psnr": None, "image": _png_uri(hr[part])},
        {
            "title": "bicubic",
            "psnr": first["bicubic_psnr"],
            "ssim": first["bicubic_ssim"],
            "image": _png_uri(bicubic[part]),
        },
    ]
    for result in group:
        restored = f"{os.path.splitext(name)[0]}_x{scale}.png"
        sr = image_files.read_image(os.path.join(result["restored"], result["dataset"], restored))
        measured = {key: result["images"][index][key] for key in ("psnr", "ssim")}
        frames.append({"title": result["model"], **measured, "image": _png_uri(sr[part])})
    return {"name": name, "why": why, "whole": _whole_uri(hr, part), "x": x, "y": y, "frames": frames}


def hardest_part(hr: np.ndarray, bicubic: np.ndarray) -> tuple[tuple[slice, ...], tuple[float, float]]:
    """The part to carry along, and where in it bicubic errs most.

    Args:
        hr, bicubic: uint8 (height, width) or (height, width, 3).

    Returns:
        (rows and columns as a tuple of slices, (x, y)): a square of CROP pixels or what the image has, with the
        window of half its side that has the largest squared error; x and y in [0, 1] say where that window lies.
    """
    error = np.square(hr.astype(float) - bicubic).reshape(*hr.shape[:2], -1).mean(axis=-1)
    side = min(CROP, *error.shape)
    window = max(1, side // 2)
    total = np.pad(error, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = total[window:, window:] - total[:-window, window:] - total[window:, :-window] + total[:-window, :-window]
    top, left = np.unravel_index(np.argmax(sums), sums.shape)
    starts = [
        int(np.clip(start - (side - window) // 2, 0, length - side))
        for start, length in zip((top, left), error.shape, strict=True)
    ]
    room = max(1, side - window)
    place = (float(left - starts[1]) / room, float(top - starts[0]) / room)
    return tuple(slice(start, start + side) for start in starts), place


def _whole_uri(hr, part):
    """The whole picture made small, the part framed, as a data URI."""
    picture = Image.fromarray(hr).convert("RGB")
    factor = min(1.0, WHOLE / max(picture.size))
    picture = picture.resize([max(1, round(side * factor)) for side in picture.size], Image.Resampling.LANCZOS)
    box = [factor * part[axis].start for axis in (1, 0)] + [factor * part[axis].stop - 1 for axis in (1, 0)]
    ImageDraw.Draw(picture).rectangle(box, outline="yellow", width=2)
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=85)
    return data_uri("image/jpeg", packed.getvalue())


def _png_uri(pixels):
    packed = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(packed, "PNG", optimize=True)
    return data_uri("image/png", packed.getvalue())


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
