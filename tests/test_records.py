import csv

import pytest

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


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\0", b"epoch,loss\nx,1\n", b"epoch,loss\n1,2,3\n", b"other\n1\n", b'epoch,loss\n1,"2']
)
def test_a_damaged_table_is_set_aside_and_a_new_one_begun(tmp_path, caplog, content):
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    CSVLog(str(path), ["loss"]).on_epoch_end(4, {"loss": 0.5})
    assert path.read_text() == "epoch,loss\n5,0.5\n"
    assert (tmp_path / "log.csv.damaged").read_bytes() == content
    assert "log.csv is damaged" in caplog.text
