"""Burnt-in text that is filled wherever an image is read: the places found on packed images, brought to the file's own pixels.

`reading.blank` fills packed images. Tests and evaluations read files at their original size, where the same places must be filled.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image

from vfm4us.data import overlays
from vfm4us.data.dataset import RESAMPLING, in_frame, packed_size
from vfm4us.data.decode import read_record
from vfm4us.data.records import Record

SIZE = 256  # px at which places are looked for, where nothing is packed


@dataclass
class Filling:
    """Places bool (h, w), of the packed image without its padding, that are filled in the image at any size."""

    where: np.ndarray

    def on(self, image: np.ndarray) -> np.ndarray:
        """The image, uint8 (H, W), filled at these places from their neighbourhood."""
        height, width = image.shape
        where = Image.fromarray(self.where).resize((width, height), Image.Resampling.NEAREST)
        return overlays.blank(image, np.asarray(where), (0, 0, height, width), max(1.0, height / self.where.shape[0]))


@dataclass
class LostFilling:
    """Stands where a set was filled by a version that kept no places."""

    folder: Path

    def on(self, image: np.ndarray) -> np.ndarray:
        """ValueError: the file would be read with its text."""
        raise ValueError(f"{self.folder} was filled without keeping where: delete it and prepare it again")


def fill(records: list[Record], valid: np.ndarray, places: list[np.ndarray], carried: list[list[int]]) -> None:
    """Let records be filled where they are read; `places` bool (S, S), `carried` the indices of the records that carry each."""
    whole: dict[int, np.ndarray] = {}
    for where, indices in zip(places, carried, strict=True):
        for index in indices:
            whole[index] = whole[index] | where if index in whole else where
    for index, where in whole.items():
        top, left, height, width = (int(v) for v in valid[index])
        records[index].filled = Filling(where[top : top + height, left : left + width])


def fill_unpacked(root: Path, records: list[Record], size: int = 0) -> int:
    """Look for what is burnt into images that are not packed, and let it be filled where they are read; how many carry any.

    size: longer side at which is looked, px; that of the training images where there are such
    """
    size = size or SIZE
    if not records:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        images = open_memmap(Path(folder) / "images.npy", "w+", np.uint8, (len(records), size, size))
        valid, geometries, read = np.zeros((len(records), 4), np.int32), [], []
        for index, record in enumerate(records):
            try:
                image = read_record(root, record)
            except ValueError:
                continue  # it is named where it is read for itself
            height, width = packed_size(*image.shape, size)
            images[index] = in_frame(image, height, width, size, RESAMPLING)
            valid[index, 2:] = height, width
            geometries.append((*image.shape, record.crop))
            read.append(index)
        chosen = [records[index] for index in read]
        all_places = overlays.find(
            images[read],
            valid[read],
            geometries,
            [r.group or r.id for r in chosen],
            [r.path + str(r.frame) for r in chosen],
        )
    carried = [[i for i, carries in zip(p.indices, p.carried, strict=True) if carries] for p in all_places]
    fill(chosen, valid[read], [places.where for places in all_places], carried)
    return len(overlays.carrying(all_places))
