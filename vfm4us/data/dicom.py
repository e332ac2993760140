"""Ultrasound images in DICOM files: grey frames, cut to the B-mode region, of patients that nobody can name.

Only the tags in `TAGS` are read, and of those that say who the patient is nothing is passed on but a keyed hash
(`vfm4us.data.pseudonyms`). Reasons for refusing a file are written here and never quote a value of the file's text tags.
Read with pydicom, compressed frames with the plugins of pylibjpeg: pip install -e .[dicom].
"""

import io
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vfm4us.data import limits
from vfm4us.data.frames import Contents, MissingPackage
from vfm4us.data.greys import full_range
from vfm4us.data.pseudonyms import pseudonym

REGIONS = ("b-mode", "colour", "m-mode", "spectral", "other")
ULTRASOUND = ("US", "IVUS")  # modalities
STORAGE = "1.2.840.10008.5.1.4.1.1."
ULTRASOUND_CLASSES = ("6", "6.1", "6.2", "3", "3.1")  # single, multi-frame and volume; 6 and 3 are retired
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
NAMED_CLASSES = {  # SOP classes, by how they begin after STORAGE, that have no ultrasound image in them
    "7": "a secondary capture: a picture of a screen or a report, not of a scan",
    "88": "a structured report, no image",
    "104": "an encapsulated document, no image",
    "11": "a presentation state, no image",
    "9": "waveforms, no image",
    "66": "a segmentation or registration object, no ultrasound image",
}
VIDEO_SYNTAXES = "1.2.840.10008.1.2.4.10"  # MPEG-2, H.264 and H.265 begin with this
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG_SYNTAXES = ("1.2.840.10008.1.2.4.5", "1.2.840.10008.1.2.4.7", "1.2.840.10008.1.2.4.8")  # JPEG, lossless, JPEG-LS
FASTER = {  # by transfer syntax: libjpeg-turbo, CharLS
    "1.2.840.10008.1.2.4.50": "pillow",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
}
PLAIN_KINDS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422")  # uncompressed
UNKNOWN_LENGTH = 0xFFFFFFFF
LUMA_FIRST = (
    "YBR_FULL",
    "YBR_FULL_422",
)  # their first channel is the luminance (ITU-R 601), so that no colour is made of them
JPEG_2000 = ("1.2.840.10008.1.2.4.9", "1.2.840.10008.1.2.4.20")  # and high-throughput
PHYSICAL_CM = 3  # of PhysicalUnitsXDirection
MAXIMUM_FRAMES = 1_000_000
MINIMUM_REGION = 16  # pixels
OVERLAP = 0.01  # share of a B-mode region that colour Doppler may cover
_PALETTE = [f"{c}PaletteColorLookupTable{what}" for c in ("Red", "Green", "Blue") for what in ("Descriptor", "Data")]
_SEGMENTED = [f"Segmented{c}PaletteColorLookupTableData" for c in ("Red", "Green", "Blue")]
TAGS = [
    *("SOPClassUID", "Modality", "PatientID", "IssuerOfPatientID", "PatientName", "StudyInstanceUID"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("PixelSpacing", "SequenceOfUltrasoundRegions", "UltrasoundColorDataPresent"),
    *("FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate"),
    *_PALETTE,
    *_SEGMENTED,
]


def is_dicom(path) -> bool:
    """Whether a file says in its first 132 bytes that it is DICOM; what cannot be read is not."""
    try:
        return limits.first_bytes(path, 132)[128:] == b"DICM"
    except ValueError:
        return False


def contents(path, regions=("b-mode",)) -> Contents:
    """What a DICOM file holds. Raises ValueError with the reason for a file that is no ultrasound image.

    regions: kinds of `REGIONS` that are taken. Without SequenceOfUltrasoundRegions the whole frame is, and a note says so.
    """
    header = _header(path)
    _refuse_others(header)
    count = _number(header, "NumberOfFrames", 1)
    if not 1 <= count <= MAXIMUM_FRAMES:
        raise ValueError(f"DICOM: NumberOfFrames is {count}")
    told = Contents("DICOM", count=int(count), rate=_rate(header), group=_patient(header))
    height, width = _size(header)
    described = _regions(header, height, width)
    if described:
        told.crops, told.spacing_mm, told.left_out = _taken(described, regions, height, width)
    else:
        spacing = _numbers(header, "PixelSpacing")
        told.spacing_mm = _spacing(spacing[0], spacing[1]) if len(spacing) == 2 else ""
        told.notes.append("names no region: the whole frame is taken, with whatever is written beside the image")
        if _number(header, "UltrasoundColorDataPresent", 0) == 1:
            told.notes.append("says that it holds colour Doppler, not where: its colours become grey")
    if not told.group:
        told.notes.append("names neither patient nor study: its frames are a group of their own")
    if _names_the_patient(path, header):
        told.notes.append("its path holds the patient's ID or name, and manifest.csv repeats paths: rename it")
    return told


def read_frames(path, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, grey uint8 (H, W)) of the frames asked for, as a viewer shows them: windowed, inverted, colours as luminance."""
    header = _header(path)
    _refuse_others(header)
    height, width = _size(header)
    syntax = str(header.file_meta.get("TransferSyntaxUID", "1.2.840.10008.1.2"))
    if syntax.startswith(VIDEO_SYNTAXES):
        yield from _video_frames(path, header, numbers)
        return
    _check_decoder(syntax)
    with limits.hold(2 * height * width):
        yield from _shown(path, header, syntax, numbers)


def _shown(path, header, syntax: str, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    height, width = _size(header)
    value_range = None
    if _number(header, "SamplesPerPixel", 1) == 1 and _number(header, "BitsStored", 8) > 14:
        # 12 bits in 16 that do not say so: one range for all frames, that of the first
        value_range = full_range(next(_decoded(path, header, syntax, [0]))[1])
    for number, pixels in _decoded(path, header, syntax, numbers):
        if pixels.shape[:2] != (height, width):
            raise ValueError(
                f"DICOM: frame {number} has {pixels.shape[1]} x {pixels.shape[0]} pixels, not {width} x {height}"
            )
        yield number, _grey(pixels, header, value_range)


def directory_files(path) -> list[str]:
    """The files that a DICOMDIR names, relative to its folder. Raises ValueError where it cannot be read."""
    header = _header(path, extra=["DirectoryRecordSequence"])
    files = []
    for record in header.get("DirectoryRecordSequence") or []:
        parts = record.get("ReferencedFileID")
        if parts:
            files.append("/".join([parts] if isinstance(parts, str) else [str(part) for part in parts]))
    return files


def _header(path, extra=()):
    """The dataset without its pixels, only with TAGS."""
    try:
        import pydicom
        from pydicom.filereader import read_file_meta_info
    except ImportError:
        raise MissingPackage("a DICOM file", "dicom") from None
    limits.refuse_special(path)
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its warnings quote the values of tags
    named = is_dicom(path)
    try:
        deflated = named and str(read_file_meta_info(path).get("TransferSyntaxUID", "")) == DEFLATED
        tags = [*TAGS, *extra]
        header = (
            None if deflated else pydicom.dcmread(path, force=not named, stop_before_pixels=True, specific_tags=tags)
        )
        _convert(header or ())
    except MemoryError:
        raise
    except Exception as error:  # a damaged header raises almost anything; its words may quote the file
        raise ValueError(f"DICOM: its header is damaged ({type(error).__name__})") from None
    if deflated:
        raise ValueError("DICOM: deflated as a whole, which is not read here: convert it, e.g. with dcmconv +te")
    if not named and "Rows" not in header:
        raise ValueError("not a DICOM file, or its header is damaged")
    return header


def _convert(dataset) -> None:
    """Turn every element from bytes into its value now, while what damaged ones raise is caught."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                _convert(item)


def _refuse_others(header) -> None:
    """ValueError with the reason where a file holds no ultrasound image."""
    kind = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", ""))
    modality = str(header.get("Modality") or "").strip().upper()
    if kind == DIRECTORY_CLASS:
        raise ValueError("DICOM: the directory of a medium, no image: its folder is the source")
    short = kind.removeprefix(STORAGE)
    if kind.startswith(STORAGE) and short not in ULTRASOUND_CLASSES:
        for begin, what in NAMED_CLASSES.items():
            if short == begin or short.startswith(begin + "."):
                raise ValueError(f"DICOM: {what}")
    if modality and modality not in ULTRASOUND:
        shown = modality if len(modality) <= 4 and modality.isalnum() else "unknown"
        raise ValueError(f"DICOM: modality {shown}, not ultrasound (US)")
    if "Rows" not in header or "Columns" not in header:
        raise ValueError("DICOM: holds no image")
    stored = _number(header, "BitsStored", 0)
    if stored and _number(header, "HighBit", stored - 1) != stored - 1:
        raise ValueError(
            f"DICOM: HighBit is {_number(header, 'HighBit', 0):.0f} for {stored:.0f} bits: pixels that begin above the lowest bit "
            "are not read here"
        )
    if _number(header, "RescaleSlope", 1) == 0:
        raise ValueError("DICOM: RescaleSlope is 0, which makes every pixel the same")


def _size(header) -> tuple[int, int]:
    height, width = int(_number(header, "Rows", 0)), int(_number(header, "Columns", 0))
    limits.check_size(width, height)
    return height, width


def _patient(header) -> str:
    for keyword in ("PatientID", "StudyInstanceUID"):
        identity = str(header.get(keyword) or "").strip()
        if identity:
            return pseudonym(keyword, identity, str(header.get("IssuerOfPatientID") or ""))
    return ""


def _names_the_patient(path, header) -> bool:
    path = str(path).lower()
    words = str(header.get("PatientName") or "").lower().replace("^", " ").replace("=", " ").split()
    words.append(str(header.get("PatientID") or "").strip().lower())
    return any(len(word) > 3 and word in path for word in words)


def _rate(header) -> float | None:
    time = _number(header, "FrameTime", 0)
    steps = [step for step in _numbers(header, "FrameTimeVector")[1:] if step > 0]
    if not time and steps:
        time = sum(steps) / len(steps)
    if time > 0:
        return 1000 / time
    return _number(header, "CineRate", 0) or _number(header, "RecommendedDisplayFrameRate", 0) or None


def _number(header, keyword: str, otherwise: float) -> float:
    numbers = _numbers(header, keyword)
    return numbers[0] if numbers else otherwise


def _numbers(header, keyword: str) -> list[float]:
    try:
        value = header.get(keyword)
        values = value if isinstance(value, list | tuple) or hasattr(value, "append") else [value]
        numbers = [float(v) for v in values if v is not None and str(v) != ""]
    except Exception:  # pydicom turns the text into numbers here: damaged text raises almost anything
        raise ValueError(f"DICOM: {keyword} is damaged") from None
    if not np.isfinite(numbers).all():
        raise ValueError(f"DICOM: {keyword} is not finite")
    return numbers


# regions


def _regions(header, height: int, width: int) -> list[tuple]:
    """(kind, top, left, bottom, right, spacing) of each region of the frame, bottom and right exclusive."""
    regions = []
    try:
        items = list(header.get("SequenceOfUltrasoundRegions") or [])
    except TypeError:
        raise ValueError("DICOM: SequenceOfUltrasoundRegions is damaged") from None
    for item in items:
        corner = [_number(item, f"RegionLocation{name}", -1) for name in ("MinY0", "MinX0", "MaxY1", "MaxX1")]
        top, left, bottom, right = (int(value) for value in corner)
        bottom, right = min(bottom + 1, height), min(right + 1, width)
        if min(top, left) < 0 or bottom - top < MINIMUM_REGION or right - left < MINIMUM_REGION:
            continue
        form, data = _number(item, "RegionSpatialFormat", 0), _number(item, "RegionDataType", 0)
        kind = {1: "b-mode", 2: "m-mode", 3: "spectral"}.get(int(form), "other")
        if kind == "b-mode" and data not in (0, 1):  # 2-D, but no tissue
            kind = "colour" if data == 2 else "other"
        units = [_number(item, f"PhysicalUnits{axis}Direction", 0) for axis in "YX"]
        steps = [abs(_number(item, f"PhysicalDelta{axis}", 0)) for axis in "YX"]
        spacing = _spacing(10 * steps[0], 10 * steps[1]) if units == [PHYSICAL_CM, PHYSICAL_CM] else ""
        regions.append((kind, top, left, bottom, right, spacing))
    return regions


def _taken(described: list[tuple], wanted, height: int, width: int) -> tuple[list[str], str, list[str]]:
    """Crops and spacing of the regions of the wanted kinds, and in words what is left out."""
    left_out, taken = [], []
    colour = [region for region in described if region[0] == "colour"]
    for region in sorted(described, key=_area, reverse=True):
        if region[0] not in wanted:
            left_out.append(f"{region[0]} region")
        elif any(_shared(region, other) > 0.5 * _area(region) for other in taken):
            continue  # named twice, or a part of one that is taken
        elif (
            region[0] == "b-mode"
            and "colour" not in wanted
            and any(_shared(region, other) > OVERLAP * _area(region) for other in colour)
        ):
            left_out.append("b-mode region under colour Doppler")
        else:
            taken.append(region)
    if not taken:
        raise ValueError(
            f"DICOM: holds no region of the kinds {', '.join(wanted)}, but {', '.join(sorted(set(left_out)))}: the option "
            "regions takes others"
        )
    taken.sort(key=lambda region: region[1:3])
    crops = [f"{top} {left} {bottom - top} {right - left}" for _, top, left, bottom, right, _ in taken]
    whole = f"0 0 {height} {width}"
    spacings = {region[5] for region in taken}
    # dual images of two depths have two spacings: then none is given rather than a wrong one
    return ["" if crop == whole else crop for crop in crops], spacings.pop() if len(spacings) == 1 else "", left_out


def _area(region: tuple) -> int:
    return (region[3] - region[1]) * (region[4] - region[2])


def _shared(a: tuple, b: tuple) -> int:
    return max(0, min(a[3], b[3]) - max(a[1], b[1])) * max(0, min(a[4], b[4]) - max(a[2], b[2]))


def _spacing(row: float, column: float) -> str:
    return f"{row:.6g} {column:.6g}" if 0 < row < 1000 and 0 < column < 1000 else ""


# pixels


def _check_decoder(syntax: str) -> None:
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    if not UID(syntax).is_compressed:
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ValueError(f"DICOM: its transfer syntax {_syntax_name(syntax)} is not read here") from None
    if not decoder.is_available:
        raise MissingPackage(f"DICOM compressed as {_syntax_name(syntax)}", "dicom")


def _syntax_name(syntax: str) -> str:
    from pydicom.uid import UID

    return UID(syntax).name[:60] if UID(syntax).is_valid else "(damaged)"


def _decoded(path, header, syntax: str, numbers: list[int]):
    from pydicom.pixels import iter_pixels

    count = int(_number(header, "NumberOfFrames", 1))
    numbers = [number for number in numbers if number < count]
    _check_codestreams(path, header, syntax, numbers, count)
    _check_plain_pixels(path, header, syntax, count)
    luma = str(header.get("PhotometricInterpretation", "")).strip().upper() in LUMA_FIRST
    try:
        frames = iter_pixels(
            path, indices=numbers, transfer_syntax_uid=syntax, raw=luma, decoding_plugin=_plugin(syntax)
        )
        for number, pixels in zip(numbers, frames, strict=True):
            yield number, pixels[..., 0] if luma and pixels.ndim == 3 else pixels
    except (MemoryError, MissingPackage):
        raise
    except Exception as error:  # decoders of damaged pixels raise almost anything; their words may quote the file
        raise ValueError(
            f"DICOM: its pixels cannot be decoded ({type(error).__name__}, {_syntax_name(syntax)}): truncated or damaged"
        ) from None


def _plugin(syntax: str) -> str:
    """The faster of pydicom's decoders where there are two; "" leaves it the choice."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    wanted = FASTER.get(syntax, "")
    return wanted if wanted and wanted in get_decoder(UID(syntax)).available_plugins else ""


def _check_codestreams(path, header, syntax: str, numbers: list[int], count: int) -> None:
    """Refuse frames whose own header announces another size than the file's: a small file could ask for much memory."""
    if not syntax.startswith((*JPEG_SYNTAXES, *JPEG_2000)):
        return
    height, width = _size(header)
    for number, stream in _encapsulated(path, syntax, numbers, count):
        size = _codestream_size(stream)
        if size != (height, width):
            shown = f"{size[1]} x {size[0]}" if size else "no size that can be read"
            raise ValueError(f"DICOM: compressed frame {number} has {shown}, its header says {width} x {height}")


def _check_plain_pixels(path, header, syntax: str, count: int) -> None:
    """Refuse uncompressed pixels that are laid down otherwise than the header says: they would be read without an error, wrong."""
    from pydicom.uid import UID

    if UID(syntax).is_compressed:
        return
    kind = str(header.get("PhotometricInterpretation", "")).strip().upper()
    if kind and kind not in PLAIN_KINDS:
        raise ValueError("DICOM: its photometric interpretation is none that is read of uncompressed pixels")
    height, width = _size(header)
    samples = int(_number(header, "SamplesPerPixel", 1))
    if kind == "YBR_FULL_422" and samples == 3:
        samples = 2
    expected = height * width * samples * int(_number(header, "BitsAllocated", 8)) * count // 8
    length = _length_of_pixels(path, syntax)
    if length != UNKNOWN_LENGTH and length - expected >= height:  # a byte a row; files are padded by a few
        raise ValueError(f"DICOM: holds {length} bytes of pixels, its header says {expected}")


def _length_of_pixels(path, syntax: str) -> int:
    """The length that stands before the pixels, in bytes."""
    from pydicom.pixels.utils import _array_common
    from pydicom.uid import UID

    with open(path, "rb") as file:
        try:
            _array_common(file, [0x00280002], transfer_syntax_uid=syntax)
            file.seek(file.tell() - 4)
            return struct.unpack("<I" if UID(syntax).is_little_endian else ">I", file.read(4))[0]
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(
                f"DICOM: its pixels cannot be decoded ({type(error).__name__}, {_syntax_name(syntax)}): truncated or damaged"
            ) from None


def _encapsulated(path, syntax: str, numbers: list[int], count: int):
    """(number, compressed bytes) of frames."""
    from pydicom.encaps import get_frame
    from pydicom.pixels.utils import _array_common

    with open(path, "rb") as file:
        try:
            _array_common(file, [0x00280002], transfer_syntax_uid=syntax)
            start = file.tell()
            for number in numbers:
                file.seek(start)
                yield number, get_frame(file, number, number_of_frames=count)
        except (MemoryError, GeneratorExit):
            raise
        except Exception as error:
            raise ValueError(f"DICOM: its compressed frames are damaged ({type(error).__name__})") from None


def _codestream_size(stream: bytes) -> tuple[int, int] | None:
    """Height and width that a JPEG, JPEG-LS or JPEG 2000 stream announces in its first frame header."""
    place = stream.find(b"\xff\x4f\xff\x51", 0, 4096)  # start of a codestream, size: JPEG 2000
    if place >= 0 and len(stream) >= place + 24:
        x1, y1, x0, y0 = struct.unpack(">4I", stream[place + 8 : place + 24])
        return y1 - y0, x1 - x0
    place = 2
    while place + 9 <= len(stream):
        if stream[place] != 0xFF:
            return None
        marker = stream[place + 1]
        if marker == 0xFF:  # filling
            place += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xF7:
            return struct.unpack(">2H", stream[place + 5 : place + 9])
        place += 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    return None


def _video_frames(path, header, numbers: list[int]):
    from vfm4us.data import clips

    syntax = str(header.file_meta.TransferSyntaxUID)
    stream = next(_encapsulated(path, syntax, [0], 1))[1]
    yield from clips.read_clip(io.BytesIO(stream), numbers)


def _grey(pixels: np.ndarray, header, value_range: tuple[float, float] | None) -> np.ndarray:
    """One decoded frame as a viewer shows it, grey uint8 (H, W)."""
    kind = str(header.get("PhotometricInterpretation", "")).strip().upper()
    bits = int(_number(header, "BitsStored", 8))
    if kind == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        try:
            pixels = apply_color_lut(pixels, header)[..., :3]
        except Exception as error:
            raise ValueError(f"DICOM: its palette is damaged ({type(error).__name__})") from None
        bits = 8 * pixels.dtype.itemsize
        if bits == 16 and pixels.max() <= 255:  # 8-bit entries, written in words
            bits = 8
    if pixels.ndim == 3:
        if bits > 8:
            pixels = (pixels >> (bits - 8)).astype(np.uint8)
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels.astype(np.uint8))).convert("L"))
    if kind in LUMA_FIRST:
        return pixels.astype(np.uint8) if bits == 8 else (pixels >> (bits - 8)).astype(np.uint8)
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError("DICOM: its photometric interpretation is none that is read here")
    grey = _windowed(pixels, header, bits, value_range)
    return 255 - grey if kind == "MONOCHROME1" else grey


def _windowed(pixels: np.ndarray, header, bits: int, value_range) -> np.ndarray:
    """Modality and VOI transformation of one sample per pixel, to uint8 (DICOM PS3.3 C.11.1, C.11.2)."""
    signed = _number(header, "PixelRepresentation", 0) == 1
    slope, intercept = _number(header, "RescaleSlope", 1), _number(header, "RescaleIntercept", 0)
    centre, breadth = _number(header, "WindowCenter", 0), _number(header, "WindowWidth", 0)
    tables = header.get("ModalityLUTSequence") or header.get("VOILUTSequence")
    if bits == 8 and not signed and (slope, intercept) == (1, 0) and not tables and breadth <= 0:
        return pixels.astype(np.uint8)
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    if value_range is not None:
        low, high = value_range
    if tables:
        from pydicom.pixels import apply_modality_lut, apply_voi_lut

        values = apply_voi_lut(apply_modality_lut(pixels, header), header).astype(np.float32)
        table = (header.get("VOILUTSequence") or header.get("ModalityLUTSequence"))[0]
        low, high = 0.0, 2.0 ** int(_numbers(table, "LUTDescriptor")[2]) - 1
        breadth = 0 if header.get("VOILUTSequence") else breadth
    else:
        values = pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        low, high = sorted((low * slope + intercept, high * slope + intercept))
    form = str(header.get("VOILUTFunction") or "LINEAR").strip().upper()
    if breadth >= 1 and form == "LINEAR":
        low, high = centre - 0.5 - (breadth - 1) / 2, centre - 0.5 + (breadth - 1) / 2
    elif breadth > 0 and form == "LINEAR_EXACT":
        low, high = centre - breadth / 2, centre + breadth / 2
    elif breadth > 0 and form == "SIGMOID":
        values, low, high = 1 / (1 + np.exp(-4 * (values - centre) / breadth)), 0.0, 1.0
    return np.floor((values - low) * (255 / max(high - low, 1e-12)) + 0.5).clip(0, 255).astype(np.uint8)
