"""Whatever people hold images in (PIL, numpy, tensors, files, a folder) as one batch with its valid rectangles.

One image gives the same pixels however it is held: a path, a PIL image and an array are turned upright, made grey and brought
to 8 bits by the same rules. What cannot be an image in a known range (NaN, floats outside [0, 1], negative numbers) is refused.
"""

import glob
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vfm4us import log
from vfm4us.data import frames
from vfm4us.data.containers import Reading, Told, one_record_per_image
from vfm4us.data.dataset import RESAMPLING, packed_size
from vfm4us.data.decode import one_line, read_grey, read_record, read_records
from vfm4us.data.filling import fill_unpacked
from vfm4us.data.greys import full_range, grey_of_image, to_8_bit, white_is_zero
from vfm4us.data.limits import check_size
from vfm4us.data.reading import reading_of
from vfm4us.data.records import Record, without_extension
from vfm4us.data.sources import nearest, source_root, understand

ROUNDING = 1e-3  # by which a float may leave [0, 1]: a resized image does
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601
TABLES = (".csv", ".tsv")
ALL_FRAMES = "`frames: all` in a reading.yaml of the file's folder, which is then given"
WHAT_TO_GIVE = "{} is no image: {}"
GIVE = "give a path, a PIL image, an array, a tensor, or a list of such"
REFUSED: tuple[tuple[Any, str, str], ...] = (
    (
        bytes | bytearray | memoryview,
        "a string of bytes",
        "give the file's path, or PIL.Image.open(io.BytesIO(data))",
    ),
    (io.IOBase, "an open file", "give its path, or PIL.Image.open(file)"),
    (dict, "a dict", "give the list of its values that are images"),
    (set | frozenset, "a set", "it has no order: give a list"),
    (NoneType, "None", GIVE),
)


def image_records(source) -> list[Record]:
    """The images of a file, a folder or a CSV manifest, each frame of a clip by itself; their paths begin at the working folder.

    In the order in which `image_batch` and `encoder.embed` read them. Warns where a file's frames are not all taken, and says which
    files of a folder are no images. Raises FileNotFoundError and ValueError as `find_source`.
    """
    path, told, reading = given_path(source), Told(), Reading()
    if path.is_file() and path.suffix.lower() not in TABLES:
        _refuse_array_file(path)
        records = one_record_per_image(path.parent, [Record(without_extension(path.name), path.name)], reading, told)
        remedy = ALL_FRAMES
    else:
        reading = reading_of(path)
        understood = understand(path, reading, whole=False)
        records = one_record_per_image(source_root(path), understood.records, reading, told)
        remedy = "`frames: all` in its reading.yaml"
        if others := {role: count for role, count in understood.counts().items() if role != "image" and count}:
            left = ", ".join(f"{count} {role}" for role, count in others.items())
            log.note(f"{path} is understood as {understood.layout}: {len(records)} images; beside them {left}")
        if reading.blank:
            fill_unpacked(source_root(path), records)
    taken, there = told.taken.total(), told.frames.total()
    if taken < there and reading.frames == Reading().frames:  # nobody has said which
        warnings.warn(f"{path}: {taken} of {there} frames are taken, else {remedy}", stacklevel=3)
    return [replace(record, path=str(source_root(path) / record.path)) for record in records]


def image_paths(folder) -> list[Path]:
    """The files of `image_records`, one for each image."""
    return [Path(record.path) for record in image_records(folder)]


def given_path(given) -> Path:
    """The path that a user means, `~` written out.

    Raises ValueError for an empty one, which Python takes for the working folder, and for an address; FileNotFoundError, with the
    nearest name, where nothing is there.
    """
    text = os.fspath(given)
    if isinstance(text, bytes):
        raise ValueError(WHAT_TO_GIVE.format("a path of bytes", "write it as text, os.fsdecode(path)"))
    if not text.strip() or "\0" in text:
        raise ValueError(f"{text!r} is no path: give a file, a folder (the working folder is '.') or a CSV manifest")
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text):
        raise ValueError(f"{text} is an address, which is not fetched: download it and give the file's path")
    path = Path(text).expanduser()
    if not path.exists():
        looked = "" if path.is_absolute() else f" (looked from {Path.cwd()})"
        wild = f": wildcards are not followed, give sorted(glob.glob({text!r}))" if glob.has_magic(text) else ""
        raise FileNotFoundError(f"{path} does not exist{looked}{wild or nearest(path)}")
    return path


def given_images(images) -> list | np.ndarray:
    """What `image_batch` takes, as a list of single images, or as the one array of a batch."""
    if isinstance(images, str | os.PathLike):
        return image_records(images)
    if isinstance(images, Image.Image | Record):
        return [images]
    if isinstance(images, list | tuple) or (isinstance(images, Iterator) and not isinstance(images, io.IOBase)):
        return list(images)
    array = _numbers(images)
    if array.ndim == 1 and array.dtype.kind in "OU":  # a column of a table
        return list(array)
    return [array] if _is_one(array) else array


def image_batch(images, size: int = 224, frame: bool = False) -> tuple[Tensor, Tensor | None]:
    """(N, C, H, W) uint8 or float in [0, 1], and (N, 4) top, left, height, width of what is no padding (None: all of it).

    images: one image (a path, a PIL image, an array or tensor (H, W) or (H, W, 3)), a list or an iterator of such, or the path of
            a folder or a CSV manifest: each image becomes grey, its longer side is resized to `size` px, the rest is padded with 0;
            or a batch: an array or tensor (N, H, W), (N, C, H, W), (N, H, W, C), which keeps its size and its colours
    frame:  bring a batch to that frame as well
    Numbers: uint8; float in [0, 1]; bool is 0 and 255; other whole numbers up to 65535 by the full range of the smallest of 8,
    10, 12, 14, 16 bits that holds an image's maximum, as in files, with a warning where that is more than 8.
    Raises ValueError that names the file, or the shape or the values and the ones that are understood, and FileNotFoundError.
    """
    images = given_images(images)
    if isinstance(images, np.ndarray):
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
    packed = np.zeros((len(arrays), size, size), arrays[0].dtype)
    valid = torch.zeros(len(arrays), 4, dtype=torch.long)
    for i, array in enumerate(arrays):
        height, width = packed_size(*array.shape, size)
        packed[i, :height, :width] = _resized(array, height, width)
        valid[i, 2], valid[i, 3] = height, width
    return torch.from_numpy(packed)[:, None], valid


def _or_error(image: np.ndarray | ValueError, record: Record) -> np.ndarray:
    if isinstance(image, ValueError):
        raise ValueError(f"{record.path}: {image}") from image
    return image


def image_array(image) -> np.ndarray:
    """One image, held in any way that `image_batch` names, as grey (H, W), uint8 or float32 in [0, 1].

    Raises ValueError that names the file, or the shape or the values and the ones that are understood, and FileNotFoundError.
    """
    if isinstance(image, Record):
        return _of_file(image.path, lambda: read_record("", image))
    if isinstance(image, str | os.PathLike):
        path = given_path(image)
        _refuse_array_file(path)
        return _of_file(path, lambda: _first_frame(path))
    if isinstance(image, Image.Image):
        check_size(*image.size)
        if getattr(image, "n_frames", 1) > 1 and not image.tell():
            warnings.warn(f"{_name_of(image)} has {image.n_frames} frames: this is the first alone", stacklevel=3)
        return grey_of_image(ImageOps.exif_transpose(image), white_is_zero(image))
    array = _numbers(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 3)):
        more = ""
        if array.ndim == 3 and (array.shape[-1] in (2, 4) or array.shape[0] == 4):
            more = "; of one with transparency give the other channels, or Image.fromarray of (H, W, 4)"
        elif array.ndim > 2:
            more = "; a batch is given by itself, not in a list"
        raise ValueError(
            f"an image of shape {array.shape} is not understood: give (H, W), (H, W, 3) or (3, H, W){more}"
        )
    _check_shape(array.shape, array.shape[:2])
    array = _in_range(array)
    if array.ndim == 2:
        return array
    if array.dtype == np.uint8:  # as a file of these colours would become grey
        return np.asarray(Image.fromarray(np.ascontiguousarray(array)).convert("L"))
    return array @ LUMINANCE


def _of_file(path: str | Path, read: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _first_frame(path: Path) -> np.ndarray:
    if path.is_dir():
        raise ValueError("a folder is given by itself, not in a list of images")
    contents = frames.contents_of(path)
    if contents is not None and contents.count * len(contents.crops) > 1:
        regions = f" of {len(contents.crops)} regions" * (len(contents.crops) > 1)
        warnings.warn(
            f"{path} has {contents.count} frames{regions}: in a list the first alone is taken, else {ALL_FRAMES}",
            stacklevel=4,
        )
    return read_grey(path)


def _name_of(image: Image.Image) -> str:
    return str(getattr(image, "filename", "") or "a PIL image")


def _refuse_array_file(path: Path) -> None:
    if path.suffix.lower() == ".npy":
        raise ValueError(
            f"{path} is a file of numbers: give np.load({str(path)!r}), after a look at its shape and range"
        )


def _numbers(images) -> np.ndarray:
    """An array or a tensor of any kind as a NumPy array; ValueError that says what to give for what is none."""
    for kind, name, remedy in REFUSED:
        if isinstance(images, kind):
            raise ValueError(WHAT_TO_GIVE.format(name, remedy))
    if isinstance(images, Tensor):
        return _of_tensor(images)
    if isinstance(images, np.ma.MaskedArray):
        if np.ma.is_masked(images):
            raise ValueError(
                f"a masked array hides {np.ma.count_masked(images)} of its numbers: say what stands there, images.filled(0)"
            )
        images = images.data
    try:
        array = np.asarray(images)
    except Exception as error:  # whatever the class of another library raises
        raise ValueError(f"a {type(images).__name__} cannot be made an array: {one_line(error)}") from error
    if array.ndim == 0 and array.dtype.kind in "OUSV":
        raise ValueError(WHAT_TO_GIVE.format(f"a {type(images).__name__}", GIVE))
    return array


def _of_tensor(images: Tensor) -> np.ndarray:
    kind = images.dtype
    if images.is_nested:
        raise ValueError("a nested tensor is no batch of one size: give the list of its images, images.unbind()")
    if images.is_meta:
        raise ValueError("a tensor on the device meta has no numbers: make it on the cpu")
    if images.is_quantized or images.layout != torch.strided:
        remedy = "images.dequantize()" if images.is_quantized else "images.to_dense()"
        raise ValueError(f"a tensor of {kind}, {images.layout}, is not understood: give {remedy}")
    images = images.detach().cpu()
    try:
        if kind.is_floating_point and kind not in (torch.float16, torch.float32, torch.float64):
            images = images.float()
        return images.resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError) as error:  # kinds that pack several numbers into a byte
        raise ValueError(f"a tensor of {kind} is not understood: give uint8, or float in [0, 1]") from error


def _is_one(array: np.ndarray) -> bool:
    """Whether an array is one image, no batch; ValueError where it can be read in two ways."""
    shape = array.shape
    if len(shape) == 3 and shape[0] == 3 and shape[-1] not in (1, 2, 3, 4) and array.size:
        raise ValueError(
            f"an array of shape {shape} may be one image in colour or three grey ones: give images[None] for the one, "
            "images[:, None] for the three"
        )
    return len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 2, 3, 4))  # no image is so narrow


def _check_shape(whole: tuple[int, ...], sides: tuple[int, ...]) -> None:
    try:
        check_size(sides[1], sides[0])
    except ValueError as error:
        raise ValueError(f"images of shape {whole}: {error}") from error


def _in_range(array: np.ndarray) -> np.ndarray:
    """Numbers of one image as uint8 or float32 in [0, 1]; ValueError for what is in no range that is known."""
    kind = array.dtype.kind
    if not array.size:
        return array if array.dtype == np.uint8 else array.astype(np.float32)
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind not in "iuf":
        signal = " (a signal? its image is the logarithm of its envelope)" if kind == "c" else ""
        raise ValueError(f"an image of {array.dtype} is not understood: give uint8, or float in [0, 1]{signal}")
    low, high = float(array.min()), float(array.max())
    if 0 < high <= (1.001 / 255 if kind == "f" else 1) and low >= 0:
        warnings.warn(
            f"images of {array.dtype} hold nothing above {high:.3g}, which is black: of floats the range is 0 to 1, of whole "
            "numbers 0 to 255",
            stacklevel=4,
        )
    if array.dtype == np.uint8:
        return array
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


def _channels_first(array: np.ndarray) -> Tensor:
    shape = array.shape
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and shape[-1] in (1, 3):
        array = np.moveaxis(array, -1, 1)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(
            f"images of shape {shape} are not understood: give (N, H, W), (N, 1 or 3, H, W), (N, H, W, 1 or 3), or a list"
        )
    _check_shape(shape, array.shape[-2:])
    if array.dtype.kind in "iu" and array.dtype != np.uint8:  # each by its own range, as files are
        array = np.stack([_in_range(one) for one in array]) if len(array) else array.astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(_in_range(array)))
