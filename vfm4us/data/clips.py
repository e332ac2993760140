"""Frames of clips: mp4, avi, mov, wmv and others, read with PyAV.

PyAV brings its own FFmpeg and reads single frames in this process; imageio-ffmpeg starts a program per file and pipes whole
clips. Both are kept; PyAV's wheels serve every Python from 3.11 on: pip install -e .[clips].
"""

from collections.abc import Iterator

import numpy as np

from vfm4us.data import limits
from vfm4us.data.frames import NOT_SQUARE, Contents, MissingPackage
from vfm4us.data.greys import common_range, range_of_file, to_8_bit
from vfm4us.data.signatures import what_file_is

MAXIMUM_FRAMES = 1_000_000
INTERLACED = (2, 3, 4, 5)  # FFmpeg's orders of fields; 1 is progressive
FASTEST = 240  # frames a second; more is often the clock of a file, and the times of its frames say how many there are
SEEK_FROM = 64  # frames; nearer to the start than this, a clip is decoded from its start


def clip_contents(path) -> Contents:
    """Frames and rate of a clip, from its header; of one that does not say, or nonsense, from its packets, undecoded."""
    with _opened(path) as container:
        stream = _video(container)
        limits.check_size(stream.codec_context.width, stream.codec_context.height)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        count = stream.frames
        if count <= 0 or not 0 < rate <= FASTEST:
            times = [packet.pts for packet in _packets(container, stream) if packet.size > 0]
            count, known = len(times), [time for time in times if time is not None]
            span = float((max(known) - min(known)) * stream.time_base) if known and stream.time_base else 0
            if span > 0 and not 0 < rate <= FASTEST:
                rate = (count - 1) / span
        if not 1 <= count <= MAXIMUM_FRAMES:
            raise ValueError(f"clip: holds {count} frames")
        told = Contents("clip", count=count, rate=rate or None)
        aspect = stream.sample_aspect_ratio
        if aspect and aspect != 1:
            told.notes.append(NOT_SQUARE)
        if len(container.streams.video) > 1:
            told.notes.append("has several video streams: one is taken")
        if getattr(stream.codec_context, "field_order", 0) in INTERLACED:  # a newer PyAV tells
            told.notes.append("is interlaced: the lines of a frame are of two moments")
        return told


def read_clip(path, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, grey uint8 (H, W)) of the frames asked for; one that is damaged ends the clip with a ValueError."""
    wanted = set(numbers)
    last = max(wanted, default=-1)
    with _opened(path) as container:
        stream = _video(container)
        limits.check_size(stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.thread_count = 1  # images are decoded side by side already
        # a codec keeps some frames to predict others from
        with limits.hold(4 * stream.codec_context.width * stream.codec_context.height):
            frames = _numbered(container, stream, min(wanted, default=0), hasattr(path, "read"))
            for number, frame in frames:
                if number in wanted:
                    limits.check_size(frame.width, frame.height)
                    yield number, _grey(frame, path)
                if number >= last:
                    return


def _numbered(container, stream, first: int, sequential: bool):
    """(number, frame) of a clip from some frame before `first` on; from the keyframe before it where that is far from the start."""
    if first < SEEK_FROM or sequential:
        yield from enumerate(_frames(container, stream))
        return
    times = [packet.pts for packet in _packets(container, stream) if packet.size]
    known = None not in times and len(set(times)) == len(times)
    number_of = {time: number for number, time in enumerate(sorted(times))} if known else {}
    container.seek(sorted(times)[first] if first < len(number_of) else 0, stream=stream)
    before = -1
    for count, frame in enumerate(_frames(container, stream)):
        number = number_of.get(frame.pts, -1)
        if number <= before or (count == 0 and number > first):
            break  # the clip's times do not tell its frames apart
        before = number
        yield number, frame
    else:
        return
    if before >= first:
        raise ValueError(f"clip: its frames from {before + 1} on cannot be told apart by their times")
    container.seek(0, stream=stream)
    yield from enumerate(_frames(container, stream))


def _opened(path):
    try:
        import av
    except ImportError:
        raise MissingPackage("a clip", "clips") from None
    if not hasattr(path, "read"):
        limits.refuse_special(path)
        path = str(path)
    try:
        # a playlist could name files and addresses of its own: only the file itself is opened
        return av.open(path, options={"protocol_whitelist": "file", "format_whitelist": FORMATS})
    except av.FFmpegError as error:
        told = "" if hasattr(path, "read") else what_file_is(path, but="clip")
        raise ValueError(f"clip: cannot be opened{told or f': {_words(error)}'}") from None


FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,asf,matroska,webm,mpeg,mpegts,mpegvideo,h264,hevc"


def _video(container):
    if not container.streams.video:
        raise ValueError("clip: holds no video")
    stream = container.streams.best("video") or container.streams.video[0]  # the first may be a cover
    if stream.codec_context is None:
        raise ValueError("clip: is encoded in a way that is not known here")
    return stream


def _packets(container, stream):
    import av

    try:
        yield from container.demux(stream)
    except av.FFmpegError as error:
        raise ValueError(f"clip: truncated or damaged: {_words(error)}") from None


def _frames(container, stream):
    import av

    try:
        yield from container.decode(stream)
    except av.FFmpegError as error:
        raise ValueError(f"clip: truncated or damaged: {_words(error)}") from None


def _grey(frame, path) -> np.ndarray:
    """A frame as uint8 (H, W), upright as every player shows it; of 16 bits a whole clip has one range of greys."""
    if frame.format.name.startswith("gray16") and not hasattr(path, "read"):
        value_range = range_of_file(path, lambda: common_range(_wide_frames(path)))
        grey = to_8_bit(frame.to_ndarray(format="gray16le"), value_range)
    else:
        grey = frame.to_ndarray(format="gray")
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(grey, quarters)) if quarters else grey


def _wide_frames(path) -> Iterator[np.ndarray]:
    with _opened(path) as container:
        for frame in _frames(container, _video(container)):
            yield frame.to_ndarray(format="gray16le")


def _words(error) -> str:
    return " ".join(str(error.strerror or type(error).__name__).split())
