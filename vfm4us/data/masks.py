"""Mask files as class numbers on the pixels of their image, by one coding for the whole set.

Two steps. `mask_coding` looks at every mask of a set once and decides what its values mean: class numbers, one grey or colour
per class, 0 and 255, probabilities, outlines; which value is to be ignored; on which pixels the masks of turned images lie.
`read_masks` then applies that. What can be read in two ways, and a file that does not fit, is an error that names the file.
"""

import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import binary_fill_holes, binary_opening, maximum_filter, minimum_filter

from vfm4us.data import arrays, frames, polygons, volumes
from vfm4us.data.dataset import check_same_shape
from vfm4us.data.decode import FORMATS, read_frame, upright_image
from vfm4us.data.limits import file_bytes
from vfm4us.data.looks import has_few_values
from vfm4us.data.pages import page_contents
from vfm4us.data.reading import Reading
from vfm4us.data.records import Record
from vfm4us.data.words import same

CLASS_LIMIT = 16  # values up to this are class numbers as they stand
IGNORE = 255  # what is ignored in packed masks
MOST_CLASSES = 64
FEW = 24  # values of a mask that is not blurred, resized or compressed
FULL_SCALE = frozenset((1, 255, 1023, 4095, 16383, 65535))  # how one class is written in 1, 8, ... 16 bits
NEAR = 48  # grey levels between two areas that are two values, not noise
THIN = 5  # pixels: lines are thinner
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class MaskCoding:
    """What the pixel values of a set's masks mean.

    kind:       "binary": one class; "numbers": class k is the value k; "values": class k is the k-th of `values`, greys or colours
    values:     the greys, or colours "r/g/b", in the order of the classes 1, 2, ...
    ignore:     pixel value that counts nowhere; packed masks hold 255 for it
    top:        the light value of blurred or compressed masks of one class; half of it is the threshold
    threshold:  of probabilities
    background: pixel value of no class
    fill:       masks are outlines, whose inside is meant
    as_colours: indices of palettes stand for their colours, as files mean different colours by one index
    raw:        masks lie on the pixels of the file, before its EXIF orientation turns it
    names:      of the classes 1, 2, ..., where files of outlines tell them
    said:       what was decided, in words
    """

    kind: str = "binary"
    values: tuple = ()
    ignore: int | None = None
    top: float = 255.0
    threshold: float = 0.5
    background: int = 0
    fill: bool = False
    as_colours: bool = False
    raw: bool = False
    names: tuple[str, ...] = ()
    said: tuple[str, ...] = ()

    def to_plain(self) -> dict:
        """As lists and plain values, for JSON and checkpoints."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_plain(cls, plain: dict) -> "MaskCoding":
        """The coding that `to_plain` gave."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})

    def class_values(self) -> dict[str, str]:
        """Class number -> what stands for it in the files, where that is not the number itself."""
        return {str(k): str(value) for k, value in enumerate(self.values, start=1)}


class CodingOfSet:
    """The coding of a set of records, decided when a mask is first asked for; every record of the set has the same one."""

    def __init__(self, root: Path, records: list[Record], reading: Reading, outlines: bool):
        self.of = root, records, reading, outlines
        self.coding: MaskCoding | None = None
        self.lock = threading.Lock()

    def decided(self) -> MaskCoding | None:
        """The coding, decided at the first call by all masks of the set; None where they need none."""
        with self.lock:
            if self.coding is None:
                self.coding = mask_coding(*self.of)
            return self.coding


@dataclass
class RawMask:
    """A mask as it lies in its file: numbers (H, W) or colours (H, W, 3); `palette` has the colours of indices."""

    pixels: np.ndarray
    lossy: bool = False
    palette: dict = field(default_factory=dict)

    @property
    def colours(self) -> bool:
        """Whether it has colours, not one number a pixel."""
        return self.pixels.ndim == 3


@dataclass
class Seen:
    """What is remembered of one mask file.

    values: value or colour -> pixels, where there are few; None where there are many
    areas:  values or colours of areas, of blurred and compressed masks; `levels`, all values that fill 3 x 3 pixels
    """

    path: str
    colours: bool
    lossy: bool
    soft: bool
    values: dict | None
    areas: list
    solid: set
    corner: object
    outline: bool | None
    palette: dict
    top: float
    picture: bool = False


# ---- reading files --------------------------------------------------------------------------------------------------


def read_mask(path, coding: MaskCoding | None = None) -> np.ndarray:
    """Read a mask file as uint8 class numbers (H, W), 255 where it is to be ignored.

    Without a `coding` what its values mean is decided from this file alone. Raises ValueError with a one-line reason.
    """
    raw = raw_mask(file_bytes(path))
    if coding is None:
        coding = decide([seen_of(Path(path).name, raw)], Reading())
    return coded(raw, coding)


def read_masks(
    root, record: Record, image: np.ndarray, size: int, coding: MaskCoding | None = None
) -> np.ndarray | None:
    """All masks of a record on the pixels of its `image` (H, W): class numbers uint8 (H, W), the largest where several lie.

    A mask of another scale is resized by the nearest pixel; one of another shape, judged at `size` px, is a ValueError that names
    its file, as is one that cannot be read. 255 is to be ignored, where no other mask of the image says a class. None where the
    record has no mask.
    coding: that of the whole set; without it, the record says it (`Record.coding`), or it is decided from the record's own masks
    """
    if coding is None:
        coding = _coding_of(record)
    whole = None
    for path in record.mask_paths:
        try:
            layer = _layer(Path(root), record, path, image.shape, coding)
        except ValueError as error:
            raise ValueError(f"its mask {path}: {error}") from error
        check_same_shape(f"its mask {path}", layer, image, size)
        if layer.shape != image.shape:
            layer = np.asarray(Image.fromarray(layer).resize(image.shape[::-1], Image.Resampling.NEAREST))
        if whole is not None:
            classes = np.maximum(np.where(whole == IGNORE, 0, whole), np.where(layer == IGNORE, 0, layer))
            layer = np.where((classes == 0) & ((whole == IGNORE) | (layer == IGNORE)), np.uint8(IGNORE), classes)
        whole = layer
    return whole


def _coding_of(record: Record) -> MaskCoding | None:
    said: Any = record.coding
    if isinstance(said, CodingOfSet):
        return said.decided()
    return MaskCoding.from_plain(said) if isinstance(said, dict) else said


def _layer(root: Path, record: Record, path: str, shape: tuple, coding: MaskCoding | None) -> np.ndarray:
    file, key = polygons.split_reference(path)
    top, left, height, width = (int(v) for v in record.crop.split()) if record.crop else (0, 0, *shape)
    if key is not None:  # outlines are drawn on the whole frame, as far as the crop reaches
        drawn = polygons.read_mask(root / file, key, top + height, left + width, part=bool(record.crop))[top:, left:]
        return _by_names(drawn, polygons.class_names(root / file), coding)
    _one_page(root / path, root / record.path)
    raw = _raw_of(root / path, record.frame, root / record.path)
    if coding is None:
        coding = decide([seen_of(path, raw)], Reading())
    layer = coded(raw, coding)
    if coding.raw and (turn := TURNED.get(exif_orientation(root / record.path))):
        layer = np.asarray(Image.fromarray(layer).transpose(turn))
    if (
        record.crop
        and layer.shape != tuple(shape)
        and layer.shape[0] >= top + height
        and layer.shape[1] >= left + width
    ):
        return frames.cropped(layer, record.crop)
    return layer


def _one_page(mask: Path, image: Path) -> None:
    """ValueError where a mask has several pages and its image has one: only the first would count."""
    if frames.kind_of(mask) == "pages" and (told := page_contents(mask)) and not frames.is_container(image):
        raise ValueError(
            f"has {told.count} pages, its image one: write one mask per image, with class numbers 1, 2, ..."
        )


def _by_names(classes: np.ndarray, names: dict[int, str], coding: MaskCoding | None) -> np.ndarray:
    """Class numbers of one file of outlines as the set numbers the classes of these names."""
    if coding is None or not coding.names or all(coding.names[k - 1 : k] == (name,) for k, name in names.items()):
        return classes
    if strange := sorted(set(names.values()) - set(coding.names)):
        raise ValueError(f"names the class {strange[0]!r}; known are {', '.join(coding.names)}")
    table = np.arange(256, dtype=np.uint8)
    for number, name in names.items():
        table[number] = coding.names.index(name) + 1
    return table[classes]


def _raw_of(path: Path, frame: int = 0, image: Path | None = None) -> RawMask:
    if frames.kind_of(path) == "volume":
        of_volume = image if image is not None and frames.kind_of(image) == "volume" else None
        return RawMask(_plain_numbers(volumes.read_label(path, frame, of_volume)))
    if frames.is_container(path):
        return RawMask(_plain_numbers(read_frame(path, frame)))
    return raw_mask(file_bytes(path))


def raw_mask(data: bytes) -> RawMask:
    """The values of a mask file. Raises ValueError for NaN, negative numbers, fractions above 1, and damaged files."""
    if arrays.is_array_file(data):
        return RawMask(_plain_numbers(arrays.array_of(data)))
    lossy = data[:2] == b"\xff\xd8" or (data[:4] == b"RIFF" and data[12:16] == b"VP8 ")
    image = upright_image(data)
    if image.mode == "P":
        indices = np.asarray(image)
        colours = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        used = {int(i): tuple(colours[min(int(i), len(colours) - 1)].tolist()) for i in np.unique(indices)}
        if set(used.values()) <= {(0, 0, 0), (255, 255, 255)} and (255, 255, 255) in used.values():
            return RawMask(np.asarray(image.convert("L")).astype(np.int32))  # a picture of a mask, not class numbers
        return RawMask(indices.astype(np.int32), palette=used)
    if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
        return RawMask(_plain_numbers(np.asarray(image)), lossy)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA") if image.mode != "La" else image.convert("LA").convert("RGBA")
        bands = np.asarray(image)
        if bands[..., :3].min() == bands[..., :3].max() and bands[..., 3].min() < bands[..., 3].max():
            return RawMask(bands[..., 3].astype(np.int32))  # drawn in the transparency alone
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    colours = np.asarray(image.convert("RGB"))
    if (colours[..., :1] == colours).all():
        return RawMask(colours[..., 0].astype(np.int32), lossy)
    return RawMask(colours, lossy)


def _plain_numbers(pixels: np.ndarray) -> np.ndarray:
    """Whole numbers as int32, fractions in [0, 1] as float32."""
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise ValueError("holds values that are not finite (NaN or infinity)")
        if (pixels == np.round(pixels)).all():
            pixels = pixels.astype(np.int64)
        elif pixels.min() < 0 or pixels.max() > 1:
            raise ValueError(
                f"holds fractions from {pixels.min():.3g} to {pixels.max():.3g}: only probabilities in [0, 1] are understood"
            )
        else:
            return pixels.astype(np.float32)
    pixels = np.asarray(pixels)
    if int(pixels.min()) < 0 or int(pixels.max()) > 65535:
        raise ValueError(f"holds values from {pixels.min()} to {pixels.max()}; expected 0 to 65535")
    return pixels.astype(np.int32)


def exif_orientation(path) -> int:
    """The EXIF orientation of an image file, 1 where there is none."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return int(image.getexif().get(274, 1) or 1)
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError):
        return 1  # it is refused with its reason when it is read


# ---- looking at one mask --------------------------------------------------------------------------------------------


def seen_of(path: str, raw: RawMask) -> Seen:
    """What of one mask goes into the decision."""
    pixels = raw.pixels
    soft = pixels.dtype.kind == "f"
    packed = _one_number(pixels) if raw.colours else pixels
    values, areas, solid = None, [], set()
    if soft:
        light = packed >= 0.5
    else:
        unique, counts = np.unique(packed, return_counts=True)
        if not raw.lossy and len(unique) <= FEW + 1:
            names = [_colour(v) if raw.colours else int(v) for v in unique]
            values = dict(zip(names, counts.tolist(), strict=True))
            if len(unique) > 2:
                flat = packed[maximum_filter(packed, 3) == minimum_filter(packed, 3)]
                solid = {_colour(v) if raw.colours else int(v) for v in np.unique(flat)}
            else:
                solid = set(names)
        else:
            areas = _areas(pixels)
        light = packed > 0 if values is not None else packed > packed.max() / 2
        light = light if not raw.colours else pixels.max(axis=2) > 127
    ends = (packed[0, 0], packed[0, -1], packed[-1, 0], packed[-1, -1])
    corner = None
    if all(end == ends[0] for end in ends):
        corner = _colour(ends[0]) if raw.colours else float(ends[0])
    outline = _is_outline(light) if light.any() else None
    top = float(pixels.max()) if pixels.size else 0.0
    grey = pixels.max(axis=2) if raw.colours else pixels
    picture = (
        values is None
        and not soft
        and not frames.kind_of(path)
        and grey.min() < grey.max()
        and not has_few_values(grey.astype(np.float64))
    )
    return Seen(path, raw.colours, raw.lossy, soft, values, areas, solid, corner, outline, raw.palette, top, picture)


def _areas(pixels: np.ndarray) -> list:
    """Greys, or colours, of what fills 7 x 7 pixels and is not black: edges and noise do not."""
    scale = 255 / max(255, float(pixels.max()))
    flat = (pixels.reshape(*pixels.shape[:2], -1) * scale).astype(np.float32)
    high, low = maximum_filter(flat, (7, 7, 1)), minimum_filter(flat, (7, 7, 1))
    # (pixels of areas, 1 or 3); 24: noise of a JPEG
    remaining = flat[((high - low).max(2) <= 24) & (high.max(2) > NEAR)]
    areas = []
    while len(remaining):
        lightest = remaining[remaining.max(1).argmax()]
        areas.append(tuple(float(v) / scale for v in lightest))
        remaining = remaining[np.abs(remaining - lightest).max(1) > NEAR]
    return areas


def _is_outline(light: np.ndarray) -> bool:
    """Whether a mask is a closed line: thin, and several times as large when it is filled."""
    if binary_opening(light, np.ones((THIN, THIN))).any():
        return False
    return bool(binary_fill_holes(light).sum() >= 3 * light.sum())


def _one_number(colours: np.ndarray) -> np.ndarray:
    wide = colours.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def _colour(number) -> tuple[int, int, int]:
    number = int(number)
    return number >> 16, (number >> 8) & 255, number & 255


# ---- deciding for a set ---------------------------------------------------------------------------------------------


def mask_coding(
    root, records: Iterable[Record], reading: Reading | None = None, outlines: bool = False, workers: int = 4
) -> MaskCoding | None:
    """The coding of a set, decided over all masks of its records once; None where no record has a mask file.

    outlines: the names say that masks are outlines (`annotation`, `contour`)
    Masks that cannot be read do not count: their images are refused when they are packed. Raises ValueError that names the file.
    """
    root, reading = Path(root), reading or Reading()
    records = [record for record in records if record.mask]
    if not records:
        return None
    names = outline_names(root, records)
    seen = look_at_masks(root, records, workers)
    if seen is None:
        return MaskCoding(kind="numbers", names=names)
    coding = replace(decide(seen, reading, outlines) if seen else MaskCoding(), names=names)
    raw = masks_on_raw_pixels(root, records, reading)
    if raw is None:
        return coding
    words = "masks of images that their EXIF orientation turns lie on " + (
        "the raw pixels" if raw else "the upright image"
    )
    return replace(coding, raw=raw, said=(*coding.said, words))


def look_at_masks(root: Path, records: list[Record], workers: int = 4) -> list[Seen] | None:
    """What lies in each mask file of the records, but for those that cannot be read; None where all masks are outlines."""
    files = {}
    for record in records:
        for path in record.mask_paths:
            if polygons.split_reference(path)[1] is None:
                files.setdefault((path, record.frame), None)
    if not files:
        return None

    def look(place):
        try:
            return seen_of(place[0], _raw_of(root / place[0], place[1]))
        except ValueError:
            return None

    with ThreadPoolExecutor(max(1, workers)) as pool:
        return [one for one in pool.map(look, files) if one is not None]


def _check_segments(root: Path, records: list[Record]) -> None:
    """ValueError where the names of segments say that one number is two classes, or one class two numbers."""
    first: dict[object, tuple] = {}
    for path in dict.fromkeys(path for record in records for path in record.mask_paths):
        if frames.kind_of(path) != "volume":
            continue
        try:
            named = volumes.segment_names(root / path)
        except ValueError:  # its image is refused when it is packed
            continue
        for number, name in named.items():
            for key, other in ((number, same(name)), (same(name), number)):
                value, file, words = first.setdefault(key, (other, path, f"{number} is {name!r}"))
                if value != other:
                    raise ValueError(
                        f"the segments of {file} and {path} are numbered differently: {words} in one, {number} is {name!r} in the "
                        "other. Export all with one order of segments, or name them alike"
                    )


def outline_names(root: Path, records: list[Record]) -> tuple[str, ...]:
    """The names of the classes 1, 2, ... over all files of outlines; () where the files tell none.

    Each file numbers its classes by itself; a class of one name has one number over the set. ValueError where only some name them.
    """
    _check_segments(root, records)
    told, unnamed = {}, ""
    for path in dict.fromkeys(path for record in records for path in record.mask_paths):
        file, key = polygons.split_reference(path)
        if key is None or file in told or file.lower().endswith(".txt"):  # YOLO's classes are numbers
            continue
        try:
            names, drawn = polygons.class_names(root / file), polygons.holds_any(root / file)
        except (OSError, ValueError):  # its images are refused when they are packed
            continue
        told[file] = tuple(names[number] for number in sorted(names))
        if names and sorted(names) != list(range(1, len(names) + 1)):
            raise ValueError(f"{file}: only some of its outlines name their class ({', '.join(told[file])}): name all")
        unnamed = unnamed or file * (drawn and not names)
    several = next((file for file, names in told.items() if len(names) > 1), "")
    if several and unnamed:
        raise ValueError(
            f"{several} names the classes {', '.join(told[several])}, and {unnamed} names none: a class could get two numbers"
        )
    most_first = sorted(told.values(), key=len, reverse=True)
    return tuple(dict.fromkeys(name for names in most_first for name in names))


def masks_on_raw_pixels(root: Path, records: list[Record], reading: Reading) -> bool | None:
    """Whether masks lie on the pixels before the EXIF orientation turns them; None where no image is turned."""
    if reading.orientation:
        return reading.orientation == "raw"
    turned, raw, upright = [], [], []
    for record in records:
        orientation = exif_orientation(root / record.path)
        if orientation not in TURNED or polygons.split_reference(record.mask_paths[0])[1] is not None:
            continue
        turned.append(record.path)
        try:
            with Image.open(root / record.path, formats=FORMATS) as image:
                width, height = image.size
            shape = _raw_of(root / record.mask_paths[0]).pixels.shape[:2]
        except (OSError, ValueError, SyntaxError):
            continue
        if orientation >= 5 and width != height:  # a quarter turn: the shape tells
            (raw if (shape[1] > shape[0]) == (width > height) else upright).append(record.path)
    if not turned:
        return None
    if raw and upright:
        raise ValueError(
            f"some masks lie on the raw pixels of their image ({raw[0]}) and some on the upright one ({upright[0]}), as "
            "its EXIF "
            "orientation turns it: save the images upright, without the tag"
        )
    if not raw and not upright:
        raise ValueError(
            f"{len(turned)} images with masks are turned by their EXIF orientation (e.g. {turned[0]}), and their masks "
            "can lie on the "
            "raw pixels or on the upright image: say reading.orientation=raw or reading.orientation=upright"
        )
    return bool(raw)


def decide(seen: list[Seen], reading: Reading, outlines: bool = False) -> MaskCoding:
    """The coding that all these masks share. Raises ValueError that names a file and the readings that are possible."""
    said: list[str] = []
    background = int(reading.background or 0)
    pictures = [one for one in seen if one.picture]
    if len(pictures) > 0.5 * len(seen):
        raise ValueError(
            f"{pictures[0].path} is named as a mask, but is a picture with many greys, as are {len(pictures)} of {len(seen)}: "
            "name the masks themselves, with class numbers or with 0 and 255"
        )
    as_colours = palettes_as_colours(seen)
    _check_background(seen, reading)
    fill = _decide_outlines(seen, reading, outlines, said)
    soft = [one for one in seen if one.soft]
    if soft:
        said.append(
            f"{len(soft)} masks hold probabilities (e.g. {soft[0].path}): {reading.threshold:g} and above is the class"
        )
    seen = [one for one in seen if not one.soft]
    shared = {"background": background, "fill": fill, "threshold": reading.threshold, "as_colours": as_colours}
    if any(one.colours for one in seen):
        coding = _colour_coding(seen, reading, said, shared)
    elif any(one.values is None for one in seen):
        coding = _blurred_coding(seen, reading, said, shared)
    else:
        coding = _number_coding(seen, reading, said, shared)
    classes = set(coding.values) if coding.kind != "numbers" else {v for one in seen for v in one.values or () if v}
    if soft and coding.kind != "binary" and len(classes - {coding.ignore}) > 1:
        raise ValueError(
            f"{soft[0].path} holds probabilities of one class, while other masks hold several classes (e.g. {seen[0].path})"
        )
    if soft and coding.kind == "numbers":
        coding = replace(coding, kind="binary")
    return coding


def _some_background(seen: list[Seen], reading: Reading) -> None:
    """ValueError where no mask of a set has a background: every one is full, or counts from 1."""
    plain = [one.values for one in seen if one.values]
    if (
        len(plain) == len(seen) > 1
        and not reading.background
        and not any({0, (0, 0, 0)} & set(values) for values in plain)
    ):
        raise ValueError(
            f"no mask holds 0, the background (e.g. {seen[0].path} holds {', '.join(map(str, plain[0]))}): say which value is the "
            "background with reading.background, or reading.background=0 where classes fill every image"
        )


def _check_background(seen: list[Seen], reading: Reading) -> None:
    """Masks that are light in all corners are drawn the other way round, or show something that fills the image."""
    _some_background(seen, reading)
    drawn = [one for one in seen if one.values is None or len(one.values) > 1]
    light = [one for one in drawn if one.corner not in (None, 0, 0.0, (0, 0, 0)) and not one.soft]
    values = Counter(one.corner for one in light)
    if reading.background or not drawn or not light:
        return
    value, count = values.most_common(1)[0]
    ignored = reading.ignore.isdigit() and value == int(reading.ignore)
    small = [one for one in drawn if one.values and any(v not in (0, value) for v in one.values)]
    if count >= 0.8 * len(drawn) and len(drawn) > 1 and not ignored and not small:
        number = int(value) if not isinstance(value, tuple) else "/".join(map(str, value))
        raise ValueError(
            f"{count} of {len(drawn)} masks hold {number} in all four corners (e.g. {light[0].path}): is that the "
            "background, or a class "
            f"that fills the image? Say reading.background={number if not isinstance(value, tuple) else 255} or "
            "reading.background=0"
        )


def _decide_outlines(seen: list[Seen], reading: Reading, outlines: bool, said: list[str]) -> bool:
    drawn = [one for one in seen if one.outline is not None]
    lines = [one for one in drawn if one.outline]
    if reading.outlines == "keep" or not lines or len(lines) < 0.5 * len(drawn):
        return False
    if len(lines) < len(drawn):
        other = next(one for one in drawn if not one.outline)
        if len(lines) < 0.9 * len(drawn) and not reading.outlines:
            raise ValueError(
                f"{len(lines)} of {len(drawn)} masks are closed lines (e.g. {lines[0].path}) and others are areas (e.g. "
                f"{other.path}): say "
                "reading.outlines=fill or reading.outlines=keep"
            )
    if outlines or reading.outlines == "fill":
        said.append(f"masks are outlines (e.g. {lines[0].path}): their inside is the class")
        return True
    raise ValueError(
        f"{len(lines)} of {len(drawn)} masks are closed lines (e.g. {lines[0].path}): is their inside meant, or the line "
        "itself? Say "
        "reading.outlines=fill or reading.outlines=keep"
    )


def palettes_as_colours(seen: list[Seen], surely: bool = False) -> bool:
    """Indices of palettes are class numbers where all files mean the same colours, and black by 0; else colours.

    surely: colours in any case
    """
    meant: dict[int, tuple] = {}
    agree = True
    for one in seen:
        for index, colour in one.palette.items():
            agree &= meant.setdefault(index, colour) == colour
    agree &= meant.get(0, (0, 0, 0)) == (0, 0, 0) or (0, 0, 0) not in meant.values()
    if agree and not surely:
        return False
    for one in seen:
        if one.palette and one.values is not None:
            values = Counter()
            for index, count in one.values.items():
                values[one.palette[index]] += count
            one.colours, one.values = True, dict(values)
            one.solid = {one.palette[index] for index in one.solid}
            one.corner = one.palette.get(int(one.corner)) if one.corner is not None else None
            one.palette = {}
    return True


def _number_coding(seen, reading, said, shared) -> MaskCoding:
    """Of files that hold few whole numbers each."""
    background = shared["background"]
    values = sorted({value for one in seen for value in one.values if value != background})
    ignore = _ignored(seen, values, background, reading)
    if ignore is not None:
        ignored = sum(ignore in one.values for one in seen)
        said.append(
            f"the value {ignore} is ignored in {ignored} masks: it is no class, and counts in no loss and no figure"
        )
    classes = [value for value in values if value != ignore]
    shared = {**shared, "ignore": ignore}
    if (
        reading.values == "binary"
        or len(classes) == 1
        or (set(classes) <= FULL_SCALE and _one_each(seen, background, ignore))
    ):
        if reading.values != "binary" and classes and max(classes) <= CLASS_LIMIT and classes not in ([0], [1]):
            return MaskCoding(kind="numbers", said=tuple(said), **shared)
        if classes and classes not in ([0], [1], [255]):
            said.append(f"one class: the values {_listed(classes)}")
        tops = set(classes)
        if reading.values == "binary":  # the darkest class counts, too: half of it is the threshold
            tops = {min(tops - set(_edge_values(seen, classes, background)), default=255)}
        return MaskCoding(kind="binary", top=float(max(tops, default=255)), said=tuple(said), **shared)
    if not classes or (max(classes) <= CLASS_LIMIT and min(classes) > 0):  # 0 is a class beside another background
        said.append(f"class numbers {_listed(classes)}") if classes else None
        return MaskCoding(kind="numbers", said=tuple(said), **shared)
    _one_coding(seen, background, ignore)
    edges = _edge_values(seen, classes, background)
    if edges and reading.values != "classes":
        if len(classes) - len(edges) == 1:
            said.append(
                f"the values {_listed(edges)} are edges between 0 and {_listed(set(classes) - set(edges))}: one class"
            )
            return MaskCoding(kind="binary", top=float(max(classes)), said=tuple(said), **shared)
        where = next(one.path for one in seen if edges[0] in one.values)
        raise ValueError(
            f"{where}: the value {edges[0]} lies only on edges between other values: a thin class, or edges that were "
            "blurred? Say "
            "reading.values=classes or write class numbers"
        )
    if len(classes) > MOST_CLASSES:
        raise ValueError(f"masks hold {len(classes)} values, e.g. {_listed(classes[:8])}: these are pictures, no masks")
    said.append("one value per class: " + ", ".join(f"{k} is {value}" for k, value in enumerate(classes, start=1)))
    return MaskCoding(kind="values", values=tuple(classes), said=tuple(said), **shared)


def _ignored(seen, values, background, reading) -> int | None:
    """The value that is no class: what is declared, or 255 beside class numbers in one file."""
    if reading.ignore == "none":
        return None
    if reading.ignore:
        return int(reading.ignore)
    if IGNORE not in values or len(values) < 2 or background == IGNORE:
        return None
    others = [value for value in values if value != IGNORE]
    together = [one for one in seen if IGNORE in one.values and len(set(one.values) - {background, IGNORE}) > 0]
    if max(others) <= CLASS_LIMIT:
        if together or len(others) > 1:
            alone = [one for one in seen if set(one.values) - {background} == {IGNORE}]
            if not together and alone:
                other = next(one for one in seen if set(one.values) & set(others))
                raise ValueError(
                    f"{other.path} holds class numbers ({_listed(set(other.values) - {background})}) and {alone[0].path} "
                    "holds 255: one "
                    "of them does not fit. Write all masks alike, or say reading.ignore=255"
                )
            return IGNORE
        return None
    # 85, 170, 255 and 127, 255 are greys at equal distances
    even = any(
        all(abs(v * n / 255 - round(v * n / 255)) * 255 / n <= 1 for v in values) for n in range(2, CLASS_LIMIT + 1)
    )
    if max(others) < 128 and together and not even:
        raise ValueError(
            f"masks hold the values {_listed(values)} (e.g. {together[0].path}): is 255 a class, or to be ignored? Say "
            "reading.ignore=255 or reading.ignore=none"
        )
    return None


def _one_each(seen, background, ignore) -> bool:
    return all(len(set(one.values) - {background, ignore}) <= 1 for one in seen)


def _one_coding(seen, background, ignore) -> None:
    """ValueError where some files hold class numbers and others greys: two codings in one set."""
    small = [
        one for one in seen if (values := set(one.values) - {background, ignore, IGNORE}) and max(values) <= CLASS_LIMIT
    ]
    large = [one for one in seen if (values := set(one.values) - {background, ignore}) and min(values) > CLASS_LIMIT]
    if small and large:
        a, b = small[0], large[0]
        raise ValueError(
            f"{a.path} holds the values {_listed(set(a.values) - {background})} and {b.path} "
            f"{_listed(set(b.values) - {background})}: "
            "class numbers in one, greys in the other. Write all masks of a set alike"
        )


def _edge_values(seen, classes, background) -> list:
    """Values that nowhere fill 3 x 3 pixels and lie between two others that do: what blurring leaves at an edge."""
    solid = set().union(*(one.solid for one in seen))
    firm = sorted(value for value in classes if value in solid)
    if not firm:
        return []
    return [value for value in classes if value not in solid and value < firm[-1]]


def _blurred_coding(seen, reading, said, shared) -> MaskCoding:
    """Of files of which some are compressed or blurred: one class, told by half of its light value."""
    areas: list[tuple[float, str]] = []
    lossy = [one for one in seen if one.lossy and one.top]
    if lossy and max(one.top for one in lossy) <= NEAR:
        raise ValueError(
            f"{lossy[0].path} is a JPEG whose largest value is {lossy[0].top:.0f}: class numbers do not survive JPEG. Write PNG"
        )
    for one in seen:
        if one.values is None:
            areas += [(area[0], one.path) for area in one.areas]
        else:
            values = [value for value in one.values if value != shared["background"] and value in one.solid]
            areas += [(float(value), one.path) for value in values if value not in (1,) or len(values) > 1]
    top = max((value for value, _ in areas), default=255.0)
    if reading.values != "binary":
        differing = [
            (value, path)
            for value, path in areas
            if top - value > NEAR * max(1.0, top / 255) and value not in FULL_SCALE
        ]
        if differing:
            value, path = differing[0]
            where = next(name for other, name in areas if other == top)
            raise ValueError(
                f"grey or colour {value:.0f} fills areas in {path} and {top:.0f} in {where}: if these are classes, write "
                "class numbers "
                "0, 1, 2 ... as pixel values; if not, 0 and 255, or say reading.values=binary"
            )
    if top <= 127 and areas:
        where = areas[0][1]
        raise ValueError(
            f"grey or colour {top:.0f} fills areas beside black in {where}: if these are classes, write class numbers 0, "
            "1, 2 ... as "
            "pixel values; if not, 0 and 255"
        )
    said.append(
        f"masks are compressed or have soft edges (e.g. {next(o.path for o in seen if o.values is None)}): above {top / 2:.0f} "
        "is the class"
    )
    return MaskCoding(kind="binary", top=top, said=tuple(said), **shared)


def _colour_coding(seen, reading, said, shared) -> MaskCoding:
    """Of files of which some are coloured: one class per colour over the set."""
    background = (shared["background"],) * 3
    files_of: dict[tuple, list[str]] = {}
    for one in seen:
        if one.values is not None:
            kinds = [v if one.colours else (v, v, v) for v in one.values if v in one.solid or len(one.values) <= 2]
        else:
            kinds = [tuple(round(v) for v in (area if len(area) == 3 else area * 3)) for area in one.areas]
        for colour in kinds:
            if colour != background:
                near = next(
                    (known for known in files_of if one.values is None and _apart(known, colour) <= NEAR), colour
                )
                files_of.setdefault(near, []).append(one.path)
    thin = sorted({v for one in seen if one.colours and one.values for v in one.values} - set(files_of) - {background})
    thin = [colour for colour in thin if not any(between(colour, background, other) for other in files_of)]
    for colour in thin:
        files_of[colour] = [next(one.path for one in seen if one.colours and one.values and colour in one.values)]
    colours = sorted(files_of)
    if len(colours) > MOST_CLASSES:
        raise ValueError(
            f"masks hold {len(colours)} colours, e.g. in {files_of[colours[0]][0]}: these are pictures, no masks"
        )
    if len(colours) <= 1 or reading.values == "binary":
        # the darkest colour counts, too: half of it is the threshold
        return MaskCoding(kind="binary", top=float(min(map(max, colours), default=255)), said=tuple(said), **shared)
    lossy = [one for one in seen if one.values is None]
    for middle in colours if lossy else ():
        ends = [c for c in (*colours, background) if c != middle]
        if any(between(middle, a, b) for k, a in enumerate(ends) for b in ends[k + 1 :]):
            raise ValueError(
                f"grey or colour {_name(middle)} fills areas in {files_of[middle][0]}, and is also what edges between other "
                "colours look "
                f"like in {lossy[0].path}, which is compressed or blurred: if these are classes, write class numbers 0, "
                "1, 2 ..."
            )
    said.append(
        "one colour per class, red/green/blue: "
        + ", ".join(f"{k} is {_name(colour)} (e.g. {files_of[colour][0]})" for k, colour in enumerate(colours, start=1))
    )
    return MaskCoding(kind="values", values=tuple(_name(colour) for colour in colours), said=tuple(said), **shared)


def _apart(a, b) -> int:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def between(colour, a, b) -> bool:
    """Whether a colour lies near the straight line between two others: what an edge between them looks like."""
    a, b, c = (np.array(x, dtype=float) for x in (a, b, colour))
    length = float(((b - a) ** 2).sum())
    if not length:
        return False
    place = float(((c - a) * (b - a)).sum() / length)
    return 0.02 < place < 0.98 and float(np.abs(a + place * (b - a) - c).max()) <= 24


def _name(colour) -> str:
    return "/".join(str(int(v)) for v in colour)


def _listed(values) -> str:
    return ", ".join(str(value) for value in sorted(values)) or "none"


# ---- applying it ----------------------------------------------------------------------------------------------------


def coded(raw: RawMask, coding: MaskCoding) -> np.ndarray:
    """Class numbers uint8 (H, W) of one mask. Raises ValueError where it holds a value that the set's coding does not have."""
    if coding.as_colours and raw.palette:
        raw = RawMask(_palette_table(raw)[raw.pixels])
    pixels = raw.pixels
    if pixels.dtype.kind == "f":
        classes = (pixels >= coding.threshold).astype(np.uint8)
    elif coding.kind == "values" and isinstance(coding.values[0], str):
        classes = _nearest_colour(raw, coding)
    elif coding.kind == "binary":
        classes = _one_class(raw, coding)
    else:
        classes = _numbered(raw, coding)
    if coding.fill:
        for number in np.unique(classes[(classes > 0) & (classes != IGNORE)]):
            inside = binary_fill_holes(classes == number)
            classes = np.where(inside & (classes == 0), number, classes).astype(np.uint8)
    return classes


def _one_class(raw: RawMask, coding: MaskCoding) -> np.ndarray:
    pixels = raw.pixels.max(axis=2) if raw.colours else raw.pixels
    ignored = pixels == coding.ignore if coding.ignore is not None else np.zeros(pixels.shape, bool)
    if coding.background:
        apart = np.abs(raw.pixels.astype(np.int64) - coding.background)
        apart = apart.max(axis=2) if raw.colours else apart  # red on white is as light as white
        light = apart > (coding.background // 2 if raw.lossy else 0)
    else:
        nonzero = np.unique(pixels[(pixels > 0) & ~ignored])
        if (
            not raw.lossy and len(nonzero) <= 1 or not raw.lossy and coding.top <= CLASS_LIMIT
        ):  # 0 and 1, 0 and 255, 0 and 65535
            light = pixels > 0
        else:
            light = pixels > coding.top / 2
    return np.where(ignored, IGNORE, light).astype(np.uint8)


def _numbered(raw: RawMask, coding: MaskCoding) -> np.ndarray:
    pixels = raw.pixels
    if raw.colours or raw.lossy:
        raise ValueError("is coloured or compressed, while the other masks of the set hold class numbers")
    known = list(coding.values) if coding.kind == "values" else list(range(1, CLASS_LIMIT + 1))
    table = np.full(max(int(pixels.max()), *known, coding.ignore or 0, coding.background) + 1, -1, np.int16)
    for number, value in enumerate(known, start=1):
        table[value] = number
    table[coding.background] = 0
    if coding.ignore is not None:
        table[coding.ignore] = IGNORE
    classes = table[pixels]
    if classes.min() < 0:
        strange = int(pixels[classes < 0][0])
        raise ValueError(f"holds the value {strange}, which no class of the set has ({_listed(known)})")
    return classes.astype(np.uint8)


def _palette_table(raw: RawMask) -> np.ndarray:
    """Colours (indices, 3) of a palette."""
    table = np.zeros((max(raw.palette) + 1, 3), np.uint8)
    for index, colour in raw.palette.items():
        table[index] = colour
    return table


def _nearest_colour(raw: RawMask, coding: MaskCoding) -> np.ndarray:
    if raw.palette and not raw.colours:
        pixels = _palette_table(raw)[raw.pixels]
    else:
        pixels = raw.pixels if raw.colours else np.repeat(raw.pixels[..., None].clip(0, 255), 3, axis=2)
    known = [(coding.background,) * 3, *(tuple(int(v) for v in name.split("/")) for name in coding.values)]
    numbers = _one_number(np.asarray(pixels))
    unique, places = np.unique(numbers, return_inverse=True)
    colours = np.array([_colour(v) for v in unique], dtype=np.int32)
    distance = np.abs(colours[:, None] - np.array(known, dtype=np.int32)[None]).sum(axis=2)
    return distance.argmin(axis=1)[places].reshape(numbers.shape).astype(np.uint8)


def shrunk(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask (H, W) at another size by the nearest pixel; thin and tiny parts, which that would break or lose, stay whole."""
    if mask.shape == (height, width):
        return mask
    small = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    step = max(mask.shape[0] / height, mask.shape[1] / width)
    if step <= 1.25:
        return small
    box = int(np.ceil(step))
    small = small.copy()
    for number in np.unique(mask):
        if number in (0, IGNORE):
            continue
        of_class = mask == number
        thin = of_class & ~binary_opening(of_class, np.ones((box, box)))
        if thin.sum() < 0.5 * of_class.sum():  # only a rim
            continue
        rows, columns = np.nonzero(thin)
        place = (rows * height // mask.shape[0], columns * width // mask.shape[1])
        free = small[place] == 0
        small[place[0][free], place[1][free]] = number
    return small
