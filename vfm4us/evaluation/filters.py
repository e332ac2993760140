"""What an enhancer must beat: filters that learn nothing, each with the one strength that did best on validation pairs.

    strengths = choose(pairs)                      # {"blur": 1.4, "median": 5, "nlm": 0.1}
    image = apply("nlm", low, strengths["nlm"])    # uint8 (H, W) -> uint8 (H, W)

BM3D is not among them: the package by its authors is free for non-commercial use alone.
"""

from collections.abc import Iterable

import numpy as np
from scipy.ndimage import gaussian_filter, median_filter

from vfm4us.evaluation.likeness import ssim

GRIDS: dict[str, tuple[float, ...]] = {
    "blur": (0.5, 0.7, 1.0, 1.4, 2.0, 2.8),  # sigma, px of the original image
    "median": (3, 5, 7, 9),  # side of the window, px
    "nlm": (0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3),  # cut-off distance of patches, of the range of greys
}
NAMES = {"blur": "Gaussian blur", "median": "median", "nlm": "non-local means"}
USUAL = {"blur": 1.0, "median": 3.0, "nlm": 0.1}  # where there is nothing to choose by


def apply(name: str, image: np.ndarray, strength: float) -> np.ndarray:
    """uint8 (H, W) -> uint8 (H, W) by the filter `name`, one of GRIDS."""
    if name == "blur":
        return gaussian_filter(image, strength)
    if name == "median":
        return median_filter(image, round(strength), mode="nearest")
    from skimage.restoration import denoise_nl_means

    smoothed = denoise_nl_means(image / 255.0, patch_size=5, patch_distance=6, h=strength, fast_mode=True)
    return (smoothed * 255).round().clip(0, 255).astype(np.uint8)


def choose(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Of each filter the strength with the best mean SSIM on (low, high) pairs; {} where there are none."""
    scores = [
        {(name, s): ssim(apply(name, low, s), high) for name, grid in GRIDS.items() for s in grid}
        for low, high in pairs
    ]
    if not scores:
        return {}
    return {name: max(grid, key=lambda s: sum(f[name, s] for f in scores)) for name, grid in GRIDS.items()}


def rule(strengths: dict[str, float], chosen: bool) -> dict[str, str]:
    """How each filter was used, for metrics.json."""
    how = {"blur": "sigma {:g} px", "median": "window of {:g} px", "nlm": "cut-off {:g} of the range of greys"}
    by = "the best SSIM on validation pairs" if chosen else "usual, not chosen: no validation pairs"
    return {name: f"{NAMES[name]}, {how[name].format(s)}; {by}" for name, s in strengths.items()}
