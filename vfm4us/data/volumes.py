"""Slices and frames of NIfTI, MetaImage (MHA, MHD) and NRRD files, read with SimpleITK: pip install -e .[volumes].

One library reads all of them. ITK's first axis runs along a row of the image, its second down the column, so that an array
comes out as (slices, rows, columns). Nothing is turned by the direction matrix: ultrasound files hold many that say nothing.

    rows, columns                     one image
    slices, rows, columns             a volume, cut along its third axis; a clip where the file calls that axis time
    time, 1, rows, columns            a clip
    time, slices, rows, columns       frame number = time * slices + slice
"""

import gzip
import os
import re
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vfm4us.data import limits
from vfm4us.data.frames import VOLUME_EXTENSIONS, Contents, MissingPackage, extension_of
from vfm4us.data.greys import full_range, to_8_bit

_LAST = threading.local()
MAXIMUM_VOXELS = 4 * limits.MAXIMUM_PIXELS
DEFLATE = 1032  # no stream of deflate holds more bytes than this many times its own
READERS = dict(  # by ending, so that no other reader of ITK is ever tried on a file
    zip(VOLUME_EXTENSIONS, ("NiftiImageIO",) * 2 + ("MetaImageIO",) * 2 + ("NrrdImageIO",) * 2, strict=True)
)
RGB_DATATYPES = (128, 2304)  # of NIfTI: RGB24, RGBA32
SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}  # NIfTI's xyzt_units of the time axis
DATA_FILE = re.compile(rb"^\s*(?:ElementDataFile\s*=|data ?file\s*:=?)\s*(.*?)\s*$", re.IGNORECASE | re.MULTILINE)


def contents(path) -> Contents:
    """What a volume's header says: slices or frames, rate, spacing in mm. Raises ValueError with a one-line reason."""
    reader = _reader(path)
    size, spacing = reader.GetSize(), reader.GetSpacing()
    told = Contents("volume", count=int(np.prod(size[2:], dtype=np.int64)), rate=0)
    if all(0 < step < 1000 for step in spacing[:2]) and tuple(spacing[:2]) != (1.0, 1.0):
        told.spacing_mm = f"{spacing[1]:.6g} {spacing[0]:.6g}"  # 1 by 1 is what a header says that knows nothing
    if _third_is_time(reader) or (len(size) == 4 and size[2] == 1):
        told.rate = _rate(reader, spacing[-1])
    elif len(size) == 4:
        told.notes.append(f"holds {size[3]} volumes of {size[2]} slices: frame = time * {size[2]} + slice")
    return told


def read_slices(path, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, grey uint8 (H, W)) of the slices asked for; one range of greys for the file (`greys.full_range`)."""
    with limits.hold(limits.MAXIMUM_PIXELS):  # volumes one at a time
        yield from _slices(_array(path), numbers)


def _slices(pixels: np.ndarray, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    if pixels.ndim == 4:  # colour
        for number in numbers:
            if number < len(pixels):
                colour = to_8_bit(np.ascontiguousarray(pixels[number, ..., :3]))
                yield (
                    number,
                    np.asarray(Image.fromarray(colour).convert("L")) if colour.shape[-1] == 3 else colour[..., 0],
                )
        return
    value_range = None if pixels.dtype == np.uint8 else full_range(pixels)
    for number in numbers:
        if number < len(pixels):
            yield number, to_8_bit(np.ascontiguousarray(pixels[number]), value_range)


def read_label(path, number: int) -> np.ndarray:
    """The values (H, W), as they are written, of a slice of a mask. Raises ValueError for colour and for a slice it lacks.

    The mask of a volume is asked for slice by slice: each thread keeps the last one that it read.
    """
    limits.refuse_special(path)  # a mask that is not there costs its image, not the set
    status = os.stat(path)
    asked = (str(path), status.st_size, status.st_mtime_ns)
    if getattr(_LAST, "asked", None) != asked:
        _LAST.asked = None
        _LAST.pixels = _array(path)
        _LAST.asked = asked
    if _LAST.pixels.ndim != 3:
        raise ValueError("a mask with several values per pixel is not understood: write class numbers")
    if number >= len(_LAST.pixels):
        raise ValueError(f"has {len(_LAST.pixels)} slices, its image has more")
    return _LAST.pixels[number]


def _reader(path):
    """SimpleITK's reader, its header read and found to be of a bearable size."""
    try:
        import SimpleITK
    except ImportError:
        raise MissingPackage(f"a {extension_of(path)} file", "volumes") from None
    limits.refuse_special(path)
    beside = data_file(path)
    held = Path(path).stat().st_size + (beside.stat().st_size if beside else 0)
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(READERS[extension_of(path)])
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"volume: its header is damaged: {_words(error)}") from None
    size = reader.GetSize()
    if not 2 <= len(size) <= 4:
        raise ValueError(f"volume: has {len(size)} axes, 2 to 4 are read")
    limits.check_size(size[0], size[1])
    voxels = int(np.prod(size, dtype=object)) * reader.GetNumberOfComponents()
    if voxels > MAXIMUM_VOXELS:
        raise ValueError(f"volume: {voxels} voxels are over the limit of {MAXIMUM_VOXELS}")
    if voxels > DEFLATE * held:
        raise ValueError(f"volume: {held} bytes cannot hold the {voxels} voxels that its header announces")
    if extension_of(path).startswith(".nii"):
        # bitpix counts all values of a pixel where they are one datum (RGB), one value where they are an axis (a vector)
        together = int(reader.GetMetaData("datatype")) in RGB_DATATYPES
        pixels = voxels // reader.GetNumberOfComponents() if together else voxels
        begin = int(float(reader.GetMetaData("vox_offset")))
        _refuse_truncated(path, begin + pixels * int(reader.GetMetaData("bitpix")) // 8)
    return reader


def _refuse_truncated(path, announced: int) -> None:
    """ValueError where a NIfTI file holds fewer bytes than announced, which its reader fills up with zeros."""
    held = Path(path).stat().st_size
    if extension_of(path) == ".nii.gz":
        with limits.open_regular(path) as file:
            file.seek(-4, 2)
            told = int.from_bytes(file.read(4), "little")  # the size of the last member, modulo 2^32
        if told == announced % 2**32:
            return
        try:
            with gzip.open(path) as file:
                held = 0
                while held < announced and (part := file.read(2**20)):
                    held += len(part)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"volume: truncated or damaged ({type(error).__name__})") from None
    if held < announced:
        raise ValueError(f"volume: truncated: {held} bytes of {announced}")


def _array(path) -> np.ndarray:
    """(N, H, W), or (N, H, W, components)."""
    import SimpleITK

    reader = _reader(path)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ValueError(f"volume: truncated or damaged: {_words(error)}") from None
    pixels = SimpleITK.GetArrayFromImage(image)
    if pixels.dtype.kind not in "biuf":
        raise ValueError("volume: its values are no real numbers")
    components = pixels.shape[-1:] if image.GetNumberOfComponentsPerPixel() > 1 else ()
    height, width = image.GetSize()[1], image.GetSize()[0]
    return pixels.reshape(-1, height, width, *components)


def data_file(path) -> Path | None:
    """The file that a header names for its pixels, which must lie beside it; None where they are in the same file.

    Raises ValueError where it lies elsewhere, or cannot be read.
    """
    if extension_of(path) not in (".mhd", ".mha", ".nhdr", ".nrrd"):
        return None
    header = limits.first_bytes(path, 65536)
    header = header.split(b"\n\n", 1)[0] if header.startswith(b"NRRD") else header
    match = DATA_FILE.search(header)
    name = match[1].decode("utf-8", "surrogateescape") if match else ""
    if not name or name.upper() == "LOCAL":
        return None
    if "/" in name or "\\" in name or "%" in name or name.split()[0].upper() == "LIST" or name.startswith("."):
        raise ValueError("volume: its pixels must lie in one file beside the header, named without a folder")
    try:
        limits.refuse_special(Path(path).parent / name)
    except ValueError as error:
        raise ValueError(f"volume: the file with its pixels, {name}: {error}") from None
    return Path(path).parent / name


def _third_is_time(reader) -> bool:
    return reader.HasMetaDataKey("NRRD_kinds[2]") and reader.GetMetaData("NRRD_kinds[2]").strip().lower() == "time"


def _rate(reader, step: float) -> float | None:
    """Frames a second from the distance of two frames; None where it is 1, or its unit is not known."""
    if step <= 0:
        return None
    if reader.HasMetaDataKey("xyzt_units"):
        seconds = SECONDS.get(int(reader.GetMetaData("xyzt_units")) & 0x38)
        return None if seconds is None or step * seconds == 1 else 1 / (step * seconds)
    return None if step == 1 else 1 / step


def _words(error: Exception) -> str:
    """What SimpleITK says, without its own source lines and addresses."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    words = re.sub(r"\S*/\S+", "", re.sub(r"\(0x[0-9a-f]+\)", "", lines[-1] if lines else type(error).__name__))
    return " ".join(words.split())[:200]
