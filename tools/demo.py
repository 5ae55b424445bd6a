"""The whole road in minutes: train on photographs that scikit-image ships, measure, upscale, compare.

Runs the commands that a user would type and prints each of them.
"""

import os
import shutil
import subprocess
import sys

import numpy as np
import skimage
from absl import flags
from PIL import Image, ImageDraw, ImageFont

from drcn_keras import commands
from drcn_keras.commands import FLAGS
from drcn_keras.errors import UserError
from drcn_keras.image import luma
from drcn_keras.metrics import measured_psnr

PHOTOGRAPHS = {
    "train": [
        "brick.png",
        "camera.png",
        "chelsea.png",
        "coins.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "rocket.jpg",
    ],
    "test": ["astronaut.png", "coffee.png"],
}
SHOWN = "astronaut.png"
CROP = (190, 60, 270, 140)  # Left, top, right, bottom: the astronaut's eyes.
SCALE = 2


def demo(output, flagfile):
    """Leaves in `output`: photographs/, run/ (the trained model), results.json, upscaled.png, comparison.png."""
    shutil.rmtree(output, ignore_errors=True)
    folders = {part: copy_photographs(part, os.path.join(output, "photographs", part)) for part in PHOTOGRAPHS}
    model = os.path.join(output, "run", "best.keras")
    _run("train", f"--flagfile={flagfile}", f"--train_dir={folders['train']}", f"--model_dir={output}/run")
    _run("evaluate", f"--model={model}", f"--data_dir={folders['test']}", f"--json={output}/results.json")

    original = Image.open(os.path.join(folders["test"], SHOWN))
    small = original.resize((original.width // SCALE, original.height // SCALE), Image.Resampling.BICUBIC)
    small.save(os.path.join(output, "small.png"))
    _run("upscale", f"--model={model}", f"{output}/small.png", f"--output={output}/upscaled.png")

    enlarged = small.resize(original.size, Image.Resampling.BICUBIC)
    upscaled = Image.open(os.path.join(output, "upscaled.png"))
    picture = os.path.join(output, "comparison.png")
    compare({"bicubic": enlarged, "DRCN": upscaled, "original": original}, CROP).save(picture)
    print(f"\nLook at {picture}")


def copy_photographs(part, folder):
    """Copies the photographs of one part out of scikit-image's own data folder."""
    os.makedirs(folder)
    source = os.path.join(os.path.dirname(skimage.__file__), "data")
    for name in PHOTOGRAPHS[part]:
        shutil.copy(os.path.join(source, name), folder)
    return folder


def compare(images, crop, zoom=6):
    """A picture of same-sized images side by side, a zoomed crop and the dB on Y under each.

    Args:
        images: dict of title to RGB PIL image; the last is the original that the others are measured against.
        crop: (left, top, right, bottom) of the zoomed part.
        zoom: whole number.
    """
    *_, original = images.values()
    reference = _luma(original)
    font, gap, text_height = ImageFont.load_default(22), 12, 40
    zoomed_size = ((crop[2] - crop[0]) * zoom, (crop[3] - crop[1]) * zoom)
    column = max(original.width, zoomed_size[0])
    height = original.height + zoomed_size[1] + 4 * gap + text_height
    picture = Image.new("RGB", (len(images) * (column + gap) + gap, height), "white")
    draw = ImageDraw.Draw(picture)
    for index, (title, image) in enumerate(images.items()):
        left = gap + index * (column + gap)
        framed = image.convert("RGB")
        ImageDraw.Draw(framed).rectangle(crop, outline="yellow", width=2)
        picture.paste(framed, (left + (column - image.width) // 2, gap))
        zoomed = image.convert("RGB").crop(crop).resize(zoomed_size, Image.Resampling.NEAREST)
        picture.paste(zoomed, (left + (column - zoomed.width) // 2, original.height + 2 * gap))
        if image is not original:
            title = f"{title}: {measured_psnr(reference, _luma(image), SCALE):.2f} dB"
        center = (left + column // 2, height - gap - text_height // 2)
        draw.text(center, title, fill="black", font=font, anchor="mm")
    return picture


def _luma(image):
    return luma(np.asarray(image.convert("RGB"))) / 255.0


def _run(module, *arguments):
    command = [sys.executable, "-m", f"drcn_keras.{module}", *arguments]
    print("\n$ python " + " ".join(command[1:]), flush=True)
    if subprocess.run(command).returncode:
        raise UserError(f"drcn_keras.{module} failed; its message stands above.")


def define_flags():
    flags.DEFINE_string("output", "demo", "folder for everything the demo makes; replaced")
    flags.DEFINE_string("flagfile_path", "drcn_keras/flagfiles/quickstart.cfg", "training flags")


def main(argv):
    demo(FLAGS.output, FLAGS.flagfile_path)


if __name__ == "__main__":
    commands.run(main, define_flags)
