"""Masks that are drawn as outlines or run lengths in a file of annotations, not as an image: COCO, VIA, LabelMe, YOLO, DDTI, RLE,
EchoNet-Dynamic, and what `vfm4us.data.annotation_tools` reads.

Such a mask is named `FILE::KEY`: the annotation file, and the image in it that the mask belongs to. `read_mask` draws it as
class numbers on the pixels of its image. The classes of a file are numbered from 1 in the order in which it lists them
(COCO by category id, YOLO by its own numbers, VIA and LabelMe by name); `class_names` tells their names.
"""

import csv
import io
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from functools import lru_cache
from pathlib import Path

import numpy as np

from vfm4us.data import annotation_tools, limits
from vfm4us.data.shapes import Box, Outline, Runs, ellipse, with_size

SEPARATOR = "::"
ENDINGS = (".json", ".csv", ".xml", ".txt")
MAXIMUM_FILE = 512 * 1024**2  # bytes of one annotation file


def reference(file: str, key: str) -> str:
    """The name of a mask in an annotation file."""
    return f"{file}{SEPARATOR}{key}"


def split_reference(name: str) -> tuple[str, str | None]:
    """The file and the key of a mask's name; the key is None for a mask that is a file of its own."""
    file, sign, key = name.partition(SEPARATOR)
    return (file, key) if sign and Path(file).suffix.lower() in ENDINGS else (name, None)


def read_mask(path, key: str, height: int, width: int, part: bool = False) -> np.ndarray:
    """Class numbers uint8 (H, W) of an image of `height` x `width` pixels; later outlines lie over earlier ones.

    Outlines of an image of another size, where the file says its size, are scaled. part: the image reaches further than that
    Raises ValueError with a one-line reason: a damaged file, an image it does not know, outlines without an area.
    """
    shapes = _of_file(path).get(key)
    if shapes is None:
        raise ValueError(f"does not know the image {key!r}")
    mask = np.zeros((height, width), np.uint8)
    for shape in shapes:
        (shape.on_image(height, width) if isinstance(shape, Outline) and not part else shape).draw(mask)
    return mask


def keys(path) -> list[str]:
    """The images that an annotation file has outlines for, or says have none, in its own order."""
    return list(_of_file(path))


def has_outlines(path) -> bool:
    """Whether an annotation file holds more than boxes; one without any annotation does."""
    shapes = [shape for of_image in _of_file(path).values() for shape in of_image]
    return not shapes or any(not isinstance(shape, Box) for shape in shapes)


def holds_any(path) -> bool:
    """Whether an annotation file has an outline or a box for any image."""
    return any(_of_file(path).values())


def class_names(path) -> dict[int, str]:
    """Class number -> name, as far as the file tells them."""
    return {} if _says_nothing(path) else _parsed(*_state(path))[1]


# files


def _says_nothing(path) -> bool:
    """Whether this is YOLO's empty file: an image without a finding."""
    return Path(path).suffix.lower() == ".txt" and not Path(path).stat().st_size


def _of_file(path) -> dict[str, list]:
    if _says_nothing(path):
        return {"": []}
    return _parsed(*_state(path))[0]


def _state(path) -> tuple:
    limits.refuse_special(path)
    status = os.stat(path)
    if status.st_size > MAXIMUM_FILE:
        raise ValueError(f"{status.st_size} bytes is over the limit of {MAXIMUM_FILE}")
    return str(path), status.st_size, status.st_mtime_ns


@lru_cache(maxsize=8)
def _parsed(path: str, _size: int, _time: int) -> tuple[dict[str, list], dict[int, str]]:
    """({image: shapes}, {class number: name}), read once for all images of a file."""
    data = limits.file_bytes(path)
    readers = {".json": _json, ".csv": _table, ".xml": _xml, ".txt": _yolo}
    try:
        return readers[Path(path).suffix.lower()](data)
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError, csv.Error) as error:
        raise ValueError(
            f"its outlines are damaged: {' '.join(str(error).split())[:80] or type(error).__name__}"
        ) from None


def _json(data: bytes):
    content = json.loads(data)
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return _coco(content)
    if isinstance(content, dict) and "_via_img_metadata" in content:
        content = content["_via_img_metadata"]
    if is_labelme(content):
        return _labelme(content)
    if annotation_tools.is_supervisely(content):
        return annotation_tools.supervisely(content)
    if annotation_tools.is_label_studio(content):
        return annotation_tools.label_studio(content)
    entries = content.values() if isinstance(content, dict) else content if isinstance(content, list) else []
    entries = list(entries)
    if entries and all(isinstance(entry, dict) and {"filename", "regions"} <= entry.keys() for entry in entries):
        return _via([(entry["filename"], region) for entry in entries for region in _regions(entry)], entries)
    raise ValueError(
        "is of none of COCO (images, annotations), VIA (filename, regions), LabelMe (shapes, imagePath), Supervisely (size, "
        "objects), Label Studio (data, annotations)"
    )


def is_labelme(content) -> bool:
    """Whether the content of a JSON file is of LabelMe, which writes one file for each image."""
    return (
        isinstance(content, dict) and {"shapes", "imagePath"} <= content.keys() and isinstance(content["shapes"], list)
    )


def _labelme(content: dict):
    """Polygons and circles; what has no area is refused, but for boxes, which are refused when their image is read."""
    words = sorted({str(shape["label"]).strip() for shape in content["shapes"]})
    shapes = []
    for shape in content["shapes"]:
        kind, points = shape.get("shape_type") or "polygon", np.asarray(shape["points"], np.float64).reshape(-1, 2)
        if kind == "rectangle":
            shapes.append(Box(f"a rectangle of {str(shape['label'])[:80]!r}"))
            continue
        if kind == "circle":  # its centre, and a point of its edge
            points = ellipse(*points[0], *[np.hypot(*(points[1] - points[0]))] * 2)
        elif kind != "polygon":
            raise ValueError(f"a shape of the kind {str(kind)[:80]!r} is no outline: polygon and circle are read")
        shapes.append(Outline(points, words.index(str(shape["label"]).strip()) + 1))
    with_size(shapes, content.get("imageHeight"), content.get("imageWidth"))
    return {str(content["imagePath"]): shapes}, {number: word for number, word in enumerate(words, start=1) if word}


def _coco(content: dict):
    categories = sorted(
        {int(category["id"]): str(category.get("name", "")) for category in content.get("categories", [])}.items()
    )
    number_of = {identity: number for number, (identity, _) in enumerate(categories, start=1)}
    file_of = {str(image["id"]): str(image["file_name"]) for image in content["images"]}
    shapes = {file: [] for file in file_of.values()}
    for annotation in content["annotations"]:
        category, image = annotation.get("category_id"), str(annotation["image_id"])
        number = number_of.get(category, 1 if not number_of else 0)
        if not number or image not in file_of:
            what = f"the category {category!r}, which" if not number else f"the image {image}, which"
            raise ValueError(f"annotation {annotation.get('id')} is of {what} the file does not list")
        outlines = annotation.get("segmentation")
        target = shapes[file_of[image]]
        if not outlines:
            target.append(Box(f"annotation {annotation.get('id')}"))
        elif isinstance(outlines, dict):
            target.append(_coco_runs(outlines, number))
        else:  # COCO counts from the corner of the first pixel
            target.extend(Outline(np.asarray(outline, np.float64) - 0.5, number) for outline in outlines)
    for image in content["images"]:
        with_size(shapes[str(image["file_name"])], image.get("height"), image.get("width"))
    names = {number: name for number, (_, name) in enumerate(categories, start=1)}
    return shapes, names if all(names.values()) and len(set(names.values())) == len(names) else {}


def _coco_runs(content: dict, number: int) -> Runs:
    height, width = (int(side) for side in content["size"])
    counts = content["counts"]
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    ends = np.cumsum(np.asarray(counts, np.int64))
    starts = np.concatenate([[0], ends[:-1]])
    return Runs(np.stack([starts, np.asarray(counts, np.int64)], axis=1)[1::2], number, (height, width))


def _uncompressed(text: str) -> list[int]:
    """COCO's compressed counts: 5 bits a character, the sixth says that more follow; from the third on, differences."""
    counts, place = [], 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            code = ord(text[place]) - 48
            if not 0 <= code < 64 or shift > 40:
                raise ValueError("run lengths are damaged")
            value |= (code & 31) << shift
            more, place, shift = bool(code & 32), place + 1, shift + 5
            if not more and code & 16:
                value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


def _regions(entry: dict) -> list[dict]:
    regions = entry["regions"]
    return list(regions.values()) if isinstance(regions, dict) else list(regions)


def _via(regions: list[tuple[str, dict]], entries=()):
    """Regions of the VGG Image Annotator; the class is the one attribute whose values differ, or the only one, or there is none."""
    values: dict[str, set] = {}
    for _, region in regions:
        for name, value in (region.get("region_attributes") or {}).items():
            values.setdefault(str(name), set()).add(_word(value))
    naming = [name for name, words in values.items() if len(words) > 1] or (list(values) if len(values) == 1 else [])
    if len(naming) > 1:
        raise ValueError(
            f"its regions have several attributes ({', '.join(sorted(naming))}): keep the one that is the class"
        )
    words = sorted(values[naming[0]]) if naming else [""]
    shapes = {str(entry["filename"]): [] for entry in entries}
    for file, region in ((str(name), region) for name, region in regions):
        word = _word((region.get("region_attributes") or {}).get(naming[0])) if naming else ""
        number = words.index(word) + 1 if word in words else 1
        shape = region["shape_attributes"]
        if shape.get("name") in ("rect", "point"):
            shapes.setdefault(file, []).append(Box(f"a region of the shape {shape['name']!r}"))
        else:
            shapes.setdefault(file, []).append(Outline(_via_points(shape), number))
    return shapes, {number: word for number, word in enumerate(words, start=1) if word}


def _word(value) -> str:
    if isinstance(value, dict):  # a check box: {"nodule": true}
        value = ", ".join(sorted(key for key, on in value.items() if on))
    return str(value if value is not None else "").strip()


def _via_points(shape: dict) -> np.ndarray:
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        return np.stack([shape["all_points_x"], shape["all_points_y"]], axis=1)
    if kind in ("circle", "ellipse"):
        across, down = (shape["r"], shape["r"]) if kind == "circle" else (shape["rx"], shape["ry"])
        return ellipse(shape["cx"], shape["cy"], across, down, float(shape.get("theta", 0)))
    raise ValueError(f"a region of the shape {kind!r} is no outline: polygon, polyline, circle and ellipse are read")


def _yolo(data: bytes):
    """One image: `class x1 y1 x2 y2 ...` a line, in shares of width and height."""
    shapes = []
    for line_number, line in enumerate(data.decode("utf-8-sig").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) == 5:
            shapes.append(Box(f"line {line_number}"))
            continue
        numbers = [float(word) for word in words]
        if len(numbers) % 2 == 0 or numbers[0] != int(numbers[0]):
            raise ValueError(f"line {line_number} is not of the form: class x1 y1 x2 y2 x3 y3 ...")
        shapes.append(Outline(numbers[1:], int(numbers[0]) + 1, relative=True))
    return {"": shapes}, {}


def _xml(data: bytes):
    """A case of DDTI, or CVAT's file of images."""
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError("names entities, which no annotation needs: refused")
    try:
        root = ElementTree.fromstring(data)  # noqa: S314  (entities are refused above)
    except ElementTree.ParseError as error:
        raise ValueError(f"is no XML: {error}") from None
    return annotation_tools.cvat(root) if root.tag == "annotations" else _ddti(root)


def _ddti(root: ElementTree.Element):
    """A case of DDTI: <mark> holds the number of an image and, as JSON, the points of its outlines."""
    shapes: dict[str, list] = {}
    for mark in root.iter("mark"):
        image = (mark.findtext("image") or "").strip()
        text = (mark.findtext("svg") or "").strip()
        try:
            regions = json.loads(text) if text else []
        except ValueError:
            raise ValueError(f"the outlines of image {image} are cut short") from None
        for region in regions:
            points = [(point["x"], point["y"]) for point in region["points"]]
            shapes.setdefault(image, []).append(Outline(points, 1))
    return shapes, {1: "nodule"}


def _table(data: bytes):
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    names = {name.strip().lower(): name for name in (rows[0] if rows else {}) if isinstance(name, str)}
    if "region_shape_attributes" in names:
        regions = [
            (
                row["filename"],
                {"shape_attributes": shape, "region_attributes": json.loads(row["region_attributes"] or "{}")},
            )
            for row in rows
            if (shape := json.loads(row["region_shape_attributes"] or "{}"))
        ]
        return _via(regions, rows)
    if {"filename", "x1", "y1", "x2", "y2", "frame"} <= names.keys():
        return _tracings(rows, names)
    if {"filename", "x", "y", "frame"} <= names.keys():
        return _traced_points(rows, names)
    pixels = next((names[name] for name in ("pixels", "encodedpixels", "rle", "rle_mask") if name in names), None)
    if pixels is None:
        raise ValueError(f"has no column of outlines or run lengths; its columns: {', '.join(names) or 'none'}")
    images = [name for name in names.values() if name != pixels]
    shapes = {}
    for row in rows:
        key = "_".join(row[name].strip() for name in images)  # Kaggle's nerve: subject and img
        numbers = [int(word) for word in (row[pixels] or "").split() if word not in ("-1", "nan")]
        if len(numbers) % 2:
            raise ValueError(f"the run lengths of {key} are no pairs of start and length")
        pairs = np.array(numbers, np.int64).reshape(-1, 2)
        if len(pairs) and pairs[:, 0].min() < 1:
            raise ValueError(f"the run lengths of {key} begin at 0; they count from 1")
        shapes.setdefault(key, []).append(Runs(pairs - (1, 0), 1))
    return shapes, {}


def _traced_points(rows: list[dict], names: dict[str, str]):
    """EchoNet-Pediatric: the points of the ventricle of a frame, in order; a frame that is no number has none."""
    points: dict[str, list] = {}
    for row in rows:
        if row[names["frame"]].strip().isdigit():
            key = f"{_stem_of_clip(row[names['filename']])}#{int(row[names['frame']])}"
            points.setdefault(key, []).append([float(row[names["x"]]), float(row[names["y"]])])
    return {key: [Outline(several, 1)] for key, several in points.items()}, {1: "left ventricle"}


def _stem_of_clip(name: str) -> str:
    return re.sub(r"\.avi$", "", name.strip(), flags=re.IGNORECASE)


def _tracings(rows: list[dict], names: dict[str, str]):
    """EchoNet-Dynamic: the first row of a frame is the long axis, the others are cords across the ventricle, from tip to base."""
    cords: dict[str, list] = {}
    for row in rows:
        key = f"{_stem_of_clip(row[names['filename']])}#{int(float(row[names['frame']]))}"
        cords.setdefault(key, []).append([float(row[names[name]]) for name in ("x1", "y1", "x2", "y2")])
    shapes = {}
    for key, lines in cords.items():
        lines = np.array(lines[1:])
        if len(lines) < 2:
            raise ValueError(f"{key} has fewer than two cords")
        shapes[key] = [Outline(np.concatenate([lines[:, :2], lines[::-1, 2:]]), 1)]
    return shapes, {1: "left ventricle"}
