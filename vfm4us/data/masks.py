"""Mask files as class numbers on the pixels of their image."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from vfm4us.data import arrays, frames, polygons, volumes
from vfm4us.data.dataset import check_same_shape
from vfm4us.data.decode import upright_image
from vfm4us.data.limits import file_bytes
from vfm4us.data.records import Record

CLASS_LIMIT = 16  # a mask whose largest value is at most this holds class numbers


def read_mask(path) -> np.ndarray:
    """Read a mask file as uint8 class numbers (H, W).

    Palette indices and integers up to CLASS_LIMIT are kept as they are; in anything else, and in every JPEG, whose
    compression noise would pass for classes, the brightest channel above 127 is class 1. NumPy files are read as
    `vfm4us.data.arrays` says. Raises ValueError, also where several greys or colours fill areas, which are classes that the
    threshold would merge or lose.
    """
    return mask_of(file_bytes(path))


def read_masks(root, record: Record, image: np.ndarray, size: int) -> np.ndarray | None:
    """All masks of a record on the pixels of its `image` (H, W): class numbers uint8 (H, W), the largest where several lie.

    A mask of another scale is resized by the nearest pixel; one of another shape, judged at `size` px, is a ValueError that names
    its file, as is one that cannot be read. None where the record has no mask.
    """
    whole = None
    for path in record.mask_paths:
        try:
            layer = _layer(Path(root), path, record, image)
        except ValueError as error:
            raise ValueError(f"its mask {path}: {error}") from error
        check_same_shape(f"its mask {path}", layer, image, size)
        if layer.shape != image.shape:
            layer = np.asarray(Image.fromarray(layer).resize(image.shape[::-1], Image.Resampling.NEAREST))
        whole = layer if whole is None else np.maximum(whole, layer)
    return whole


def _layer(root: Path, name: str, record: Record, image: np.ndarray) -> np.ndarray:
    """One mask of a record: a file, a slice of a volume, or an image's outlines in an annotation file; cropped as its image."""
    file, key = polygons.split_reference(name)
    top, left, height, width = (int(v) for v in record.crop.split()) if record.crop else (0, 0, *image.shape)
    if key is not None:  # outlines are drawn on the whole frame, as far as the crop reaches
        return polygons.read_mask(root / file, key, top + height, left + width)[top:, left:]
    if frames.kind_of(root / file) == "volume":
        layer = volumes.read_label(root / file, record.frame)
        if layer.dtype.kind == "f" and not (layer == np.round(layer)).all():
            raise ValueError("holds fractions: write class numbers")
        if layer.min() < 0 or layer.max() > 255:
            raise ValueError(f"holds values from {layer.min():g} to {layer.max():g}; expected 0 to 255")
        layer = layer.astype(np.uint8)
        layer = layer if layer.max() <= CLASS_LIMIT else (layer > 127).astype(np.uint8)
    else:
        layer = read_mask(root / file)
    if record.crop and layer.shape != image.shape and layer.shape[0] >= top + height and layer.shape[1] >= left + width:
        return frames.cropped(layer, record.crop)
    return layer


def mask_of(data: bytes) -> np.ndarray:
    if arrays.is_array_file(data):
        pixels = arrays.mask_of_arrays(data)
        return pixels if pixels.max(initial=0) <= CLASS_LIMIT else (pixels > 127).astype(np.uint8)
    lossy = data[:2] == b"\xff\xd8"
    image = upright_image(data)
    if image.mode == "P" and not _black_and_white(image):
        colours = pixels = np.asarray(image)
    elif image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    elif image.mode in ("L", "F") or image.mode.startswith("I"):
        colours = pixels = np.asarray(image)
    else:  # the brightest channel, as luminance would lose a blue or red outline filled on black
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
            colour = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", colour.size, (0, 0, 0, 255)), colour)
        colours = np.asarray(image.convert("RGB"))
        pixels = colours.max(axis=2)
    if not lossy and 0 <= pixels.min() and pixels.max() <= CLASS_LIMIT and (pixels == pixels.astype(np.uint8)).all():
        return pixels.astype(np.uint8)
    _refuse_coded_classes(colours)
    return (pixels > 127).astype(np.uint8)


def _refuse_coded_classes(pixels: np.ndarray) -> None:
    """ValueError where greys or colours (H, W) or (H, W, 3) other than one light one fill 7 x 7 px: edges and noise do not."""
    if pixels.ndim == 2 and pixels.max() > 127 and ((pixels == 0) | (pixels == pixels.max())).all():
        return  # nearly every mask
    pixels = pixels.reshape(*pixels.shape[:2], -1).astype(np.float32)
    high, low = maximum_filter(pixels, (7, 7, 1)), minimum_filter(pixels, (7, 7, 1))
    areas = pixels[((high - low).max(2) <= 24) & (high.max(2) > 48)]  # (areas' pixels, 1 or 3); 24: noise of a JPEG
    if not len(areas):
        return
    lightest = areas[areas.max(1).argmax()]
    others = areas[np.abs(areas - lightest).max(1) > 48]
    if len(others) or lightest.max() <= 127:
        seen = " and ".join("/".join(f"{v:.0f}" for v in c) for c in (*others[:1], lightest))
        raise ValueError(
            f"grey or colour {seen} fills areas beside black: if these are classes, write class numbers 0, 1, 2 ... as pixel "
            "values; if not, 0 and 255"
        )


def _black_and_white(image: Image.Image) -> bool:
    """Whether the palette entries in use are pure black and pure white: a picture of a mask, not class numbers."""
    palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    used = palette[np.unique(np.asarray(image)).clip(0, len(palette) - 1)]
    return bool(((used == 0).all(1) | (used == 255).all(1)).all() and (used == 255).all(1).any())
