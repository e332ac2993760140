"""Packed pixels: every image of a source decoded once, checked, and laid down as one memory-mapped array.

A prepared dataset is a folder: `images.npy` uint8 (N, S, S), perhaps `masks.npy` and `targets.npy` of the same shape,
`manifest.csv`, `rejected.csv`, `dataset.json`. It appears whole, by a rename, or not at all.
"""

import contextlib
import copy
import csv
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps
from scipy.ndimage import maximum_filter, minimum_filter
from tqdm import tqdm

from vfm4us.data import arrays
from vfm4us.data import splits as splitting
from vfm4us.data.manifest import Record, find_source, read_manifest, source_root, write_manifest

try:
    import fcntl
except ImportError:  # Windows: no file locks, so two processes must not prepare the same folder at once
    fcntl = None

VERSION = 1  # of the packed format: a dataset of another version is prepared anew
MAXIMUM_PIXELS = 64_000_000
MAXIMUM_BYTES = 512 * 1024**2
MINIMUM_SIDE = 16  # pixels
MAXIMUM_ASPECT = 16  # longer side over shorter side
CLASS_LIMIT = 16  # a mask whose largest value is at most this holds class numbers
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
RESAMPLING = Image.Resampling.LANCZOS  # antialiased when it reduces
NPY_HEADER = 128  # bytes, for any N and S
SAVE_EVERY = 3.0  # seconds of work that an interruption may cost


# reading one file


def read_grey(path) -> np.ndarray:
    """Read an image file as uint8 (H, W), the first frame, turned as its EXIF orientation says.

    Colour becomes luminance (ITU-R 601), transparency is composited on black, 1-bit becomes 0 and 255. 10, 12, 14 and
    16-bit grey is divided by the full range of the smallest of 8, 10, 12, 14, 16 bits that holds the image's maximum,
    so that 12-bit data in a 16-bit file is not black. Float images in [0, 1] are scaled by 255, in [0, 255] rounded;
    anything else (negative, 32-bit, larger) is stretched from its minimum to its maximum.
    Raises ValueError with a one-line reason: unreadable, not an image, truncated, too large or too small.
    """
    return _grey_of(_file_bytes(path))


def read_mask(path) -> np.ndarray:
    """Read a mask file as uint8 class numbers (H, W).

    Palette indices and integers up to CLASS_LIMIT are kept as they are; in anything else, and in every JPEG, whose
    compression noise would pass for classes, the brightest channel above 127 is class 1. NumPy files are read as
    `vfm4us.data.arrays` says. Raises ValueError, also where several greys or colours fill areas, which are classes that the
    threshold would merge or lose.
    """
    return _mask_of(_file_bytes(path))


def read_masks(root, record: Record, image: np.ndarray, size: int) -> np.ndarray | None:
    """All masks of a record on the pixels of its `image` (H, W): class numbers uint8 (H, W), the largest where several lie.

    A mask of another scale is resized by the nearest pixel; one of another shape, judged at `size` px, is a ValueError that names
    its file, as is one that cannot be read. None where the record has no mask.
    """
    whole = None
    for path in record.mask_paths:
        try:
            layer = read_mask(Path(root) / path)
        except ValueError as error:
            raise ValueError(f"its mask {path}: {error}") from error
        _same_shape(f"its mask {path}", layer, image, size)
        if layer.shape != image.shape:
            layer = np.asarray(Image.fromarray(layer).resize(image.shape[::-1], Image.Resampling.NEAREST))
        whole = layer if whole is None else np.maximum(whole, layer)
    return whole


def _file_bytes(path) -> bytes:
    """The whole file; raises ValueError with a reason that leaves out the path, which stands beside it."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("not a regular file")
            if status.st_size > MAXIMUM_BYTES:
                raise ValueError(f"{status.st_size} bytes is over the limit of {MAXIMUM_BYTES}")
            data = file.read()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from error
    if not data:
        raise ValueError("empty file (0 bytes)")
    return data


def _decoded(data: bytes) -> Image.Image:
    """The decoded, upright PIL image in the file's own mode; anything a damaged file provokes becomes a ValueError."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: half-decoded images would pass as whole ones")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"not an image in {', '.join(FORMATS)} format, or its header is damaged") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"over the limit of {MAXIMUM_PIXELS // 10**6} megapixels: {_one_line(error)}") from error
    except Exception as error:  # decoders of damaged files raise SyntaxError, EOFError, struct.error, KeyError, ...
        raise ValueError(f"damaged header: {_one_line(error)}") from error
    width, height = image.size
    if width * height > MAXIMUM_PIXELS:  # known from the header, before any pixel is decoded
        raise ValueError(f"{width} x {height} pixels is over the limit of {MAXIMUM_PIXELS // 10**6} megapixels")
    if min(width, height) < MINIMUM_SIDE:
        raise ValueError(f"{width} x {height} pixels is too small: the shorter side must have {MINIMUM_SIDE}")
    if max(width, height) > MAXIMUM_ASPECT * min(width, height):
        raise ValueError(f"{width} x {height} pixels is too narrow: sides may differ {MAXIMUM_ASPECT}-fold")
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"truncated or damaged: {_one_line(error)}") from error


def _grey_of(data: bytes) -> np.ndarray:
    image = _decoded(data)
    mode = image.mode
    if mode == "F" or mode.startswith("I"):
        return _to_8_bit(np.asarray(image))
    if mode == "LAB":  # PIL cannot convert it; its first channel is lightness
        return np.asarray(image.getchannel(0))
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        colour = image.convert("RGBA") if mode != "La" else image.convert("LA").convert("RGBA")
        black = Image.new("RGBA", colour.size, (0, 0, 0, 255))
        return np.asarray(Image.alpha_composite(black, colour).convert("L"))
    if mode in ("L", "1"):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGB").convert("L"))


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """Bring 16-bit, 32-bit and float pixels to uint8, as `read_grey` says."""
    pixels = pixels.astype(np.float64)
    if not np.isfinite(pixels).all():
        raise ValueError("holds pixels that are not finite (NaN or infinity)")
    low, high = float(pixels.min()), float(pixels.max())
    whole = bool((pixels == np.round(pixels)).all())
    if low >= 0 and high <= 1 and not whole:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 65535 and (whole or high <= 255):
        low, high = 0.0, next(2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if high <= 2**bits - 1)
    span = max(high - low, 1e-12)
    return np.floor((pixels - low) * (255 / span) + 0.5).clip(0, 255).astype(np.uint8)


def _mask_of(data: bytes) -> np.ndarray:
    if arrays.is_array_file(data):
        pixels = arrays.mask_of_arrays(data)
        return pixels if pixels.max(initial=0) <= CLASS_LIMIT else (pixels > 127).astype(np.uint8)
    lossy = data[:2] == b"\xff\xd8"
    image = _decoded(data)
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# packing one image


def packed_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width in the packed frame: the longer side becomes `size`, the shape is kept."""
    longer = max(height, width)
    return max(1, int(height * size / longer + 0.5)), max(1, int(width * size / longer + 0.5))


def _pack(pixels: np.ndarray, height: int, width: int, size: int, resampling) -> np.ndarray:
    frame = np.zeros((size, size), np.uint8)
    if pixels.shape != (height, width):
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height), resampling))
    frame[:height, :width] = pixels
    return frame


def _same_shape(what: str, partner: np.ndarray, image: np.ndarray, size: int) -> None:
    """Refuse a mask or target that cannot lie over its image; a mere difference in scale is fine."""
    packed = packed_size(*partner.shape, size), packed_size(*image.shape, size)
    if max(abs(a - b) for a, b in zip(*packed, strict=True)) > 1:
        sizes = [f"{array.shape[1]} x {array.shape[0]}" for array in (partner, image)]
        raise ValueError(f"{what} has {sizes[0]} pixels, its image {sizes[1]}: the shapes differ")


def _prepare_one(root: Path, record: Record, size: int):
    """Read, check and pack one record: (record, image, mask or None, target or None), or the reason for refusing it."""
    try:
        data = _file_bytes(root / record.path)
        grey = _grey_of(data)
        height, width = packed_size(*grey.shape, size)
        target = None
        mask = read_masks(root, record, grey, size)
        if mask is not None:
            mask = _pack(mask, height, width, size, Image.Resampling.NEAREST)
        if record.target:
            try:
                target = read_grey(root / record.target)
            except ValueError as error:
                raise ValueError(f"its target {record.target}: {error}") from error
            _same_shape(f"its target {record.target}", target, grey, size)
            target = _pack(target, height, width, size, RESAMPLING)
    except ValueError as error:
        return str(error)
    done = replace(
        record,
        height=grey.shape[0],
        width=grey.shape[1],
        valid_height=height,
        valid_width=width,
        sha256=hashlib.sha256(data).hexdigest(),
        phash=f"{int(splitting.perceptual_hash(grey)):016x}",
    )
    return done, _pack(grey, height, width, size, RESAMPLING), mask, target


# the prepared dataset


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
            partial = _beside(self.folder, ".partial")
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
            shape = (int(self.description["count"]), self.size, self.size)
            if len(self.records) != shape[0]:
                raise ValueError(f"manifest.csv has {len(self.records)} rows for {shape[0]} images")
            self.images = _mapped(self.folder / "images.npy", shape)
            self.masks = _mapped(self.folder / "masks.npy", shape) if self.description["masks"] else None
            self.targets = _mapped(self.folder / "targets.npy", shape) if self.description["targets"] else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = _one_line(error)
            raise ValueError(f"{self.folder} is damaged ({reason}): delete it and prepare it again") from error
        rectangles = [(r.top, r.left, r.valid_height, r.valid_width) for r in self.records]
        self.valid = np.array(rectangles, dtype=np.int32).reshape(-1, 4)
        self.ids = [record.id for record in self.records]
        self.labels = [record.label for record in self.records]
        self.groups = np.array([record.group for record in self.records], dtype=str)
        self.splits = np.array([record.split for record in self.records], dtype=str)
        self.phash = np.array([int(record.phash, 16) for record in self.records], dtype=np.uint64)
        self.sha256 = [record.sha256 for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def indices(self, split: str | None = None, limit: int | None = None, seed: int = 0) -> np.ndarray:
        """Sorted int64 indices of a split, or with None of everything that is not `exclude`.

        `limit` takes a seeded random subset of that many, spread over as many groups as possible.
        """
        if split is not None and split not in ("train", "val", "test", "exclude"):
            raise ValueError(f"split={split!r}: use train, val, test or exclude")
        wanted = self.splits != "exclude" if split is None else self.splits == split
        found = np.flatnonzero(wanted).astype(np.int64)
        if limit is None or limit >= len(found):
            return found
        if limit < 0:
            raise ValueError(f"limit={limit}: give a number of images, or none")
        shuffled = np.random.default_rng(seed).permutation(found)
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

    def thumbnail_of(self, index: int) -> np.ndarray:
        """The 32 x 32 picture of an image by which duplicates are confirmed (see `splits.thumbnail`)."""
        return splitting.thumbnail(_valid_part(self.images, self.records[index], index))

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
        return self.dataset.thumbnail_of(int(self.indices[index]))


def is_prepared(folder) -> bool:
    """Whether the folder is a prepared dataset."""
    folder = Path(folder)
    return (folder / "dataset.json").is_file() and (folder / "images.npy").is_file()


def open_or_prepare(path, cache: Path, size: int, splits=(0.8, 0.1, 0.1), seed: int = 0) -> PreparedDataset:
    """Open a prepared folder as it is, or prepare a plain folder or CSV once into `cache` and open it from there.

    The folder in `cache` is named by the source's name, the size and a fingerprint of its files (paths, sizes, times),
    so a changed source is prepared anew. Two processes may ask at once: one prepares, the other waits.
    """
    path = Path(path)
    if is_prepared(path) or (not path.exists() and _beside(path, ".partial").exists()):
        return PreparedDataset(path)
    records = find_source(path)
    key = f"{path.resolve()} {_source_fingerprint(source_root(path), records)} {VERSION} {splits} {seed}"
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:8]
    folder = Path(cache) / f"{_source_name(path)}-{size}-{digest}"
    if is_prepared(folder):
        return PreparedDataset(folder)
    return prepare(path, folder, size=size, splits=splits, seed=seed)


def prepare(
    source,
    out,
    size: int = 256,
    splits=(0.8, 0.1, 0.1),
    seed: int = 0,
    progress: bool = True,
    workers: int | None = None,
) -> PreparedDataset:
    """Pack a source (see `find_source`) into the folder `out` and open it; the same call continues an interrupted one.

    Images are packed in the order of the source, the longer side resized to `size` pixels, padded with zeros at the
    bottom and right; bad ones are listed with a reason in rejected.csv. Groups the source leaves out are duplicate
    clusters, splits it leaves out are assigned by group in the shares `splits`. The work lies in `<out>.partial` until
    it is complete; an earlier dataset in `out` stays untouched until then. The bytes do not depend on `workers`
    (threads, by default one per core).
    Raises FileNotFoundError and ValueError (source, options, everything rejected, a group in two splits) and OSError
    (disk full).
    """
    source, out = Path(source), Path(os.path.abspath(out))
    splits = splitting.check_fractions(splits)
    if not isinstance(size, int) or not MINIMUM_SIDE <= size <= 4096:
        raise ValueError(f"size={size}: give the side of the packed images in pixels, {MINIMUM_SIDE} to 4096")
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: give 1 or more")
    if out.exists() and not is_prepared(out) and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no prepared dataset: choose another folder, nothing is overwritten")
    records = find_source(source)
    _check_groups(records)
    root = source_root(source)
    plan = {
        "version": VERSION,
        "size": size,
        "fractions": list(splits),
        "seed": seed,
        "source": str(source.resolve()),
        "fingerprint": _source_fingerprint(root, records),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(_beside(out, ".lock"), progress):
        if _is_of_plan(out, plan):
            return PreparedDataset(out)
        partial = _beside(out, ".partial")
        try:
            _pack_all(root, records, partial, plan, progress, workers)
            _finish(records, partial, out, plan)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            layers = 1 + any(record.mask for record in records) + any(record.target for record in records)
            needed = layers * len(records) * size * size / 1e6
            raise OSError(
                error.errno,
                f"the disk is full while preparing {out} (about {needed:.0f} MB in all): free some space and repeat "
                f"the same call, it goes on from {partial.name}",
            ) from error
    return PreparedDataset(out)


def _pack_all(root: Path, records: list[Record], partial: Path, plan: dict, progress: bool, workers: int | None):
    """Fill the partial folder: pixel rows at the end of images.npy and its like, one line per record in a journal.

    A journal line is written after the rows it stands for are on the disk, so what the journal says is always there;
    rows beyond it are written again. Plain writes, no memory map: on a full disk those raise, a map kills the process.
    """
    size = plan["size"]
    plan_file, journal = partial / "plan.json", partial / "journal.jsonl"
    if not (plan_file.is_file() and _read_json(plan_file) == plan):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_json(plan_file, plan)
    done, packed = _read_journal(journal)
    roles = ["images"] + ["masks"] * any(r.mask for r in records) + ["targets"] * any(r.target for r in records)
    with contextlib.ExitStack() as stack:
        rows = {}
        for role in roles:
            path = partial / f"{role}.npy"
            rows[role] = stack.enter_context(open(path, "r+b" if path.exists() else "w+b"))
            rows[role].truncate(NPY_HEADER + packed * size * size)
            rows[role].seek(0, os.SEEK_END)
            if rows[role].tell() < NPY_HEADER + packed * size * size:
                raise ValueError(f"{partial} is damaged: delete it and start again")
            rows[role].seek(NPY_HEADER + packed * size * size)
        log = stack.enter_context(open(journal, "ab"))
        bar = stack.enter_context(
            tqdm(total=len(records), initial=len(done), unit="image", disable=not progress, desc="packing")
        )
        lines, saved = [], time.monotonic()

        def save():
            for file in rows.values():
                file.flush()
                os.fsync(file.fileno())
            log.write(b"".join(lines))
            log.flush()
            os.fsync(log.fileno())
            lines.clear()

        remaining = range(len(done), len(records))
        for result in _in_order(lambda i: _prepare_one(root, records[i], size), remaining, workers):
            if isinstance(result, str):
                lines.append(json.dumps({"reason": result}).encode() + b"\n")
            else:
                record, *layers = result
                for role, layer in zip(("images", "masks", "targets"), layers, strict=True):
                    if role in rows:
                        rows[role].write(layer if layer is not None else bytes(size * size))
                lines.append(json.dumps({"record": asdict(record)}).encode() + b"\n")
            bar.update()
            if time.monotonic() - saved > SAVE_EVERY:
                save()
                saved = time.monotonic()
        save()


def _in_order(function, items, workers: int | None):
    """function(item) for every item, computed by threads, yielded in order, with a bounded number under way.

    Threads, because decoding, resizing and hashing release the interpreter lock, and because processes would need a
    main guard in every notebook.
    """
    workers = workers or min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    pool = ThreadPoolExecutor(workers)
    under_way = deque()
    try:
        for item in items:
            under_way.append(pool.submit(function, item))
            if len(under_way) >= 4 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read_journal(path: Path) -> tuple[list[dict], int]:
    """The entries of a journal and how many of them are packed; a last line cut off by a crash is cut away."""
    if not path.exists():
        return [], 0
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with open(path, "r+b") as file:
            file.truncate(len(whole))
    entries = [json.loads(line) for line in whole.splitlines()]
    return entries, sum("record" in entry for entry in entries)


def _finish(sources: list[Record], partial: Path, out: Path, plan: dict) -> None:
    """Write what is known only at the end, then let the dataset appear by one rename."""
    size = plan["size"]
    entries, count = _read_journal(partial / "journal.jsonl")
    rejected = [(r.path, e["reason"]) for r, e in zip(sources, entries, strict=True) if "reason" in e]
    if not count:
        first = "; ".join(f"{path}: {reason}" for path, reason in rejected[:3])
        shutil.rmtree(partial)
        raise ValueError(f"none of the {len(rejected)} images of {plan['source']} can be used: {first}")
    records = [Record(**entry["record"]) for entry in entries if "record" in entry]
    present = {"images": True, "masks": any(r.mask for r in records), "targets": any(r.target for r in records)}
    for role, wanted in present.items():
        path = partial / f"{role}.npy"
        if wanted:
            with open(path, "r+b") as file:
                file.write(_npy_header(count, size))
                file.flush()
                os.fsync(file.fileno())
        else:
            path.unlink(missing_ok=True)
    images = np.load(partial / "images.npy", mmap_mode="r")
    crossing = _complete_groups_and_splits(records, images, plan)
    write_manifest(partial / "manifest.csv", records)
    with open(partial / "rejected.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "reason"])
        writer.writerows(rejected)
    for name in ("manifest.csv", "rejected.csv"):
        with open(partial / name, "rb") as file:
            os.fsync(file.fileno())
    description = {
        "name": out.name,
        **plan,
        "count": count,
        "rejected": len(rejected),
        "labels": dict(sorted(Counter(r.label for r in records).items())),
        "splits": dict(sorted(Counter(r.split for r in records).items())),
        "groups": len({r.group for r in records}),
        "masks": sum(bool(r.mask) for r in records),
        "targets": sum(bool(r.target) for r in records),
        "groups_in_two_splits": crossing,
        "complete": True,
    }
    _write_json(partial / "dataset.json", description)
    replaced = _beside(out, ".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        os.rename(out, replaced)
    os.rename(partial, out)
    _sync_folder(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    for name in ("plan.json", "journal.jsonl"):  # they let a call killed before the rename go on; now they are done
        (out / name).unlink(missing_ok=True)


def _complete_groups_and_splits(records: list[Record], images: np.ndarray, plan: dict) -> list[str]:
    """Fill in empty groups and splits; returns duplicate clusters that the source's own splits divide."""
    if any(not record.group for record in records):
        clusters = splitting.duplicate_clusters(
            [record.sha256 for record in records],
            np.array([int(record.phash, 16) for record in records], dtype=np.uint64),
            thumbnail_of=lambda i: splitting.thumbnail(_valid_part(images, records[i], i)),
        )
        names, members = {}, Counter(clusters.tolist())
        for record, cluster in zip(records, clusters.tolist(), strict=True):
            if record.group:
                names.setdefault(cluster, record.group)
        for record, cluster in zip(records, clusters.tolist(), strict=True):
            if not record.group:
                fallback = f"dup{cluster:06d}" if members[cluster] > 1 else record.id
                record.group = names.setdefault(cluster, fallback)
    given = {record.group: record.split for record in records if record.split not in ("", "exclude")}
    for record in records:
        if not record.split:
            record.split = given.get(record.group, "")
    open_ = [record for record in records if not record.split]
    names = splitting.assign([r.group for r in open_], plan["fractions"], [r.label for r in open_], plan["seed"])
    for record, name in zip(open_, names.tolist(), strict=True):
        record.split = name
    return _groups_in_two_splits(records)


def _groups_in_two_splits(records: list[Record]) -> list[str]:
    seen: dict[str, set] = {}
    for record in records:
        if record.group and record.split not in ("", "exclude"):
            seen.setdefault(record.group, set()).add(record.split)
    return sorted(group for group, found in seen.items() if len(found) > 1)


def _check_groups(records: list[Record]) -> None:
    divided = _groups_in_two_splits(records)
    if divided:
        where = sorted({r.split for r in records if r.group == divided[0]} - {"", "exclude"})
        raise ValueError(
            f"group {divided[0]!r} lies in the splits {' and '.join(where)} ({len(divided)} such groups): put each "
            "group into one split, or leave the split column empty"
        )


# files


def _valid_part(images: np.ndarray, record: Record, index: int) -> np.ndarray:
    bottom, right = record.top + record.valid_height, record.left + record.valid_width
    return np.ascontiguousarray(images[index, record.top : bottom, record.left : right])


def _mapped(path: Path, shape: tuple) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape != shape or array.dtype != np.uint8:
        raise ValueError(f"{path.name} is {array.dtype} {array.shape}, not uint8 {shape}")
    return array


def _npy_header(count: int, size: int) -> bytes:
    """An NPY 1.0 header of NPY_HEADER bytes whatever N is, so that rows can be written before N is known."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, {size}, {size}), }}"
    prefix = b"\x93NUMPY\x01\x00" + (NPY_HEADER - 10).to_bytes(2, "little")
    return prefix + text.encode().ljust(NPY_HEADER - 11) + b"\n"


def _source_fingerprint(root: Path, records: list[Record]) -> str:
    """A cheap fingerprint of what a source says and of its files' sizes and times; no file is opened."""
    digest = hashlib.sha256()
    for record in records:
        told = (record.id, record.path, record.label, record.group, record.split, record.mask, record.target)
        for path in (record.path, *record.mask_paths, record.target):
            with contextlib.suppress(OSError):  # a missing file is refused when it is read
                status = os.stat(root / path)
                told += (status.st_size, status.st_mtime_ns)
        digest.update(repr(told).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _source_name(path: Path) -> str:
    path = path.resolve()
    named_by_folder = path.is_file() and path.stem == "manifest"
    return (path.parent.name if named_by_folder else path.stem if path.is_file() else path.name) or "images"


def _is_of_plan(out: Path, plan: dict) -> bool:
    if not is_prepared(out):
        return False
    description = _read_json(out / "dataset.json")
    return bool(description.get("complete")) and all(description.get(key) == value for key, value in plan.items())


def _beside(folder: Path, ending: str) -> Path:
    folder = Path(os.path.abspath(folder))
    return folder.with_name(folder.name + ending)


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # cut off by a crash: the same as absent
        return {}


def _write_json(path: Path, content: dict) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _locked(path: Path, progress: bool):
    """Hold a lock file alone; a process that dies lets go of it by itself."""
    if fcntl is None:
        yield
        return
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                tqdm.write(f"another process is preparing {path.stem}: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        # the holder before us deletes the file: what we then hold is a name nobody else will find
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == os.stat(path).st_ino:
                break
        os.close(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
