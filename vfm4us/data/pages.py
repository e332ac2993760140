"""Pages of TIFF, GIF and WebP files, read with Pillow: how many there are, and whether they are frames, slices or something else.

What ImageJ, OME and tifffile write into a TIFF's description says what its pages are. Where it names more images than there are
pages, or several channels of each, a reader of pages would take one thing for another: such files are refused.
"""

import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFile, ImageOps

from vfm4us.data import limits
from vfm4us.data.frames import Contents
from vfm4us.data.greys import common_range, grey_of_image, range_of_file, white_is_zero

PAGE_FORMATS = ("TIFF", "GIF", "WEBP")
MAXIMUM_PAGES = 1_000_000
SUBFILE, DESCRIPTION, SAMPLES, DEPTH = 254, 270, 277, 32997  # tags of TIFF
REDUCED_OR_MASK = 1 | 4  # bits of SUBFILE
PLAIN = "save its images as plain pages of 8 bits, or as single files"


def page_contents(path) -> Contents | None:
    """Pages of a TIFF, GIF or WebP; None where it has one, or is no such image: then it is read, or refused, as an image.

    Raises ValueError with the reason where pages are not what they seem.
    """
    limits.refuse_special(path)
    status = os.stat(path)
    return _page_contents(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1000)  # to count the pages is to go through all of them, and each page that is read asks
def _page_contents(path: str, _size: int, _time: int) -> Contents | None:
    try:
        with Image.open(path, formats=PAGE_FORMATS) as image:
            count = getattr(image, "n_frames", 1)
            width, height = image.size
            if image.format == "WEBP" and count > 1 and width * height <= limits.MAXIMUM_PIXELS:
                image.load()  # only then it knows how long a frame lasts
            durations = image.info.get("duration", 0)
            rate = 1000 / durations if isinstance(durations, int | float) and durations > 0 else None
            tags = getattr(image, "tag_v2", {})
            said = _said(str(tags.get(DESCRIPTION) or ""), int(tags.get(SAMPLES, 1) or 1))
            deep = int(tags.get(DEPTH, 1) or 1) > 1
            small = _small_pages(image, count) if tags and 1 < count <= MAXIMUM_PAGES else []
    except Exception:  # the image's own reader says what is wrong with it
        return None
    if deep:
        raise ValueError(f"a TIFF that holds a volume in one page, of which one slice would be read: {PLAIN}")
    if said and said["images"] > count:
        raise ValueError(f"its description names {said['images']} images, but it holds {count} pages: {PLAIN}")
    if said and said["channels"] > 1:
        raise ValueError(f"holds {said['channels']} channels of each image as pages: keep one channel, and {PLAIN}")
    if small:
        if small != list(range(count - len(small), count)):
            raise ValueError(f"has thumbnails or masks before its images, e.g. page {small[0] + 1}: {PLAIN}")
        count -= len(small)
    if count <= 1:
        return None
    limits.check_size(width, height)
    if count > MAXIMUM_PAGES:
        raise ValueError(f"holds {count} pages")
    told = Contents("pages", count=count, rate=said["rate"] if said else rate)
    if small:
        told.notes.append("has smaller copies or masks of its images as further pages, which are not taken")
    return told


def _small_pages(image: Image.Image, count: int) -> list[int]:
    """The pages that are thumbnails of others, or their transparency, by their own tag."""
    small = []
    for number in range(count):
        image.seek(number)
        if int(image.tag_v2.get(SUBFILE, 0) or 0) & REDUCED_OR_MASK:
            small.append(number)
    return small


def _said(description: str, samples: int) -> dict | None:
    """Images, channels that are pages of their own, and rate (0: slices) by a TIFF's description; None where it says nothing."""
    if description.startswith("ImageJ="):
        keys = dict(line.split("=", 1) for line in description.splitlines() if "=" in line)
        channels, slices, frames = (int(_number(keys.get(key), 1)) for key in ("channels", "slices", "frames"))
        interval = _number(keys.get("finterval"), 0) * (1e-3 if keys.get("tunit", "").startswith("ms") else 1)
        rate = _number(keys.get("fps"), 0) or (1 / interval if interval > 0 else 0)
        channels = 1 if samples > 1 else channels
        return {
            "images": int(_number(keys.get("images"), 1)),
            "channels": channels,
            "rate": _rate(rate, slices, frames),
        }
    if "<OME" in description[:4096]:
        pixels = re.search(r"<(?:\w+:)?Pixels\b([^>]*)>", description)
        if pixels is None or "FileName=" in description:  # its images may lie in other files
            return None
        keys = dict(re.findall(r'(\w+)="([^"]*)"', pixels[1]))
        channels, slices, frames = (int(_number(keys.get(key), 1)) for key in ("SizeC", "SizeZ", "SizeT"))
        channels = max(1, channels // samples)
        step = _number(keys.get("TimeIncrement"), 0) * (1e-3 if keys.get("TimeIncrementUnit") == "ms" else 1)
        rate = _rate(1 / step if step > 0 else 0, slices, frames)
        return {"images": channels * slices * frames, "channels": channels, "rate": rate}
    if description.startswith('{"shape":'):  # tifffile
        try:
            shape = json.loads(description)["shape"]
            images = int(np.prod(shape[: -3 if samples > 1 else -2], dtype=object))
        except (ValueError, TypeError):
            return None
        return {"images": images, "channels": 1, "rate": None}
    return None


def _rate(rate: float, slices: int, frames: int) -> float | None:
    if rate > 0:
        return rate
    return 0 if slices > 1 and frames <= 1 else None


def _number(text: str | None, otherwise: float) -> float:
    try:
        value = float(text or "")
    except ValueError:
        return otherwise
    return value if np.isfinite(value) else otherwise


def read_pages(path, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, grey uint8 (H, W)) of the pages asked for; of more than 8 bits all pages of a file have one range of greys."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: half-decoded images would pass as whole ones")
    try:
        # given a path, Pillow maps the pixels of some TIFFs into memory and then forgets to turn them upright
        with limits.open_regular(path) as file, Image.open(file, formats=PAGE_FORMATS) as image:
            value_range = None
            if _is_wide(image):
                value_range = range_of_file(path, lambda: common_range(_wide_pages(path)))
            for number in numbers:
                image.seek(number)
                limits.check_size(*image.size)
                with limits.hold(image.width * image.height):
                    image.load()
                    turned = white_is_zero(image)
                    grey = grey_of_image(ImageOps.exif_transpose(image), turned, value_range)
                yield number, grey
    except (MemoryError, ValueError):
        raise
    except EOFError:
        return
    except Exception as error:  # decoders of damaged files raise SyntaxError, OSError, struct.error, ...
        raise ValueError(
            f"page is truncated or damaged: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error


def _is_wide(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _wide_pages(path) -> Iterator[np.ndarray]:
    """The numbers of each page of more than 8 bits; what is damaged is left to the page that is asked for."""
    with limits.open_regular(path) as file, Image.open(file, formats=PAGE_FORMATS) as image:
        for number in range(getattr(image, "n_frames", 1)):
            try:
                image.seek(number)
                limits.check_size(*image.size)
                with limits.hold(image.width * image.height):
                    image.load()
                    pixels = np.asarray(image) if _is_wide(image) else None
            except MemoryError:
                raise
            except Exception:  # as above
                pixels = None
            if pixels is not None:
                yield pixels
