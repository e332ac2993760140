"""One image file as grey pixels.

`read_grey(path)` is what everything else asks; `upright_image(data)` is the decoded PIL image in the file's own mode.
"""

import io

import numpy as np
from PIL import Image, ImageFile, ImageOps

from vfm4us.data.greys import grey_of_image
from vfm4us.data.limits import MAXIMUM_PIXELS, check_size, file_bytes

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")


def read_grey(path) -> np.ndarray:
    """Read an image file as uint8 (H, W), the first frame, turned as its EXIF orientation says.

    Colour becomes luminance (ITU-R 601), transparency is composited on black, 1-bit becomes 0 and 255. 10, 12, 14 and
    16-bit grey is divided by the full range of the smallest of 8, 10, 12, 14, 16 bits that holds the image's maximum,
    so that 12-bit data in a 16-bit file is not black. Float images in [0, 1] are scaled by 255, in [0, 255] rounded;
    anything else (negative, 32-bit, larger) is stretched from its minimum to its maximum.
    Raises ValueError with a one-line reason: unreadable, not an image, truncated, too large or too small.
    """
    return grey_of_bytes(file_bytes(path))


def upright_image(data: bytes) -> Image.Image:
    """The decoded, upright PIL image in the file's own mode; anything a damaged file provokes becomes a ValueError."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: half-decoded images would pass as whole ones")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"not an image in {', '.join(FORMATS)} format, or its header is damaged") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"over the limit of {MAXIMUM_PIXELS // 10**6} megapixels: {one_line(error)}") from error
    except Exception as error:  # decoders of damaged files raise SyntaxError, EOFError, struct.error, KeyError, ...
        raise ValueError(f"damaged header: {one_line(error)}") from error
    check_size(*image.size)  # known from the header, before any pixel is decoded
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"truncated or damaged: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def grey_of_bytes(data: bytes) -> np.ndarray:
    """`read_grey` of the bytes of a file."""
    return grey_of_image(upright_image(data))
