"""The command `python -m drcn_keras.evaluate`; in Python `drcn_keras.evaluate` is the function in `evaluation`."""

from drcn_keras.evaluation import run

if __name__ == "drcn_keras.evaluate":
    raise ImportError("drcn_keras.evaluate is a function; its module is drcn_keras.evaluation.")
if __name__ == "__main__":
    run()
