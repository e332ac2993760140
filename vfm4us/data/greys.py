"""From whatever numbers a file holds to grey in 8 bits."""

import os
import threading
import warnings
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

PHOTOMETRIC = 262  # tag of a TIFF
STRIPE = 500_000  # pixels that are converted at a time
FULL = tuple(2.0**bits - 1 for bits in (1, 8, 10, 12, 14, 16))
STRETCHED = (
    "an image with numbers below 0, beyond 16 bits or with fractions beyond 1 is stretched from its minimum to its maximum: "
    "where brightness must compare between images, bring all to one range first"
)


def grey_of_image(
    image: Image.Image, turned: bool | None = None, value_range: tuple[float, float] | None = None
) -> np.ndarray:
    """A decoded PIL image of any mode as uint8 (H, W).

    Colour becomes luminance (ITU-R 601), transparency is composited on black, 1-bit becomes 0 and 255, wider numbers are
    brought to 8 bits as `full_range` says and, where the file says that 0 is white, turned round. turned: `white_is_zero` of the
    file, for a copy that no longer knows; value_range: of wider numbers, where it is that of several images. Raises ValueError for
    NaN and infinity; warns where numbers lie in no known range.
    """
    mode = image.mode
    if mode in ("L", "1") and "transparency" not in image.info:
        return np.asarray(image if mode == "L" else image.convert("L"))
    if mode == "F" or mode.startswith("I"):
        pixels = np.asarray(image)
        low, high = value_range or full_range(pixels)
        if low or high not in FULL:
            warnings.warn(STRETCHED, stacklevel=2)
        grey = to_8_bit(pixels, (low, high))
        return 255 - grey if (white_is_zero(image) if turned is None else turned) else grey
    if mode == "LAB":  # PIL cannot convert it; its first channel is lightness
        return np.asarray(image.getchannel(0))
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_black(image)
    return np.asarray((image if mode == "RGB" else image.convert("RGB")).convert("L"))


def white_is_zero(image: Image.Image) -> bool:
    """Whether a TIFF says so of its numbers; of 8 bits and fewer PIL has turned them round already, of more it has not."""
    return getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0


def _on_black(image: Image.Image) -> np.ndarray:
    """Luminance of an image with transparency on black, a stripe of rows at a time."""
    grey = np.empty((image.height, image.width), np.uint8)
    rows = max(1, STRIPE // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(image.height, top + rows))
        part = image.crop(box)
        colour = part.convert("RGBA") if part.mode != "La" else part.convert("LA").convert("RGBA")
        black = Image.new("RGBA", colour.size, (0, 0, 0, 255))
        grey[top : box[3]] = np.asarray(Image.alpha_composite(black, colour).convert("L"))
    return grey


def full_range(pixels: np.ndarray) -> tuple[float, float]:
    """The values that become black and white.

    0 and the full range of the smallest of 8, 10, 12, 14, 16 bits that holds the maximum, so that 12-bit data in a 16-bit file
    is not black; 0 and 1 for fractions in [0, 1]; the minimum and the maximum for anything else (negative, 32-bit, larger).
    Raises ValueError for NaN and infinity.
    """
    return common_range([pixels])


def common_range(parts: Iterable[np.ndarray]) -> tuple[float, float]:
    """`full_range` of several arrays together, such as the frames of a clip; one after the other is looked at."""
    lows, highs, whole = [], [], True
    for pixels in parts:
        flat = pixels.reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("holds pixels that are not finite (NaN or infinity)")
        lows.append(low)
        highs.append(high)
        if whole and pixels.dtype.kind not in "biu":
            whole = all((part == np.round(part)).all() for part in _stripes(flat))
    if not lows:
        raise ValueError("holds no pixels")
    low, high = min(lows), max(highs)
    if low >= 0 and high <= 1 and not whole:
        return 0.0, 1.0
    if low >= 0 and high <= 65535 and (whole or high <= 255):
        return 0.0, next(full for full in FULL[1:] if high <= full)
    return low, high


_LAST = threading.local()


def range_of_file(path, find: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """The range of all images of a file, which `find` looks for; each thread keeps that of its last file."""
    status = os.stat(path)
    asked = (str(path), status.st_size, status.st_mtime_ns)
    if getattr(_LAST, "asked", None) != asked:
        _LAST.asked, _LAST.range = None, find()
        _LAST.asked = asked
    return _LAST.range


def to_8_bit(pixels: np.ndarray, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Numbers of any kind and shape as uint8, by `full_range` or the range given; a stripe at a time, which bounds memory."""
    if pixels.dtype == np.uint8 and value_range is None:
        return pixels
    low, high = value_range or full_range(pixels)
    span = max(high - low, 1e-12)
    flat = pixels.reshape(-1)
    grey = np.empty(flat.size, np.uint8)
    place = 0
    for part in _stripes(flat):
        scaled = np.floor((part.astype(np.float64) - low) * (255 / span) + 0.5).clip(0, 255)
        grey[place : place + part.size] = scaled
        place += part.size
    return grey.reshape(pixels.shape)


def _stripes(flat: np.ndarray):
    for start in range(0, flat.size, STRIPE):
        yield flat[start : start + STRIPE]
