"""A PNG inflated by another library is read, or refused, as PIL alone does."""

import io

import numpy as np
import pytest
from making_trees import speckle
from PIL import Image, PngImagePlugin

from vfm4us.data import inflating
from vfm4us.data.decode import upright_image
from vfm4us.data.inflating import with_stored_pixels

pytest.importorskip("isal")


def png(image, **options):
    stream = io.BytesIO()
    image.save(stream, format="PNG", **options)
    return stream.getvalue()


def pictures():
    grey = Image.fromarray(speckle(0))
    exif = Image.Exif()
    exif[0x0112] = 6
    yield png(grey)
    yield png(grey, transparency=200)
    yield png(grey, exif=exif)
    for mode in ("1", "P", "LA", "RGB", "RGBA"):
        yield png(grey.convert(mode))
    yield png(Image.fromarray(speckle(0).astype(np.uint16) * 257))
    yield png(grey.quantize(4), bits=2)
    yield png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 500), dtype=np.uint8)))  # several blocks


def seen(data):
    try:
        image = upright_image(data)
    except ValueError as error:
        return str(error)
    return image.mode, image.info, np.asarray(image).tobytes()


def test_every_mode_is_read_as_before(monkeypatch):
    for data in pictures():
        pixels = seen(data)
        assert isinstance(pixels, tuple) and with_stored_pixels(data) != data
        with monkeypatch.context() as patch:
            patch.setattr(inflating, "isal_zlib", None)
            assert with_stored_pixels(data) == data and seen(data) == pixels


def test_damaged_and_unusual_files_are_what_they_were(monkeypatch):
    rng = np.random.default_rng(0)
    whole = [*pictures()]
    frames = [Image.fromarray(speckle(k)) for k in range(3)]
    cases = [png(frames[0], save_all=True, append_images=frames[1:]), b"", inflating.SIGNATURE, whole[0][:40]]
    for data in whole:
        cases += [data[: int(len(data) * share)] for share in rng.uniform(0, 1, 8)]
        for _ in range(25):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 2):
                damaged[place] = rng.integers(256)
            cases.append(bytes(damaged))
    pixels = [seen(data) for data in cases]
    monkeypatch.setattr(inflating, "isal_zlib", None)
    assert pixels == [seen(data) for data in cases]
    assert sum(isinstance(one, str) for one in pixels) > 100


def test_a_file_that_inflates_to_more_than_its_header_says_is_left_to_pil(monkeypatch):
    data = png(Image.new("L", (64, 64)))
    bomb = png(Image.new("L", (3000, 3000)))
    place, other = data.index(b"IDAT") - 4, bomb.index(b"IDAT") - 4
    forged = data[:place] + bomb[other:]
    assert with_stored_pixels(forged) == forged
    monkeypatch.setattr(inflating, "LARGEST", 100)
    assert with_stored_pixels(data) == data


def test_text_chunks_are_kept():
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", "x" * 50)
    data = png(Image.fromarray(speckle(1)), pnginfo=note)
    assert upright_image(data).info["Comment"] == "x" * 50
