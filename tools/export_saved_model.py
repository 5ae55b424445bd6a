"""The command `drcn-export-saved-model`, see drcn_keras/export/saved_model.py."""

from drcn_keras.export.saved_model import run

if __name__ == "__main__":
    run()
