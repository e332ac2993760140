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
from vfm4us.data.frames import VOLUME_EXTENSIONS, Contents, MissingPackage, extension_of, tell_shape_of_pixels
from vfm4us.data.greys import full_range, to_8_bit
from vfm4us.data.signatures import what_file_is

_LAST = threading.local()
MAXIMUM_VOXELS = 4 * limits.MAXIMUM_PIXELS
DEFLATE = 1032  # no stream of deflate holds more bytes than this many times its own
READERS = dict(  # by ending, so that no other reader of ITK is ever tried on a file
    zip(VOLUME_EXTENSIONS, ("NiftiImageIO",) * 2 + ("MetaImageIO",) * 2 + ("NrrdImageIO",) * 2, strict=True)
)
COLOUR_TYPES = ("vector of 8-bit unsigned integer", "vector of 16-bit unsigned integer")
RGB_DATATYPES = (128, 2304)  # of NIfTI: RGB24, RGBA32
SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}  # NIfTI's xyzt_units of the time axis
SEGMENT = re.compile(rb"^Segment(\d+)_(Name|LabelValue):?=(.*?)\s*$", re.MULTILINE)
KINDS = re.compile(rb"^kinds:(.*)$", re.IGNORECASE | re.MULTILINE)
DATA_FILE = re.compile(rb"^\s*(?:ElementDataFile\s*=|data ?file\s*:=?)\s*(.*?)\s*$", re.IGNORECASE | re.MULTILINE)


def contents(path) -> Contents:
    """What a volume's header says: slices or frames, rate, spacing in mm. Raises ValueError with a one-line reason."""
    reader = _reader(path)
    size, spacing = reader.GetSize(), reader.GetSpacing()
    told = Contents("volume", count=int(np.prod(size[2:], dtype=np.int64)), rate=0)
    if all(0 < step < 1000 for step in spacing[:2]) and tuple(spacing[:2]) != (1.0, 1.0):
        told.spacing_mm = f"{spacing[1]:.6g} {spacing[0]:.6g}"  # 1 by 1 is what a header says that knows nothing
    tell_shape_of_pixels(told)
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


def read_label(path, number: int, image=None) -> np.ndarray:
    """The values (H, W), as they are written, of a slice of a mask. Raises ValueError for colour and for a slice it lacks.

    The mask of a volume is asked for slice by slice: each thread keeps the last one that it read.
    image: the volume over which it should lie; ValueError where the headers of the two say that it does not
    """
    limits.refuse_special(path)  # a mask that is not there costs its image, not the set
    status = os.stat(path)
    asked = (str(path), str(image), status.st_size, status.st_mtime_ns)
    if getattr(_LAST, "asked", None) != asked:
        _LAST.asked = None
        if image is not None:
            _check_same_place(path, image)
        _LAST.pixels = _array(path)
        _LAST.asked = asked
    if _LAST.pixels.ndim != 3:
        raise ValueError("a mask with several values per pixel is not understood: write class numbers")
    if number >= len(_LAST.pixels):
        raise ValueError(f"has {len(_LAST.pixels)} slices, its image has more")
    return _LAST.pixels[number]


def _check_same_place(path, image) -> None:
    """ValueError where a mask does not lie on the pixels of its image by what the headers of both say."""
    mask, own = _reader(path), _reader(image)
    slices = [int(np.prod(reader.GetSize()[2:], dtype=np.int64)) for reader in (mask, own)]
    if slices[0] != slices[1]:
        raise ValueError(f"has {slices[0]} slices, its image {slices[1]}: write it on the image's grid")
    if len(mask.GetSize()) != len(own.GetSize()):
        return
    if mask.GetSize() == own.GetSize():
        turned = np.abs(np.subtract(mask.GetDirection(), own.GetDirection())).max() > 0.5
        if turned and not (_says_nothing(mask) or _says_nothing(own)):
            raise ValueError(
                f"lies otherwise than its image by their headers (directions {_signs(mask)} and {_signs(own)}): write it on the "
                "image's grid, or with the image's header if only the header is wrong"
            )
    elif not (_says_nothing(mask) and _says_nothing(own)):
        far = [np.abs(np.subtract(*ends)).max() for ends in zip(_ends(mask), _ends(own), strict=True)]
        if max(far) > max(*mask.GetSpacing(), *own.GetSpacing()):
            raise ValueError(
                f"has {mask.GetSize()} pixels of another place than its image's {own.GetSize()} by their headers, such as a part "
                "of it: write it on the image's grid"
            )


def _says_nothing(reader) -> bool:
    """Whether a header holds what is written where nothing is known: steps of 1 from 0, without a turn (or NIfTI's two flips)."""
    axes = len(reader.GetSize())
    turns = np.array(reader.GetDirection()).reshape(axes, axes)
    plain = (turns == np.diag(np.diag(turns))).all() and set(np.diag(turns)[2:]) <= {1.0}
    return plain and set(reader.GetSpacing()) == {1.0} and not any(reader.GetOrigin())


def _ends(reader) -> list[np.ndarray]:
    """The outer corners of the first and the last pixel, in the space of the scanner."""
    axes = len(reader.GetSize())
    steps = np.array(reader.GetDirection()).reshape(axes, axes) * np.array(reader.GetSpacing())
    return [
        np.array(reader.GetOrigin()) + steps @ corner
        for corner in (np.full(axes, -0.5), np.array(reader.GetSize()) - 0.5)
    ]


def _signs(reader) -> str:
    axes = len(reader.GetSize())
    return " ".join(f"{value:+.0f}" for value in np.diag(np.array(reader.GetDirection()).reshape(axes, axes)))


def _reader(path):
    """SimpleITK's reader, its header read and found to be of a bearable size."""
    try:
        import SimpleITK
    except ImportError:
        raise MissingPackage(f"a {extension_of(path)} file", "volumes") from None
    limits.refuse_special(path)
    ending = extension_of(path)
    if ending in (".nii", ".nii.gz") and (limits.first_bytes(path, 2) == b"\x1f\x8b") != (ending == ".nii.gz"):
        other = "is compressed: name it .nii.gz" if ending == ".nii" else "is not compressed: name it .nii"
        raise ValueError(f"volume: {other}")
    beside = data_file(path)
    held = Path(path).stat().st_size + (beside.stat().st_size if beside else 0)
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(READERS[extension_of(path)])
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(
            f"volume: its header is damaged{what_file_is(path, 'volume') or f': {_words(error)}'}"
        ) from None
    size, values = reader.GetSize(), reader.GetNumberOfComponents()
    if values not in (1, 3, 4) or (values > 1 and _has_a_list(path)):
        raise ValueError(
            f"volume: holds {values} values a pixel that are no colour: write frames along an axis of their own, and segments as "
            "class numbers"
        )
    if values > 1 and SimpleITK.GetPixelIDValueAsString(reader.GetPixelID()) not in COLOUR_TYPES:
        raise ValueError(f"volume: holds {values} values a pixel that are no colours in 8 or 16 bits: write one value")
    if 1 in size[:2] and len(size) > 2:
        axes = " x ".join(map(str, size))
        raise ValueError(
            f"volume: its axes are {axes}: write it with the axis of 1 last, so that the first two are the image"
        )
    if not 2 <= len(size) <= 4:
        raise ValueError(f"volume: has {len(size)} axes, 2 to 4 are read")
    limits.check_size(size[0], size[1])
    voxels = int(np.prod(size, dtype=object)) * values
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
    header = _nrrd_header(path) if header.startswith(b"NRRD") else header
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


def _has_a_list(path) -> bool:
    """Whether an NRRD says that one of its axes is a list, which ITK takes for the values of a pixel."""
    kinds = KINDS.search(_nrrd_header(path)) if extension_of(path) in (".nrrd", ".nhdr") else None
    return kinds is not None and b"list" in kinds[1].lower().split()


def segment_names(path) -> dict[int, str]:
    """Label value -> name of the segments of an NRRD that 3D Slicer wrote; each file numbers them by itself."""
    if extension_of(path) != ".nrrd":
        return {}
    told: dict[bytes, dict[bytes, str]] = {}
    for segment, what, value in SEGMENT.findall(_nrrd_header(path)):
        told.setdefault(segment, {})[what] = value.decode("utf-8", "replace").strip()
    return {
        int(segment[b"LabelValue"]): segment[b"Name"]
        for segment in told.values()
        if len(segment) == 2 and segment[b"LabelValue"].isdigit()
    }


def _nrrd_header(path) -> bytes:
    return limits.first_bytes(path, 65536).split(b"\n\n", 1)[0]


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
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Reason:")]
    words = re.sub(r"\S*/\S+", "", re.sub(r"\(0x[0-9a-f]+\)", "", lines[-1] if lines else type(error).__name__))
    return " ".join(words.split())[:200]
