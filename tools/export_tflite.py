"""The command `drcn-export-tflite`, see drcn_keras/export/tflite.py."""

from drcn_keras.export.tflite import run

if __name__ == "__main__":
    run()
