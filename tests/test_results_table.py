"""The tables of results: what stands in the pages is what the cards say."""

import pytest
import results_table

from drcn_keras.errors import UserError


def test_a_row_by_hand(monkeypatch):
    def made(scale, psnr, kind="results"):
        result = {
            "dataset": "Set5",
            "scale": scale,
            "psnr": psnr,
            "ssim": 0.9,
            "bicubic_psnr": 1.0,
            "bicubic_ssim": 0.5,
        }
        return {kind: [result]}

    ours = {
        "mobile": [made(2, 37.004), made(3, 33.0)],
        "large": [made(2, 36.996), made(2, 37.1, "self_ensemble")],
        "third": [made(3, 35.0)],
    }
    monkeypatch.setattr(results_table, "families", lambda names: ours)
    monkeypatch.setattr(results_table, "SETS", ("Set5",))
    monkeypatch.setattr(results_table, "SCALES", (2,))
    head, rule, row = results_table.short().splitlines()
    assert head == "|  | bicubic | SRCNN, published | mobile | large | third | DRCN, published |"
    assert rule == "| --- | --- | --- | --- | --- | --- | --- |"
    # Both are 37.00 as printed, so both are the best.
    assert row == "| Set5 x2 | 1.00 | 36.66 | **37.00** | **37.00** |  | 37.63 |"
    row = results_table.full().splitlines()[2]
    pairs = ["1.00 / 0.5000", "37.00 / 0.9000", "37.00 / 0.9000", "", "", "37.10 / 0.9000", "", "37.63 / 0.9588"]
    assert row == f"| Set5 x2 | {' | '.join(pairs)} |"


@pytest.mark.parametrize(("page", "table"), [("README.md", "short"), ("docs/results.md", "full")])
def test_the_pages_hold_the_tables_of_the_cards(page, table):
    text = (results_table.ROOT / page).read_text()
    assert results_table.replaced(text, getattr(results_table, table)(), page) == text


def test_a_page_without_the_marks_is_named():
    with pytest.raises(UserError, match=r"README.md lacks the lines <!-- tools/results_table.py -->"):
        results_table.replaced("# drcn_keras\n", "", "README.md")


def test_columns_go_from_the_smallest_network_to_the_largest(monkeypatch):
    parameters = {
        "drcn-large-x234": 9,
        "drcn-x2": 5,
        "drcn-x234": 5,
        "drcn-x3": 5,
        "mobile-x2": 2,
        "mobile-x3": 2,
    }
    monkeypatch.setattr(results_table.card, "read", lambda name: {"name": name, "parameters": parameters[name]})
    columns = results_table.families(list(parameters))
    assert [[made["name"] for made in cards] for cards in columns.values()] == [
        ["mobile-x2", "mobile-x3"],
        ["drcn-x2", "drcn-x3"],
        ["drcn-x234"],
        ["drcn-large-x234"],
    ]
    assert list(columns) == ["mobile", "drcn", "drcn-x234", "drcn-large-x234"]
