"""MedMNIST's .npz files: images of all three parts in one file, with their labels (Yang 2023)."""

import zipfile
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vfm4us.data import limits
from vfm4us.data.frames import Contents
from vfm4us.data.greys import common_range, range_of_file, to_8_bit
from vfm4us.data.signatures import what_file_is

PARTS = ("train", "val", "test")
MAXIMUM_BYTES = 2 * 1024**3  # of one array
NAMES = {"breastmnist": {"0": "malignant", "1": "normal or benign"}}  # by the beginning of the file's name


def contents(path) -> Contents:
    """Images, labels and splits; ValueError where the file holds other arrays."""
    told = Contents("arrays", count=0, rate=0)
    names = next((names for begin, names in NAMES.items() if str(path).split("/")[-1].lower().startswith(begin)), {})
    with _opened(path) as file:
        for part, (count, *_) in _parts(file):
            labels = _array(file, f"{part}_labels") if f"{part}_labels.npy" in file.namelist() else None
            if labels is not None and (len(labels) != count or labels.size != count):
                several = "has several labels per image, which are not used"
                told.notes += [several] * (several not in told.notes)
                labels = None
            told.count += count
            told.splits += [part] * count
            values = [] if labels is None else labels.reshape(-1).tolist()
            labels_of_split = [_label(value) for value in values] or [""] * count
            told.labels += [names.get(label, label) for label in labels_of_split]
    return told


def _label(value) -> str:
    """A number as a label: 1 and 1.0 are one, NaN is none."""
    return str(value) if isinstance(value, int) else "" if np.isnan(value) else f"{value:g}"


def read_images(path, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, grey uint8 (H, W)) of the images asked for, counted through train, val and test."""
    with _opened(path) as file, limits.hold(limits.MAXIMUM_PIXELS):
        begin = 0
        for part, (count, *_) in _parts(file):
            in_split = [number for number in numbers if begin <= number < begin + count]
            if in_split:
                images = _array(file, f"{part}_images")
                value_range = None
                if images.dtype != np.uint8:
                    value_range = range_of_file(path, lambda: common_range(_all_images(file)))
                for number in in_split:
                    pixels = to_8_bit(np.ascontiguousarray(images[number - begin]), value_range)
                    yield number, np.asarray(Image.fromarray(pixels).convert("L")) if pixels.ndim == 3 else pixels
            begin += count


def _all_images(file: zipfile.ZipFile) -> Iterator[np.ndarray]:
    for part, _ in _parts(file):
        yield _array(file, f"{part}_images")


def _opened(path) -> zipfile.ZipFile:
    limits.refuse_special(path)
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ValueError(f"no array can be read from it{what_file_is(path, 'ZIP') or f': {error}'}") from None


def _parts(file: zipfile.ZipFile) -> list[tuple[str, tuple[int, ...]]]:
    """(part, shape of its images) in the order of PARTS."""
    parts = []
    for part in PARTS:
        if f"{part}_images.npy" not in file.namelist():
            continue
        shape = _header(file, f"{part}_images")[0]
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3):
            raise ValueError(f"{part}_images is of shape {shape}; expected (N, H, W) or (N, H, W, 3)")
        limits.check_size(shape[2], shape[1])
        parts.append((part, shape))
    if not parts:
        names = ", ".join(name.removesuffix(".npy") for name in file.namelist()[:6])
        raise ValueError(
            f"is not of MedMNIST: expected train_images, val_images or test_images, found {names or 'nothing'}: save "
            "its images as PNG"
        )
    return parts


def _header(file: zipfile.ZipFile, name: str):
    """Shape and type of an array, found to be no larger than what the file holds of it."""
    info = file.getinfo(f"{name}.npy")
    try:
        with file.open(info) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
    except (ValueError, zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"{name} is damaged: {' '.join(str(error).split())[:80]}") from None
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if dtype.kind not in "biuf" or size > min(info.file_size, MAXIMUM_BYTES):
        raise ValueError(f"{name} is no array of numbers that the file can hold")
    return shape, dtype


def _array(file: zipfile.ZipFile, name: str) -> np.ndarray:
    _header(file, name)
    try:
        with file.open(f"{name}.npy") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except (ValueError, zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"{name} is damaged: {' '.join(str(error).split())[:80]}") from None
