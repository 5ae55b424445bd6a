"""Measures PSNR and SSIM as the field does: `python -m drcn_keras.evaluate --model=MODEL[,MODEL] --data_dir=DIR[,DIR]`.

Originals are shrunk with MATLAB's bicubic (or their LR images are given, --lr_dir), restored and compared on Y, without
a border of `scale` pixels; bicubic enlargement is measured beside. In Python `drcn_keras.evaluate` is a function, of
`evaluation`.
"""

from drcn_keras import entry

if __name__ == "drcn_keras.evaluate":
    raise ImportError("drcn_keras.evaluate is a function; its module is drcn_keras.evaluation.")
if __name__ == "__main__":
    entry.evaluate()
