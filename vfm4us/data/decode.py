"""One image file as grey pixels.

`read_grey(path)` and `read_record(root, record)` are what everything else asks; `upright_image(data)` is the decoded PIL image
in the file's own mode.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

from vfm4us.data import frames
from vfm4us.data.greys import grey_of_image
from vfm4us.data.inflating import with_stored_pixels
from vfm4us.data.limits import MAXIMUM_PIXELS, check_size, file_bytes, hold
from vfm4us.data.records import Record
from vfm4us.data.signatures import LOOKED_AT, what_it_is

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")


def read_grey(path) -> np.ndarray:
    """Read an image file as uint8 (H, W), the first frame, turned as its EXIF orientation says.

    Colour becomes luminance (ITU-R 601), transparency is composited on black, 1-bit becomes 0 and 255. 10, 12, 14 and
    16-bit grey is divided by the full range of the smallest of 8, 10, 12, 14, 16 bits that holds the image's maximum,
    so that 12-bit data in a 16-bit file is not black. Float images in [0, 1] are scaled by 255, in [0, 255] rounded;
    anything else (negative, 32-bit, larger) is stretched from its minimum to its maximum. Of a DICOM file it is the B-mode
    region of the first frame, of a clip or a volume the first frame or slice.
    Raises ValueError with a one-line reason: unreadable, not an image, truncated, too large or too small.
    """
    if not frames.kind_of(path) or (contents := frames.contents_of(path)) is None:
        return grey_of_bytes(file_bytes(path))
    return read_frame(path, 0, contents.crops[0])


def read_record(root, record: Record) -> np.ndarray:
    """The image of a record in native pixels, uint8 (H, W): its file, or the frame and the crop of it that the record names.

    Burnt-in text is filled where the record says so (`Record.filled`).
    """
    path = Path(root) / record.path
    if record.reason:
        raise ValueError(record.reason)
    if record.frame or frames.is_container(path):
        image = read_frame(path, record.frame, record.crop)
    else:
        image = frames.cropped(grey_of_bytes(file_bytes(path)), record.crop)
    return _filled(image, record)


def read_records(root, records: Iterable[Record]) -> Iterator[np.ndarray | ValueError]:
    """`read_record` of each, or why it cannot be read; frames that follow each other in one file are decoded in one go."""
    for name, group in groupby(records, key=lambda record: record.path):
        run, done, path = list(group), 0, Path(root) / name
        numbers = [record.frame for record in run]
        if len(run) > 1 and numbers == sorted(numbers) and not run[0].reason and frames.is_container(path):
            with contextlib.suppress(ValueError):  # what is left is asked for by itself, and gives its reason
                for number, pixels in frames.read_frames(path, sorted(set(numbers))):
                    while done < len(run) and run[done].frame == number:
                        yield _filled(frames.cropped(pixels, run[done].crop), run[done])
                        done += 1
        for record in run[done:]:
            try:
                yield read_record(root, record)
            except ValueError as error:
                yield error


def _filled(image: np.ndarray, record: Record) -> np.ndarray:
    return image if record.filled is None else record.filled.on(image)


def read_frame(path, number: int, crop: str = "") -> np.ndarray:
    """One frame of a file that holds several, uint8 (H, W)."""
    for _, pixels in frames.read_frames(path, [number]):
        return frames.cropped(pixels, crop)
    raise ValueError(f"ends before frame {number}")


def upright_image(data: bytes) -> Image.Image:
    """The decoded, upright PIL image in the file's own mode; anything a damaged file provokes becomes a ValueError."""
    with _opened(data) as image:
        return _upright(image)


@contextlib.contextmanager
def _opened(data: bytes):
    """The image with its header read and its size found bearable; the budget of pixels is held until the end."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: half-decoded images would pass as whole ones")
    try:
        image = Image.open(io.BytesIO(with_stored_pixels(data)), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        told = what_it_is(data[:LOOKED_AT], but="image")
        reason = f"not an image in {', '.join(FORMATS)} format"
        raise ValueError(reason + (told or ", or its header is damaged")) from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"over the limit of {MAXIMUM_PIXELS // 10**6} megapixels: {one_line(error)}") from error
    except Exception as error:  # decoders of damaged files raise SyntaxError, EOFError, struct.error, KeyError, ...
        raise ValueError(f"damaged header: {one_line(error)}") from error
    if image.format == "PNG" and getattr(image, "is_animated", False):
        raise ValueError("an animated PNG, of which one picture would be read: save its pictures as files, or as WebP")
    check_size(*image.size)  # known from the header, before any pixel is decoded
    with hold(image.width * image.height):
        yield image


def _upright(image: Image.Image) -> Image.Image:
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # a copy only where there is something to turn
        return image
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"truncated or damaged: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """An error's message on one line, or the name of its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def grey_of_bytes(data: bytes) -> np.ndarray:
    """`read_grey` of the bytes of a file."""
    with held_grey(data) as grey:
        return grey


@contextlib.contextmanager
def held_grey(data: bytes):
    """`grey_of_bytes`, with the budget of pixels held until the work with the image is done."""
    with _opened(data) as image:
        grey = grey_of_image(_upright(image))
        image.close()
        yield grey
