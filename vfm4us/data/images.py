"""Whatever people hold images in (PIL, numpy, tensors, files, a folder) as one batch with its valid rectangles.

One image gives the same pixels however it is held: a path, a PIL image and an array are turned upright, made grey and brought
to 8 bits by the same rules. What cannot be an image in a known range (NaN, floats outside [0, 1], negative numbers) is refused.
"""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vfm4us.data.containers import Reading, one_record_per_image
from vfm4us.data.dataset import RESAMPLING, packed_size
from vfm4us.data.decode import read_grey, read_record, read_records
from vfm4us.data.filling import fill_unpacked
from vfm4us.data.greys import full_range, grey_of_image, to_8_bit, white_is_zero
from vfm4us.data.reading import reading_of
from vfm4us.data.records import Record, without_extension
from vfm4us.data.sources import find_source, source_root

ROUNDING = 1e-3  # by which a float may leave [0, 1]: a resized image does
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601
TABLES = (".csv", ".tsv")


def image_records(source) -> list[Record]:
    """The images of a file, a folder or a CSV manifest, each frame of a clip by itself; their paths begin at the working folder.

    In the order in which `image_batch` and `encoder.embed` read them. Raises FileNotFoundError and ValueError as `find_source`.
    """
    path = Path(source)
    if path.is_file() and path.suffix.lower() not in TABLES:
        records = one_record_per_image(path.parent, [Record(without_extension(path.name), path.name)], Reading())
    else:
        reading = reading_of(path)
        records = find_source(path, reading)
        if reading.blank:
            fill_unpacked(source_root(path), records)
    return [replace(record, path=str(source_root(path) / record.path)) for record in records]


def image_paths(folder) -> list[Path]:
    """The files of `image_records`, one for each image."""
    return [Path(record.path) for record in image_records(folder)]


def image_batch(images, size: int = 224, frame: bool = False) -> tuple[Tensor, Tensor | None]:
    """(N, C, H, W) uint8 or float in [0, 1], and (N, 4) top, left, height, width of what is no padding (None: all of it).

    images: one image (a path, a PIL image, an array or tensor (H, W) or (H, W, 3)), a list of such, or the path of a folder or
            a CSV manifest: each image becomes grey, its longer side is resized to `size` px, the rest is padded with 0;
            or a batch: an array or tensor (N, H, W), (N, C, H, W), (N, H, W, 3), which keeps its size and its colours
    frame:  bring a batch to that frame as well
    Numbers: uint8; float in [0, 1]; bool is 0 and 255; other whole numbers up to 65535 by the full range of the smallest of 8,
    10, 12, 14, 16 bits that holds an image's maximum, as in files, with a warning where that is more than 8.
    Raises ValueError that names the file, or the shape or the values and the ones that are understood.
    """
    if isinstance(images, str | Path):
        images = image_records(images)
    if isinstance(images, Image.Image) or _is_one(images):
        images = [images]
    if not isinstance(images, list | tuple):
        batch = _channels_first(images)
        if not frame or batch.shape[-2:] == (size, size):
            return batch, None
        images = list(batch)
    if not images:
        raise ValueError("no images were given")
    if all(isinstance(image, Record) for image in images):
        arrays = [_or_error(image, record) for image, record in zip(read_records("", images), images, strict=True)]
    else:
        arrays = [image_array(image) for image in images]
    if len({array.dtype for array in arrays}) > 1:
        arrays = [a if a.dtype == np.uint8 else (a * 255).round().astype(np.uint8) for a in arrays]
    frames = np.zeros((len(arrays), size, size), arrays[0].dtype)
    valid = torch.zeros(len(arrays), 4, dtype=torch.long)
    for i, array in enumerate(arrays):
        height, width = packed_size(*array.shape, size)
        frames[i, :height, :width] = _resized(array, height, width)
        valid[i, 2], valid[i, 3] = height, width
    return torch.from_numpy(frames)[:, None], valid


def _or_error(image: np.ndarray | ValueError, record: Record) -> np.ndarray:
    if isinstance(image, ValueError):
        raise ValueError(f"{record.path}: {image}") from image
    return image


def image_array(image) -> np.ndarray:
    """One image, held in any way that `image_batch` names, as grey (H, W), uint8 or float32 in [0, 1].

    Raises ValueError that names the file, or the shape or the values and the ones that are understood.
    """
    if isinstance(image, str | Path | Record):
        try:
            return read_record("", image) if isinstance(image, Record) else read_grey(image)
        except ValueError as error:
            raise ValueError(f"{image.path if isinstance(image, Record) else image}: {error}") from error
    if isinstance(image, Image.Image):
        return grey_of_image(ImageOps.exif_transpose(image), white_is_zero(image))
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 3)) or 0 in array.shape:
        raise ValueError(f"an image of shape {array.shape} is not understood: give (H, W), (H, W, 3) or (3, H, W)")
    array = _in_range(array)
    if array.ndim == 2:
        return array
    if array.dtype == np.uint8:  # as a file of these colours would become grey
        return np.asarray(Image.fromarray(np.ascontiguousarray(array)).convert("L"))
    return array @ LUMINANCE


def _is_one(images) -> bool:
    """Whether an array or a tensor is one image, no batch."""
    if not isinstance(images, Tensor | np.ndarray):
        return False
    shape = tuple(images.shape)
    if len(shape) == 3 and shape[0] == 3 and shape[-1] != 3:
        warnings.warn(
            f"an array of shape {shape} is taken for three grey images; one image in colour is given as (H, W, 3), or in a list",
            stacklevel=3,
        )
    return len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3, 4))  # no image is so narrow


def _in_range(array: np.ndarray) -> np.ndarray:
    """Numbers of one image as uint8 or float32 in [0, 1]; ValueError for what is in no range that is known."""
    kind = array.dtype.kind
    if array.dtype == np.uint8 or not array.size:
        return array if array.dtype == np.uint8 else array.astype(np.float32)
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind not in "iuf":
        raise ValueError(f"an image of {array.dtype} is not understood: give uint8, or float in [0, 1]")
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("an image holds NaN or infinity: give uint8, or float in [0, 1]")
    if kind == "f":
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise ValueError(
                f"an image of {array.dtype} holds values from {low:.4g} to {high:.4g}, but floats must lie in [0, 1]: divide "
                "by 255 or by the range of the scanner; what is normalised already must be brought back"
            )
        return array.astype(np.float32).clip(0, 1)
    if low < 0 or high > 65535:
        raise ValueError(
            f"an image of {array.dtype} holds values from {low:.0f} to {high:.0f}, but whole numbers must lie in 0 to 65535"
        )
    whole = full_range(array)
    if whole[1] > 255:
        warnings.warn(
            f"images of {array.dtype} are divided by {whole[1]:.0f}, the full range of their bits", stacklevel=4
        )
    return to_8_bit(array, whole)


def _resized(array: np.ndarray, height: int, width: int) -> np.ndarray:
    if array.shape == (height, width):
        return array
    resized = np.asarray(Image.fromarray(array).resize((width, height), RESAMPLING))
    return resized if array.dtype == np.uint8 else resized.clip(0, 1)


def _channels_first(images) -> Tensor:
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) and images.dtype != torch.bfloat16 else images
    array = array.float().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
    shape = array.shape
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and shape[-1] == 3:
        array = np.moveaxis(array, -1, 1)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(
            f"images of shape {shape} are not understood: give (N, H, W), (N, 1 or 3, H, W), (N, H, W, 3), or a list"
        )
    if array.dtype.kind in "iu" and array.dtype != np.uint8:  # each by its own range, as files are
        array = np.stack([_in_range(one) for one in array]) if len(array) else array.astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(_in_range(array)))
