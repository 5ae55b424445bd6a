"""The command `python -m drcn_keras.upscale`; in Python `drcn_keras.upscale` is the function in `upscaling`."""

from drcn_keras.upscaling import run

if __name__ == "drcn_keras.upscale":
    raise ImportError("drcn_keras.upscale is a function; its module is drcn_keras.upscaling.")
if __name__ == "__main__":
    run()
