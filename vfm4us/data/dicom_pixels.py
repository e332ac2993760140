"""The pixels of DICOM files: where they lie, whether they are what the header says, and how they become grey.

Tools change the pixels of a file and leave its header, or the other way round. So what can be told from the pixels is asked of
them: how many frames there are, how many values a pixel has, whether colours are RGB or luminance and chroma. Where the two say
different things for certain the pixels count, and a note says so; where nothing is certain the file is refused.
"""

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from vfm4us.data import limits
from vfm4us.data.frames import MissingPackage
from vfm4us.data.greys import common_range, range_of_file

VIDEO_SYNTAXES = "1.2.840.10008.1.2.4.10"  # MPEG-2, H.264 and H.265 begin with this
BASELINE = "1.2.840.10008.1.2.4.50"
RLE = "1.2.840.10008.1.2.5"
JPEG_2000 = ("1.2.840.10008.1.2.4.9", "1.2.840.10008.1.2.4.20")  # and high-throughput
CODESTREAMS = {  # transfer syntaxes, by how they begin -> what their frames are compressed as
    "1.2.840.10008.1.2.4.5": "JPEG",
    "1.2.840.10008.1.2.4.57": "lossless JPEG",
    "1.2.840.10008.1.2.4.7": "lossless JPEG",
    "1.2.840.10008.1.2.4.8": "JPEG-LS",
    **dict.fromkeys(JPEG_2000, "JPEG 2000"),
}
FASTER = {"1.2.840.10008.1.2.4.80": "pyjpegls", "1.2.840.10008.1.2.4.81": "pyjpegls"}  # CharLS
PLAIN_KINDS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422")  # uncompressed
KNOWN_KINDS = (*PLAIN_KINDS, "YBR_PARTIAL_420", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT")
LUMA_FIRST = ("YBR_FULL", "YBR_FULL_422")  # their first channel is the luminance (ITU-R 601): no colour is made of them
UNKNOWN_LENGTH = 0xFFFFFFFF
VRS = (b"OB", b"OW", b"OF", b"OD", b"OV", b"UN")  # types of an element of pixels, where they are written
ITEM, END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
CODESTREAM_BEGINS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")  # JPEG, JPEG 2000 bare and in a box
LOOKED_AT = 10_000  # pixels that are looked at to tell colours apart
FEWEST = 100  # pixels to judge by
GREY, MOSTLY, HARDLY = 6, 0.6, 0.2  # grey levels of compressed pixels that count as no colour; shares of the pixels
EXACTLY, NEARLY_ALL, BETTER = 2, 0.9, 0.1  # the same of uncompressed pixels


def number_of(header, keyword: str, otherwise: float) -> float:
    """The first number of an element, or `otherwise` where it has none. ValueError where it is damaged."""
    numbers = numbers_of(header, keyword)
    return numbers[0] if numbers else otherwise


def numbers_of(header, keyword: str) -> list[float]:
    """The numbers of an element. ValueError where it is damaged."""
    try:
        value = header.get(keyword)
        values = value if isinstance(value, list | tuple) or hasattr(value, "append") else [value]
        numbers = [float(v) for v in values if v is not None and str(v) != ""]
    except Exception:  # pydicom turns the text into numbers here: damaged text raises almost anything
        raise ValueError(f"DICOM: {keyword} is damaged") from None
    if not np.isfinite(numbers).all():
        raise ValueError(f"DICOM: {keyword} is not finite")
    return numbers


def size_of(header) -> tuple[int, int]:
    """Height and width. ValueError where no image may be so large, small or narrow."""
    height, width = int(number_of(header, "Rows", 0)), int(number_of(header, "Columns", 0))
    limits.check_size(width, height)
    return height, width


@dataclass
class Pixels:
    """Where the pixels of one file lie, and what they are.

    syntax: transfer syntax
    start:  byte at which uncompressed pixels begin
    frames: of compressed pixels, (place, bytes) of the fragments of each frame
    count:  frames that the file holds
    colour: "RGB" or "YBR" of three values a pixel, whatever the header says; "" of one
    planar: whether uncompressed colours lie plane by plane
    notes:  where the header says something else
    """

    path: object
    header: object
    syntax: str
    height: int
    width: int
    samples: int
    kind: str
    start: int = 0
    frames: list[list[tuple[int, int]]] = field(default_factory=list)
    count: int = 1
    colour: str = ""
    planar: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def video(self) -> bool:
        """Whether the frames are a video stream."""
        return self.syntax.startswith(VIDEO_SYNTAXES)


def find(path, header, begin: int) -> Pixels:
    """Where the pixels are, and what they are; ValueError with the reason where they cannot be what the header says.

    begin: byte of the element of the pixels, at which the header ends
    """
    height, width = size_of(header)
    implicit, little = header.original_encoding
    plain = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"
    syntax = str(header.file_meta.get("TransferSyntaxUID") or plain)
    samples = int(number_of(header, "SamplesPerPixel", 1))
    if samples not in (1, 3):
        raise ValueError(f"DICOM: SamplesPerPixel is {samples}; 1 and 3 are read")
    kind = str(header.get("PhotometricInterpretation") or "").strip().upper()
    if not kind:
        raise ValueError("DICOM: lacks PhotometricInterpretation, which says what its values mean")
    pixels = Pixels(path, header, syntax, height, width, samples, kind)
    if samples == 3:
        pixels.colour = "YBR" if kind in LUMA_FIRST else "RGB"
    if not pixels.video:
        _check_decoder(syntax)
    with limits.open_regular(path) as file:
        length = _length(file, begin, little)
        pixels.start = file.tell()
        said = int(number_of(header, "NumberOfFrames", 0))
        if _is_compressed(syntax):
            if length != UNKNOWN_LENGTH:
                raise ValueError(
                    f"DICOM: its transfer syntax says {_syntax_name(syntax)}, but its pixels are not compressed: put "
                    "TransferSyntaxUID right"
                )
            _compressed(file, pixels, said)
        else:
            _uncompressed(file, pixels, length, said or 1)
    return pixels


def read(pixels: Pixels, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, grey uint8 (H, W)) of the frames asked for, as a viewer shows them: windowed, inverted, colours as luminance."""
    if pixels.video:
        yield from _video_frames(pixels, numbers)
        return
    with limits.hold(2 * pixels.height * pixels.width):
        value_range = None
        if pixels.samples == 1 and number_of(pixels.header, "BitsStored", 8) > 14:
            # 12 bits in 16 that do not say so: one range for all frames
            value_range = range_of_file(
                pixels.path, lambda: common_range(frame for _, frame in _decoded(pixels, list(range(pixels.count))))
            )
        for number, frame in _decoded(pixels, numbers):
            if frame.shape[:2] != (pixels.height, pixels.width):
                raise ValueError(
                    f"DICOM: frame {number} has {frame.shape[1]} x {frame.shape[0]} pixels, not {pixels.width} x {pixels.height}"
                )
            yield number, _grey(frame, pixels, value_range)


# where they are


def _length(file, begin: int, little: bool) -> int:
    """The length that stands before the pixels, in bytes; the file is left at their first byte."""
    file.seek(begin)
    head = file.read(12)
    if head[4:6] not in VRS:  # some files say that they have them, and have not
        head = head[:8]
        file.seek(begin + 8)
    if len(head) < 8 or (head[4:6] in VRS and len(head) < 12):
        raise ValueError("DICOM: holds no pixels: it ends where they should begin")
    return struct.unpack("<I" if little else ">I", head[-4:])[0]


def _is_compressed(syntax: str) -> bool:
    from pydicom.uid import UID

    if not UID(syntax).is_transfer_syntax:
        raise ValueError(f"DICOM: its transfer syntax {_syntax_name(syntax)} is not read here")
    return UID(syntax).is_compressed


def _uncompressed(file, pixels: Pixels, length: int, said: int) -> None:
    """Refuse uncompressed pixels that are laid down otherwise than the header says: they would be read without an error, wrong."""
    if pixels.kind not in PLAIN_KINDS:
        raise ValueError("DICOM: its photometric interpretation is none that is read of uncompressed pixels")
    values = 2 if pixels.kind == "YBR_FULL_422" and pixels.samples == 3 else pixels.samples
    bits = pixels.height * pixels.width * values * int(number_of(pixels.header, "BitsAllocated", 8))
    expected = bits * said // 8
    told = None if length == UNKNOWN_LENGTH else _codestream(file.read(LOOKED_AT))
    if length == UNKNOWN_LENGTH or (told and told[:2] == (pixels.height, pixels.width)):
        raise ValueError(
            "DICOM: its transfer syntax says that its pixels are not compressed, but they are: put TransferSyntaxUID right"
        )
    if length - expected >= pixels.height:  # a byte a row; files are padded by a few
        missing = ": NumberOfFrames may be missing" * ("NumberOfFrames" not in pixels.header)
        raise ValueError(f"DICOM: holds {length} bytes of pixels, its header says {expected}{missing}")
    length = min(length, os.fstat(file.fileno()).st_size - pixels.start)
    _count(pixels, said, 8 * length // bits if bits else 0, f"{length} bytes of {expected}")
    if pixels.samples == 3 and pixels.kind != "YBR_FULL_422" and number_of(pixels.header, "BitsAllocated", 8) == 8:
        _look_at_colours(file, pixels)


def _count(pixels: Pixels, said: int, held: int, words: str) -> None:
    if held < 1:
        raise ValueError(f"DICOM: its pixels are truncated: {words}")
    pixels.count = min(said, held)
    if held < said:
        pixels.notes.append("holds fewer frames than its header says: those that are whole are taken")


def _look_at_colours(file, pixels: Pixels) -> None:
    """Tell from a stripe of the first frame whether colours lie as the header says: most of an ultrasound image is grey."""
    plane = pixels.height * pixels.width
    some = min(plane, LOOKED_AT)
    begin = (plane - some) // 2

    def part(place: int, count: int) -> np.ndarray:
        file.seek(pixels.start + place)
        return np.frombuffer(file.read(count), np.uint8)

    def shares(planar: bool) -> dict[tuple[str, bool], float]:
        planes = [part(k * plane + begin, some) for k in range(3)] if planar else []
        sample = np.stack(planes, axis=-1) if planar else part(3 * begin, 3 * some)
        return {(colour, planar): grey for colour, grey in _grey_shares(sample, EXACTLY).items()}

    said = pixels.colour, number_of(pixels.header, "PlanarConfiguration", 0) == 1
    pixels.colour, pixels.planar = said
    share = shares(said[1])
    if share[said] > 1 - BETTER:
        return
    share |= shares(not said[1])
    best = max(share, key=lambda laid: share[laid])
    better = share[best] >= NEARLY_ALL and share[best] >= share[said] + BETTER
    if better or (share[best] >= MOSTLY and share[said] <= HARDLY):
        pixels.colour, pixels.planar = best
        if best[0] != said[0]:
            _note_colour(pixels)
        if best[1] != said[1]:
            pixels.notes.append(
                "says that its colours lie otherwise (PlanarConfiguration) than they do: read as they lie"
            )


def _note_colour(pixels: Pixels) -> None:
    held = {"RGB": "RGB", "YBR": "luminance and chroma"}[pixels.colour]
    pixels.notes.append(f"says {_said(pixels)}, but its pixels are {held}: read as what they are")


def _said(pixels: Pixels) -> str:
    """The photometric interpretation, if it is one: nothing else of a file's text is passed on."""
    return pixels.kind if pixels.kind in KNOWN_KINDS else "another photometric interpretation"


def _grey_shares(sample: np.ndarray, tolerance: int) -> dict[str, float]:
    """The share of pixels (N, 3) without colour, if they are RGB, and if they are luminance and chroma; 0 where few are written.

    Pixels of three zeros do not count: they are black in RGB, and what an empty frame holds in any kind. Nor do those that differ
    little from the next: where planes are flat or rise slowly, three neighbours in one plane would pass for a grey pixel.
    """
    one, two, three = (sample.reshape(-1, 3)[:, k].astype(np.int16) for k in range(3))
    written = (one | two | three) > 0
    written[:-1] &= np.abs(np.diff(one)) > 3 * tolerance
    if written.sum() < FEWEST:
        return {"RGB": 0.0, "YBR": 0.0}
    one, two, three = one[written], two[written], three[written]
    rgb = (np.abs(one - two) <= tolerance) & (np.abs(two - three) <= tolerance) & (np.abs(one - three) <= tolerance)
    ybr = (np.abs(two - 128) <= tolerance) & (np.abs(three - 128) <= tolerance)
    return {"RGB": float(rgb.mean()), "YBR": float(ybr.mean())}


def _compressed(file, pixels: Pixels, said: int) -> None:
    """Find the frames, and refuse those that hold another size or other values than the header says."""
    fragments = _fragments(file)
    if pixels.video:
        pixels.frames, pixels.count = [fragments], said or 1
        return
    if pixels.syntax == RLE:
        frames = [[fragment] for fragment in fragments]
    else:
        frames = []
        for place, size in fragments:
            file.seek(place)
            if not frames or file.read(6).startswith(CODESTREAM_BEGINS):
                frames.append([])
            frames[-1].append((place, size))
    if said and len(frames) > said:
        raise ValueError(
            f"DICOM: holds {len(frames)} compressed frames, its header says {said}: put NumberOfFrames right"
        )
    pixels.frames = frames
    _count(pixels, said or len(frames), len(frames), "no compressed frame is whole")
    if not said and len(frames) > 1:
        pixels.notes.append("does not say how many frames it holds: all are read")
    if pixels.syntax.startswith(tuple(CODESTREAMS)):
        stream = _stream(file, pixels, 0)
        _check_codestream(pixels, 0, stream)
        if pixels.samples == 3:
            told = jpeg_colour(stream)[0] if pixels.syntax == BASELINE else _colour_of_jpeg_2000(stream)
            if told and told != pixels.colour:
                pixels.colour = told
                _note_colour(pixels)


def _fragments(file) -> list[tuple[int, int]]:
    """(place, bytes) of the whole items of compressed pixels, without the table of offsets, which is wrong in many files."""
    end, found = os.fstat(file.fileno()).st_size, []
    while len(head := file.read(8)) == 8:
        group, element, size = struct.unpack("<HHI", head)
        if (group, element) == END:
            break
        if (group, element) != ITEM or size == UNKNOWN_LENGTH:
            raise ValueError("DICOM: its compressed frames are damaged")
        place = file.tell()
        if place + size > end:  # cut short
            break
        found.append((place, size))
        file.seek(size, 1)
    return found[1:]


def _stream(file, pixels: Pixels, number: int) -> bytes:
    parts = []
    for place, size in pixels.frames[number]:
        file.seek(place)
        parts.append(file.read(size))
    return b"".join(parts)


def _check_codestream(pixels: Pixels, number: int, stream: bytes) -> None:
    """Refuse a frame whose own header announces another size than the file's: a small file could ask for much memory."""
    told = _codestream(stream)
    if told is None or told[:2] != (pixels.height, pixels.width):
        shown = f"{told[1]} x {told[0]}" if told else "no size that can be read"
        raise ValueError(
            f"DICOM: compressed frame {number} has {shown}, its header says {pixels.width} x {pixels.height}"
        )
    if told[2] != pixels.samples:
        raise ValueError(
            f"DICOM: its {told[3]} frames hold {told[2]} values a pixel, its header says {pixels.samples}: put SamplesPerPixel and "
            "PhotometricInterpretation right"
        )


def _codestream(stream: bytes) -> tuple[int, int, int, str] | None:
    """Height, width, values a pixel and the compression that a stream announces in its first frame header."""
    place = stream.find(b"\xff\x4f\xff\x51", 0, 4096)  # start of a codestream, size: JPEG 2000
    if place >= 0 and len(stream) >= place + 44:
        x1, y1, x0, y0 = struct.unpack(">4I", stream[place + 8 : place + 24])
        return y1 - y0, x1 - x0, struct.unpack(">H", stream[place + 40 : place + 42])[0], "JPEG 2000"
    for marker, body in _segments(stream):
        if _is_frame(marker) and len(body) >= 6:
            height, width, values = struct.unpack(">2HB", body[1:6])
            return height, width, values, {0xC3: "lossless JPEG", 0xF7: "JPEG-LS"}.get(marker, "JPEG")
    return None


def _is_frame(marker: int) -> bool:
    return (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7


def _segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, body) of the segments of a JPEG stream up to its first scan."""
    place = 2
    while stream[:2] == b"\xff\xd8" and place + 4 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker == 0xFF:  # filling
            place += 1
            continue
        if marker in (0xD9, 0xDA):
            return
        size = int.from_bytes(stream[place + 2 : place + 4], "big")
        yield marker, stream[place + 4 : place + 2 + size]
        place += 2 + size


def jpeg_colour(stream: bytes) -> tuple[str, str]:
    """What a JPEG of three values a pixel says that they are, "" where it does not; and what libjpeg takes them for."""
    jfif, adobe, names = False, None, b""
    for marker, body in _segments(stream):
        if marker == 0xE0 and body.startswith(b"JFIF\0"):
            jfif = True
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = body[11]
        elif _is_frame(marker):
            names = body[6:15:3]
    if jfif:
        return "YBR", "YBR"
    if adobe is not None:
        return ("RGB", "RGB") if adobe == 0 else ("YBR", "YBR")
    return ("RGB", "RGB") if names == b"RGB" else ("", "YBR")


def _colour_of_jpeg_2000(stream: bytes) -> str:
    """ "RGB" where the codestream turns its values into colours when it is decoded, else ""."""
    place = stream.find(b"\xff\x4f\xff\x51", 0, 4096)
    place = stream.find(b"\xff\x52", place) if place >= 0 else -1  # coding style
    return "RGB" if 0 <= place < len(stream) - 9 and stream[place + 8] == 1 else ""


# what they are


def _check_decoder(syntax: str) -> None:
    from pydicom.pixels import get_decoder

    if not _is_compressed(syntax):
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


def _decoded(pixels: Pixels, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, values (H, W) or RGB or luminance and chroma (H, W, 3)) of the frames that the file holds."""
    numbers = [number for number in numbers if number < pixels.count]
    compressed, bits = _is_compressed(pixels.syntax), int(number_of(pixels.header, "BitsAllocated", 8))
    if compressed:
        _check_codestreams(pixels, numbers)
    if pixels.syntax == BASELINE and number_of(pixels.header, "BitsStored", 8) <= 8:
        frames = _jpeg_frames(pixels, numbers)
    elif not compressed and pixels.samples == 3 and bits == 8 and pixels.kind != "YBR_FULL_422":
        frames = _plain_colours(pixels, numbers)
    else:
        frames = _of_pydicom(pixels, numbers, compressed)
    for number, frame in zip(numbers, frames, strict=False):
        if frame.ndim == 3 and compressed:
            _check_colours(frame, pixels)
        yield number, frame


def _why(pixels: Pixels, error: Exception) -> str:
    """Why pixels cannot be decoded, as far as that can be told."""
    if pixels.samples == 3 and "PlanarConfiguration" not in pixels.header:
        return "DICOM: lacks PlanarConfiguration, which says how its colours lie"
    said = next(
        (CODESTREAMS[begin] for begin in sorted(CODESTREAMS, reverse=True) if pixels.syntax.startswith(begin)), ""
    )
    if said:
        with limits.open_regular(pixels.path) as file:
            told = _codestream(_stream(file, pixels, 0))
        if told and told[3] != said:
            return f"DICOM: its pixels are compressed as {told[3]}, its header says {said}: put TransferSyntaxUID right"
    return f"DICOM: its pixels cannot be decoded ({type(error).__name__}, {_syntax_name(pixels.syntax)}): truncated or damaged"


def _of_pydicom(pixels: Pixels, numbers: list[int], compressed: bool) -> Iterator[np.ndarray]:
    """Frames as pydicom decodes them, compressed ones from their own bytes: many a table of offsets is wrong."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import as_pixel_options, get_decoder, iter_pixels
    from pydicom.uid import UID

    raw = pixels.kind in LUMA_FIRST
    try:
        if not compressed:
            yield from iter_pixels(
                pixels.path,
                indices=numbers,
                transfer_syntax_uid=pixels.syntax,
                number_of_frames=pixels.count,
                raw=raw,
            )
            return
        decoder = get_decoder(UID(pixels.syntax))
        plugin = FASTER.get(pixels.syntax, "")
        options = as_pixel_options(pixels.header, number_of_frames=1, pixel_keyword="PixelData")
        options["decoding_plugin"] = plugin if plugin in decoder.available_plugins else ""
        with limits.open_regular(pixels.path) as file:
            for number in numbers:
                stream = encapsulate([_stream(file, pixels, number)], has_bot=False)
                yield decoder.as_array(stream, index=0, raw=raw, **options)[0]
    except (MemoryError, MissingPackage):
        raise
    except Exception as error:  # decoders of damaged pixels raise almost anything; their words may quote the file
        raise ValueError(_why(pixels, error)) from None


def _plain_colours(pixels: Pixels, numbers: list[int]) -> Iterator[np.ndarray]:
    size = 3 * pixels.height * pixels.width
    with limits.open_regular(pixels.path) as file:
        for number in numbers:
            file.seek(pixels.start + number * size)
            values = np.frombuffer(file.read(size), np.uint8)
            if pixels.planar:
                yield np.moveaxis(values.reshape(3, pixels.height, pixels.width), 0, -1)
            else:
                yield values.reshape(pixels.height, pixels.width, 3)


def _jpeg_frames(pixels: Pixels, numbers: list[int]) -> Iterator[np.ndarray]:
    """Frames of baseline JPEG as they are stored, without a change of colours."""
    with limits.open_regular(pixels.path) as file:
        for number in numbers:
            stream = _stream(file, pixels, number)
            try:
                image = Image.open(io.BytesIO(stream), formats=("JPEG",))
                if pixels.samples == 3 and jpeg_colour(stream)[1] == "YBR":
                    image.draft("YCbCr", image.size)
                frame = np.asarray(image)
            except MemoryError:
                raise
            except Exception as error:
                raise ValueError(_why(pixels, error)) from None
            yield frame


def _check_codestreams(pixels: Pixels, numbers: list[int]) -> None:
    if pixels.syntax.startswith(tuple(CODESTREAMS)):
        with limits.open_regular(pixels.path) as file:
            for number in numbers:
                _check_codestream(pixels, number, _stream(file, pixels, number))


def _check_colours(frame: np.ndarray, pixels: Pixels) -> None:
    """ValueError where colours are surely not what the header says: most of an ultrasound image is grey."""
    step = max(1, frame.shape[0] * frame.shape[1] // LOOKED_AT)
    share = _grey_shares(frame.reshape(-1, 3)[::step], GREY) if frame.dtype == np.uint8 else {}
    for held, other in (("RGB", "YBR"), ("YBR", "RGB")):
        if share and pixels.colour == other and share[held] >= MOSTLY and share[other] <= HARDLY:
            right = {"RGB": "RGB", "YBR": "YBR_FULL"}[held]
            raise ValueError(
                f"DICOM: says {_said(pixels)}, but most of its pixels are grey only as {right}: put PhotometricInterpretation "
                f"right, e.g. dcmodify -m PhotometricInterpretation={right}"
            )


def _video_frames(pixels: Pixels, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    from vfm4us.data import clips

    with limits.open_regular(pixels.path) as file:
        stream = _stream(file, pixels, 0)
    yield from clips.read_clip(io.BytesIO(stream), numbers)


def _grey(frame: np.ndarray, pixels: Pixels, value_range: tuple[float, float] | None) -> np.ndarray:
    """One decoded frame as a viewer shows it, grey uint8 (H, W)."""
    header, kind = pixels.header, pixels.kind
    bits = int(number_of(header, "BitsStored", 8))
    if kind == "PALETTE COLOR":
        frame, bits = _looked_up(frame, header)
    elif pixels.colour == "YBR":
        frame = frame[..., 0] if frame.ndim == 3 else frame
        return frame.astype(np.uint8) if bits == 8 else (frame >> (bits - 8)).astype(np.uint8)
    if frame.ndim == 3:
        if bits > 8:
            frame = (frame >> (bits - 8)).astype(np.uint8)
        return np.asarray(Image.fromarray(np.ascontiguousarray(frame.astype(np.uint8))).convert("L"))
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError("DICOM: its photometric interpretation is none that is read here")
    grey = _windowed(frame, header, bits, value_range)
    return 255 - grey if kind == "MONOCHROME1" else grey


def _looked_up(frame: np.ndarray, header) -> tuple[np.ndarray, int]:
    """Colours (H, W, 3) of indices, and their bits."""
    from pydicom.pixels import apply_color_lut

    try:
        colours = apply_color_lut(frame, header)[..., :3]
        bits = 8 * colours.dtype.itemsize
        if bits == 16 and colours.max() <= 255:  # a dark frame, or 8-bit entries that are written in words?
            whole = apply_color_lut(np.arange(2**16, dtype=np.uint16), header)
            bits = 8 if whole[..., :3].max() <= 255 else 16
    except Exception as error:
        raise ValueError(f"DICOM: its palette is damaged ({type(error).__name__})") from None
    return colours, bits


def _windowed(pixels: np.ndarray, header, bits: int, value_range) -> np.ndarray:
    """Modality and VOI transformation of one sample per pixel, to uint8 (DICOM PS3.3 C.11.1, C.11.2)."""
    signed = number_of(header, "PixelRepresentation", 0) == 1
    slope, intercept = number_of(header, "RescaleSlope", 1), number_of(header, "RescaleIntercept", 0)
    centre, breadth = number_of(header, "WindowCenter", 0), number_of(header, "WindowWidth", 0)
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
        low, high = 0.0, 2.0 ** int(numbers_of(table, "LUTDescriptor")[2]) - 1
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
