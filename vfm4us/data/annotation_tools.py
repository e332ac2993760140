"""What annotation tools export beside COCO, VIA, LabelMe and YOLO: Supervisely, Label Studio, CVAT -> shapes of each image.

Each reader gives ({image: shapes}, {class number: name}); classes are numbered by their names within the file. Rectangles are
boxes, which are no masks. Several people's annotations of one image are refused.
"""

import base64
import binascii
import io
import zlib
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from vfm4us.data.limits import MAXIMUM_PIXELS, check_size
from vfm4us.data.shapes import Bitmap, Box, Outline, ellipse, with_size

LARGEST_BRUSH = 16_000_000  # pixels; they are unpacked to four values each
LARGEST_BITMAP = 64 * 1024**2  # bytes of a PNG within a file of annotations


def is_supervisely(content) -> bool:
    """Whether the content of a JSON file is of Supervisely, which writes one file for each image."""
    return (
        isinstance(content, dict)
        and {"size", "objects"} <= content.keys()
        and isinstance(content["objects"], list)
        and all(isinstance(entry, dict) and "classTitle" in entry for entry in content["objects"])
    )


def supervisely(content: dict):
    """One image, of the name "": polygons with holes, and bitmaps."""
    names = sorted({str(entry["classTitle"]) for entry in content["objects"]})
    size = int(content["size"]["height"]), int(content["size"]["width"])
    shapes = []
    for entry in content["objects"]:
        kind, number = entry.get("geometryType"), names.index(str(entry["classTitle"])) + 1
        if kind == "polygon":
            shapes.append(Outline(entry["points"]["exterior"], number, holes=entry["points"].get("interior") or ()))
        elif kind == "bitmap":
            left, top = entry["bitmap"]["origin"]
            shapes.append(Bitmap(_bitmap(entry["bitmap"]["data"]), top, left, number, size))
        else:
            shapes.append(Box(f"an object of the kind {kind!r}"))
    return {"": with_size(shapes, *size)}, dict(enumerate(names, start=1))


def _bitmap(text: str) -> np.ndarray:
    """The pixels (H, W) of a zipped PNG in base 64 that are not empty."""
    try:
        data = zlib.decompressobj().decompress(base64.b64decode(text), LARGEST_BITMAP)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > MAXIMUM_PIXELS:
                raise ValueError("a bitmap is too large")
            bands = np.asarray(image.convert("RGBA"))
    except (zlib.error, binascii.Error, OSError, SyntaxError) as error:
        raise ValueError("a bitmap is damaged") from error
    return bands[..., 3] > 0 if bands[..., 3].min() < 255 else bands[..., :3].max(axis=2) > 0


def is_label_studio(content) -> bool:
    """Whether the content of a JSON file is the full export of Label Studio: a list of tasks."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(
            isinstance(task, dict)
            and isinstance(task.get("data"), dict)
            and isinstance(task.get("annotations"), list)
            and all(isinstance(entry, dict) for entry in task["annotations"])
            for task in content
        )
    )


def image_of_task(task: dict) -> str:
    """The image of a task of Label Studio, as the part of its address that is a path."""
    for value in task["data"].values():
        if isinstance(value, str) and "." in value.rsplit("/", 1)[-1]:
            return unquote(value.split("?d=")[-1].split("?")[0]).replace("\\", "/")
    raise ValueError(f"task {task.get('id')} names no image")


def results_of_task(task: dict) -> list[dict]:
    """What one person marked in a task; ValueError where several did."""
    done = [
        entry for entry in task["annotations"] if not entry.get("was_cancelled") and entry.get("result") is not None
    ]
    if len(done) > 1:
        raise ValueError(
            f"task {task.get('id')} ({image_of_task(task)}) has {len(done)} annotations: keep one of each task"
        )
    return done[0]["result"] if done else []


def choice_of_task(task: dict) -> str:
    """The choice for the whole image of a task; "" where there is none, or more than one."""
    values = [mark.get("value") or {} for mark in results_of_task(task) if mark.get("type") == "choices"]
    lists = [value["choices"] for value in values if isinstance(value.get("choices"), list)]
    choices = [choice for several in lists for choice in several]
    return str(choices[0]) if len(choices) == 1 else ""


def label_studio(content: list):
    """Polygons, ellipses and brushes of each task; points are in percent of the image."""
    results: dict[str, list[dict]] = {}
    for task in content:
        if (image := image_of_task(task)) in results:
            raise ValueError(f"task {task.get('id')} is of {image}, as an earlier one: keep one task of each image")
        results[image] = results_of_task(task)
    names = sorted({name for marks in results.values() for mark in marks if (name := _name_of(mark))})
    return {
        image: [_mark(mark, names.index(_name_of(mark)) + 1) for mark in marks if _name_of(mark)]
        for image, marks in results.items()
    }, dict(enumerate(names, start=1))


def _name_of(mark: dict) -> str:
    """The class of a mark that lies somewhere in the image; ValueError where it has several."""
    words = mark.get("value", {}).get(str(mark.get("type")))
    if not words or not str(mark["type"]).endswith("labels"):
        return ""
    if isinstance(words, list) and len(words) > 1:
        raise ValueError(
            f"a mark ({mark.get('id')}) has {len(words)} labels, {words[0]!r} and {words[1]!r}: keep one of each mark"
        )
    return str(words[0])


def _mark(mark: dict, number: int):
    value, kind = mark["value"], mark["type"]
    width, height = int(mark["original_width"]), int(mark["original_height"])
    scale = np.array((width, height)) / 100
    if value.get("rotation") and kind != "ellipselabels":
        return Box(f"a turned mark of the kind {kind!r}")
    if kind == "polygonlabels":
        outline = Outline(np.asarray(value["points"], np.float64) * scale - 0.5, number)
        return with_size([outline], height, width)[0]
    if kind == "ellipselabels":
        x, y = np.array((value["x"], value["y"])) * scale - 0.5
        across, down = np.array((value["radiusX"], value["radiusY"])) * scale
        outline = Outline(ellipse(x, y, across, down, np.deg2rad(value.get("rotation", 0))), number)
        return with_size([outline], height, width)[0]
    if kind == "brushlabels":
        check_size(width, height)
        if width * height > LARGEST_BRUSH:
            raise ValueError(
                f"a brush of {width} x {height} pixels is over the limit of {LARGEST_BRUSH // 10**6} megapixels"
            )
        flat = _brush(value["rle"], width * height * 4)
        return Bitmap(flat.reshape(height, width, 4)[..., 3] > 127, 0, 0, number, (height, width))
    return Box(f"a mark of the kind {kind!r}")


def _brush(values: list[int], expected: int) -> np.ndarray:
    """Label Studio's run lengths: runs and literals of words, in a stream of bits, whose sizes stand at its beginning."""
    bits = np.unpackbits(np.asarray(values, np.uint8))
    place = 0

    def number(length: int) -> int:
        nonlocal place
        if place + length > len(bits):
            raise ValueError("a brush is cut short")
        taken = bits[place : place + length]
        place += length
        return int(taken.dot(1 << np.arange(length - 1, -1, -1)))

    count, word = number(32), number(5) + 1
    sizes = [number(4) + 1 for _ in range(4)]
    if count != expected or word > 16:
        raise ValueError(f"a brush has {count} values, not {expected}")
    flat, done = np.zeros(count, np.uint16), 0
    while done < count:
        repeated = number(1)
        end = done + 1 + number(sizes[number(2)])
        if repeated:
            flat[done:end] = number(word)
        else:
            for k in range(done, min(end, count)):
                flat[k] = number(word)
        done = end
    return flat


def cvat(root: ElementTree.Element):
    """CVAT's file for images: polygons, ellipses and masks of each image; tracks of a video are refused."""
    if root.find("track") is not None:
        raise ValueError('holds tracks of a video: export it as "CVAT for images"')
    drawn = {str(image.get("name")).replace("\\", "/"): sorted(image, key=_order) for image in root.iter("image")}
    names = sorted({str(shape.get("label")) for shapes in drawn.values() for shape in shapes if shape.tag != "tag"})
    shapes = {
        image: [_cvat_shape(shape, names.index(str(shape.get("label"))) + 1) for shape in several if shape.tag != "tag"]
        for image, several in drawn.items()
    }
    for image in root.iter("image"):
        with_size(shapes[str(image.get("name")).replace("\\", "/")], image.get("height"), image.get("width"))
    return shapes, dict(enumerate(names, start=1))


def _order(shape: ElementTree.Element) -> int:
    return int(shape.get("z_order") or 0)


def _cvat_shape(shape: ElementTree.Element, number: int):
    def of(*names: str) -> list[float]:
        return [float(shape.get(name) or 0) for name in names]

    if shape.tag == "polygon":
        points = [[float(value) for value in point.split(",")] for point in str(shape.get("points")).split(";")]
        return Outline(np.asarray(points) - 0.5, number)
    if shape.tag == "ellipse":
        x, y, across, down, tilt = of("cx", "cy", "rx", "ry", "rotation")
        return Outline(ellipse(x - 0.5, y - 0.5, across, down, np.deg2rad(tilt)), number)
    if shape.tag == "mask":
        left, top, width, height = (int(value) for value in of("left", "top", "width", "height"))
        check_size(max(width, 16), max(height, 16))
        counts = np.array([int(value) for value in str(shape.get("rle")).split(",")])
        if (counts < 0).any() or counts.sum() > width * height:
            raise ValueError("the run lengths of a mask are damaged")
        flat = np.zeros(width * height, bool)
        flat[: counts.sum()] = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return Bitmap(flat.reshape(height, width), top, left, number)
    return Box(f"a {shape.tag} of {str(shape.get('label'))!r}")
