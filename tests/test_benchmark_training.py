import pytest

from tools.benchmark_training import training_operations


@pytest.mark.parametrize(
    ("filters", "recursions", "channels", "expected"),
    [
        # One pixel, one filter, one recursion: 5 convolutions of 9 multiply-accumulates, 2 operations each; three
        # times, but for the first convolution twice.
        (1, 1, 1, 2 * 9 * (2 + 3 * 4)),
        # Two filters, three channels: 6 + 4 + 4 + 4 + 6 products a tap.
        (2, 1, 3, 2 * 9 * (2 * 6 + 3 * (4 + 4 + 4 + 6))),
        # A second recursion repeats all but the embedding.
        (2, 2, 3, 2 * 9 * (2 * 6 + 3 * (4 + 2 * (4 + 4 + 6)))),
    ],
)
def test_operations_of_a_step_by_hand(filters, recursions, channels, expected):
    assert training_operations(filters, recursions, channels, patch_size=1) == expected


def test_a_thin_ensemble_spares_what_it_does_not_reconstruct():
    # One filter: the embedding's two, inference twice, and once the two of the reconstruction.
    expected = 2 * 9 * (2 + 3 * 5)
    assert training_operations(1, 9, patch_size=1, outputs=(2,)) == expected


def test_the_papers_network_costs_what_its_layers_say():
    # 17,974 GMAC for a forward pass over 1280x720; forward and backward is three times that, less the first layer.
    forward = training_operations(256, 16, patch_size=1) / 2 / 3 + 9 * 256 / 3
    assert forward * 1280 * 720 / 1e9 == pytest.approx(17974, rel=1e-4)
