"""Upscales photographs: `python -m drcn_keras.upscale IN... --output=DIR_OR_FILE`.

IN is an image or a folder of images. One image may go to a file, whose suffix tells the format; several go to a
folder. In Python `drcn_keras.upscale` is a function, of `upscaling`.
"""

from drcn_keras import entry

if __name__ == "drcn_keras.upscale":
    raise ImportError("drcn_keras.upscale is a function; its module is drcn_keras.upscaling.")
if __name__ == "__main__":
    entry.upscale()
