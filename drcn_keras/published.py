"""The paper's table of benchmark results, and whether bicubic measured here agrees with it."""

from drcn_keras.image import SCALES

# Kim, Lee, Lee: "Deeply-Recursive Convolutional Network for Image Super-Resolution", CVPR 2016, arXiv 1511.04491,
# the table of benchmark results: PSNR in dB at x2, x3, x4, and SSIM for bicubic and DRCN.
PUBLISHED = {
    "Set5": {
        "bicubic": ((33.66, 0.9299), (30.39, 0.8682), (28.42, 0.8104)),
        "A+": ((36.54, None), (32.58, None), (30.28, None)),
        "RFL": ((36.54, None), (32.43, None), (30.14, None)),
        "SelfEx": ((36.49, None), (32.58, None), (30.31, None)),
        "SRCNN": ((36.66, None), (32.75, None), (30.48, None)),
        "DRCN": ((37.63, 0.9588), (33.82, 0.9226), (31.53, 0.8854)),
    },
    "Set14": {
        "bicubic": ((30.24, 0.8688), (27.55, 0.7742), (26.00, 0.7027)),
        "A+": ((32.28, None), (29.13, None), (27.32, None)),
        "RFL": ((32.26, None), (29.05, None), (27.24, None)),
        "SelfEx": ((32.22, None), (29.16, None), (27.40, None)),
        "SRCNN": ((32.42, None), (29.28, None), (27.49, None)),
        "DRCN": ((33.04, 0.9118), (29.76, 0.8311), (28.02, 0.7670)),
    },
    "B100": {
        "bicubic": ((29.56, 0.8431), (27.21, 0.7385), (25.96, 0.6675)),
        "A+": ((31.21, None), (28.29, None), (26.82, None)),
        "RFL": ((31.16, None), (28.22, None), (26.75, None)),
        "SelfEx": ((31.18, None), (28.29, None), (26.84, None)),
        "SRCNN": ((31.36, None), (28.41, None), (26.90, None)),
        "DRCN": ((31.85, 0.8942), (28.80, 0.7963), (27.23, 0.7233)),
    },
    "Urban100": {
        "bicubic": ((26.88, 0.8403), (24.46, 0.7349), (23.14, 0.6577)),
        "A+": ((29.20, None), (26.03, None), (24.32, None)),
        "RFL": ((29.11, None), (25.86, None), (24.19, None)),
        "SelfEx": ((29.54, None), (26.44, None), (24.79, None)),
        "SRCNN": ((29.50, None), (26.24, None), (24.52, None)),
        "DRCN": ((30.75, 0.9133), (27.15, 0.8276), (25.14, 0.7510)),
    },
}


_OTHER_NAMES = {"BSD100": "B100"}


BICUBIC_TOLERANCE = 0.02  # dB


def published(dataset: str, scale: int, method: str) -> tuple[float, float | None] | None:
    """A published result.

    Args:
        dataset: name of the set's folder, in any case.
        scale: 2, 3 or 4.
        method: "bicubic", "A+", "RFL", "SelfEx", "SRCNN" or "DRCN".

    Returns:
        (PSNR in dB, SSIM or None where none was published); None for a data set that is not in `PUBLISHED`.
    """
    names = {name.lower(): name for name in PUBLISHED} | {key.lower(): name for key, name in _OTHER_NAMES.items()}
    name = names.get(dataset.lower())
    return PUBLISHED[name][method][SCALES.index(scale)] if name else None


def is_off(result: dict) -> bool:
    """Whether the bicubic row of a result of `drcn_keras.evaluate` is not the published one."""
    expected = published(result["dataset"], result["scale"], "bicubic")
    return expected is not None and not abs(result["mean"]["bicubic_psnr"] - expected[0]) <= BICUBIC_TOLERANCE


def complaints(results: list[dict]) -> list[str]:
    """A sentence for each result whose bicubic row is not the published one, unless its LR images were given."""
    sentences = []
    for result in results:
        expected = published(result["dataset"], result["scale"], "bicubic")
        if expected and is_off(result) and "lr_dir" not in result:
            sentences.append(
                f"BICUBIC IS OFF: {result['mean']['bicubic_psnr']:.2f} dB on {result['dataset']} x{result['scale']}, "
                f"published {expected[0]:.2f}. Other images or another protocol: compare none of these numbers."
            )
    return sentences
