"""What a picture looks like: a mask has few values in large areas, an ultrasound image many values side by side."""

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from vfm4us.data import arrays
from vfm4us.data.limits import file_bytes

SAMPLE = 8  # files of a folder that are looked at
FEW_VALUES = 24  # values that hold a thousandth of the pixels each, in a mask
FEW_EDGES = 0.15  # share of neighbouring pixels that differ


def looks_like_mask(path) -> bool | None:
    """Whether a file has few values in connected areas; None where it cannot be read, or is all of one value."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return _looks_like_mask(str(path), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=10_000)  # a source is understood once to list it and once to pack it
def _looks_like_mask(path: str, _size: int, _time: int) -> bool | None:
    try:
        pixels = _pixels(path)
    except ValueError:
        return None
    return None if pixels.size == 0 or pixels.min() == pixels.max() else has_few_values(pixels)


def has_few_values(pixels: np.ndarray) -> bool:
    """Whether numbers (H, W), not all the same, have few values in connected areas, or soft edges between two."""
    low, high = float(pixels.min()), float(pixels.max())
    levels = np.round((pixels - low) * (255 / (high - low))).astype(np.int32)
    counts = np.bincount(levels.ravel(), minlength=256) / levels.size
    edges = np.mean(np.abs(np.diff(levels, axis=1)) > 8)
    few = (counts > 0.001).sum() <= FEW_VALUES and edges < FEW_EDGES
    return bool(few or _has_soft_edges(levels))


def _has_soft_edges(levels: np.ndarray) -> bool:
    """Whether all that is neither black nor white (0 to 255) lies between black and white: a blurred or resized mask."""
    between = (levels > 12) & (levels < 243)
    if between.mean() > 0.5:
        return False
    near_both = (maximum_filter(levels, 21) >= 230) & (minimum_filter(levels, 21) <= 25)
    return bool(near_both[between].mean() > 0.9)


def mask_in_a_half(path) -> bool:
    """Whether one half of a wide picture looks like a mask and the other does not: an image and its mask side by side."""
    try:
        pixels = _pixels(path)
    except ValueError:
        return False
    half = pixels.shape[1] // 2
    if pixels.shape[1] < 1.6 * pixels.shape[0] or half < 16:
        return False
    halves = pixels[:, :half], pixels[:, half:]
    return sum(part.min() < part.max() and has_few_values(part) for part in halves) == 1 and all(
        p.min() < p.max() for p in halves
    )


def sample(items: list, count: int = SAMPLE) -> list:
    """At most `count` items, evenly spread over the list."""
    if len(items) <= count:
        return items
    return [items[int(i * (len(items) - 1) / (count - 1) + 0.5)] for i in range(count)]


def share_of_masks(root: Path, files: list[str]) -> float | None:
    """The share of sampled files that look like masks; None where none can be judged."""
    seen = [looks_like_mask(root / file) for file in sample(sorted(files))]
    seen = [value for value in seen if value is not None]
    return sum(seen) / len(seen) if seen else None


def same_pictures(root: Path, pairs: list[tuple[str, str]]) -> bool:
    """Whether the files of each pair show the same picture, perhaps in another quality or with something drawn on it.

    Images of one scanner are alike in their outline; so a pair must be more alike than files that were not paired.
    """
    pairs = sample(pairs)
    first, second = [_small(root / a) for a, _ in pairs], [_small(root / b) for _, b in pairs]
    ours, others = [], []
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            if one is not None and other is not None:
                (ours if i == j else others).append(float(one @ other))
    if not ours:
        return False
    alike = sum(ours) / len(ours)
    return alike > 0.5 and (not others or alike - sum(others) / len(others) > 0.2)


def _small(path) -> np.ndarray | None:
    """48 x 48 pixels with mean 0 and norm 1, flattened; None where a file cannot be read or is flat."""
    try:
        pixels = Image.fromarray(_pixels(path).astype(np.float32)).resize((48, 48), Image.Resampling.BOX)
    except ValueError:
        return None
    flat = np.asarray(pixels).ravel() - np.asarray(pixels).mean()
    norm = float(np.linalg.norm(flat))
    return flat / norm if norm > 1e-3 else None


def _pixels(path) -> np.ndarray:
    """(H, W) of at most some 512 x 512 pixels, the brightest channel of a colour."""
    from vfm4us.data.decode import upright_image

    data = file_bytes(path)
    if arrays.is_array_file(data):
        pixels = np.asarray(arrays.array_of(data), dtype=np.float64)
    else:
        image = upright_image(data)
        if image.mode in ("RGBA", "LA", "PA"):
            alpha = np.asarray(image.getchannel("A"))
            image = image.convert("RGB" if alpha.min() == 255 else "RGBA")
        pixels = np.asarray(image).astype(np.float64)
    if pixels.ndim == 3:
        in_alpha = pixels.shape[2] == 4 and pixels[..., :3].min() == pixels[..., :3].max()
        pixels = pixels[..., 3] if in_alpha else pixels[..., :3].max(axis=2)
    if pixels.ndim != 2 or not np.isfinite(pixels).all():
        raise ValueError("no picture of finite numbers")
    step = max(1, int(max(pixels.shape) / 512))
    return pixels[::step, ::step]
