import csv

from drcn_keras.records import CSVLog


def test_rows_of_a_repeated_epoch_are_replaced(tmp_path):
    path = tmp_path / "log.csv"
    for epoch, loss in ((0, 3.0), (1, 2.0), (2, 1.0)):
        CSVLog(str(path), ["loss", "val_psnr"]).on_epoch_end(epoch, {"loss": loss, "other": 1.0})
    # A run resumed after its first epoch.
    CSVLog(str(path), ["loss", "val_psnr"]).on_epoch_end(1, {"loss": 2.5, "val_psnr": 30.123456})
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"epoch": "1", "loss": "3", "val_psnr": ""},
        {"epoch": "2", "loss": "2.5", "val_psnr": "30.1235"},
    ]
