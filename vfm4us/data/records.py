"""One image as a record, and the manifest.csv that holds them; names of files and of splits."""

import contextlib
import csv
import operator
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vfm4us.data import frames
from vfm4us.data.csv_files import read_cells, read_rows, without_collection, write_rows

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".gif", ".webp")
READ_EXTENSIONS = (
    *IMAGE_EXTENSIONS,
    *frames.CLIP_EXTENSIONS,
    *frames.VOLUME_EXTENSIONS,
    *frames.DICOM_EXTENSIONS,
    *frames.ARRAY_EXTENSIONS,
)
SPLITS = ("train", "val", "test", "exclude")
SPLIT_SYNONYMS = {
    "training": "train",
    "tr": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
    "excluded": "exclude",
}
PATH_SEPARATOR = ";"  # between several masks of one image

LESION_MASK = re.compile(r"^(?P<image>.+)_mask(?:_\d+)?$")  # BUSI: `x_mask.png`, `x_mask_1.png` belong to `x.png`


@dataclass(slots=True)
class Record:
    """One image: where it lies, what is known of it, and where its pixels stand in the packed S x S frame.

    `path`, `mask` and `target` stand as in the source; several masks are joined by ";", and a ";" within a name stands as
    "\\;". `height` and `width` are the native size in pixels, the valid rectangle is in pixels of the packed frame, `phash`
    is 16 hex digits. `split` is one of train, val, test, exclude, or "" while not yet decided. `frame` is the number, from 0,
    of a frame, page or slice of its file, `crop` the part "top left height width" of it in native pixels ("" is all),
    `spacing_mm` the distance of native rows and columns, "0.2 0.2", where known. `reason` says why the file is not read; it
    stands in no manifest. `coding` is how the masks of its whole set are read (`masks.MaskCoding`, or what finds it), `filled`
    what fills burnt-in text where it is read (`filling.Filling`).
    """

    id: str
    path: str
    label: str = ""
    group: str = ""
    split: str = ""
    mask: str = ""
    target: str = ""
    height: int = 0
    width: int = 0
    top: int = 0
    left: int = 0
    valid_height: int = 0
    valid_width: int = 0
    sha256: str = ""
    phash: str = ""
    frame: int = 0
    crop: str = ""
    spacing_mm: str = ""
    reason: str = ""
    coding: object = field(default=None, compare=False, repr=False)
    filled: Any = field(default=None, compare=False, repr=False)

    @property
    def mask_paths(self) -> list[str]:
        """The files of its mask; several outlines of one image may lie in several files."""
        return split_paths(self.mask)


COLUMNS = tuple(column.name for column in fields(Record) if column.name not in ("reason", "coding", "filled"))
INTEGER_COLUMNS = tuple(column.name for column in fields(Record) if column.type is int)
LATER_COLUMNS = ("frame", "crop", "spacing_mm")  # earlier manifests lack them


def joined_paths(paths) -> str:
    """Several paths as one cell, see `split_paths`."""
    return PATH_SEPARATOR.join(path.replace("\\", "\\\\").replace(";", "\\;") for path in paths)


def split_paths(cell: str) -> list[str]:
    """The paths of a cell: separated by ";", where "\\;" is a semicolon of a name."""
    parts = re.findall(r"(?:\\.|[^;\\])+", cell, re.DOTALL) if "\\" in cell else cell.split(PATH_SEPARATOR)
    return [re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL) for part in parts if part]


def natural_key(text: str) -> tuple:
    """Sorting key that puts `image 2` before `image 10`; ties are broken by the text itself."""
    parts = re.split(r"(\d+)", text)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], text


def without_extension(path: str) -> str:
    """A path without the extension of a format that is read here; any other ending stays, since it may be part of the name."""
    return frames.stem_of(path) if frames.extension_of(path) in READ_EXTENSIONS else path


def image_files(root: Path) -> list[str]:
    """Files below `root` that are read, as relative POSIX paths; symbolic links are followed, each folder once.

    A file without a known ending is one where it begins like DICOM. Within `one_walk` each folder is gone through once.
    """
    kept = _walks.get()
    if kept is None:
        return _walk(root)
    if root not in kept:
        kept[root] = _walk(root)
    return list(kept[root])


_walks: ContextVar[dict[Path, list[str]] | None] = ContextVar("walks", default=None)


@contextlib.contextmanager
def one_walk():
    """What `image_files` found stands for the whole block: on a network drive each walk takes minutes."""
    token = _walks.set({})
    try:
        yield
    finally:
        _walks.reset(token)


def folders_below(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """(relative POSIX path, folders, files) of `root`, "." itself, and all below; links are followed, each folder comes once.

    As in os.walk, a folder that is taken out of the list is not gone into. Raises OSError for a folder that cannot be read.
    """
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_raise):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above would go round for ever
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield Path(folder).relative_to(root).as_posix(), folders, names


def _walk(root: Path) -> list[str]:
    files = []
    for prefix, folders, names in folders_below(root):
        # hidden files include macOS's `._x.png`, which hold no image
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        for name in names:
            if not name.startswith(".") and is_read(root / prefix / name):
                files.append(name if prefix == "." else f"{prefix}/{name}")
    return files


def is_read(path) -> bool:
    """Whether a file is an image, a clip, a volume or DICOM: by its ending, without one by its beginning."""
    return frames.extension_of(path) in READ_EXTENSIONS or bool(frames.kind_of(path))


def with_unique_ids(records: list[Record]) -> list[Record]:
    """The same records with an id each of their own: where several share one, their path, with #2, #3 where that is taken."""
    counts = Counter(record.id for record in records)
    taken = {record.id for record in records if counts[record.id] == 1}
    for record in records:
        if counts[record.id] > 1:  # x.png and x.jpg: the extension tells them apart
            name, number = record.path, 2
            while name in taken:
                name, number = f"{record.path}#{number}", number + 1
            record.id = name
            taken.add(name)
    return records


def read_manifest(path) -> list[Record]:
    """Read the manifest.csv of a prepared dataset; half a million rows in two seconds."""
    path = Path(path)
    try:
        with without_collection():
            rows = read_cells(path)
            header = next(rows)
            absent = [name for name in LATER_COLUMNS if name not in header]
            defaults = [str(Record.__dataclass_fields__[name].default) for name in absent]
            place = {name: i for i, name in enumerate([*header, *absent])}
            width, cells = len(header), operator.itemgetter(*(place[name] for name in COLUMNS))
            whole = [COLUMNS.index(name) for name in INTEGER_COLUMNS]
            records = []
            for row in rows:
                values = list(cells(row[:width] + defaults if defaults else row))
                for number in whole:
                    values[number] = int(values[number])
                records.append(Record(*values))  # COLUMNS are the first fields, in their order
            return records
    except (StopIteration, LookupError, ValueError, csv.Error):
        return _read_row_by_row(path)


def _read_row_by_row(path: Path) -> list[Record]:
    """As `read_manifest`; where a row is damaged, a ValueError that names its line."""
    try:
        header, rows = read_rows(path)
    except csv.Error as error:
        raise ValueError(f"{path} is damaged ({error}): prepare it again") from error
    missing = [name for name in COLUMNS if name not in header and name not in LATER_COLUMNS]
    if missing:
        raise ValueError(f"{path} is not the manifest of a prepared dataset: it lacks {', '.join(missing)}")
    names = [name for name in COLUMNS if name in header]
    records = []
    for line, row in rows:
        try:
            records.append(Record(**{name: int(row[name]) if name in INTEGER_COLUMNS else row[name] for name in names}))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} line {line} is damaged ({error}): prepare it again") from error
    return records


def write_manifest(path, records: list[Record]) -> None:
    """Write records as manifest.csv (UTF-8, comma, one line per image)."""
    write_rows(path, COLUMNS, ([getattr(record, name) for name in COLUMNS] for record in records))


def split_name(text: str, where: str) -> str:
    """The split that a source's word stands for; raises ValueError listing the allowed words."""
    word = text.strip().lower()
    word = SPLIT_SYNONYMS.get(word, word)
    if word and word not in SPLITS:
        allowed = ", ".join(SPLITS + tuple(SPLIT_SYNONYMS))
        raise ValueError(f"{where}: unknown split {text!r}; use one of {allowed}, or leave it empty")
    return word


def _raise(error: OSError):
    raise error


def masks_beside(files: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The files that are no `x_mask.png` of an `x.png` beside them, and those masks by the image's path without ending."""
    names = {without_extension(file) for file in files}
    images, masks = [], {}
    for file in files:
        match = LESION_MASK.match(without_extension(file))
        if match and match["image"] in names:
            masks.setdefault(match["image"], []).append(file)
        else:
            images.append(file)
    return images, {name: sorted(several, key=natural_key) for name, several in masks.items()}
