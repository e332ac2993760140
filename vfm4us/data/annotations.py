"""Images with outlines in the forms that annotation tools write -> records; told by the content of the files.

coco          one JSON file for many images (also Roboflow's)
via           the VGG Image Annotator's, as JSON or CSV
label_studio  Label Studio's full JSON export
cvat          CVAT's XML for images
labelme       one JSON file for each image
supervisely   one JSON file for each image, below ann/ beside img/
yolo          one text file for each image, below labels/ beside images/, or beside the image; shares of width and height

Labels and groups that folders say are added by `vfm4us.data.sources`. Boxes are no masks: where there is nothing else, the folder
is a plain tree.
"""

import json
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from vfm4us.data import annotation_tools, frames, limits, polygons
from vfm4us.data.records import (
    SPLIT_SYNONYMS,
    Record,
    folders_below,
    image_files,
    joined_paths,
    without_extension,
)

LARGEST_JSON = 64 * 1024**2  # bytes that are looked into to see what a file is
HASH_BEFORE = re.compile(r"^[0-9a-f]{6,10}-(?=.)")  # Label Studio puts it before the names of files


def recognise(folder: Path) -> tuple[str, list[Record]] | None:
    """The form and the records of a folder with outlines of an annotation tool; None where there are none."""
    if not Path(folder).is_dir():
        return None
    texts = _texts(Path(folder))
    for name, form in FORMS.items():
        if (records := form(Path(folder), texts)) is not None:
            return name, records
    return None


def _texts(folder: Path) -> dict[str, list[Path]]:
    """Ending -> the files below a folder that may hold outlines, in order; hidden ones are left out."""
    found: dict[str, list[Path]] = {ending: [] for ending in polygons.ENDINGS}
    for prefix, folders, names in folders_below(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if ending in found and not name.startswith("."):
                found[ending].append(folder / prefix / name)
    return {ending: sorted(files) for ending, files in found.items()}


def files_of(records: list[Record]) -> set[str]:
    """The annotation files that records name."""
    return {polygons.split_reference(mask)[0] for record in records for mask in record.mask_paths}


def is_annotation(file: Path) -> bool:
    """Whether a JSON file is of one of the forms, with outlines or without."""
    return bool(_kind_of(file))


def coco(folder: Path, texts: dict[str, list[Path]]) -> list[Record] | None:
    """Outlines in COCO's form; classes by category, splits where files or folders are named so."""
    return _of_files(folder, _of_kind(texts, "coco"))


def via(folder: Path, texts: dict[str, list[Path]]) -> list[Record] | None:
    """Outlines of the VGG Image Annotator, as JSON or CSV; classes by the attribute that differs."""
    tables = _of_kind(texts, "via")
    for path in texts[".csv"]:
        with open(path, "rb") as stream:
            tables += [path] * (b"region_shape_attributes" in stream.readline(4096))
    return _of_files(folder, tables)


def label_studio(folder: Path, texts: dict[str, list[Path]]) -> list[Record] | None:
    """Outlines and brushes of Label Studio, classes by their names; a choice for the whole image is its label."""
    tables = _of_kind(texts, "label_studio")
    records = _of_files(folder, tables)
    for table in tables if records else ():
        name = table.relative_to(folder).as_posix()
        of_key = {
            polygons.split_reference(mask)[1]: record
            for record in records
            for mask in record.mask_paths
            if mask.startswith(f"{name}::")
        }
        for task in json.loads(limits.file_bytes(table)):
            if (record := of_key.get(annotation_tools.image_of_task(task))) is not None:
                record.label = annotation_tools.choice_of_task(task)
    return records


def cvat(folder: Path, texts: dict[str, list[Path]]) -> list[Record] | None:
    """Outlines and masks of CVAT's XML for images, classes by their names."""
    tables = []
    for path in texts[".xml"]:
        with open(path, "rb") as stream:
            tables += [path] * (b"<annotations>" in stream.read(400))
    return _of_files(folder, tables)


def _of_files(folder: Path, tables: list[Path]) -> list[Record] | None:
    """Records of all images of a folder with files of outlines for many images, matched by path, else by name."""
    tables = [table for table in tables if _outlines(table)]
    if not tables:
        return None
    images = image_files(folder)
    by_name = _by_name(images)
    records = {image: Record(id=without_extension(image), path=image) for image in images}
    for table in tables:
        table_name = table.relative_to(folder).as_posix()
        split = next((named for part in reversed(_words(table_name)) if (named := _split(part))), "")
        for key in _keys(table):
            matches = _matching(key, by_name, table_name)
            if len(matches) > 1:
                raise ValueError(f"{table}: {key} could be {matches[0]} or {matches[1]}: give their paths in file_name")
            path = matches[0] if matches else key  # a missing image is listed in rejected.csv when it is packed
            record = records.setdefault(path, Record(id=without_extension(path), path=path))
            if record.mask:
                raise ValueError(
                    f"{table}: {key} has outlines in {record.mask.split('::')[0]} too: keep one of the files"
                )
            record.mask, record.split = joined_paths([polygons.reference(table_name, key)]), split
    return list(records.values())


def labelme(folder: Path, texts: dict[str, list[Path]]) -> list[Record] | None:
    """Outlines in LabelMe's form, one JSON file for each image; classes by their names, splits where folders are named so."""
    tables = {file: _keys(file)[0] for file in _of_kind(texts, "labelme") if _outlines(file)}
    return _of_each(
        folder, {file: (Path(file).parent / key.replace("\\", "/")).as_posix() for file, key in tables.items()}, tables
    )


def supervisely(folder: Path, texts: dict[str, list[Path]]) -> list[Record] | None:
    """Outlines and bitmaps of Supervisely: img/x.png with ann/x.png.json; classes by their names."""
    tables = [file for file in _of_kind(texts, "supervisely") if _outlines(file)]
    named = {file: (file.parent.parent / "img" / file.name.removesuffix(".json")).as_posix() for file in tables}
    return _of_each(folder, named, dict.fromkeys(tables, ""))


def _of_each(folder: Path, named: dict[Path, str], keys: dict[Path, str]) -> list[Record] | None:
    """Records of all images of a folder with a file of outlines for each: by the path that it names, else by the name alone."""
    if not named:
        return None
    images = image_files(folder)
    by_name = _by_name(images)
    records = {image: Record(id=without_extension(image), path=image) for image in images}
    for file, place in named.items():
        table, there = file.relative_to(folder).as_posix(), os.path.relpath(os.path.normpath(place), folder)
        there = Path(there).as_posix()
        matches = [there] if there in records else by_name.get(Path(there).name, [])
        if len(matches) > 1:
            raise ValueError(
                f"{file}: {Path(there).name} could be {matches[0]} or {matches[1]}: give its path from there in imagePath"
            )
        path = matches[0] if matches else there  # a missing image is listed in rejected.csv when it is packed
        record = records.setdefault(path, Record(id=without_extension(path), path=path))
        if record.mask:
            raise ValueError(
                f"{file}: {Path(path).name} has outlines in {record.mask.split('::')[0]} too: keep one of the files"
            )
        record.mask = joined_paths([polygons.reference(table, keys[file])])
        record.split = next((split for part in reversed(_words(path)[:-1]) if (split := _split(part))), "")
    return list(records.values())


def yolo(folder: Path, texts: dict[str, list[Path]]) -> list[Record] | None:
    """Outlines in text files of YOLO; an image beside others without a file has no mask."""
    notes = {file.relative_to(folder).as_posix() for file in texts[".txt"]}
    records, outlined = [], 0
    for image in image_files(folder) if notes else ():
        *folders, name = image.split("/")
        own = frames.stem_of(name) + ".txt"
        labels = ["/".join([*folders, own])]
        if "images" in folders:
            place = len(folders) - 1 - folders[::-1].index("images")
            labels.insert(0, "/".join([*folders[:place], "labels", *folders[place + 1 :], own]))
        label = next((text for text in labels if text in notes), "")
        outlined += bool(label) and _draws(folder / label)
        split = next((named for part in folders if (named := _split(part))), "")
        mask = joined_paths([polygons.reference(label, "")] * bool(label))
        records.append(Record(id=without_extension(image), path=image, mask=mask, split=split))
    return records if outlined else None


# what a file is


def _of_kind(texts: dict[str, list[Path]], kind: str) -> list[Path]:
    return [file for file in texts[".json"] if _kind_of(file) == kind]


def _kind_of(file: Path) -> str:
    """The form of a JSON file, "" where it has none, or is too large to be one of outlines."""
    try:
        state = file.stat()
        if file.is_file() and state.st_size <= LARGEST_JSON:
            return _kind(str(file), state.st_size, state.st_mtime_ns)
    except OSError:
        pass
    return ""


@lru_cache(maxsize=100_000)  # each form asks
def _kind(file: str, _size: int, _time: int) -> str:
    try:
        content = json.loads(limits.file_bytes(file))
    except (ValueError, RecursionError):
        return ""
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return "coco"
    if polygons.is_labelme(content):
        return "labelme"
    if annotation_tools.is_supervisely(content):
        return "supervisely"
    if annotation_tools.is_label_studio(content):
        return "label_studio"
    return "via" if _is_via(content) else ""


def _is_via(content) -> bool:
    content = content.get("_via_img_metadata", content) if isinstance(content, dict) else content
    entries = list(content.values()) if isinstance(content, dict) else content
    first = entries[0] if isinstance(entries, list) and entries else None
    return isinstance(first, dict) and {"filename", "regions"} <= first.keys()


def _keys(table: Path) -> list[str]:
    """`polygons.keys`, with the file in what it raises."""
    try:
        return polygons.keys(table)
    except ValueError as error:
        raise ValueError(f"{table}: {error}") from error


def _outlines(file: Path) -> bool:
    """Whether a file holds more than boxes; a damaged one, whose images are refused when they are packed, counts."""
    try:
        return polygons.has_outlines(file)
    except ValueError:
        return True


def _draws(file: Path) -> bool:
    """Whether a text holds at least one outline of YOLO; any other text does not."""
    try:
        return polygons.holds_any(file) and polygons.has_outlines(file)
    except ValueError:
        return False


def _by_name(images: list[str]) -> dict[str, list[str]]:
    """Name of a file -> the images of that name, in whatever folder."""
    named: dict[str, list[str]] = {}
    for image in images:
        named.setdefault(image.rsplit("/", 1)[-1], []).append(image)
    return named


def _matching(key: str, by_name: dict[str, list[str]], table: str) -> list[str]:
    """The images that a name in a table means: the nearest folder of the table first."""
    key = key.replace("\\", "/").lstrip("./")
    name = Path(key).name
    matches = by_name.get(name) or by_name.get(HASH_BEFORE.sub("", name), [])
    matches = [image for image in matches if image == key or image.endswith("/" + key)] or matches
    parts = table.split("/")[:-1]
    while parts and len(matches) > 1:
        near = [image for image in matches if image.startswith("/".join(parts) + "/")]
        matches = near or matches
        parts.pop()
    if len(matches) > 1:  # annotations/instances_train.json and images/train/
        near = [
            image
            for image in matches
            if set(filter(None, map(_split, _words(image)))) & set(map(_split, _words(table)))
        ]
        matches = near or matches
    return matches


def _words(path: str) -> list[str]:
    """Folders and the words of the name: annotations/instances_train2017.json -> annotations, instances, train."""
    return [word for part in path.split("/") for word in re.split(r"[^A-Za-z]+", part) if word]


def _split(word: str) -> str:
    word = SPLIT_SYNONYMS.get(word.strip().lower(), word.strip().lower())
    return word if word in ("train", "val", "test") else ""


FORMS: dict[str, Callable[[Path, dict[str, list[Path]]], list[Record] | None]] = {
    "coco": coco,
    "via": via,
    "label_studio": label_studio,
    "cvat": cvat,
    "yolo": yolo,
    "labelme": labelme,
    "supervisely": supervisely,
}
