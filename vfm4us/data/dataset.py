"""A prepared dataset: the packed pixels of a source, opened read-only and memory-mapped."""

import copy
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from vfm4us.data import splits as splitting
from vfm4us.data.decode import one_line
from vfm4us.data.records import Record, read_manifest

RESAMPLING = Image.Resampling.LANCZOS  # antialiased when it reduces


def packed_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width in the packed frame: the longer side becomes `size`, the shape is kept."""
    longer = max(height, width)
    return max(1, int(height * size / longer + 0.5)), max(1, int(width * size / longer + 0.5))


def in_frame(pixels: np.ndarray, height: int, width: int, size: int, resampling) -> np.ndarray:
    """The pixels, uint8 (H, W), resized to height x width, at the top left of a black frame (size, size)."""
    frame = np.zeros((size, size), np.uint8)
    if pixels.shape != (height, width):
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height), resampling))
    frame[:height, :width] = pixels
    return frame


def check_same_shape(what: str, partner: np.ndarray, image: np.ndarray, size: int) -> None:
    """Refuse a mask or target that cannot lie over its image; a mere difference in scale is fine."""
    packed = packed_size(*partner.shape, size), packed_size(*image.shape, size)
    if max(abs(a - b) for a, b in zip(*packed, strict=True)) > 1:
        sizes = [f"{array.shape[1]} x {array.shape[0]}" for array in (partner, image)]
        raise ValueError(f"{what} has {sizes[0]} pixels, its image {sizes[1]}: the shapes differ")


class PreparedDataset:
    """A prepared folder, opened read-only and memory-mapped: N images of S x S pixels and what is known of each.

    images, masks, targets: uint8 (N, S, S), the last two None where the source had none; valid: int32 (N, 4) rows of
    top, left, height, width in packed pixels; labels, groups, splits, ids, sha256 per image; phash: uint64 (N,).
    Raises FileNotFoundError where there is no prepared dataset and ValueError where it is damaged.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        description = self.folder / "dataset.json"
        if not description.is_file():
            partial = beside(self.folder, ".partial")
            if partial.exists():
                raise FileNotFoundError(f"{self.folder} is not finished: prepare it again, {partial.name} is continued")
            raise FileNotFoundError(
                f"{self.folder} is no prepared dataset (no dataset.json): make it with scripts/prepare_data.py"
            )
        try:
            self.description = json.loads(description.read_text(encoding="utf-8"))
            if not self.description["complete"]:
                raise ValueError("it is not complete")
            self.name, self.size = self.description["name"], int(self.description["size"])
            self.records = read_manifest(self.folder / "manifest.csv")
            for record in self.records:
                record.coding = self.mask_coding if record.mask else None
            shape = (int(self.description["count"]), self.size, self.size)
            if len(self.records) != shape[0]:
                raise ValueError(f"manifest.csv has {len(self.records)} rows for {shape[0]} images")
            self.images = _mapped(self.folder / "images.npy", shape)
            self.masks = _mapped(self.folder / "masks.npy", shape) if self.description["masks"] else None
            self.targets = _mapped(self.folder / "targets.npy", shape) if self.description["targets"] else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = one_line(error)
            raise ValueError(f"{self.folder} is damaged ({reason}): delete it and prepare it again") from error
        sides = ("top", "left", "valid_height", "valid_width")
        self.valid = np.array([[getattr(r, side) for r in self.records] for side in sides], dtype=np.int32).T.copy()
        if self.description.get("blank"):
            self._fill_where_read()
        self.ids = [record.id for record in self.records]
        self.labels = [record.label for record in self.records]
        self.groups = np.array([record.group for record in self.records], dtype=str)
        self.splits = np.array([record.split for record in self.records], dtype=str)
        self.phash = np.array([int(record.phash, 16) for record in self.records], dtype=np.uint64)
        self.sha256 = [record.sha256 for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def _fill_where_read(self) -> None:
        """Let the files of this set be filled where they are read at their own size, as the packed images are."""
        from vfm4us.data import filling, overlays

        kept = self.folder / overlays.PLACES
        if kept.is_file():
            filling.fill(self.records, self.valid, *overlays.read_places(kept))
            return
        for record in self.records:
            record.filled = filling.LostFilling(self.folder)

    @property
    def ignore(self) -> int | None:
        """The value of packed masks that counts nowhere, in no loss and no figure; None where no mask holds one."""
        return self.description.get("ignore")

    @property
    def mask_classes(self) -> dict[str, str]:
        """Class number -> the grey or colour of the mask files, where it is not the number itself."""
        return self.description.get("mask_classes") or {}

    @property
    def mask_coding(self) -> dict | None:
        """What the values of the mask files mean, for `masks.MaskCoding.from_plain`; None without masks."""
        return self.description.get("mask_coding")

    def indices(self, split: str | None = None, limit: int | None = None, seed: int = 0) -> np.ndarray:
        """Sorted int64 indices of a split, or with None of everything that is not `exclude`.

        `limit` takes a seeded random subset of that many, spread over as many groups as possible.
        """
        if split is not None and split not in ("train", "val", "test", "exclude"):
            raise ValueError(f"split={split!r}: use train, val, test or exclude")
        wanted = self.splits != "exclude" if split is None else self.splits == split
        rows = np.flatnonzero(wanted).astype(np.int64)
        if limit is None or limit >= len(rows):
            return rows
        if limit < 0:
            raise ValueError(f"limit={limit}: give a number of images, or none")
        shuffled = np.random.default_rng(seed).permutation(rows)
        seen, turn = Counter(), []
        for group in self.groups[shuffled].tolist():
            turn.append(seen[group])
            seen[group] += 1
        return np.sort(shuffled[np.argsort(turn, kind="stable")[:limit]])  # the first of each group, then the second

    def hold_back(self, folds: int, fold: int) -> "PreparedDataset":
        """The same images with the `fold`-th of `folds` parts of train and val as val, and all the rest of them as train.

        For cross-fitting: over all folds every image is held back once, by whole groups and about the labels' shares.
        test and exclude stay. A function of groups, labels and `folds` alone. Raises ValueError for a fold that is not there.
        """
        used = np.flatnonzero(np.isin(self.splits, ["train", "val"]))
        if not 0 <= fold < folds or folds < 2 or len(set(self.groups[used])) < folds:
            raise ValueError(
                f"{self.folder}: fold {fold} of {folds} cannot be held back: folds count from 0, there are at least two, and "
                f"no more than groups ({len(set(self.groups[used]))})"
            )
        place = splitting.folds(self.groups[used], np.asarray(self.labels)[used], folds)
        other = copy.copy(self)
        other.splits = self.splits.copy()
        other.splits[used] = np.where(place == fold, "val", "train")
        return other

    def test_on_fold(self, folds: int, fold: int, with_test: bool = False) -> "PreparedDataset":
        """The same images with the `fold`-th of `folds` parts of train and val as test; the rest of them stay what they are.

        Images of the test split are `exclude`, or `with_test` tested as well. Folds and errors are those of `hold_back`.
        """
        other = self.hold_back(folds, fold)
        kept = self.splits if with_test else np.where(self.splits == "test", "exclude", self.splits)
        other.splits = np.where(other.splits == "val", "test", kept)
        return other

    def thumbnail_of(self, index: int) -> np.ndarray:
        """The 32 x 32 picture of an image by which duplicates are confirmed (see `splits.thumbnail`)."""
        return splitting.thumbnail(valid_part(self.images, self.records[index], index))

    def fingerprints(self, indices=None) -> "Fingerprints":
        """What `splits.leakage` compares, of all images or of those at `indices`."""
        return Fingerprints(self, np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64))


class Fingerprints:
    """ids, sha256 and phash of some images of a dataset, and their thumbnails on demand."""

    def __init__(self, dataset: PreparedDataset, indices: np.ndarray):
        self.dataset, self.indices = dataset, indices
        self.ids = [dataset.ids[i] for i in indices]
        self.sha256 = [dataset.sha256[i] for i in indices]
        self.phash = dataset.phash[indices]

    def thumbnail_of(self, index: int) -> np.ndarray:
        """The thumbnail of a fingerprint's image, uint8."""
        return self.dataset.thumbnail_of(int(self.indices[index]))


def is_prepared(folder) -> bool:
    """Whether the folder is a prepared dataset."""
    folder = Path(folder)
    return (folder / "dataset.json").is_file() and (folder / "images.npy").is_file()


def valid_part(images: np.ndarray, record: Record, index: int) -> np.ndarray:
    """The pixels of one image without the margin of its frame, uint8 (valid_height, valid_width); a copy."""
    bottom, right = record.top + record.valid_height, record.left + record.valid_width
    return np.ascontiguousarray(images[index, record.top : bottom, record.left : right])


def _mapped(path: Path, shape: tuple) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape != shape or array.dtype != np.uint8:
        raise ValueError(f"{path.name} is {array.dtype} {array.shape}, not uint8 {shape}")
    return array


def beside(folder: Path, ending: str) -> Path:
    """The absolute path of what lies beside a folder under its name with an ending: data/busi, .lock -> data/busi.lock."""
    folder = Path(os.path.abspath(folder))
    return folder.with_name(folder.name + ending)
