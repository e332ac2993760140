"""Clips: the frames that a rule names, grey as they were, frozen ones told, damaged files refused."""

import os
import struct
from fractions import Fraction

import numpy as np
import pytest
from making_formats import speckle, write_clip
from PIL import Image

from vfm4us.data import clips, frames
from vfm4us.data.frames import Contents, frame_rule

pytest.importorskip("av")


def loop(count, height=64, width=80):
    """Frames that move: a bright bar over speckle."""
    base = speckle(1, height, width) // 4 + 40
    moving = []
    for k in range(count):
        frame = base.copy()
        frame[:, (5 * k) % width : (5 * k) % width + 8] = 220
        moving.append(frame)
    return moving


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mp4", "mpeg4"),
        ("a.avi", "mjpeg"),
        ("a.mov", "mpeg4"),
        ("a.wmv", "wmv2"),
        ("a.mkv", "mpeg4"),
    ],
)
def test_each_kind_of_clip_gives_its_frames_in_order(tmp_path, name, codec):
    written = loop(12)
    path = write_clip(tmp_path / name, written, rate=10, codec=codec)
    told = frames.contents_of(path)
    assert (told.kind, told.count, told.rate) == ("clip", 12, pytest.approx(10, rel=0.01))
    for number, grey in frames.read_frames(path, [0, 3, 11]):
        apart = [np.abs(grey.astype(int) - other).mean() for other in written]
        assert np.argmin(apart) == number and apart[number] < 6, (number, apart)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.avi", "mjpeg"), ("a.avi", "mpeg4"), ("a.wmv", "wmv2"), ("a.mkv", "libx264")],
)
def test_far_frames_are_the_same_from_a_keyframe_and_from_the_start(tmp_path, monkeypatch, name, codec):
    moving = [np.roll(speckle(1), (7 * k) % 80, axis=1) // (1 + k % 3) for k in range(150)]
    path = write_clip(tmp_path / name, moving, rate=25, codec=codec)
    wanted = [97, 98, 120, 149]
    near = dict(frames.read_frames(path, [*range(0, 150, 7), *wanted]))
    far = dict(frames.read_frames(path, wanted))
    assert sorted(far) == wanted and all((far[number] == near[number]).all() for number in wanted)
    decoded = []
    real = clips._frames
    monkeypatch.setattr(clips, "_frames", lambda *a: (decoded.append(1) or frame for frame in real(*a)))
    dict(frames.read_frames(path, [149]))
    assert len(decoded) < 150 or codec == "libx264", "decoded from the start"


def turned(path, matrix):
    """The file with another display matrix of its video, as a phone that was held upright writes it."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd")
    place += 24 + (20 if data[place + 4] == 0 else 32)
    data[place : place + 36] = struct.pack(">9i", *(value << 16 for value in matrix[:8]), 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("matrix", "quarters"),
    [((0, 1, 0, -1, 0, 0, 64, 0), -1), ((0, -1, 0, 1, 0, 0, 0, 80), 1), ((-1, 0, 0, 0, -1, 0, 80, 64), 2)],
)
def test_clips_are_upright_as_players_show_them(tmp_path, matrix, quarters):
    path = write_clip(tmp_path / "a.mp4", loop(3), codec="libx264", options={"qp": "0"})
    _, raw = next(frames.read_frames(path, [0]))
    _, grey = next(frames.read_frames(turned(path, matrix), [0]))
    assert (grey == np.rot90(raw, quarters)).all()


def test_sixteen_bits_have_one_range_over_a_clip(tmp_path):
    import av

    written = [speckle(0) // 8, speckle(1)]
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.height, stream.width, stream.pix_fmt = 64, 80, "gray16le"
        for frame in written:  # 12 bits in 16
            wide = av.VideoFrame.from_ndarray(frame.astype(np.uint16) * 16, format="gray16le")
            container.mux(stream.encode(wide))
        container.mux(stream.encode())
    for (_, grey), frame in zip(frames.read_frames(tmp_path / "a.mkv", [0, 1]), written, strict=True):
        assert np.abs(grey.astype(int) - frame).mean() < 1


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")])
def test_the_clock_of_a_file_is_no_rate(tmp_path, name, codec):
    import av

    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=1000)
        stream.height, stream.width, stream.pix_fmt = 64, 80, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(loop(40)):
            frame = av.VideoFrame.from_ndarray(np.repeat(pixels[..., None], 3, 2), format="rgb24")
            frame.pts, frame.time_base = 100 * number + 7 * (number % 3), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    told = frames.contents_of(tmp_path / name)
    assert told.count == 40 and told.rate == pytest.approx(10, rel=0.02)
    assert frame_rule("per second").chosen(told) == [0, 10, 20, 30]


def test_a_cover_is_no_clip(tmp_path):
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        cover, clip = container.add_stream("mjpeg", rate=1), container.add_stream("libx264", rate=1)
        for stream, kind in ((cover, "yuvj420p"), (clip, "yuv420p")):
            stream.height, stream.width, stream.pix_fmt = 64, 80, kind
        cover.disposition = av.stream.Disposition.attached_pic.value
        for stream, pictures in ((cover, [speckle(9)]), (clip, loop(4))):
            for pixels in pictures:
                colour = av.VideoFrame.from_ndarray(np.repeat(pixels[..., None], 3, 2), format="rgb24")
                container.mux(stream.encode(colour))
            container.mux(stream.encode())
    told = frames.contents_of(tmp_path / "a.mkv")
    assert told.count == 4 and any("several video streams" in note for note in told.notes)
    assert [number for number, _ in frames.read_frames(tmp_path / "a.mkv", [0, 3])] == [0, 3]


def test_interlaced_clips_are_told(tmp_path):
    import av

    if not hasattr(av.VideoCodecContext, "field_order"):
        pytest.skip("an older PyAV does not tell")
    path = write_clip(tmp_path / "a.mp4", loop(3), codec="libx264", options={"x264-params": "tff=1"})
    assert any("interlaced" in note for note in frames.contents_of(path).notes)
    assert not frames.contents_of(write_clip(tmp_path / "b.mp4", loop(3), codec="libx264")).notes


def test_black_and_white_keep_their_values(tmp_path):
    """The video range of 16 to 235 must not be taken for greys."""
    flat = [np.full((64, 80), value, np.uint8) for value in (0, 255)] * 2
    path = write_clip(tmp_path / "a.mp4", flat, codec="libx264", options={"qp": "0"})
    got = [int(np.median(grey)) for _, grey in frames.read_frames(path, [0, 1])]
    assert got[0] <= 1 and got[1] >= 254


@pytest.mark.parametrize(
    ("name", "options"), [("a.tif", {}), ("a.gif", {"duration": 40}), ("a.webp", {"lossless": True, "duration": 40})]
)
def test_pages_are_frames(tmp_path, name, options):
    written = loop(5)
    pages = [Image.fromarray(frame) for frame in written]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], **options)
    told = frames.contents_of(tmp_path / name)
    assert (told.kind, told.count, told.rate) == ("pages", 5, 25 if options else None)
    got = dict(frames.read_frames(tmp_path / name, [1, 4]))
    assert all(np.abs(got[k].astype(int) - written[k]).max() <= 1 for k in (1, 4))
    pages[0].save(tmp_path / f"one_{name}")
    assert frames.contents_of(tmp_path / f"one_{name}") is None


def test_damaged_clips_are_refused(tmp_path):
    whole = write_clip(tmp_path / "a.mp4", loop(12)).read_bytes()
    for data in (b"", b"x" * 500, whole[: len(whole) // 2]):
        path = tmp_path / "b.mp4"
        path.write_bytes(data)
        with pytest.raises(ValueError, match="clip|empty"):
            list(frames.read_frames(path, [0])), frames.contents_of(path)
    rng = np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 10):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            told = frames.contents_of(path)
            list(frames.read_frames(path, list(range(min(told.count, 50)))))
        except ValueError:
            pass


def test_a_clip_opens_no_other_file(tmp_path):
    write_clip(tmp_path / "secret.mp4", loop(3))
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    (tmp_path / "play.mp4").write_text("#EXTM3U\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n")
    for name in ("list.mp4", "play.mp4"):
        with pytest.raises(ValueError, match="cannot be opened"):
            frames.contents_of(tmp_path / name)


def test_a_fifo_named_like_a_clip_is_refused_without_opening(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="not a regular file but a FIFO"):
        frames.contents_of(tmp_path / "a.mp4")


# rules


@pytest.mark.parametrize(
    ("rule", "count", "rate", "expected"),
    [
        ("first", 50, 25, [0]),
        ("all", 4, 25, [0, 1, 2, 3]),
        ("every 3rd", 8, 25, [0, 3, 6]),
        ("every-10", 25, None, [0, 10, 20]),
        ("per second", 75, 25, [0, 25, 50]),
        ("per_second", 76, 25, [0, 25, 50, 75]),
        ("2 per second", 50, 25, [0, 13, 25, 38]),
        ("100 per second", 3, 25, [0, 1, 2]),
        ("per second", 60, None, [0, 25, 50]),  # 25 a second are assumed
        ("per second", 5, 0, [0, 1, 2, 3, 4]),  # slices
        ("per second", 10, 25, [0]),
        ("first", 1, 25, [0]),
    ],
)
def test_a_rule_names_frames(rule, count, rate, expected):
    assert frame_rule(rule).chosen(Contents("clip", count=count, rate=rate)) == expected


@pytest.mark.parametrize(
    "rule", ["", "every", "every 0", "last", "0 per second", "every -2", "1e9 per second", None, 5]
)
def test_other_rules_are_refused_with_the_words_that_are_known(rule):
    with pytest.raises(ValueError, match="use first, all, every N, per second, or N per second"):
        frame_rule(rule)


def test_a_rule_is_written_as_it_is_read():
    for text in ("first", "all", "every 7", "per second", "2.5 per second"):
        assert str(frame_rule(text)) == text and frame_rule(str(frame_rule(text))) == frame_rule(text)


def test_a_frozen_frame_is_near_identical_and_a_moved_one_is_not(tmp_path):
    still = speckle(0, 128, 160)
    path = write_clip(tmp_path / "a.mp4", [still] * 3 + [np.roll(still, 2, 1)], codec="libx264")
    a, b, c, moved = (grey for _, grey in frames.read_frames(path, [0, 1, 2, 3]))
    assert frames.near_identical(a, b) and frames.near_identical(b, c) and not frames.near_identical(c, moved)
    small = still.copy()
    small[40:52, 60:72] = 255 - small[40:52, 60:72]  # a small thing that comes up in a still picture
    assert not frames.near_identical(still, small) and not frames.near_identical(None, still)


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch):
    import sys

    path = write_clip(tmp_path / "a.mp4", loop(2))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"needs the package av: pip install -e \.\[clips\]"):
        clips.clip_contents(path)
