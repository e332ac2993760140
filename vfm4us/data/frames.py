"""Files that hold several images (DICOM, clips, pages, volumes): what is in them, and which of their frames are taken.

Two steps, as for every source. `contents_of(path)` reads a header and says how many frames there are, how fast they follow
each other, whose they are and what is left out. `read_frames(path, numbers)` decodes the frames that were chosen.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

CLIP_EXTENSIONS = (".mp4", ".m4v", ".avi", ".mov", ".wmv", ".mkv", ".mpg", ".mpeg", ".webm")
PAGED_EXTENSIONS = (".tif", ".tiff", ".gif", ".webp")
VOLUME_EXTENSIONS = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")
ARRAY_EXTENSIONS = (".npz",)
DICOM_EXTENSIONS = (".dcm", ".dicom", ".dic", ".ima")
OTHER_EXTENSIONS = tuple(  # which are not looked into
    (
        ".png .jpg .jpeg .jfif .bmp .csv .tsv .txt .json .xml .yaml .yml .md .npy .raw .zraw .zip .tar .gz .7z .h5 .hdf5 .mat .pdf "
        ".xlsx .xls .py .ipynb .html .db"
    ).split()
)
ASSUMED_RATE = 25.0  # frames a second, of a clip that does not say
SAME_CELL = 2.5  # grey levels of 255, see `near_identical`
SQUARE = 0.05  # by which rows and columns of square pixels may be apart
NOT_SQUARE = "its pixels are not square, and stay so"
RULES = "first, all, every N, per second, or N per second"
INSTALL = {"dicom": "pydicom", "clips": "av", "volumes": "SimpleITK"}  # extra of pyproject.toml -> its first package


class MissingPackage(ValueError):
    """A file needs a package that is not installed; the message names both and the command."""

    def __init__(self, what: str, extra: str):
        super().__init__(f"{what} needs the package {INSTALL[extra]}: pip install -e .[{extra}]")
        self.extra = extra


@dataclass
class Contents:
    """What one file holds, by its header.

    kind:       "DICOM", "clip", "pages", "volume" or "arrays"
    count:      frames, pages or slices
    rate:       frames a second; None where the file does not say. A volume's slices follow each other in space: 0
    spacing_mm: row and column distance of the native pixels, as "0.2 0.2"; "" where unknown
    group:      who it is of, never in clear: a salted hash; "" where the file does not say
    alike:      the same for all spellings of one patient's ID, a hash as well; "" where the file does not say
    crops:      "top left height width" in native pixels of each part that is an image of its own; "" is all of it
    labels:     of each frame, where the file says them, and
    splits:     train, val or test of each frame
    left_out:   regions that were found and not taken, with the reason
    notes:      what else should be told
    """

    kind: str
    count: int = 1
    rate: float | None = None
    spacing_mm: str = ""
    group: str = ""
    alike: str = ""
    crops: list[str] = field(default_factory=lambda: [""])
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def tell_shape_of_pixels(told: Contents) -> None:
    """Note pixels that are not square by their distances."""
    down, across = (float(step) for step in told.spacing_mm.split()) if told.spacing_mm else (1.0, 1.0)
    if abs(down / across - 1) > SQUARE and NOT_SQUARE not in told.notes:
        told.notes.append(NOT_SQUARE)


@dataclass(frozen=True)
class FrameRule:
    """Which frames of a clip are taken: `first`, `all`, every `step`-th, or `per_second` of them a second."""

    kind: str = "per second"
    step: int = 1
    per_second: float = 1.0

    def __str__(self) -> str:
        if self.kind == "every":
            return f"every {self.step}"
        if self.kind == "per second" and self.per_second != 1:
            return f"{self.per_second:g} per second"
        return self.kind

    def chosen(self, contents: Contents) -> list[int]:
        """Numbers, from 0, of the frames taken; the first frame always. Slices of a volume have no time: all, or every N-th."""
        if contents.kind == "arrays":
            return list(range(contents.count))  # images of their own, no clip
        if contents.count <= 1 or self.kind == "first":
            return [0] if contents.count != 0 else []
        if self.kind == "every":
            return list(range(0, contents.count, self.step))
        if self.kind == "all" or contents.rate == 0:
            return list(range(contents.count))
        distance = (contents.rate or ASSUMED_RATE) / self.per_second
        if distance <= 1:
            return list(range(contents.count))
        # the last number is below count: 10 s at 25 frames a second are 10 frames, not 11
        return [number for k in range(contents.count) if (number := int(k * distance + 0.5)) < contents.count]


def frame_rule(text) -> FrameRule:
    """The rule that a word of a config or of the command line stands for. Raises ValueError that lists the words."""
    words = " ".join(str(text).lower().replace("every-", "every ").replace("per-", "per ").replace("_", " ").split())
    if words in ("first", "all"):
        return FrameRule(words)
    if match := re.fullmatch(r"every (\d{1,9})(?: ?(?:st|nd|rd|th))?(?: frames?)?", words):
        if int(match[1]) >= 1:
            return FrameRule("every", step=int(match[1]))
    if match := re.fullmatch(r"(?:(\d{1,4}(?:\.\d{1,6})?) )?(?:frames? )?(?:per|a) second", words):
        if float(match[1] or 1) > 0:
            return FrameRule("per second", per_second=float(match[1] or 1))
    raise ValueError(f"frames={text!r} is not understood: use {RULES}")


def near_identical(before: np.ndarray | None, after: np.ndarray) -> bool:
    """Whether two grey uint8 frames (H, W) show the same picture, but for the noise of a codec.

    No cell of a grid of means (32 x 32, of 8 pixels or more) differs by more than 2.5 grey levels. A frozen frame of speckle,
    encoded again by MPEG-4, Motion JPEG or WMV, differs by 1 or 2 there (and by up to 6 in the mean of its pixels); a moved
    one by more.
    """
    if before is None or before.shape != after.shape:
        return False
    grid = tuple(max(4, min(32, side // 8)) for side in before.shape[::-1])
    a, b = (np.asarray(Image.fromarray(x).resize(grid, Image.Resampling.BOX), np.float32) for x in (before, after))
    return float(np.abs(a - b).max()) <= SAME_CELL


def extension_of(path) -> str:
    """The ending in small letters, `.nii.gz` whole; "" where there is none, or where it is a number, as in a UID."""
    name = os.fspath(path).rpartition(os.sep)[2].lower()  # a hundred thousand times per set: no Path is made
    if name.endswith(".nii.gz"):
        return ".nii.gz"
    dot = name.rfind(".")
    return "" if dot <= 0 or dot == len(name) - 1 or name[dot + 1 :].isdigit() else name[dot:]


def stem_of(path: str) -> str:
    """The path without its ending."""
    ending = extension_of(path)
    return path[: -len(ending)] if ending else path


def kind_of(path) -> str:
    """ "DICOM", "clip", "pages", "volume", or "" for everything else; files whose ending tells nothing are looked into."""
    from vfm4us.data import dicom

    ending = extension_of(path)
    if ending in CLIP_EXTENSIONS:
        return "clip"
    if ending in VOLUME_EXTENSIONS:
        return "volume"
    if ending in PAGED_EXTENSIONS:
        return "pages"
    if ending in ARRAY_EXTENSIONS:
        return "arrays"
    if ending in DICOM_EXTENSIONS or (ending not in OTHER_EXTENSIONS and dicom.begins_like_dicom(path)):
        return "DICOM"
    return ""


def is_container(path) -> bool:
    """Whether a file is read by frames: DICOM, a clip, a volume, or an image with several pages."""
    from vfm4us.data import pages

    kind = kind_of(path)
    return bool(kind) and (kind != "pages" or pages.page_contents(path) is not None)


def contents_of(path, regions=("b-mode",)) -> Contents | None:
    """What a file holds, from its header; None for a plain image. Raises ValueError with a one-line reason.

    regions: kinds of regions that are taken from DICOM files (see `vfm4us.data.dicom`)
    """
    from vfm4us.data import clips, dicom, medmnist, pages, volumes

    kind = kind_of(path)
    if kind == "DICOM":
        return dicom.contents(path, regions)
    if kind == "clip":
        return clips.clip_contents(path)
    if kind == "pages":
        return pages.page_contents(path)
    if kind == "volume":
        return volumes.contents(path)
    if kind == "arrays":
        return medmnist.contents(path)
    return None


def read_frames(path, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, grey uint8 (H, W)) of each frame asked for, in rising order. Raises ValueError with a one-line reason.

    Frames that the file does not have after all are left out at the end.
    """
    from vfm4us.data import clips, dicom, medmnist, pages, volumes

    reader = {
        "DICOM": dicom.read_frames,
        "clip": clips.read_clip,
        "pages": pages.read_pages,
        "volume": volumes.read_slices,
        "arrays": medmnist.read_images,
    }
    yield from reader[kind_of(path)](path, sorted(numbers))


def cropped(pixels: np.ndarray, crop: str) -> np.ndarray:
    """The part "top left height width" of an image (H, W); all of it for "". ValueError where it is not inside."""
    if not crop:
        return pixels
    try:
        top, left, height, width = (int(word) for word in crop.split())
    except ValueError:
        raise ValueError(f"crop {crop!r} is not of the form: top left height width, in pixels") from None
    if min(top, left) < 0 or min(height, width) < 1 or top + height > pixels.shape[0] or left + width > pixels.shape[1]:
        raise ValueError(f"crop {crop!r} is not inside the image of {pixels.shape[1]} x {pixels.shape[0]} pixels")
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])
